"""Vocabularies, multi-hot targets, corrections.

A *cell* of labels holds tags, separated by commas or semicolons. A table of labels is a DataFrame with the columns `fname` and `labels`
(a list of tags in each row, in the order of the cell, none twice); more columns of the CSV come along as text.
"""

from __future__ import annotations

import csv
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fatai.errors import DataError, LabelError
from fatai.registry import did_you_mean

__all__ = [
    "REMOVE",
    "apply_corrections",
    "check_labels",
    "join_labels",
    "multi_hot",
    "parse_labels",
    "read_corrections",
    "read_labels",
    "read_table",
    "unique_tags",
    "warn_unused_corrections",
]

REMOVE = "remove"


def parse_labels(cell: Any, delim: str | None = None) -> list[str]:
    """Tags of one cell, without the spaces around them, none twice.

    Parameters
    ----------
    cell
        Text, or a sequence of tags; None, NaN and empty text have no tags.
    delim
        What stands between two tags; None means a comma or a semicolon.

    Examples
    --------
    >>> parse_labels("Bark, Meow;Purr,")
    ['Bark', 'Meow', 'Purr']
    >>> parse_labels("Bark Meow", " ")
    ['Bark', 'Meow']
    """
    if isinstance(cell, str):
        parts = re.split("[,;]", cell) if delim is None else cell.split(delim)
    elif cell is None or (isinstance(cell, float) and np.isnan(cell)) or cell is pd.NA:
        parts = []
    elif isinstance(cell, (list, tuple, set, frozenset, np.ndarray)):
        # A set has no order of its own, and one that differs from run to run would make runs differ.
        parts = [str(part) for part in (sorted(cell) if isinstance(cell, (set, frozenset)) else cell)]
    else:
        raise LabelError(
            f"a cell of labels is {cell!r} ({type(cell).__name__}); expected text such as 'Bark,Meow' or a list of tags"
        )
    return list(dict.fromkeys(part.strip() for part in parts if part.strip()))


def join_labels(labels: Sequence[str]) -> str:
    """The cell of some tags, the reverse of `parse_labels`; a tag with a comma, a semicolon or outer spaces is a `LabelError`."""
    for label in labels:
        if parse_labels(label) != [label]:
            raise LabelError(
                f"the tag {label!r} cannot be written into a cell of labels: take out commas, semicolons and spaces around it"
            )
    return ",".join(labels)


def read_table(path: str | Path, columns: Sequence[str]) -> pd.DataFrame:
    """A CSV with a header, every cell as the text in it ("NA" too); without one of `columns` it is a `DataError`.

    So is a row with more or fewer cells than the header, which most often is a cell of several labels without quotes.
    """
    path, wanted = Path(path), ", ".join(columns)
    if not path.is_file():
        raise DataError(f"there is no table {path}; expected a CSV with the columns {wanted}")
    try:
        # utf-8-sig reads plain files as well as those that a spreadsheet starts with a byte-order mark.
        with path.open(newline="", encoding="utf-8-sig") as f:
            rows = [row for row in csv.reader(f, strict=True) if row]
    except (csv.Error, UnicodeDecodeError) as e:
        raise DataError(f"{path} is no comma-separated table in UTF-8 ({e}); expected a header with {wanted}") from e
    if not rows:
        raise DataError(f"{path} is empty; expected a header with {wanted}")
    header = [column.strip() for column in rows[0]]
    for column in columns:
        if column not in header:
            raise DataError(
                f"{path} has no column {column!r}; {did_you_mean(column, header)} - rename it, or name the columns to from_csv"
            )
    twice = next((column for column, n in Counter(header).items() if n > 1), None)
    if twice is not None:
        raise DataError(f"{path} has the column {twice!r} twice; expected every column once")
    for k, row in enumerate(rows[1:]):
        if len(row) != len(header):
            raise DataError(
                f'{path}, {_row(k)} has {len(row)} cells, but the header {len(header)}; put "quotes" around a cell with commas'
            )
    return pd.DataFrame(rows[1:], columns=header, dtype=str)


def read_labels(
    path: str | Path, *, tags: Sequence[str] | None = None, fn_col: str = "fname", label_col: str = "labels",
    label_delim: str | None = None,
) -> pd.DataFrame:
    """A table of file names and tags.

    Parameters
    ----------
    tags
        The known tags; None takes every label as it is.
    fn_col, label_col
        Names of the columns with the file name and the labels.
    label_delim
        As in `parse_labels`.

    Returns
    -------
    A table with `fname`, `labels` (lists; empty where the cell is) and the other columns of the CSV, rows in its order.

    Raises
    ------
    DataError
        No such file, no such column, an empty or a repeated file name.
    LabelError
        A label that is not in `tags`, with its row and the nearest known tag.
    """
    table = read_table(path, [fn_col, label_col]).rename(columns={fn_col: "fname", label_col: "labels"})
    table["fname"] = [name.strip() for name in table["fname"]]
    _check_names(table["fname"], Path(path))
    table["labels"] = pd.Series(
        [parse_labels(cell, label_delim) for cell in table["labels"]], index=table.index, dtype=object
    )
    if tags is not None:
        check_labels(table, tags, path)
    first = ["fname", "labels"]
    return table[first + [c for c in table.columns if c not in first]]


def _row(k: int) -> str:
    """How row `k` (counted from 0) is called in messages: as a reader counts, with the header as line 1 of the file."""
    return f"row {k + 1} (line {k + 2})"


def _check_names(names: pd.Series, path: Path) -> None:
    seen: dict[str, int] = {}
    for k, name in enumerate(names):
        if not name:
            raise DataError(f"{path}, {_row(k)} has no file name: fill it in or take the row out")
        if name in seen:
            raise DataError(
                f"{path} names {name} twice, in {_row(seen[name])} and {_row(k)}: join them, or take one out"
            )
        seen[name] = k


def check_labels(table: pd.DataFrame, tags: Sequence[str], source: str | Path = "the table") -> None:
    """Raise a `LabelError` at the first label of `table` that is not in `tags`; `source` is what the message calls the table."""
    known = set(tags)
    for k, (fname, labels) in enumerate(zip(table["fname"], table["labels"])):
        for label in labels:
            if label not in known:
                raise LabelError(
                    f"{source}, {_row(k)}, {fname}: unknown tag {label!r}; {did_you_mean(label, list(tags))}"
                )


def unique_tags(labels: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """Every tag that occurs, sorted as plain text, as the competition's columns are.

    Examples
    --------
    >>> unique_tags([["Purr"], [], ["Bark", "Purr"]])
    ('Bark', 'Purr')
    """
    return tuple(sorted({label for row in labels for label in row}))


def multi_hot(labels: Iterable[Sequence[str]], tags: Sequence[str]) -> np.ndarray:
    """Targets of clips: 1 where a clip has the tag, 0 elsewhere.

    Parameters
    ----------
    labels
        The tags of each clip, in any order.
    tags
        The vocabulary, which is the order of the columns.

    Returns
    -------
    float32, shape (clips, tags).

    Raises
    ------
    LabelError
        A label that is not in `tags`.

    Examples
    --------
    >>> multi_hot([["Purr"], []], ["Bark", "Purr"])
    array([[0., 1.],
           [0., 0.]], dtype=float32)
    """
    column = {tag: k for k, tag in enumerate(tags)}
    rows = [labels_of_clip for labels_of_clip in labels]
    targ = np.zeros((len(rows), len(tags)), dtype=np.float32)
    for k, row in enumerate(rows):
        for label in row:
            if label not in column:
                raise LabelError(f"clip {k} has the unknown tag {label!r}; {did_you_mean(label, list(tags))}")
            targ[k, column[label]] = 1
    return targ


def read_corrections(path: str | Path, *, tags: Sequence[str] | None = None) -> pd.DataFrame:
    """A table of hand corrections: `fname`, and `labels` that hold either the right tags or the word "remove".

    Returns
    -------
    A table with `fname` and `labels`; the labels of a clip to be removed are None.

    Raises
    ------
    DataError, LabelError
        As `read_labels`; also a row without labels, since it is not clear what that asks for.
    """
    table = read_labels(path)
    for k, (fname, labels) in enumerate(zip(table["fname"], table["labels"])):
        if not labels:
            raise LabelError(
                f"{path}, {_row(k)}, {fname}: no labels; expected the right tags, or {REMOVE!r} to leave the clip out"
            )
        if REMOVE in labels and len(labels) > 1:
            raise LabelError(
                f"{path}, {_row(k)}, {fname}: {join_labels(labels)!r}; expected either tags or {REMOVE!r} alone"
            )
    removed = np.array([labels == [REMOVE] for labels in table["labels"]], dtype=bool)
    if tags is not None:
        check_labels(table, [*tags, REMOVE], path)
    table["labels"] = table["labels"].where(~removed, None)
    return table[["fname", "labels"]]


def apply_corrections(table: pd.DataFrame, corrections: pd.DataFrame) -> pd.DataFrame:
    """A copy of `table` with the labels of `corrections` in place of its own, and without the clips to be removed.

    Corrections of clips that `table` doesn't have are ignored here, because one file may correct several tables;
    `read_layout` warns about those that fit nowhere. Rows keep their order and are numbered anew.
    """
    right = dict(zip(corrections["fname"], corrections["labels"]))
    labels = [right.get(fname, given) for fname, given in zip(table["fname"], table["labels"])]
    corrected = table.copy()
    corrected["labels"] = pd.Series(labels, index=table.index, dtype=object)
    return corrected[[row is not None for row in labels]].reset_index(drop=True)


def warn_unused_corrections(corrections: pd.DataFrame, known: Iterable[str], source: str | Path) -> None:
    """Warn about corrections of clips that no table has: most likely they were made for another data set."""
    names = set(known)
    unused = [fname for fname in corrections["fname"] if fname not in names]
    if unused:
        some = ", ".join(unused[:5]) + (", ..." if len(unused) > 5 else "")
        warnings.warn(
            f"{len(unused)} of {len(corrections)} corrections in {source} fit no clip and do nothing: {some}",
            stacklevel=4,
        )
