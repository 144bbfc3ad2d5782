"""Read the text of tables as programs save it: UTF-8, UTF-16 or Windows-1252; commas, semicolons or tabs."""

from __future__ import annotations

import codecs
import csv
import re
import warnings
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from fatai.errors import DataError

__all__ = ["CellReader", "detect_encoding", "format_row", "split_cells"]

_BLOCK = 1 << 20  # bytes
_warned: set[tuple[str, int, int]] = set()  # path, size and time of change of tables


class CellReader(NamedTuple):
    """A `csv.reader`, the separator of its cells, and the number of lines before its first one."""

    rows: Any
    delimiter: str
    skipped: int


def detect_encoding(path: Path, *, stacklevel: int = 3) -> str:
    """Return the encoding of a table: UTF-8 or UTF-16, or else Windows-1252, with one warning for each table.

    Parameters
    ----------
    path
        The table; all of it is decoded, a megabyte at a time.
    stacklevel
        As of `warnings.warn`, counted from the caller's view.

    Raises
    ------
    DataError
        If it is text in none of these encodings; the message names the line.
    """
    with path.open("rb") as f:
        start = f.read(2)
    if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        encoding = "utf-16"
    elif b"\0" in start:
        # Without a byte-order mark, every other byte of ASCII text in UTF-16 is zero.
        encoding = "utf-16-le" if start[1:] == b"\0" else "utf-16-be"
    else:
        # utf-8-sig reads plain files as well as those that a spreadsheet starts with a byte-order mark.
        encoding = "utf-8-sig"
    error = _first_error(path, encoding)
    if not error:
        return encoding
    if _first_error(path, "cp1252"):
        raise DataError(f"{path}, {error}; save the table as CSV in UTF-8")
    status = path.stat()
    key = (str(path), status.st_size, status.st_mtime_ns)
    if key not in _warned:
        _warned.add(key)
        warnings.warn(
            f"{path} is not in UTF-8 and was read as Windows-1252; check letters with accents, and save it in UTF-8",
            stacklevel=stacklevel,
        )
    return "cp1252"


def _first_error(path: Path, encoding: str) -> str:
    """Return where and why a file cannot be decoded, or ""."""
    decoder, line = codecs.getincrementaldecoder(encoding)(), 1
    with path.open("rb") as f:
        while True:
            block = f.read(_BLOCK)
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as e:
                line += e.object[:e.start].count(b"\n")
                return f"line {line} is not text in {encoding.upper().removesuffix('-SIG')} ({e.reason})"
            if not block:
                return ""
            line += block.count(b"\n")


def split_cells(lines: Iterable[str], delimiter: str | None = None) -> CellReader:
    """Split the lines of a table into cells.

    Parameters
    ----------
    lines
        With their ends, as of a file that was opened with `newline=""`.
    delimiter
        Separator of the cells; None takes that of a first line "sep=;", as spreadsheets write it, or else a tab, a
        semicolon or a comma, whichever the header has most of.
    """
    remaining: Iterator[str] = iter(lines)
    first, skipped = next(remaining, ""), 0
    named = re.fullmatch(r'"?sep=(.)"?', first.strip("\r\n"))
    if named:
        delimiter, skipped, first = delimiter or named[1], 1, next(remaining, "")
    header = re.sub('"[^"]*"', "", first)
    delimiter = delimiter or max(",;\t", key=header.count)
    return CellReader(csv.reader(chain([first], remaining), strict=True, delimiter=delimiter), delimiter, skipped)


def format_row(k: int, source: str | Path) -> str:
    """Format row `k` of a table, counted from 0, for messages: counted from 1, with its line in the file.

    Parameters
    ----------
    k
        Number of the row, without the header and blank lines.
    source
        Path of the table, which is read again for the line; anything else has no lines.

    Examples
    --------
    >>> format_row(1, "the table")
    'row 2'
    """
    path = Path(source)
    line = _line_of_row(path, k) if path.is_file() else None
    return f"row {k + 1}" if line is None else f"row {k + 1} (line {line})"


def _line_of_row(path: Path, k: int) -> int | None:
    """Return the line, counted from 1, at which row `k` begins; None if it cannot be found."""
    with path.open(encoding=detect_encoding(path), newline="") as f:
        rows, _, skipped = split_cells(f)
        line, number = 1 + skipped, -1  # of the header
        try:
            for cells in rows:
                if cells and number == k:
                    return line
                line, number = 1 + skipped + rows.line_num, number + bool(cells)
        except csv.Error:  # as with another separator than the header suggests
            pass
    return None
