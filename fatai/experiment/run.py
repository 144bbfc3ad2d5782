"""Run a recipe on a data set: train the folds, predict, and write a run folder with a checked submission."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from fastai.callback.core import Callback
from fastcore.meta import delegates

from fatai.data.datasets.fat2019 import FATDataset, load_dataset
from fatai.data.labels import multi_hot
from fatai.distributed import init
from fatai.ensemble.ensemble import ensemble
from fatai.errors import CheckpointError, DataError, FataiError, OptionError
from fatai.experiment.adapt import adapt_recipe, decision_lines
from fatai.experiment.background import readable_background
from fatai.experiment.build import pin_architecture, recipe_parameters
from fatai.experiment.calibrate import calibrate_new_run
from fatai.experiment.clip_tables import folded_table, noisy_table, readable_rows
from fatai.experiment.distill import check_teachers
from fatai.experiment.drift import store_reference
from fatai.experiment.false_alarms import measure_background
from fatai.experiment.fold import FoldContext, FoldResult, fold_learner
from fatai.experiment.frozen_baseline import frozen_baseline, run_curve
from fatai.experiment.launch import split_work
from fatai.experiment.live_history import History, UpdateHistory, draw_history
from fatai.experiment.manifest import data_digest, read_manifest, times_digest, write_folds, write_manifest
from fatai.experiment.noisy_decision import (
    NoisyDecision,
    check_decided_folds,
    decide_on_noisy,
    noisy_notes,
    replace_folds,
)
from fatai.experiment.recipe import Recipe, load_recipe
from fatai.experiment.self_training import SelfTrainingRounds
from fatai.experiment.stage import curated_only, prepare_stage
from fatai.experiment.tracking import StageCallbacks, stage_trackers
from fatai.inference.learner import FatLearner
from fatai.inference.predictions import Predictions
from fatai.io.atomic import translate_os_errors, write_text
from fatai.io.lock import lock_output
from fatai.metrics.classification import main_metric, main_score
from fatai.models.weights import find_published, locate_weights
from fatai.threads import network_threads
from fatai.training.cross_validation import CrossValResult, fit_folds

__all__ = ["RunResult", "preview_learner", "recipe_learner", "run_recipe"]

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
        Duration.
    """

    out: Path
    fold_scores: dict[int, float]
    oof_score: float
    oof: Predictions
    test: Predictions | None
    unreadable: tuple[str, ...]
    seconds: float


def run_recipe(
    data: str | Path | FATDataset,
    recipe: str | Path | Recipe,
    out: str | Path,
    *,
    run_folds: Sequence[int] | None = None,
    predict_test: bool = True,
    resume: bool = False,
    corrections: str | Path | None = None,
    num_workers: int | None = None,
    cache_dir: str | Path | None = None,
    command: str = "",
    log: Callable[[str], None] = print,
    report: Report | None = None,
    history: History | None = None,
    tracker: str | None = None,
    baseline: bool = True,
) -> RunResult:
    """Train the folds of a recipe and write a run folder.

    A killed run continues after its last finished epoch with `resume`; on the same machine it ends with the same bytes
    as an unbroken one.

    Several processes started by torchrun, on one machine or on several that share `out`, work together: each trains
    folds of its own if there are at least as many as processes, otherwise all share every batch. Rank 0 writes the
    files that belong to no fold.

    Parameters
    ----------
    data
        A folder in the competition's layout, a table of sounds, or the result of `load_dataset`.
    recipe
        A recipe, its name, or a path that ends in .toml.
    out
        The run folder; without `resume` it must be empty or absent.
    run_folds
        Folds to train, counted from 0; None trains those of the recipe.
    predict_test
        Whether to predict the test part, if there is one, and write the submission.
    resume
        Continue the run in `out`, if there is one; it must have the same recipe and data.
    corrections
        A CSV of label corrections (`fname`, and `labels` or "remove") for the curated and the noisy part. They are
        applied when `data` is a path; for a loaded data set, which has them applied, the path is only noted.
    num_workers
        Processes that load sound; None chooses by the machine.
    cache_dir
        Folder of the cache for a recipe with `clips.cache`; None is the user's cache folder.
    command
        The command line that the user typed, for the manifest.
    log
        Function for lines of progress.
    report
        Draws the report of the finished run, such as `fatai.report.html.run_report`; None draws none. An error in it
        becomes a warning.
    history
        Draws the page of the run while it trains, such as `fatai.report.history.run_history`, at its begin, after
        epochs and at its end; None draws none. An error in it becomes a warning.
    tracker
        "tensorboard", "wandb" or "mlflow", which every fit is logged to as well; see `stage_trackers`.
    baseline
        Whether a recipe that decides by the data, as `default` does, also scores a frozen pretrained network on the
        same folds; only where its weights are on this machine.

    Returns
    -------
    Scores and predictions; every process gets the same.

    Raises
    ------
    DataError, RecipeError, LabelError
        If the data or the recipe are not valid.
    CheckpointError
        If `out` holds a run of another recipe or of other data; the message lists the differences. If published weights
        that the recipe names are not on this machine and cannot be downloaded.
    StorageError
        If another command is writing `out`.
    OptionError, MissingDependencyError
        If there is no such tracker, or its package is not installed.
    """
    trackers = None if tracker is None else stage_trackers(tracker, out)
    started, group = time.monotonic(), init()
    main_log = log if group.is_main else _silent
    recipe = pin_architecture(recipe if isinstance(recipe, Recipe) else load_recipe(recipe))
    if group.is_main and not resume:
        _get_weights(recipe)
    data, out = _dataset(data, recipe, corrections), Path(out)
    data = readable_background(data)
    recipe = adapt_recipe(recipe, data)
    table, unreadable, folds = folded_table(data, recipe)
    digest = data_digest(data)
    run_options = {
        "run_folds": None if run_folds is None else sorted(set(run_folds)), "predict_test": predict_test,
        "num_workers": num_workers, "nproc": group.world_size,
        "corrections": None if corrections is None else str(corrections),
    }
    note = partial(write_manifest, out, data, recipe, digest, command, run_options)
    # Around the manifest, which notes the number of threads.
    n_parameters = recipe_parameters(recipe, len(data.tags))
    with network_threads(n_parameters), lock_output(out) if group.is_main else nullcontext():
        if group.is_main and not (resume and _can_resume(out, recipe, data, digest)):
            _create_folder(out, recipe, table, folds)
            note()  # the last of the three: a folder with a manifest has recipe.toml and folds.csv
        main_log(f"{recipe.name}: {len(table)} clips, {len(data.tags)} tags, {recipe.folds.n} folds")
        for line in _advice_on_weights(recipe):
            main_log(line)
        for line in decision_lines(recipe):
            main_log(f"  {line}")
        noisy, unreadable_noisy = noisy_table(data, recipe)
        if group.is_main:
            replace_folds(out)
        chosen = _chosen_folds(recipe, run_folds, folds)
        check_decided_folds(out, chosen)
        is_honest = check_teachers(recipe.stages, [list(table["fname"][folds == fold]) for fold in chosen])
        work = split_work(group, len(chosen), log)
        context = FoldContext(
            data, recipe, out, digest, noisy=noisy, predict_test=predict_test, num_workers=num_workers,
            cache_dir=cache_dir, log=work.log, group=work.batch_group,
            stage_cbs=partial(_stage_callbacks, out, trackers, history),
        )
        if group.is_main and history is not None:
            draw_history(history, out)
            log(f"open {out / 'history.html'} in a browser to follow the training")
        rounds = SelfTrainingRounds(context, chosen, work.fold_group)
        group.barrier()
        rounds.train_before_last(table, folds)
        results = rounds.train_last(table, folds)
        decision: NoisyDecision | None = None
        if recipe.noisy_decision and data.noisy is not None:
            tried, unreadable_noisy = readable_rows(data.noisy)
            results, decision = decide_on_noisy(context, tried, table, folds, results, work.fold_group)
        oof, scores = _out_of_fold(data, table, folds, results, main_log)
        tests = [fold.test for fold in results.values() if fold.test is not None]
        test = ensemble(tests, how=recipe.tta.fold_average) if tests else None
        result = RunResult(
            out, scores.folds, scores.oof, oof, test, unreadable + unreadable_noisy, time.monotonic() - started
        )
        if group.is_main:
            found = _evaluate_run(result, data, recipe, table, folds, chosen, is_honest, baseline, log)
            note({**_manifest_results(result), **found, **noisy_notes(decision)})
            draw_report(report, out, data, log)
            draw_history(history, out)
            log(f"{out}: done in {result.seconds:.0f} s")
    return result


def _evaluate_run(
    result: RunResult, data: FATDataset, recipe: Recipe, table: pd.DataFrame, folds: np.ndarray, chosen: list[int],
    is_honest: bool, baseline: bool, log: Callable[[str], None],
) -> dict[str, Any]:
    """Write the predictions, calibration, false alarms and reference of a trained run; return notes for its manifest.

    Parameters
    ----------
    result
        Of the run, with its folder.
    table, folds
        Curated clips and the fold of each, shape (clips,).
    chosen
        Trained folds, ascending.
    is_honest
        False if a teacher was trained on held-out clips.
    baseline
        As in `run_recipe`.
    """
    out = result.out
    _write_predictions(result, data, log)
    if recipe.selects_on_held_out:
        log(_OPTIMISTIC)
    if not is_honest:
        log(_TEACHER_SAW)
    calibrated = calibrate_new_run(out, data.curated[["fname", "labels"]], log)
    measure_background(out, data, recipe.folds.n, log)
    store_reference(out, table[np.isin(folds, chosen)])
    is_whole = chosen == sorted(set(folds.tolist()))
    frozen = _frozen_results(out, recipe, data, table, folds, log, baseline) if is_whole else {}
    optimistic = {"selects_on_held_out": recipe.selects_on_held_out, "teacher_saw_held_out": not is_honest}
    return {**calibrated, **optimistic, **frozen}


def _stage_callbacks(
    out: Path, trackers: StageCallbacks | None, history: History | None, fold: int, stage: int
) -> list[Callback]:
    """Return the callbacks of a fit besides those of its stage."""
    page = [] if history is None else [UpdateHistory(out, history)]
    return [*(trackers(fold, stage) if trackers else ()), *page]


def _advice_on_weights(recipe: Recipe) -> Iterator[str]:
    """Yield what to do if a recipe that is made for published weights starts from random ones."""
    published = find_published(recipe.model.arch)
    if published is None or recipe.model.options.get("pretrained"):
        return
    if any(stage.linear_probe is not None for stage in recipe.stages):
        effect = "its features are random, and the regression on them learns next to nothing"
    elif recipe.front_end.get("name") == published.front_end:
        effect = "few clips do not suffice to train it"
    else:
        return
    yield (
        f"{recipe.model.arch} starts without its published weights: {effect}. Download them with: fatai-submit weights "
        f"get {published.name} ({published.size}, {published.license}), and run with --weights {published.name}"
    )
    if published.arch != "mn04":
        yield "or take a small network: fatai-submit weights get mn04_as (4 MB), --arch mn04 --weights mn04_as"


def _get_weights(recipe: Recipe) -> None:
    """Download the published weights that a recipe names, before anything is read or written, and in one process."""
    pretrained = recipe.model.options.get("pretrained")
    if find_published(recipe.model.arch) and pretrained:
        locate_weights(recipe.model.arch, pretrained)


def _silent(line: str) -> None:
    pass


def _dataset(data: str | Path | FATDataset, recipe: Recipe, corrections: str | Path | None = None) -> FATDataset:
    if isinstance(data, FATDataset):
        return data
    return load_dataset(data, corrections, corrupted_files=recipe.clips.corrupted_files)


def _chosen_folds(recipe: Recipe, run_folds: Sequence[int] | None, folds: np.ndarray) -> list[int]:
    chosen = recipe.folds.run_folds if run_folds is None else run_folds
    return sorted(set(folds.tolist() if chosen is None else chosen))


@dataclass(frozen=True)
class _Scores:
    folds: dict[int, float]
    oof: float


def _out_of_fold(
    data: FATDataset, table: pd.DataFrame, folds: np.ndarray, results: Mapping[int, FoldResult],
    log: Callable[[str], None],
) -> tuple[Predictions, _Scores]:
    """Join the held-out predictions of the trained folds in the table's order, and score them."""
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


def _create_folder(out: Path, recipe: Recipe, table: pd.DataFrame, folds: np.ndarray) -> None:
    """Create a run folder with recipe.toml and folds.csv."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(
            f"{out} exists and is not empty; choose another folder, remove it, or continue the run in it with --resume"
        )
    with translate_os_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    write_text(out / "recipe.toml", recipe.resolved())
    write_folds(out, list(table["fname"]), folds, list(table["labels"]))


def _can_resume(out: Path, recipe: Recipe, data: FATDataset, digest: str) -> bool:
    """Return True if `out` holds a resumable run of the recipe and data; remove partial files."""
    manifest = read_manifest(out)
    for partial_file in out.rglob(".*.part*"):
        partial_file.unlink(missing_ok=True)
    if manifest is None:
        for name in ("recipe.toml", "folds.csv"):
            (out / name).unlink(missing_ok=True)
        return False
    differences = recipe.differences(load_recipe(out / "recipe.toml"))
    if differences:
        raise CheckpointError(
            f"{out} holds a run of another recipe: {'; '.join(differences)}. Give the same options, or another folder"
        )
    if manifest["data"].get("digest") != digest:
        raise CheckpointError(
            f"{out} holds a run of other data: names, labels or sounds of clips have changed. Choose another folder"
        )
    if manifest["data"].get("modified", times := times_digest(data)) != times:
        raise CheckpointError(
            f"{out} holds a run of other data: sounds have been written again since it began. Choose another folder"
        )
    return True


def recipe_learner(
    data: str | Path | FATDataset,
    recipe: str | Path | Recipe,
    fold: int = 0,
    *,
    path: str | Path = ".",
    num_workers: int | None = None,
    cache_dir: str | Path | None = None,
) -> FatLearner:
    """Return the learner of one fold of a recipe before its first stage, to inspect or to fit by hand.

    Nothing is written.

    Parameters
    ----------
    data, recipe, num_workers, cache_dir
        As in `run_recipe`.
    fold
        The fold that is held out, counted from 0.
    path
        Folder of the learner, for what it saves later.

    Raises
    ------
    OptionError
        If there is no such fold.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    data = readable_background(_dataset(data, recipe))
    recipe = adapt_recipe(recipe, data)
    table, _, folds = folded_table(data, recipe)
    if fold not in folds:
        raise OptionError(f"fold is {fold}; {recipe.name} has the folds 0 to {recipe.folds.n - 1}")
    context = FoldContext(
        data, recipe, Path(path), data_digest(data), num_workers=num_workers, cache_dir=cache_dir, log=_no_log
    )
    return fold_learner(context, fold, table.assign(is_valid=folds == fold))


def _no_log(line: str) -> None:
    """Leave out the lines of a run."""


@delegates(recipe_learner)
def preview_learner(data: str | Path | FATDataset, recipe: Recipe, fold: int = 0, **kwargs: Any) -> FatLearner:
    """Return a `recipe_learner` with the batches, loss and callbacks of the first stage, on curated clips."""
    data = _dataset(data, recipe)
    recipe = adapt_recipe(recipe, data)
    learn = recipe_learner(data, recipe, fold, **kwargs)
    learn.add_cbs(prepare_stage(learn, curated_only(recipe.stages[0])))
    return learn


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


def _frozen_results(
    out: Path, recipe: Recipe, data: FATDataset, table: pd.DataFrame, folds: np.ndarray, log: Callable[[str], None],
    baseline: bool,
) -> dict[str, Any]:
    """Return notes on what a frozen network gives: its curve over clips per tag, and beside `default` its score."""
    curve = run_curve(out, recipe, table, folds, data.tags)
    if curve:
        return {"clips_per_tag": curve}
    if not baseline or recipe.decided is None or recipe.model.options.get("pretrained"):
        return {}
    try:
        found = frozen_baseline(table, folds, data.tags)
    except FataiError as e:
        warnings.warn(f"no frozen network was scored beside this run: {e}", stacklevel=3)
        return {}
    if found is None:
        return {}
    log(str(found))
    notes = {"frozen_baseline": {"text": str(found), "weights": found.weights, found.metric: found.score}}
    return {**notes, **({"clips_per_tag": found.curve} if found.curve else {})}


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


def _manifest_results(result: RunResult) -> dict[str, Any]:
    scores = {"folds": {str(k): v for k, v in result.fold_scores.items()}, "oof": result.oof_score}
    return {
        "seconds": round(result.seconds, 1),
        main_metric(len(result.oof.tags)): scores,
        "unreadable": {"train": list(result.unreadable), "test": list(result.test.unreadable) if result.test else []},
    }
