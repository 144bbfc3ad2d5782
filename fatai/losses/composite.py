"""Losses made of losses: against smoothed labels, summed, split over checked and doubtful clips, over several outputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fatai.errors import OptionError, ShapeError
from fatai.registry import LOSSES
from fatai.losses.base import TagLoss, main_output, not_negative

__all__ = ["AuxLoss", "Combined", "Smoothed", "SplitLoss", "smooth_labels"]

_SHARED = ("reduction", "w", "noisy")


class Smoothed(TagLoss):
    """Another loss, against labels that were smoothed by `smooth_labels`.

    Parameters
    ----------
    loss
        A name of `LOSSES`, or a loss of this module.
    eps, how
        As in `smooth_labels`.
    """

    def __init__(self, loss: str | TagLoss = "bce", *, eps: float, how: str, reduction: str = "mean"):
        super().__init__(reduction=reduction)
        self.loss, self.eps, self.how = _built(loss, reduction), eps, how
        smooth_labels(torch.zeros(1, 1), eps, how=how)  # a wrong option is an error now, not in the first batch

    def per_clip(
        self, logits: Tensor, targ: Tensor, noisy: Tensor | None = None, tag_w: Tensor | None = None
    ) -> Tensor:
        return self.loss.per_clip(logits, smooth_labels(targ, self.eps, how=self.how), noisy, tag_w)


@LOSSES.register("smooth_positives", source="gold-plan: 1 becomes 0.975 at 0.05")
def smooth_positives(loss: str | TagLoss = "bce", *, eps: float = 0.05, reduction: str = "mean") -> Smoothed:
    """Another loss with positives smoothed, negatives left at 0."""
    return Smoothed(loss, eps=eps, how="positives", reduction=reduction)


@LOSSES.register(
    "smooth_both", source="DCASE 2019 Task 2 baseline: (1 - eps) targ + eps / 2; 0.3 on noisy, 0.1 on curated clips"
)
def smooth_both(loss: str | TagLoss = "bce", *, eps: float = 0.1, reduction: str = "mean") -> Smoothed:
    """Another loss with positives and negatives smoothed."""
    return Smoothed(loss, eps=eps, how="both", reduction=reduction)


@LOSSES.register("smooth_ninth", source="ninth's helper: (1 - eps (1 + 1/K)) targ + eps / K, eps 0.4")
def smooth_ninth(loss: str | TagLoss = "bce", *, eps: float = 0.4, reduction: str = "mean") -> Smoothed:
    """Another loss with labels smoothed by ninth's formula."""
    return Smoothed(loss, eps=eps, how="ninth", reduction=reduction)


class Combined(TagLoss):
    """Weighted sum of losses.

    Parameters
    ----------
    losses
        Names of `LOSSES` or losses of this module.
    weights
        One number for each; None takes each as it is.
    """

    def __init__(
        self, losses: Sequence[str | TagLoss], *, weights: Sequence[float] | None = None, reduction: str = "mean"
    ):
        super().__init__(reduction=reduction)
        self.parts = [_built(loss, reduction) for loss in losses]
        self.losses = nn.ModuleList(self.parts)  # so that their buffers move with this module
        self.weights = _as_many(weights, len(self.parts), "losses")

    def per_clip(
        self, logits: Tensor, targ: Tensor, noisy: Tensor | None = None, tag_w: Tensor | None = None
    ) -> Tensor:
        return _weighted(self.weights, (loss.per_clip(logits, targ, noisy, tag_w) for loss in self.parts))


@LOSSES.register_pattern("+", source="36th place: 'bce_mass+lovasz'")
def combined(name: str, *, weights: Sequence[float] | None = None, reduction: str = "mean") -> Combined:
    """Losses joined by plus signs, each with a factor before it or one of `weights`: "bce+lovasz", "bce+0.5*lovasz"."""
    parts = [re.fullmatch(r"\s*(?:([0-9.eE-]+)\s*\*)?\s*(\w+)\s*", part) for part in name.split("+")]
    if not all(parts):
        raise OptionError(f"the loss {name!r} is no sum of names; expected such as 'bce+lovasz' or 'bce+0.5*lovasz'")
    names = [part[2] for part in parts if part]
    factors = [_number(part[1], name) for part in parts if part]
    given = _as_many(weights, len(names), "losses")
    return Combined(names, weights=[a * b for a, b in zip(factors, given, strict=True)], reduction=reduction)


@LOSSES.register("split", source="1st place: BCE on curated and Lsoft on noisy clips, each times 0.5")
class SplitLoss(TagLoss):
    """One loss for clips with checked labels, another for clips marked `noisy`; a share in between mixes both.

    Without marks every clip counts as checked. The 1st place's loss is the default with both weights at 0.5.

    Parameters
    ----------
    curated_loss, noisy_loss
        Names of `LOSSES`, or losses of this module.
    curated_weight, noisy_weight
        Factors of the two.
    """

    def __init__(
        self, curated_loss: str | TagLoss = "bce", noisy_loss: str | TagLoss = "lsoft", *, curated_weight: float = 1.0,
        noisy_weight: float = 1.0, reduction: str = "mean",
    ):
        super().__init__(reduction=reduction)
        self.curated_loss, self.noisy_loss = _built(curated_loss, reduction), _built(noisy_loss, reduction)
        self.curated_weight = not_negative(curated_weight, "curated_weight")
        self.noisy_weight = not_negative(noisy_weight, "noisy_weight")

    def per_clip(
        self, logits: Tensor, targ: Tensor, noisy: Tensor | None = None, tag_w: Tensor | None = None
    ) -> Tensor:
        share = logits.new_zeros(len(logits)) if noisy is None else noisy
        curated = self.curated_weight * self.curated_loss.per_clip(logits, targ, None, tag_w)
        return (1 - share) * curated + share * self.noisy_weight * self.noisy_loss.per_clip(logits, targ, None, tag_w)


class AuxLoss(nn.Module):
    """Any loss, over the outputs of a model with auxiliary ones.

    In training such a model returns a tuple of logits, main output first, and the loss is the weighted sum over them; in validation
    it returns the main logits alone, and the loss is that of these.

    Parameters
    ----------
    loss
        A name of `LOSSES`, a loss of this module, or any callable of (logits, targ). What one sets on this loss (`w`, `noisy`,
        `reduction`) is set on that one.
    weights
        One number for each output; the 1st place: 1.0, 0.4, 0.2, 0.1.
    """

    def __init__(self, loss: str | Callable[..., Tensor], weights: Sequence[float]):
        super().__init__()
        self.loss = LOSSES.build(loss) if isinstance(loss, str) else loss
        self.weights = tuple(float(weight) for weight in weights)

    def forward(self, logits: Tensor | Sequence[Tensor], targ: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if isinstance(logits, Tensor):
            return self.loss(logits, targ, *args, **kwargs)
        if len(logits) != len(self.weights):
            raise ShapeError(
                f"the model has {len(logits)} outputs; expected {len(self.weights)}, one for each of weights {self.weights}"
            )
        return _weighted(self.weights, (self.loss(each, targ, *args, **kwargs) for each in logits))

    def activation(self, logits: Any) -> Any:
        """What the loss makes of the main logits; a sigmoid where it has nothing to say."""
        return getattr(self.loss, "activation", torch.sigmoid)(main_output(logits))

    def decodes(self, probs: Tensor) -> Tensor:
        """What the loss makes of probabilities; flags above one half where it has nothing to say."""
        decodes = getattr(self.loss, "decodes", None)
        return decodes(probs) if decodes else probs > TagLoss.thresh

    def __getattr__(self, name: str) -> Any:
        # Only asked for what this module lacks. `reduction` must be lacking where the loss has none: fastai looks for it.
        if name in _SHARED:
            return getattr(self.loss, name)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _SHARED:
            setattr(self.loss, name, value)
        else:
            super().__setattr__(name, value)


def smooth_labels(targ: Tensor, eps: float, *, how: str) -> Tensor:
    """Labels that are less sure of themselves.

    Parameters
    ----------
    targ
        Shape (batch, tags), within [0, 1].
    eps
        Strength, from 0 (as they were) to 1; for "ninth" at most K / (K + 1).
    how
        With K tags: "positives", (1 - eps/2) targ; "both", (1 - eps) targ + eps/2; "ninth", (1 - eps (1 + 1/K)) targ + eps/K, which is no
        textbook formula: a positive becomes 1 - eps.

    Examples
    --------
    >>> targ = torch.tensor([[1.0, 0.0]])
    >>> smooth_labels(targ, 0.4, how="positives"), smooth_labels(targ, 0.4, how="both"), smooth_labels(targ, 0.4, how="ninth")
    (tensor([[0.8000, 0.0000]]), tensor([[0.8000, 0.2000]]), tensor([[0.6000, 0.2000]]))
    """
    if not 0 <= eps <= 1:
        raise OptionError(f"eps is {eps}; expected a number from 0 to 1")
    if how == "positives":
        return targ * (1 - eps / 2)
    if how == "both":
        return targ * (1 - eps) + eps / 2
    if how == "ninth":
        n_tags = targ.shape[1]
        return targ * (1 - eps * (1 + 1 / n_tags)) + eps / n_tags
    raise OptionError(f"how is {how!r}; expected positives, both or ninth")


def _built(loss: str | TagLoss, reduction: str) -> TagLoss:
    """A loss by name with that reduction, or as given."""
    if isinstance(loss, str):
        return LOSSES.build(loss, reduction=reduction)
    if not isinstance(loss, TagLoss):
        raise OptionError(
            f"got {loss!r} as a loss; expected a name of LOSSES or a TagLoss: others have no number for each clip"
        )
    return loss


def _weighted(weights: Sequence[float], values: Iterable[Tensor]) -> Tensor:
    return torch.stack([weight * value for weight, value in zip(weights, values, strict=True)]).sum(0)


def _as_many(weights: Sequence[float] | None, n: int, of: str) -> tuple[float, ...]:
    """One weight for each; 1 where none are given."""
    if weights is None:
        return (1.0,) * n
    if len(weights) != n:
        raise OptionError(f"there are {len(weights)} weights for {n} {of}; expected one each")
    return tuple(not_negative(weight, "a weight") for weight in weights)


def _number(text: str | None, name: str) -> float:
    """The factor before a loss's name; 1 without one."""
    try:
        return 1.0 if text is None else not_negative(float(text), "a factor")
    except ValueError as e:
        raise OptionError(f"the loss {name!r} holds the factor {text!r}: {e}") from None
