"""The layout of Freesound Audio Tagging 2019, its corrupted files, and the bundled sample.

A data set in this layout is a folder with

    train_curated.csv, train_curated/     clips with verified labels
    train_noisy.csv, train_noisy/         clips with labels inferred from metadata; optional
    sample_submission.csv, test/          `fname` and one column per tag; clips to predict; optional

The CSVs have the columns `fname` and `labels`. The vocabulary is the sample submission's columns in its order; without
that file, the sorted labels. No sound file is opened here, and no other file of the folder is read. A table of sound
files or a folder of classes, as `fatai.data.tables` describes them, may take the place of the folder; it is the curated
part then.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType

import numpy as np
import torch

from fatai.audio.folders import find_sounds
from fatai.data.background import find_background, split_background
from fatai.data.labels import (
    apply_corrections,
    check_labels,
    read_corrections,
    read_labels,
    read_table,
    unique_tags,
    warn_unused_corrections,
)
from fatai.data.locate import is_outside
from fatai.data.table_columns import TableColumns
from fatai.data.tables import (
    check_data_folder,
    is_class_folder,
    is_sound_table,
    read_class_folder,
    read_sound_table,
)
from fatai.errors import DataError, OptionError
from fatai.io.lazy import pandas as pd

__all__ = ["CORRUPTED_FILES", "FATDataset", "fat_sample", "load_dataset"]

CORRUPTED_FILES = ("f76181c4.wav", "77b925c2.wav", "6a1f682a.wav", "c7db12aa.wav", "7752cc8a.wav", "1d44b0bd.wav")
"""Curated files of the competition that are widely listed as corrupted."""

CORRUPTED_FILES_RELABELED: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "f76181c4.wav": ("Bass_drum",),
    "c7db12aa.wav": ("Marimba_and_xylophone",),
    "7752cc8a.wav": ("Dishes_and_pots_and_pans", "Chink_and_clink"),
})
"""Labels of the three of them that the 1st place kept; it dropped the others."""

CORRUPTED_FILES_ACTIONS = ("keep", "drop", "noisy", "relabel")
"""Values of `load_dataset(corrupted_files=...)`, as in the baseline, the 9th, the 36th and the 1st place's systems."""


@dataclass(frozen=True)
class FATDataset:
    """The tables of a data set in the competition's layout, and the vocabulary.

    Attributes
    ----------
    path
        The folder, or the table.
    curated
        Columns `fname`, `labels` (lists of tags), `path`, `part` ("curated"), and the other columns of the CSV.
    noisy
        The same with `part` "noisy", or None without a noisy part.
    test
        Columns `fname` and `path`, rows in the order of the sample submission; empty without a test part. Rows without
        a file are kept, since a submission needs them.
    tags
        The vocabulary: the order of all columns of targets and predictions.
    sample
        Path of the sample submission, or None.
    missing
        Columns `part`, `fname`, `path`: rows whose file is missing. They are in neither `curated` nor `noisy`.
    columns
        How the table was read, where its columns were given.
    background
        Columns `fname` and `path` of sounds that hold none of the tags, as `fatai.data.background` finds them; None
        without any.
    """

    path: Path
    curated: pd.DataFrame
    noisy: pd.DataFrame | None
    test: pd.DataFrame
    tags: tuple[str, ...]
    sample: Path | None
    missing: pd.DataFrame
    columns: TableColumns = field(default_factory=TableColumns)
    background: pd.DataFrame | None = None

    def __str__(self) -> str:
        noisy = "no noisy part" if self.noisy is None else f"{len(self.noisy)} noisy"
        lost = f", {len(self.missing)} files missing" if len(self.missing) else ""
        sounds = "" if self.background is None else f", {len(self.background)} of background"
        counts = (
            f"{len(self.curated)} curated, {noisy}, {len(self.test)} test clips, {len(self.tags)} tags{sounds}{lost}"
        )
        return f"{self.path}: {counts}"


def fat_sample() -> Path:
    """Return the folder of the bundled sample: real clips of 10 classes in the competition's layout.

    It has 120 curated, 72 noisy and 60 test clips from CC0 recordings of ESC-10; see its `README.md` and
    `attribution.csv`.

    Raises
    ------
    DataError
        If the sample is not installed.
    """
    path = Path(__file__).parent / "sample"
    if not (path / "train_curated.csv").is_file():
        raise DataError(
            f"the bundled sample is not in {path}; reinstall fatai, or create the sample with examples/make_sample.py"
        )
    return path


def load_dataset(
    path: str | Path, corrections: str | Path | None = None, *, corrupted_files: str = "keep",
    columns: TableColumns | None = None,
) -> FATDataset:
    """Read the tables of a data set and locate its files.

    Rows whose file is missing are moved to `missing`, with one warning.

    Parameters
    ----------
    path
        The folder that contains `train_curated.csv`; or a table of files and tags or a folder of classes, as
        `fatai.data.tables` describes them.
    corrections
        A CSV of corrected labels (`fname`, and `labels` or "remove"), applied to the curated and the noisy part. A name
        that both parts have is the curated clip; write train_noisy/1.wav for the noisy one.
    corrupted_files
        What to do with the competition's six corrupted curated files, if they are present: "keep" them; "drop" them;
        move them to the "noisy" part; or "relabel" three of them as the 1st place did and drop the others.
    columns
        The columns of a table of sounds, where they cannot be found.

    Raises
    ------
    OptionError
        If `corrupted_files` is none of these.
    DataError
        If the folder, a CSV or a column is missing, or a part has no file at all.
    LabelError
        If a label is not in the vocabulary; the message has its CSV, row and the nearest tag.
    """
    if corrupted_files not in CORRUPTED_FILES_ACTIONS:
        raise OptionError(
            f"corrupted_files is {corrupted_files!r}; expected one of {', '.join(CORRUPTED_FILES_ACTIONS)}"
        )
    root, given = Path(path), columns or TableColumns()
    if is_sound_table(root):
        data = _without_parts(root, read_sound_table(root, given), given)
    elif given != TableColumns():
        raise OptionError(f"columns of a table are given, but {root} is no table; expected one, such as labels.csv")
    elif not (root / "train_curated.csv").is_file() and is_class_folder(root):
        data = _without_parts(root, _read_class_folder(root), given)
    else:
        data = _handle_corrupted_files(_load_folder(root), corrupted_files)
    data = _with_background(data)
    return data if corrections is None else _correct(data, corrections)


def _with_background(data: FATDataset) -> FATDataset:
    """Move clips whose only tag is "background" to the background, unless a sample submission has this tag."""
    parts = [part for part in (data.curated, data.noisy) if part is not None]
    moved = pd.DataFrame({"fname": [], "path": []}, dtype=str)
    if data.sample is None:
        curated, moved = split_background(data.curated)
        if len(moved):
            noisy = [] if data.noisy is None else [data.noisy]
            tags = unique_tags(row for part in [curated, *noisy] for row in part["labels"])
            data = _check_curated(replace(data, curated=curated, tags=tags))
    used = [path for part in [*parts, data.test] for path in part["path"]]
    folder = data.path if data.path.is_dir() else data.path.parent
    found = pd.concat([moved, find_background(folder, used)], ignore_index=True)
    return replace(data, background=found) if len(found) else data


def _load_folder(root: Path) -> FATDataset:
    check_data_folder(root)
    curated, noisy = _part_table(root, "curated"), _part_table(root, "noisy")
    if curated is None:
        raise DataError(_no_curated_message(root))
    sample = root / "sample_submission.csv"
    submission = _read_sample(sample) if sample.is_file() else None
    parts = [curated] if noisy is None else [curated, noisy]
    tags = _vocabulary(submission, parts)
    for part in parts:
        check_labels(part, tags, root / f"train_{part['part'].iloc[0]}.csv")
    test = _test_table(root, submission)
    missing = pd.concat([_missing_rows(part) for part in [*parts, test]], ignore_index=True)
    _warn_missing(missing, root)
    if noisy is not None:
        noisy = _existing_rows(noisy) if noisy["exists"].any() else None
    sample_path = sample if submission is not None else None
    return FATDataset(root, _existing_rows(curated), noisy, test[["fname", "path"]], tags, sample_path, missing)


def _vocabulary(submission: pd.DataFrame | None, parts: list[pd.DataFrame]) -> tuple[str, ...]:
    if submission is not None:
        return tuple(submission.columns[1:])
    return unique_tags(row for part in parts for row in part["labels"])


def _no_curated_message(root: Path) -> str:
    tables = sorted(f.name for f in root.glob("*.csv"))
    content = f"its tables are {', '.join(tables)}" if tables else "it contains no CSV"
    return (
        f"{root} has no train_curated.csv ({content}); expected one with the columns fname and labels; "
        "for a table with another name or in another place, pass its path instead of the folder: such as "
        "my_sounds/labels.csv; a folder of classes has a folder of sounds for each tag, and no table"
    )


_SPLIT_FOLDERS = frozenset({
    "train", "training", "valid", "val", "validation", "test", "train_curated", "train_noisy",
})


def _read_class_folder(root: Path) -> pd.DataFrame:
    table = read_class_folder(root)
    tags = unique_tags(table["labels"])
    if _SPLIT_FOLDERS.issuperset(tag.lower() for tag in tags):
        raise DataError(
            f"{root} has the folders {', '.join(tags)}, which are parts and no tags; expected a folder for each tag, "
            "or a table of files and tags"
        )
    return table.assign(exists=True)


def _without_parts(csv: Path, table: pd.DataFrame, columns: TableColumns) -> FATDataset:
    """Return a data set with a curated part alone."""
    table = table.assign(part="curated")
    missing = _missing_rows(table)
    _warn_missing(missing, csv)
    no_test = pd.DataFrame({"fname": pd.Series(dtype=str), "path": pd.Series(dtype=str)})
    if not table["exists"].any():
        raise DataError(
            f"none of the {len(table)} sound files in {csv}, such as {table['fname'].iloc[0]}, is in {csv.parent} or "
            "below"
        )
    return FATDataset(csv, _existing_rows(table), None, no_test, unique_tags(table["labels"]), None, missing, columns)


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


def _part_table(root: Path, part: str) -> pd.DataFrame | None:
    """Read the table of one training part with `path`, `part` and `exists`; return None if the part is absent."""
    table_path, folder = root / f"train_{part}.csv", root / f"train_{part}"
    if not table_path.is_file():
        if folder.is_dir() and part != "curated":
            warnings.warn(f"{folder} has no table {table_path.name} beside it, so its files are left out", stacklevel=4)
        return None
    if not folder.is_dir():
        if part == "curated":
            raise DataError(f"{table_path} exists, but not the folder {folder}; expected {folder}/<fname>")
        warnings.warn(
            f"{table_path} exists, but not the folder {folder.name}/ with its sound files, so this part is left out",
            stacklevel=4,
        )
        return None
    table = read_labels(table_path)
    if not len(table):
        raise DataError(f"{table_path} has a header but no rows; expected a file name and its labels in each")
    return _with_files(table, folder, part, table_path)


def _with_files(table: pd.DataFrame, folder: Path, part: str, table_path: Path) -> pd.DataFrame:
    """Add `path`, `part`, and `exists`: whether the file is in `folder`."""
    for fname in table["fname"]:
        is_absolute = PurePosixPath(fname).is_absolute() or PureWindowsPath(fname).drive
        if is_absolute or is_outside(fname):
            raise DataError(
                f"{table_path} names the file {fname!r}, which is outside {folder}; expected names of files in it"
            )
    # One listing instead of a check of every file: 25,000 of them take seconds on a network drive.
    listed = _files_in(folder)
    rest = table.drop(columns=[c for c in ("path", "part", "exists") if c in table.columns])
    return rest.assign(
        path=[str(folder / fname) for fname in table["fname"]], part=part,
        exists=[fname in listed or ("/" in fname and os.path.isfile(folder / fname)) for fname in table["fname"]],
    )


def _files_in(folder: Path) -> set[str]:
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        # For a link to itself entry.is_file raises an error and isfile returns False.
        return {
            entry.name for entry in entries if (os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file())
        }


def _read_sample(path: Path) -> pd.DataFrame:
    """Read a sample submission with file names in the first column and one column per tag."""
    table = read_table(path, ["fname"])
    if table.columns[0] != "fname":
        raise DataError(f"the first column of {path} is {table.columns[0]!r}; expected fname, then one column per tag")
    if len(table.columns) < 2:
        raise DataError(f"{path} has only the column fname; expected one more for each tag")
    repeated = table["fname"][table["fname"].duplicated()]
    if len(repeated):
        raise DataError(f"{path} has two rows of {repeated.iloc[0]}; expected every file once")
    return table


def _test_table(root: Path, submission: pd.DataFrame | None) -> pd.DataFrame:
    """List the test clips: rows of the sample submission, or else the sound files of `test/`, with broken links."""
    folder = root / "test"
    names: list[str] = []
    if not folder.is_dir():
        if submission is not None and len(submission):
            warnings.warn(
                f"{root} has a sample submission but no folder test/, so there is nothing to predict", stacklevel=4
            )
    elif submission is not None:
        names = list(submission["fname"])
    else:
        names = [file.name for file in find_sounds(folder, below=False)]
    table = pd.DataFrame({"fname": pd.Series(names, dtype=str)})
    return _with_files(table, folder, "test", root / "sample_submission.csv")


def _existing_rows(part: pd.DataFrame) -> pd.DataFrame:
    return part[part["exists"]].drop(columns="exists").reset_index(drop=True)


def _missing_rows(part: pd.DataFrame) -> pd.DataFrame:
    return part.loc[~part["exists"].astype(bool), ["part", "fname", "path"]]


def _warn_missing(missing: pd.DataFrame, root: Path) -> None:
    """Warn about rows without a file, by part."""
    if not len(missing):
        return
    parts = []
    for part, rows in missing.groupby("part", sort=False):
        names = ", ".join(rows["fname"][:5]) + (", ..." if len(rows) > 5 else "")
        parts.append(f"{len(rows)} {part} ({names})")
    warnings.warn(
        f"{root}: rows without a sound file: {'; '.join(parts)}; training rows are left out, test rows are predicted "
        "all the same",
        stacklevel=4,
    )


def _handle_corrupted_files(data: FATDataset, action: str) -> FATDataset:
    """Keep, drop, move or relabel the six corrupted curated files."""
    curated = data.curated
    is_corrupted = curated["fname"].isin(CORRUPTED_FILES)
    if action == "keep" or not is_corrupted.any():
        return _check_curated(data)
    if action == "relabel":
        return _check_curated(replace(data, curated=_relabel_corrupted_files(curated, data.tags)))
    rest = curated[~is_corrupted].reset_index(drop=True)
    if action == "drop":
        return _check_curated(replace(data, curated=rest))
    moved = curated[is_corrupted].assign(part="noisy")
    noisy = moved if data.noisy is None else pd.concat([data.noisy, moved])
    return _check_curated(replace(data, curated=rest, noisy=noisy.reset_index(drop=True)))


def _relabel_corrupted_files(curated: pd.DataFrame, tags: tuple[str, ...]) -> pd.DataFrame:
    relabeled = CORRUPTED_FILES_RELABELED
    labels = [[*relabeled[name]] if name in relabeled else None for name in CORRUPTED_FILES]
    corrections = pd.DataFrame({"fname": CORRUPTED_FILES, "labels": pd.Series(labels, dtype=object)})
    table = apply_corrections(curated, corrections)
    check_labels(table, tags, "the corrupted files with the 1st place's labels")
    return table


def _correct(data: FATDataset, path: str | Path) -> FATDataset:
    """Apply a file of corrected labels to both training parts."""
    corrections = read_corrections(path, tags=data.tags)
    curated = _apply_to_part(data.curated, list(data.curated["fname"]), corrections)
    known = [*data.curated["fname"], *data.missing["fname"], *CORRUPTED_FILES]
    noisy = data.noisy
    if noisy is not None:
        names = noisy_clip_names(data)
        noisy = _apply_to_part(noisy, names, corrections)
        known += names
        _warn_shared_names(corrections, data, path)
    # Either part may be named in front of any clip.
    named = corrections.assign(fname=[_without_part(name, known) for name in corrections["fname"]])
    warn_unused_corrections(named, known, path)
    return _check_curated(replace(data, curated=curated, noisy=noisy))


def noisy_clip_names(data: FATDataset) -> list[str]:
    """Return names of the noisy clips that no curated clip has: train_noisy/1.wav where both parts have a 1.wav."""
    assert data.noisy is not None
    curated = set(data.curated["fname"])
    return [f"train_noisy/{name}" if name in curated else name for name in data.noisy["fname"]]


def _without_part(name: str, known: Collection[str]) -> str:
    return name if name in known else name.removeprefix("train_curated/").removeprefix("train_noisy/")


def _apply_to_part(part: pd.DataFrame, names: Sequence[str], corrections: pd.DataFrame) -> pd.DataFrame:
    """Apply corrections to the clips of a part, which are called `names`, or by the folder and their name."""
    called = {f"train_{row}/{fname}": name for row, fname, name in zip(part["part"], part["fname"], names, strict=True)}
    fixes = corrections.assign(fname=[called.get(name, name) for name in corrections["fname"]])
    own = dict(zip(names, part["fname"], strict=True))
    corrected = apply_corrections(part.assign(fname=list(names)), fixes)
    return corrected.assign(fname=[own[name] for name in corrected["fname"]])


def _warn_shared_names(corrections: pd.DataFrame, data: FATDataset, path: str | Path) -> None:
    assert data.noisy is not None
    shared = set(data.curated["fname"]).intersection(data.noisy["fname"], corrections["fname"])
    if shared:
        first = min(shared)
        warnings.warn(
            f"{path}: {len(shared)} names, such as {first}, are in both parts; the corrections are of the curated "
            f"clips: write train_noisy/{first} for the noisy one",
            stacklevel=4,
        )


def _check_curated(data: FATDataset) -> FATDataset:
    if not len(data.curated):
        raise DataError(
            f"{data.path} has no curated clip left to train on: every row of train_curated.csv lacks its file "
            f"or was removed; expected sound files in {data.path / 'train_curated'}"
        )
    return data
