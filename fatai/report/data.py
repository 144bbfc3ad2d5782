"""What a report is drawn from, gathered from a run folder, which may come from a stranger and may lack anything."""

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
from fatai.errors import CheckpointError, FataiError
from fatai.io.csv import read_csv
from fatai.ensemble.members import read_folds
from fatai.inference.predictions import Predictions
from fatai.export.pretrained import Pretrained
from fatai.inference.ground_truth import read_truth
from fatai.experiment.run_folder import trained_model
from fatai.experiment.manifest import read_manifest
from fatai.experiment.recipe import Recipe, load_recipe
from fatai.metrics.calibration import CALIBRATION, Calibration
from fatai.io.json import read_text_limited

__all__ = ["ReportData", "SectionUnavailable", "material_of_run"]


class SectionUnavailable(Exception):
    """A part of the report that cannot be drawn; its message is the sentence that takes its place."""


@dataclass(frozen=True)
class ReportData:
    """What a report is drawn from; what is None or empty is not at hand.

    Attributes
    ----------
    name, kind
        Of what is reported, and what it is: "run", "ensemble" or "learner".
    predictions
        Of clips that their model was not trained on.
    truth
        Tags of each clip by its name, (tags,) bool, in the order of the predictions' tags.
    folds
        The fold that holds each clip out, by its name.
    paths
        Sound file of each of these clips, by its name.
    parts
        Sound files of each part of the data, for the audit.
    broken
        A sentence for each file that could not be read or is not there.
    histories
        What each fold noted of its epochs, by the fold's name.
    network
        The trained network of a fold; raises `FataiError` if there is none.
    calibration
        That of the run.
    recipe, manifest, notes
        What made the run, and further texts with their titles.
    members
        Runs of an ensemble.
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

    def judged(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Names of the clips with both predictions and truth, their probabilities and their tags, both (clips, tags).

        Raises `SectionUnavailable` if there is no such clip, or none has a tag.
        """
        if self.predictions is None:
            raise SectionUnavailable("There are no predictions of held-out clips (oof.csv), so nothing can be scored.")
        fnames = [name for name in self.predictions.fnames if name in self.truth]
        if not fnames:
            raise SectionUnavailable(
                "The labels of the held-out clips are not at hand, so nothing can be scored: give the data with --data."
            )
        targ = np.array([self.truth[name] for name in fnames], dtype=bool)
        if not targ.any():
            raise SectionUnavailable("None of the held-out clips has a tag, so nothing can be scored.")
        return fnames, self.predictions.select(fnames).probs, targ


def material_of_run(run: str | Path, data: str | Path | FATDataset | None = None) -> ReportData:
    """Gather what a run folder, or the folder of an ensemble of runs, holds.

    Parameters
    ----------
    data
        The data that the run was made with: gives the sounds and, for runs whose folds.csv lacks them, the labels.

    Raises
    ------
    CheckpointError
        If the folder holds neither a run nor an ensemble of runs.
    DataError
        If `data` cannot be read.
    """
    run = Path(run)
    members = () if (run / "recipe.toml").is_file() else tuple(sorted(p.parent.name for p in run.glob("*/recipe.toml")))
    known = ("recipe.toml", "oof.csv", "folds.csv")
    if not any((run / name).is_file() for name in known):
        raise CheckpointError(
            f"{run} is no run; expected a folder with {', '.join(known)}, as fatai-submit run makes them"
        )
    manifest = _or_none(read_manifest, run) or {}
    recipe = _or_none(load_recipe, run / "recipe.toml") if (run / "recipe.toml").is_file() else None
    predictions = _or_none(Predictions.from_csv, run / "oof.csv") if (run / "oof.csv").is_file() else None
    tags = predictions.tags if predictions is not None else _tags(manifest)
    layout = None if data is None else _layout(data, recipe)
    noted = run / (members[0] if members else ".") / "folds.csv"
    return ReportData(
        name=run.resolve().name,
        kind="ensemble" if members else "run",
        tags=tags,
        predictions=predictions,
        truth=_truth(noted, layout, tags),
        folds=_or_none(read_folds, noted) or {} if noted.is_file() else {},
        paths={} if layout is None else dict(zip(layout.curated["fname"], map(Path, layout.curated["path"]))),
        parts={} if layout is None else _parts(layout),
        broken=_broken(manifest, layout),
        histories={
            path.parent.name: table
            for path in sorted(run.glob("fold_*/history.csv"))
            if (table := _history(path)) is not None
        },
        network=None if members or recipe is None else partial(_network, run),
        calibration=_or_none(Calibration.from_json, run / CALIBRATION) if (run / CALIBRATION).is_file() else None,
        recipe=recipe,
        manifest=manifest,
        notes=_notes(run),
        members=members,
    )


def _network(run: Path, fold: int) -> Pretrained:
    try:
        return trained_model(run, fold)
    except (OSError, RuntimeError) as e:
        # Of other libraries: a backbone's own weights, say, that cannot be fetched any more.
        raise CheckpointError(f"the network of fold {fold} of {run} cannot be built: {e}") from e


def _or_none(read: Callable[[Any], Any], path: Path) -> Any:
    """What a file of the run holds; None if it is damaged, after a warning."""
    try:
        return read(path)
    except FataiError as e:
        warnings.warn(f"the report goes without {path.name}: {e}", stacklevel=3)
        return None


def _tags(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    tags = manifest.get("tags")
    return tuple(map(str, tags)) if isinstance(tags, list) else ()


def _layout(data: str | Path | FATDataset, recipe: Recipe | None) -> FATDataset:
    if isinstance(data, FATDataset):
        return data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the report says what is missing
        return load_dataset(data, corrupted=recipe.clips.corrupted_files if recipe is not None else "keep")


def _truth(noted: Path, layout: FATDataset | None, tags: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Labels as the run trained with them, which corrections may have changed; else those of the data."""
    try:
        if noted.is_file() and "labels" in read_csv(noted).columns:
            # Not as a whole: its column fold is no tag.
            table = pd.read_csv(noted, dtype=str, keep_default_na=False)
            return read_truth(table[["fname", "labels"]], tags)
        return {} if layout is None else read_truth(layout.curated[["fname", "labels"]], tags)
    except (FataiError, KeyError, ValueError) as e:
        warnings.warn(f"the report goes without scores: {e}", stacklevel=3)
        return {}


def _parts(layout: FATDataset) -> dict[str, list[Path]]:
    tables = {"curated": layout.curated, "noisy": layout.noisy, "test": layout.test}
    return {
        name: [Path(p) for p in table["path"]] for name, table in tables.items() if table is not None and len(table)
    }


def _broken(manifest: Mapping[str, Any], layout: FATDataset | None) -> tuple[str, ...]:
    unreadable = manifest.get("unreadable")
    told = []
    for part, names in (unreadable.items() if isinstance(unreadable, dict) else ()):
        told += [f"{name} ({part}): cannot be read" for name in (names if isinstance(names, list) else ())]
    if layout is not None:
        told += [f"{row.fname} ({row.part}): the file is missing" for row in layout.missing.itertuples()]
    return tuple(told)


def _history(path: Path) -> pd.DataFrame | None:
    """Numbers of the epochs of a fold, with their stage; None of a file that holds none."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, nrows=100_000)
    except (OSError, ValueError):
        return None
    if not {"stage", "epoch"} <= set(table.columns) or not len(table):
        return None
    numbers = table.drop(columns="stage").apply(pd.to_numeric, errors="coerce")
    return numbers.assign(stage=table["stage"])


def _notes(run: Path) -> dict[str, str]:
    """Texts of the run that are shown as they are."""
    titles = {"recipe.toml": "Recipe", "manifest.json": "Manifest", "blend.txt": "Averager"}
    notes = {}
    for name, title in titles.items():
        try:
            notes[title] = read_text_limited(run / name)[:100_000]
        except (OSError, ValueError):
            continue
    return notes
