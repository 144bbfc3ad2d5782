"""An index of the windows of any amount of sound: their features by a frozen network, in a folder of parts.

The folder has `index.json`, which describes the network and the windows, and parts `part_000000.safetensors`, each with
the features (windows, features), the probabilities (windows, tags), the times and the files of at most some thousand
windows. A part is complete or not there, so a command that was killed continues after the last one. Nothing in the
files is executed. Windows keep their row for good: others are only appended.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fatai.audio.stream import stream_audio
from fatai.audio.waveform import SILENCE_DB, is_silent
from fatai.errors import AudioError, DataError, OptionError
from fatai.inference.events.windows import Window, cut_windows
from fatai.inference.search.encoder import WindowEncoder
from fatai.io.atomic import translate_os_errors, write_file, write_text
from fatai.io.json import parse_json, read_json_limited
from fatai.io.lock import lock_output
from fatai.io.progress import track

__all__ = ["IndexedSound", "IndexingResult", "SoundIndex", "index_sounds", "is_sound_index"]

INDEX = "index.json"
PART_WINDOWS = 2048
"""Windows of a part: at most so many are computed again after a kill."""
SAME_TIME_S = 0.05
"""Times that differ by less are equal: tables round them."""

_MIN_NEW = 0.1  # of a step: a last window with less of new sound is left out
_FORMAT = "fatai sound index 1"
_ARRAYS = {"features": "F32", "probs": "F32", "start_s": "F64", "end_s": "F64", "file": "I32"}


def is_sound_index(folder: str | os.PathLike[str]) -> bool:
    """Return whether a folder has an index.json, as `index_sounds` writes it."""
    return Path(folder, INDEX).is_file()


class IndexedSound(NamedTuple):
    """A sound of an index: its path, its size in bytes, and whether all its windows are in the index."""

    path: str
    n_bytes: int
    complete: bool


@dataclass
class IndexingResult:
    """Counts of a call of `index_sounds`.

    Attributes
    ----------
    windows, silent
        Number of windows added, and of silent ones left out.
    sounds, skipped
        Number of sounds read to their end, and of those that the index had already.
    errors
        Path of each unreadable sound to the message that says why.
    """

    windows: int = 0
    silent: int = 0
    sounds: int = 0
    skipped: int = 0
    errors: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class IndexSettings:
    """What determines the windows and features of an index.

    Attributes
    ----------
    network
        Digest of the network, its clip settings and tags.
    source
        Where the network is loaded from: keyword arguments of `fatai.experiment.encoder.load_encoder`.
    window_s, step_s
        Length of a window, and seconds from one to the next.
    silence_db
        Windows whose peak is below this level, in dB of full scale, are left out.
    n_features
        Number of features.
    tags
        Tags of the network; empty for published weights.
    """

    network: str
    source: dict[str, Any]
    window_s: float
    step_s: float
    silence_db: float
    n_features: int
    tags: tuple[str, ...]


@dataclass(frozen=True)
class _Part:
    """A part: its file, the first of its rows, the number of them, and its sounds."""

    path: Path
    first: int
    n: int
    sounds: tuple[IndexedSound, ...]

    def read(self, name: str) -> np.ndarray:
        """Read one array."""
        try:
            with safe_open(str(self.path), framework="np") as f:
                return f.get_tensor(name)
        except (SafetensorError, OSError) as e:
            raise _damaged(self.path, e) from None


def _damaged(path: Path, error: Any) -> DataError:
    return DataError(f"{path} is no part of an index ({error}); remove it and repeat fatai-submit index")


class SoundIndex:
    """The windows of an index, by their rows 0 to `len(index) - 1`.

    Features stay on disk and are read part by part, so that memory does not grow with the number of windows but by 20
    bytes for each.

    Parameters
    ----------
    folder
        A folder that `index_sounds` wrote.

    Raises
    ------
    DataError
        If it is none, or a file in it is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        self.settings = _read_settings(self.folder)
        self._parts = _read_parts(self.folder, self.settings)
        self.sounds: dict[str, IndexedSound] = {}
        for part in self._parts:
            for sound in part.sounds:
                known = self.sounds.get(sound.path)
                self.sounds[sound.path] = sound if known is None or sound.complete else known

    def __len__(self) -> int:
        return sum(part.n for part in self._parts)

    @property
    def tags(self) -> tuple[str, ...]:
        """Tags of the network; empty for published weights."""
        return self.settings.tags

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """Path of each sound, in the order in which they were first seen."""
        return tuple(self.sounds)

    @cached_property
    def file(self) -> np.ndarray:
        """Number in `paths` of each window's sound, int32 (windows,)."""
        number = {path: k for k, path in enumerate(self.paths)}
        files = [np.zeros(0, np.int32)]
        for part in self._parts:
            of_part = np.array([number[sound.path] for sound in part.sounds], dtype=np.int32)
            files.append(of_part[part.read("file")])
        return np.concatenate(files)

    @cached_property
    def start_s(self) -> np.ndarray:
        """Start of each window in its sound, seconds, float64 (windows,)."""
        return self._joined("start_s")

    @cached_property
    def end_s(self) -> np.ndarray:
        """End of each window in its sound, seconds, float64 (windows,)."""
        return self._joined("end_s")

    def _joined(self, name: str) -> np.ndarray:
        return np.concatenate([np.zeros(0), *(part.read(name) for part in self._parts)])

    def blocks(self, name: str = "features") -> Iterator[tuple[int, np.ndarray]]:
        """Yield the first row and the "features" (windows, features) or "probs" (windows, tags) of each part."""
        for part in self._parts:
            if part.n:
                yield part.first, part.read(name)

    def features(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the features of some rows, float32 (rows, features)."""
        wanted = np.asarray(rows, dtype=np.int64)
        values = np.empty((len(wanted), self.settings.n_features), dtype=np.float32)
        for part in self._parts:
            inside = (wanted >= part.first) & (wanted < part.first + part.n)
            if inside.any():
                values[inside] = part.read("features")[wanted[inside] - part.first]
        return values

    def table(self, rows: Sequence[int] | np.ndarray) -> pd.DataFrame:
        """Return a table of windows: `file` (its path), `start` and `end` in seconds, with the rows as index."""
        wanted = np.asarray(rows, dtype=np.int64)
        return pd.DataFrame(
            {
                "file": [self.paths[k] for k in self.file[wanted]],
                "start": self.start_s[wanted].round(3),
                "end": self.end_s[wanted].round(3),
            },
            index=wanted,
        )

    def rows_of(self, path: str, start_s: float, end_s: float | None) -> np.ndarray:
        """Return the rows of the windows that a segment of a sound describes, int64, in order.

        It is the window of the same times, or else the windows that share more than half of the shorter of the two
        with the segment. An `end_s` of None is the end of the sound.
        """
        rows = self._rows_by_path.get(path, np.zeros(0, np.int64))
        end_s = float("inf") if end_s is None else end_s
        starts, ends = self.start_s[rows], self.end_s[rows]
        same = (abs(starts - start_s) < SAME_TIME_S) & (abs(ends - end_s) < SAME_TIME_S)
        if same.any():
            return rows[same]
        shared = np.minimum(ends, end_s) - np.maximum(starts, start_s)
        return rows[shared > 0.5 * np.minimum(ends - starts, end_s - start_s)]

    @cached_property
    def _rows_by_path(self) -> dict[str, np.ndarray]:
        order = np.argsort(self.file, kind="stable")
        bounds = np.searchsorted(self.file[order], np.arange(len(self.paths) + 1))
        return {path: order[bounds[k]:bounds[k + 1]] for k, path in enumerate(self.paths)}


def _read_settings(folder: Path) -> IndexSettings:
    if not is_sound_index(folder):
        raise DataError(f"{folder} is no index of sounds; expected a folder that fatai-submit index wrote")
    try:
        values = read_json_limited(folder / INDEX)
        if values.pop("format", None) != _FORMAT:
            raise ValueError(f"expected the format {_FORMAT!r}")
        settings = IndexSettings(**{**values, "tags": tuple(str(tag) for tag in values["tags"])})
        if not 0 < settings.step_s <= settings.window_s or not 0 < settings.n_features <= 1 << 20:
            raise ValueError("a number is out of range")
        return settings
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise DataError(f"{folder / INDEX} does not describe an index of sounds: {e}") from None


def _read_parts(folder: Path, settings: IndexSettings) -> list[_Part]:
    parts, first = [], 0
    for path in sorted(folder.glob("part_*.safetensors")):
        try:
            with safe_open(str(path), framework="np") as f:
                n = _check_arrays(f, settings)
                sounds = tuple(
                    IndexedSound(str(sound), int(n_bytes), bool(complete))
                    for sound, n_bytes, complete in parse_json((f.metadata() or {})["sounds"])
                )
                files = f.get_tensor("file")
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as e:
            raise _damaged(path, e) from None
        if n and not (0 <= files.min() and files.max() < len(sounds)):
            raise _damaged(path, "a window has no sound")
        parts.append(_Part(path, first, n, sounds))
        first += n
    return parts


def _check_arrays(file: Any, settings: IndexSettings) -> int:
    """Return the number of windows of an open part; raise `ValueError` if an array has another shape or type."""
    n = file.get_slice("start_s").get_shape()[0]
    width = {"features": [settings.n_features], "probs": [len(settings.tags)]}
    for name, dtype in _ARRAYS.items():
        found = file.get_slice(name)
        if found.get_shape() != [n, *width.get(name, [])] or found.get_dtype() != dtype:
            raise ValueError(f"{name} has the shape {found.get_shape()} and type {found.get_dtype()}")
    return n


class _Builder:
    """Collect windows, encode them in batches, and write parts."""

    def __init__(self, index: SoundIndex, encoder: WindowEncoder, bs: int, part_windows: int):
        self.folder, self.encoder, self.bs, self.part_windows = index.folder, encoder, bs, part_windows
        self.n_parts = len(index._parts)
        self.waiting: list[tuple[str, Window | None]] = []  # None is the end of the sound
        self.n_waiting = 0
        self._begin_part()

    def _begin_part(self) -> None:
        self.sounds: dict[str, IndexedSound] = {}
        self.rows: list[tuple[str, float, float]] = []
        self.features: list[np.ndarray] = []
        self.probs: list[np.ndarray] = []

    def add(self, sound: IndexedSound, window: Window | None) -> None:
        """Add a window of a sound, or with None its end."""
        self.waiting.append((sound.path, window))
        self.sounds.setdefault(sound.path, sound)
        self.n_waiting += window is not None
        if self.n_waiting == self.bs:
            self.encode()

    def encode(self) -> None:
        """Encode the windows that wait, and write the part if it is full."""
        windows = [window for _, window in self.waiting if window is not None]
        if windows:
            encoded = self.encoder.encode(torch.stack([window.wave for window in windows]))
            self.features.append(encoded.features)
            self.probs.append(encoded.probs)
        sr = self.encoder.settings.sr
        for path, window in self.waiting:
            if window is None:
                self.sounds[path] = self.sounds[path]._replace(complete=True)
            else:
                self.rows.append((path, window.start / sr, window.end / sr))
        unfinished = self.sounds[self.waiting[-1][0]] if self.waiting else None
        self.waiting, self.n_waiting = [], 0
        if len(self.rows) >= self.part_windows:
            self.write()
            if unfinished is not None and not unfinished.complete:
                self.sounds[unfinished.path] = unfinished

    def write(self) -> None:
        """Write a part, unless there is nothing to write."""
        if not self.rows and not any(sound.complete for sound in self.sounds.values()):
            return
        number = {path: k for k, path in enumerate(self.sounds)}
        n_features, n_tags = self.encoder.n_features, len(self.encoder.tags)
        arrays = {
            "features": np.concatenate([np.zeros((0, n_features), np.float32), *self.features]),
            "probs": np.concatenate([np.zeros((0, n_tags), np.float32), *self.probs]),
            "start_s": np.array([start for _, start, _ in self.rows], dtype=np.float64),
            "end_s": np.array([end for *_, end in self.rows], dtype=np.float64),
            "file": np.array([number[path] for path, *_ in self.rows], dtype=np.int32),
        }
        sounds = json.dumps([list(sound) for sound in self.sounds.values()])
        with write_file(self.folder / f"part_{self.n_parts:06d}.safetensors") as temporary:
            save_file(arrays, str(temporary), metadata={"sounds": sounds})
        self.n_parts += 1
        self._begin_part()


def index_sounds(
    folder: str | os.PathLike[str],
    encoder: WindowEncoder,
    sounds: Iterable[str | os.PathLike[str]],
    *,
    source: dict[str, Any] | None = None,
    step_s: float | None = None,
    silence_db: float = SILENCE_DB,
    bs: int = 32,
    part_windows: int = PART_WINDOWS,
) -> IndexingResult:
    """Add the windows of sounds to an index; a killed call continues where the last part ended.

    Sounds are streamed: memory holds a part of the windows, whatever the length of the sounds. Sounds that the index
    has are skipped; unreadable ones are reported and tried again by the next call.

    Parameters
    ----------
    folder
        The index; created if it is absent.
    encoder
        The network.
    sounds
        Paths of sound files of any length.
    source
        Where the network is loaded from, noted for searches by example: keyword arguments of
        `fatai.experiment.encoder.load_encoder`.
    step_s
        Seconds from one window to the next; None is half a window.
    silence_db
        A window whose peak is below this level, in dB of full scale, is left out.
    bs
        Windows per batch.
    part_windows
        Windows of a part.

    Raises
    ------
    OptionError
        If `step_s`, `bs` or `part_windows` is out of range.
    DataError
        If the folder holds something else or an index by another network or of other windows, or if a sound has changed
        since it was indexed.
    StorageError
        If another command writes the index.
    """
    root, window_s = Path(folder), encoder.settings.crop_s
    step_s = window_s / 2 if step_s is None else float(step_s)
    if not 0.01 <= step_s <= window_s:
        raise OptionError(f"step_s is {step_s}; expected 0.01 to {window_s:g} seconds, the length of a window")
    if bs < 1 or part_windows < 1:
        raise OptionError(f"bs is {bs} and part_windows {part_windows}; expected at least one window")
    settings = IndexSettings(
        encoder.digest(), dict(source or {}), window_s, step_s, silence_db, encoder.n_features, tuple(encoder.tags)
    )
    result = IndexingResult()
    with lock_output(root):
        index = _open_or_create(root, settings)
        builder = _Builder(index, encoder, bs, part_windows)
        for sound in track([os.path.abspath(sound) for sound in dict.fromkeys(sounds)], "indexing"):
            _add_sound(builder, index, sound, result)
        builder.encode()
        builder.write()
    if result.errors:
        listed = "\n".join(f"  {error}" for error in result.errors.values())
        warnings.warn(
            f"{len(result.errors)} sounds cannot be read to their end; the same command tries them again:\n{listed}",
            stacklevel=2,
        )
    return result


def _open_or_create(root: Path, settings: IndexSettings) -> SoundIndex:
    if not is_sound_index(root):
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise DataError(f"{root} exists and is no index of sounds; choose another folder, or remove it")
        with translate_os_errors(root):
            root.mkdir(parents=True, exist_ok=True)
        values = {"format": _FORMAT, **asdict(settings)}
        write_text(root / INDEX, json.dumps(values, indent=1) + "\n")
    for partial_file in root.glob(".*.part*"):  # of a killed process
        partial_file.unlink(missing_ok=True)
    index = SoundIndex(root)
    found = index.settings
    if found.network != settings.network:
        raise DataError(f"{root} is an index by another network; give the same network, or choose another folder")
    for name in ("window_s", "step_s", "silence_db"):
        if getattr(found, name) != getattr(settings, name):
            raise DataError(
                f"{root} has {name} {getattr(found, name):g}, and {getattr(settings, name):g} is asked for; give the "
                "same value, or choose another folder"
            )
    return index


def _add_sound(builder: _Builder, index: SoundIndex, path: str, result: IndexingResult) -> None:
    """Add the windows of a sound that the index lacks; count them in `result`."""
    try:
        n_bytes = os.stat(path).st_size
    except OSError as e:
        result.errors[path] = f"{path}: {e.strerror}"
        return
    known = index.sounds.get(path)
    if known is not None and known.n_bytes != n_bytes:
        raise DataError(
            f"{path} has changed since it was indexed ({known.n_bytes:,} bytes, now {n_bytes:,}); make a new index"
        )
    if known is not None and known.complete:
        result.skipped += 1
        return
    rows = index._rows_by_path.get(path, np.zeros(0, np.int64))
    last_s = float(index.start_s[rows].max()) if len(rows) else -1.0
    sound, settings, n_windows = IndexedSound(path, n_bytes, False), builder.encoder.settings, 0
    step, covered = max(1, round(index.settings.step_s * settings.sr)), 0
    try:
        for window in cut_windows(stream_audio(path, settings.sr, channel=settings.channel), settings, step):
            # The last window ends with the sound: it may repeat all but milliseconds of the one before.
            is_repeated = window.end - covered < _MIN_NEW * step and covered > 0
            covered = window.end
            if is_repeated or window.start / settings.sr <= last_s:
                continue
            if is_silent(window.wave, index.settings.silence_db):
                result.silent += 1
                continue
            builder.add(sound, window)
            n_windows += 1
    except AudioError as e:
        result.errors[path] = str(e)
        result.windows += n_windows
        return
    builder.add(sound, None)
    result.windows += n_windows
    result.sounds += 1
