"""Sound files that are copies of each other, byte for byte, under different names."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from os import PathLike, stat

import numpy as np

from fatai.audio.segments import file_of
from fatai.data.folds import find_sound_leaks, warn_about_leaks

__all__ = ["sound_groups", "warn_about_copies"]

_SAMPLE_BYTES = 1 << 14


def sound_groups(paths: Sequence[str | PathLike[str]]) -> list[str]:
    """Return for each file a group that it shares with its copies, and with segments of them, alone.

    A file is read to its end only if another one has the same size and the same bytes at its end. Files that cannot be
    read are groups of their own.

    Parameters
    ----------
    paths
        The files.

    Returns
    -------
    One text for each file; equal for files with the same bytes.
    """
    names = [file_of(path) for path in paths]
    groups = {name: _size(name) for name in names}
    for n_bytes in (_SAMPLE_BYTES, None):
        count = Counter(groups.values())
        groups = {
            name: group if count[group] == 1 else f"{group}-{_digest(name, n_bytes)}" for name, group in groups.items()
        }
    count = Counter(groups.values())
    return [name if count[groups[name]] == 1 else groups[name] for name in names]


def _size(path: str) -> str:
    try:
        return str(stat(path).st_size)
    except OSError:
        return path


def _digest(path: str, n_bytes: int | None) -> str:
    """Return the digest of the last bytes of a file, or of all; the path where it cannot be read."""
    try:
        with open(path, "rb") as file:
            if n_bytes is not None:
                file.seek(max(0, stat(path).st_size - n_bytes))
            digest = hashlib.blake2b(digest_size=16)
            while block := file.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()
    except OSError:
        return path


def warn_about_copies(folds: Sequence[int] | np.ndarray, names: Sequence[str], paths: Sequence[str]) -> None:
    """Warn about copies of a sound on both sides of a split, with their names.

    Parameters
    ----------
    folds
        Fold of each clip, shape (clips,); -1 for clips that are always trained on.
    names, paths
        Name and path of each clip.
    """
    warn_about_leaks(find_sound_leaks(folds, names, sound_groups(paths)))
