"""Read CSV tables row by row; every error names its line.

A table has a header. Cells stay text until they are checked. Lines are counted from 1, the header.
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
from fatai.io.table_text import detect_encoding, split_cells

__all__ = [
    "CsvTable",
    "Duplicates",
    "Row",
    "format_names",
    "read_csv",
    "value_errors",
    "width_error",
]

# Far above the competition's 24,000 x 80 (about 40 MB), far below the memory of any machine that reads it.
MAX_CSV_BYTES = 1 << 30


class Row(NamedTuple):
    """The cells of a row as text, and the line on which it ends."""

    line: int
    cells: list[str]


class CsvTable(NamedTuple):
    """The header of a CSV file, and its rows, read one at a time."""

    path: str
    columns: tuple[str, ...]
    rows: Iterator[Row]
    delimiter: str = ","


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


def read_csv(path: str | os.PathLike[str], *, strict: bool = False) -> CsvTable:
    """Open a CSV file and read its header; the rows follow one at a time, without blank lines.

    Parameters
    ----------
    path
        The file. Its encoding and the separator of its cells are found as in `fatai.io.table_text`.
    strict
        True accepts UTF-8 and commas alone, as the server of a competition does.

    Raises
    ------
    DataError
        If the file is missing, empty, larger than `MAX_CSV_BYTES`, not text, or a column appears twice; while the rows
        are read, also if a line is not CSV.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{path}: no such file; expected a CSV file with the column fname")
    if file.stat().st_size > MAX_CSV_BYTES:
        raise DataError(
            f"{path}: {file.stat().st_size / 1e9:.1f} GB; expected a table of at most {MAX_CSV_BYTES / 1e9:.1f} GB"
        )
    # utf-8-sig: a spreadsheet writes a byte order mark before the first column's name, which would then not be "fname".
    encoding = "utf-8-sig" if strict else detect_encoding(file, stacklevel=4)
    delimiter = "," if strict else _delimiter(file, encoding)
    rows = _csv_rows(file, encoding, delimiter)
    header = next(rows, None)
    if header is None:
        raise DataError(f"{path}: the file is empty; expected a header with fname and one column per tag")
    columns = tuple(cell.strip() for cell in header.cells)
    # After the column of names, a tag may be called fname too.
    names = columns[1:] if columns[0] == "fname" else columns
    duplicates = sorted(column for column, n in Counter(names).items() if n > 1 and column)
    if duplicates:
        raise DataError(f"{path}: line {header.line}: the column {format_names(duplicates)} appears twice")
    return CsvTable(str(path), columns, rows, delimiter)


def _delimiter(file: Path, encoding: str) -> str:
    with file.open(encoding=encoding, newline="") as f:
        return split_cells(f).delimiter


def _csv_rows(file: Path, encoding: str, delimiter: str) -> Iterator[Row]:
    with file.open(encoding=encoding, newline="") as f:
        line = 0
        try:
            reader, _, skipped = split_cells(f, delimiter)
            for cells in reader:
                line = reader.line_num + skipped
                if cells:
                    yield Row(line, cells)
        except csv.Error as e:
            raise DataError(f"{file}: line {line + 1}: not a CSV row ({e})") from e
        except UnicodeDecodeError as e:
            raise DataError(f"{file}: after line {line}: not UTF-8 text ({e.reason}); is this a CSV file?") from e


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


def format_names(names: Sequence[str], shown: int = 3) -> str:
    """Join the first few names for a message, with the number of the others.

    Examples
    --------
    >>> format_names(["Bark", "Meow", "Purr", "Moo"])
    "'Bark', 'Meow', 'Purr' and 1 more"
    """
    listed = ", ".join(repr(name) for name in names[:shown])
    return f"{listed} and {len(names) - shown} more" if len(names) > shown else listed
