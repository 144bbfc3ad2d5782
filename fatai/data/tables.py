"""Tables of clips: standard columns, CSV tables of sound files, and a check that files can be read.

A *standard table* has the columns fname, path, labels (a list of tags) and is_valid, whatever the user's table calls
them; the optional columns weight (sample weight), noisy (whether the labels are noisy) and source are kept.

A *sound table* is a CSV of sound files and their tags, beside the files or above them; its cells may also be separated
by tabs or semicolons. `fatai.data.table_columns` describes which columns hold the files and the tags, and
`fatai.data.locate` where the files are looked up. Several rows of a file, such as a row for each tag, are joined.

A *folder of classes* has a folder for each tag, with the sound files of the tag in it and below.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from fatai.audio.folders import find_sounds, is_hidden
from fatai.audio.io import check_audio
from fatai.audio.segments import Segment, file_of, segment_path, split_segment
from fatai.data.annotations import read_label_track, recording_beside
from fatai.data.clip_names import unique_names
from fatai.data.labels import (
    is_flag,
    parse_flag_columns,
    parse_labels,
    read_table,
    warn_missing_words,
    warn_of_bars,
)
from fatai.data.locate import locate_files
from fatai.data.segments import add_segments, segment_columns
from fatai.data.table_columns import TableColumns, find_columns, find_file_column, parse_tags, standardize_columns
from fatai.errors import AudioError, DataError, LabelError
from fatai.io.lazy import pandas as pd
from fatai.io.table_text import format_row
from fatai.registry import did_you_mean

__all__ = [
    "check_data_folder",
    "check_readable",
    "is_class_folder",
    "is_sound_table",
    "read_class_folder",
    "read_sound_files",
    "read_sound_labels",
    "read_sound_table",
    "standardize_table",
]

_TABLE_EXTENSIONS = (".csv", ".tsv", ".txt")
_BOOLEANS = {
    "true": True, "1": True, "1.0": True, "yes": True,
    "false": False, "0": False, "0.0": False, "no": False, "": False,
}


def check_readable(paths: Sequence[Path]) -> tuple[np.ndarray, list[str]]:
    """Check that sound files can be decoded to their ends.

    Parameters
    ----------
    paths
        The files; they are read in parallel threads.

    Returns
    -------
    bool, shape (files,): True where the file can be read; and an error message for each of the others.
    """

    def error(path: Path) -> str:
        try:
            check_audio(path)
        except AudioError as e:
            return str(e)
        return ""

    with ThreadPoolExecutor() as pool:
        errors = list(pool.map(error, paths, chunksize=64))
    return np.array([not e for e in errors], dtype=bool), [e for e in errors if e]


def standardize_table(
    df: pd.DataFrame,
    root: Path,
    fn_col: int | str,
    path_col: int | str | None,
    label_col: int | str | Sequence[int | str],
    valid_col: int | str | None,
    suff: str,
    label_delim: str | None,
    *,
    source: str | Path = "the table",
) -> pd.DataFrame:
    """Convert a user's table to a standard table; the arguments are those of `FATDataLoaders.from_df`.

    Parameters
    ----------
    df
        One row per clip.
    root
        Folder of the files.
    fn_col, path_col, label_col, valid_col
        Names or positions of columns of `df`; `label_col` may be several columns, of tags or of 0 and 1.
    suff
        Suffix to append to file names.
    label_delim
        Separator of tags; None accepts commas and semicolons.
    source
        Path or name of the table, for messages.

    Returns
    -------
    Columns fname, path, labels (lists of tags) and is_valid; also weight, noisy and source if `df` has them. Where
    several files have one name, `fname` is their shortest unique path. Rows with times are segments, as
    `fatai.data.segments` recognizes them.

    Raises
    ------
    DataError
        If a column, a file name or all rows are missing, or a cell is no boolean or sample weight where one is
        expected; the message names the row.
    LabelError
        If a cell of labels is neither text nor a list.
    """
    if not len(df):
        raise DataError(f"{source} has no rows; expected a file name and its tags in each")
    names = _named_files(_column(df, fn_col, "fn_col"), source)
    shown = [Path(n).name if Path(n).is_absolute() else n for n in names]
    table = pd.DataFrame({"fname": add_segments(shown, df, source)})
    if path_col is None:
        paths = [str(root / f"{n}{suff}") for n in names]
    else:
        paths = _named_files(_column(df, path_col, "path_col"), source)
    table["path"] = add_segments(paths, df, source)
    table["fname"] = unique_names(table["fname"].tolist(), table["path"].tolist())
    table["labels"] = pd.Series(_labels(df, label_col, label_delim, source), index=table.index, dtype=object)
    table["is_valid"] = (
        False if valid_col is None else _booleans(_column(df, valid_col, "valid_col"), "valid_col", source)
    )
    return _join_tags(table.assign(**_optional_columns(df, source)), source)


def _named_files(column: pd.Series, source: str | Path) -> list[str]:
    """Return the cells of a column of files as text; a cell without a name is an error."""
    names = ["" if missing else str(cell) for cell, missing in zip(column, column.isna(), strict=True)]
    nameless = next((k for k, name in enumerate(names) if not name.strip()), None)
    if nameless is not None:
        raise DataError(
            f"{source}, {format_row(nameless, source)} has no file name: fill it in or remove the row"
        )
    return names


def _join_tags(table: pd.DataFrame, source: str | Path) -> pd.DataFrame:
    """Join the rows of one file with different tags, with a warning; equal rows are repetitions and stay."""
    rest = [column for column in table.columns if column not in ("labels", "fname")]
    labels = table["labels"].map(tuple)
    differing = labels.groupby(table["path"]).transform("nunique") > 1
    if not differing.any():
        return table
    keys = [repr(row) if many else str(k) for k, (row, many) in enumerate(
        zip(table[rest].itertuples(index=False, name=None), differing, strict=True)
    )]
    notices: list[str] = []
    joined = _join_rows(table, keys, Path(source), notices)
    for notice in notices:
        warnings.warn(notice, stacklevel=5)
    return joined


def _labels(
    df: pd.DataFrame, label_col: int | str | Sequence[int | str], delim: str | None, source: str | Path
) -> list[list[str]]:
    """Return the tags of each row; columns of 0 and 1 are tags that are called by the column."""
    if isinstance(label_col, (int, str)):
        column = _column(df, label_col, "label_col")
        warn_missing_words(column, source)
        return _parsed_column(column, delim, source)
    if label_col is None:
        raise DataError("label_col is None; expected the name or position of the column of tags, or a list of columns")
    columns = [_column(df, column, "label_col") for column in label_col]
    if not columns:
        raise DataError("label_col is an empty list; expected the column of tags, or a column for each tag")
    if all(is_flag(cell) for column in columns for cell in column):
        return parse_flag_columns(pd.concat(columns, axis=1))
    warn_missing_words([cell for column in columns for cell in column], source)
    rows = zip(*(_parsed_column(column, delim, source) for column in columns), strict=True)
    return [list(dict.fromkeys(label for labels in row for label in labels)) for row in rows]


def _parsed_column(column: pd.Series, delim: str | None, source: str | Path) -> list[list[str]]:
    """Return the tags of each cell of a column; errors name the row."""
    if delim is None:
        warn_of_bars(column, column.name, source)
    rows: list[list[str]] = []
    for k, cell in enumerate(column):
        try:
            rows.append(parse_labels(cell, delim))
        except LabelError as e:
            raise LabelError(
                f"{source}, {format_row(k, source)}, column {column.name!r}: {e}; write numbers of classes as text, "
                f"and give columns of 0 and 1 as a list: label_col=[{column.name!r}]"
            ) from None
    return rows


def _optional_columns(df: pd.DataFrame, source: str | Path) -> dict[str, list[Any]]:
    """Return the columns noisy, weight and source that `df` has, converted."""
    columns: dict[str, list[Any]] = {}
    if "noisy" in df.columns:
        columns["noisy"] = _booleans(df["noisy"], "the column", source)
    if "weight" in df.columns:
        columns["weight"] = _weights(df["weight"], source)
    if "source" in df.columns:
        columns["source"] = [str(s) for s in df["source"]]
    return columns


def _column(df: pd.DataFrame, column: int | str, argument: str) -> pd.Series:
    """Return a column by position or name; messages name the `argument` that selects it."""
    if isinstance(column, int):
        if not -df.shape[1] <= column < df.shape[1]:
            names = ", ".join(map(str, df.columns))
            raise DataError(f"{argument} is column number {column}, but the table has {df.shape[1]} columns: {names}")
        return df.iloc[:, column]
    if column not in df.columns:
        raise DataError(
            f"{argument} is {column!r}, but there is no such column; "
            f"{did_you_mean(column, [str(c) for c in df.columns])}"
        )
    return df[column]


def _weights(column: pd.Series, source: str | Path) -> list[float]:
    """Parse sample weights; NaN would make the loss of every batch with the clip NaN."""
    weights = pd.to_numeric(column, errors="coerce").astype(float).tolist()
    for k, weight in enumerate(weights):
        if not 0 <= weight < math.inf:
            raise DataError(
                f"{source}, {format_row(k, source)}: the column {column.name!r} is {str(column.iloc[k])!r}; expected "
                "sample weights from 0 up, such as 1 or 0.5"
            )
    return weights


def _booleans(column: pd.Series, argument: str, source: str | Path) -> list[bool]:
    """Parse booleans, 0/1 or words of a CSV; a word like "no" must not be true because it is not empty."""
    cells = [str(cell).strip().lower() for cell in column]
    for k, cell in enumerate(cells):
        if cell not in _BOOLEANS:
            raise DataError(
                f"{source}, {format_row(k, source)}: {argument} {column.name!r} holds {cell!r}; expected true or "
                "false, yes or no, 1 or 0"
            )
    return [_BOOLEANS[cell] for cell in cells]


def is_sound_table(path: str | Path) -> bool:
    """Return whether a path is a table of cells rather than a folder in the competition's layout."""
    return Path(path).suffix.lower() in _TABLE_EXTENSIONS and Path(path).is_file()


def check_data_folder(root: Path) -> None:
    """Raise `DataError` if there is no folder `root`, but a file or nothing at all."""
    if root.is_file():
        raise DataError(
            f"{root} is neither a folder nor a table of sounds; expected a .csv, .tsv or .txt of cells, as "
            "spreadsheets save them"
        )
    if not root.is_dir():
        if root.suffix.lower() in _TABLE_EXTENSIONS:
            raise DataError(f"there is no table {root}; expected one with a column of files and a column of tags")
        raise DataError(
            f"there is no folder {root}; expected a folder with a folder of sounds for each tag, a table of sounds "
            "such as my_sounds/labels.csv, or a folder with train_curated.csv and train_curated/, as fatai-submit "
            "download makes"
        )


def read_sound_labels(path: str | Path, columns: TableColumns | None = None) -> pd.DataFrame:
    """Read a table of sound files and tags, without looking for the files.

    One warning names what was taken for files and tags, where the names of the columns don't tell, and columns that
    are not used although they change the meaning of a row.

    Parameters
    ----------
    path
        The table, with a header.
    columns
        Its columns, where they cannot be found.

    Returns
    -------
    Columns `fname`, `labels` (lists of tags), and the other columns of the table; a row for each file.

    Raises
    ------
    DataError
        If a column of files or tags, all rows, a file name or a time are missing.
    """
    source, given = Path(path), columns or TableColumns()
    table = _read_cells(source)
    file_col, label_cols, notices = find_columns(table, source, given)
    names = add_segments(_file_names(table, file_col, source), table, source)
    labels = parse_tags(table, label_cols, given, source, notices)
    rest = table.drop(columns=[c for c in {file_col, *label_cols, "", "fname", "labels"} if c in table.columns])
    tags = pd.Series(labels, index=table.index, dtype=object)
    named = pd.concat([pd.DataFrame({"fname": names, "labels": tags}), rest], axis=1)
    joined = _join_rows(named, named["fname"], source, notices)
    if notices:
        warnings.warn(f"{source}: {'; '.join(notices)}", stacklevel=3)
    return joined


def _file_names(table: pd.DataFrame, file_col: str, source: Path) -> list[str]:
    if not len(table):
        raise DataError(f"{source} has a header but no rows; expected a file name and its labels in each")
    names = [name.strip() for name in table[file_col]]
    if "" in names:
        row = names.index("")
        raise DataError(f"{source}, {format_row(row, source)} has no file name: fill it in or remove the row")
    return names


def read_sound_files(path: str | Path, columns: TableColumns | None = None) -> pd.DataFrame:
    """Read the files of a table of sounds, which needs no tags.

    Parameters
    ----------
    path, columns
        As in `read_sound_labels`.

    Returns
    -------
    Columns `fname` and `path`, a row for each file; also for those that don't exist.

    Raises
    ------
    DataError
        As in `read_sound_table`, but for the tags.
    """
    source = Path(path)
    table = _read_cells(source)
    notices: list[str] = []
    file_col = find_file_column(table, source, columns or TableColumns(), notices)
    names = list(dict.fromkeys(add_segments(_file_names(table, file_col, source), table, source)))
    if notices:
        warnings.warn(f"{source}: {notices[0]}", stacklevel=3)
    return pd.DataFrame({"fname": names, "path": _locate_segments(names, source)})


def _read_cells(source: Path) -> pd.DataFrame:
    """Read a table with a header, or the annotations of one recording, whose file becomes the column fname."""
    if source.is_file() and (track := read_label_track(source)) is not None:
        return track
    table = read_table(source, [])
    columns = standardize_columns(list(table.columns))
    if "fname" not in columns and "begin time (s)" in [column.lower() for column in columns]:
        table.insert(0, "fname", recording_beside(source))
    return table


def _locate_segments(names: Sequence[str], source: Path) -> list[str]:
    """Locate the files of names, which may be segments, and return their paths, with the times of segments."""
    segments = [split_segment(name) for name in names]
    files = locate_files([segment.path for segment in segments], source)
    return [_moved(segment, file) for segment, file in zip(segments, files, strict=True)]


def _moved(segment: Segment, file: Path) -> str:
    """Return the path of a segment whose file is found at another path."""
    return str(file) if segment.end_s is None else segment_path(file, segment.start_s, segment.end_s)


def _join_rows(table: pd.DataFrame, keys: Sequence[str], source: Path, notices: list[str]) -> pd.DataFrame:
    """Join the rows with the same key: all tags of them, and the other cells of the first."""
    first: dict[str, int] = {}
    labels: list[list[str]] = []
    for key, row in zip(keys, table["labels"], strict=True):
        if key not in first:
            first[key] = len(labels)
            labels.append([])
        known = labels[first[key]]
        known += [label for label in row if label not in known]
    if len(labels) == len(table):
        return table
    is_first = ~pd.Series(list(keys), index=table.index).duplicated()
    repeated = table["fname"][~is_first].iloc[0]
    what = "segment" if segment_columns(list(table.columns)) else "file"
    notices.append(
        f"{len(table)} rows are {len(labels)} {what}s; the tags of a {what}'s rows were joined: {repeated}, ..."
    )
    joined = table[is_first].reset_index(drop=True)
    joined["labels"] = pd.Series(labels, index=joined.index, dtype=object)
    return joined


def read_sound_table(path: str | Path, columns: TableColumns | None = None) -> pd.DataFrame:
    """Read a table of sound files and tags, and locate the files.

    Parameters
    ----------
    path, columns
        As in `read_sound_labels`.

    Returns
    -------
    Columns `fname`, `labels` (lists of tags), `path`, `exists` (whether the file was found), and the other columns of
    the table.

    Raises
    ------
    DataError
        As in `read_sound_labels`; also if a name leads out of the folder or fits several files below it.
    """
    source = Path(path)
    table = read_sound_labels(source, columns)
    paths = _locate_segments(list(table["fname"]), source)
    rest = table.drop(columns=[c for c in ("path", "exists", "part") if c in table.columns])
    located = rest.assign(path=paths, exists=[os.path.isfile(file_of(path)) for path in paths])
    notices: list[str] = []
    joined = _join_rows(located, paths, source, notices)
    if notices:
        warnings.warn(f"{source}: {notices[0]}", stacklevel=3)
    return joined


def is_class_folder(path: str | Path) -> bool:
    """Return whether a folder has no table, and at least two folders with sound files."""
    root = Path(path)
    if not root.is_dir() or any(is_sound_table(file) and not is_hidden(file.name) for file in root.iterdir()):
        return False
    return len({file.relative_to(root).parts[0] for file in _files_in_folders(root)}) > 1


def read_class_folder(path: str | Path, *, depth: int = 0) -> pd.DataFrame:
    """List the sound files of a folder of classes.

    Parameters
    ----------
    path
        The folder.
    depth
        Number of folders above that of the tag: 0 for `path/<tag>/<file>`, 1 for `path/train/<tag>/<file>`.

    Returns
    -------
    Columns `fname` (the path from the folder, with slashes), `labels` (a list with the tag) and `path`.
    """
    root = Path(path)
    files = [file for file in _files_in_folders(root) if len(file.relative_to(root).parts) > depth + 1]
    names = [file.relative_to(root) for file in files]
    labels = [parse_labels([name.parts[depth]]) for name in names]
    return pd.DataFrame({
        "fname": [name.as_posix() for name in names],
        "labels": pd.Series(labels, index=range(len(names)), dtype=object),
        "path": [str(file) for file in files],
    })


def _files_in_folders(root: Path) -> list[Path]:
    return [file for file in find_sounds(root) if len(file.relative_to(root).parts) > 1]
