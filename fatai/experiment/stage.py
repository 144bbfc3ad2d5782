"""One stage of a recipe: a learner's batches, loss, optimiser, schedule and callbacks, and the fit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from fastai.callback import schedule as _  # noqa: F401 - gives learners fit_one_cycle
from fastai.callback.core import Callback
from fastai.callback.tracker import EarlyStoppingCallback
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.core import TfmdDL
from fastai.optimizer import SGD, Adam, OptimWrapper
from fastai.torch_core import trainable_params
from torch import nn

from fatai.augment.item import ItemAugmentations
from fatai.data.labels import multi_hot
from fatai.data.samplers import BalancedSampler, MixtureSampler, SampledDL
from fatai.errors import OptionError
from fatai.experiment.best import BestOfStages
from fatai.experiment.linear_head import solve_last_layer
from fatai.experiment.schema import Stage, build_named
from fatai.registry import AUGMENTATIONS, MIXERS
from fatai.callbacks.callbacks import (
    DisableAugmentation,
    ClipGradValue,
    SplitBatchOnOOM,
    SaveBestModel,
    StopAtLR,
    TerminateOnNaN,
    schedule_callback,
)
from fatai.callbacks.failure import translate_errors
from fatai.callbacks.history import EpochCSVLogger
from fatai.inference.learner import FatLearner
from fatai.training.learner import named_loss

__all__ = ["curated_alone", "fit_stage", "prepare_stage", "stage_changes"]

# The arithmetic of torch's Adam, which the published systems use; fastai's own defaults are sqr_mom 0.99 and eps 1e-5.
_OPTIMIZERS: dict[str, Callable[[Stage], Any]] = {
    "adam": lambda stage: partial(Adam, decouple_wd=False, sqr_mom=stage.sqr_mom, eps=1e-8),
    "adamw": lambda stage: partial(Adam, decouple_wd=True, sqr_mom=stage.sqr_mom, eps=1e-8),
    "amsgrad": lambda stage: partial(OptimWrapper, opt=torch.optim.Adam, amsgrad=True),
    "sgd": lambda stage: partial(SGD, mom=stage.momentum, decouple_wd=False),
}


def stage_changes(stage: Stage) -> list[tuple[str, Any]]:
    """The random changes of a stage's batches with their names: what it augments with, then its mixer."""
    changes = [(change["name"], build_named(AUGMENTATIONS, change)) for change in stage.augment]
    return changes if stage.mixup is None else [*changes, (stage.mixup["name"], build_named(MIXERS, stage.mixup))]


def curated_alone(stage: Stage) -> Stage:
    """The stage as it would train on curated clips alone, for looks and measurements before any noisy clip is chosen."""
    drawn = {"sampling": "shuffle", "sampling_options": {}} if stage.sampling == "mixture" else {}
    return stage.model_copy(update={**drawn, "noisy_labels": None})


def prepare_stage(learn: FatLearner, stage: Stage, *, shares: dict[str, float] | None = None) -> list[Callback]:
    """Give a learner the batches, loss and optimiser of a stage, and return its callbacks that write nothing.

    Parameters
    ----------
    shares
        How often "mixture" draws from each source, where the stage doesn't say.
    """
    _set_batches(learn, stage, shares)
    learn.loss_func = named_loss(stage.loss, learn.model, **stage.loss_options)
    _count_tags(learn)
    learn.opt_func, learn.no_weight_decay, learn.wd, learn.opt = (
        _OPTIMIZERS[stage.optimizer](stage),
        stage.no_weight_decay,
        stage.wd,
        None,
    )
    learn.splitter = trainable_params if stage.lr_min is None else _layer_groups
    cbs = [change for name, change in stage_changes(stage)]
    if stage.item_tfms:
        cbs.append(ItemAugmentations(*(build_named(AUGMENTATIONS, change) for change in stage.item_tfms)))
    if stage.no_aug_epochs is not None:
        cbs.append(DisableAugmentation(stage.no_aug_epochs))
    if stage.grad_accum > 1:
        cbs.append(GradientAccumulation(stage.grad_accum * learn.dls.train.bs))
    if stage.clip_grad_norm is not None:
        cbs.append(GradientClip(stage.clip_grad_norm))
    if stage.clip_grad_value is not None:
        cbs.append(ClipGradValue(stage.clip_grad_value))
    if stage.early_stopping_patience is not None and len(learn.dls.valid_ds):
        cbs.append(EarlyStoppingCallback(monitor="lwlrap", patience=stage.early_stopping_patience))
    if stage.min_lr_stop is not None:
        cbs.append(StopAtLR(stage.min_lr_stop))
    return cbs


def fit_stage(
    learn: FatLearner, stage: Stage, *, number: int = 0, cbs: Any = (), shares: dict[str, float] | None = None,
    best: BestOfStages | None = None,
) -> FatLearner:
    """Fit a learner as a stage of a recipe says; its `path` takes history.csv and, below `models/`, the best weights.

    Parameters
    ----------
    number
        Which stage it is: with 0, history.csv begins anew.
    cbs
        Further callbacks of this fit.
    shares
        As in `prepare_stage`.
    best
        What keeps the best weights instead of the stage's own way, where several stages share them.
    """
    learn.path.mkdir(parents=True, exist_ok=True)
    if stage.linear_probe is not None:
        _set_batches(learn, stage, shares)
        solve_last_layer(learn, C=stage.linear_probe.get("C", 2.0), max_iter=int(stage.linear_probe.get("max_iter", 1000)))
        return learn
    # Those that write files go to this fit alone: among the learner's own callbacks they would overwrite them at every validate().
    cbs = [*cbs, *prepare_stage(learn, stage, shares=shares), TerminateOnNaN(), SplitBatchOnOOM()]
    cbs.append(EpochCSVLogger(learn.path / "history.csv", stage.name, append=number > 0))
    if (best is not None or stage.checkpoint != "last") and len(learn.dls.valid_ds):
        cbs.append(best or SaveBestModel(monitor="lwlrap", fname=f"best_of_stage_{number}"))
    lr = stage.lr if stage.lr_min is None else slice(stage.lr_min, stage.lr)
    with warnings.catch_warnings(), translate_errors(f"batches of {stage.bs} clips"):
        warnings.filterwarnings("ignore", message=".*numpy.core.*", category=DeprecationWarning)
        if stage.schedule == "one_cycle":
            learn.fit_one_cycle(stage.epochs, lr, cbs=cbs, **stage.schedule_options)
        else:
            learn.fit(
                stage.epochs,
                lr,
                cbs=[*cbs, schedule_callback(stage.schedule, stage.epochs, stage.lr, **stage.schedule_options)],
            )
    return learn


def _layer_groups(model: nn.Module) -> list[list[nn.Parameter]]:
    if not hasattr(model, "layer_groups"):
        raise OptionError(
            f"lr_min is given, but {type(model).__name__} tells no groups of layers: give it a method layer_groups"
        )
    return model.layer_groups()  # type: ignore[operator]


def _count_tags(learn: FatLearner) -> None:
    """Tell losses that weigh tags by their number how many curated training clips have each."""
    asking = [part for part in learn.loss_func.modules() if hasattr(part, "set_counts")]
    if asking:
        table = learn.dls.files(0)
        own = table[~table["noisy"].astype(bool)] if "noisy" in table.columns else table
        counts = multi_hot(own["labels"], learn.dls.tags).sum(0)
        for part in asking:
            part.set_counts(counts)


def _set_batches(learn: FatLearner, stage: Stage, shares: dict[str, float] | None) -> None:
    """Loaders that make a stage's batches."""
    bs = max(1, min(stage.bs, len(learn.dls.train_ds)))
    for dl in learn.dls.loaders:
        dl.bs = bs
    train, table = learn.dls.train, learn.dls.files(0)
    if stage.sampling == "balanced":
        targ: np.ndarray = multi_hot(table["labels"], learn.dls.tags)
        learn.dls.loaders[0] = train.new(cls=SampledDL, sampler=BalancedSampler(targ, **stage.sampling_options), bs=bs)
    elif stage.sampling == "mixture":
        options = dict(stage.sampling_options)
        given = options.pop("shares", shares)
        if given is None:
            raise OptionError(
                f"stage {stage.name} draws from a mixture, but nobody says its shares: give sampling_options.shares"
            )
        sources = table["source"] if "source" in table.columns else ["curated"] * len(table)
        learn.dls.loaders[0] = train.new(
            cls=SampledDL, sampler=MixtureSampler(list(sources), given, **{"n": len(table), **options}), bs=bs
        )
    elif isinstance(train, SampledDL):
        learn.dls.loaders[0] = train.new(cls=TfmdDL, bs=bs, shuffle=True, drop_last=True, n=None)
