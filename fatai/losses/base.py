"""Checks, sample weights and reductions that all losses share.

Conventions
-----------
`logits` and `targ` have shape (batch, tags); `targ` is multi-hot, or soft within [0, 1] where a loss documents how it
uses soft targets. Every loss first reduces its tags to one number per clip. The clips, each multiplied by its sample
weight if there are weights, are then reduced by `reduction`:

- "mean": the mean over the clips (a weight of 2 counts twice; the weights are not divided by their sum);
- "sum": their sum. A loss that is a mean over tags is then a sum over tags too, as in torch's own BCE;
- "none": one number per clip, shape (batch,), as required by fastai's mixers and by `get_preds(with_loss=True)`.

Sample weights, one for each clip or one for each clip and tag, and flags of noisy clips are passed as arguments,
`loss(logits, targ, sample_weight, noisy)`, or set beforehand for one batch with `TagLoss.set_batch`, as
`fatai.callbacks.sample_weights.SampleWeights` does. Values and gradients are finite for logits of +-10,000 and for
clips without a present or without an absent tag. Half-precision logits are computed in float32.

This module needs torch alone. `activation` (logits to probabilities) and `decodes` (probabilities to flags) are the
methods that fastai expects of a loss.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fatai.errors import OptionError, ShapeError

__all__ = ["PerTagLoss", "TagLoss"]

REDUCTIONS = ("mean", "sum", "none")


class TagLoss(nn.Module):
    """Base class of losses: checks, sample weights and reduction; a subclass adds `per_clip`.

    Parameters
    ----------
    reduction
        "mean", "sum" or "none", see the module's docstring. "sum" makes gradients grow with the batch size; take it
        only to reproduce a system that used it.

    Attributes
    ----------
    sample_weight
        None, or the weights of the batch: one for each clip, shape (batch,) or (batch, 1), or one for each clip and
        tag, shape (batch, tags).
    noisy
        None, or which clips of the batch have noisy labels, shape (batch,) or (batch, 1): 0 or 1, or a fraction in
        between for mixed clips.

    Raises
    ------
    OptionError
        If `reduction` is not one of the three.
    """

    thresh = 0.5

    def __init__(self, *, reduction: str = "mean"):
        super().__init__()
        if reduction not in REDUCTIONS:
            raise OptionError(f"reduction is {reduction!r}; expected one of {', '.join(REDUCTIONS)}")
        self.reduction = reduction
        self.sample_weight: Tensor | None = None
        self.noisy: Tensor | None = None

    def set_batch(self, sample_weight: Tensor | None = None, noisy: Tensor | None = None) -> None:
        """Set the sample weights and noisy flags of the next batch; without arguments, clear them.

        Parameters
        ----------
        sample_weight
            Shape (batch,), (batch, 1) or (batch, tags), from 0 up.
        noisy
            Shape (batch,) or (batch, 1), within [0, 1].
        """
        self.sample_weight, self.noisy = sample_weight, noisy

    def per_clip(
        self, logits: Tensor, targ: Tensor, noisy: Tensor | None = None, tag_weight: Tensor | None = None
    ) -> Tensor:
        """Return one number per clip, shape (batch,), before the weights of the clips.

        `logits`, `targ` and `tag_weight`, which multiplies the tags if given, have shape (batch, tags); `noisy` has
        shape (batch,).
        """
        raise NotImplementedError(f"{type(self).__name__} defines no per_clip")

    def forward(
        self, logits: Tensor, targ: Tensor, sample_weight: Tensor | None = None, noisy: Tensor | None = None
    ) -> Tensor:
        """Return the loss of a batch, a scalar or, with the reduction "none", of shape (batch,).

        Parameters
        ----------
        logits, targ
            Shape (batch, tags).
        sample_weight, noisy
            As in `set_batch`; given here, they replace the values set there.

        Raises
        ------
        ShapeError
            If the shapes differ, `logits` are several outputs, or weights or flags do not match the batch.
        """
        logits, targ = _checked_inputs(logits, targ)
        weight = _sample_weights(self.sample_weight if sample_weight is None else sample_weight, logits)
        per_tag = weight is not None and weight.ndim == 2
        flags = _one_per_clip(self.noisy if noisy is None else noisy, logits, "noisy")
        values = self.per_clip(logits, targ, flags, weight if per_tag else None)
        values = values if weight is None or per_tag else values * weight
        return values.mean() if self.reduction == "mean" else values.sum() if self.reduction == "sum" else values

    def activation(self, logits: Any) -> Any:
        """Return probabilities of the shape of `logits`, (batch, tags); of the main output where there are several."""
        return torch.sigmoid(main_output(logits))

    def decodes(self, probs: Tensor) -> Tensor:
        """Return booleans of the shape of `probs`, (batch, tags): which probabilities are above one half."""
        return probs > self.thresh

    def extra_repr(self) -> str:
        """Return the options shown in the representation."""
        return f"reduction={self.reduction!r}"


class PerTagLoss(TagLoss):
    """A loss that is the mean over the tags, or their sum with the reduction "sum"; a subclass adds `per_tag`."""

    def __init__(self, *, reduction: str = "mean"):
        super().__init__(reduction=reduction)
        # Fixed here: fastai sets `reduction` to "none" for a while and reduces the clips itself, which must not change
        # how tags are reduced.
        self.sum_tags = reduction == "sum"

    def per_tag(self, logits: Tensor, targ: Tensor) -> Tensor:
        """Return one number per clip and tag, shape (batch, tags), that of both arguments."""
        raise NotImplementedError(f"{type(self).__name__} defines no per_tag")

    def per_clip(
        self, logits: Tensor, targ: Tensor, noisy: Tensor | None = None, tag_weight: Tensor | None = None
    ) -> Tensor:
        """Reduce `per_tag` over the tags, from shape (batch, tags) to (batch,)."""
        values = self.per_tag(logits, targ) if tag_weight is None else tag_weight * self.per_tag(logits, targ)
        return values.sum(1) if self.sum_tags else values.mean(1)


def main_output(logits: Any) -> Tensor:
    """Return logits of shape (batch, tags), or the first of several such outputs."""
    return logits if isinstance(logits, Tensor) else logits[0]


def binary_cross_entropy(logits: Tensor, targ: Tensor) -> Tensor:
    """Return the binary cross-entropy of each clip and tag, shape (batch, tags) as both arguments."""
    return F.binary_cross_entropy_with_logits(logits, targ, reduction="none")


def focal_factor(logits: Tensor, targ: Tensor, gamma: float) -> Tensor | float:
    """Return (1 - p)^gamma of the target class, shape (batch, tags), as exp(-gamma BCE(logits, 1 - targ))."""
    return torch.exp(-gamma * binary_cross_entropy(logits, 1 - targ)) if gamma else 1.0


def check_non_negative(value: float, name: str) -> float:
    """Return `value` as a float, or raise `OptionError` if it is below 0 or NaN."""
    if not value >= 0:
        raise OptionError(f"{name} is {value}; expected a number of at least 0")
    return float(value)


def _checked_inputs(logits: Any, targ: Tensor) -> tuple[Tensor, Tensor]:
    """Return plain tensors of one shape (batch, tags), in float32 or better."""
    if not isinstance(logits, Tensor):
        raise ShapeError(
            f"the model returned {len(logits)} outputs; expected one: "
            "wrap the loss as AuxLoss(loss, weights) to train them all"
        )
    if logits.shape != targ.shape or logits.ndim != 2:
        raise ShapeError(
            f"logits have shape {tuple(logits.shape)} and targets {tuple(targ.shape)}; expected (batch, tags) for both"
        )
    logits = _plain(logits)
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return logits, _plain(targ).to(logits.dtype)


def _plain(tensor: Tensor) -> Tensor:
    """Return a tensor of any shape as torch's own type; `as_subclass` would break a compiled graph in two."""
    return tensor if type(tensor) is Tensor else tensor.as_subclass(Tensor)


def _one_per_clip(values: Tensor | None, logits: Tensor, name: str) -> Tensor | None:
    """Return one number for each clip, shape (batch,), with dtype and device of `logits`."""
    if values is None:
        return None
    values = _plain(torch.as_tensor(values)).to(logits)
    if values.shape not in ((len(logits),), (len(logits), 1)):
        raise ShapeError(
            f"{name} has shape {tuple(values.shape)}; expected one number for each of the {len(logits)} clips"
        )
    return values.flatten()


def _sample_weights(weight: Tensor | None, logits: Tensor) -> Tensor | None:
    """Return weights of shape (batch,), or (batch, tags) where there is one for each clip and tag."""
    if weight is not None and weight.shape == logits.shape and logits.shape[1] > 1:
        return _plain(weight).to(logits)
    return _one_per_clip(weight, logits, "sample_weight")
