"""The clips that a run trains on: readable curated ones in folds, and noisy ones or others without labels."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fatai.audio.folders import find_sounds
from fatai.audio.segments import file_of
from fatai.data.clip_names import unique_names
from fatai.data.copies import sound_groups, warn_about_copies
from fatai.data.datasets.fat2019 import FATDataset
from fatai.data.folds import ALWAYS_TRAINING, make_folds
from fatai.data.labels import multi_hot
from fatai.data.segments import has_segments
from fatai.data.tables import check_readable, is_sound_table
from fatai.errors import DataError
from fatai.experiment.recipe import Recipe

__all__ = ["folded_table", "noisy_table", "readable_rows"]


def folded_table(data: FATDataset, recipe: Recipe) -> tuple[pd.DataFrame, tuple[str, ...], np.ndarray]:
    """Split the readable curated clips into folds.

    Returns
    -------
    The table of readable curated clips, with a column `sound` if the recipe groups by it; the names of unreadable
    ones; the fold of each readable clip, int64, shape (clips,).

    Raises
    ------
    DataError
        If there are fewer clips than folds, or the column of groups is absent, incomplete or has another number of
        folds.
    """
    table, unreadable = readable_rows(data.curated)
    config = recipe.folds
    if len(table) < config.n:
        raise DataError(
            f"{data.path} has {len(table)} readable curated clips; expected at least one for each of {config.n} folds"
        )
    if config.splitter == "group" and config.group_col == "sound" and "sound" not in table.columns:
        table = table.assign(sound=sound_groups(table["path"].tolist()))
    splitter = config.splitter
    groups = None if config.group_col is None else _groups(table, config.group_col, data.path)
    if splitter not in ("group", "predefined") and has_segments(table["path"]):
        warnings.warn(
            f"{data.path.name} has several segments of a file, which stay in one fold: the splitter is 'group' by "
            f"file, not {splitter!r}",
            stacklevel=2,
        )
        splitter, groups = "group", [file_of(path) for path in table["path"]]
    targ = multi_hot(table["labels"], data.tags)
    folds = make_folds(
        targ, splitter=splitter, n=config.n, seed=config.seed, groups=groups, tags=data.tags
    )
    n_found = int(folds.max()) + 1
    if n_found != config.n:
        raise DataError(
            f"the column {config.group_col} of {data.path.name} has {n_found} folds, but the recipe {recipe.name} has "
            f"folds.n = {config.n}; give --folds {n_found}"
        )
    _warn_about_copies(data, recipe, table, folds)
    return table, unreadable, folds


def _warn_about_copies(data: FATDataset, recipe: Recipe, table: pd.DataFrame, folds: np.ndarray) -> None:
    """Warn about sounds that a fold holds out and trains on, among curated and noisy clips."""
    if data.noisy is not None and any(stage.noisy_labels is not None for stage in recipe.stages):
        table = pd.concat([table[["fname", "path"]], data.noisy[["fname", "path"]]], ignore_index=True)
        folds = np.concatenate([folds, np.full(len(table) - len(folds), ALWAYS_TRAINING)])
    paths = [str(path) for path in table["path"]]
    warn_about_copies(folds, unique_names(table["fname"].tolist(), paths), paths)


def _groups(table: pd.DataFrame, column: str, path: Path) -> list[Any]:
    """Return the values of the column with the groups or folds of the clips."""
    file = path if is_sound_table(path) else path / "train_curated.csv"
    if column not in table.columns:
        raise DataError(
            f"{file} has no column {column!r}, which the recipe names as folds.group_col; it has "
            f"{', '.join(str(name) for name in table.columns)}"
        )
    empty = table["fname"][table[column].isna()]
    if len(empty):
        raise DataError(
            f"{file}: the column {column} is empty for {empty.iloc[0]} ({len(empty)} such clips); fill it in"
        )
    return list(table[column])


def noisy_table(data: FATDataset, recipe: Recipe) -> tuple[pd.DataFrame | None, tuple[str, ...]]:
    """Return the table of readable noisy clips, None if the recipe uses none, and the names of unreadable ones.

    Raises
    ------
    DataError
        If the recipe uses noisy clips and there are none.
    """
    folder = next((stage.teacher_clips for stage in recipe.stages if stage.teacher_clips not in (None, "noisy")), None)
    if folder is not None:
        return readable_rows(_unlabelled_table(folder, data))
    if all(stage.noisy_labels is None and stage.teacher_clips is None for stage in recipe.stages):
        return None, ()
    if data.noisy is None:
        raise DataError(
            f"the recipe {recipe.name} trains on noisy clips, but {data.path} has none: expected train_noisy.csv"
        )
    return readable_rows(data.noisy)


def _unlabelled_table(folder: str, data: FATDataset) -> pd.DataFrame:
    """Return the sounds of a folder with unique names and without labels; clips of the data set are left out."""
    parts = [part for part in (data.curated, data.test) if part is not None and len(part)]
    known = {Path(path).resolve() for part in parts for path in map(file_of, part["path"])}
    paths = [str(path) for path in find_sounds(folder) if path.resolve() not in known]
    if not paths:
        raise DataError(f"teacher_clips: {folder} has no sounds besides those of the data set")
    names = [str(name) for name in unique_names([Path(path).name for path in paths], paths)]
    return pd.DataFrame({"fname": names, "path": paths, "labels": pd.Series([[] for _ in paths], dtype=object)})


def readable_rows(table: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return the rows of a table whose files can be read, and the names of the others, with a warning."""
    readable, faults = check_readable([Path(p) for p in table["path"]])
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults)
        warnings.warn(f"{len(faults)} training files cannot be read and are left out:\n{listed}", stacklevel=4)
    return table[readable].reset_index(drop=True), tuple(table["fname"][~readable])
