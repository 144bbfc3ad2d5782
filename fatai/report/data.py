"""Load the data of a report from a run folder.

The folder may come from anywhere and may lack any file: what cannot be read is left out with a warning, and its section
of the report is replaced by a sentence.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fatai.data.datasets.fat2019 import FATDataset, load_dataset
from fatai.data.table_columns import TableColumns
from fatai.ensemble.members import read_folds
from fatai.errors import CheckpointError, FataiError
from fatai.experiment.manifest import columns_of, read_manifest
from fatai.experiment.recipe import Recipe, load_recipe
from fatai.experiment.run_folder import trained_model
from fatai.export.pretrained import Pretrained
from fatai.inference.ground_truth import read_truth
from fatai.inference.predictions import Predictions
from fatai.io.csv import read_csv
from fatai.io.json import read_text_limited
from fatai.metrics.calibration import CALIBRATION, Calibration

__all__ = ["ReportData", "SectionUnavailable", "load_histories", "load_report_data"]

_RUN_FILES = ("recipe.toml", "oof.csv", "folds.csv")
_SHOWN_TEXTS = {"recipe.toml": "Recipe", "manifest.json": "Manifest", "blend.txt": "Ensemble"}
_MAX_EPOCHS = 100_000
_MAX_TEXT = 100_000


class SectionUnavailable(Exception):  # noqa: N818 - it ends a section, and is no error of the report
    """Raised where a section of the report cannot be made; its message is the sentence shown instead."""


@dataclass(frozen=True)
class ReportData:
    """The data of a report; None or an empty value means that it is not available.

    Attributes
    ----------
    name, kind
        Name of the run or learner, and "run", "ensemble" or "learner".
    tags
        Names of the tags, in the order of all columns.
    predictions
        Out-of-fold predictions: each clip is predicted by a model that was not trained on it.
    truth
        For each clip name the tags as bool, shape (tags,).
    folds
        For each clip name the fold that it is validated in.
    paths
        For each of these clip names its sound file.
    parts
        Sound files of each part of the data.
    broken
        One sentence for each file that is unreadable or missing.
    histories
        For each fold a table of its epochs, with the column `stage`.
    network
        Function that returns the trained network of a fold; raises `FataiError` if there is none.
    calibration
        Calibration of the run.
    recipe, manifest
        Recipe and manifest of the run.
    notes
        Texts that are shown as they are, by title.
    members
        Names of the runs of an ensemble.
    background
        False alarms of each tag: columns tag, threshold, events, hours and per_hour; None for a run without background.
    """

    name: str
    kind: str
    tags: tuple[str, ...] = ()
    predictions: Predictions | None = None
    truth: Mapping[str, np.ndarray] = field(default_factory=dict)
    folds: Mapping[str, int] = field(default_factory=dict)
    paths: Mapping[str, Path] = field(default_factory=dict)
    parts: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    broken: tuple[str, ...] = ()
    histories: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    network: Callable[[int], Pretrained] | None = None
    calibration: Calibration | None = None
    recipe: Recipe | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    members: tuple[str, ...] = ()
    background: pd.DataFrame | None = None

    def scored(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Return the clips that have both predictions and a truth.

        Returns
        -------
        Names of the clips; their probabilities, shape (clips, tags); their tags as bool, shape (clips, tags).

        Raises
        ------
        SectionUnavailable
            If there is no such clip, or none has a tag.
        """
        if self.predictions is None:
            raise SectionUnavailable("There are no predictions of held-out clips (oof.csv), so nothing can be scored.")
        fnames = [name for name in self.predictions.fnames if name in self.truth]
        if not fnames:
            raise SectionUnavailable(
                "The labels of the held-out clips are not available, so nothing can be scored: give the data with "
                "--data."
            )
        targ = np.array([self.truth[name] for name in fnames], dtype=bool)
        if not targ.any():
            raise SectionUnavailable("None of the held-out clips has a tag, so nothing can be scored.")
        return fnames, self.predictions.select(fnames).probs, targ


def load_report_data(run: str | Path, data: str | Path | FATDataset | None = None) -> ReportData:
    """Load the data of a report from the folder of a run or of an ensemble of runs.

    Parameters
    ----------
    run
        The folder.
    data
        The data that the run was trained on: gives the sounds and, for runs whose folds.csv lacks them, the labels.

    Raises
    ------
    CheckpointError
        If the folder holds neither a run nor an ensemble of runs.
    DataError
        If `data` cannot be read.
    """
    run = Path(run)
    if not any((run / name).is_file() for name in _RUN_FILES):
        raise CheckpointError(
            f"{run} is no run; expected a folder with {', '.join(_RUN_FILES)}, as fatai-submit run writes it"
        )
    is_run = (run / "recipe.toml").is_file()
    members = () if is_run else tuple(sorted(path.parent.name for path in run.glob("*/recipe.toml")))
    manifest = _load_or_none(read_manifest, run) or {}
    recipe = _load_or_none(load_recipe, run / "recipe.toml") if is_run else None
    predictions = _load_if_exists(Predictions.from_csv, run / "oof.csv")
    tags = predictions.tags if predictions is not None else _manifest_tags(manifest)
    dataset = None if data is None else _load_dataset(data, recipe, columns_of(manifest))
    folds_csv = run / (members[0] if members else ".") / "folds.csv"
    return ReportData(
        name=run.resolve().name,
        kind="ensemble" if members else "run",
        tags=tags,
        predictions=predictions,
        truth=_load_truth(folds_csv, dataset, tags),
        folds=_load_if_exists(read_folds, folds_csv) or {},
        paths={} if dataset is None else _curated_paths(dataset),
        parts={} if dataset is None else _paths_of_parts(dataset),
        broken=_broken_files(manifest, dataset),
        histories=load_histories(run),
        network=None if members or recipe is None else partial(_load_network, run),
        calibration=_load_if_exists(Calibration.from_json, run / CALIBRATION),
        recipe=recipe,
        manifest=manifest,
        notes=_load_texts(run),
        members=members,
        background=_load_background(run / "background.csv"),
    )


def _load_network(run: Path, fold: int) -> Pretrained:
    try:
        return trained_model(run, fold)
    except (OSError, RuntimeError) as e:
        # From other libraries, such as a backbone whose weights can no longer be downloaded.
        raise CheckpointError(f"the network of fold {fold} of {run} cannot be built: {e}") from e


def _load_or_none(load: Callable[[Any], Any], path: Path) -> Any:
    """Load a file of the run; warn and return None if it is damaged."""
    try:
        return load(path)
    except FataiError as e:
        warnings.warn(f"the report is made without {path.name}: {e}", stacklevel=3)
        return None


def _load_if_exists(load: Callable[[Any], Any], path: Path) -> Any:
    return _load_or_none(load, path) if path.is_file() else None


def _manifest_tags(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    tags = manifest.get("tags")
    return tuple(map(str, tags)) if isinstance(tags, list) else ()


def _load_dataset(data: str | Path | FATDataset, recipe: Recipe | None, columns: TableColumns) -> FATDataset:
    if isinstance(data, FATDataset):
        return data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the report lists what is missing
        corrupted_files = recipe.clips.corrupted_files if recipe is not None else "keep"
        return load_dataset(data, corrupted_files=corrupted_files, columns=columns)


def _load_truth(folds_csv: Path, dataset: FATDataset | None, tags: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Load the labels that the run was trained with, which corrections may have changed; else those of the data."""
    try:
        if folds_csv.is_file() and "labels" in read_csv(folds_csv).columns:
            # Two columns only: the column fold is no tag.
            table = pd.read_csv(folds_csv, dtype=str, keep_default_na=False)
            return read_truth(table[["fname", "labels"]], tags)
        return {} if dataset is None else read_truth(dataset.curated[["fname", "labels"]], tags)
    except (FataiError, KeyError, ValueError) as e:
        warnings.warn(f"the report is made without scores: {e}", stacklevel=3)
        return {}


def _curated_paths(dataset: FATDataset) -> dict[str, Path]:
    return dict(zip(dataset.curated["fname"], map(Path, dataset.curated["path"]), strict=True))


def _paths_of_parts(dataset: FATDataset) -> dict[str, list[Path]]:
    tables = {"curated": dataset.curated, "noisy": dataset.noisy, "test": dataset.test}
    return {
        name: [Path(p) for p in table["path"]] for name, table in tables.items() if table is not None and len(table)
    }


def _broken_files(manifest: Mapping[str, Any], dataset: FATDataset | None) -> tuple[str, ...]:
    unreadable = manifest.get("unreadable")
    sentences = []
    for part, names in (unreadable.items() if isinstance(unreadable, dict) else ()):
        sentences += [f"{name} ({part}): cannot be read" for name in (names if isinstance(names, list) else ())]
    if dataset is not None:
        sentences += [f"{row.fname} ({row.part}): the file is missing" for row in dataset.missing.itertuples()]
    return tuple(sentences)


def load_histories(run: Path) -> dict[str, pd.DataFrame]:
    """Load the epochs of each fold that has any, by the name of its folder: numbers, and the column `stage`."""
    tables = {path.parent.name: _load_history(path) for path in sorted(run.glob("fold_*/history.csv"))}
    return {name: table for name, table in tables.items() if table is not None}


def _load_history(path: Path) -> pd.DataFrame | None:
    """Load the epochs of a fold: numbers, and the column `stage`; None if the file has no epoch."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, nrows=_MAX_EPOCHS)
    except (OSError, ValueError):
        return None
    if not {"stage", "epoch"} <= set(table.columns) or not len(table):
        return None
    numbers = table.drop(columns="stage").apply(pd.to_numeric, errors="coerce")
    return numbers.assign(stage=table["stage"])


def _load_background(path: Path) -> pd.DataFrame | None:
    """Load the false alarms of a run; None if the file is absent or damaged."""
    numbers = ["threshold", "events", "hours", "per_hour"]
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, nrows=_MAX_EPOCHS)
        return table[["tag", *numbers]].assign(**{name: pd.to_numeric(table[name]) for name in numbers})
    except (OSError, ValueError, KeyError):
        return None


def _load_texts(run: Path) -> dict[str, str]:
    """Load the files that the report shows as they are, by title."""
    texts = {}
    for name, title in _SHOWN_TEXTS.items():
        try:
            texts[title] = read_text_limited(run / name)[:_MAX_TEXT]
        except (OSError, ValueError):
            continue
    return texts
