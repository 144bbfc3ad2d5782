"""Clips on disk under the digest of what made them, ready to be cut: 16-bit waves, or features behind the front end.

A cache is a folder. In it is one folder for each digest of the settings (kind, rate, trim, front end, ...), and in that one file for each
clip, named by the digests of its path and of the file's identity: size, times of change, place on the disk. A sound file that was touched
has another name, so an answer is never stale; the rest is not computed again. Nothing but the names is kept in memory.

A clip's file holds bare numbers, little-endian: "wave" int16 (samples,); "features" float16 (frames, rows), so that a crop of frames is one
stretch of the file.

How a crop of cached features differs from features computed on the crop: frames near its ends have heard what lies beyond them, where the
other way has padding; `top_db` and the normalisation of a clip look at the whole clip; PCEN has listened since the clip's start; a crop
starts at a whole frame; values are rounded to 11 bits; changes of the wave come too late. A clip no longer than a crop is filled first, so
it has none of these differences but the rounding. "wave" differs only for files of more than 16 bits, or beyond full scale, where it clips.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fatai import __version__
from fatai.data.config import ClipConfig
from fatai.errors import AudioError, CacheError, OptionError
from fatai.registry import did_you_mean

__all__ = ["CACHE_KINDS", "ClipCache", "CachedClip", "default_cache_folder"]

CACHE_KINDS = ("wave", "features")
DTYPES = {"wave": np.dtype("<i2"), "features": np.dtype("<f2")}
SUFFIXES = {"wave": ".i16", "features": ".f16"}
WAVE_STEP = 1 / 32768
_FORMAT = 1  # to be raised when the same settings lead to other bytes


def default_cache_folder() -> Path:
    """`fatai/clips` in `$XDG_CACHE_HOME`, or in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fatai" / "clips"


def short_digest(text: str) -> str:
    """32 hexadecimal digits."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def recipe_of(settings: ClipConfig, kind: str) -> dict[str, Any]:
    """Everything that decides about a cache's bytes, except for the sound files."""
    if kind not in CACHE_KINDS:
        raise OptionError(f"no kind of cache is called {kind!r}; {did_you_mean(kind, CACHE_KINDS)}")
    recipe: dict[str, Any] = {
        "format": _FORMAT,
        "fatai": __version__,
        "kind": kind,
        "sr": settings.sr,
        "trim_db": settings.trim_db,
    }
    if kind == "features":
        front_end = asdict(settings.front_end)
        if settings.front_end.log == "pcen" and settings.front_end.pcen_trainable:
            raise OptionError(
                "a trainable PCEN changes while it learns, so its features cannot be cached; choose cache='wave'"
            )
        del front_end["channels"]  # made from the crop, each time
        recipe |= {"front_end": front_end, "crop_samples": settings.crop_samples, "pad_mode": settings.pad_mode}
    return recipe


def clip_name(path: str | Path, stat: os.stat_result) -> tuple[str, str]:
    """Digests of where a sound file is and of what identifies its present content."""
    identity = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    return short_digest(os.path.abspath(path)), short_digest(repr(identity))[:16]


def stored_names(folder: Path) -> Iterator[os.DirEntry]:
    """The entries of a digest's folder: those of its 256 sub-folders, which keep listings short."""
    for sub in sorted(entry.path for entry in os.scandir(folder) if entry.is_dir()):
        with os.scandir(sub) as entries:
            yield from entries


@dataclass(frozen=True)
class CachedClip:
    """A clip that is read only where it is cut.

    Attributes
    ----------
    values
        A map of the file, or an array: int16 (samples,) of a wave, float16 (frames, rows) of features.
    """

    values: np.ndarray

    @property
    def is_wave(self) -> bool:
        return self.values.ndim == 1

    def __len__(self) -> int:
        return len(self.values)

    def crop(self, start: int = 0, size: int | None = None) -> Tensor:
        """From the sample or frame `start` on, to the end if `size` is None: float32, (size,) of a wave and (rows, size) of features."""
        stop = len(self) if size is None else start + size
        if not 0 <= start <= stop <= len(self):
            raise OptionError(
                f"a crop from {start} to {stop} was asked of a clip of {len(self)} {'samples' if self.is_wave else 'frames'}"
            )
        part = torch.from_numpy(self.values[start:stop].astype(np.float32))
        return part.mul_(WAVE_STEP) if self.is_wave else part.T.contiguous()


class ClipCache:
    """The cached clips of a list of sound files; `open_or_build` makes it.

    Attributes
    ----------
    folder
        That of the settings' digest.
    paths
        The sound files, in the order that was given.
    lengths
        int64, shape (clips,): samples or frames of each clip, 0 of one that could not be read.
    faults
        For each clip that could not be read its position and a sentence that says why.
    """

    def __init__(
        self,
        folder: Path,
        kind: str,
        rows: int,
        paths: Sequence[str],
        names: np.ndarray,
        lengths: np.ndarray,
        faults: dict[int, str],
    ):
        self.folder, self.kind, self.rows, self.paths = folder, kind, rows, tuple(paths)
        self._names, self.lengths, self.faults = names, lengths, faults
        self._position = {path: i for i, path in enumerate(self.paths)}

    @classmethod
    def open_or_build(
        cls,
        files: Sequence[str | Path],
        settings: ClipConfig,
        *,
        kind: str = "features",
        folder: str | Path | None = None,
        threads: int | None = None,
    ) -> ClipCache:
        """The cache of `files`; what is missing in it, or belongs to a file that changed, is made first, with a progress bar.

        Several processes may do so at once: one builds, the others wait for it. One that was killed is continued.

        Parameters
        ----------
        settings
            How clips are read, and for "features" the front end.
        kind
            "wave" or "features".
        folder
            Where caches are; None takes `default_cache_folder()`.
        threads
            Clips that are made at once; None takes one thread a core.

        Raises
        ------
        CacheError
            The folder cannot be written, or values don't fit into 16 bits.
        OptionError
            An unknown kind, or a front end that learns.

        Sound files that cannot be read are no error here, see `faults`.
        """
        from fatai.data.cache_build import build

        return build(
            cls, files, settings, kind, Path(folder) if folder is not None else default_cache_folder(), threads
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __contains__(self, path: str | Path) -> bool:
        return str(path) in self._position

    @property
    def nbytes(self) -> int:
        """Size of the clips' files together."""
        return int(self.lengths.sum()) * self.rows * DTYPES[self.kind].itemsize

    def length(self, i: int) -> int:
        """Samples or frames of clip `i`; `AudioError` if it could not be read."""
        self._check(i)
        return int(self.lengths[i])

    def clip(self, which: int | str | Path) -> CachedClip:
        """A clip by its position or path, as a map of its file: nothing is read yet.

        Raises `AudioError` if it could not be read when the cache was made, `CacheError` if its file is not there any more.
        """
        i = which if isinstance(which, int) else self._position[str(which)]
        self._check(i)
        name = self._names[i].decode()
        shape = (int(self.lengths[i]),) if self.kind == "wave" else (int(self.lengths[i]), self.rows)
        try:
            return CachedClip(np.memmap(self.folder / name[:2] / name, DTYPES[self.kind], "r", shape=shape))
        except (OSError, ValueError) as e:
            raise CacheError(f"{self.paths[i]}: its cached {self.kind} in {self.folder} cannot be read any more ({e}); "
                             "the sound file or the cache was changed since it was opened: open it again") from None

    def crop(self, i: int, start: int = 0, size: int | None = None) -> Tensor:
        """A stretch of clip `i`, see `CachedClip.crop`; only that much is read."""
        return self.clip(i).crop(start, size)

    def _check(self, i: int) -> None:
        if i in self.faults:
            raise AudioError(self.faults[i])


def describe(recipe: dict[str, Any]) -> str:
    """A recipe as JSON, the text that its digest is made of."""
    return json.dumps(recipe, indent=1, sort_keys=True) + "\n"
