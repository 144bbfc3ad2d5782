"""Average and concatenate prediction files of any length, a few thousand rows at a time.

In the averages "mean", "weighted" and "gmean" a row of the result depends only on the same row of each file, so files
of a million clips are averaged in the memory of one chunk. Other averages need all clips at once.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fatai.ensemble.averaging import Averager, normalized_weights
from fatai.errors import DataError, OptionError, SubmissionError
from fatai.io.atomic import open_atomic
from fatai.io.csv import (
    CHUNK,
    Duplicates,
    PredictionChunks,
    PredictionRows,
    read_csv,
    row_chunks,
    width_error,
    write_rows,
)
from fatai.registry import ENSEMBLES

__all__ = ["ROWWISE_AVERAGES", "average_files"]

ROWWISE_AVERAGES = ("mean", "weighted", "gmean")
"""Averages in which each row depends only on the same row of each file."""

PathLike = str | os.PathLike[str]


def average_files(
    files: Sequence[PathLike], out: PathLike, how: str = "mean", weights: Sequence[float] | None = None, **options: Any
) -> int:
    """Average prediction files row by row into one file, in the memory of a few thousand rows.

    The result has the same bytes as that of `ensemble`, which also accepts rows and columns in different orders.

    Parameters
    ----------
    files
        CSV files of predictions with the same columns and rows in the same order.
    out
        The file to write.
    how
        One of `ROWWISE_AVERAGES`; `options` are passed to its builder.
    weights
        One number >= 0 per file; None for equal weights.

    Returns
    -------
    Number of clips.

    Raises
    ------
    OptionError
        If `how` is not in `ROWWISE_AVERAGES`, or the weights do not fit.
    SubmissionError
        If the tags or rows of the files differ, or their order; the message names the rows.
    """
    if how not in ROWWISE_AVERAGES:
        expected = ", ".join(ROWWISE_AVERAGES)
        raise OptionError(f"how is {how!r}, which needs all clips at once; expected one of {expected}")
    if not files:
        raise OptionError("files is empty; expected one table of predictions or more")
    weights_of_files = normalized_weights(how, weights, len(files))
    averager: Averager = ENSEMBLES.build(how, **options)
    n = 0
    with _open_all(files) as tables, open_atomic(out) as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(("fname", *tables[0].tags))
        while (parts := _next_chunks(files, tables, n))[0].fnames:
            write_rows(writer, parts[0].fnames, averager(np.stack([part.probs for part in parts]), weights_of_files))
            n += len(parts[0].fnames)
    return n


@contextmanager
def _open_all(files: Sequence[PathLike]) -> Iterator[list[PredictionChunks]]:
    """Open prediction files with the same tags, and close them at the end."""
    with ExitStack() as opened:
        tables = [row_chunks(file) for file in files]
        for file, table in zip(files, tables, strict=True):
            opened.callback(table.chunks.close)  # type: ignore[attr-defined]
            if table.tags != tables[0].tags:
                raise SubmissionError(
                    f"{file} has other tags than {files[0]}, or in another order; expected the same columns"
                )
        yield tables


def _next_chunks(files: Sequence[PathLike], tables: Sequence[PredictionChunks], n: int) -> list[PredictionRows]:
    """Read the rows after the first `n` of each file; empty at the end."""
    parts = [next(table.chunks, PredictionRows([], np.empty(0))) for table in tables]
    for file, part in zip(files, parts, strict=True):
        if part.fnames != parts[0].fnames:
            raise SubmissionError(
                f"{file} has other rows than {files[0]} from row {n + 1} to {n + CHUNK}, or in another order"
            )
    return parts


def concat_files(parts: Sequence[Path], out: PathLike) -> int:
    """Concatenate tables of different clips in their order, atomically.

    Parameters
    ----------
    parts
        CSV files with the same columns.
    out
        The file to write.

    Returns
    -------
    Number of rows.

    Raises
    ------
    SubmissionError
        If the columns of the files differ.
    DataError
        If a clip is in two tables of predictions, whose first column is `fname`.
    """
    duplicates, n, columns = Duplicates(), 0, None
    with open_atomic(out) as f:
        writer = csv.writer(f, lineterminator="\n")
        for part in parts:
            table = read_csv(part)
            if columns is None:
                columns = table.columns
                writer.writerow(columns)
            if table.columns != columns:
                raise SubmissionError(
                    f"{part} has other tags than {parts[0]}, or in another order; expected shards of one list"
                )
            for row in table.rows:
                error = width_error(row, columns)
                if not error and columns[0] == "fname":
                    error = duplicates.error(row._replace(line=n + 1))
                if error:
                    raise DataError(f"{part}: {error}")
                writer.writerow(row.cells)
                n += 1
    return n
