"""Find the columns of files and tags in a table, by their names or by what is in them.

Files: a column called fname, file, filename, path, sound or similar, or else the only column of names of sound files.
Tags: a column called labels, label, tags, tag, category, class or similar; or else columns of 0 and 1 (or True and
False), one for each tag, called by it; or else the only other column.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from fatai.audio.folders import is_sound_name
from fatai.data.labels import has_bars, is_flag, is_missing_word, parse_flag_columns, parse_labels, warn_missing_words
from fatai.data.segments import segment_columns
from fatai.errors import DataError
from fatai.io.lazy import pandas as pd
from fatai.registry import did_you_mean

__all__ = [
    "TableColumns", "find_columns", "find_file_column", "parse_tags", "standardize_columns", "warn_of_positions",
]

_SYNONYMS = {
    "fname": ("file", "filename", "path", "sound", "file_name", "filepath", "file_path", "audio_file", "begin_path",
              "begin_file", "slice_file_name"),
    "labels": ("label", "tags", "tag", "category", "class", "species", "annotation", "primary_label"),
}
_SECONDARY = {"primary_label": "secondary_labels"}
_NO_TAGS = frozenset({
    "fold", "folds", "split", "is_valid", "valid", "noisy", "weight", "source", "channel", "verified",
    "manually_verified", "index", "id", "view",
})
"""Columns of 0 and 1 that describe a clip and are no tags."""
_UNUSED = ("is_valid", "valid", "split", "noisy", "weight")
"""Columns that from_df reads and a table of sounds does not."""


@dataclass(frozen=True)
class TableColumns:
    """How to read a table of sounds; None finds out.

    Attributes
    ----------
    fn_col
        Name of the column of files.
    label_col
        Name of the column of tags, or several: of tags, or of 0 and 1 for the tag that the column is called by.
    label_delim
        Separator of the tags in a cell.
    """

    fn_col: str | None = None
    label_col: tuple[str, ...] | None = None
    label_delim: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes that are set, for JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def arguments(self) -> list[str]:
        """Return the options of the command line that give these columns."""
        options = [("--file-col", self.fn_col), *(("--tags-col", name) for name in self.label_col or ()),
                   ("--tag-sep", self.label_delim)]
        return [f"{option}={value}" for option, value in options if value is not None]

    @classmethod
    def from_dict(cls, values: Any) -> TableColumns:
        """Return the columns that `to_dict` described; the defaults for anything else."""
        values = values if isinstance(values, dict) else {}
        names = values.get("label_col")
        texts = [values.get(name) for name in ("fn_col", "label_delim")]
        fn_col, label_delim = (text if isinstance(text, str) and text else None for text in texts)
        is_list = isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names)
        return cls(fn_col, tuple(names) if is_list else None, label_delim)


def _plain(column: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", column.lower()).strip("_")


def standardize_columns(columns: Sequence[str]) -> list[str]:
    """Replace synonyms of fname and labels in column names.

    Examples
    --------
    >>> standardize_columns(["Filename", "fold", "category"])
    ['fname', 'fold', 'labels']
    >>> standardize_columns(["fname", "file", "labels"])
    ['fname', 'file', 'labels']
    """
    standard = list(columns)
    for name in _SYNONYMS:
        position = _position(standard, name)
        if name not in standard and position is not None:
            standard[position] = name
    return standard


def _position(columns: Sequence[str], name: str) -> int | None:
    """Return the position of the column that is called `name` or by a synonym of it."""
    plain = [_plain(column) for column in columns]
    return next((plain.index(word) for word in (name, *_SYNONYMS[name]) if word in plain), None)


def find_columns(table: pd.DataFrame, source: Path, given: TableColumns) -> tuple[str, list[str], list[str]]:
    """Find the columns of files and tags.

    Parameters
    ----------
    table
        Cells of text.
    source
        Path of the table, for messages.
    given
        Names of columns, where the user gave them.

    Returns
    -------
    Name of the column of files, names of the columns of tags, and notices of what was taken or left out.

    Raises
    ------
    DataError
        If there is no such column, or several may be it.
    """
    notices: list[str] = []
    file_col = find_file_column(table, source, given, notices)
    rest = [column for column in table.columns if column != file_col]
    if given.label_col is None:
        label_cols = _label_columns(table, rest, source, notices)
    else:
        label_cols = [_given(name, table, source) for name in given.label_col]
    _note_unused(table, [column for column in rest if column not in label_cols], notices)
    return file_col, label_cols, notices


def _given(name: str, table: pd.DataFrame, source: Path) -> str:
    if name not in table.columns:
        raise DataError(f"{source} has no column {name!r}; {did_you_mean(name, list(table.columns))}")
    return name


def find_file_column(table: pd.DataFrame, source: Path, given: TableColumns, notices: list[str]) -> str:
    """Return the name of the column of files; `find_columns` describes the arguments."""
    if given.fn_col is not None:
        return _given(given.fn_col, table, source)
    position = _position(list(table.columns), "fname")
    if position is not None:
        return str(table.columns[position])
    found = [column for column in table.columns if _names_sounds(table[column])]
    if len(found) != 1:
        raise _no_column(table, source, "fname", "file names", "--file-col")
    if found[0]:
        notices.append(f"the files are those of the column {found[0]}")
    return str(found[0])


def _names_sounds(cells: pd.Series) -> bool:
    """Return whether more than half of the cells are names of sound files."""
    names = [is_sound_name(PureWindowsPath(cell.strip())) for cell in cells]
    return sum(names) * 2 > len(names)


def _no_column(table: pd.DataFrame, source: Path, name: str, content: str, option: str) -> DataError:
    columns = ", ".join(column or "a column without a name" for column in table.columns)
    return DataError(
        f"{source} has no column of {content}: it has {columns}; call one {name} (or {', '.join(_SYNONYMS[name])}), "
        f"or name it with {option}"
    )


def _label_columns(table: pd.DataFrame, rest: list[str], source: Path, notices: list[str]) -> list[str]:
    position = _position(rest, "labels")
    no_tags = {_plain(column) for column in segment_columns(rest)} | _NO_TAGS
    flags = [column for column in rest if column and _plain(column) not in no_tags and _has_flags(table[column])]
    if position is not None:
        return _named_label_columns(table, rest, rest[position], flags, notices)
    if flags:
        notices.append(f"the columns of 0 and 1 are the tags: {', '.join(flags)}")
        return flags
    others = [column for column in rest if column and column not in (*_UNUSED, *segment_columns(rest))]
    if len(others) != 1:
        raise _no_column(table, source, "labels", "tags", "--tags-col")
    notices.append(f"the tags are those of the column {others[0]}")
    return others


def _named_label_columns(
    table: pd.DataFrame, rest: list[str], column: str, flags: list[str], notices: list[str]
) -> list[str]:
    flags = [flag for flag in flags if flag != column and table[flag].nunique() > 1]
    if len(flags) > 1:
        notices.append(
            f"the tags are those of the column {column}; the columns of 0 and 1 are no tags: {', '.join(flags)} "
            "(--tags-col takes them)"
        )
    if len(table) and _has_flags(table[column]):
        notices.append(
            f"the column {column} holds only 0 and 1, which are taken as two tags of these names; for one tag that is "
            "present or absent, call the column by the tag"
        )
    second = next((name for name in rest if _plain(name) == _SECONDARY.get(_plain(column))), None)
    if second is None:
        return [column]
    notices.append(f"the tags are those of the columns {column} and {second}")
    return [column, second]


def _has_flags(cells: pd.Series) -> bool:
    """Return whether all cells are 0 or 1, True or False, and one of them at least is not empty."""
    return all(is_flag(cell) for cell in cells) and any(cell.strip() for cell in cells)


def _note_unused(table: pd.DataFrame, rest: list[str], notices: list[str]) -> None:
    unused = [column for column in rest if _plain(column) in _UNUSED]
    if unused:
        notices.append(f"not used in a table of sounds: {', '.join(unused)}")


def warn_of_positions(
    table: pd.DataFrame, fn_col: int | str, label_col: int | str | Sequence[int | str], source: str | Path
) -> None:
    """Warn about columns that were taken by their position although the names point to others, and of 0 and 1.

    Parameters
    ----------
    table
        A user's table.
    fn_col, label_col
        Columns of files and of tags, which the table has.
    source
        Path or name of the table, for messages.
    """
    columns = [str(column) for column in table.columns]
    notices: list[str] = []
    files_and_tags = (("files", "fn_col", fn_col, "fname"), ("tags", "label_col", label_col, "labels"))
    for what, argument, given, name in files_and_tags:
        position = _position(columns, name)
        if isinstance(given, int) and position is not None and _position([columns[given]], name) is None:
            notices.append(
                f"the {what} are those of the column {columns[given]!r}, by its position; if they are in "
                f"{columns[position]!r}, give {argument}={columns[position]!r}"
            )
    if isinstance(label_col, (int, str)) and not any("label_col" in notice for notice in notices):
        cells = table.iloc[:, label_col] if isinstance(label_col, int) else table[label_col]
        if all(isinstance(cell, str) for cell in cells) and _has_flags(cells):
            notices.append(
                f"the column {cells.name!r} holds only 0 and 1, which are taken as two tags of these names; for the "
                f"tag {cells.name!r}, present or absent, give label_col=[{cells.name!r}], with the columns of other "
                "tags"
            )
    if notices:
        warnings.warn(f"{source}: {'; '.join(notices)}", stacklevel=4)


def parse_tags(
    table: pd.DataFrame, columns: Sequence[str], given: TableColumns, source: Path, notices: list[str]
) -> list[list[str]]:
    """Return the tags of each row from one column of tags, or several columns of tags or of 0 and 1."""
    is_called_tags = len(columns) == 1 and _plain(columns[0]) in ("labels", *_SYNONYMS["labels"])
    if not is_called_tags and all(_has_flags(table[column]) for column in columns):
        rows = parse_flag_columns(table[list(columns)])
        absent = sorted(set(columns).difference(*rows))
        if absent:
            notices.append(f"no clip has the tags {', '.join(absent)}, so they are left out")
        return rows
    rows = [[] for _ in range(len(table))]
    for column in columns:
        cells = list(table[column])
        warn_missing_words(cells, source)
        for row, labels in zip(rows, _parse_cells(cells, given.label_delim, column, notices), strict=True):
            row += [label for label in labels if label not in row]
    return rows


def _parse_cells(cells: list[str], delim: str | None, column: str, notices: list[str]) -> list[list[str]]:
    filled = [cell.strip() for cell in cells if cell.strip() and not is_missing_word(cell)]
    if filled and all(re.fullmatch(r"\d+\.0", cell) for cell in filled):
        # pandas writes whole numbers as 1.0 as soon as one cell is empty.
        notices.append(f"the numbers of the column {column} are tags without .0")
        cells = [cell.strip().removesuffix(".0") for cell in cells]
    if delim is None and has_bars(filled):
        notices.append(f"the tags of the column {column} are separated by | (--tag-sep , keeps them together)")
        delim = "|"
    return [parse_labels(cell, delim) for cell in cells]
