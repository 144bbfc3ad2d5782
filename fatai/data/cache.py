"""Cache of decoded clips on disk: 16-bit waves, or features behind the front end, that are read where they are cropped.

A cache is a folder. It holds one folder for each digest of the configuration (kind, sample rate, trimming, front end,
...), and in that one file for each clip, named by the digests of its path and of the file's identity: size,
modification times, inode. A sound file that was changed has another name, so a cached clip is never stale; the others
are not computed again. Only the names are kept in memory.

A clip's file holds plain numbers, little-endian: "wave" int16 (samples,); "features" float16 (frames, rows), so that a
crop of frames is contiguous in the file.

A crop of cached features differs from features computed on the crop: frames near its ends are computed from samples
beyond them, where the other way pads; `top_db` and the normalization of a clip use the whole clip; PCEN has adapted
since the clip's start; a crop starts at a whole frame; values are rounded to 11 bits; augmentations of the wave have no
effect. A clip no longer than a crop is padded first, so only the rounding differs. "wave" differs only for files of
more than 16 bits, or beyond full scale, where it clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fatai.data.cache_writer import CACHE_KINDS, DTYPES, default_cache_folder, write_cache
from fatai.data.config import ClipConfig
from fatai.errors import AudioError, CacheError, OptionError

__all__ = ["CACHE_KINDS", "ClipCache", "default_cache_folder"]

INT16_STEP = 1 / 32768


@dataclass(frozen=True)
class CachedClip:
    """A clip that is read only where it is cropped.

    Attributes
    ----------
    values
        A memory map of the file, or an array: int16 (samples,) of a wave, float16 (frames, rows) of features.
    sr
        Rate of the wave in Hz.
    """

    values: np.ndarray
    sr: int = 44100

    @property
    def is_wave(self) -> bool:
        """True for a wave, False for features."""
        return self.values.ndim == 1

    def __len__(self) -> int:
        return len(self.values)

    def crop(self, start: int = 0, size: int | None = None) -> Tensor:
        """Read part of the clip.

        Parameters
        ----------
        start
            First sample of a wave or first frame of features.
        size
            Number of samples or frames; None reads to the end.

        Returns
        -------
        float32, shape (size,) in [-1, 1] of a wave, (rows, size) of features.

        Raises
        ------
        OptionError
            If the crop is not inside the clip.
        """
        stop = len(self) if size is None else start + size
        if not 0 <= start <= stop <= len(self):
            unit = "samples" if self.is_wave else "frames"
            raise OptionError(f"the crop is from {start} to {stop}; expected it within the clip's {len(self)} {unit}")
        part = torch.from_numpy(self.values[start:stop].astype(np.float32))
        return part.mul_(INT16_STEP) if self.is_wave else part.T.contiguous()


class ClipCache:
    """The cached clips of a list of sound files; use `open_or_build` to create it.

    Attributes
    ----------
    folder
        Folder of the configuration's digest.
    kind
        "wave" or "features".
    sr
        Rate of the waves in Hz.
    rows
        Rows of the features, 1 for waves.
    paths
        The sound files, in the order of the list.
    lengths
        int64, shape (clips,): samples or frames of each clip, 0 where it could not be read.
    errors
        Maps the position of each clip that could not be read to an error message.
    """

    def __init__(
        self,
        folder: Path,
        kind: str,
        sr: int,
        rows: int,
        paths: Sequence[str],
        names: np.ndarray,
        lengths: np.ndarray,
        errors: dict[int, str],
    ):
        self.folder, self.kind, self.sr, self.rows, self.paths = folder, kind, sr, rows, tuple(paths)
        self._names, self.lengths, self.errors = names, lengths, errors
        self._position = {path: i for i, path in enumerate(self.paths)}

    @classmethod
    def open_or_build(
        cls,
        files: Sequence[str | Path],
        config: ClipConfig,
        *,
        kind: str = "features",
        folder: str | Path | None = None,
        threads: int | None = None,
    ) -> ClipCache:
        """Open the cache of `files`, after writing the clips that are missing or changed, with a progress bar.

        Several processes may call it at once: one builds, the others wait for it. A build that was killed is continued.
        Sound files that cannot be read raise no error here, see `errors`.

        Parameters
        ----------
        files
            The sound files.
        config
            Loading of clips, and for "features" the front end.
        kind
            "features" saves the time of decoding and of the front end, "wave" only that of decoding, but allows
            augmentations of the wave.
        folder
            Parent folder of caches; None takes `default_cache_folder()`.
        threads
            Clips that are computed in parallel; None takes one thread per core.

        Raises
        ------
        CacheError
            If the folder is not writable, or features are too large for 16 bits.
        OptionError
            If `kind` is unknown.
        """
        root = Path(folder) if folder is not None else default_cache_folder()
        paths = [str(f) for f in files]
        written = write_cache(paths, config, kind, root, threads)
        rows = 1 if kind == "wave" else config.front_end.rows
        return cls(written.folder, kind, config.sr, rows, paths, written.names, written.lengths, written.errors)

    def __len__(self) -> int:
        return len(self.paths)

    def __contains__(self, path: str | Path) -> bool:
        return str(path) in self._position

    @property
    def nbytes(self) -> int:
        """Total size of the clips' files in bytes."""
        return int(self.lengths.sum()) * self.rows * DTYPES[self.kind].itemsize

    @property
    def names(self) -> list[bytes]:
        """Names of the clips' files, which change when a sound file does."""
        return self._names.tolist()

    def position(self, path: str | Path) -> int:
        """Return the position of a clip; raise `KeyError` if the cache has none of this path."""
        return self._position[str(path)]

    def length(self, i: int) -> int:
        """Return the samples or frames of clip `i`; raise `AudioError` if it could not be read."""
        self._check(i)
        return int(self.lengths[i])

    def clip(self, key: int | str | Path) -> CachedClip:
        """Return a clip by its position or path, as a memory map of its file.

        Raises
        ------
        AudioError
            If the sound file could not be read when the cache was built.
        CacheError
            If the clip's file was deleted since the cache was opened.
        """
        i = key if isinstance(key, int) else self._position[str(key)]
        self._check(i)
        name = self._names[i].decode()
        shape = (int(self.lengths[i]),) if self.kind == "wave" else (int(self.lengths[i]), self.rows)
        try:
            values = np.memmap(self.folder / name[:2] / name, DTYPES[self.kind], "r", shape=shape)
        except (OSError, ValueError) as e:
            raise CacheError(f"{self.paths[i]}: its cached {self.kind} in {self.folder} cannot be read any more ({e}); "
                             "the sound file or the cache was changed since it was opened: open it again") from None
        return CachedClip(values, self.sr)

    def crop(self, i: int, start: int = 0, size: int | None = None) -> Tensor:
        """Read part of clip `i`, as `CachedClip.crop`: float32, shape (size,) of a wave, (rows, size) of features."""
        return self.clip(i).crop(start, size)

    def _check(self, i: int) -> None:
        if i in self.errors:
            raise AudioError(self.errors[i])
