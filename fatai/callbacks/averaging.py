"""Average the weights of a network during a fit, and validate, save and predict with the average."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from fastai.torch_core import get_model
from torch import Tensor, nn

from fatai.callbacks.base import ResumableCallback, is_training
from fatai.errors import OptionError

if TYPE_CHECKING:
    from timm.utils import ModelEmaV3

__all__ = ["WeightAverage"]


class WeightAverage(ResumableCallback):
    """Keep an exponential moving average (EMA) of the weights; validation, checkpoints and the end of a fit use it.

    Training goes on with the weights as they are. From the validation of an epoch to the next training batch, and after
    the fit, the network has the averaged ones, so that metrics, `SaveBestModel`, `tta` and `export` see those without
    further work. Every fit starts a new average from the weights it begins with; frozen weights stay what they are.

    The average is timm's `ModelEmaV3`: its decay warms up, so that the average of step t reaches back over about
    t^(2/3) steps, in a fit of any length, until `decay` limits it. torch's `AveragedModel` has no warm-up, and in a
    short fit the first weights would remain in its average. The running statistics of batch norms are averaged like
    the weights; counts are copied.

    Parameters
    ----------
    decay
        Largest weight of the average of earlier steps, in [0, 1); 0.999 averages over about the last 1000 steps.

    Raises
    ------
    OptionError
        If `decay` is not in [0, 1).

    Examples
    --------
    >>> WeightAverage(0.99).decay
    0.99
    """

    # Before trackers, which save weights and load their best ones when the fit ends.
    order = 55
    resume_state = ("n_steps", "in_use", "other_weights")

    def __init__(self, decay: float = 0.999):
        if not 0 <= decay < 1:
            raise OptionError(f"decay is {decay}; expected a number of at least 0 and below 1, such as 0.999")
        self.decay = decay
        self._reset()

    def _reset(self) -> None:
        self.average: ModelEmaV3 | None = None
        self.n_steps, self.in_use, self.stepped = 0, False, True
        self.other_weights: Mapping[str, Tensor] = {}

    def before_fit(self) -> None:
        """Forget the average of an earlier fit."""
        self.run = is_training(self.learn)
        if self.run:
            self._reset()

    def before_train(self) -> None:
        """Start the average in the first epoch; in later ones give the network its own weights back."""
        if self.average is None:
            self._start()
        self._use_average(False)

    def before_step(self) -> None:
        """Assume that the step will take place."""
        self.stepped = True

    def after_cancel_step(self) -> None:
        """Note that gradients are accumulated, or too large for float16, and the weights are as before."""
        self.stepped = False

    def after_step(self) -> None:
        """Add the new weights to the average."""
        if self.stepped and self.average is not None:
            self.n_steps += 1
            self.average.update(get_model(self.learn.model), step=self.n_steps)

    def before_validate(self) -> None:
        """Give the network the averaged weights."""
        self._use_average(True)

    def after_fit(self) -> None:
        """Leave the averaged weights in the network, however the fit ends."""
        self._use_average(True)
        self._reset()

    after_cancel_fit = after_fit

    def after_resume(self) -> None:
        """Continue the restored average."""
        restored = self.other_weights
        self._start().module.load_state_dict(restored)

    def _start(self) -> ModelEmaV3:
        from timm.utils import ModelEmaV3  # which imports torchvision and torch's compiler

        self.average = ModelEmaV3(get_model(self.learn.model), decay=self.decay, use_warmup=True)
        self.other_weights = self.average.module.state_dict()  # the same tensors
        return self.average

    def _use_average(self, wanted: bool) -> None:
        """Exchange the weights of the network and the average unless the right ones are in the network."""
        if self.average is not None and self.in_use != wanted:
            _exchange(get_model(self.learn.model), self.average.module)
            self.in_use = wanted


@torch.no_grad()
def _exchange(one: nn.Module, other: nn.Module) -> None:
    """Exchange weights and buffers of two networks of the same kind, in place: optimizers refer to the tensors."""
    # Not the state dicts, in which shared weights occur twice.
    for ours, theirs in zip([*one.parameters(), *one.buffers()], [*other.parameters(), *other.buffers()], strict=True):
        kept = ours.clone()
        ours.copy_(theirs)
        theirs.copy_(kept)
