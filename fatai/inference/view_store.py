"""Per-view probabilities on disk (.npz): streaming writer, validating reader.

A file is an .npz without pickle and without compression: `fnames` and `tags` (text), and with one row per view `clip`
(its position in `fnames`), `start_s` and `end_s` (seconds of the trimmed and padded clip), and `probs` (views, tags) as
float32. Rows are in the order of the clips, and within a clip in the order of its views. A clip that could not be read
has no row.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from fatai.errors import DataError
from fatai.io.atomic import write_file

__all__ = ["ViewPredictions", "load_views"]

_CHUNK = 1 << 14  # rows that are copied at a time


@dataclass(frozen=True, eq=False)
class ViewPredictions:
    """Probabilities of single views; returned by `load_views`.

    Attributes
    ----------
    fnames, tags
        Names of the clips and of the columns of `probs`.
    clip
        Position in `fnames` of each view's clip, integers (views,).
    start_s, end_s
        Window of each view in seconds of the trimmed and padded clip, both (views,).
    probs
        Shape (views, tags), float32 within [0, 1].
    """

    fnames: tuple[str, ...]
    tags: tuple[str, ...]
    clip: np.ndarray
    start_s: np.ndarray
    end_s: np.ndarray
    probs: np.ndarray


class ViewWriter:
    """Collect views in the order in which they are predicted; probabilities go to a temporary file, not to memory.

    Parameters
    ----------
    rows
        The temporary file.
    """

    def __init__(self, rows: IO[bytes]):
        self._rows = rows
        self._index = [np.zeros((0, 4), np.int64)]

    def add(self, index: np.ndarray, probs: np.ndarray) -> None:
        """Add a batch of views.

        Parameters
        ----------
        index
            Integers (views, 4): clip, number of the view within the clip, first sample and end (exclusive).
        probs
            Shape (views, tags), within [0, 1].
        """
        self._rows.write(np.ascontiguousarray(probs, dtype="<f4").tobytes())
        self._index.append(index)

    def write(self, path: Path, fnames: Sequence[str], tags: Sequence[str], sr: int) -> None:
        """Write all views, sorted, to the file that `load_views` reads; `sr` is the rate of the samples in Hz."""
        index = np.concatenate(self._index)
        order = np.lexsort((index[:, 1], index[:, 0]))
        clip, _, start, stop = index[order].T
        shape = (len(index), len(tags))
        self._rows.flush()
        probs = np.memmap(self._rows, "<f4", "r", shape=shape) if len(index) else np.zeros(shape, "<f4")
        names = {"fnames": np.array(fnames, np.str_), "tags": np.array(tags, np.str_)}
        small = {**names, "clip": clip, "start_s": start / sr, "end_s": stop / sr}
        with write_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for name, array in small.items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
            _write_rows(archive, probs, order)


def _write_rows(archive: zipfile.ZipFile, probs: np.ndarray, order: np.ndarray) -> None:
    """Write the rows of `probs` (views, tags) in an order, a few at a time, as the array "probs" of an archive."""
    with archive.open("probs.npy", "w", force_zip64=True) as member:
        header = {"descr": "<f4", "fortran_order": False, "shape": probs.shape}
        np.lib.format.write_array_header_1_0(member, header)
        for i in range(0, len(order), _CHUNK):
            member.write(probs[order[i:i + _CHUNK]].tobytes())


@contextmanager
def view_writer(
    path: str | os.PathLike[str], fnames: Sequence[str], tags: Sequence[str], sr: int
) -> Iterator[ViewWriter]:
    """Write the views added within the context to an .npz file when it ends without an error; otherwise write nothing.

    Parameters
    ----------
    path
        The file, whose name must end in .npz.
    fnames, tags
        Names of the clips and of the columns of the probabilities.
    sr
        Rate in Hz of the samples that views are counted in.

    Raises
    ------
    DataError
        If `path` does not end in .npz.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise DataError(f"the file for views is {path}; expected a name that ends in .npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a name from the start: nothing remains of it, however the process ends.
    with tempfile.TemporaryFile(dir=path.parent) as rows:
        writer = ViewWriter(rows)
        yield writer
        writer.write(path, fnames, tags, sr)


def load_views(path: str | os.PathLike[str]) -> ViewPredictions:
    """Load the views that `learn.tta(save_views=...)` stored; nothing in the file is executed.

    Raises
    ------
    DataError
        If it is no such file, or its arrays do not match.
    """
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        with file:
            fnames, tags, clip, start_s, end_s, probs = (
                file[name] for name in ("fnames", "tags", "clip", "start_s", "end_s", "probs")
            )
    except (OSError, EOFError, KeyError, MemoryError, ValueError, zipfile.BadZipFile) as e:
        raise DataError(
            f"{path} cannot be read as views ({e}); expected the .npz that tta(save_views=...) writes"
        ) from None
    problem = _find_mismatch(fnames, tags, clip, start_s, end_s, probs)
    if problem:
        raise DataError(f"{path}: {problem}; expected the .npz that tta(save_views=...) writes")
    return ViewPredictions(tuple(fnames.tolist()), tuple(tags.tolist()), clip, start_s, end_s, probs)


def _find_mismatch(fnames: Any, tags: Any, clip: Any, start_s: Any, end_s: Any, probs: Any) -> str:
    """Return a sentence about the first array that has a wrong shape, type or value; empty if all are right."""
    if fnames.ndim != 1 or tags.ndim != 1 or fnames.dtype.kind != "U" or tags.dtype.kind != "U":
        return "fnames and tags are not one-dimensional arrays of text"
    seconds_match = all(a.shape == clip.shape and a.dtype.kind == "f" for a in (start_s, end_s))
    if clip.ndim != 1 or clip.dtype.kind != "i" or not seconds_match:
        return "clip, start_s and end_s are not one integer and two floats per view"
    if probs.shape != (len(clip), len(tags)) or probs.dtype.kind != "f":
        return f"probs has shape {probs.shape} for {len(clip)} views and {len(tags)} tags"
    if len(clip) and not (0 <= clip.min() and clip.max() < len(fnames)):
        return f"clip has values up to {clip.max()} for {len(fnames)} names"
    return "" if ((probs >= 0) & (probs <= 1)).all() else "probs has values outside [0, 1]"
