"""Columns of a table with the times of segments, and the paths of the segments that its rows are.

Recognized pairs: start_time and end_time, start and end, begin and end, start_s and end_s; onset and offset, as in
DCASE; offset and duration; Begin Time (s) and End Time (s) of Raven, with File Offset (s) if its selections are of
several files. Times are seconds from the start of the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from fatai.audio.segments import file_of, segment_path, split_segment
from fatai.errors import DataError
from fatai.io.lazy import pandas as pd
from fatai.io.table_text import format_row

__all__ = ["add_segments", "has_segments", "segment_columns"]

_PAIRS = (
    ("start_time", "end_time"), ("start", "end"), ("offset", "duration"), ("onset", "offset"),
    ("begin_time_s", "end_time_s"), ("start_s", "end_s"), ("begin", "end"), ("onset_s", "offset_s"),
)
_SLICED = ("slice_file_name",)
"""Columns of files that are segments already, as in UrbanSound8K: their times are those in the original recording."""


def _plain(column: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", str(column).lower()).strip("_")


def segment_columns(columns: Sequence[str]) -> list[str]:
    """Return the columns with the start and the end, or the duration, of a segment of a file; empty if there are none.

    Examples
    --------
    >>> segment_columns(["Selection", "Begin Time (s)", "End Time (s)"])
    ['Begin Time (s)', 'End Time (s)']
    """
    plain = {_plain(column): column for column in columns}
    if any(name in plain for name in _SLICED):
        return []
    return next(([plain[start], plain[end]] for start, end in _PAIRS if start in plain and end in plain), [])


def has_segments(paths: Sequence[str]) -> bool:
    """Return whether several of some paths are segments of one file."""
    files = [file_of(path) for path in paths]
    return len(set(files)) < len(set(paths))


def add_segments(names: Sequence[str], table: pd.DataFrame, source: Path | str) -> list[str]:
    """Return the path of each row's segment: its file with the row's times, if the table has any.

    Parameters
    ----------
    names
        The file of each row; one that is a segment already stays as it is.
    table
        The rows; cells are text or numbers.
    source
        The table's path or name, for messages.

    Raises
    ------
    DataError
        If a time is missing, no number, negative, or an end does not follow its start; the message names the row.
    """
    columns = segment_columns(list(table.columns))
    if not columns:
        return list(names)
    starts, ends = ([_seconds(cell) for cell in table[column]] for column in columns)
    if _plain(columns[1]) == "duration":
        ends = [start + seconds for start, seconds in zip(starts, ends, strict=True)]
    file_offset = next((c for c in table.columns if _plain(c) in ("file_offset_s", "begin_file_offset_s")), None)
    if file_offset is not None:
        # Raven counts the times of several files from the start of the first one.
        lengths = [end - start for start, end in zip(starts, ends, strict=True)]
        starts = [_seconds(cell) for cell in table[file_offset]]
        ends = [start + seconds for start, seconds in zip(starts, lengths, strict=True)]
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if not 0 <= start < end < math.inf:  # also for a time that is no number
            cells = ", ".join(f"{column} is {str(table[column].iloc[row])!r}" for column in columns)
            raise DataError(
                f"{source}, {format_row(row, source)}, {names[row]}: {cells}; expected seconds from the start of the "
                "file, with an end after the start: correct the row, or remove it"
            )
    return [
        name if split_segment(name).end_s is not None else segment_path(name, start, end)
        for name, start, end in zip(names, starts, ends, strict=True)
    ]


def _seconds(cell: object) -> float:
    """Return a cell as a number, with a point or a comma; NaN if it is none."""
    try:
        return float(str(cell).strip().replace(",", "."))
    except ValueError:
        return math.nan
