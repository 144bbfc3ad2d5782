"""Run a recipe on a data set: train the folds, predict, and write a run folder with a checked submission."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from fastcore.meta import delegates

from fatai.data.clip_names import unique_names
from fatai.data.copies import sound_groups, warn_about_copies
from fatai.data.datasets.fat2019 import FATDataset, load_dataset
from fatai.data.folds import ALWAYS_TRAINING, make_folds
from fatai.data.labels import multi_hot
from fatai.data.tables import check_readable, is_sound_table
from fatai.distributed import init
from fatai.ensemble.ensemble import ensemble
from fatai.errors import CheckpointError, DataError, OptionError
from fatai.experiment.fold import FoldContext, FoldResult, fold_learner
from fatai.experiment.launch import split_work
from fatai.experiment.manifest import data_digest, read_manifest, times_digest, write_folds, write_manifest
from fatai.experiment.recipe import Recipe, load_recipe
from fatai.experiment.self_training import SelfTrainingRounds
from fatai.experiment.stage import curated_only, prepare_stage
from fatai.inference.learner import FatLearner
from fatai.inference.predictions import Predictions
from fatai.io.atomic import translate_os_errors, write_text
from fatai.io.lock import lock_output
from fatai.metrics.classification import main_metric, main_score
from fatai.training.cross_validation import CrossValResult, fit_folds

__all__ = ["RunResult", "preview_learner", "recipe_learner", "run_recipe"]

Report: TypeAlias = Callable[[Path, FATDataset], Path]
"""Draws the report of a finished run folder and returns its path, as `fatai.report.html.run_report`."""


_OPTIMISTIC = (
    "this out-of-fold score is optimistic: each fold selected its epoch by the score of its own held-out clips; "
    'checkpoint = "last" or folds.select_on = "inner" avoids that'
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

    Returns
    -------
    Scores and predictions; every process gets the same.

    Raises
    ------
    DataError, RecipeError, LabelError
        If the data or the recipe are not valid.
    CheckpointError
        If `out` holds a run of another recipe or of other data; the message lists the differences.
    StorageError
        If another command is writing `out`.
    """
    started, group = time.monotonic(), init()
    main_log = log if group.is_main else _silent
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    data, out = _dataset(data, recipe, corrections), Path(out)
    table, unreadable, folds = folded_table(data, recipe)
    digest = data_digest(data)
    run_options = {
        "run_folds": None if run_folds is None else sorted(set(run_folds)), "predict_test": predict_test,
        "num_workers": num_workers, "nproc": group.world_size,
        "corrections": None if corrections is None else str(corrections),
    }
    note = partial(write_manifest, out, data, recipe, digest, command, run_options)
    with lock_output(out) if group.is_main else nullcontext():
        if group.is_main and not (resume and _can_resume(out, recipe, data, digest)):
            _create_folder(out, recipe, table, folds)
            note()  # the last of the three: a folder with a manifest has recipe.toml and folds.csv
        main_log(f"{recipe.name}: {len(table)} clips, {len(data.tags)} tags, {recipe.folds.n} folds")
        noisy, unreadable_noisy = noisy_table(data, recipe)
        chosen = _chosen_folds(recipe, run_folds, folds)
        work = split_work(group, len(chosen), log)
        context = FoldContext(
            data, recipe, out, digest, noisy=noisy, predict_test=predict_test, num_workers=num_workers,
            cache_dir=cache_dir, log=work.log, group=work.batch_group,
        )
        rounds = SelfTrainingRounds(context, chosen, work.fold_group)
        group.barrier()
        rounds.train_before_last(table, folds)
        results = rounds.train_last(table, folds)
        oof, scores = _out_of_fold(data, table, folds, results, main_log)
        tests = [fold.test for fold in results.values() if fold.test is not None]
        test = ensemble(tests, how=recipe.tta.fold_average) if tests else None
        result = RunResult(
            out, scores.folds, scores.oof, oof, test, unreadable + unreadable_noisy, time.monotonic() - started
        )
        if group.is_main:
            _write_predictions(result, data, log)
            if recipe.selects_on_held_out:
                log(_OPTIMISTIC)
            note({**_manifest_results(result), "selects_on_held_out": recipe.selects_on_held_out})
            draw_report(report, out, data, log)
            log(f"{out}: done in {result.seconds:.0f} s")
    return result


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
    oof = Predictions(tuple(table["fname"][trained]), data.tags, joined.oof[trained])
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
            f"{out} holds a run of other data: sounds have been written anew since it began. Choose another folder"
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
    data = _dataset(data, recipe)
    table, _, folds = folded_table(data, recipe)
    if fold not in folds:
        raise OptionError(f"fold is {fold}; {recipe.name} has the folds 0 to {recipe.folds.n - 1}")
    context = FoldContext(data, recipe, Path(path), data_digest(data), num_workers=num_workers, cache_dir=cache_dir)
    return fold_learner(context, fold, table.assign(is_valid=folds == fold))


@delegates(recipe_learner)
def preview_learner(data: str | Path | FATDataset, recipe: Recipe, fold: int = 0, **kwargs: Any) -> FatLearner:
    """Return a `recipe_learner` with the batches, loss and callbacks of the first stage, on curated clips."""
    learn = recipe_learner(data, recipe, fold, **kwargs)
    learn.add_cbs(prepare_stage(learn, curated_only(recipe.stages[0])))
    return learn


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
    table, unreadable = _readable_rows(data.curated)
    config = recipe.folds
    if len(table) < config.n:
        raise DataError(
            f"{data.path} has {len(table)} readable curated clips; expected at least one for each of {config.n} folds"
        )
    if config.splitter == "group" and config.group_col == "sound" and "sound" not in table.columns:
        table = table.assign(sound=sound_groups(table["path"].tolist()))
    groups = None if config.group_col is None else _groups(table, config.group_col, data.path)
    targ = multi_hot(table["labels"], data.tags)
    folds = make_folds(
        targ, splitter=config.splitter, n=config.n, seed=config.seed, groups=groups, tags=data.tags
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
    if all(stage.noisy_labels is None for stage in recipe.stages):
        return None, ()
    if data.noisy is None:
        raise DataError(
            f"the recipe {recipe.name} trains on noisy clips, but {data.path} has none: expected train_noisy.csv"
        )
    return _readable_rows(data.noisy)


def _readable_rows(table: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    readable, faults = check_readable([Path(p) for p in table["path"]])
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults)
        warnings.warn(f"{len(faults)} training files cannot be read and are left out:\n{listed}", stacklevel=4)
    return table[readable].reset_index(drop=True), tuple(table["fname"][~readable])


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
