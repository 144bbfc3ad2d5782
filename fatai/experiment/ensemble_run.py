"""Run an ensemble: train or reuse the runs of its members, and combine their predictions into one submission."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fatai.data.datasets.fat2019 import FATDataset, load_dataset
from fatai.distributed import ProcessGroup, init
from fatai.ensemble.ensemble import EnsembleResult, ensemble_report
from fatai.ensemble.members import PredictionSource, read_folds
from fatai.errors import DataError
from fatai.experiment.calibrate import calibrate_new_run
from fatai.experiment.ensemble_folder import CLIPWISE, ENSEMBLE, EnsembleFolder
from fatai.experiment.ensemble_recipe import EnsembleRecipe, StackerConfig, ensemble_toml, load_ensemble
from fatai.experiment.live_history import History, draw_history
from fatai.experiment.manifest import data_digest, read_manifest, write_manifest
from fatai.experiment.overrides import Overrides
from fatai.experiment.recipe import Recipe, load_recipe
from fatai.experiment.run import Report, draw_report, run_recipe
from fatai.experiment.scaling import SCALES, scale_recipe
from fatai.inference.predictions import Predictions
from fatai.io.atomic import write_text
from fatai.io.lock import lock_output
from fatai.metrics.classification import main_metric

__all__ = ["EnsembleRunResult", "member_recipes", "run_ensemble"]

# Keys of a recipe that do not change what is trained.
_DESCRIPTIVE = ("name", "summary", "source", "reference_score", "decided")


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
        Duration.
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
        As in `Recipe.override`, applied last.
    """
    return {
        member.name: scale_recipe(member.overridden_recipe(), scale, n_noisy, n_curated).override(overrides)
        for member in recipe.members
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
        Finished runs that are used for members with the same recipe and data.
    resume
        Continue the ensemble in `out`; its finished runs are kept.
    corrections, num_workers, command, log, report
        As in `fatai.experiment.run.run_recipe`; the report is drawn for each trained member and for the ensemble.
    history
        As in `fatai.experiment.run.run_recipe`, for each trained member and for the ensemble.

    Raises
    ------
    DataError
        If `out` is not empty, without `resume`.
    CheckpointError
        If a run in `out` has another recipe or other data.
    StorageError
        If another command is writing `out`.
    """
    started, group, out = time.monotonic(), init(), Path(out)
    main_log = log if group.is_main else (lambda line: None)
    recipe = recipe if isinstance(recipe, EnsembleRecipe) else load_ensemble(recipe)
    with lock_output(out) if group.is_main else nullcontext():
        _check_folder(out, group, resume)
        loaded = data if isinstance(data, FATDataset) else load_dataset(data, corrections)
        if group.is_main:
            out.mkdir(parents=True, exist_ok=True)
            write_text(out / "ensemble.toml", ensemble_toml(recipe))
            draw_history(history, out)
        group.barrier()
        runs: list[Path] = []
        n_noisy = None if loaded.noisy is None else len(loaded.noisy)
        recipes = member_recipes(
            recipe, scale=scale, overrides=overrides, n_noisy=n_noisy, n_curated=len(loaded.curated)
        )
        for name, member in recipes.items():
            member_data = loaded
            if not isinstance(data, FATDataset):
                member_data = load_dataset(data, corrections, corrupted_files=member.clips.corrupted_files)
            reused = _reusable(reuse, member, member_data)
            origin = "" if reused is None else f", reused from {reused}"
            main_log(f"member {len(runs) + 1} of {len(recipes)}: {name}{origin}")
            if reused is None:
                run_recipe(
                    member_data, member, out / name, resume=resume, num_workers=num_workers, corrections=corrections,
                    command=command, log=log, report=report, history=history,
                )
            runs.append(reused or out / name)
        group.barrier()
        ensembled = _combine(recipe, runs, loaded, scale, main_log)
        has_test = len(loaded.test) > 0
        if group.is_main:
            _write(out, recipe, ensembled, loaded, log)
            _write_model(out, recipe, runs, ensembled, log)
            notes = _calibrate(out, runs, ensembled, loaded, log)
            seconds = time.monotonic() - started
            first = next(iter(recipes.values())).model_copy(update={"name": recipe.name, "decided": None})
            options = {"corrections": None if corrections is None else str(corrections)}
            write_manifest(out, loaded, first, data_digest(loaded), command, options, {"seconds": seconds, **notes})
            draw_report(report, out, loaded, log)
            draw_history(history, out)
    test = ensembled.predictions if has_test else None
    return EnsembleRunResult(out, tuple(runs), ensembled, time.monotonic() - started, test)


def _check_folder(out: Path, group: ProcessGroup, resume: bool) -> None:
    if group.is_main and not resume and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(
            f"{out} exists and is not empty; choose another folder, or continue the ensemble in it with --resume"
        )


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
    oofs: list[PredictionSource] = [Predictions.from_csv(run / "oof.csv") for run in runs]
    # Without a test part, what is fitted is applied to the clips that it was fitted on, and not written.
    tests: list[PredictionSource] = list(runs) if len(data.test) else list(oofs)
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


def _reusable(runs: Sequence[str | Path], recipe: Recipe, data: FATDataset) -> Path | None:
    """Return the first finished run with the same recipe and data, if there is one."""
    digest = data_digest(data) if runs else ""
    return next((run for run in map(Path, runs) if _is_run_of(run, recipe, digest)), None)


def _is_run_of(run: Path, recipe: Recipe, digest: str) -> bool:
    if not (run / "recipe.toml").is_file():
        return False
    manifest = read_manifest(run)
    if manifest is None or not manifest.get("finished") or manifest["data"].get("digest") != digest:
        return False
    differences = recipe.differences(load_recipe(run / "recipe.toml"))
    return all(line.split(" ", 1)[0] in _DESCRIPTIVE for line in differences)
