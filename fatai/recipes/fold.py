"""One fold of a recipe: trained stage after stage, resumed where a killed run left it, its predictions kept beside the weights."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from fastai.callback import schedule as _  # noqa: F401 - gives learners fit_one_cycle
from fastai.data.core import TfmdDL
from fastai.optimizer import Adam
from fastai.torch_core import set_seed

from fatai.atomic import write_text_atomic
from fatai.data.blocks import FATDataLoaders
from fatai.data.fat2019 import FATData
from fatai.data.labels import multi_hot
from fatai.data.sampling import Balanced, SampledDL
from fatai.errors import CheckpointError
from fatai.infer import tta as _tta  # noqa: F401 - gives learners tta
from fatai.infer.predictions import Predictions
from fatai.recipes.recipe import Recipe, Stage, built
from fatai.registry import AUGMENTATIONS, MIXERS
from fatai.train.callbacks import ClampGradients, KeepBest, StopOnNaN, quiet_unless_terminal, scheduled
from fatai.train.crossval import load_weights, save_weights
from fatai.train.history import History
from fatai.train.learner import FatLearner, fat_learner, named_loss
from fatai.train.resume import Resumable

__all__ = ["WEIGHTS", "FoldJob", "FoldResult", "fit_stage", "fold_learner", "train_fold"]

WEIGHTS = "model.safetensors"
# The arithmetic of torch's Adam, which the published systems use; fastai's own defaults are sqr_mom 0.99 and eps 1e-5.
_OPTIMIZERS = {
    "adam": partial(Adam, decouple_wd=False, sqr_mom=0.999, eps=1e-8),
    "adamw": partial(Adam, decouple_wd=True, sqr_mom=0.999, eps=1e-8),
}


@dataclass(frozen=True)
class FoldJob:
    """What is the same for all folds of a run.

    Attributes
    ----------
    digest
        Of the data; a state of other data is not gone on from.
    predict_test
        Whether the fold predicts the test part.
    say
        What takes a line of progress.
    """

    data: FATData
    recipe: Recipe
    out: Path
    digest: str
    predict_test: bool = True
    num_workers: int | None = None
    cache_dir: str | Path | None = None
    say: Callable[[str], None] = print


@dataclass(frozen=True)
class FoldResult:
    """Predictions of a trained fold: for the clips that it held out, and for the test part if it was asked."""

    held_out: Predictions
    test: Predictions | None


def train_fold(job: FoldJob, fold: int, table: pd.DataFrame) -> FoldResult:
    """Train a fold and predict, or do what of it is not done yet.

    Parameters
    ----------
    table
        One row a clip: fname, path, labels, is_valid.

    Raises
    ------
    CheckpointError
        If the fold's folder holds a state of another run.
    """
    folder = job.out / f"fold_{fold}"
    done = _done(job, folder)
    if done is not None:
        job.say(f"fold {fold}: done before")
        return done
    held = int(table["is_valid"].sum())
    job.say(f"fold {fold}: training on {len(table) - held} clips, held out {held}")
    learn = fold_learner(job, fold, table)
    if (folder / WEIGHTS).exists():
        load_weights(folder / WEIGHTS, learn.model)
    else:
        _fit_stages(job, fold, learn)
    recipe = job.recipe
    listen = {"how": recipe.listen.how, "n": recipe.listen.n, "mean": recipe.listen.mean, "seed": recipe.seed, **recipe.listen.options}
    held_out = learn.tta(items=table[table["is_valid"]], what=f"fold {fold}: held-out clips", **listen)
    held_out.to_csv(folder / "oof.csv")
    test = None
    if job.predict_test and len(job.data.test):
        test = learn.tta(items=job.data.test, what=f"fold {fold}: test clips", **listen)
        test.to_csv(folder / "test.csv")
    unreadable = {"held_out": held_out.unreadable, "test": test.unreadable if test else ()}
    write_text_atomic(folder / "fold.json", json.dumps({"digest": job.digest, "unreadable": unreadable}, indent=2) + "\n")
    return FoldResult(held_out, test)


def _done(job: FoldJob, folder: Path) -> FoldResult | None:
    """What a finished fold predicted; None if something is still to do."""
    names = ("oof.csv", "test.csv") if job.predict_test and len(job.data.test) else ("oof.csv",)
    if not all((folder / name).exists() for name in ("fold.json", WEIGHTS, *names)):
        return None
    try:
        notes = json.loads((folder / "fold.json").read_text(encoding="utf-8"))
        digest, unreadable = notes["digest"], {k: tuple(map(str, notes["unreadable"][k])) for k in ("held_out", "test")}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{folder / 'fold.json'} cannot be read ({e!r}); delete it to predict with the fold again") from None
    if digest != job.digest:
        raise CheckpointError(f"{folder} was trained on other data; choose another folder for this run, or remove it")
    read = [Predictions.from_csv(folder / name) for name in names]
    read = [Predictions(p.fnames, p.tags, p.probs, unreadable[k]) for p, k in zip(read, ("held_out", "test"))]
    return FoldResult(read[0], read[1] if len(read) > 1 else None)


def fold_learner(job: FoldJob, fold: int, table: pd.DataFrame) -> FatLearner:
    """The learner of a fold as it stands before the first stage."""
    recipe = job.recipe
    # Before the loaders: they draw their shuffle's seed when they are made.
    set_seed(recipe.seed + fold, reproducible=True)
    dls = FATDataLoaders.from_df(
        table, vocab=job.data.tags, fn_col="fname", path_col="path", label_col="labels", valid_col="is_valid", settings=recipe.settings(),
        bs=recipe.stages[0].bs, num_workers=job.num_workers, check_files=False, cache=recipe.clips.cache, cache_dir=job.cache_dir,
    )
    return quiet_unless_terminal(fat_learner(
        dls, recipe.model.arch, width=recipe.model.width, arch_options=recipe.model.options, precision=recipe.precision,
        path=job.out / f"fold_{fold}",
    ))


def _fit_stages(job: FoldJob, fold: int, learn: FatLearner) -> None:
    """All stages that are not done yet; then the weights, and nothing else of them, stay."""
    stages, folder = job.recipe.stages, learn.path
    states = [folder / f"state_{number}.safetensors" for number in range(len(stages))]
    # A state holds all that came before it.
    begun = max((number for number, state in enumerate(states) if state.exists()), default=0)
    for number, stage in list(enumerate(stages))[begun:]:
        notes = {"recipe": job.recipe.digest(), "data": job.digest, "fold": fold, "stage": number}
        fit_stage(learn, stage, number=number, cbs=[Resumable(states[number], notes)])
    notes = {"tags": list(learn.tags), "in_channels": learn.dls.to_spec.n_channels, "prior": [float(p) for p in learn.dls.prior()]}
    save_weights(folder / WEIGHTS, learn.model, {"fatai": json.dumps(notes)})
    for state in states:
        state.unlink(missing_ok=True)
    shutil.rmtree(folder / learn.model_dir, ignore_errors=True)


def fit_stage(learn: FatLearner, stage: Stage, *, number: int = 0, cbs: Any = ()) -> FatLearner:
    """Fit a learner as a stage of a recipe says; its `path` takes history.csv and, below `models/`, the best weights.

    Parameters
    ----------
    number
        Which stage it is: with 0, history.csv begins anew.
    cbs
        Further callbacks of this fit.
    """
    learn.path.mkdir(parents=True, exist_ok=True)
    _set_batches(learn, stage)
    learn.loss_func = named_loss(stage.loss, learn.model, **stage.loss_options)
    learn.opt_func, learn.no_decay, learn.wd, learn.opt = _OPTIMIZERS[stage.optimizer], stage.no_decay, stage.wd, None
    # Those that write files go to this fit alone: among the learner's own callbacks they would overwrite them at every validate().
    cbs = [*cbs, StopOnNaN(), History(learn.path / "history.csv", stage.name, append=number > 0)]
    cbs += [built(AUGMENTATIONS, change) for change in stage.augment]
    if stage.mixup is not None:
        cbs.append(built(MIXERS, stage.mixup))
    if stage.clamp_gradients is not None:
        cbs.append(ClampGradients(stage.clamp_gradients))
    if stage.keep == "best" and len(learn.dls.valid_ds):
        cbs.append(KeepBest(monitor="lwlrap", fname=f"best_of_stage_{number}"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*numpy.core.*", category=DeprecationWarning)
        if stage.schedule == "one_cycle":
            learn.fit_one_cycle(stage.epochs, stage.lr, cbs=cbs, **stage.schedule_options)
        else:
            learn.fit(stage.epochs, stage.lr, cbs=[*cbs, scheduled(stage.schedule, stage.epochs, stage.lr, **stage.schedule_options)])
    return learn


def _set_batches(learn: FatLearner, stage: Stage) -> None:
    """Loaders that make a stage's batches."""
    bs = max(1, min(stage.bs, len(learn.dls.train_ds)))
    for dl in learn.dls.loaders:
        dl.bs = bs
    train = learn.dls.train
    if stage.sampling == "balanced":
        targ: np.ndarray = multi_hot(learn.dls.files(0)["labels"], learn.dls.tags)
        learn.dls.loaders[0] = train.new(cls=SampledDL, sampler=Balanced(targ, **stage.sampling_options), bs=bs)
    elif isinstance(train, SampledDL):
        learn.dls.loaders[0] = train.new(cls=TfmdDL, bs=bs, shuffle=True, drop_last=True, n=None)
