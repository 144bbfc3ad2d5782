"""Tables of clips: standard columns, CSV tables of sound files, and a check that files can be read.

A *standard table* has the columns fname, path, labels (a list of tags) and is_valid, whatever the user's table calls
them; the optional columns weight (sample weight), noisy (whether the labels are noisy) and source are kept.

A *sound table* is a CSV of sound files and their tags, beside the files or above them. The column of files may be
called fname, file, filename, path or sound, that of tags labels, label, tags, tag, category or class. A file is looked
up by its path from the folder of the CSV, then by its name in all folders below.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fatai.audio.io import AUDIO_EXTENSIONS, check_audio
from fatai.data.clip_names import unique_names
from fatai.data.labels import parse_labels, read_labels, read_table
from fatai.errors import AudioError, DataError
from fatai.registry import did_you_mean

__all__ = ["check_readable", "is_sound_table", "read_sound_table", "standardize_columns", "standardize_table"]

_SYNONYMS = {"fname": ("file", "filename", "path", "sound"), "labels": ("label", "tags", "tag", "category", "class")}
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
    label_col: int | str,
    valid_col: int | str | None,
    suff: str,
    label_delim: str | None,
) -> pd.DataFrame:
    """Convert a user's table to a standard table; the arguments are those of `FATDataLoaders.from_df`.

    Parameters
    ----------
    df
        One row per clip.
    root
        Folder of the files.
    fn_col, path_col, label_col, valid_col
        Names or positions of columns of `df`.
    suff
        Suffix to append to file names.
    label_delim
        Separator of tags; None accepts commas and semicolons.

    Returns
    -------
    Columns fname, path, labels (lists of tags) and is_valid; also weight, noisy and source if `df` has them. Where
    several files have one name, `fname` is their shortest unique path.

    Raises
    ------
    DataError
        If a column is missing, or holds values that are no booleans or numbers where they are expected.
    """
    names = [str(n) for n in _column(df, fn_col, "fn_col")]
    table = pd.DataFrame({"fname": [Path(n).name if Path(n).is_absolute() else n for n in names]})
    if path_col is None:
        table["path"] = [str(root / f"{n}{suff}") for n in names]
    else:
        table["path"] = [str(p) for p in _column(df, path_col, "path_col")]
    table["fname"] = unique_names(table["fname"].tolist(), table["path"].tolist())
    table["labels"] = [parse_labels(cell, label_delim) for cell in _column(df, label_col, "label_col")]
    table["is_valid"] = False if valid_col is None else _booleans(_column(df, valid_col, "valid_col"), "valid_col")
    return table.assign(**_optional_columns(df))


def _optional_columns(df: pd.DataFrame) -> dict[str, list[Any]]:
    """Return the columns noisy, weight and source that `df` has, converted."""
    columns: dict[str, list[Any]] = {}
    if "noisy" in df.columns:
        columns["noisy"] = _booleans(df["noisy"], "the column")
    if "weight" in df.columns:
        columns["weight"] = _numbers(df["weight"])
    if "source" in df.columns:
        columns["source"] = [str(s) for s in df["source"]]
    return columns


def _column(df: pd.DataFrame, column: int | str, argument: str) -> pd.Series:
    """Return a column by position or name; messages name the `argument` that selects it."""
    if isinstance(column, int):
        if column >= df.shape[1]:
            names = ", ".join(map(str, df.columns))
            raise DataError(f"{argument} is column number {column}, but the table has {df.shape[1]} columns: {names}")
        return df.iloc[:, column]
    if column not in df.columns:
        raise DataError(
            f"{argument} is {column!r}, but there is no such column; "
            f"{did_you_mean(column, [str(c) for c in df.columns])}"
        )
    return df[column]


def _numbers(column: pd.Series) -> list[float]:
    try:
        return [float(v) for v in column]
    except (TypeError, ValueError) as e:
        raise DataError(
            f"the column {column.name!r} is not numeric ({e}); expected sample weights, such as 1 or 0.5"
        ) from None


def _booleans(column: pd.Series, argument: str) -> list[bool]:
    """Parse booleans, 0/1 or words of a CSV; a word like "no" must not be true because it is not empty."""
    try:
        return [_BOOLEANS[str(v).strip().lower()] for v in column]
    except KeyError as e:
        raise DataError(
            f"{argument} {column.name!r} holds {e.args[0]!r}; expected true or false, yes or no, 1 or 0"
        ) from None


def is_sound_table(path: str | Path) -> bool:
    """Return whether a path is a CSV file rather than a folder in the competition's layout."""
    return Path(path).suffix.lower() == ".csv" and Path(path).is_file()


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
    for name, synonyms in _SYNONYMS.items():
        lowered = [column.lower() for column in standard]
        position = next((lowered.index(word) for word in (name, *synonyms) if word in lowered), None)
        if name not in standard and position is not None:
            standard[position] = name
    return standard


def read_sound_table(path: str | Path) -> pd.DataFrame:
    """Read a CSV of sound files and tags, and locate the files.

    Parameters
    ----------
    path
        The CSV; its header may use any of the names that the module's docstring lists.

    Returns
    -------
    Columns `fname`, `labels` (lists of tags), `path`, `exists` (whether the file was found), and the other columns of
    the CSV.

    Raises
    ------
    DataError
        If a column of files or tags or all rows are missing, or a name leads out of the folder or fits several files
        below it.
    """
    csv = Path(path)
    header = list(read_table(csv, []).columns)
    standard = standardize_columns(header)
    for name, synonyms in _SYNONYMS.items():
        if name not in standard:
            content = "file names" if name == "fname" else "tags"
            raise DataError(
                f"{csv} has no column of {content}: it has {', '.join(header)}; call one {name} (or "
                f"{', '.join(synonyms)})"
            )
    table = read_labels(csv, fn_col=header[standard.index("fname")], label_col=header[standard.index("labels")])
    if not len(table):
        raise DataError(f"{csv} has a header but no rows; expected a file name and its labels in each")
    files = _files_by_name(csv.parent)
    paths = [_locate(fname, csv, files) for fname in table["fname"]]
    rest = table.drop(columns=[c for c in ("path", "exists", "part") if c in table.columns])
    return rest.assign(path=[str(p) for p in paths], exists=[os.path.isfile(p) for p in paths])


def _files_by_name(folder: Path) -> dict[str, list[Path]]:
    """Map names to the sound files of that name in a folder and below."""
    files: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in AUDIO_EXTENSIONS:
            files.setdefault(file.name, []).append(file)
    return files


def _locate(fname: str, csv: Path, files: dict[str, list[Path]]) -> Path:
    direct = csv.parent / fname
    if Path(fname).is_absolute() or ".." in Path(fname).parts:
        raise DataError(f"{csv} names the file {fname!r}, which is outside {csv.parent}; expected files in it or below")
    if os.path.isfile(direct):
        return direct
    matches = files.get(fname, [])
    if len(matches) > 1:
        raise DataError(
            f"{csv} names the file {fname!r}, which exists {len(matches)} times ({matches[0]}, {matches[1]}); "
            "include the folder in the name"
        )
    return matches[0] if matches else direct
