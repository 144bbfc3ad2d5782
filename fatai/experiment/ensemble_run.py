"""Run an ensemble: train or reuse the runs of its members, and combine their predictions into one submission."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from fatai.data.datasets.fat2019 import FATDataset, load_dataset
from fatai.distributed import init
from fatai.ensemble.ensemble import EnsembleResult, ensemble_report
from fatai.ensemble.members import PredictionSource, read_folds
from fatai.errors import CheckpointError, DataError, RecipeError
from fatai.experiment.build import check_network, recipe_parameters
from fatai.experiment.calibrate import calibrate_new_run
from fatai.experiment.ensemble_folder import CLIPWISE, ENSEMBLE, EnsembleFolder
from fatai.experiment.ensemble_recipe import (
    EnsembleRecipe,
    StackerConfig,
    ensemble_toml,
    load_ensemble,
    parse_ensemble,
)
from fatai.experiment.launch import no_log
from fatai.experiment.live_history import History, draw_history
from fatai.experiment.manifest import data_digest, noted_seconds, write_manifest
from fatai.experiment.overrides import Overrides
from fatai.experiment.recipe import Recipe, differing_values, without_none
from fatai.experiment.reuse import find_run
from fatai.experiment.run import run_recipe
from fatai.experiment.run_result import Report, RunResult, draw_report
from fatai.experiment.scaling import SCALES, scale_recipe
from fatai.inference.predictions import Predictions
from fatai.io.atomic import remove_temp_files, write_text
from fatai.io.lock import lock_output
from fatai.metrics.classification import main_metric
from fatai.models import takes_weights

__all__ = ["EnsembleRunResult", "member_recipes", "run_ensemble"]

_RECIPE = "ensemble.toml"


@dataclass(frozen=True)
class EnsembleRunResult:
    """Result of an ensemble.

    Attributes
    ----------
    out
        The folder of the ensemble.
    runs
        The run folders, in the order of the members.
    ensembled
        The combined predictions with their nested out-of-fold score.
    seconds
        Duration of this call; the manifest has that of all calls that ended.
    test
        The combined predictions of the test clips; None without a test part.
    """

    out: Path
    runs: tuple[Path, ...]
    ensembled: EnsembleResult
    seconds: float
    test: Predictions | None = None


def member_recipes(
    recipe: EnsembleRecipe,
    *,
    scale: str = "full",
    overrides: Overrides | None = None,
    n_noisy: int | None = None,
    n_curated: int | None = None,
) -> dict[str, Recipe]:
    """Return the recipe of each member by its name.

    Parameters
    ----------
    scale, n_noisy, n_curated
        As in `fatai.experiment.scaling.scale_recipe`.
    overrides
        As in `Recipe.override`, applied last. Weights are those of the members whose network has published ones.

    Raises
    ------
    RecipeError
        If `overrides` has weights and no member takes them, or another value does not fit a member.
    """
    given = overrides or Overrides()
    recipes = {
        member.name: scale_recipe(member.overridden_recipe(), scale, n_noisy, n_curated) for member in recipe.members
    }
    with_weights = {name for name, member in recipes.items() if takes_weights(given.arch or member.model.arch)}
    if given.weights is not None and not with_weights:
        networks = ", ".join(sorted({given.arch or member.model.arch for member in recipes.values()}))
        raise RecipeError(
            f"weights {given.weights} are given, and there are no published ones for the networks of {recipe.name} "
            f"({networks}); give them to recipe finetune, probe, pretrained or best"
        )
    return {
        name: member.override(given if name in with_weights else replace(given, weights=None))
        for name, member in recipes.items()
    }


def run_ensemble(
    data: str | Path | FATDataset,
    recipe: str | Path | EnsembleRecipe,
    out: str | Path,
    *,
    scale: str = "full",
    overrides: Overrides | None = None,
    reuse: Sequence[str | Path] = (),
    resume: bool = False,
    corrections: str | Path | None = None,
    num_workers: int | None = None,
    command: str = "",
    log: Callable[[str], None] = print,
    report: Report | None = None,
    history: History | None = None,
) -> EnsembleRunResult:
    """Train or reuse the run of every member, combine their predictions, and score the combination out of fold.

    `out` gets a run folder for each member that was trained, `ensemble.toml`, `oof.csv` (nested: of each fold by what
    was fitted on the others), `folds.csv`, `blend.txt` with the scores, the calibration, and where there is a test part
    `test.csv` and, with a sample submission, `submission.csv`. If the combination is an average with fixed weights of
    runs in `out`, `ensemble.json` has them, and the folder predicts like that of a run.

    Parameters
    ----------
    data
        A folder in the competition's layout, a table of sounds, or the result of `load_dataset`.
    recipe
        An ensemble, its name ("ensembles/third_place", "best"), or a path that ends in .toml.
    scale, overrides
        As in `member_recipes`.
    reuse
        Finished runs that are used for members with the same settings and data; `log` gets what differs where none is.
    resume
        Continue the ensemble in `out`; its finished runs are kept. The combination may be another one, and there may be
        further members.
    corrections, num_workers, command, log, report
        As in `fatai.experiment.run.run_recipe`; the report is drawn for each trained member and for the ensemble.
    history
        As in `fatai.experiment.run.run_recipe`, for each trained member and for the ensemble.

    Raises
    ------
    DataError
        If `out` is not empty, without `resume`.
    CheckpointError
        If `out` holds no ensemble, one with other settings of a member, or a run with other data.
    StorageError
        If another command is writing `out`.
    """
    started, group, out = time.monotonic(), init(), Path(out)
    main_log = log if group.is_main else no_log
    recipe = recipe if isinstance(recipe, EnsembleRecipe) else load_ensemble(recipe)

    @cache
    def load(corrupted_files: str) -> FATDataset:
        if isinstance(data, FATDataset):
            return data
        return load_dataset(data, corrections, corrupted_files=corrupted_files)

    with lock_output(out) if group.is_main else nullcontext():
        if group.is_main:
            _check_folder(out, recipe, resume)
        loaded, earlier_s = load("keep"), (noted_seconds(out) or 0.0) if resume else 0.0
        n_noisy = None if loaded.noisy is None else len(loaded.noisy)
        recipes = member_recipes(
            recipe, scale=scale, overrides=overrides, n_noisy=n_noisy, n_curated=len(loaded.curated)
        )
        if group.is_main:
            # Runs that are reused or finished need no weights.
            check = recipe_parameters if resume or reuse else check_network
            for member in recipes.values():
                check(member, len(loaded.tags))
            out.mkdir(parents=True, exist_ok=True)
            write_text(out / _RECIPE, ensemble_toml(recipe))
            draw_history(history, out)
        group.barrier()
        train = partial(
            run_recipe, resume=resume, num_workers=num_workers, corrections=corrections, command=command, log=log,
            report=report, history=history,
        )
        runs = _train_members(recipes, out, load, reuse, train, main_log)
        group.barrier()
        ensembled = _combine(recipe, runs, loaded, scale, main_log)
        if group.is_main:
            _write(out, recipe, ensembled, loaded, log)
            _write_model(out, recipe, runs, ensembled, log)
            notes = _calibrate(out, runs, ensembled, loaded, log)
            notes["seconds"] = earlier_s + time.monotonic() - started
            first = next(iter(recipes.values())).model_copy(update={"name": recipe.name, "decided": None})
            options = {"corrections": None if corrections is None else str(corrections)}
            write_manifest(out, loaded, first, data_digest(loaded), command, options, notes)
            draw_report(report, out, loaded, log)
            draw_history(history, out)
    test = ensembled.predictions if len(loaded.test) else None
    return EnsembleRunResult(out, tuple(runs), ensembled, time.monotonic() - started, test)


def _check_folder(out: Path, recipe: EnsembleRecipe, resume: bool) -> None:
    """Raise an error unless `out` is free, or holds the ensemble and is to be continued."""
    if resume:
        remove_temp_files(out / _RECIPE)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not resume:
        raise DataError(
            f"{out} exists and is not empty; choose another folder, or continue the ensemble in it with --resume"
        )
    if not (out / _RECIPE).is_file():
        raise CheckpointError(f"{out} holds no {_RECIPE}, so no ensemble to continue; choose another folder")
    before = {member.name: member.model_dump() for member in parse_ensemble(out / _RECIPE).members}
    differences = [
        f"member {member.name}: {line}" for member in recipe.members if member.name in before
        for line in differing_values(without_none(member.model_dump()), without_none(before[member.name]))
    ]
    if differences:
        raise CheckpointError(
            f"{out} holds an ensemble with other members: {'; '.join(differences)}. Give the same recipe, or another "
            "folder"
        )


def _train_members(
    recipes: Mapping[str, Recipe],
    out: Path,
    load: Callable[[str], FATDataset],
    reuse: Sequence[str | Path],
    train: Callable[[FATDataset, Recipe, Path], RunResult],
    log: Callable[[str], None],
) -> list[Path]:
    """Train the members that no run is reused for, and return the run folder of each.

    Parameters
    ----------
    recipes
        Recipe of each member by its name.
    out
        Folder of the ensemble.
    load
        Loads the data with `corrupted_files` as a recipe has it.
    reuse
        Finished runs.
    train
        `run_recipe` with the options that all members share.
    """
    runs: list[Path] = []
    for name, recipe in recipes.items():
        data = load(recipe.clips.corrupted_files)
        number = f"member {len(runs) + 1} of {len(recipes)}: {name}"
        found = find_run(reuse, recipe, data) if reuse else None
        if found is not None and found.run is not None:
            log(f"{number}, reused from {found.run}")
            runs.append(found.run)
            continue
        log(number)
        if found is not None:
            log(f"  trained, since {found.reason}")
        train(data, recipe, out / name)
        runs.append(out / name)
    return runs


def _write(
    out: Path, recipe: EnsembleRecipe, ensembled: EnsembleResult, data: FATDataset, log: Callable[[str], None]
) -> None:
    """Write the combined predictions, their scores and the submission."""
    if ensembled.oof is not None:
        ensembled.oof.to_csv(out / "oof.csv")
    write_text(out / "blend.txt", f"{ensembled}\n")
    log(str(ensembled))
    if len(data.test):
        ensembled.predictions.to_csv(out / "test.csv")
    if len(data.test) and data.sample is not None:
        ensembled.predictions.to_submission(out / "submission.csv", sample=data.sample)
        log(f"submission: {out / 'submission.csv'}, {recipe.how} of {len(ensembled.members)}")


def _write_model(
    out: Path, recipe: EnsembleRecipe, runs: Sequence[Path], ensembled: EnsembleResult, log: Callable[[str], None]
) -> None:
    """Write the members and their weights, so that the folder predicts new clips, if they suffice for that."""
    average = recipe.how if recipe.how in CLIPWISE else str(recipe.options.get("average", "mean"))
    outside = [run for run in runs if run.parent != out]
    if recipe.stackers or ensembled.weights is None or average not in CLIPWISE or outside:
        (out / ENSEMBLE).unlink(missing_ok=True)
        reason = f"{outside[0]} is outside of it" if outside else f"{recipe.how} is no average with fixed weights"
        log(f"{out} holds predictions only, and predicts no new clips: {reason}")
        return
    EnsembleFolder(out, tuple(run.name for run in runs), ensembled.weights, average).save()


def _calibrate(
    out: Path, runs: Sequence[Path], ensembled: EnsembleResult, data: FATDataset, log: Callable[[str], None]
) -> dict[str, Any]:
    """Write folds and calibration of the combination, and return notes for its manifest."""
    folds = [read_folds(run / "folds.csv") for run in runs]
    if ensembled.oof is None:
        return {}
    if all(other == folds[0] for other in folds):
        shutil.copyfile(runs[0] / "folds.csv", out / "folds.csv")
    else:  # the clips are then split again, here as for the nested score
        table = data.curated.assign(fold=0, labels=[",".join(tags) for tags in data.curated["labels"]])
        write_text(out / "folds.csv", table[["fname", "fold", "labels"]].to_csv(index=False, lineterminator="\n"))
    notes = calibrate_new_run(out, data.curated[["fname", "labels"]], log)
    scores = {"oof": ensembled.predictions.oof_score}
    return {main_metric(len(ensembled.oof.tags)): scores, **notes}


def _combine(
    recipe: EnsembleRecipe, runs: list[Path], data: FATDataset, scale: str, log: Callable[[str], None]
) -> EnsembleResult:
    """Combine members and stackers, scored on the curated clips that all members hold out."""
    truth = data.curated[["fname", "labels"]]
    weights = list(recipe.weights) if isinstance(recipe.weights, tuple) else recipe.weights
    predicted = [Predictions.from_csv(run / "oof.csv") for run in runs]
    oofs: list[PredictionSource] = list(predicted)
    # Without a test part, what is fitted is applied to the clips that it was fitted on, and not written.
    tests: list[PredictionSource] = list(runs) if len(data.test) else list(_common_clips(predicted))
    if not recipe.stackers:
        given = None if len(data.test) else list(runs)  # run folders, whose folds are known
        combined = ensemble_report(tests, recipe.how, weights, oof=given, truth=truth, **recipe.options)
        return replace(combined, members=tuple(run.name for run in runs))
    for stacker in recipe.stackers:
        log(f"stacking: {stacker.name}")
        stacked = ensemble_report(runs, stacker.how, truth=truth, **_stacker_options(stacker, scale))
        assert stacked.oof is not None
        tests.append(stacked.predictions)
        oofs.append(stacked.oof)
    ensembled = ensemble_report(tests, recipe.how, weights, oof=oofs, truth=truth, **recipe.options)
    names = (*ensembled.members[:len(runs)], *(stacker.name for stacker in recipe.stackers))
    return replace(ensembled, members=names)


def _common_clips(predictions: Sequence[Predictions]) -> list[Predictions]:
    """Return the predictions of the clips that all have; runs of some folds, split differently, hold out others."""
    common = set.intersection(*(set(each.fnames) for each in predictions))
    return [each.select([name for name in each.fnames if name in common], each.tags) for each in predictions]


def _stacker_options(stacker: StackerConfig, scale: str) -> dict[str, Any]:
    """Return the options of a stacker; in a smaller scale an "mlp" is narrower and has fewer samples per epoch."""
    config = SCALES[scale]
    if config is None or stacker.how != "mlp":
        return stacker.options
    base, n_samples = stacker.options.get("base", 512), stacker.options.get("samples_per_epoch", 32_768)
    return {
        **stacker.options,
        "base": max(1, round(base * config.width)),
        "samples_per_epoch": round(n_samples * config.width**2),
        "max_epochs": max(1, config.passes),
    }
