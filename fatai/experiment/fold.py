"""Train one fold of a recipe: its rounds one after another, resumable, with the predictions stored beside the weights.

A *round* is a run of consecutive stages that a fold fits on the same clips. A new round starts where noisy clips are
selected (which needs the predictions of all folds), where noisy clips are no longer trained on, and where a stage
starts from new weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from fastai.callback.core import Callback
from fastai.torch_core import set_seed

from fatai.audio.segments import file_of
from fatai.callbacks.checkpoint import BestOfStages
from fatai.callbacks.progress import quiet_unless_terminal
from fatai.callbacks.resume import ResumeTraining
from fatai.callbacks.sample_weights import SampleWeights
from fatai.data.blocks import FATDataLoaders
from fatai.data.datasets.fat2019 import FATDataset
from fatai.data.folds import make_folds
from fatai.data.labels import multi_hot
from fatai.data.segments import has_segments
from fatai.distributed import SINGLE_PROCESS, ProcessGroup, was_started_by_torchrun
from fatai.errors import CheckpointError, DataError
from fatai.experiment.background import with_background
from fatai.experiment.build import has_two_heads, recipe_network
from fatai.experiment.distill import Student, teacher_callback, teacher_selection
from fatai.experiment.frozen_features import FrozenFeatures, shares_features
from fatai.experiment.linear_head import last_layer
from fatai.experiment.recipe import Recipe
from fatai.experiment.run_folder import WEIGHTS
from fatai.experiment.schema import Folds
from fatai.experiment.stage import fit_stage
from fatai.inference.learner import FatLearner, fat_learner
from fatai.inference.predictions import Predictions
from fatai.io.atomic import write_text
from fatai.io.json import read_json_limited
from fatai.models.checkpoint import load_weights, save_weights
from fatai.noisy_labels.methods import second_head
from fatai.noisy_labels.selection import LabelSelection

__all__ = ["FoldContext", "FoldResult"]

_N_INNER = 5  # parts of a fold's training clips, of which one selects the epoch
RANK_SEED_STRIDE = 1_000_003  # distance of the seeds of ranks, since folds and users take neighboring seeds


@dataclass(frozen=True)
class FoldContext:
    """What all folds of a run have in common.

    Attributes
    ----------
    data, recipe
        The data set and the recipe.
    out
        The run folder.
    digest
        Of the data; states and predictions of other data are not reused.
    noisy
        Readable noisy clips, columns fname, path and labels; None without noisy clips.
    predict_test
        Whether the last round predicts the test part.
    num_workers, cache_dir
        As in `fatai.data.blocks.FATDataLoaders.from_df`.
    log
        Function for lines of progress.
    group
        Processes that train every fold together; `SINGLE_PROCESS` where each process trains folds of its own.
    stage_cbs
        Returns further callbacks of a fit, from the numbers of its fold and stage.
    features
        Features of clips by a frozen network, which are the same in all folds.
    """

    data: FATDataset
    recipe: Recipe
    out: Path
    digest: str
    noisy: pd.DataFrame | None = None
    predict_test: bool = True
    num_workers: int | None = None
    cache_dir: str | Path | None = None
    log: Callable[[str], None] = print
    group: ProcessGroup = SINGLE_PROCESS
    stage_cbs: Callable[[int, int], list[Callback]] = lambda fold, stage: []
    features: FrozenFeatures = field(default_factory=FrozenFeatures)

    @property
    def predicts_test(self) -> bool:
        """True if there is a test part to predict."""
        return self.predict_test and len(self.data.test) > 0

    def folder(self, fold: int) -> Path:
        """Return the folder of a fold."""
        return self.out / f"fold_{fold}"


@dataclass(frozen=True)
class FoldResult:
    """Predictions of a fold: of held-out and test clips after the last round, of noisy clips before it."""

    oof: Predictions | None = None
    test: Predictions | None = None
    noisy: Predictions | None = None


def train_fold(
    context: FoldContext, fold: int, table: pd.DataFrame, number: int = 0, selection: LabelSelection | None = None
) -> FoldResult:
    """Train and predict one round of a fold, or what of it is not done yet.

    Parameters
    ----------
    table
        One row per clip: fname, path, labels, is_valid.
    number
        Number of the round, from 0.
    selection
        The noisy clips of the round; None trains on curated clips alone.

    Raises
    ------
    CheckpointError
        If the fold's folder holds a state of another run.
    """
    # Without this, `_finished` could see files that another rank has only begun to write.
    context.group.barrier()
    finished = _finished(context, fold, number)
    if finished is not None:
        return finished
    stage = context.recipe.stages[context.recipe.rounds()[number].start]
    if stage.teacher is not None:
        selection = teacher_selection(_student(context, fold, table), stage)
    context.log(_start_line(context, fold, table, number, selection))
    learn = fold_learner(context, fold, table, selection)
    is_last = number == len(context.recipe.rounds()) - 1
    with learn.distrib_ctx(group=context.group):
        _fit_or_load_round(context, fold, learn, number, selection, _student(context, fold, table))
        if is_last:
            return _predict(context, fold, learn, table)
        return FoldResult(noisy=_predict_noisy(context, fold, learn, number))


def _student(context: FoldContext, fold: int, table: pd.DataFrame) -> Student:
    """Return what a stage with a teacher needs of a fold."""
    held_out = tuple(str(name) for name in table["fname"][table["is_valid"].astype(bool)])
    return Student(context.folder(fold), context.data.tags, held_out, context.noisy, context.group)


def _start_line(
    context: FoldContext, fold: int, table: pd.DataFrame, number: int, selection: LabelSelection | None
) -> str:
    n_rounds, n_valid = len(context.recipe.rounds()), int(table["is_valid"].sum())
    part = "" if n_rounds == 1 else f"round {number + 1} of {n_rounds}, "
    kind = "unlabelled" if selection is not None and selection.method == "teacher" else "noisy"
    noisy = "" if selection is None else f" and {len(selection)} {kind} ones"
    return f"fold {fold}: {part}training on {len(table) - n_valid} clips{noisy}, {n_valid} held out"


def _fit_or_load_round(
    context: FoldContext, fold: int, learn: FatLearner, number: int, selection: LabelSelection | None,
    student: Student,
) -> None:
    """Load the weights of a finished round, or fit it and write them; then remove its intermediate states."""
    rounds = context.recipe.rounds()
    is_last = number == len(rounds) - 1
    weights = learn.path / (WEIGHTS if is_last else _round_path(number))
    if context.group.broadcast(weights.exists()):
        load_weights(weights, learn.model)
    else:
        _fit_round(context, fold, learn, number, selection, student)
        if context.group.is_main:
            _save(learn, weights)
    if context.group.is_main:
        _remove_states(learn, number, rounds[number].stop - 1, is_last)


def _predict(context: FoldContext, fold: int, learn: FatLearner, table: pd.DataFrame) -> FoldResult:
    """Predict held-out and test clips and write them; fold.json comes last and marks the fold as finished."""
    oof = predict_items(context, learn, table[table["is_valid"]], f"fold {fold}: held-out clips")
    if context.group.is_main:
        oof.to_csv(learn.path / "oof.csv")
    test = None
    if context.predicts_test:
        test = predict_items(context, learn, context.data.test, f"fold {fold}: test clips")
    if context.group.is_main:
        if test is not None:
            test.to_csv(learn.path / "test.csv")
        unreadable = {"oof": oof.unreadable, "test": test.unreadable if test else ()}
        notes = {"digest": context.digest, "unreadable": unreadable}
        write_text(learn.path / "fold.json", json.dumps(notes, indent=2) + "\n")
    return FoldResult(oof, test)


def _predict_noisy(context: FoldContext, fold: int, learn: FatLearner, number: int) -> Predictions | None:
    """Predict the noisy clips and write them; None if no selection needs them."""
    if context.noisy is None or not context.recipe.predicts_noisy_after(number):
        return None
    noisy = predict_items(context, learn, context.noisy, f"fold {fold}: noisy clips")
    if context.group.is_main:
        noisy.to_csv(learn.path / _noisy_predictions_path(number))
    return noisy


def predict_items(context: FoldContext, learn: FatLearner, items: pd.DataFrame, desc: str) -> Predictions:
    tta = context.recipe.tta
    if _shares_features(context, learn, len(items)):
        return context.features.predict(learn, last_layer(learn.model), items)
    return learn.tta(
        items=items, desc=desc, views=tta.views, n=tta.n, average=tta.average, seed=context.recipe.seed, **tta.options
    )


def _shares_features(context: FoldContext, learn: FatLearner, n_clips: int) -> bool:
    """Return True if predictions are those of the last layer on features that all folds have in common."""
    is_shared = shares_features(context.recipe) and context.group.world_size == 1
    return is_shared and context.features.fits(last_layer(learn.model), n_clips)


def _finished(context: FoldContext, fold: int, number: int) -> FoldResult | None:
    """Return the result of a round that was finished before; None if something is still to do."""
    if number < len(context.recipe.rounds()) - 1:
        return _finished_round(context, context.folder(fold), number)
    result = _finished_fold(context, context.folder(fold))
    if result is not None:
        context.log(f"fold {fold}: finished before")
    return result


def _finished_fold(context: FoldContext, folder: Path) -> FoldResult | None:
    parts = ("oof", "test") if context.predicts_test else ("oof",)
    if not all((folder / name).exists() for name in ("fold.json", WEIGHTS, *(f"{part}.csv" for part in parts))):
        return None
    digest, unreadable = _fold_notes(folder / "fold.json")
    if digest != context.digest:
        raise CheckpointError(f"{folder} was trained on other data; choose another folder for this run, or remove it")
    predictions = [Predictions.from_csv(folder / f"{part}.csv") for part in parts]
    return FoldResult(*(
        replace(p, unreadable=unreadable[part]) for p, part in zip(predictions, parts, strict=True)
    ))


def _fold_notes(path: Path) -> tuple[str, dict[str, tuple[str, ...]]]:
    """Read the digest of the data and the names of unreadable clips by part from fold.json."""
    try:
        notes = read_json_limited(path)
        return notes["digest"], {part: tuple(map(str, notes["unreadable"][part])) for part in ("oof", "test")}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{path} cannot be read ({e!r}); delete it to predict with the fold again") from None


def _finished_round(context: FoldContext, folder: Path, number: int) -> FoldResult | None:
    if context.recipe.predicts_noisy_after(number) and context.noisy is not None:
        path = folder / _noisy_predictions_path(number)
        return FoldResult(noisy=Predictions.from_csv(path)) if path.exists() else None
    later = [_round_path(k) for k in range(number, len(context.recipe.rounds()) - 1)]
    return FoldResult() if any((folder / name).exists() for name in (*later, WEIGHTS)) else None


def _round_path(number: int) -> str:
    return f"round_{number}.safetensors"


def _noisy_predictions_path(number: int) -> str:
    return f"judged_{number}.csv"


def _best_path(stage: int) -> str:
    return f"best_until_{stage}.safetensors"


def _state_path(stage: int) -> str:
    return f"state_{stage}.pt"


def fold_learner(
    context: FoldContext, fold: int, table: pd.DataFrame, selection: LabelSelection | None = None
) -> FatLearner:
    """Return the learner of a fold with newly initialized weights.

    Parameters
    ----------
    table
        One row per curated clip: fname, path, labels, is_valid.
    selection
        Noisy clips to train on besides the curated ones.

    Raises
    ------
    DataError
        If the recipe selects epochs on an inner split, and the training clips are too few or of a single group.
    """
    recipe = context.recipe
    table = _inner_split(context, table) if recipe.folds.select_on == "inner" else table
    table = with_background(table, context.data, fold, recipe.folds.n)
    # Before the loaders are made: they draw the seed of their shuffling.
    set_seed(recipe.seed + fold, reproducible=True)
    with context.group.main_process_first():
        dls = FATDataLoaders.from_df(
            table if selection is None else _with_noisy(context, table, selection),
            vocab=context.data.tags,
            fn_col="fname",
            path_col="path",
            label_col="labels",
            valid_col="is_valid",
            clip_config=recipe.settings(),
            bs=recipe.stages[0].bs,
            num_workers=context.num_workers,
            check_files=False,
            cache=recipe.clips.cache,
            cache_dir=context.cache_dir,
        )
    if recipe.clips.cache == "auto":
        context.log(f"fold {fold}: cache = {dls.cache.cache}: {dls.cache.reason}")
    network = recipe_network(recipe, len(dls.tags), dls.to_spec.n_channels)
    learn = fat_learner(dls, network, precision=recipe.precision, path=context.folder(fold))
    learn = quiet_unless_terminal(learn, f"fold {fold}: " if was_started_by_torchrun() else None)
    if not context.group.is_main:
        # The same weights and batches on all ranks, but different crops and augmentations.
        set_seed(recipe.seed + fold + RANK_SEED_STRIDE * context.group.rank, reproducible=True)
    return learn


def _inner_split(context: FoldContext, table: pd.DataFrame) -> pd.DataFrame:
    """Leave out the held-out clips, and set `is_valid` for about a fifth of the others.

    Groups stay together, as do segments of a file.
    """
    config = context.recipe.folds
    train = table[~table["is_valid"].astype(bool)].reset_index(drop=True)
    groups, unit = _inner_groups(train, config)
    n = min(_N_INNER, len(train) if groups is None else len(set(groups)))
    if n < 2:
        raise DataError(
            f'folds.select_on is "inner", but a fold has only {n} {unit}; expected at least 2: use more folds, or '
            'checkpoint = "last" with select_on = "held_out"'
        )
    inner = make_folds(
        multi_hot(train["labels"], context.data.tags), splitter="group" if groups else config.splitter, n=n,
        seed=config.seed, groups=groups, tags=context.data.tags,
    )
    return train.assign(is_valid=inner == 0)


def _inner_groups(train: pd.DataFrame, config: Folds) -> tuple[list[Any] | None, str]:
    """Return what an inner split keeps together, None where clips are split one by one, and its unit for messages."""
    if config.group_col is not None:
        return list(train[config.group_col]), f"value of {config.group_col} among its training clips"
    if has_segments(train["path"]):
        return [file_of(path) for path in train["path"]], "file among its training clips"
    return None, "training clip"


def _with_noisy(context: FoldContext, table: pd.DataFrame, selection: LabelSelection) -> pd.DataFrame:
    """Append the selected noisy clips to the curated ones; the labels of soft targets are the tags above 0.5."""
    tags = context.data.tags
    labels = [[tags[k] for k in np.flatnonzero(row[:len(tags)] > 0.5)] for row in selection.targ]
    rows = pd.DataFrame(
        {
            "fname": list(selection.fnames),
            "path": _noisy_paths(context, selection),
            "labels": pd.Series(labels, dtype=object),
            "is_valid": False,
            "noisy": selection.noisy,
            "source": list(selection.source),
        }
    )
    return pd.concat([table.assign(noisy=False, source="curated"), rows], ignore_index=True)


def _noisy_paths(context: FoldContext, selection: LabelSelection) -> list[str]:
    """Return the path of each selected row."""
    assert context.noisy is not None
    paths = dict(zip(context.noisy["fname"], context.noisy["path"], strict=True))
    return [str(paths[name]) for name in selection.fnames]


def trained_learner(context: FoldContext, fold: int, table: pd.DataFrame) -> FatLearner:
    """Return the learner of a fold that was trained before, with its weights; parameters as in `fold_learner`."""
    learn = fold_learner(context, fold, table)
    load_weights(learn.path / WEIGHTS, learn.model)
    return learn


def sample_weight_callbacks(
    context: FoldContext, learn: FatLearner, selection: LabelSelection | None
) -> list[Callback]:
    """Return the callback for sample weights, noisy flags and targets of noisy clips; empty where none are needed."""
    two_heads = has_two_heads(context.recipe)
    if selection is None and not two_heads:
        return []
    weights: dict[str, Any] = {}
    targets: dict[str, np.ndarray] = {}
    if selection is not None:
        # By path: a curated clip may have the name of a noisy one.
        paths = _noisy_paths(context, selection)
        weights, targets = (dict(zip(paths, v, strict=True)) for v in (selection.weight, selection.targ))
    if two_heads:
        curated = learn.dls.files(0)
        curated = curated[~curated["path"].isin(targets)]
        second = second_head(multi_hot(curated["labels"], learn.tags), noisy=False)
        for path, targ, weight in zip(curated["path"], *second, strict=True):
            targets[path], weights[path] = targ, weight
    elif selection is not None and not selection.is_soft:
        targets = {}
    return [SampleWeights(weights, targets=targets)]


def _fit_round(
    context: FoldContext, fold: int, learn: FatLearner, number: int, selection: LabelSelection | None,
    student: Student,
) -> None:
    """Fit the stages of a round that are not done yet."""
    recipe, stages = context.recipe, context.recipe.rounds()[number]
    # A saved state holds the work of all stages before it.
    first = max((k for k in stages if (learn.path / _state_path(k)).exists()), default=stages.start)
    if number and not recipe.stages[stages.start].reinit:
        load_weights(learn.path / _round_path(number - 1), learn.model)
    source_weights = dict(selection.source_weights) if selection is not None and selection.source_weights else None
    for k in range(first, stages.stop):
        notes = {"recipe": recipe.digest(), "data": context.digest, "fold": fold, "stage": k}
        cbs: list[Callback] = [ResumeTraining(learn.path / _state_path(k), notes)]
        if recipe.stages[k].teacher is None:
            cbs += sample_weight_callbacks(context, learn, selection)
        else:
            cbs.append(teacher_callback(student, recipe.stages[k], learn, selection))
        cbs += context.stage_cbs(fold, k)
        best = _best_of_stages(recipe, learn.path, k)
        features = context.features if _shares_features(context, learn, len(context.data.curated)) else None
        fit_stage(
            learn, recipe.stages[k], number=k, cbs=cbs, source_weights=source_weights, best=best, features=features
        )


def _best_of_stages(recipe: Recipe, folder: Path, stage: int) -> BestOfStages | None:
    """Return the checkpoint callback of a stage that shares its best weights with other stages, else None."""
    tracked, checkpoint = recipe.tracks_best(stage), recipe.stages[stage].checkpoint
    if not tracked and checkpoint != "best_overall":
        return None
    before = folder / _best_path(stage - 1) if stage and recipe.tracks_best(stage - 1) else None
    after = folder / _best_path(stage) if tracked else None
    return BestOfStages(before, after, load=checkpoint != "last", fname=f"best_of_stage_{stage}")


def _save(learn: FatLearner, path: Path) -> None:
    notes = {
        "tags": list(learn.tags),
        "in_channels": learn.dls.to_spec.n_channels,
        "prior": [float(p) for p in learn.dls.prior()],
    }
    save_weights(path, learn.model, {"fatai": json.dumps(notes)})


def _remove_states(learn: FatLearner, number: int, stage: int, is_last: bool) -> None:
    """Remove states, best weights and weights of earlier rounds after round `number`, which ended with `stage`.

    The best weights of `stage` itself stay for the next round, unless the round is the last.
    """
    best = [learn.path / _best_path(k) for k in range(stage + is_last)]
    earlier = [learn.path / _round_path(k) for k in range(number)]
    for path in (*learn.path.glob("state_*.pt"), *best, *earlier):
        path.unlink(missing_ok=True)
    shutil.rmtree(learn.path / learn.model_dir, ignore_errors=True)
