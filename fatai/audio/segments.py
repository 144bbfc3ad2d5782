"""Segments of sound files as clips, named like media fragments: `rec.wav#t=12.5,15` is rec.wav from 12.5 to 15 s.

A segment stands wherever the path of a sound file may stand: in tables, lists, caches and predictions. This is the
notation of the W3C (Media Fragments URI 1.0, section 4.2.1). A file that is really called so is that file.
"""

from __future__ import annotations

import math
import os
import re
from typing import NamedTuple

from fatai.errors import AudioError

__all__ = ["Segment", "file_of", "segment_path", "segment_times", "split_segment"]

TOLERANCE_S = 0.05
"""A segment may end this many seconds after its file, from which it is cut; later ends are errors."""

_FRAGMENT = re.compile(r"(?s)(.+)#t=(\d+(?:\.\d+)?),(\d+(?:\.\d+)?)")


class Segment(NamedTuple):
    """A sound file, or the part of it from `start_s` to `end_s`, in seconds; None is the end of the file."""

    path: str
    start_s: float = 0.0
    end_s: float | None = None

    def section(self, seconds: float) -> tuple[float, float]:
        """Return start and end, in seconds, in a file of `seconds`.

        Raises
        ------
        AudioError
            If the segment ends more than `TOLERANCE_S` after the file, or starts there.
        """
        if self.end_s is None:
            return 0.0, seconds
        if self.end_s > seconds + TOLERANCE_S or self.start_s >= seconds:
            raise AudioError(
                f"{self.path}: the segment from {self.start_s:g} to {self.end_s:g} s leads beyond the end of the file "
                f"at {seconds:.3f} s; correct the times in the table"
            )
        return self.start_s, min(self.end_s, seconds)


def segment_path(path: str | os.PathLike[str], start_s: float, end_s: float) -> str:
    """Return the path of a segment, times rounded to microseconds.

    Examples
    --------
    >>> segment_path("rec.wav", 12.5, 15)
    'rec.wav#t=12.5,15'
    """
    start, end = (f"{value:.6f}".rstrip("0").rstrip(".") for value in (start_s, end_s))
    return f"{os.fspath(path)}#t={start},{end}"


def split_segment(path: str | os.PathLike[str]) -> Segment:
    """Return file and times of a path, which may be that of a whole file.

    Examples
    --------
    >>> split_segment("rec.wav#t=12.5,15"), split_segment("rec.wav")
    (Segment(path='rec.wav', start_s=12.5, end_s=15.0), Segment(path='rec.wav', start_s=0.0, end_s=None))
    """
    text = os.fspath(path)
    segment = _parse(text)
    return Segment(text) if segment is None or os.path.lexists(text) else segment


def segment_times(name: str) -> tuple[float, float] | None:
    """Return start and end, in seconds, of the name of a segment; None for that of a whole file.

    Examples
    --------
    >>> segment_times("rec.wav#t=12.5,15"), segment_times("rec.wav")
    ((12.5, 15.0), None)
    """
    segment = _parse(name)
    return None if segment is None or segment.end_s is None else (segment.start_s, segment.end_s)


def _parse(text: str) -> Segment | None:
    found = _FRAGMENT.fullmatch(text) if "#t=" in text else None
    if not found:
        return None
    start, end = float(found[2]), float(found[3])
    return Segment(found[1], start, end) if start < end < math.inf else None


def file_of(path: str | os.PathLike[str]) -> str:
    """Return the path of the sound file that a path, or a segment of it, is in."""
    return split_segment(path).path
