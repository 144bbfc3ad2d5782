"""A table of one's own sounds: any CSV that names files and their tags, beside the sounds or above them.

The column of files may be called fname, file, filename, path or sound, that of tags labels, label, tags, tag, category or class. A sound is
looked for where its name leads from the folder of the table, and else by its name alone in all folders below it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from fatai.data.labels import read_labels, read_table
from fatai.errors import DataError
from fatai.audio.io import AUDIO_EXTENSIONS

__all__ = ["is_sound_table", "read_sound_table", "standardize_columns"]

_CALLED = {"fname": ("file", "filename", "path", "sound"), "labels": ("label", "tags", "tag", "category", "class")}


def is_sound_table(path: str | Path) -> bool:
    """Whether a path is a CSV rather than a folder in the competition's layout."""
    return Path(path).suffix.lower() == ".csv" and Path(path).is_file()


def standardize_columns(columns: Sequence[str]) -> list[str]:
    """The names of columns, with fname and labels in place of the words that people use for them.

    Examples
    --------
    >>> standardize_columns(["Filename", "fold", "category"])
    ['fname', 'fold', 'labels']
    >>> standardize_columns(["fname", "file", "labels"])
    ['fname', 'file', 'labels']
    """
    found = list(columns)
    for name, words in _CALLED.items():
        lowered = [column.lower() for column in found]
        at = next((lowered.index(word) for word in (name, *words) if word in lowered), None)
        if name not in found and at is not None:
            found[at] = name
    return found


def read_sound_table(path: str | Path) -> pd.DataFrame:
    """Columns `fname`, `labels` (lists of tags), `path`, `there` (whether the file was found), then what else the CSV holds.

    Raises
    ------
    DataError
        No column of files or of tags, no row, a name that leads out of the folder, or one that several files below it have.
    """
    csv = Path(path)
    header = list(read_table(csv, []).columns)
    standard = standardize_columns(header)
    for name, words in _CALLED.items():
        if name not in standard:
            what = "file names" if name == "fname" else "tags"
            raise DataError(
                f"{csv} has no column of {what}: it has {', '.join(header)}; call one {name} (or {', '.join(words)})"
            )
    table = read_labels(csv, fn_col=header[standard.index("fname")], label_col=header[standard.index("labels")])
    if not len(table):
        raise DataError(f"{csv} has a header but no rows; expected a file name and its labels in each")
    below = _sounds_below(csv.parent)
    paths = [_place_of(fname, csv, below) for fname in table["fname"]]
    rest = table.drop(columns=[c for c in ("path", "there", "part") if c in table.columns])
    return rest.assign(path=[str(p) for p in paths], there=[os.path.isfile(p) for p in paths])


def _sounds_below(folder: Path) -> dict[str, list[Path]]:
    """Name to the files of that name."""
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in AUDIO_EXTENSIONS:
            found.setdefault(file.name, []).append(file)
    return found


def _place_of(fname: str, csv: Path, below: dict[str, list[Path]]) -> Path:
    named = csv.parent / fname
    if Path(fname).is_absolute() or ".." in Path(fname).parts:
        raise DataError(
            f"{csv} names the file {fname!r}, which leads out of {csv.parent}; expected names of files in it or below"
        )
    if os.path.isfile(named):
        return named
    same = below.get(fname, [])
    if len(same) > 1:
        raise DataError(
            f"{csv} names the file {fname!r}, which is there {len(same)} times ({same[0]}, {same[1]}); write its folder too"
        )
    return same[0] if same else named
