"""Prediction files of any number of rows, a few thousand rows at a time: read, written, blended, joined.

What a clip's blended row is depends on its own rows alone in the blends "mean", "weighted" and "gmean"; so files of a million clips are
blended in the memory of one chunk. Other blends look at all clips, and need them at once.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fatai.io.atomic import open_atomic
from fatai.errors import DataError, OptionError, SubmissionError
from fatai.ensemble.averaging import Averager, normalized_weights
from fatai.io.csv import Duplicates, read_csv, tag_columns, value_faults, width_fault
from fatai.registry import ENSEMBLES

__all__ = ["ROW_BLENDS", "Rows", "average_files", "row_chunks", "write_rows"]

CHUNK = 4096  # rows
ROW_BLENDS = ("mean", "weighted", "gmean")
"""Blends of which each row can be made without the others."""

Name = str | os.PathLike[str]


class Rows(NamedTuple):
    """Some rows of a prediction file: names, and probabilities (rows, tags)."""

    fnames: list[str]
    probs: np.ndarray


class RowChunks(NamedTuple):
    """The tags of a prediction file, and its rows, chunk after chunk."""

    tags: tuple[str, ...]
    chunks: Iterator[Rows]


def row_chunks(path: Name, rows: int = CHUNK) -> RowChunks:
    """A prediction file, `rows` rows at a time.

    Raises
    ------
    DataError
        If the file is missing, empty or no text, or has a row or cell that does not fit; the message names the line.
    """
    table = read_csv(path)
    tags = tag_columns(table)

    def chunks() -> Iterator[Rows]:
        fnames: list[str] = []
        values: list[np.ndarray] = []
        seen = Duplicates()
        for row in table.rows:
            fault = width_fault(row, table.columns) or seen.fault(row)
            probs = None if fault else _probabilities(row.cells[1:])
            if probs is None:
                raise DataError(f"{path}: {fault or next(value_faults(row, tags))}")
            fnames.append(row.cells[0])
            values.append(probs)
            if len(fnames) == rows:
                yield Rows(fnames, np.stack(values))
                fnames, values = [], []
        if fnames:
            yield Rows(fnames, np.stack(values))

    return RowChunks(tags, chunks())


def _probabilities(cells: list[str]) -> np.ndarray | None:
    """Cells as numbers; None if one of them is no probability, which then is to be looked for."""
    try:
        values = np.array(list(map(float, cells)))
    except ValueError:
        return None
    # Python reads 1_0 as 10; a NaN is not within anything.
    return values if ((values >= 0) & (values <= 1)).all() and "_" not in "".join(cells) else None


def write_rows(writer: Any, fnames: Sequence[str], probs: np.ndarray) -> None:
    """Rows to a `csv.writer`, each number with the fewest digits that read back as the same."""
    for start in range(0, len(fnames), CHUNK):
        # Not all at once: as Python's numbers they take four times the room.
        part = slice(start, start + CHUNK)
        writer.writerows((name, *row) for name, row in zip(fnames[part], probs[part].tolist(), strict=True))


def average_files(
    files: Sequence[Name], out: Name, how: str = "mean", weights: Sequence[float] | None = None, **options: Any
) -> int:
    """Averager prediction files row by row into one, in the memory of a few thousand rows; returns how many clips there are.

    The result is that of `ensemble`, which also takes files whose rows or columns are in other orders.

    Raises
    ------
    OptionError
        If `how` is none of `ROW_BLENDS`, or the weights don't fit.
    SubmissionError
        If the files have other tags, or their rows other names or another order; the message says where.
    """
    if how not in ROW_BLENDS:
        raise OptionError(f"how is {how!r}, which looks at all clips; row by row go {', '.join(ROW_BLENDS)}")
    if not files:
        raise OptionError("files is empty; expected one table of predictions or more")
    of_each = normalized_weights(how, weights, len(files))
    blend: Averager = ENSEMBLES.build(how, **options)
    opened = [row_chunks(file) for file in files]
    for file, other in zip(files, opened):
        if other.tags != opened[0].tags:
            raise SubmissionError(
                f"{file} has other tags than {files[0]}, or in another order; expected the same columns"
            )
    n = 0
    with open_atomic(out) as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(("fname", *opened[0].tags))
        with ExitStack() as stack:
            for each in opened:
                stack.callback(each.chunks.close)  # type: ignore[attr-defined]
            while parts := [next(each.chunks, Rows([], np.empty(0))) for each in opened]:
                for file, part in zip(files, parts):
                    if part.fnames != parts[0].fnames:
                        raise SubmissionError(
                            f"{file} has other rows than {files[0]} from row {n + 1} to {n + CHUNK}, or in another order"
                        )
                if not parts[0].fnames:
                    break
                write_rows(writer, parts[0].fnames, blend(np.stack([part.probs for part in parts]), of_each))
                n += len(parts[0].fnames)
    return n


def join_files(parts: Sequence[Path], out: Name) -> int:
    """Tables of different clips as one, in their order, whole or not at all; returns how many rows there are.

    Raises
    ------
    SubmissionError
        If the files have other columns.
    DataError
        If a clip is in two tables of predictions, whose first column is `fname`.
    """
    seen, n, tags = Duplicates(), 0, None
    with open_atomic(out) as f:
        writer = csv.writer(f, lineterminator="\n")
        for part in parts:
            table = read_csv(part)
            if tags is None:
                tags = table.columns
                writer.writerow(tags)
            if table.columns != tags:
                raise SubmissionError(
                    f"{part} has other tags than {parts[0]}, or in another order; expected shards of one list"
                )
            for row in table.rows:
                fault = width_fault(row, tags) or (seen.fault(row._replace(line=n + 1)) if tags[0] == "fname" else "")
                if fault:
                    raise DataError(f"{part}: {fault}")
                writer.writerow(row.cells)
                n += 1
    return n
