"""`fat_learner`: data and a model name to a `Learner`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastai.callback.core import Callback
from fastai.learner import Learner
from fastcore.foundation import L
from fastcore.meta import delegates
from torch import nn

from fatai.data.blocks import ClipSettings, FATDataLoaders
from fatai.errors import DataError, OptionError
from fatai.models import create_model
from fatai.registry import AUGMENTATIONS, LOSSES, MIXERS, MODELS, did_you_mean
from fatai.metrics.calibration import Calibration
from fatai.audio.front_ends import FrontEnd
from fatai.distributed import SINGLE_PROCESS, ProcessGroup, init
from fatai.losses.losses import AuxLoss
from fatai.training.metrics import LwLRAP
from fatai.training.precision import precision_callbacks

__all__ = ["FatLearner", "NO_WEIGHT_DECAY", "fat_learner", "named_loss", "named_model"]

# Which parameters weight decay leaves alone.
NO_WEIGHT_DECAY = {
    "norm_and_bias": "every bias and the weights of normalisation layers (fastai's default)",
    "bias": "parameters whose name contains 'bias' (the 9th place kernel)",
    "none": "all parameters decay",
}


class FatLearner(Learner):
    """A fastai `Learner` that knows its tags and how its clips are read.

    `learn.tags`, `learn.settings`; `learn.predict(path)` answers with tags and probabilities, best first; `learn.tta(...)` with
    `Predictions`. Both answer calibrated where `learn.calibration` is set.
    """

    no_decay: str = "norm_and_bias"
    calibration: Calibration | None = None
    group: ProcessGroup = SINGLE_PROCESS

    @contextmanager
    def distrib_ctx(
        self, sync_bn: bool = True, *, group: ProcessGroup | None = None, **kwargs: Any
    ) -> Iterator[FatLearner]:
        """fastai's context for several processes, done as `fatai.training.data_parallel` says; started by torchrun, or it changes nothing.

        `kwargs` are those that fastai hands to accelerate, which isn't asked.
        """
        from fatai.training.data_parallel import distribute

        with distribute(self, init() if group is None else group, sync_bn=sync_bn):
            yield self

    @property
    def tags(self) -> tuple[str, ...]:
        return self.dls.tags

    @property
    def settings(self) -> ClipSettings:
        return self.dls.settings

    def create_opt(self) -> None:
        """As fastai's, with the parameters that `no_decay` names left undecayed."""
        self.wd_bn_bias = self.no_decay != "norm_and_bias"
        super().create_opt()
        if self.no_decay == "bias":
            for name, parameter in self.model.named_parameters():
                if "bias" in name:
                    self.opt.state[parameter]["do_wd"] = False


@delegates(Learner.__init__)
def fat_learner(
    dls: FATDataLoaders,
    arch: str | Callable[..., nn.Module] | nn.Module = "m3",
    *,
    width: float | None = None,
    arch_options: dict[str, Any] | None = None,
    loss_func: str | nn.Module | Callable = "bce",
    loss_options: dict[str, Any] | None = None,
    metrics: Any = None,
    no_decay: str = "norm_and_bias",
    precision: str = "auto",
    mixup: str | Callback | None = None,
    spec_augment: str | Callback | None = None,
    augment: Sequence[str | Callback] = (),
    cbs: Any = None,
    **kwargs: Any,
) -> FatLearner:
    """A learner that tags sound.

    Parameters
    ----------
    dls
        Loaders of `FATDataLoaders`; they tell the network its channels and tags.
    arch
        A name of `MODELS`; a function of (n_tags, in_channels); or a module from (batch, channels, mels, frames) to logits (batch, tags).
    width
        Scales the channels of a named model; None leaves it as published.
    arch_options, loss_options
        Further options of the named model and of the named loss.
    loss_func
        A name of `LOSSES`, or any loss of (logits, targ).
    metrics
        None measures lwlrap over the whole validation set.
    no_decay
        A key of `NO_WEIGHT_DECAY`: what weight decay leaves alone.
    precision
        "auto" takes the fastest arithmetic the device has for training and prediction; "fp32", "bf16" insist.
    mixup, spec_augment, augment
        How training batches are mixed, masked and changed otherwise: names of `MIXERS` and `AUGMENTATIONS`, or such callbacks.
    path
        Where the learner writes, below `models/` for instance; the current folder, not that of the data.

    Raises
    ------
    UnknownNameError
        No such arch or loss, with the nearest name.
    """
    # fastai's default is the folder of the data, which may be read-only or not one's own.
    kwargs.setdefault("path", Path())
    if no_decay not in NO_WEIGHT_DECAY:
        raise OptionError(f"no_decay is {no_decay!r}; {did_you_mean(no_decay, list(NO_WEIGHT_DECAY))}")
    if not isinstance(dls, FATDataLoaders):
        raise DataError(
            f"dls is a {type(dls).__name__}; expected FATDataLoaders: make them with FATDataLoaders.from_path or from_df"
        )
    in_channels = dls.to_spec.n_channels
    if isinstance(arch, str):
        model = named_model(arch, len(dls.tags), in_channels, dls.settings.front_end, width=width, options=arch_options)
    elif isinstance(arch, nn.Module):
        model = arch
    else:
        model = arch(n_tags=len(dls.tags), in_channels=in_channels, **(arch_options or {}))
    loss = named_loss(loss_func, model, **(loss_options or {}))
    learn = FatLearner(dls, model, loss_func=loss, metrics=LwLRAP() if metrics is None else metrics, **kwargs)
    learn.no_decay = no_decay
    changes = [AUGMENTATIONS.build(a) if isinstance(a, str) else a for a in (spec_augment, *augment) if a is not None]
    changes += [MIXERS.build(mixup) if isinstance(mixup, str) else mixup] if mixup is not None else []
    for cb in (*precision_callbacks(precision, learn), *changes, *L(cbs)):
        learn.add_cb(cb)
    return learn


def named_model(
    arch: str,
    n_tags: int,
    in_channels: int,
    front_end: FrontEnd,
    *,
    width: float | None = None,
    options: dict[str, Any] | None = None,
) -> nn.Module:
    """A model by name for what a front end makes; networks that are tied to a number of mel bins take the front end's."""
    options = {**(options or {}), **({} if width is None else {"width": width})}
    if "n_mels" in inspect.signature(MODELS.builder(arch)).parameters:
        options.setdefault("n_mels", front_end.bins)
    return create_model(arch, n_tags, in_channels, **options)


def named_loss(loss: str | Callable, model: nn.Module, /, **options: Any) -> Callable:
    """A loss by name, or as given; for a model with auxiliary outputs it takes them all, with the model's weights."""
    built = LOSSES.build(loss, **options) if isinstance(loss, str) else loss
    aux_weights = getattr(model, "aux_weights", None)
    return AuxLoss(built, aux_weights) if aux_weights else built
