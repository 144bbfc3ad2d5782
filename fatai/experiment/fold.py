"""One fold of a recipe: trained round after round, resumed where a killed run left it, its predictions kept beside the weights.

A *round* is the stages that a fold fits on the same clips: a new one begins where noisy clips are chosen, which all folds' models judge
together, where noisy clips are no longer trained on, and where a stage begins with fresh weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from fastai.callback.core import Callback
from fastai.torch_core import set_seed

from fatai.io.atomic import write_text
from fatai.data.blocks import FATDataLoaders
from fatai.data.datasets.fat2019 import FATDataset
from fatai.data.labels import multi_hot
from fatai.errors import CheckpointError
from fatai.inference.predictions import Predictions
from fatai.experiment.best import BestOfStages
from fatai.experiment.build import has_two_heads, recipe_network
from fatai.experiment.recipe import Recipe
from fatai.experiment.stage import fit_stage
from fatai.io.json import read_json_limited
from fatai.callbacks.callbacks import quiet_unless_terminal
from fatai.distributed import SINGLE_PROCESS, ProcessGroup
from fatai.models.checkpoint import load_weights, save_weights
from fatai.noisy_labels.selection import LabelSelection
from fatai.inference.learner import FatLearner, fat_learner
from fatai.noisy_labels.methods import second_head
from fatai.callbacks.resume import ResumeTraining
from fatai.callbacks.sample_weights import SampleWeights

__all__ = ["WEIGHTS", "FoldContext", "FoldResult", "fold_learner", "sample_weight_callbacks", "train_fold"]

WEIGHTS = "model.safetensors"
_APART = 1_000_003  # between the seeds of processes: folds and users take neighbouring ones


@dataclass(frozen=True)
class FoldContext:
    """What is the same for all folds of a run.

    Attributes
    ----------
    digest
        Of the data; a state of other data is not gone on from.
    noisy
        The noisy clips that can be read: fname, path, labels; None where there are none.
    predict_test
        Whether the last round predicts the test part.
    say
        What takes a line of progress.
    group
        Processes that train every fold together; alone, where each process has folds of its own.
    """

    data: FATDataset
    recipe: Recipe
    out: Path
    digest: str
    noisy: pd.DataFrame | None = None
    predict_test: bool = True
    num_workers: int | None = None
    cache_dir: str | Path | None = None
    say: Callable[[str], None] = print
    group: ProcessGroup = SINGLE_PROCESS


@dataclass(frozen=True)
class FoldResult:
    """Predictions of a fold: after the last round of held-out clips and, if asked, of the test part; before it, of noisy clips."""

    oof_score: Predictions | None = None
    test: Predictions | None = None
    noisy: Predictions | None = None


def train_fold(
    job: FoldContext, fold: int, table: pd.DataFrame, number: int = 0, chosen: LabelSelection | None = None
) -> FoldResult:
    """Train a round of a fold and predict, or do what of it is not done yet.

    Parameters
    ----------
    table
        One row a clip: fname, path, labels, is_valid.
    number
        Of the round.
    chosen
        The noisy clips of the round; None trains on curated ones alone.

    Raises
    ------
    CheckpointError
        If the fold's folder holds a state of another run.
    """
    folder, rounds = job.out / f"fold_{fold}", job.recipe.rounds()
    last = number == len(rounds) - 1
    job.group.barrier()  # what the others still write of the fold before is no answer to what is done
    done = _done(job, folder) if last else _round_done(job, folder, number)
    if done is not None:
        if last:
            job.say(f"fold {fold}: done before")
        return done
    part = "" if len(rounds) == 1 else f"round {number + 1} of {len(rounds)}, "
    held, more = int(table["is_valid"].sum()), "" if chosen is None else f" and {len(chosen)} noisy ones"
    job.say(f"fold {fold}: {part}training on {len(table) - held} clips{more}, held out {held}")
    learn = fold_learner(job, fold, table, chosen)
    weights = folder / (WEIGHTS if last else _round_path(number))
    with learn.distrib_ctx(group=job.group):
        if job.group.broadcast(weights.exists()):
            load_weights(weights, learn.model)
        else:
            _fit_round(job, fold, learn, number, chosen)
            if job.group.is_main:
                _save(learn, weights)
        if job.group.is_main:
            _remove_states(learn, number, rounds[number].stop - 1, last)
        if not last:
            return FoldResult(
                noisy=_predict_noisy(job, fold, learn, number) if job.recipe.predicts_noisy_after(number) else None
            )
        return _predict(job, fold, learn, table)


def _predict(job: FoldContext, fold: int, learn: FatLearner, table: pd.DataFrame) -> FoldResult:
    oof_score = _predict_items(job, learn, table[table["is_valid"]], f"fold {fold}: held-out clips")
    if job.group.is_main:
        oof_score.to_csv(learn.path / "oof.csv")
    test = None
    if job.predict_test and len(job.data.test):
        test = _predict_items(job, learn, job.data.test, f"fold {fold}: test clips")
    if job.group.is_main:
        if test is not None:
            test.to_csv(learn.path / "test.csv")
        unreadable = {"held_out": oof_score.unreadable, "test": test.unreadable if test else ()}
        write_text(
            learn.path / "fold.json", json.dumps({"digest": job.digest, "unreadable": unreadable}, indent=2) + "\n"
        )
    return FoldResult(oof_score, test)


def _predict_noisy(job: FoldContext, fold: int, learn: FatLearner, number: int) -> Predictions | None:
    if job.noisy is None:
        return None
    judged = _predict_items(job, learn, job.noisy, f"fold {fold}: noisy clips")
    if job.group.is_main:
        judged.to_csv(learn.path / _noisy_predictions_path(number))
    return judged


def _predict_items(job: FoldContext, learn: FatLearner, items: pd.DataFrame, desc: str) -> Predictions:
    tta = job.recipe.tta
    return learn.tta(
        items=items, desc=desc, views=tta.views, n=tta.n, average=tta.average, seed=job.recipe.seed, **tta.options
    )


def _done(job: FoldContext, folder: Path) -> FoldResult | None:
    """What a finished fold predicted; None if something is still to do."""
    names = ("oof.csv", "test.csv") if job.predict_test and len(job.data.test) else ("oof.csv",)
    if not all((folder / name).exists() for name in ("fold.json", WEIGHTS, *names)):
        return None
    try:
        notes = read_json_limited(folder / "fold.json")
        digest, unreadable = notes["digest"], {k: tuple(map(str, notes["unreadable"][k])) for k in ("held_out", "test")}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise CheckpointError(
            f"{folder / 'fold.json'} cannot be read ({e!r}); delete it to predict with the fold again"
        ) from None
    if digest != job.digest:
        raise CheckpointError(f"{folder} was trained on other data; choose another folder for this run, or remove it")
    read = [Predictions.from_csv(folder / name) for name in names]
    read = [Predictions(p.fnames, p.tags, p.probs, unreadable[k]) for p, k in zip(read, ("held_out", "test"))]
    return FoldResult(read[0], read[1] if len(read) > 1 else None)


def _round_done(job: FoldContext, folder: Path, number: int) -> FoldResult | None:
    """What an earlier round gave; None if something is still to do."""
    if job.recipe.predicts_noisy_after(number) and job.noisy is not None:
        path = folder / _noisy_predictions_path(number)
        return FoldResult(noisy=Predictions.from_csv(path)) if path.exists() else None
    later = [_round_path(k) for k in range(number, len(job.recipe.rounds()) - 1)]
    return FoldResult() if any((folder / name).exists() for name in (*later, WEIGHTS)) else None


def _round_path(number: int) -> str:
    return f"round_{number}.safetensors"


def _noisy_predictions_path(number: int) -> str:
    return f"judged_{number}.csv"


def fold_learner(job: FoldContext, fold: int, table: pd.DataFrame, chosen: LabelSelection | None = None) -> FatLearner:
    """The learner of a fold with newly drawn weights, for curated clips and the chosen noisy ones."""
    recipe = job.recipe
    # Before the loaders: they draw their shuffle's seed when they are made.
    set_seed(recipe.seed + fold, reproducible=True)
    with job.group.main_process_first():
        dls = FATDataLoaders.from_df(
            table if chosen is None else _with_noisy(job, table, chosen),
            vocab=job.data.tags,
            fn_col="fname",
            path_col="path",
            label_col="labels",
            valid_col="is_valid",
            settings=recipe.settings(),
            bs=recipe.stages[0].bs,
            num_workers=job.num_workers,
            check_files=False,
            cache=recipe.clips.cache,
            cache_dir=job.cache_dir,
        )
    network = recipe_network(recipe, len(dls.tags), dls.to_spec.n_channels)
    learn = quiet_unless_terminal(fat_learner(dls, network, precision=recipe.precision, path=job.out / f"fold_{fold}"))
    if not job.group.is_main:
        # The same weights and batches, but crops and changes of its own.
        set_seed(recipe.seed + fold + _APART * job.group.rank, reproducible=True)
    return learn


def _with_noisy(job: FoldContext, table: pd.DataFrame, chosen: LabelSelection) -> pd.DataFrame:
    """Curated clips, then the chosen noisy ones; of soft targets the labels are what is above one half."""
    assert job.noisy is not None
    paths = dict(zip(job.noisy["fname"], job.noisy["path"]))
    n_tags = len(job.data.tags)
    labels = [[job.data.tags[k] for k in np.flatnonzero(row[:n_tags] > 0.5)] for row in chosen.targ]
    rows = pd.DataFrame(
        {
            "fname": list(chosen.fnames),
            "path": [paths[name] for name in chosen.fnames],
            "labels": pd.Series(labels, dtype=object),
            "is_valid": False,
            "noisy": chosen.noisy,
            "source": list(chosen.source),
        }
    )
    return pd.concat([table.assign(noisy=False, source="curated"), rows], ignore_index=True)


def sample_weight_callbacks(job: FoldContext, learn: FatLearner, chosen: LabelSelection | None) -> list[Callback]:
    """What tells the loss of weights, marks and targets of noisy clips."""
    if chosen is None and not has_two_heads(job.recipe):
        return []
    weights, targets = (dict(chosen.weight_of), dict(chosen.target_of)) if chosen is not None else ({}, {})
    if has_two_heads(job.recipe):
        own = learn.dls.files(0)
        own = own[~own["fname"].isin(targets)]
        rows = zip(own["fname"], *second_head(multi_hot(own["labels"], learn.tags), noisy=False))
        for fname, targ, weight in rows:
            targets[fname], weights[fname] = targ, weight
    elif chosen is not None and not chosen.soft:
        targets = {}
    return [SampleWeights(weights, targets=targets)]


def _fit_round(job: FoldContext, fold: int, learn: FatLearner, number: int, chosen: LabelSelection | None) -> None:
    """All stages of a round that are not done yet."""
    stages = job.recipe.stages
    states = {k: learn.path / _state(k) for k in job.recipe.rounds()[number]}
    # A state holds all that came before it.
    begun = max((k for k, state in states.items() if state.exists()), default=job.recipe.rounds()[number].start)
    if number and not stages[job.recipe.rounds()[number].start].reinit:
        load_weights(learn.path / _round_path(number - 1), learn.model)
    for k, state in states.items():
        if k < begun:
            continue
        weighted = sample_weight_callbacks(job, learn, chosen)
        notes = {"recipe": job.recipe.digest(), "data": job.digest, "fold": fold, "stage": k}
        shares = dict(chosen.shares) if chosen is not None and chosen.shares else None
        best = _best_of_stages(job.recipe, learn.path, k)
        fit_stage(learn, stages[k], number=k, cbs=[ResumeTraining(state, notes), *weighted], shares=shares, best=best)


def _best_of_stages(recipe: Recipe, folder: Path, stage: int) -> BestOfStages | None:
    """What keeps the best weights of a stage whose best are compared with those of others; None where they aren't."""
    tracked, checkpoint = recipe.tracks_best(stage), recipe.stages[stage].checkpoint
    if not tracked and checkpoint != "best_overall":
        return None
    before = folder / _best_path(stage - 1) if stage and recipe.tracks_best(stage - 1) else None
    after = folder / _best_path(stage) if tracked else None
    return BestOfStages(before, after, load=checkpoint != "last", fname=f"best_of_stage_{stage}")


def _best_path(stage: int) -> str:
    return f"best_until_{stage}.safetensors"


def _state(stage: int) -> str:
    return f"state_{stage}.safetensors"


def _save(learn: FatLearner, path: Path) -> None:
    notes = {
        "tags": list(learn.tags),
        "in_channels": learn.dls.to_spec.n_channels,
        "prior": [float(p) for p in learn.dls.prior()],
    }
    save_weights(path, learn.model, {"fatai": json.dumps(notes)})


def _remove_states(learn: FatLearner, number: int, stage: int, last: bool) -> None:
    """The weights are kept; states and the best of stages have done their work, and so have the weights of the round before.

    What the round `number`, which ended with `stage`, leaves of its best weights is for the next one, if it isn't the `last`.
    """
    bests = [learn.path / _best_path(k) for k in range(stage + last)]
    for leftover in (
        *learn.path.glob("state_*.safetensors"),
        *bests,
        *(learn.path / _round_path(k) for k in range(number)),
    ):
        leftover.unlink(missing_ok=True)
    shutil.rmtree(learn.path / learn.model_dir, ignore_errors=True)
