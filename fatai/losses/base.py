"""What every loss shares: checks, weights, and how tags and clips are reduced.

Conventions
-----------
`logits` and `targ` are (batch, tags); `targ` is multi-hot, or soft within [0, 1] where a loss says what it makes of that. Every loss
reduces its tags to one number per clip first; then the clips, each times its weight if there are weights, are reduced by `reduction`:

- "mean": the mean over the clips (a weight of 2 counts twice; the weights are not divided by their sum);
- "sum": their sum. A loss that is a mean over tags is then a sum over tags too, as in torch's own BCE;
- "none": one number per clip, shape (batch,); what fastai's mixers and `get_preds(with_loss=True)` ask for.

Weights, one for each clip or for each clip and tag, come as an argument, `loss(logits, targ, w)`, or are set beforehand as the attribute
`loss.w` by whoever takes the batch apart; so are marks of noisy rows, `noisy`. Values and gradients are finite for logits of +-10,000 and
for clips without a present or without an absent tag. Half-precision logits are computed in float32.

This module needs torch alone. `activation` (logits to probabilities) and `decodes` (probabilities to flags) are what fastai asks of a loss.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fatai.errors import OptionError, ShapeError

__all__ = ["OverTags", "TagLoss", "cross_entropy", "focus", "main_output", "not_negative"]

REDUCTIONS = ("mean", "sum", "none")


class TagLoss(nn.Module):
    """Checks, weights, reduction; a loss adds `per_clip`, from (batch, tags) to (batch,).

    Parameters
    ----------
    reduction
        "mean", "sum" or "none", see the module's docstring.

    Attributes
    ----------
    w
        None, or the weight of each clip of the batch, shape (batch,) or (batch, 1), or of each clip and tag, shape (batch, tags).
    noisy
        None, or which clips of the batch have doubtful labels, shape (batch,) or (batch, 1): 0 or 1, or a share in between for mixed clips.
    """

    thresh = 0.5

    def __init__(self, *, reduction: str = "mean"):
        super().__init__()
        if reduction not in REDUCTIONS:
            raise OptionError(f"reduction is {reduction!r}; expected one of {', '.join(REDUCTIONS)}")
        self.reduction = reduction
        self.w: Tensor | None = None
        self.noisy: Tensor | None = None

    def per_clip(
        self, logits: Tensor, targ: Tensor, noisy: Tensor | None = None, tag_w: Tensor | None = None
    ) -> Tensor:
        """One number per clip, before the clips' weights; `tag_w`, if given, weighs the tags, shape (batch, tags)."""
        raise NotImplementedError(f"{type(self).__name__} defines no per_clip")

    def forward(self, logits: Tensor, targ: Tensor, w: Tensor | None = None, noisy: Tensor | None = None) -> Tensor:
        """The loss of a batch; `w` and `noisy` take the place of the attributes of that name."""
        logits, targ = _checked(logits, targ)
        weights = _weights(self.w if w is None else w, logits)
        per_tag = weights is not None and weights.ndim == 2
        marks = _per_clip(self.noisy if noisy is None else noisy, logits, "noisy")
        values = self.per_clip(logits, targ, marks, weights if per_tag else None)
        values = values if weights is None or per_tag else values * weights
        return values.mean() if self.reduction == "mean" else values.sum() if self.reduction == "sum" else values

    def activation(self, logits: Any) -> Any:
        """Probabilities; of the main output where there are several."""
        return torch.sigmoid(main_output(logits))

    def decodes(self, probs: Tensor) -> Tensor:
        """Flags of the tags above one half."""
        return probs > self.thresh

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


class OverTags(TagLoss):
    """A loss that is a mean over the tags; their sum if it is built to sum. A loss adds `per_tag`, of shape (batch, tags)."""

    def __init__(self, *, reduction: str = "mean"):
        super().__init__(reduction=reduction)
        # Fixed here: fastai sets `reduction` to "none" for a while and reduces the clips itself, which must not change the tags' part.
        self.sum_tags = reduction == "sum"

    def per_tag(self, logits: Tensor, targ: Tensor) -> Tensor:
        """One number per clip and tag."""
        raise NotImplementedError(f"{type(self).__name__} defines no per_tag")

    def per_clip(
        self, logits: Tensor, targ: Tensor, noisy: Tensor | None = None, tag_w: Tensor | None = None
    ) -> Tensor:
        values = self.per_tag(logits, targ) if tag_w is None else tag_w * self.per_tag(logits, targ)
        return values.sum(1) if self.sum_tags else values.mean(1)


def main_output(logits: Any) -> Tensor:
    """The logits, or the first of several outputs."""
    return logits if isinstance(logits, Tensor) else logits[0]


def cross_entropy(logits: Tensor, targ: Tensor) -> Tensor:
    """Binary cross-entropy of each clip and tag."""
    return F.binary_cross_entropy_with_logits(logits, targ, reduction="none")


def focus(logits: Tensor, targ: Tensor, gamma: float) -> Tensor | float:
    """(1 - p)^gamma of the right answer, as exp(-gamma BCE(logits, 1 - targ))."""
    return torch.exp(-gamma * cross_entropy(logits, 1 - targ)) if gamma else 1.0


def not_negative(value: float, name: str) -> float:
    """`value`, which must be a number of at least 0."""
    if not value >= 0:
        raise OptionError(f"{name} is {value}; expected a number of at least 0")
    return float(value)


def _checked(logits: Any, targ: Tensor) -> tuple[Tensor, Tensor]:
    """Plain tensors of one shape (batch, tags), in float32 or better."""
    if not isinstance(logits, Tensor):
        raise ShapeError(
            f"the model gave {len(logits)} outputs; wrap the loss as AuxLoss(loss, weights) to teach them all"
        )
    if logits.shape != targ.shape or logits.ndim != 2:
        raise ShapeError(
            f"logits are {tuple(logits.shape)} and targets {tuple(targ.shape)}; expected (batch, tags) for both"
        )
    logits = logits.as_subclass(Tensor)
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return logits, targ.as_subclass(Tensor).to(logits.dtype)


def _per_clip(values: Tensor | None, logits: Tensor, name: str) -> Tensor | None:
    """One number for each clip, shape (batch,), where `logits` are."""
    if values is None:
        return None
    values = torch.as_tensor(values).as_subclass(Tensor).to(logits)
    if values.shape not in ((len(logits),), (len(logits), 1)):
        raise ShapeError(f"{name} is {tuple(values.shape)}; expected one number for each of the {len(logits)} clips")
    return values.flatten()


def _weights(w: Tensor | None, logits: Tensor) -> Tensor | None:
    """Weights as (batch,), or as (batch, tags) where there is one for each clip and tag."""
    if w is not None and w.shape == logits.shape and logits.shape[1] > 1:
        return w.as_subclass(Tensor).to(logits)
    return _per_clip(w, logits, "w")
