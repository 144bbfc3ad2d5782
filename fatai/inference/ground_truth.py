"""Tables that say which tags each clip has, from CSV files or data frames, in either of two layouts.

Either a column `labels`, whose cells name tags, or a column of 0 and 1 for each tag; both beside a column `fname`. Tables of one's own
sounds may call the two what `fatai.data.tables` knows them by.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from fatai.data.labels import parse_labels
from fatai.data.tables import standardize_columns
from fatai.errors import DataError, LabelError
from fatai.io.csv import CsvTable, Duplicates, Row, read_csv, format_names, width_error
from fatai.registry import did_you_mean

__all__ = ["Table", "read_truth"]

Table: TypeAlias = str | os.PathLike[str] | pd.DataFrame


def read_truth(truth: Table, tags: Sequence[str]) -> dict[str, np.ndarray]:
    """Flags of the present tags for each fname of a truth table."""
    if isinstance(truth, pd.DataFrame):
        columns = tuple(str(c) for c in truth.columns)
        # Row numbers as in a CSV of the same frame: the header is line 1.
        numbered = enumerate(truth.itertuples(index=False, name=None), start=2)
        rows = (Row(line, [_as_text(cell) for cell in cells]) for line, cells in numbered)
        table = CsvTable("the truth table", columns, rows)
    else:
        table = read_csv(truth)
    if not set(tags) <= set(table.columns):
        table = table._replace(columns=tuple(standardize_columns(table.columns)))
    if "fname" not in table.columns:
        raise DataError(f"{table.path}: no column fname; its columns are {format_names(table.columns)}")
    by_column = set(tags) <= set(table.columns)
    if not by_column and "labels" not in table.columns:
        lacking = [t for t in tags if t not in table.columns]
        raise DataError(
            f"{table.path}: it has neither a column labels nor a column for each tag: it lacks {format_names(lacking)}"
        )
    if by_column and (extra := set(table.columns).difference(tags, ["fname"])):
        raise DataError(f"{table.path}: the columns {format_names(sorted(extra))} are no tags of the predictions")
    name_at = table.columns.index("fname")
    known: dict[str, np.ndarray] = {}
    seen = Duplicates()
    for row in table.rows:
        fault = width_error(row, table.columns) or seen.error(Row(row.line, [row.cells[name_at]]))
        if fault:
            raise DataError(f"{table.path}: {fault}")
        cells = dict(zip(table.columns, row.cells, strict=True))
        known[row.cells[name_at]] = (
            _flags(cells, tags, row, table.path) if by_column else _parsed(cells["labels"], tags, row, table.path)
        )
    return known


def _as_text(cell: Any) -> str:
    """A cell of a data frame as a CSV has it: nothing for a missing value, labels joined where they are a list."""
    if isinstance(cell, Iterable) and not isinstance(cell, str):
        return ",".join(str(label) for label in cell)
    return "" if pd.isna(cell) else str(cell)


def _flags(cells: dict[str, str], tags: Sequence[str], row: Row, path: str) -> np.ndarray:
    """Flags from one cell of 0 or 1 (or False and True) per tag."""
    meaning = {"0": False, "1": True, "0.0": False, "1.0": True, "False": False, "True": True}
    for tag in tags:
        if cells[tag].strip() not in meaning:
            raise DataError(f"{path}: line {row.line}, column {tag!r}: {cells[tag][:40]!r}; expected 0 or 1")
    return np.array([meaning[cells[tag].strip()] for tag in tags], dtype=bool)


def _parsed(cell: str, tags: Sequence[str], row: Row, path: str) -> np.ndarray:
    """Flags from one cell of labels."""
    labels = parse_labels(cell)
    for label in labels:
        if label not in tags:
            raise LabelError(
                f"{path}: line {row.line}: {label!r} is no tag of the predictions; {did_you_mean(label, tags)}"
            )
    return np.array([tag in labels for tag in tags], dtype=bool)
