"""Files of predictions: CSV tables of clips by tags, read and written in chunks, so that memory does not limit them.

The columns are `fname`; `start_s` and `end_s`, in seconds, if a clip is a segment of a file; one per tag; and `status`
if a clip is "unreadable" or "silent", so that its row is the prior. The name of a segment has its times too
(`rec.wav#t=1,2`), and a file of other programs, whose names are those of recordings, is read as well. Where a tag is
called status, the last column is `clip_status`. A sample submission has `fname` and the tags alone.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import IO, NamedTuple

import numpy as np

from fatai.audio.segments import segment_path, segment_times
from fatai.errors import DataError
from fatai.io.csv import CsvTable, Duplicates, Row, read_csv, value_errors, width_error

__all__ = [
    "CHUNK",
    "PredictionChunks",
    "PredictionRows",
    "PredictionWriter",
    "read_sample_submission",
    "row_chunks",
    "status_column",
]

CHUNK = 4096
"""Rows per chunk of a prediction file."""
STATUSES = ("ok", "unreadable", "silent")
_STATUS_COLUMNS = ("status", "clip_status")
_TIME_COLUMNS = ("start_s", "end_s")


class PredictionRows(NamedTuple):
    """Rows of a prediction file.

    Attributes
    ----------
    fnames
        Names of the clips.
    probs
        Probabilities, shape (rows, tags), float64.
    statuses
        Those of `fnames` with another status than "ok", and the status.
    """

    fnames: list[str]
    probs: np.ndarray
    statuses: dict[str, str]


class PredictionChunks(NamedTuple):
    """The tags of a prediction file, and its rows in chunks."""

    tags: tuple[str, ...]
    chunks: Iterator[PredictionRows]


class PredictionWriter:
    """Write predictions to an open CSV file, each number with the fewest digits that read back as the same value.

    Parameters
    ----------
    file
        A text file, opened with `newline=""`.
    tags
        Name of each column of probabilities.
    statuses
        Name of each clip whose status is not "ok", to its status; None or empty writes no such column.
    has_times
        Whether to write the columns `start_s` and `end_s`; they are empty for a clip that is a whole file.

    Raises
    ------
    DataError
        If the first two tags have the names of these columns, so that the file would not read back.
    """

    def __init__(
        self, file: IO[str], tags: Sequence[str], *, statuses: Mapping[str, str] | None = None, has_times: bool = False
    ):
        self._writer = csv.writer(file, lineterminator="\n")
        if tuple(tags[:2]) == _TIME_COLUMNS:
            raise DataError("the tags begin with start_s and end_s, the columns of times in predictions; rename one")
        # With a tag of such a name, the names of the segments alone have their times.
        self._statuses, self._has_times = statuses or {}, has_times and not set(_TIME_COLUMNS) & set(tags)
        times = _TIME_COLUMNS if self._has_times else ()
        status = (status_column(tags),) if self._statuses else ()
        self._writer.writerow(("fname", *times, *tags, *status))

    def write(self, fnames: Sequence[str], probs: np.ndarray) -> None:
        """Write the rows of `fnames`, with `probs` of shape (rows, tags)."""
        for start in range(0, len(fnames), CHUNK):
            # In chunks: as Python floats the numbers take four times the memory.
            chunk = slice(start, start + CHUNK)
            self._writer.writerows(
                (name, *self._times(name), *row, *self._status(name))
                for name, row in zip(fnames[chunk], probs[chunk].tolist(), strict=True)
            )

    def _times(self, name: str) -> tuple[float | str, ...]:
        return (segment_times(name) or ("", "")) if self._has_times else ()

    def _status(self, name: str) -> tuple[str, ...]:
        return (self._statuses.get(name, "ok"),) if self._statuses else ()


def status_column(tags: Collection[str]) -> str:
    """Return the name of the column of statuses beside columns of `tags`."""
    return _STATUS_COLUMNS["status" in tags]


def has_times(fnames: Iterable[str]) -> bool:
    """Return whether a name is that of a segment."""
    return any(segment_times(name) for name in fnames)


def tag_columns(table: CsvTable) -> tuple[str, ...]:
    """Return the tags of a prediction file: its columns after `fname`.

    Raises
    ------
    DataError
        If the first column is not `fname`, or no column follows, or one has no name.
    """
    if table.columns[0] != "fname" or len(table.columns) < 2 or not all(table.columns):
        shown = ", ".join(table.columns[:4])
        raise DataError(
            f"{table.path}: the header begins {shown!r}; expected fname, then one column per tag, each with a name"
        )
    return table.columns[1:]


def read_sample_submission(path: str | os.PathLike[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the fnames and the tags of a sample submission; its values are ignored.

    Raises
    ------
    DataError
        If the file cannot be read, its header does not fit, or an fname is empty or appears twice.
    """
    table = read_csv(path)
    tags, seen = tag_columns(table), Duplicates()
    for row in table.rows:
        error = seen.error(row)
        if error:
            raise DataError(f"{path}: {error}")
    return tuple(seen.lines), tags


class _Layout(NamedTuple):
    """Which columns of a prediction file there are besides `fname` and tags."""

    has_times: bool
    has_status: bool
    has_comma_decimals: bool

    def split(self, row: Row) -> tuple[Row, str]:
        """Return a row of the name and the cells of tags, and the status."""
        cells, status = (row.cells[:-1], row.cells[-1]) if self.has_status else (row.cells, "ok")
        name, probs = cells[0], cells[1:]
        if self.has_times:
            name, probs = _segment_name(*cells[:3]), cells[3:]
        if self.has_comma_decimals:
            probs = [cell.replace(",", ".") for cell in probs]
        return Row(row.line, [name, *probs]), status


def _segment_name(name: str, start: str, end: str) -> str:
    """Return the name of a segment, given its times as text; of a whole file, whose times are empty, its name."""
    if segment_times(name) or not (start or end):
        return name
    try:
        start_s, end_s = (float(cell.replace(",", ".")) for cell in (start, end))
    except ValueError:
        start_s = end_s = 0.0
    if not 0 <= start_s < end_s < float("inf"):
        raise ValueError(f"start_s is {start[:40]!r} and end_s {end[:40]!r}; expected seconds, the end after the start")
    return segment_path(name, start_s, end_s)


def row_chunks(path: str | os.PathLike[str], rows: int = CHUNK) -> PredictionChunks:
    """Read a prediction file in chunks of `rows` rows.

    Raises
    ------
    DataError
        If the file is missing, empty or not text, or has a row or cell that does not fit; the message names the line.
    """
    table = read_csv(path)
    tags, first = tag_columns(table), next(table.rows, None)
    has_times = tags[:2] == _TIME_COLUMNS and len(tags) > 2
    # A tag may be called status: then the cells are numbers.
    has_status = tags[-1] in _STATUS_COLUMNS and len(tags) > 1 and first is not None and first.cells[-1] in STATUSES
    if first is not None:
        table = table._replace(rows=chain([first], table.rows))
    # Spreadsheets of countries with a decimal comma separate cells by semicolons.
    layout = _Layout(has_times, has_status, table.delimiter == ";")
    tags = tags[2 * has_times:len(tags) - has_status]
    return PredictionChunks(tags, _chunks(table, tags, rows, layout))


def _chunks(table: CsvTable, tags: Sequence[str], rows: int, layout: _Layout) -> Iterator[PredictionRows]:
    fnames: list[str] = []
    values: list[np.ndarray] = []
    statuses: dict[str, str] = {}
    seen = Duplicates()
    for row in table.rows:
        name, probs, status = _parse(row, table, tags, layout, seen)
        fnames.append(name)
        values.append(probs)
        if status != "ok":
            statuses[name] = status
        if len(fnames) == rows:
            yield PredictionRows(fnames, np.stack(values), statuses)
            fnames, values, statuses = [], [], {}
    if fnames:
        yield PredictionRows(fnames, np.stack(values), statuses)


def _parse(
    row: Row, table: CsvTable, tags: Sequence[str], layout: _Layout, seen: Duplicates
) -> tuple[str, np.ndarray, str]:
    """Return name, probabilities (tags,) and status of a row; raise `DataError` if it does not fit."""
    error, status = width_error(row, table.columns), "ok"
    if not error:
        try:
            row, status = layout.split(row)
        except ValueError as e:
            error = f"line {row.line} ({row.cells[0]!r}): {e}"
    error = error or seen.error(row)
    if status not in STATUSES:
        error = error or _status_error(row, status)
    probs = None if error else _probabilities(row.cells[1:])
    if probs is None:
        raise DataError(f"{table.path}: {error or next(value_errors(row, tags))}")
    return row.cells[0], probs, status


def _status_error(row: Row, status: str) -> str:
    *others, last = STATUSES
    expected = f"{', '.join(others)} or {last}"
    return f"line {row.line} ({row.cells[0]!r}): the status is {status[:40]!r}; expected {expected}"


def _probabilities(cells: list[str]) -> np.ndarray | None:
    """Convert cells to numbers, shape (tags,); None if one of them is not a probability."""
    try:
        values = np.array(list(map(float, cells)))
    except ValueError:
        return None
    # float() accepts 1_0 as 10; comparisons with NaN are False.
    return values if ((values >= 0) & (values <= 1)).all() and "_" not in "".join(cells) else None
