"""Format and writer of the clip cache: in threads, by one process at a time, each clip's file whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fatai import __version__
from fatai.audio.segments import file_of
from fatai.data.config import ClipConfig
from fatai.errors import AudioError, CacheError, FataiError, OptionError
from fatai.io.atomic import write_file, write_text
from fatai.io.progress import track
from fatai.registry import did_you_mean

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["CACHES", "CACHE_KINDS", "default_cache_folder"]

CACHES = {
    "none": "sound files are decoded in every epoch",
    "wave": "decoded clips as 16-bit samples on disk",
    "features": "spectrograms of whole clips on disk",
    "device": "decoded clips on disk, and in the memory of the device",
    "device_features": "spectrograms of whole clips on disk, and in the memory of the device",
    "auto": "device, wave or none: the first that fits",
}
"""Where training reads clips from: names and what they mean."""
CACHE_KINDS = ("wave", "features")
"""What a cache holds: decoded waves, or the output of the front end."""
DTYPES = {"wave": np.dtype("<i2"), "features": np.dtype("<f2")}
_SUFFIXES = {"wave": ".i16", "features": ".f16"}
_FORMAT = 2  # raise it when the same configuration leads to other bytes
_LOCK = "build.lock"
_CHUNK = 256  # clips submitted to the threads together, so that there are never many futures


class WrittenCache(NamedTuple):
    """Result of `write_cache`.

    Attributes
    ----------
    folder
        Folder of the clips.
    names
        bytes, shape (clips,): name of each clip's file, empty where the sound file was not found.
    lengths
        int64, shape (clips,): samples or frames of each clip, 0 where it could not be read.
    errors
        Maps the position of each clip that could not be read to an error message.
    """

    folder: Path
    names: np.ndarray
    lengths: np.ndarray
    errors: dict[int, str]


def default_cache_folder() -> Path:
    """Return `fatai/clips` in `$XDG_CACHE_HOME`, or in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fatai" / "clips"


def _digest(text: str) -> str:
    """Hash text to 32 hexadecimal digits."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _cache_key(config: ClipConfig, kind: str) -> dict[str, Any]:
    """Collect everything that determines a cache's bytes, except for the sound files."""
    if kind not in CACHE_KINDS:
        raise OptionError(f"there is no cache of kind {kind!r}; {did_you_mean(kind, CACHE_KINDS)}")
    key: dict[str, Any] = {
        "format": _FORMAT, "fatai": __version__, "kind": kind, "sr": config.sr, "trim_db": config.trim_db,
        "channel": config.channel,
    }
    if kind == "features":
        front_end = asdict(config.front_end)
        del front_end["channels"]  # computed from the crop, each time
        key |= {"front_end": front_end, "crop_samples": config.crop_samples, "pad_mode": config.pad_mode}
    return key


def write_cache(paths: Sequence[str], config: ClipConfig, kind: str, root: Path, threads: int | None) -> WrittenCache:
    """Write the clips that a cache lacks; arguments and errors as in `ClipCache.open_or_build`.

    Returns
    -------
    The folder, names (clips,), lengths (clips,) and errors.
    """
    key = json.dumps(_cache_key(config, kind), indent=1, sort_keys=True) + "\n"
    folder = root / _digest(key)
    rows = 1 if kind == "wave" else config.front_end.rows
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names, errors = _clip_names(paths, kind)
        if _missing(names, _lengths(folder, kind, rows)):
            with _build_lock(folder) as is_exclusive:
                if is_exclusive:
                    _remove_partial_files(folder)
                write_text(folder / "settings.json", key)
                errors |= _write_missing(folder, config, kind, paths, names, rows, threads)
        lengths = _lengths(folder, kind, rows)
    except FataiError:
        raise
    except OSError as e:
        raise CacheError(
            f"the cache {folder} cannot be built ({e.strerror or e}); choose another cache_dir, or cache='none'"
        ) from e
    for i in _missing(names, lengths):
        errors.setdefault(i, f"{paths[i]}: the file was changed while its cache was built; start again")
    found = np.array([lengths.get(name, 0) for name in names], dtype=np.int64)
    return WrittenCache(folder, np.array(names, dtype="S"), found, errors)


def _clip_names(paths: Sequence[str], kind: str) -> tuple[list[str], dict[int, str]]:
    """Return the name of each clip's file, "" where the sound file is missing, and error messages of those."""
    names: list[str] = []
    errors: dict[int, str] = {}
    for i, path in enumerate(paths):
        try:
            names.append(_clip_name(path, kind))
        except OSError as e:
            names.append("")
            errors[i] = f"{path}: the file cannot be found ({e.strerror}); check the folder and the name in the table"
    return names, errors


def _clip_name(path: str, kind: str) -> str:
    """Join the digests of a sound file's path and of its identity, which changes when it is written."""
    stat = os.stat(file_of(path))
    identity = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    return f"{_digest(os.path.abspath(path))}-{_digest(repr(identity))[:16]}{_SUFFIXES[kind]}"


def _clip_entries(folder: Path) -> Iterator[os.DirEntry]:
    """Iterate over the clips' files, which are in 256 subfolders to keep listings short."""
    for sub in sorted(entry.path for entry in os.scandir(folder) if entry.is_dir()):
        with os.scandir(sub) as entries:
            yield from entries


def _lengths(folder: Path, kind: str, rows: int) -> dict[str, int]:
    """Map the file name of every complete clip to its samples or frames."""
    width = rows * DTYPES[kind].itemsize
    sizes = {entry.name: entry.stat().st_size for entry in _clip_entries(folder) if not entry.name.startswith(".")}
    # After a power failure a file may have its name and not all of its bytes.
    return {name: size // width for name, size in sizes.items() if size and size % width == 0}


def _missing(names: Sequence[str], lengths: dict[str, int]) -> list[int]:
    return [i for i, name in enumerate(names) if name and name not in lengths]


@contextmanager
def _build_lock(folder: Path) -> Iterator[bool]:
    """Hold the lock of `folder`, waiting for other processes; yield False where the system has no such lock."""
    with open(folder / _LOCK, "ab") as lock:
        if fcntl is None:
            yield False
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that builds the cache {folder}", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            # Some network file systems have no locks. Clips are whole or absent all the same; some are computed twice.
            yield False
            return
        yield True


def _remove_partial_files(folder: Path) -> None:
    """Delete the temporary files of killed processes; only safe while no other process writes."""
    for path in [entry.path for entry in _clip_entries(folder) if entry.name.startswith(".")]:
        os.unlink(path)
    for path in [entry.path for entry in os.scandir(folder) if entry.name.startswith(".") and entry.is_file()]:
        os.unlink(path)


class _ClipWriter:
    """Writes the files of clips, one per call, and deletes those that they replace."""

    def __init__(self, folder: Path, config: ClipConfig, kind: str, paths: Sequence[str], names: Sequence[str]):
        self.folder, self.config, self.kind, self.paths, self.names = folder, config, kind, paths, names
        self.module = config.front_end.build().eval() if kind == "features" else None
        self.previous: dict[str, list[str]] = {}
        for entry in _clip_entries(folder):
            self.previous.setdefault(entry.name.split("-")[0], []).append(entry.path)

    def write(self, i: int) -> str:
        """Write clip `i`; return "" or an error message."""
        name = self.names[i]
        try:
            values = compute_values(self.config, self.module, self.paths[i])
            is_unchanged = _clip_name(self.paths[i], self.kind) == name
        except (AudioError, FileNotFoundError) as e:
            return str(e)
        if is_unchanged:
            with write_file(self.folder / name[:2] / name) as temporary:
                temporary.write_bytes(values.data)
        for old in self.previous.get(name.split("-")[0], ()):
            if not old.endswith(name):
                Path(old).unlink(missing_ok=True)
        return ""


def _write_missing(
    folder: Path,
    config: ClipConfig,
    kind: str,
    paths: Sequence[str],
    names: Sequence[str],
    rows: int,
    threads: int | None,
) -> dict[int, str]:
    """Write the missing clips and return error messages by position."""
    todo = list({names[i]: i for i in _missing(names, _lengths(folder, kind, rows))}.values())
    writer = _ClipWriter(folder, config, kind, paths, names)
    messages = track(_map_in_threads(writer.write, todo, threads), f"caching {kind}", total=len(todo))
    return {i: message for i, message in zip(todo, messages, strict=True) if message}


def _map_in_threads(write: Callable[[int], str], todo: Sequence[int], threads: int | None) -> Iterator[str]:
    """Yield the results of `write`, in order.

    Decoding, resampling and torch release the GIL, and threads end with a killed process.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    before = torch.get_num_threads()
    # One thread per clip: faster than many threads on one short clip, and the same bytes on any number of cores.
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads or cores) as pool:
            for start in range(0, len(todo), _CHUNK):
                yield from pool.map(write, todo[start:start + _CHUNK])
    finally:
        torch.set_num_threads(before)


def compute_values(config: ClipConfig, module: nn.Module | None, path: str | Path) -> np.ndarray:
    """Compute the values that the cache stores of a sound file.

    Parameters
    ----------
    config
        Loading of clips.
    module
        The front end, maps (batch, samples) to (batch, rows, frames); None stores the wave.
    path
        The sound file.

    Returns
    -------
    int16, shape (samples,), or with `module` float16, shape (frames, rows).

    Raises
    ------
    AudioError
        If the file cannot be decoded.
    CacheError
        If features are too large for 16 bits.
    """
    wave = config.read(path)
    if module is None:
        return _to_int16(wave)
    with torch.no_grad():
        spec = module(config.fit(wave)[None])[0]
    highest = float(spec.abs().max())
    if not highest <= torch.finfo(torch.float16).max:
        raise CacheError(
            f"{path}: the features reach {highest:.3g}; expected at most 65,504, the largest 16-bit float: "
            "choose cache='wave'"
        )
    return spec.T.contiguous().numpy().astype(DTYPES["features"])


def _to_int16(wave: Tensor) -> np.ndarray:
    """Convert a wave to 16 bits; its samples are overwritten, since fresh memory takes as long as the arithmetic."""
    return wave.mul_(32768).round_().clamp_(-32768, 32767).numpy().astype(DTYPES["wave"])
