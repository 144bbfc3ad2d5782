"""Ground truth: the tags of each clip, from CSV files or data frames in either of two layouts.

Either a column `labels`, whose cells list tags, or a column of 0 and 1 for each tag; both beside a column `fname`.
Tables of one's own sounds may have any of the shapes that `fatai.data.table_columns` describes, and rows that are
segments of files, as in `fatai.data.segments`.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from fatai.data.labels import parse_labels
from fatai.data.segments import add_segments, segment_columns
from fatai.data.table_columns import standardize_columns
from fatai.data.tables import read_sound_labels
from fatai.errors import DataError, LabelError
from fatai.io.csv import CsvTable, Duplicates, Row, format_names, read_csv, width_error
from fatai.io.lazy import is_data_frame
from fatai.io.lazy import pandas as pd
from fatai.registry import did_you_mean

__all__ = ["Table", "read_truth"]

Table: TypeAlias = "str | os.PathLike[str] | pd.DataFrame"
"""A CSV file, a data folder or a data frame."""

_FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "False": False, "True": True}


def read_truth(truth: Table, tags: Sequence[str]) -> dict[str, np.ndarray]:
    """Read the tags of each clip.

    Parameters
    ----------
    truth
        A CSV file or data frame with `fname` and either `labels` (separated by commas or semicolons) or a column of 0
        and 1 per tag; or a data folder, such as one of classes, whose curated clips are taken.
    tags
        The tags, in the order of the flags.

    Returns
    -------
    Name of each clip to its flags, bool (tags,).

    Raises
    ------
    DataError
        If the table has neither layout, a row has a wrong number of cells, or a clip is listed twice; the message names
        the line.
    LabelError
        If a label is not one of `tags`.
    """
    table = _open(truth, tags)
    has_flags = _has_flags(table, tags)
    _check_columns(table, tags, has_flags)
    name_column = table.columns.index("fname")
    flags: dict[str, np.ndarray] = {}
    seen = Duplicates()
    for row in table.rows:
        error = width_error(row, table.columns) or seen.error(Row(row.line, [row.cells[name_column]]))
        if error:
            raise DataError(f"{table.path}: {error}")
        cells = dict(zip(table.columns, row.cells, strict=True))
        parse = _parse_flags if has_flags else _parse_labels
        flags[row.cells[name_column]] = parse(cells, tags, row.line, table.path)
    return flags


def _open(truth: Table, tags: Sequence[str]) -> CsvTable:
    """Open a table; its columns are standardized unless they are the tags, and names of segments have their times."""
    if isinstance(truth, str | os.PathLike) and Path(truth).is_dir():
        from fatai.data.datasets.fat2019 import load_dataset  # imports torch, which tables do without

        truth = load_dataset(Path(truth)).curated[["fname", "labels"]]
    is_frame = is_data_frame(truth)
    table = _from_frame(truth) if is_frame else read_csv(truth)
    table = table._replace(columns=tuple(unicodedata.normalize("NFC", column) for column in table.columns))
    has_fname = "fname" in table.columns
    has_times = bool(segment_columns([column for column in table.columns if column not in tags]))
    if has_times and is_frame and has_fname:
        return _from_frame(_with_segments(truth, tags))
    if has_fname and _has_flags(table, tags) and not has_times:
        return table
    # A table with the columns of some tags lacks others; it must not be taken for one without these tags.
    lacks_tags = not set(tags).isdisjoint(table.columns) and not _has_flags(table, tags)
    if is_frame or (has_fname and not has_times) or lacks_tags:
        return table._replace(columns=tuple(standardize_columns(table.columns)))
    return _from_frame(read_sound_labels(os.fsdecode(truth))[["fname", "labels"]])._replace(path=table.path)


def _with_segments(frame: pd.DataFrame, tags: Sequence[str]) -> pd.DataFrame:
    """Return a frame whose names of segments have the times that were in columns of their own."""
    times = frame[[column for column in frame.columns if column not in tags]]
    names = add_segments([str(name) for name in frame["fname"]], times, "the truth table")
    return frame.drop(columns=segment_columns(list(times.columns))).assign(fname=names)


def _has_flags(table: CsvTable, tags: Sequence[str]) -> bool:
    """Return whether there is a column for each tag; a tag may have the name of the column fname."""
    columns = list(table.columns)
    if "fname" in columns:
        columns.remove("fname")
    return set(tags) <= set(columns)


def _from_frame(frame: pd.DataFrame) -> CsvTable:
    # Row numbers as in a CSV of the same frame: the header is line 1.
    numbered = enumerate(frame.itertuples(index=False, name=None), start=2)
    rows = (Row(line, [_to_text(cell) for cell in cells]) for line, cells in numbered)
    return CsvTable("the truth table", tuple(str(c) for c in frame.columns), rows)


def _check_columns(table: CsvTable, tags: Sequence[str], has_flags: bool) -> None:
    if "fname" not in table.columns:
        raise DataError(f"{table.path}: the columns are {format_names(table.columns)}; expected fname among them")
    if not has_flags and "labels" not in table.columns:
        missing = [t for t in tags if t not in table.columns]
        raise DataError(
            f"{table.path}: expected a column labels or a column for each tag; there is none for "
            f"{format_names(missing)}"
        )
    if has_flags and (extra := set(table.columns).difference(tags, ["fname"])):
        raise DataError(f"{table.path}: the columns {format_names(sorted(extra))} are not tags of the predictions")


def _to_text(cell: Any) -> str:
    """Return a cell of a data frame as a CSV has it: empty for a missing value, labels joined where they are a list."""
    if isinstance(cell, Iterable) and not isinstance(cell, str):
        return ",".join(str(label) for label in cell)
    return "" if pd.isna(cell) else str(cell)


def _parse_flags(cells: dict[str, str], tags: Sequence[str], line: int, path: str) -> np.ndarray:
    """Return bool flags (tags,) from one cell of 0 or 1 (or False and True) per tag."""
    for tag in tags:
        if cells[tag].strip() not in _FLAGS:
            raise DataError(f"{path}: line {line}, column {tag!r}: {cells[tag][:40]!r}; expected 0 or 1")
    return np.array([_FLAGS[cells[tag].strip()] for tag in tags], dtype=bool)


def _parse_labels(cells: dict[str, str], tags: Sequence[str], line: int, path: str) -> np.ndarray:
    """Return bool flags (tags,) from one cell of labels."""
    labels = parse_labels(cells["labels"])
    for label in labels:
        if label not in tags:
            raise LabelError(
                f"{path}: line {line}: {label!r} is not a tag of the predictions; {did_you_mean(label, tags)}"
            )
    return np.array([tag in labels for tag in tags], dtype=bool)
