"""The answer for every single view, on disk: written while listening, read back checked.

A file is an .npz without pickle and without compression: `fnames` and `tags` (text), and with one row for each view `clip` (its position in
`fnames`), `start_s` and `end_s` (seconds of the clip as it was listened to: trimmed and filled), and `probs` (views, tags) as float32. Rows
are in the order of the clips, and within a clip in the order in which its kind lists them. A clip that could not be read has no row.
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

from fatai.io.atomic import write_file
from fatai.errors import DataError

__all__ = ["ViewPredictions", "load_views", "views_file"]

_CHUNK = 1 << 14  # rows that are copied at a time


@dataclass(frozen=True, eq=False)
class ViewPredictions:
    """Views one by one: `clip`, `start_s`, `end_s` of shape (views,), `probs` (views, tags); `clip` counts in `fnames`."""

    fnames: tuple[str, ...]
    tags: tuple[str, ...]
    clip: np.ndarray
    start_s: np.ndarray
    end_s: np.ndarray
    probs: np.ndarray


class ViewWriter:
    """Takes rows in the order in which they are computed, and puts them in a file outside of memory."""

    def __init__(self, rows: IO[bytes]):
        self._rows = rows
        self._places = [np.zeros((0, 4), np.int64)]

    def add(self, places: np.ndarray, probs: np.ndarray) -> None:
        """A row (clip, number of the view among the clip's, first sample, the one behind the last) and one of `probs` for each view."""
        self._rows.write(np.ascontiguousarray(probs, dtype="<f4").tobytes())
        self._places.append(places)

    def write(self, path: Path, fnames: Sequence[str], tags: Sequence[str], sr: int) -> None:
        """Everything, sorted, to the file that `load_views` reads."""
        places = np.concatenate(self._places)
        order = np.lexsort((places[:, 1], places[:, 0]))
        clip, _, start, stop = places[order].T
        shape = (len(places), len(tags))
        self._rows.flush()
        held = np.memmap(self._rows, "<f4", "r", shape=shape) if len(places) else np.zeros(shape, "<f4")
        names = {"fnames": np.array(fnames, np.str_), "tags": np.array(tags, np.str_)}
        small = {**names, "clip": clip, "start_s": start / sr, "end_s": stop / sr}
        with write_file(path) as beside, zipfile.ZipFile(beside, "w", zipfile.ZIP_STORED) as archive:
            for name, array in small.items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
            with archive.open("probs.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": shape})
                for at in range(0, len(order), _CHUNK):
                    member.write(held[order[at:at + _CHUNK]].tobytes())


@contextmanager
def views_file(
    path: str | os.PathLike[str], fnames: Sequence[str], tags: Sequence[str], sr: int
) -> Iterator[ViewWriter]:
    """Rows added within the block become the file `path` when it ends well; otherwise nothing is written."""
    path = Path(path)
    if path.suffix != ".npz":
        raise DataError(f"views are kept in an .npz file, not in {path}; give it that suffix")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a name from the start: whatever ends the process, nothing of it stays.
    with tempfile.TemporaryFile(dir=path.parent) as rows:
        kept = ViewWriter(rows)
        yield kept
        kept.write(path, fnames, tags, sr)


def load_views(path: str | os.PathLike[str]) -> ViewPredictions:
    """What `learn.tta(keep_views=...)` wrote; whoever it comes from, nothing in it is executed.

    Raises
    ------
    DataError
        If it is no such file, or its parts don't go together.
    """
    try:
        held = np.load(path, allow_pickle=False)
        if not isinstance(held, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        with held:
            fnames, tags, clip, start_s, end_s, probs = (
                held[name] for name in ("fnames", "tags", "clip", "start_s", "end_s", "probs")
            )
    except (OSError, EOFError, KeyError, MemoryError, ValueError, zipfile.BadZipFile) as e:
        raise DataError(
            f"{path} cannot be read as kept views ({e}); expected the .npz that tta(keep_views=...) writes"
        ) from None
    faults = _faults(fnames, tags, clip, start_s, end_s, probs)
    if faults:
        raise DataError(f"{path}: {faults}; expected the .npz that tta(keep_views=...) writes")
    return ViewPredictions(tuple(fnames.tolist()), tuple(tags.tolist()), clip, start_s, end_s, probs)


def _faults(fnames: Any, tags: Any, clip: Any, start_s: Any, end_s: Any, probs: Any) -> str:
    """What does not go together; empty if nothing."""
    if fnames.ndim != 1 or tags.ndim != 1 or fnames.dtype.kind != "U" or tags.dtype.kind != "U":
        return "fnames and tags are no lists of text"
    if (
        clip.ndim != 1
        or clip.dtype.kind != "i"
        or any(a.shape != clip.shape or a.dtype.kind != "f" for a in (start_s, end_s))
    ):
        return "clip, start_s and end_s are not one whole number and two seconds for each view"
    if probs.shape != (len(clip), len(tags)) or probs.dtype.kind != "f":
        return f"probs has shape {probs.shape} for {len(clip)} views and {len(tags)} tags"
    if len(clip) and not (0 <= clip.min() and clip.max() < len(fnames)):
        return f"clip counts up to {clip.max()} in {len(fnames)} names"
    if not ((probs >= 0) & (probs <= 1)).all():
        return "probs has values that are no probabilities"
    return ""
