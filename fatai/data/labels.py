"""Tables of labels, vocabularies, multi-hot targets and corrections.

A *cell* of labels holds tags, separated by commas or semicolons, or a list as Python and pandas write it. Tags are in
Unicode's normal form C, so that a tag has one spelling whatever the keyboard. Cells "NaN", "None" and "null", which
programs write for missing values, hold no tag; reading a table warns about them. A table of labels is a DataFrame with
the columns `fname` and `labels` (a list of tags in each row, in the order of the cell, without duplicates); other
columns of the CSV are kept as text.
"""

from __future__ import annotations

import csv
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fatai.errors import DataError, LabelError
from fatai.io.lazy import pandas as pd
from fatai.io.table_text import detect_encoding, format_row, split_cells
from fatai.registry import did_you_mean

__all__ = [
    "apply_corrections",
    "join_labels",
    "multi_hot",
    "parse_labels",
    "read_corrections",
    "read_labels",
    "read_table",
    "unique_tags",
]

REMOVE = "remove"
"""Label of clips to remove in a table of corrections."""

_MISSING_WORDS = ("nan", "none", "null")
_FLAGS = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False, "": False, "nan": False}
_LIST = re.compile(r"[\[({].*[\])}]", re.DOTALL)
# A tag in brackets alone, such as [noise], is no list.
_LIST_WITHOUT_QUOTES = re.compile(r"\[(\s*|.*,.*|[\d.]+)\]", re.DOTALL)
_QUOTED = re.compile(r"""'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)\"""")


def parse_labels(cell: Any, delim: str | None = None) -> list[str]:
    """Split a cell into tags, stripped and without duplicates.

    Parameters
    ----------
    cell
        Text, also of a list; or a sequence of tags. None, NaN, empty text, and the words NaN, None and null have no
        tags.
    delim
        Separator; None accepts commas and semicolons.

    Raises
    ------
    LabelError
        If the cell is a number or another type.

    Examples
    --------
    >>> parse_labels("Bark, Meow;Purr,")
    ['Bark', 'Meow', 'Purr']
    >>> parse_labels("Bark Meow", " ")
    ['Bark', 'Meow']
    >>> parse_labels("['Bark', 'Meow']")
    ['Bark', 'Meow']
    """
    if isinstance(cell, str):
        parts = [] if is_missing_word(cell) else _split_text(cell, delim)
    elif cell is None or (isinstance(cell, float) and np.isnan(cell)) or cell is pd.NA:
        parts = []
    elif isinstance(cell, (list, tuple, set, frozenset, np.ndarray)):
        # The order of a set differs between runs.
        parts = [str(part) for part in (sorted(cell) if isinstance(cell, (set, frozenset)) else cell)]
    else:
        raise LabelError(
            f"a cell of labels is {cell!r} ({type(cell).__name__}); expected text such as 'Bark,Meow' or a list of tags"
        )
    tags = (unicodedata.normalize("NFC", part).strip() for part in parts)
    return list(dict.fromkeys(tag for tag in tags if tag))


def _split_text(cell: str, delim: str | None) -> list[str]:
    # Before the split: the normal form of the Greek question mark is a semicolon.
    text = unicodedata.normalize("NFC", cell).strip()
    if _LIST.fullmatch(text):
        quoted = [single or double for single, double in _QUOTED.findall(text[1:-1])]
        if quoted:
            return [re.sub(r"\\(.)", r"\1", tag) for tag in quoted]
        if _LIST_WITHOUT_QUOTES.fullmatch(text):
            text = text[1:-1]
    return re.split("[,;]", text) if delim is None else text.split(delim)


def is_missing_word(cell: Any) -> bool:
    """Return whether a cell is a word that programs write for a missing value: NaN, None or null."""
    return isinstance(cell, str) and cell.strip().lower() in _MISSING_WORDS


def is_flag(cell: Any) -> bool:
    """Return whether a cell says if a clip has the tag of its column: 0 or 1, true or false, or empty."""
    return str(cell).strip().lower() in _FLAGS


def parse_flag_columns(table: pd.DataFrame) -> list[list[str]]:
    """Return the names of the columns that are true in each row.

    Parameters
    ----------
    table
        Cells for which `is_flag` is true; an empty one is false.

    Examples
    --------
    >>> parse_flag_columns(pd.DataFrame({"Bark": [1, 0], "Purr": ["True", "False"]}))
    [['Bark', 'Purr'], []]
    """
    flags = [[_FLAGS[str(cell).strip().lower()] for cell in table[column]] for column in table.columns]
    names = [unicodedata.normalize("NFC", str(column)) for column in table.columns]
    return [[name for name, flag in zip(names, row, strict=True) if flag] for row in zip(*flags, strict=True)]


def warn_missing_words(cells: Iterable[Any], source: str | Path) -> None:
    """Warn about cells of labels that hold a word for a missing value and so count as empty."""
    words = Counter(cell.strip() for cell in cells if is_missing_word(cell))
    if words:
        counts = ", ".join(f"{word} ({n})" for word, n in words.items())
        warnings.warn(
            f"{source}: cells of labels that mean a missing value count as empty, without a tag: {counts}; "
            "rename a tag of such a name",
            stacklevel=4,
        )


def has_bars(cells: Iterable[str]) -> bool:
    """Return whether some cells of labels hold | and none a comma or a semicolon, so that | likely separates tags."""
    return set("|,;") & set().union(*cells) == {"|"}


def warn_of_bars(cells: Iterable[Any], column: Any, source: str | Path) -> None:
    """Warn about cells that likely hold several tags separated by |, at which they are not split."""
    if has_bars(cell for cell in cells if isinstance(cell, str)):
        warnings.warn(
            f"{source}: the cells of the column {column!r} hold |, and each is taken as one tag; if it separates tags, "
            "give label_delim='|'",
            stacklevel=5,
        )


def join_labels(labels: Sequence[str]) -> str:
    """Join tags to a cell, the inverse of `parse_labels`.

    Raises
    ------
    LabelError
        If a tag is empty or has a comma, a semicolon, or spaces around it.

    Examples
    --------
    >>> join_labels(["Bark", "Meow"])
    'Bark,Meow'
    """
    for label in labels:
        if parse_labels(label) != [label]:
            raise LabelError(
                f"the tag {label!r} cannot be written to a cell: remove commas, semicolons, spaces and brackets around "
                "it, and rename NaN, None or null"
            )
    return ",".join(labels)


def read_table(path: str | Path, columns: Sequence[str], *, delimiter: str | None = None) -> pd.DataFrame:
    """Read a CSV with a header, every cell as text (also "NA").

    Parameters
    ----------
    path
        The CSV, in UTF-8 or UTF-16; anything else is read as Windows-1252, with a warning.
    columns
        Names of columns that must exist.
    delimiter
        Separator of cells; None takes a tab, a semicolon or a comma, whichever the header has most of.

    Raises
    ------
    DataError
        If the file or a column is missing, a column occurs twice, or a row has more or fewer cells than the header:
        most often a cell of several labels without quotes.
    """
    path, wanted = Path(path), ", ".join(columns) or "file and tags"
    if not path.is_file():
        raise DataError(f"there is no table {path}; expected a CSV with the columns {wanted}")
    encoding = detect_encoding(path, stacklevel=4)
    try:
        with path.open(encoding=encoding, newline="") as f:
            rows = [row for row in split_cells(f, delimiter).rows if row]
    except csv.Error as e:
        raise DataError(f"{path} is no table of cells ({e}); expected a header with {wanted}") from e
    if not rows:
        raise DataError(f"{path} is empty; expected a header with {wanted}")
    rows = _without_empty_columns(rows)
    header = [unicodedata.normalize("NFC", column.strip()) for column in rows[0]]
    _check_header(header, columns, path)
    for k, row in enumerate(rows[1:]):
        if len(row) != len(header):
            raise DataError(
                f"{path}, {format_row(k, path)} has {len(row)} cells, but the header {len(header)}; "
                'put "quotes" around a cell with commas'
            )
    return pd.DataFrame(rows[1:], columns=header, dtype=str)


def _without_empty_columns(rows: list[list[str]]) -> list[list[str]]:
    """Drop cells without content beyond the header, and columns without a name and content."""
    width = len(rows[0])
    rows = [row[:width] if len(row) > width and not any(c.strip() for c in row[width:]) else row for row in rows]
    if any(len(row) != width for row in rows):
        return rows
    used = [k for k in range(width) if any(row[k].strip() for row in rows)]
    return rows if len(used) == width else [[row[k] for k in used] for row in rows]


def _check_header(header: Sequence[str], columns: Sequence[str], path: Path) -> None:
    for column in columns:
        if column not in header:
            raise DataError(
                f"{path} has no column {column!r}: rename one, or pass the names to from_csv; "
                f"{did_you_mean(column, header)}"
            )
    repeated = next((column for column, n in Counter(header).items() if n > 1), None)
    if repeated is not None:
        raise DataError(f"{path} has the column {repeated!r} twice; expected every column once")


def read_labels(
    path: str | Path, *, tags: Sequence[str] | None = None, fn_col: str = "fname", label_col: str = "labels",
    label_delim: str | None = None,
) -> pd.DataFrame:
    """Read a CSV of file names and tags.

    Parameters
    ----------
    path
        The CSV, with a header.
    tags
        The vocabulary; None accepts all labels.
    fn_col, label_col
        Names of the columns with the file name and the labels.
    label_delim
        As in `parse_labels`.

    Returns
    -------
    Columns `fname`, `labels` (lists; empty where the cell is) and the other columns of the CSV, rows in its order.

    Raises
    ------
    DataError
        If the file or a column is missing, or a file name is empty or repeated.
    LabelError
        If a label is not in `tags`; the message has its row and the nearest tag.
    """
    table = read_table(path, [fn_col, label_col]).rename(columns={fn_col: "fname", label_col: "labels"})
    table["fname"] = [name.strip() for name in table["fname"]]
    _check_names(table["fname"], Path(path))
    warn_missing_words(table["labels"], path)
    table["labels"] = pd.Series(
        [parse_labels(cell, label_delim) for cell in table["labels"]], index=table.index, dtype=object
    )
    if tags is not None:
        check_labels(table, tags, path)
    first = ["fname", "labels"]
    return table[first + [c for c in table.columns if c not in first]]


def _check_names(names: pd.Series, path: Path) -> None:
    seen: dict[str, int] = {}
    for k, name in enumerate(names):
        if not name:
            raise DataError(f"{path}, {format_row(k, path)} has no file name: fill it in or remove the row")
        if name in seen:
            raise DataError(
                f"{path} names {name} twice, in {format_row(seen[name], path)} and {format_row(k, path)}: merge them, "
                "or remove one"
            )
        seen[name] = k


def check_labels(table: pd.DataFrame, tags: Sequence[str], source: str | Path = "the table") -> None:
    """Check that all labels of a table are in the vocabulary.

    Parameters
    ----------
    table
        Columns `fname` and `labels` (lists of tags).
    tags
        The vocabulary.
    source
        Name of the table in the message.

    Raises
    ------
    LabelError
        At the first label that is not in `tags`, with its row and the nearest tag.
    """
    known = set(tags)
    for k, (fname, labels) in enumerate(zip(table["fname"], table["labels"], strict=True)):
        for label in labels:
            if label not in known:
                raise LabelError(
                    f"{source}, {format_row(k, source)}, {fname}: unknown tag {label!r}; "
                    f"{did_you_mean(label, list(tags))}"
                )


def unique_tags(labels: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """Return all tags of some clips, sorted as plain text, as the competition's columns are.

    Parameters
    ----------
    labels
        The tags of each clip.

    Examples
    --------
    >>> unique_tags([["Purr"], [], ["Bark", "Purr"]])
    ('Bark', 'Purr')
    """
    return tuple(sorted({label for row in labels for label in row}))


def multi_hot(labels: Iterable[Sequence[str]], tags: Sequence[str]) -> np.ndarray:
    """Encode labels as targets: 1 where a clip has the tag, 0 elsewhere.

    Parameters
    ----------
    labels
        The tags of each clip, in any order.
    tags
        The vocabulary, in the order of the columns.

    Returns
    -------
    float32, shape (clips, tags).

    Raises
    ------
    LabelError
        If a label is not in `tags`.

    Examples
    --------
    >>> multi_hot([["Purr"], []], ["Bark", "Purr"])
    array([[0., 1.],
           [0., 0.]], dtype=float32)
    """
    column = {tag: k for k, tag in enumerate(tags)}
    rows = list(labels)
    targ = np.zeros((len(rows), len(tags)), dtype=np.float32)
    for k, row in enumerate(rows):
        for label in row:
            if label not in column:
                raise LabelError(f"clip {k} has the unknown tag {label!r}; {did_you_mean(label, list(tags))}")
            targ[k, column[label]] = 1
    return targ


def read_corrections(path: str | Path, *, tags: Sequence[str] | None = None) -> pd.DataFrame:
    """Read a table of corrected labels: `fname`, and `labels` that hold either the right tags or the word "remove".

    Parameters
    ----------
    path
        The CSV.
    tags
        The vocabulary; None accepts all labels.

    Returns
    -------
    Columns `fname` and `labels`; the labels of a clip to remove are None.

    Raises
    ------
    DataError, LabelError
        As `read_labels`; also for a row without labels, which is ambiguous, or with "remove" among tags.
    """
    table = read_labels(path)
    for k, (fname, labels) in enumerate(zip(table["fname"], table["labels"], strict=True)):
        if not labels:
            raise LabelError(
                f"{path}, {format_row(k, path)}, {fname}: no labels; expected the right tags, or {REMOVE!r} to leave "
                "the clip out"
            )
        if REMOVE in labels and len(labels) > 1:
            raise LabelError(
                f"{path}, {format_row(k, path)}, {fname}: {join_labels(labels)!r}; expected either tags or {REMOVE!r} "
                "alone"
            )
    removed = np.array([labels == [REMOVE] for labels in table["labels"]], dtype=bool)
    if tags is not None:
        check_labels(table, [*tags, REMOVE], path)
    table["labels"] = table["labels"].where(~removed, None)
    return table[["fname", "labels"]]


def apply_corrections(table: pd.DataFrame, corrections: pd.DataFrame) -> pd.DataFrame:
    """Replace labels by corrected ones, and drop the clips to remove.

    Parameters
    ----------
    table
        Columns `fname` and `labels`; not modified.
    corrections
        As `read_corrections` returns it. Corrections of clips that `table` doesn't have are ignored, because one file
        may correct several tables; `load_dataset` warns about those that fit no table.

    Returns
    -------
    A copy of `table`; the remaining rows keep their order and get a new index.
    """
    corrected_labels = dict(zip(corrections["fname"], corrections["labels"], strict=True))
    labels = [
        corrected_labels.get(fname, given) for fname, given in zip(table["fname"], table["labels"], strict=True)
    ]
    corrected = table.copy()
    corrected["labels"] = pd.Series(labels, index=table.index, dtype=object)
    return corrected[[row is not None for row in labels]].reset_index(drop=True)


def warn_unused_corrections(corrections: pd.DataFrame, known: Iterable[str], source: str | Path) -> None:
    """Warn about corrections of unknown clips, which were probably made for another data set.

    Parameters
    ----------
    corrections
        As `read_corrections` returns it.
    known
        Names of all clips.
    source
        Path of the corrections, for the message.
    """
    names = set(known)
    unused = [fname for fname in corrections["fname"] if fname not in names]
    if unused:
        some = ", ".join(unused[:5]) + (", ..." if len(unused) > 5 else "")
        warnings.warn(
            f"{len(unused)} of {len(corrections)} corrections in {source} match no clip and have no effect: {some}",
            stacklevel=4,
        )
