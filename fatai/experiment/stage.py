"""Fit a learner by one stage of a recipe: set its batches, loss, optimizer, schedule and callbacks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from fastai.callback import schedule  # noqa: F401 - gives learners fit_one_cycle
from fastai.callback.core import Callback
from fastai.callback.tracker import EarlyStoppingCallback
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.optimizer import SGD, OptimWrapper
from fastai.torch_core import trainable_params
from torch import nn
from torch.utils.data import RandomSampler, Sampler

from fatai.augment.item import ItemAugmentations
from fatai.callbacks.augmentation import DisableAugmentation
from fatai.callbacks.averaging import WeightAverage
from fatai.callbacks.batch_norm import FreezeBatchNorm
from fatai.callbacks.checkpoint import BestOfStages, SaveBestModel
from fatai.callbacks.csv_logger import EpochCSVLogger
from fatai.callbacks.failure import SplitBatchOnOOM, TerminateOnNaN
from fatai.callbacks.gradients import ClipGradValue
from fatai.callbacks.layer_decay import LayerDecay
from fatai.callbacks.out_of_memory import translate_errors
from fatai.callbacks.schedulers import StopAtLR, schedule_callback
from fatai.data.clip_loader import ClipDL
from fatai.data.labels import multi_hot
from fatai.data.samplers import BalancedSampler, MixtureSampler, SampledDL
from fatai.errors import OptionError
from fatai.experiment.frozen_features import FrozenFeatures
from fatai.experiment.linear_head import solve_last_layer
from fatai.experiment.schema import Stage, build_named
from fatai.inference.learner import FatLearner
from fatai.metrics.classification import main_metric
from fatai.models import count_parameters
from fatai.registry import AUGMENTATIONS, MIXERS
from fatai.threads import network_threads
from fatai.training.learner import decay_layers, named_loss
from fatai.training.optimizer import FusedAdam

__all__ = ["fit_stage", "prepare_stage"]

# As torch's Adam, which the published systems use; fastai's own defaults are sqr_mom 0.99 and eps 1e-5.
_OPTIMIZERS: dict[str, Callable[[Stage], Any]] = {
    "adam": lambda stage: partial(FusedAdam, decouple_wd=False, sqr_mom=stage.sqr_mom, eps=1e-8),
    "adamw": lambda stage: partial(FusedAdam, decouple_wd=True, sqr_mom=stage.sqr_mom, eps=1e-8),
    "amsgrad": lambda stage: partial(OptimWrapper, opt=torch.optim.Adam, amsgrad=True, fused=True),
    "sgd": lambda stage: partial(SGD, mom=stage.momentum, decouple_wd=False),
}


def stage_augmentations(stage: Stage) -> list[tuple[str, Any]]:
    """Build the batch augmentations of a stage and its mixer as pairs of name and callback, in order."""
    augmentations = [(table["name"], build_named(AUGMENTATIONS, table)) for table in stage.augment]
    if stage.mixup is not None:
        augmentations.append((stage.mixup["name"], build_named(MIXERS, stage.mixup)))
    return augmentations


def curated_only(stage: Stage) -> Stage:
    """Return a stage as it would train on curated clips alone, for previews before noisy clips are selected."""
    sampling = {"sampling": "shuffle", "sampling_options": {}} if stage.sampling == "mixture" else {}
    return stage.model_copy(update={**sampling, "noisy_labels": None})


def prepare_stage(
    learn: FatLearner, stage: Stage, *, source_weights: dict[str, float] | None = None
) -> list[Callback]:
    """Set the batches, loss and optimizer of a learner as a stage of a recipe defines them.

    Parameters
    ----------
    source_weights
        How often sampling "mixture" draws from each source, unless the stage itself sets it.

    Returns
    -------
    The callbacks of the stage that write no files; pass them to the fit.
    """
    _set_batches(learn, stage, source_weights)
    learn.loss_func = named_loss(stage.loss, learn.model, **stage.loss_options)
    _set_tag_counts(learn)
    learn.opt_func, learn.opt = _OPTIMIZERS[stage.optimizer](stage), None
    learn.no_weight_decay, learn.wd = stage.no_weight_decay, stage.wd
    learn.splitter = _splitter(stage)
    return [
        *_augmentation_callbacks(stage),
        *_gradient_callbacks(learn, stage),
        *([] if stage.ema_decay is None else [WeightAverage(stage.ema_decay)]),
        *([] if stage.layer_decay is None else [LayerDecay(stage.layer_decay)]),
        *([FreezeBatchNorm()] if stage.freeze_bn else []),
        *_stopping_callbacks(learn, stage),
    ]


def _splitter(stage: Stage) -> Callable[[nn.Module], Any]:
    """Return the function that splits a model into groups of parameters with learning rates of their own."""
    if stage.layer_decay is not None:
        return decay_layers
    return trainable_params if stage.lr_min is None else _layer_groups


def _augmentation_callbacks(stage: Stage) -> list[Callback]:
    cbs = [augmentation for _, augmentation in stage_augmentations(stage)]
    if stage.item_tfms:
        cbs.append(ItemAugmentations(*(build_named(AUGMENTATIONS, table) for table in stage.item_tfms)))
    if stage.no_aug_epochs is not None or stage.no_mixup_epochs is not None:
        cbs.append(DisableAugmentation(stage.no_aug_epochs, last_mixup=stage.no_mixup_epochs))
    return cbs


def _gradient_callbacks(learn: FatLearner, stage: Stage) -> list[Callback]:
    cbs: list[Callback] = []
    if stage.grad_accum > 1:
        cbs.append(GradientAccumulation(stage.grad_accum * learn.dls.train.bs))  # fastai counts clips, not batches
    if stage.clip_grad_norm is not None:
        cbs.append(GradientClip(stage.clip_grad_norm))
    if stage.clip_grad_value is not None:
        cbs.append(ClipGradValue(stage.clip_grad_value))
    return cbs


def _stopping_callbacks(learn: FatLearner, stage: Stage) -> list[Callback]:
    cbs: list[Callback] = []
    if stage.early_stopping_patience is not None and len(learn.dls.valid_ds):
        cbs.append(EarlyStoppingCallback(monitor=main_metric(len(learn.tags)), patience=stage.early_stopping_patience))
    if stage.min_lr_stop is not None:
        cbs.append(StopAtLR(stage.min_lr_stop))
    return cbs


def fit_stage(
    learn: FatLearner,
    stage: Stage,
    *,
    number: int = 0,
    cbs: Sequence[Callback] = (),
    source_weights: dict[str, float] | None = None,
    best: BestOfStages | None = None,
    features: FrozenFeatures | None = None,
) -> FatLearner:
    """Fit a learner by a stage of a recipe.

    The learner's `path` gets history.csv and, below `models/`, the best weights.

    Parameters
    ----------
    number
        Number of the stage; 0 starts a new history.csv, other numbers append to it.
    cbs
        Further callbacks of this fit.
    source_weights
        As in `prepare_stage`.
    best
        Checkpoint callback in place of the stage's own, for stages that share their best weights.
    features
        Features that linear probes of several folds share; None embeds the training clips.

    Returns
    -------
    The learner.
    """
    learn.path.mkdir(parents=True, exist_ok=True)
    if stage.linear_probe is not None:
        _set_batches(learn, stage, source_weights)
        options: dict[Any, Any] = {"C": 2.0, "max_iter": 1000, **stage.linear_probe}
        solve_last_layer(learn, C=options["C"], max_iter=int(options["max_iter"]), features=features)
        return learn
    # Callbacks that write files belong to this fit only: among the learner's own they would overwrite them at every
    # validate().
    cbs = [*cbs, *prepare_stage(learn, stage, source_weights=source_weights), TerminateOnNaN(), SplitBatchOnOOM()]
    cbs.append(EpochCSVLogger(learn.path / "history.csv", stage.name, append=number > 0))
    if (best is not None or stage.checkpoint != "last") and len(learn.dls.valid_ds):
        cbs.append(best or SaveBestModel(fname=f"best_of_stage_{number}"))
    with warnings.catch_warnings(), translate_errors(f"batches of {stage.bs} clips"):
        warnings.filterwarnings("ignore", message=".*numpy.core.*", category=DeprecationWarning)
        with network_threads(count_parameters(learn.model)):
            _fit(learn, stage, cbs)
    return learn


def _fit(learn: FatLearner, stage: Stage, cbs: list[Callback]) -> None:
    lr = stage.lr if stage.lr_min is None else slice(stage.lr_min, stage.lr)
    if stage.schedule == "one_cycle":
        learn.fit_one_cycle(stage.epochs, lr, cbs=cbs, **stage.schedule_options)
    else:
        options = dict(stage.schedule_options)
        if options.get("monitor") == "lwlrap":
            options["monitor"] = main_metric(len(learn.tags))
        scheduler = schedule_callback(stage.schedule, stage.epochs, stage.lr, **options)
        learn.fit(stage.epochs, lr, cbs=[*cbs, scheduler])


def _layer_groups(model: nn.Module) -> list[list[nn.Parameter]]:
    if not hasattr(model, "layer_groups"):
        raise OptionError(
            f"lr_min is set, but {type(model).__name__} has no layer groups; leave lr_min out or "
            "add a method layer_groups"
        )
    return model.layer_groups()  # type: ignore[operator]


def _set_tag_counts(learn: FatLearner) -> None:
    """Pass the number of curated training clips per tag, shape (tags,), to losses that weight tags by it."""
    weighted = [part for part in learn.loss_func.modules() if hasattr(part, "set_counts")]
    if weighted:
        table = learn.dls.files(0)
        curated = table[~table["noisy"].astype(bool)] if "noisy" in table.columns else table
        counts = multi_hot(curated["labels"], learn.dls.tags).sum(0)
        for part in weighted:
            part.set_counts(counts)


def _set_batches(learn: FatLearner, stage: Stage, source_weights: dict[str, float] | None) -> None:
    """Set batch size and sampler of the loaders."""
    bs = max(1, min(stage.bs, len(learn.dls.train_ds)))
    for dl in learn.dls.loaders:
        dl.bs = bs
    train, sampler = learn.dls.train, _sampler(learn, stage, source_weights)
    if sampler is not None:
        learn.dls.loaders[0] = train.new(cls=SampledDL, sampler=sampler, bs=bs)
    elif isinstance(train, SampledDL):
        learn.dls.loaders[0] = train.new(cls=ClipDL, bs=bs, shuffle=True, drop_last=True, n=None)


def _sampler(learn: FatLearner, stage: Stage, source_weights: dict[str, float] | None) -> Sampler[int] | None:
    """Return the sampler of the training clips; None for shuffling all of them once."""
    table, options = learn.dls.files(0), dict(stage.sampling_options)
    if stage.sampling == "shuffle":
        return RandomSampler(range(len(table)), num_samples=options["n"]) if options else None
    if stage.sampling == "balanced":
        return BalancedSampler(multi_hot(table["labels"], learn.dls.tags), **options)
    weights = options.pop("weights", source_weights)
    if weights is None:
        raise OptionError(
            f"stage {stage.name} has sampling \"mixture\" without weights of the sources; set sampling_options.weights"
        )
    sources = table["source"] if "source" in table.columns else ["curated"] * len(table)
    return MixtureSampler(list(sources), weights, **{"n": len(table), **options})
