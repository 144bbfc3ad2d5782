"""The competition's layout, its quirks, the bundled sample.

Freesound Audio Tagging 2019 lays its data out as

    train_curated.csv, train_curated/     checked labels
    train_noisy.csv, train_noisy/         labels guessed from the words around a sound; may be absent
    sample_submission.csv, test/          `fname` and one column per tag; what to predict; may be absent

The CSVs have the columns `fname` and `labels`. The vocabulary is the sample submission's columns in its order; without that
file, the sorted labels. Nothing here reads a sound file, and nothing here looks at other places in the folder. Instead of such a folder
a CSV of one's own sounds may be given, which then is the curated part.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType

import numpy as np
import pandas as pd
import torch

from fatai.data.labels import (
    apply_corrections,
    check_labels,
    read_corrections,
    read_labels,
    read_table,
    unique_tags,
    warn_unused_corrections,
)
from fatai.data.tables import is_sound_table, read_sound_table
from fatai.errors import DataError, OptionError
from fatai.audio.io import AUDIO_EXTENSIONS

__all__ = ["CORRUPTED_FILES", "CORRUPTED_FILES_ACTIONS", "CORRUPTED_FILES_RELABELED", "FATDataset", "fat_sample", "load_dataset", "training_table"]

CORRUPTED_FILES = ("f76181c4.wav", "77b925c2.wav", "6a1f682a.wav", "c7db12aa.wav", "7752cc8a.wav", "1d44b0bd.wav")
"""The curated files of the competition that are widely listed as corrupted."""

CORRUPTED_FILES_RELABELED: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "f76181c4.wav": ("Bass_drum",),
    "c7db12aa.wav": ("Marimba_and_xylophone",),
    "7752cc8a.wav": ("Dishes_and_pots_and_pans", "Chink_and_clink"),
})
"""The three of them that the 1st place kept, under these labels; it dropped the others."""

CORRUPTED_FILES_ACTIONS = ("keep", "drop", "noisy", "relabel")
"""What may be done with them: the baseline's, the 9th, the 36th and the 1st place's choice."""


@dataclass(frozen=True)
class FATDataset:
    """A data set in the competition's layout: tables of its parts, and the vocabulary.

    Attributes
    ----------
    path
        The folder, or the CSV.
    curated
        Columns `fname`, `labels` (a list of tags), `path`, `part` ("curated"), and whatever else the CSV holds.
    noisy
        The same with `part` "noisy", or None without a noisy part.
    test
        Columns `fname` and `path`, rows in the order of the sample submission; empty without a test part. A row stays although its
        file is missing, since a submission needs it.
    tags
        The vocabulary: the order of all columns of targets and predictions.
    sample
        The sample submission, or None.
    missing
        Columns `part`, `fname`, `path`: the rows whose file isn't there. They are in neither `curated` nor `noisy`.
    """

    path: Path
    curated: pd.DataFrame
    noisy: pd.DataFrame | None
    test: pd.DataFrame
    tags: tuple[str, ...]
    sample: Path | None
    missing: pd.DataFrame

    def __str__(self) -> str:
        noisy = "no noisy part" if self.noisy is None else f"{len(self.noisy)} noisy"
        lost = f", {len(self.missing)} files missing" if len(self.missing) else ""
        return f"{self.path}: {len(self.curated)} curated, {noisy}, {len(self.test)} test clips, {len(self.tags)} tags{lost}"


def fat_sample() -> Path:
    """The folder of the bundled sample: real clips of 10 kinds of sound in the competition's layout.

    120 curated, 72 noisy and 60 test clips from CC0 recordings of ESC-10; its `README.md` and `attribution.csv` say more.

    Raises
    ------
    DataError
        If the installation lost it.
    """
    path = Path(__file__).parent / "sample"
    if not (path / "train_curated.csv").is_file():
        raise DataError(
            f"the bundled sample is not at {path}; reinstall fatai, or make it anew with examples/make_sample.py"
        )
    return path


def load_dataset(path: str | Path, corrections: str | Path | None = None, *, corrupted: str = "keep") -> FATDataset:
    """Read the tables of a data set and look which of its files are there.

    Parameters
    ----------
    path
        The folder that holds `train_curated.csv` and its like; or a CSV of files and tags, as `fatai.data.tables` reads it.
    corrections
        A CSV of hand corrections (`fname`, and `labels` or "remove"), applied to the curated and the noisy part.
    corrupted
        What becomes of the competition's six corrupted curated files, where they are: "keep" them; "drop" them; move them to the "noisy"
        part; or "relabel" three of them as the 1st place did and drop the others.

    Raises
    ------
    DataError
        A folder, CSV or column that is not there, or a part without a single file; says what was expected and what to do.
    LabelError
        A label that is not in the vocabulary, with its CSV, row and the nearest known tag.

    Rows whose file is missing are set aside in `missing`, with one warning.
    """
    if corrupted not in CORRUPTED_FILES_ACTIONS:
        raise OptionError(f"corrupted is {corrupted!r}; expected one of {', '.join(CORRUPTED_FILES_ACTIONS)}")
    root = Path(path)
    if is_sound_table(root):
        return _own_sounds(root, corrections)
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; expected one with train_curated.csv and train_curated/ "
                        "(fatai.data.datasets.fat2019.fat_sample() is one; fatai-submit download gets others)")
    curated, noisy = _part_table(root, "curated"), _part_table(root, "noisy")
    if curated is None:
        raise DataError(_no_curated(root))
    sample = root / "sample_submission.csv"
    submission = _read_sample(sample) if sample.is_file() else None
    parts = [curated] if noisy is None else [curated, noisy]
    tags = (
        tuple(submission.columns[1:])
        if submission is not None
        else unique_tags(row for part in parts for row in part["labels"])
    )
    for part in parts:
        check_labels(part, tags, root / f"train_{part['part'].iloc[0]}.csv")
    test = _test_table(root, submission)
    missing = pd.concat([_missing(part) for part in [*parts, test]], ignore_index=True)
    _report(missing, root)
    if noisy is not None:
        noisy = _present(noisy) if noisy["exists"].any() else None
    data = FATDataset(
        root,
        _present(curated),
        noisy,
        test[["fname", "path"]],
        tags,
        sample if submission is not None else None,
        missing,
    )
    data = _handle_corrupted(data, corrupted)
    return data if corrections is None else _correct(data, corrections)


def training_table(
    data: FATDataset, *, noisy: bool = False, valid_pct: float = 0.2, seed: int | None = None
) -> pd.DataFrame:
    """Return the curated clips with a random validation part, and optionally the noisy clips.

    Parameters
    ----------
    data
        The data set.
    noisy
        Append the noisy clips, for training only.
    valid_pct, seed
        Fraction of curated clips to hold out, and the seed of the draw; None draws from torch's global generator.

    Returns
    -------
    Columns fname, path, labels (lists of tags) and is_valid; with `noisy` also noisy.

    Raises
    ------
    DataError
        If `noisy` is set and there is no noisy part.
    """
    columns = ["fname", "path", "labels"]
    table = data.curated[columns].copy()
    is_valid = np.zeros(len(table), dtype=bool)
    order = torch.randperm(len(table), generator=None if seed is None else torch.Generator().manual_seed(seed)).numpy()
    is_valid[order[: int(valid_pct * len(table))]] = True
    table["is_valid"] = is_valid
    if noisy:
        table["noisy"] = False
        if data.noisy is None:
            raise DataError(f"{data.path} has no noisy part; expected train_noisy.csv and train_noisy/, or noisy=False")
        table = pd.concat([table, data.noisy[columns].assign(is_valid=False, noisy=True)], ignore_index=True)
    return table


def _no_curated(root: Path) -> str:
    found = sorted(f.name for f in root.glob("*.csv"))
    there = f"its tables are {', '.join(found)}" if found else "it holds no CSV"
    return (
        f"{root} has no train_curated.csv ({there}); expected one with the columns fname and labels; "
        "of a table with another name or in another place, give its path instead of the folder: such as my_sounds/labels.csv"
    )


def _own_sounds(csv: Path, corrections: str | Path | None) -> FATDataset:
    table = read_sound_table(csv).assign(part="curated")
    missing = _missing(table)
    _report(missing, csv)
    none = pd.DataFrame({"fname": pd.Series(dtype=str), "path": pd.Series(dtype=str)})
    if not table["exists"].any():
        raise DataError(
            f"none of the {len(table)} sounds that {csv} names, such as {table['fname'].iloc[0]}, is in {csv.parent} or below"
        )
    data = FATDataset(csv, _present(table), None, none, unique_tags(table["labels"]), None, missing)
    return data if corrections is None else _correct(data, corrections)


def _part_table(root: Path, part: str) -> pd.DataFrame | None:
    """The table of one training part with `path`, `part` and `exists`, or None if the part is absent."""
    table_path, folder = root / f"train_{part}.csv", root / f"train_{part}"
    if not table_path.is_file():
        if folder.is_dir() and part != "curated":
            warnings.warn(
                f"{folder} has no table {table_path.name} beside it, so its sounds are left out", stacklevel=3
            )
        return None
    if not folder.is_dir():
        if part == "curated":
            raise DataError(
                f"{table_path} is there, but no folder {folder} with its sound files; expected {folder}/<fname>"
            )
        warnings.warn(
            f"{table_path} is there, but no folder {folder.name}/ with its sound files, so this part is left out",
            stacklevel=3,
        )
        return None
    table = read_labels(table_path)
    if not len(table):
        raise DataError(f"{table_path} has a header but no rows; expected a file name and its labels in each")
    return _with_files(table, folder, part, table_path)


def _with_files(table: pd.DataFrame, folder: Path, part: str, table_path: Path) -> pd.DataFrame:
    """Add `path`, `part`, and `exists`: whether the file is in `folder`."""
    for fname in table["fname"]:
        if PurePosixPath(fname).is_absolute() or PureWindowsPath(fname).drive or ".." in PureWindowsPath(fname).parts:
            raise DataError(
                f"{table_path} names the file {fname!r}, which leads out of {folder}; expected names of files in it"
            )
    # One listing instead of a look at every file: 25,000 of them take seconds on a network drive.
    listed = _files_in(folder)
    added = table.drop(columns=[c for c in ("path", "part", "exists") if c in table.columns])
    return added.assign(
        path=[str(folder / fname) for fname in table["fname"]], part=part,
        exists=[fname in listed or ("/" in fname and os.path.isfile(folder / fname)) for fname in table["fname"]],
    )


def _files_in(folder: Path) -> set[str]:
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        # A link that leads to itself is an error for the entry, and no file for isfile.
        return {
            entry.name for entry in entries if (os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file())
        }


def _read_sample(path: Path) -> pd.DataFrame:
    """A sample submission with its file names in the first column and one column per tag."""
    table = read_table(path, ["fname"])
    if table.columns[0] != "fname":
        raise DataError(f"{path} starts with the column {table.columns[0]!r}; expected fname, then one column per tag")
    if len(table.columns) < 2:
        raise DataError(f"{path} has only the column fname; expected one more for each tag")
    repeated = table["fname"][table["fname"].duplicated()]
    if len(repeated):
        raise DataError(f"{path} has two rows of {repeated.iloc[0]}; expected every file once")
    return table


def _test_table(root: Path, submission: pd.DataFrame | None) -> pd.DataFrame:
    """The test clips: rows of the sample submission, or without one the sound files of `test/`, links to nowhere among them."""
    folder = root / "test"
    if not folder.is_dir():
        if submission is not None and len(submission):
            warnings.warn(
                f"{root} has a sample submission but no folder test/, so there is nothing to predict", stacklevel=3
            )
        names: list[str] = []
    elif submission is not None:
        names = list(submission["fname"])
    else:
        names = sorted(
            file.name for file in folder.iterdir() if file.suffix.lower() in AUDIO_EXTENSIONS and not file.is_dir()
        )
    return _with_files(
        pd.DataFrame({"fname": pd.Series(names, dtype=str)}), folder, "test", root / "sample_submission.csv"
    )


def _present(part: pd.DataFrame) -> pd.DataFrame:
    return part[part["exists"]].drop(columns="exists").reset_index(drop=True)


def _missing(part: pd.DataFrame) -> pd.DataFrame:
    return part.loc[~part["exists"].astype(bool), ["part", "fname", "path"]]


def _report(missing: pd.DataFrame, root: Path) -> None:
    """Warn about rows without a file, part by part."""
    if not len(missing):
        return
    told = []
    for part, rows in missing.groupby("part", sort=False):
        names = ", ".join(rows["fname"][:5]) + (", ..." if len(rows) > 5 else "")
        told.append(f"{len(rows)} {part} ({names})")
    warnings.warn(
        f"{root}: rows without a sound file: {'; '.join(told)}; training rows are left out, test rows get an answer all the same",
        stacklevel=3,
    )


def _handle_corrupted(data: FATDataset, how: str) -> FATDataset:
    """Keep, drop, move or relabel the six corrupted curated files."""
    curated = data.curated
    is_corrupted = curated["fname"].isin(CORRUPTED_FILES)
    if how == "keep" or not is_corrupted.any():
        return _checked(data)
    rest = curated[~is_corrupted]
    if how == "drop":
        return _checked(replace(data, curated=rest.reset_index(drop=True)))
    if how == "noisy":
        moved = curated[is_corrupted].assign(part="noisy")
        noisy = moved if data.noisy is None else pd.concat([data.noisy, moved])
        return _checked(replace(data, curated=rest.reset_index(drop=True), noisy=noisy.reset_index(drop=True)))
    labels = [[*CORRUPTED_FILES_RELABELED[name]] if name in CORRUPTED_FILES_RELABELED else None for name in CORRUPTED_FILES]
    table = apply_corrections(curated, pd.DataFrame({"fname": CORRUPTED_FILES, "labels": pd.Series(labels, dtype=object)}))
    check_labels(table, data.tags, "the corrupted files as the 1st place labelled them")
    return _checked(replace(data, curated=table))


def _correct(data: FATDataset, corrections: str | Path) -> FATDataset:
    """Apply a file of hand corrections to both training parts."""
    right = read_corrections(corrections, tags=data.tags)
    known: list[str] = [*data.curated["fname"], *data.missing["fname"], *CORRUPTED_FILES]
    noisy = data.noisy
    if noisy is not None:
        known += list(noisy["fname"])
        noisy = apply_corrections(noisy, right)
    warn_unused_corrections(right, known, corrections)
    return _checked(replace(data, curated=apply_corrections(data.curated, right), noisy=noisy))


def _checked(data: FATDataset) -> FATDataset:
    if not len(data.curated):
        raise DataError(
            f"{data.path} has no curated clip left to learn from: every row of train_curated.csv lacks its file "
            f"or was removed; expected sound files in {data.path / 'train_curated'}"
        )
    return data
