"""`TagLearner`, the learner of tagging models, and the parts that `fatai.inference.learner.fat_learner` assembles.

The methods that predict and explain are those of its subclass `FatLearner`, one layer above.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fastai.callback.core import Callback
from fastai.learner import Learner, Recorder
from fastai.torch_core import trainable_params
from fastcore.basics import noop
from fastcore.foundation import L
from torch import Tensor, nn

from fatai.audio.front_ends import FrontEnd
from fatai.data.blocks import FATDataLoaders
from fatai.data.config import ClipConfig
from fatai.distributed import SINGLE_PROCESS, ProcessGroup, init
from fatai.errors import DataError, OptionError
from fatai.losses.composite import AuxLoss
from fatai.metrics.calibration import Calibration
from fatai.models import create_model
from fatai.registry import AUGMENTATIONS, LOSSES, MIXERS, MODELS, did_you_mean
from fatai.training.data_parallel import distribute
from fatai.training.precision import precision_callbacks
from fatai.training.recorder import record_loss_per_clip

__all__ = ["NO_WEIGHT_DECAY", "TagLearner", "named_loss", "named_model"]

NO_WEIGHT_DECAY = {
    "norm_and_bias": "every bias and the weights of normalization layers (fastai's default)",
    "bias": "parameters whose name contains 'bias' (the 9th place kernel)",
    "none": "all parameters decay",
}
"""Parameters that weight decay leaves out: names and what they mean."""


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

    def create_opt(self) -> None:
        """Create the optimizer as fastai does, without weight decay for the parameters of `no_weight_decay`."""
        self.wd_bn_bias = self.no_weight_decay != "norm_and_bias"
        super().create_opt()
        if self.no_weight_decay == "bias":
            for name, parameter in self.model.named_parameters():
                if "bias" in name:
                    self.opt.state[parameter]["do_wd"] = False


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


def build_model(
    dls: FATDataLoaders,
    arch: str | Callable[..., nn.Module] | nn.Module,
    *,
    width: float | None = None,
    options: dict[str, Any] | None = None,
) -> nn.Module:
    """Build the network of a learner by name or by a function of (n_tags, in_channels), or return a module as it is."""
    n_tags, in_channels = len(dls.tags), dls.to_spec.n_channels
    if isinstance(arch, str):
        return named_model(arch, n_tags, in_channels, dls.clip_config.front_end, width=width, options=options)
    return arch if isinstance(arch, nn.Module) else arch(n_tags=n_tags, in_channels=in_channels, **(options or {}))


def named_model(
    arch: str,
    n_tags: int,
    in_channels: int,
    front_end: FrontEnd,
    *,
    width: float | None = None,
    options: dict[str, Any] | None = None,
) -> nn.Module:
    """Build a model by name for the spectrograms of a front end.

    Parameters
    ----------
    arch
        A name of `MODELS`.
    n_tags, in_channels
        Number of outputs and of input channels.
    front_end
        The front end; networks with an option `n_mels` get its number of bins.
    width, options
        Factor for the channels, and further options of the model.

    Returns
    -------
    A network from (batch, in_channels, mels, frames) to logits (batch, n_tags).
    """
    options = {**(options or {}), **({} if width is None else {"width": width})}
    if "n_mels" in inspect.signature(MODELS.builder(arch)).parameters:
        options.setdefault("n_mels", front_end.bins)
    return create_model(arch, n_tags, in_channels, **options)


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
