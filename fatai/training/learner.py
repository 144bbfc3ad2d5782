"""`TagLearner`, the learner of tagging models, and the parts that `fatai.inference.learner.fat_learner` assembles.

The methods that predict and explain are those of its subclass `FatLearner`, one layer above.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fastai.callback import schedule  # noqa: F401 - gives learners fit_one_cycle
from fastai.callback.core import Callback
from fastai.learner import Learner, Recorder
from fastai.torch_core import trainable_params
from fastcore.basics import noop
from fastcore.foundation import L
from torch import Tensor, nn
from torch.utils.data import RandomSampler

from fatai.augment.base import Augmentation
from fatai.data.blocks import FATDataLoaders
from fatai.data.config import ClipConfig
from fatai.data.samplers import SampledDL
from fatai.distributed import SINGLE_PROCESS, ProcessGroup, init
from fatai.errors import DataError, OptionError
from fatai.losses.composite import AuxLoss
from fatai.metrics.calibration import Calibration
from fatai.models import count_parameters, takes_weights
from fatai.models.weights import archs_with_weights
from fatai.registry import AUGMENTATIONS, LOSSES, MIXERS, did_you_mean
from fatai.training import defaults
from fatai.training.data_parallel import distribute
from fatai.training.network import NO_WEIGHT_DECAY, named_model
from fatai.training.precision import precision_callbacks
from fatai.training.recorder import record_loss_per_clip

__all__ = ["TagLearner", "named_loss"]


class TagLearner(Learner):
    """A fastai `Learner` of `FATDataLoaders`.

    Attributes
    ----------
    no_weight_decay
        A key of `NO_WEIGHT_DECAY`: the parameters that weight decay leaves out.
    calibration
        Calibration of the predicted probabilities; None leaves them as they are.
    group
        The processes that share batches and predictions; set by `distrib_ctx`.
    """

    no_weight_decay: str = "norm_and_bias"
    calibration: Calibration | None = None
    group: ProcessGroup = SINGLE_PROCESS
    logger: Callable[..., Any]

    def add_cb(self, cb: Any) -> TagLearner:
        """Add a callback; a recorder records losses per clip."""
        super().add_cb(cb)
        if isinstance(self.cbs[-1], Recorder):
            record_loss_per_clip(self.cbs[-1])
        return self

    @contextmanager
    def distrib_ctx(
        self, sync_bn: bool = True, *, group: ProcessGroup | None = None, **kwargs: Any
    ) -> Iterator[TagLearner]:
        """Train and predict in several processes within the context, as `fatai.training.data_parallel` describes.

        Parameters
        ----------
        sync_bn
            Compute batch-norm statistics over all processes; False is faster.
        group
            The processes; None takes those that torchrun started, and without torchrun nothing changes.
        kwargs
            Arguments of fastai's context, which are for accelerate; they are ignored.
        """
        with distribute(self, init() if group is None else group, sync_bn=sync_bn):
            yield self

    @property
    def tags(self) -> tuple[str, ...]:
        """Names of the outputs of the network."""
        return self.dls.tags

    @property
    def clip_config(self) -> ClipConfig:
        """Settings for reading clips and computing spectrograms."""
        return self.dls.clip_config

    @property
    def activation(self) -> Callable[[Tensor], Tensor]:
        """Map of the loss from logits to probabilities, both (batch, tags); the sigmoid if it has none of its own."""
        return getattr(self.loss_func, "activation", torch.sigmoid)

    def tracked_settings(self) -> dict[str, str | float]:
        """Return the settings of the learner that a tracker of experiments shows, as texts and numbers."""
        built, front_end = getattr(self.model, "built_as", None), self.clip_config.front_end
        return {
            "arch": type(self.model).__name__ if built is None else built.arch,
            **({} if built is None else {f"arch.{name}": str(value) for name, value in built.options.items()}),
            "parameters": count_parameters(self.model), "loss": type(self.loss_func).__name__,
            "tags": len(self.tags), "batch size": self.dls.bs, "train clips": len(self.dls.train_ds),
            "valid clips": len(self.dls.valid_ds), "sample rate": front_end.sr, "mels": str(front_end.n_mels),
            "hop_length": front_end.hop_length, "crop_s": self.clip_config.crop_s,
            "channels": self.clip_config.channels_name, "callbacks": ", ".join(str(cb) for cb in self.cbs),
        }

    def gather_args(self) -> dict[str, Any]:
        """Log the settings to Weights & Biases, for fastai's `WandbCallback`, which calls this; return no others.

        The callback takes `vars` of each value that is returned, which texts and numbers lack.
        """
        import wandb

        wandb.config.update(self.tracked_settings(), allow_val_change=True)
        return {}

    def _with_events(self, f: Callable[[], Any], event_type: str, ex: Any, final: Callable[[], Any] = noop) -> None:
        """Run a part of the training loop; if an exception ends it, let the callbacks undo their changes.

        fastai calls `after_cancel_batch`, ..., `after_cancel_fit` only at the level that a cancel exception is meant
        for. Here every level that any exception passes through, also a `KeyboardInterrupt`, calls its own.
        """
        logger = self.logger
        try:
            super()._with_events(f, event_type, ex, final)
        except BaseException:
            self._undo(event_type)
            if event_type == "fit":
                self.logger = logger
                self._forget_batch()
            raise

    def _undo(self, event_type: str) -> None:
        """Call `after_cancel_<event_type>` of every callback, whatever the others do."""
        for cb in self.cbs.sorted("order"):
            try:
                cb(f"after_cancel_{event_type}")
            except Exception as e:  # must not hide the exception that ended the fit
                warnings.warn(f"{cb} could not undo its changes to the learner: {e!r}", stacklevel=3)

    def _forget_batch(self) -> None:
        """Drop the batch of an interrupted fit, with its gradients, which the next step would apply."""
        self.opt.zero_grad()
        self.training = False
        for cb in self.cbs:
            cb.run = True
        self._end_cleanup()

    def fit_default(
        self, n_epoch: int | None = None, lr: float = defaults.LR, *, bs: int | None = None, cbs: Any = None
    ) -> None:
        """Fit as the recipe `default` does: one cycle, augmentation, mixing by OR, averaged weights.

        In the last epochs clips are neither augmented nor mixed. The learner ends with the averaged weights.

        Parameters
        ----------
        n_epoch
            Number of epochs, each a pass over the clips; None takes at least 2,000 steps in epochs of at least 100, by
            the rules `epoch_clips` and `fit_epochs` of `fatai.training.defaults`.
        lr
            Largest learning rate of the cycle.
        bs
            Clips per batch in this fit; None chooses by the number of training clips, from 8 to 64.
        cbs
            Further callbacks. Augmentations of the learner or among these take the place of the default ones.
        """
        n_clips = len(self.dls.train_ds)
        batch = min(n_clips, defaults.batch_size(n_clips).value if bs is None else bs)
        n_drawn = defaults.epoch_clips(n_clips, batch).value if n_epoch is None else None
        epochs = defaults.fit_epochs(n_clips, batch, n_drawn).value if n_epoch is None else n_epoch
        own = [cb for cb in [*self.cbs, *L(cbs)] if isinstance(cb, Augmentation) and cb.is_random]
        augmentations = [] if own else defaults.default_augmentations()
        with _batches(self.dls, batch, n_drawn):
            self.fit_one_cycle(
                epochs, lr, wd=defaults.WD, cbs=[*augmentations, *defaults.fit_callbacks(epochs), *L(cbs)]
            )

    def create_opt(self) -> None:
        """Create the optimizer as fastai does, without weight decay for the parameters of `no_weight_decay`."""
        self.wd_bn_bias = self.no_weight_decay != "norm_and_bias"
        super().create_opt()
        if self.no_weight_decay == "bias":
            for name, parameter in self.model.named_parameters():
                if "bias" in name:
                    self.opt.state[parameter]["do_wd"] = False


@contextmanager
def _batches(dls: FATDataLoaders, bs: int, n_drawn: int | None) -> Iterator[None]:
    """Set the number of clips per batch, and of those of a training epoch unless it is None, within a context."""
    loaders, before = list(dls.loaders), [dl.bs for dl in dls.loaders]
    try:
        for dl in dls.loaders:
            dl.bs = bs
        if n_drawn is not None:
            sampler = RandomSampler(range(len(dls.train_ds)), num_samples=n_drawn)
            dls.loaders[0] = dls.train.new(cls=SampledDL, sampler=sampler, bs=bs)
        yield
    finally:
        dls.loaders[:] = loaders
        for dl, old in zip(dls.loaders, before, strict=True):
            dl.bs = old


def check_options(dls: Any, no_weight_decay: str) -> None:
    """Check the loaders and the choice of weight decay of a new learner."""
    if no_weight_decay not in NO_WEIGHT_DECAY:
        suggestion = did_you_mean(no_weight_decay, list(NO_WEIGHT_DECAY))
        raise OptionError(f"no_weight_decay is {no_weight_decay!r}; {suggestion}")
    if not isinstance(dls, FATDataLoaders):
        raise DataError(
            f"dls is a {type(dls).__name__}; expected FATDataLoaders: make them with FATDataLoaders.from_path or "
            "from_df"
        )


def layer_groups(model: nn.Module) -> list[list[nn.Parameter]]:
    """Split the parameters of a model for `freeze` and `slice(lr)`: its own `layer_groups`, or else all in one."""
    return model.layer_groups() if hasattr(model, "layer_groups") else trainable_params(model)  # type: ignore[operator]


def decay_layers(model: nn.Module) -> list[list[nn.Parameter]]:
    """Split the parameters of a model for layer-wise decay of the learning rate: its own `layers`, or `layer_groups`.

    Raises
    ------
    OptionError
        If the model has neither.
    """
    for method in ("layers", "layer_groups"):
        if hasattr(model, method):
            return getattr(model, method)()
    raise OptionError(
        f"layer_decay is set, but {type(model).__name__} has no layers; leave it out, or add a method layers that "
        "returns a list of parameters per layer"
    )


def build_model(
    dls: FATDataLoaders,
    arch: str | Callable[..., nn.Module] | nn.Module | None,
    *,
    width: float | None = None,
    pretrained: bool | str | os.PathLike[str] | None = None,
    options: dict[str, Any] | None = None,
) -> nn.Module:
    """Build the network of a learner by name or by a function of (n_tags, in_channels), or return a module as it is.

    Without any, `m3` in a width that suits the number of training clips.
    """
    if arch is None:
        arch = defaults.ARCH
        width = defaults.network_width(len(dls.train_ds)).value if width is None else width
    if not isinstance(arch, str) and not callable(arch):
        raise OptionError(
            f"arch is of type {type(arch).__name__}; expected a name, a module, or a function that returns one; of a "
            "model that load_pretrained returned, its .model"
        )
    n_tags, in_channels = len(dls.tags), dls.to_spec.n_channels
    if pretrained:
        _check_takes_weights(arch, pretrained)
        options = {**(options or {}), "pretrained": pretrained}
    if isinstance(arch, str):
        return named_model(arch, n_tags, in_channels, dls.clip_config, width=width, options=options)
    if width is not None:
        raise OptionError(f"width is {width:g} with {_described(arch)}; it is for a network by name: leave it out")
    if not isinstance(arch, nn.Module):
        return arch(n_tags=n_tags, in_channels=in_channels, **(options or {}))
    _check_built(arch, n_tags, options)
    return arch


def _described(arch: Any) -> str:
    return arch if isinstance(arch, str) else f"a network of your own, {getattr(arch, '__name__', type(arch).__name__)}"


def _check_built(model: nn.Module, n_tags: int, options: dict[str, Any] | None) -> None:
    """Raise `OptionError` if a module has another number of tags than the loaders, or is given options."""
    if options:
        raise OptionError(f"arch_options are {options} with {_described(model)}, which is built: leave them out")
    n_outputs = getattr(model, "n_tags", n_tags)
    if n_outputs != n_tags:
        raise OptionError(
            f"the network {type(model).__name__} has {n_outputs} tags and the loaders {n_tags}; make loaders with the "
            "same tags, by vocab=; or start from its weights with a new last layer: name the network, and give "
            "pretrained= the model.safetensors of its folder"
        )


def _check_takes_weights(arch: str | Callable[..., nn.Module], pretrained: bool | str | os.PathLike[str]) -> None:
    """Raise `OptionError` if a network cannot be built with published weights."""
    if isinstance(arch, str) and takes_weights(arch):
        return
    raise OptionError(
        f"pretrained={pretrained!r} with {_described(arch)}, for which there are no published weights; networks that "
        f"have some: {', '.join(archs_with_weights())}, and those of timm as timm:NAME"
    )


def named_loss(loss: str | Callable, model: nn.Module, /, **options: Any) -> Callable:
    """Build a loss by name, or take it as given.

    For a model with auxiliary outputs the loss is summed over all outputs, with the model's weights.
    """
    built = LOSSES.build(loss, **options) if isinstance(loss, str) else loss
    aux_weights = getattr(model, "aux_weights", None)
    return AuxLoss(built, aux_weights) if aux_weights else built


def add_callbacks(
    learn: Any,
    precision: str,
    *,
    augment: Iterable[str | Callback | None] = (),
    mixup: str | Callback | None = None,
    cbs: Any = None,
) -> Any:
    """Add the callbacks of precision, augmentation and mixing, by name or as given, and return the learner."""
    augmentations = [AUGMENTATIONS.build(a) if isinstance(a, str) else a for a in augment if a is not None]
    mixers = [] if mixup is None else [MIXERS.build(mixup) if isinstance(mixup, str) else mixup]
    for cb in (*precision_callbacks(precision, learn), *augmentations, *mixers, *L(cbs)):
        learn.add_cb(cb)
    return learn
