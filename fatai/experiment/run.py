"""A recipe and a data folder to a run folder: folds, out-of-fold and test predictions, a checked submission, a manifest."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fatai.io.atomic import translate_os_errors, write_text
from fatai.data.blocks import check_readable
from fatai.data.datasets.fat2019 import FATDataset, load_dataset
from fatai.data.folds import make_folds
from fatai.data.labels import multi_hot
from fatai.data.own_table import is_sound_table
from fatai.errors import CheckpointError, DataError, OptionError
from fatai.ensemble.ensemble import ensemble
from fatai.inference.predictions import Predictions
from fatai.experiment.fold import FoldContext, fold_learner
from fatai.experiment.manifest import data_digest, read_manifest, write_folds, write_manifest
from fatai.experiment.launch import share_out
from fatai.experiment.recipe import Recipe, load_recipe
from fatai.experiment.self_training import SelfTrainingRounds
from fatai.metrics.ranking import lwlrap
from fatai.distributed import init
from fatai.training.cross_validation import fit_folds
from fatai.inference.learner import FatLearner

__all__ = ["RunResult", "draw_report", "recipe_learner", "run_recipe"]


@dataclass(frozen=True)
class RunResult:
    """What a run made: its folder, lwlrap by fold and out of fold, the predictions, and the training files that could not be read."""

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
    only: Sequence[int] | None = None,
    predict_test: bool = True,
    resume: bool = False,
    corrections: str | Path | None = None,
    num_workers: int | None = None,
    cache_dir: str | Path | None = None,
    command: str = "",
    say: Callable[[str], None] = print,
) -> RunResult:
    """Train the folds of a recipe and write a run folder.

    A run that was killed goes on from its last finished epoch with `resume`, and ends byte-equal to an unbroken one on the same machine.

    Several processes that torchrun started, on one machine or on several with a common `out`, do it together: each trains folds of its own
    where there are as many as processes, or all of them share every batch. The first one writes what isn't a fold's.

    Parameters
    ----------
    data
        A folder in the competition's layout, or what `load_dataset` made of it.
    recipe
        A recipe, its name, or a path that ends in .toml.
    out
        The run folder; without `resume` it must not hold anything yet.
    only
        Folds to train; all that the recipe trains if None.
    predict_test
        Whether to predict the test part, where there is one, and to write the submission.
    resume
        Go on with the run in `out`, if one was begun there: with the same recipe and data.
    corrections
        A CSV of hand corrections (`fname`, and `labels` or "remove"), applied to the curated and the noisy part when `data` is a folder;
        else noted as what was applied.
    cache_dir
        Where a recipe with `clips.cache` keeps its cache; None is the user's cache folder.
    command
        What the user typed, for the manifest.
    say
        What takes a line of progress.

    Raises
    ------
    DataError, RecipeError, LabelError
        Each says what is wrong with the data or the recipe.
    CheckpointError
        If `out` holds a run of another recipe or of other data; the message says what differs.
    """
    started = time.monotonic()
    group = init()
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    data = data if isinstance(data, FATDataset) else load_dataset(data, corrections, corrupted=recipe.clips.corrupted_files)
    digest = data_digest(data)
    out = Path(out)
    table, unreadable, folds = folded_table(data, recipe)
    targ = multi_hot(table["labels"], data.tags)
    made_with = {
        "only": None if only is None else sorted(set(only)), "predict_test": predict_test, "num_workers": num_workers,
        "processes": group.world_size, "corrections": None if corrections is None else str(corrections),
    }
    begun = resume and group.is_main and _begun(out, recipe, digest)
    if group.is_main and not begun:
        _new_folder(out)
        write_text(out / "recipe.toml", recipe.resolved())
        write_folds(out, list(table["fname"]), folds, list(table["labels"]))
        # The last of the three: a folder with a manifest has the other two.
        write_manifest(out, data, recipe, digest, command, made_with)
    tell = say if group.is_main else _silent
    tell(f"{recipe.name}: {len(table)} clips, {len(data.tags)} tags, {recipe.folds.n} folds")
    noisy, odd_noisy = noisy_table(data, recipe)
    only = recipe.folds.run_folds if only is None else only
    only = sorted(set(folds.tolist())) if only is None else sorted(set(only))
    sharing = share_out(group, len(only), say)
    job = FoldContext(
        data,
        recipe,
        out,
        digest,
        noisy=noisy,
        predict_test=predict_test,
        num_workers=num_workers,
        cache_dir=cache_dir,
        say=sharing.say,
        group=sharing.of_batches,
    )
    rounds = SelfTrainingRounds(job, only, sharing.of_folds)
    group.barrier()
    rounds.until_last(table, folds)
    results = rounds.last(table, folds)
    parts = [result.test for result in results.values() if result.test is not None]

    def fit_fold(fold: int, fold_table: pd.DataFrame) -> np.ndarray:
        oof_score = results[fold].oof_score
        assert oof_score is not None
        tell(f"fold {fold}: lwlrap {lwlrap(oof_score.probs, targ[folds == fold]):.4f}")
        return oof_score.probs

    folded = fit_folds(table, folds, len(data.tags), fit_fold, lambda probs, rows: lwlrap(probs, targ[rows]), only=only)
    trained = ~np.isnan(folded.oof).any(axis=1)
    oof = Predictions(tuple(table["fname"][trained]), data.tags, folded.oof[trained])
    oof_score = lwlrap(oof.probs, targ[trained])
    test = ensemble(parts, how=recipe.tta.fold_average) if parts else None
    result = RunResult(out, folded.scores, oof_score, oof, test, unreadable + odd_noisy, time.monotonic() - started)
    if not group.is_main:
        return result
    oof.to_csv(out / "oof.csv")
    say(f"out of fold: lwlrap {oof_score:.4f} over {int(trained.sum())} clips")
    if test is not None:
        _write_test(out, data, test, say)
    write_manifest(out, data, recipe, digest, command, made_with, _results(result))
    draw_report(out, data, say)
    say(f"{out}: done in {result.seconds:.0f} s")
    return result


def _silent(line: str) -> None:
    pass


def _new_folder(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(
            f"{out} exists already and is not empty; choose another folder for this run, remove it, or go on with the run in it: --resume"
        )
    with translate_os_errors(out):
        out.mkdir(parents=True, exist_ok=True)


def _begun(out: Path, recipe: Recipe, digest: str) -> bool:
    """Whether `out` holds a run that can be gone on with, free of what a killed process left half-written."""
    manifest = read_manifest(out)
    for part in out.rglob(".*.part*"):
        part.unlink(missing_ok=True)
    if manifest is None:
        for name in ("recipe.toml", "folds.csv"):
            (out / name).unlink(missing_ok=True)
        return False
    differs = recipe.differences(load_recipe(out / "recipe.toml"))
    if differs:
        raise CheckpointError(
            f"{out} holds a run of another recipe: {'; '.join(differs)}. Give the same options, or another folder"
        )
    if manifest["data"].get("digest") != digest:
        raise CheckpointError(
            f"{out} holds a run of other data: names, sizes or labels of clips have changed. Choose another folder"
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
    """The learner of one fold of a recipe before its first stage, to look at or to fit by hand; writes nothing."""
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    data = data if isinstance(data, FATDataset) else load_dataset(data, corrupted=recipe.clips.corrupted_files)
    table, _, folds = folded_table(data, recipe)
    if fold not in folds:
        raise OptionError(f"fold is {fold}; {recipe.name} has the folds 0 to {recipe.folds.n - 1}")
    job = FoldContext(data, recipe, Path(path), data_digest(data), num_workers=num_workers, cache_dir=cache_dir)
    return fold_learner(job, fold, table.assign(is_valid=folds == fold))


def folded_table(data: FATDataset, recipe: Recipe) -> tuple[pd.DataFrame, tuple[str, ...], np.ndarray]:
    """The curated clips that can be read, the names of those that can't, and the fold of each that can."""
    table, unreadable = _readable_rows(data.curated)
    if len(table) < recipe.folds.n:
        raise DataError(f"{data.path} has {len(table)} readable curated clips, too few for {recipe.folds.n} folds")
    config = recipe.folds
    groups = None if config.group_col is None else _groups(table, config.group_col, data.path)
    folds = make_folds(
        multi_hot(table["labels"], data.tags), how=config.splitter, n=config.n, seed=config.seed, groups=groups, tags=data.tags
    )
    if folds.max() + 1 != config.n:
        raise DataError(
            f"the column {config.group_col} of {data.path.name} tells {folds.max() + 1} folds, but the recipe {recipe.name} says "
            f"{config.n}; give --folds {folds.max() + 1}"
        )
    return table, unreadable, folds


def _groups(table: pd.DataFrame, column: str, path: Path) -> list[Any]:
    """The values of a column that tells folds or what stays together."""
    file = path if is_sound_table(path) else path / "train_curated.csv"
    if column not in table.columns:
        raise DataError(f"{file} has no column {column!r}, which the recipe's folds are read from; it has "
                        f"{', '.join(str(name) for name in table.columns)}")
    empty = table["fname"][table[column].isna()]
    if len(empty):
        raise DataError(f"{file}: the column {column} says nothing of {empty.iloc[0]} ({len(empty)} such clips)")
    return list(table[column])


def noisy_table(data: FATDataset, recipe: Recipe) -> tuple[pd.DataFrame | None, tuple[str, ...]]:
    """The noisy clips that can be read, and the names of those that can't; none where the recipe asks for none."""
    if all(stage.noisy_labels is None for stage in recipe.stages):
        return None, ()
    if data.noisy is None:
        raise DataError(
            f"the recipe {recipe.name} trains on noisy clips, but {data.path} has none: expected train_noisy.csv"
        )
    return _readable_rows(data.noisy)


def _readable_rows(table: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    good, faults = check_readable([Path(p) for p in table["path"]])
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults)
        warnings.warn(f"{len(faults)} training files cannot be read and are left out:\n{listed}", stacklevel=4)
    return table[good].reset_index(drop=True), tuple(table["fname"][~good])


def _write_test(out: Path, data: FATDataset, test: Predictions, say: Callable[[str], None]) -> None:
    test.to_csv(out / "test.csv")
    if data.sample is not None:
        test.to_submission(out / "submission.csv", sample=data.sample)
        say(f"submission: {out / 'submission.csv'}, {len(test.fnames)} clips, fits {data.sample.name}")


def draw_report(out: Path, data: FATDataset, say: Callable[[str], None]) -> None:
    """Write report.html into the folder of a run, or of an ensemble of runs; one that is done stays done if that goes wrong."""
    from fatai.report.html import run_report  # which reads runs, and so imports what they are made of

    try:
        say(f"report: {run_report(out, data)}")
    except Exception as e:
        warnings.warn(
            f"{out} is done, but its report could not be drawn ({type(e).__name__}: {e}); fatai-submit report {out} tries again",
            stacklevel=3,
        )


def _results(result: RunResult) -> dict[str, Any]:
    return {
        "seconds": round(result.seconds, 1),
        "lwlrap": {"folds": {str(k): v for k, v in result.fold_scores.items()}, "oof": result.oof_score},
        "unreadable": {"train": list(result.unreadable), "test": list(result.test.unreadable) if result.test else []},
    }
