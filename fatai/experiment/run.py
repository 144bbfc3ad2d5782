"""Run a recipe on a data set: train the folds, predict, and write a run folder with a checked submission."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from fastai.callback.core import Callback
from fastcore.meta import delegates

from fatai.data.datasets.fat2019 import FATDataset, load_dataset
from fatai.distributed import ProcessGroup, init
from fatai.errors import CheckpointError, DataError, OptionError
from fatai.experiment.adapt import adapt_recipe, decision_lines
from fatai.experiment.build import check_network, pin_network, recipe_parameters
from fatai.experiment.clip_tables import noisy_table, readable_rows
from fatai.experiment.distill import check_teachers
from fatai.experiment.fold import FoldContext, FoldResult, fold_learner
from fatai.experiment.launch import WorkSplit, no_log, split_work
from fatai.experiment.live_history import History, UpdateHistory, draw_history
from fatai.experiment.manifest import (
    data_digest,
    noted_seconds,
    read_manifest,
    times_digest,
    write_folds,
    write_manifest,
)
from fatai.experiment.noisy_decision import (
    NoisyDecision,
    check_decided_folds,
    decide_on_noisy,
    noisy_notes,
    replace_folds,
)
from fatai.experiment.recipe import Recipe, load_recipe
from fatai.experiment.run_result import (
    Report,
    RunResult,
    RunSetup,
    draw_report,
    evaluate_run,
    make_result,
    manifest_results,
)
from fatai.experiment.self_training import SelfTrainingRounds
from fatai.experiment.stage import curated_only, prepare_stage
from fatai.experiment.tracking import StageCallbacks, stage_trackers
from fatai.inference.learner import FatLearner
from fatai.io.atomic import remove_temp_files, translate_os_errors, write_text
from fatai.io.lock import lock_output
from fatai.models.weights import find_published, locate_weights
from fatai.threads import network_threads

__all__ = ["RunResult", "preview_learner", "recipe_learner", "run_recipe"]

_BEFORE_MANIFEST = ("recipe.toml", "folds.csv", "manifest.json")
"""Files that a run writes first, in this order."""


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
    OptionError
        If a fold of `run_folds` does not exist.
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
    main_log = log if group.is_main else no_log
    recipe = pin_network(recipe if isinstance(recipe, Recipe) else load_recipe(recipe))
    if group.is_main and not resume:
        _get_weights(recipe)
    setup = RunSetup.make(_dataset(data, recipe, corrections), recipe, Path(out), run_folds)
    out, data, recipe, digest = setup.out, setup.data, setup.recipe, data_digest(setup.data)
    run_options = {
        "run_folds": None if run_folds is None else setup.run_folds, "predict_test": predict_test,
        "num_workers": num_workers, "nproc": group.world_size,
        "corrections": None if corrections is None else str(corrections),
    }
    if group.is_main and not resume:
        check_network(recipe, len(data.tags))
    note = partial(write_manifest, out, data, recipe, digest, command, run_options)
    # Around the manifest, which notes the number of threads.
    n_parameters = recipe_parameters(recipe, len(data.tags))
    with network_threads(n_parameters), lock_output(out) if group.is_main else nullcontext():
        earlier_s = _begin(setup, digest, note, resume=resume) if group.is_main else 0.0
        for line in _opening_lines(setup):
            main_log(line)
        noisy, unreadable = noisy_table(data, recipe)
        if group.is_main:
            replace_folds(out)
            _begin_page(out, history, log)
        check_decided_folds(out, setup.run_folds)
        is_honest = check_teachers(recipe.stages, setup.held_out)
        work = split_work(group, len(setup.run_folds), log)
        context = FoldContext(
            data, recipe, out, digest, noisy=noisy, predict_test=predict_test, num_workers=num_workers,
            cache_dir=cache_dir, log=work.log, group=work.batch_group,
            stage_cbs=partial(_stage_callbacks, out, trackers, history, work.batch_group),
        )
        group.barrier()
        results, decision, unreadable_tried = _train(setup, context, work)
        result = make_result(setup, results, unreadable + unreadable_tried, started, main_log)
        if group.is_main:
            found = evaluate_run(setup, result, is_honest=is_honest, baseline=baseline, log=log)
            note({**manifest_results(result, earlier_s), **found, **noisy_notes(decision)})
            draw_report(report, out, data, log)
            draw_history(history, out)
            log(f"{out}: done in {result.seconds:.0f} s")
    return result


def _begin(setup: RunSetup, digest: str, note: Callable[[], None], *, resume: bool) -> float:
    """Create the run folder, or check that the one there can be continued; return the seconds that it has taken."""
    out = setup.out
    earlier_s = (noted_seconds(out) or 0.0) if resume else 0.0
    if not (resume and _can_resume(out, setup.recipe, setup.data, digest)):
        _create_folder(setup)
        note()  # the last of the three: a folder with a manifest has recipe.toml and folds.csv
    return earlier_s


def _begin_page(out: Path, history: History | None, log: Callable[[str], None]) -> None:
    if history is not None:
        draw_history(history, out)
        log(f"open {out / 'history.html'} in a browser to follow the training")


def _opening_lines(setup: RunSetup) -> Iterator[str]:
    """Yield what a run logs when it begins."""
    recipe, data = setup.recipe, setup.data
    yield f"{recipe.name}: {len(setup.table)} clips, {len(data.tags)} tags, {recipe.folds.n} folds"
    yield from _advice_on_weights(recipe)
    yield from (f"  {line}" for line in decision_lines(recipe))


def _train(
    setup: RunSetup, context: FoldContext, work: WorkSplit
) -> tuple[dict[int, FoldResult], NoisyDecision | None, tuple[str, ...]]:
    """Train the folds, again with noisy clips where these help.

    Returns
    -------
    The result of each fold; the decision on noisy clips, None without one; names of those that cannot be read.
    """
    rounds = SelfTrainingRounds(context, setup.run_folds, work.fold_group)
    rounds.train_before_last(setup.table, setup.folds)
    results = rounds.train_last(setup.table, setup.folds)
    if not setup.recipe.noisy_decision or setup.data.noisy is None:
        return results, None, ()
    tried, unreadable = readable_rows(setup.data.noisy)
    results, decision = decide_on_noisy(context, tried, setup.table, setup.folds, results, work.fold_group)
    return results, decision, unreadable


def _stage_callbacks(
    out: Path, trackers: StageCallbacks | None, history: History | None, group: ProcessGroup, fold: int, stage: int
) -> list[Callback]:
    """Return the callbacks of a fit besides those of its stage, in a process of the group that fits together."""
    page = [] if history is None else [UpdateHistory(out, history)]
    return [*(trackers(fold, stage, group) if trackers else ()), *page]


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


def _dataset(data: str | Path | FATDataset, recipe: Recipe, corrections: str | Path | None = None) -> FATDataset:
    if isinstance(data, FATDataset):
        return data
    return load_dataset(data, corrections, corrupted_files=recipe.clips.corrupted_files)


def _create_folder(setup: RunSetup) -> None:
    """Create a run folder with recipe.toml and folds.csv."""
    out, table = setup.out, setup.table
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(
            f"{out} exists and is not empty; choose another folder, remove it, or continue the run in it with --resume"
        )
    with translate_os_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    write_text(out / "recipe.toml", setup.recipe.resolved())
    write_folds(out, list(table["fname"]), setup.folds, list(table["labels"]))


def _can_resume(out: Path, recipe: Recipe, data: FATDataset, digest: str) -> bool:
    """Return True if `out` holds a resumable run of the recipe and data; remove partial files."""
    manifest = read_manifest(out)
    if manifest is None:
        _remove_beginning(out, recipe)
        return False
    if not (out / "recipe.toml").is_file():
        raise CheckpointError(f"{out} holds no run of a recipe, but perhaps of an ensemble; choose another folder")
    for partial_file in out.rglob(".*.part*"):
        partial_file.unlink(missing_ok=True)
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


def _remove_beginning(out: Path, recipe: Recipe) -> None:
    """Remove what a run of the recipe that was killed before its manifest has written, if `out` holds nothing else."""
    for name in _BEFORE_MANIFEST:
        remove_temp_files(out / name)
    begun = out / "recipe.toml"
    is_own = begun.is_file() and begun.read_bytes() == recipe.resolved().encode()
    if is_own and {path.name for path in out.iterdir()} <= set(_BEFORE_MANIFEST):
        for name in _BEFORE_MANIFEST:
            (out / name).unlink(missing_ok=True)


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
    setup = RunSetup.make(_dataset(data, recipe), recipe, Path(path))
    data, recipe, folds = setup.data, setup.recipe, setup.folds
    if fold not in folds:
        raise OptionError(f"fold is {fold}; {recipe.name} has the folds 0 to {recipe.folds.n - 1}")
    context = FoldContext(
        data, recipe, Path(path), data_digest(data), num_workers=num_workers, cache_dir=cache_dir, log=no_log
    )
    return fold_learner(context, fold, setup.table.assign(is_valid=folds == fold))


@delegates(recipe_learner)
def preview_learner(data: str | Path | FATDataset, recipe: Recipe, fold: int = 0, **kwargs: Any) -> FatLearner:
    """Return a `recipe_learner` with the batches, loss and callbacks of the first stage, on curated clips."""
    data = _dataset(data, recipe)
    recipe = adapt_recipe(recipe, data)
    learn = recipe_learner(data, recipe, fold, **kwargs)
    learn.add_cbs(prepare_stage(learn, curated_only(recipe.stages[0])))
    return learn
