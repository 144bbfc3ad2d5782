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
from fatai.io.csv import CHUNK, Duplicates, PredictionRows, read_csv, row_chunks, width_error, write_rows
from fatai.registry import ENSEMBLES

__all__ = ["ROWWISE_AVERAGES", "average_files"]

ROWWISE_AVERAGES = ("mean", "weighted", "gmean")
"""Blends of which each row can be made without the others."""

Name = str | os.PathLike[str]


def average_files(
    files: Sequence[Name], out: Name, how: str = "mean", weights: Sequence[float] | None = None, **options: Any
) -> int:
    """Averager prediction files row by row into one, in the memory of a few thousand rows; returns how many clips there are.

    The result is that of `ensemble`, which also takes files whose rows or columns are in other orders.

    Raises
    ------
    OptionError
        If `how` is none of `ROWWISE_AVERAGES`, or the weights don't fit.
    SubmissionError
        If the files have other tags, or their rows other names or another order; the message says where.
    """
    if how not in ROWWISE_AVERAGES:
        raise OptionError(f"how is {how!r}, which looks at all clips; row by row go {', '.join(ROWWISE_AVERAGES)}")
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
            while parts := [next(each.chunks, PredictionRows([], np.empty(0))) for each in opened]:
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


def concat_files(parts: Sequence[Path], out: Name) -> int:
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
                fault = width_error(row, tags) or (seen.error(row._replace(line=n + 1)) if tags[0] == "fname" else "")
                if fault:
                    raise DataError(f"{part}: {fault}")
                writer.writerow(row.cells)
                n += 1
    return n
