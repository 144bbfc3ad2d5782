"""CSV files from strangers: text in, one row at a time, and every complaint with its line.

A table has a header; cells stay text until somebody asks what is wrong with them. Lines are counted from 1, the header's.
"""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fatai.errors import DataError

__all__ = [
    "CsvTable",
    "Duplicates",
    "Row",
    "read_csv",
    "read_sample",
    "some",
    "tag_columns",
    "value_faults",
    "width_fault",
]

# Far above the competition's 24,000 x 80 (about 40 MB), far below what fills the memory of the machine that reads it.
MAX_CSV_BYTES = 1 << 30


class Row(NamedTuple):
    line: int
    cells: list[str]


class CsvTable(NamedTuple):
    path: str
    columns: tuple[str, ...]
    rows: Iterator[Row]


class Duplicates:
    """Remembers the line of each fname, to name both lines of a duplicate."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}

    def fault(self, row: Row) -> str:
        """What is wrong with the first cell, or nothing."""
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
    """Columns and, one after the other, rows of a CSV file; blank lines are passed over."""
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{path}: no such file; expected a CSV file with the column fname")
    if file.stat().st_size > MAX_CSV_BYTES:
        raise DataError(
            f"{path}: {file.stat().st_size / 1e9:.1f} GB; a table of more than {MAX_CSV_BYTES / 1e9:.1f} GB is not read"
        )
    rows = _csv_rows(file)
    header = next(rows, None)
    if header is None:
        raise DataError(f"{path}: the file is empty; expected a header with fname and one column per tag")
    columns = tuple(cell.strip() for cell in header.cells)
    twice = sorted(column for column, n in Counter(columns).items() if n > 1)
    if twice:
        raise DataError(f"{path}: line {header.line}: the column {some(twice)} is there twice")
    return CsvTable(str(path), columns, rows)


def _csv_rows(file: Path) -> Iterator[Row]:
    # utf-8-sig: a spreadsheet puts a mark before the first column's name, which would then not be "fname".
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
    if table.columns[0] != "fname" or len(table.columns) < 2 or not all(table.columns):
        shown = ", ".join(table.columns[:4])
        raise DataError(
            f"{table.path}: the header begins {shown!r}; expected fname, then one column per tag, each with a name"
        )
    return table.columns[1:]


def read_sample(path: str | os.PathLike[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Clips and tags of a sample submission; its values are not looked at."""
    table = read_csv(path)
    tags, seen = tag_columns(table), Duplicates()
    for row in table.rows:
        fault = seen.fault(row)
        if fault:
            raise DataError(f"{path}: {fault}")
    return tuple(seen.lines), tags


def width_fault(row: Row, columns: Sequence[str]) -> str:
    given, expected = len(row.cells), len(columns)
    return (
        f"line {row.line} ({row.cells[0]!r}): {given} cells; expected {expected}, as in the header"
        if given != expected
        else ""
    )


def value_faults(row: Row, tags: Sequence[str]) -> Iterator[str]:
    """What is wrong with the cells after the first: no number, not finite, outside [0, 1]."""
    for tag, cell in zip(tags, row.cells[1:], strict=True):
        try:
            # Python reads 1_0 as 10; a CSV file means nothing by it.
            value = float(cell) if "_" not in cell else None
        except ValueError:
            value = None
        if value is not None and 0 <= value <= 1:
            continue
        what = (
            "is no number" if value is None else "is not finite" if not math.isfinite(value) else "lies outside [0, 1]"
        )
        yield f"line {row.line} ({row.cells[0]!r}), column {tag!r}: {cell[:40]!r} {what}"


def some(names: Sequence[str], shown: int = 3) -> str:
    """The first few names, and how many more there are."""
    listed = ", ".join(repr(name) for name in names[:shown])
    return f"{listed} and {len(names) - shown} more" if len(names) > shown else listed
