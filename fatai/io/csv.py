"""Read and write CSV tables row by row; every error names its line.

A table has a header. Cells stay text until they are checked. Lines are counted from 1, the header. Prediction files are
read and written in chunks of a few thousand rows, so their size is not limited by memory.
"""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fatai.errors import DataError

__all__ = [
    "CsvTable",
    "Duplicates",
    "PredictionChunks",
    "PredictionRows",
    "Row",
    "format_names",
    "read_csv",
    "read_sample_submission",
    "row_chunks",
    "tag_columns",
    "value_errors",
    "width_error",
    "write_rows",
]

# Far above the competition's 24,000 x 80 (about 40 MB), far below the memory of any machine that reads it.
MAX_CSV_BYTES = 1 << 30
CHUNK = 4096
"""Rows per chunk of a prediction file."""


class Row(NamedTuple):
    """The cells of a row as text, and the line on which it ends."""

    line: int
    cells: list[str]


class CsvTable(NamedTuple):
    """The header of a CSV file, and its rows, read one at a time."""

    path: str
    columns: tuple[str, ...]
    rows: Iterator[Row]


class PredictionRows(NamedTuple):
    """Rows of a prediction file: names, and probabilities of shape (rows, tags), float64."""

    fnames: list[str]
    probs: np.ndarray


class PredictionChunks(NamedTuple):
    """The tags of a prediction file, and its rows in chunks."""

    tags: tuple[str, ...]
    chunks: Iterator[PredictionRows]


class Duplicates:
    """Line of each fname so far, to name both lines of a duplicate."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}

    def error(self, row: Row) -> str:
        """Add the fname of a row; return an error message if it is empty or a duplicate, else an empty string."""
        name = row.cells[0]
        first = self.lines.setdefault(name, row.line)
        if not name:
            return f"line {row.line}: the fname is empty"
        return (
            f"line {row.line}: the row of {name!r} is a duplicate, it is on line {first} already"
            if first != row.line
            else ""
        )


def read_csv(path: str | os.PathLike[str]) -> CsvTable:
    """Open a CSV file and read its header; the rows follow one at a time, without blank lines.

    Raises
    ------
    DataError
        If the file is missing, empty, larger than `MAX_CSV_BYTES`, or a column appears twice; while the rows are read,
        also if the text is not UTF-8 or a line is not CSV.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{path}: no such file; expected a CSV file with the column fname")
    if file.stat().st_size > MAX_CSV_BYTES:
        raise DataError(
            f"{path}: {file.stat().st_size / 1e9:.1f} GB; expected a table of at most {MAX_CSV_BYTES / 1e9:.1f} GB"
        )
    rows = _csv_rows(file)
    header = next(rows, None)
    if header is None:
        raise DataError(f"{path}: the file is empty; expected a header with fname and one column per tag")
    columns = tuple(cell.strip() for cell in header.cells)
    # After the column of names, a tag may be called fname too.
    names = columns[1:] if columns[0] == "fname" else columns
    duplicates = sorted(column for column, n in Counter(names).items() if n > 1)
    if duplicates:
        raise DataError(f"{path}: line {header.line}: the column {format_names(duplicates)} appears twice")
    return CsvTable(str(path), columns, rows)


def _csv_rows(file: Path) -> Iterator[Row]:
    # utf-8-sig: a spreadsheet writes a byte order mark before the first column's name, which would then not be "fname".
    with file.open(encoding="utf-8-sig", newline="") as f:
        reader = csv.reader(f, strict=True)
        try:
            for cells in reader:
                if cells:
                    yield Row(reader.line_num, cells)
        except csv.Error as e:
            raise DataError(f"{file}: line {reader.line_num}: not a CSV row ({e})") from e
        except UnicodeDecodeError as e:
            raise DataError(
                f"{file}: after line {reader.line_num}: not UTF-8 text ({e.reason}); is this a CSV file?"
            ) from e


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


def width_error(row: Row, columns: Sequence[str]) -> str:
    """Return an error message if a row has not as many cells as the header, else an empty string."""
    n, expected = len(row.cells), len(columns)
    return (
        f"line {row.line} ({row.cells[0]!r}): {n} cells; expected {expected}, as in the header" if n != expected else ""
    )


def value_errors(row: Row, tags: Sequence[str]) -> Iterator[str]:
    """Yield an error message for each cell after the first that is not a number in [0, 1]."""
    for tag, cell in zip(tags, row.cells[1:], strict=True):
        try:
            # float() accepts 1_0 as 10; in a CSV file it is a typing error.
            value = float(cell) if "_" not in cell else None
        except ValueError:
            value = None
        if value is not None and 0 <= value <= 1:
            continue
        reason = (
            "is not a number" if value is None else "is not finite" if not math.isfinite(value) else "is outside [0, 1]"
        )
        yield f"line {row.line} ({row.cells[0]!r}), column {tag!r}: {cell[:40]!r} {reason}"


def row_chunks(path: str | os.PathLike[str], rows: int = CHUNK) -> PredictionChunks:
    """Read a prediction file in chunks of `rows` rows.

    Raises
    ------
    DataError
        If the file is missing, empty or not text, or has a row or cell that does not fit; the message names the line.
    """
    table = read_csv(path)
    tags = tag_columns(table)
    return PredictionChunks(tags, _chunks(table, tags, rows))


def _chunks(table: CsvTable, tags: Sequence[str], rows: int) -> Iterator[PredictionRows]:
    fnames: list[str] = []
    values: list[np.ndarray] = []
    seen = Duplicates()
    for row in table.rows:
        error = width_error(row, table.columns) or seen.error(row)
        probs = None if error else _probabilities(row.cells[1:])
        if probs is None:
            raise DataError(f"{table.path}: {error or next(value_errors(row, tags))}")
        fnames.append(row.cells[0])
        values.append(probs)
        if len(fnames) == rows:
            yield PredictionRows(fnames, np.stack(values))
            fnames, values = [], []
    if fnames:
        yield PredictionRows(fnames, np.stack(values))


def _probabilities(cells: list[str]) -> np.ndarray | None:
    """Convert cells to numbers, shape (tags,); None if one of them is not a probability."""
    try:
        values = np.array(list(map(float, cells)))
    except ValueError:
        return None
    # float() accepts 1_0 as 10; comparisons with NaN are False.
    return values if ((values >= 0) & (values <= 1)).all() and "_" not in "".join(cells) else None


def write_rows(writer: Any, fnames: Sequence[str], probs: np.ndarray) -> None:
    """Write predictions to a `csv.writer`, each number with the fewest digits that read back as the same value.

    Parameters
    ----------
    writer
        A `csv.writer`; the header is written already.
    fnames
        One per row.
    probs
        Shape (rows, tags).
    """
    for start in range(0, len(fnames), CHUNK):
        # In chunks: as Python floats the numbers take four times the memory.
        chunk = slice(start, start + CHUNK)
        writer.writerows((name, *row) for name, row in zip(fnames[chunk], probs[chunk].tolist(), strict=True))


def format_names(names: Sequence[str], shown: int = 3) -> str:
    """Join the first few names for a message, with the number of the others.

    Examples
    --------
    >>> format_names(["Bark", "Meow", "Purr", "Moo"])
    "'Bark', 'Meow', 'Purr' and 1 more"
    """
    listed = ", ".join(repr(name) for name in names[:shown])
    return f"{listed} and {len(names) - shown} more" if len(names) > shown else listed
