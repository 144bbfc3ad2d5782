"""Result of a run: its out-of-fold predictions with their scores, and the files and notes that follow from them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from fatai.data.datasets.fat2019 import FATDataset
from fatai.data.labels import multi_hot
from fatai.ensemble.ensemble import ensemble
from fatai.errors import FataiError, OptionError
from fatai.experiment.adapt import adapt_recipe
from fatai.experiment.background import readable_background
from fatai.experiment.calibrate import calibrate_new_run
from fatai.experiment.clip_tables import folded_table
from fatai.experiment.drift import store_reference
from fatai.experiment.false_alarms import measure_background
from fatai.experiment.fold import FoldResult
from fatai.experiment.frozen_baseline import frozen_baseline, run_curve
from fatai.experiment.recipe import Recipe
from fatai.inference.predictions import Predictions
from fatai.metrics.classification import main_metric, main_score
from fatai.training.cross_validation import CrossValResult, fit_folds

__all__ = ["RunResult", "RunSetup"]

Report: TypeAlias = Callable[[Path, FATDataset], Path]
"""Draws the report of a finished run folder and returns its path, as `fatai.report.html.run_report`."""

_OPTIMISTIC = (
    "this out-of-fold score is optimistic: each fold selected its epoch by the score of its own held-out clips; "
    'checkpoint = "last" or folds.select_on = "inner" avoids that'
)


_TEACHER_SAW = (
    "this out-of-fold score is optimistic: networks of the teacher were trained on the held-out clips, or selected by "
    'their scores; a teacher with the same folds (folds.splitter, n and seed) and checkpoint = "last" avoids that'
)


@dataclass(frozen=True, eq=False)
class RunSetup:
    """What a run trains.

    Attributes
    ----------
    out
        The run folder.
    data, recipe
        The data with the background that can be read, and the recipe, adapted to them.
    table, folds
        The curated clips that can be read, and the fold of each, shape (clips,).
    unreadable
        Names of the others.
    run_folds
        The folds to train, ascending.
    """

    out: Path
    data: FATDataset
    recipe: Recipe
    table: pd.DataFrame
    folds: np.ndarray
    unreadable: tuple[str, ...]
    run_folds: list[int]

    @classmethod
    def make(cls, data: FATDataset, recipe: Recipe, out: Path, run_folds: Sequence[int] | None = None) -> RunSetup:
        """Adapt a recipe to data and split the clips; `run_folds` of None are those of the recipe.

        Raises
        ------
        DataError
            If the data do not suffice for the folds.
        OptionError
            If a fold does not exist.
        """
        data = readable_background(data)
        recipe = adapt_recipe(recipe, data)
        table, unreadable, folds = folded_table(data, recipe)
        return cls(out, data, recipe, table, folds, unreadable, _chosen_folds(recipe, run_folds, folds))

    @property
    def held_out(self) -> list[list[str]]:
        """Names of the clips that each trained fold holds out."""
        return [list(self.table["fname"][self.folds == fold]) for fold in self.run_folds]


def _chosen_folds(recipe: Recipe, run_folds: Sequence[int] | None, folds: np.ndarray) -> list[int]:
    """Return the folds to train, ascending; raises `OptionError` if one does not exist, or there is none."""
    known = set(folds.tolist())
    given = recipe.folds.run_folds if run_folds is None else run_folds
    chosen = known if given is None else set(given)
    if not chosen or not chosen <= known:
        raise OptionError(f"the folds to train are {sorted(chosen)}; expected one or more of {sorted(known)}")
    return sorted(chosen)


@dataclass(frozen=True)
class RunResult:
    """Result of a run.

    Attributes
    ----------
    out
        The run folder.
    fold_scores, oof_score
        lwlrap of each fold's held-out clips by fold number, and over all of them; with one tag, for which lwlrap is
        always 1, the average precision.
    oof, test
        Out-of-fold predictions, and those of the test part averaged over the folds; None without a test part.
    unreadable
        Names of training clips that cannot be read.
    seconds
        Duration of this call; the manifest has that of all calls that ended.
    """

    out: Path
    fold_scores: dict[int, float]
    oof_score: float
    oof: Predictions
    test: Predictions | None
    unreadable: tuple[str, ...]
    seconds: float


def make_result(
    setup: RunSetup, results: Mapping[int, FoldResult], unreadable: tuple[str, ...], started: float,
    log: Callable[[str], None],
) -> RunResult:
    """Join the predictions of the trained folds and score them.

    Parameters
    ----------
    results
        Of each trained fold.
    unreadable
        Names of noisy clips that cannot be read.
    started
        When the run began, by `time.monotonic`.
    log
        Function for lines of progress.
    """
    oof, scores = _out_of_fold(setup, results, log)
    tests = [fold.test for fold in results.values() if fold.test is not None]
    test = ensemble(tests, how=setup.recipe.tta.fold_average) if tests else None
    seconds = time.monotonic() - started
    return RunResult(setup.out, scores.folds, scores.oof, oof, test, setup.unreadable + unreadable, seconds)


def evaluate_run(
    setup: RunSetup, result: RunResult, *, is_honest: bool, baseline: bool, log: Callable[[str], None]
) -> dict[str, Any]:
    """Write the predictions, calibration, false alarms and reference of a trained run; return notes for its manifest.

    Parameters
    ----------
    is_honest
        False if a teacher was trained on held-out clips.
    baseline
        As in `fatai.experiment.run.run_recipe`.
    """
    out, data, recipe = setup.out, setup.data, setup.recipe
    _write_predictions(result, data, log)
    if recipe.selects_on_held_out:
        log(_OPTIMISTIC)
    if not is_honest:
        log(_TEACHER_SAW)
    calibrated = calibrate_new_run(out, data.curated[["fname", "labels"]], log)
    measure_background(out, data, recipe.folds.n, log)
    store_reference(out, setup.table[np.isin(setup.folds, setup.run_folds)])
    is_whole = setup.run_folds == sorted(set(setup.folds.tolist()))
    frozen = _frozen_results(setup, log, baseline=baseline) if is_whole else {}
    optimistic = {"selects_on_held_out": recipe.selects_on_held_out, "teacher_saw_held_out": not is_honest}
    return {**calibrated, **optimistic, **frozen}


@dataclass(frozen=True)
class _Scores:
    folds: dict[int, float]
    oof: float


def _out_of_fold(
    setup: RunSetup, results: Mapping[int, FoldResult], log: Callable[[str], None]
) -> tuple[Predictions, _Scores]:
    """Join the held-out predictions of the trained folds in the table's order, and score them."""
    data, table, folds = setup.data, setup.table, setup.folds
    targ = multi_hot(table["labels"], data.tags)

    def held_out(fold: int, fold_table: pd.DataFrame) -> np.ndarray:
        oof = results[fold].oof
        assert oof is not None
        log(f"fold {fold}: {_metric_name(data)} {main_score(oof.probs, targ[folds == fold]):.4f}")
        return oof.probs

    joined: CrossValResult = fit_folds(
        table, folds, len(data.tags), held_out, lambda probs, rows: main_score(probs, targ[rows]),
        run_folds=list(results),
    )
    trained = ~np.isnan(joined.oof).any(axis=1)
    parts = [part for result in results.values() if (part := result.oof) is not None]
    unreadable, silent = (tuple(n for part in parts for n in getattr(part, f)) for f in ("unreadable", "silent"))
    oof = Predictions(tuple(table["fname"][trained]), data.tags, joined.oof[trained], unreadable, silent=silent)
    return oof, _Scores(joined.scores, main_score(oof.probs, targ[trained]))


def _metric_name(data: FATDataset) -> str:
    return "lwlrap" if main_metric(len(data.tags)) == "lwlrap" else "average precision"


def _write_predictions(result: RunResult, data: FATDataset, log: Callable[[str], None]) -> None:
    """Write oof.csv, and test.csv and submission.csv where there is a test part."""
    out, test = result.out, result.test
    result.oof.to_csv(out / "oof.csv")
    log(f"out of fold: {_metric_name(data)} {result.oof_score:.4f} over {len(result.oof)} clips")
    if test is None:
        return
    test.to_csv(out / "test.csv")
    if data.sample is not None:
        test.to_submission(out / "submission.csv", sample=data.sample)
        log(f"submission: {out / 'submission.csv'}, {len(test)} clips, fits {data.sample.name}")


def _frozen_results(setup: RunSetup, log: Callable[[str], None], *, baseline: bool) -> dict[str, Any]:
    """Return notes on what a frozen network gives: its curve over clips per tag, and beside `default` its score."""
    recipe, table, folds, tags = setup.recipe, setup.table, setup.folds, setup.data.tags
    curve = run_curve(setup.out, recipe, table, folds, tags)
    if curve:
        return {"clips_per_tag": curve}
    if not baseline or recipe.decided is None or recipe.model.options.get("pretrained"):
        return {}
    try:
        found = frozen_baseline(table, folds, tags)
    except FataiError as e:
        warnings.warn(f"no frozen network was scored beside this run: {e}", stacklevel=3)
        return {}
    if found is None:
        return {}
    log(str(found))
    notes = {"frozen_baseline": {"text": str(found), "weights": found.weights, found.metric: found.score}}
    return {**notes, **({"clips_per_tag": found.curve} if found.curve else {})}


def manifest_results(result: RunResult, earlier_s: float) -> dict[str, Any]:
    """Return scores, unreadable clips and the duration for the manifest; calls before took `earlier_s` seconds."""
    scores = {"folds": {str(k): v for k, v in result.fold_scores.items()}, "oof": result.oof_score}
    return {
        "seconds": round(earlier_s + result.seconds, 1),
        main_metric(len(result.oof.tags)): scores,
        "unreadable": {"train": list(result.unreadable), "test": list(result.test.unreadable) if result.test else []},
    }


def draw_report(report: Report | None, out: Path, data: FATDataset, log: Callable[[str], None]) -> None:
    """Draw the report of a finished run folder; an error in it becomes a warning, and the run stays finished."""
    if report is None:
        return
    try:
        log(f"report: {report(out, data)}")
    except Exception as e:
        warnings.warn(
            f"{out} is finished, but its report could not be drawn ({type(e).__name__}: {e}); try again with "
            f"fatai-submit report {out}",
            stacklevel=3,
        )
