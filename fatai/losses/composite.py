"""Losses made of other losses: label smoothing, weighted sums, curated and noisy clips, several outputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fatai.errors import OptionError, ShapeError
from fatai.losses.base import TagLoss, check_non_negative, main_output
from fatai.registry import LOSSES

__all__ = ["AuxLoss", "CombinedLoss", "LabelSmoothing", "SplitLoss", "smooth_labels", "weighted_loss"]

# Formulas of `smooth_labels`: (targ, eps, number of tags) to smoothed targets.
_SMOOTHING: dict[str, Callable[[Tensor, float, int], Tensor]] = {
    "positives": lambda targ, eps, n_tags: targ * (1 - eps / 2),
    "both": lambda targ, eps, n_tags: targ * (1 - eps) + eps / 2,
    "ninth_place": lambda targ, eps, n_tags: targ * (1 - eps * (1 + 1 / n_tags)) + eps / n_tags,
}


class LabelSmoothing(TagLoss):
    """Apply another loss to labels smoothed by `smooth_labels`.

    Parameters
    ----------
    loss
        A name of `LOSSES`, or a `TagLoss`.
    eps, mode
        As in `smooth_labels`.
    """

    def __init__(self, loss: str | TagLoss = "bce", *, eps: float, mode: str, reduction: str = "mean"):
        super().__init__(reduction=reduction)
        self.loss, self.eps, self.mode = _build_loss(loss, reduction), eps, mode
        smooth_labels(torch.zeros(1, 1), eps, mode=mode)  # raises for a wrong option now, not in the first batch

    def per_clip(
        self, logits: Tensor, targ: Tensor, noisy: Tensor | None = None, tag_weight: Tensor | None = None
    ) -> Tensor:
        """Return the loss against smoothed labels, shape (batch,)."""
        return self.loss.per_clip(logits, smooth_labels(targ, self.eps, mode=self.mode), noisy, tag_weight)


@LOSSES.register("smooth_positives", source="gold-plan: 1 becomes 0.975 at 0.05")
def smooth_positives(loss: str | TagLoss = "bce", *, eps: float = 0.05, reduction: str = "mean") -> LabelSmoothing:
    """Another loss, with positives smoothed and negatives left at 0."""
    return LabelSmoothing(loss, eps=eps, mode="positives", reduction=reduction)


@LOSSES.register(
    "smooth_both", source="DCASE 2019 Task 2 baseline: (1 - eps) targ + eps / 2; 0.3 on noisy, 0.1 on curated clips"
)
def smooth_both(loss: str | TagLoss = "bce", *, eps: float = 0.1, reduction: str = "mean") -> LabelSmoothing:
    """Another loss, with positives and negatives smoothed."""
    return LabelSmoothing(loss, eps=eps, mode="both", reduction=reduction)


@LOSSES.register("smooth_ninth_place", source="9th place's helper: (1 - eps (1 + 1/K)) targ + eps / K, eps 0.4")
def smooth_ninth_place(loss: str | TagLoss = "bce", *, eps: float = 0.4, reduction: str = "mean") -> LabelSmoothing:
    """Another loss, with labels smoothed by the 9th place's formula."""
    return LabelSmoothing(loss, eps=eps, mode="ninth_place", reduction=reduction)


class CombinedLoss(TagLoss):
    """Weighted sum of losses.

    Parameters
    ----------
    losses
        Names of `LOSSES` or instances of `TagLoss`.
    weights
        One number for each, from 0 up; None is 1 for each.
    """

    def __init__(
        self, losses: Sequence[str | TagLoss], *, weights: Sequence[float] | None = None, reduction: str = "mean"
    ):
        super().__init__(reduction=reduction)
        self.parts = [_build_loss(loss, reduction) for loss in losses]
        self.losses = nn.ModuleList(self.parts)  # so that their buffers move with this module
        self.weights = _check_weights(weights, len(self.parts), "losses")

    def per_clip(
        self, logits: Tensor, targ: Tensor, noisy: Tensor | None = None, tag_weight: Tensor | None = None
    ) -> Tensor:
        """Return the weighted sum over the losses, shape (batch,)."""
        return _weighted_sum(self.weights, (loss.per_clip(logits, targ, noisy, tag_weight) for loss in self.parts))


@LOSSES.register_pattern("+", source="36th place: 'bce_mass+lovasz'")
def combined(name: str, *, weights: Sequence[float] | None = None, reduction: str = "mean") -> CombinedLoss:
    """Losses joined by plus signs, each with a factor before it or one of `weights`: "bce+lovasz", "bce+0.5*lovasz"."""
    parts = [re.fullmatch(r"\s*(?:([0-9.eE-]+)\s*\*)?\s*(\w+)\s*", part) for part in name.split("+")]
    if not all(parts):
        raise OptionError(f"the loss {name!r} is not a sum of names; expected for example 'bce+0.5*lovasz'")
    names = [part[2] for part in parts if part]
    factors = [_parse_factor(part[1], name) for part in parts if part]
    given = _check_weights(weights, len(names), "losses")
    return CombinedLoss(names, weights=[a * b for a, b in zip(factors, given, strict=True)], reduction=reduction)


@LOSSES.register("split", source="1st place: BCE on curated and Lsoft on noisy clips, each times 0.5")
class SplitLoss(TagLoss):
    """One loss for clips with curated labels, another for clips flagged `noisy`; a fraction in between mixes both.

    Without flags every clip counts as curated. The defaults are the 1st place's: half of each loss.

    Parameters
    ----------
    curated_loss, noisy_loss
        Names of `LOSSES`, or instances of `TagLoss`.
    curated_weight, noisy_weight
        Factors of the two, from 0 up.
    """

    def __init__(
        self, curated_loss: str | TagLoss = "bce", noisy_loss: str | TagLoss = "lsoft", *, curated_weight: float = 0.5,
        noisy_weight: float = 0.5, reduction: str = "mean",
    ):
        super().__init__(reduction=reduction)
        self.curated_loss, self.noisy_loss = _build_loss(curated_loss, reduction), _build_loss(noisy_loss, reduction)
        self.curated_weight = check_non_negative(curated_weight, "curated_weight")
        self.noisy_weight = check_non_negative(noisy_weight, "noisy_weight")

    def per_clip(
        self, logits: Tensor, targ: Tensor, noisy: Tensor | None = None, tag_weight: Tensor | None = None
    ) -> Tensor:
        """Return the loss of each clip by its flag, shape (batch,)."""
        fraction = logits.new_zeros(len(logits)) if noisy is None else noisy
        curated = self.curated_weight * self.curated_loss.per_clip(logits, targ, None, tag_weight)
        noisy_values = self.noisy_loss.per_clip(logits, targ, None, tag_weight)
        return (1 - fraction) * curated + fraction * self.noisy_weight * noisy_values


class AuxLoss(nn.Module):
    """Any loss, over the outputs of a model with auxiliary outputs.

    In training such a model returns a tuple of logits, each of shape (batch, tags), main output first, and the loss is
    the weighted sum over them. In validation it returns the main logits alone, and the loss is that of these. Sample
    weights are set on the inner loss, which `weighted_loss` returns.

    Parameters
    ----------
    loss
        A name of `LOSSES`, a `TagLoss`, or any callable of (logits, targ).
    weights
        One number for each output; the 1st place: 1.0, 0.4, 0.2, 0.1.

    Raises
    ------
    ShapeError
        When called with another number of outputs than weights.
    """

    def __init__(self, loss: str | Callable[..., Tensor], weights: Sequence[float]):
        super().__init__()
        self.loss = LOSSES.build(loss) if isinstance(loss, str) else loss
        self.weights = tuple(float(weight) for weight in weights)

    @property
    def reduction(self) -> str:
        """The reduction of the inner loss; missing where that has none, which fastai checks for."""
        return getattr(self.loss, "reduction")  # noqa: B009 - any callable may have it

    @reduction.setter
    def reduction(self, value: str) -> None:
        setattr(self.loss, "reduction", value)  # noqa: B010 - any callable may have it

    def forward(self, logits: Tensor | Sequence[Tensor], targ: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the weighted sum over the outputs, each of shape (batch, tags), or the loss of a single output."""
        if isinstance(logits, Tensor):
            return self.loss(logits, targ, *args, **kwargs)
        if len(logits) != len(self.weights):
            raise ShapeError(
                f"the model has {len(logits)} outputs; expected {len(self.weights)}: one for each of {self.weights}"
            )
        return _weighted_sum(self.weights, (self.loss(each, targ, *args, **kwargs) for each in logits))

    def activation(self, logits: Any) -> Any:
        """Return the inner loss's activation of the main logits, shape (batch, tags); a sigmoid where it has none."""
        return getattr(self.loss, "activation", torch.sigmoid)(main_output(logits))

    def decodes(self, probs: Tensor) -> Tensor:
        """Return the inner loss's decoding of probabilities, shape (batch, tags); `probs > 0.5` where it has none."""
        decodes = getattr(self.loss, "decodes", None)
        return decodes(probs) if decodes else probs > TagLoss.thresh


def weighted_loss(loss_func: Any) -> TagLoss | None:
    """Return the loss that accepts sample weights, `loss_func` or the one inside an `AuxLoss`; None if neither does."""
    loss = loss_func.loss if isinstance(loss_func, AuxLoss) else loss_func
    return loss if isinstance(loss, TagLoss) else None


def smooth_labels(targ: Tensor, eps: float, *, mode: str) -> Tensor:
    """Smooth labels: move them away from 0 and 1.

    Parameters
    ----------
    targ
        Shape (batch, tags), within [0, 1].
    eps
        Strength, from 0 (no change) to 1; for "ninth_place" at most K / (K + 1) with K tags.
    mode
        "positives", (1 - eps/2) targ; "both", (1 - eps) targ + eps/2; "ninth_place", (1 - eps (1 + 1/K)) targ + eps/K,
        which is not the textbook formula: a positive becomes 1 - eps.

    Returns
    -------
    Shape and dtype of `targ`.

    Raises
    ------
    OptionError
        If `eps` is outside [0, 1], or the mode is unknown.

    Examples
    --------
    >>> targ = torch.tensor([[1.0, 0.0]])
    >>> smooth_labels(targ, 0.4, mode="positives"), smooth_labels(targ, 0.4, mode="both")
    (tensor([[0.8000, 0.0000]]), tensor([[0.8000, 0.2000]]))
    >>> smooth_labels(targ, 0.4, mode="ninth_place")
    tensor([[0.6000, 0.2000]])
    """
    if not 0 <= eps <= 1:
        raise OptionError(f"eps is {eps}; expected a number from 0 to 1")
    if mode not in _SMOOTHING:
        raise OptionError(f"mode is {mode!r}; expected {', '.join(_SMOOTHING)}")
    return _SMOOTHING[mode](targ, eps, targ.shape[1])


def _build_loss(loss: str | TagLoss, reduction: str) -> TagLoss:
    """Return a loss by name with that reduction, or the given `TagLoss`."""
    if isinstance(loss, str):
        return LOSSES.build(loss, reduction=reduction)
    if not isinstance(loss, TagLoss):
        raise OptionError(
            f"loss is {loss!r}; expected a name of LOSSES or a TagLoss: other losses return no number for each clip"
        )
    return loss


def _weighted_sum(weights: Sequence[float], values: Iterable[Tensor]) -> Tensor:
    return torch.stack([weight * value for weight, value in zip(weights, values, strict=True)]).sum(0)


def _check_weights(weights: Sequence[float] | None, n: int, of: str) -> tuple[float, ...]:
    """Return `n` weights, each 1 if None was given."""
    if weights is None:
        return (1.0,) * n
    if len(weights) != n:
        raise OptionError(f"there are {len(weights)} weights for {n} {of}; expected one each")
    return tuple(check_non_negative(weight, "a weight") for weight in weights)


def _parse_factor(text: str | None, name: str) -> float:
    """Return the factor before the name of a loss; 1 without one."""
    try:
        return 1.0 if text is None else check_non_negative(float(text), "a factor")
    except ValueError as e:
        raise OptionError(f"the loss {name!r} has the factor {text!r}: {e}") from None
