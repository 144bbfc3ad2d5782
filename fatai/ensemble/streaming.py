"""Average and concatenate prediction files of any length, a few thousand rows at a time.

In the averages "mean", "weighted" and "gmean" a row of the result depends only on the same row of each file, so files
of a million clips are averaged in the memory of one chunk. Other averages need all clips at once.
"""

from __future__ import annotations

import csv
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fatai.ensemble.averaging import Averager, normalized_weights
from fatai.errors import DataError, OptionError, SubmissionError
from fatai.inference.prediction_files import (
    CHUNK,
    PredictionChunks,
    PredictionRows,
    PredictionWriter,
    has_times,
    row_chunks,
)
from fatai.io.atomic import open_atomic
from fatai.io.csv import Duplicates, format_names, read_csv, width_error
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
    n, marks = 0, scan_files(files)
    warn_of_unreadable(marks.partly_unreadable)
    with _open_all(files) as tables, open_atomic(out) as f:
        writer = PredictionWriter(f, tables[0].tags, statuses=marks.statuses, has_times=marks.has_times)
        while (parts := _next_chunks(files, tables, n))[0].fnames:
            mean = averager(np.stack([part.probs for part in parts]), weights_of_files)
            writer.write(parts[0].fnames, mean)
            n += len(parts[0].fnames)
    return n


class FileMarks(NamedTuple):
    """What prediction files say about their clips.

    Attributes
    ----------
    statuses
        Names of clips with a status other than "ok", and the status.
    partly_unreadable
        Clips that are unreadable in some of the files.
    has_times
        Whether there are segments.
    """

    statuses: dict[str, str]
    partly_unreadable: list[str]
    has_times: bool


def scan_files(files: Sequence[PathLike]) -> FileMarks:
    """Read prediction files once for their statuses; "unreadable" in one of them outweighs "silent" in another."""
    statuses: dict[str, str] = {}
    n_unreadable: Counter[str] = Counter()
    with_times = False
    for file in files:
        for part in row_chunks(file).chunks:
            with_times = with_times or has_times(part.fnames)
            n_unreadable.update(name for name, status in part.statuses.items() if status == "unreadable")
            for name, status in part.statuses.items():
                statuses[name] = "unreadable" if name in n_unreadable else status
    return FileMarks(statuses, [name for name, n in n_unreadable.items() if n < len(files)], with_times)


def warn_of_unreadable(fnames: Sequence[str]) -> None:
    """Warn of clips, if there are any, that some members of an average have a prediction for, and others the prior."""
    if fnames:
        warnings.warn(
            f"{len(fnames)} clips could not be read in some members ({format_names(fnames)}), whose prior enters the "
            "average; they are marked as unreadable", stacklevel=4,
        )


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
    parts = [next(table.chunks, PredictionRows([], np.empty(0), {})) for table in tables]
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
