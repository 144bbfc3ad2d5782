"""Blends that need no fitting: what is averaged, and how the average becomes the answer.

Conventions: a *stack* is float64, (models, clips, tags), within [0, 1]; weights are (models,) and sum to 1. An entry of `ENSEMBLES` takes
its own options and returns a `Averager`, which is fixed, or a `FittableEnsemble`, which is fitted on out-of-fold predictions first.

lwlrap reads the order of tags within a clip. So `rank_clip`, which throws away all but that order, and `mean`, keep what the score
sees of one model; `rank_tag` and `minmax_tag` put tags on a common scale across clips, and thereby change it, for better or worse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from scipy.stats import rankdata

from fatai.errors import OptionError
from fatai.registry import ENSEMBLES

__all__ = ["Averager", "WeightedAverage", "FittableEnsemble", "normalized_weights"]

Change = Callable[[np.ndarray], np.ndarray]
Fitted = Callable[[np.ndarray], np.ndarray]
"""What makes (clips, tags) of a stack."""


def _same(values: np.ndarray) -> np.ndarray:
    return values


@dataclass(frozen=True)
class Averager:
    """A weighted mean over models of what `before` makes of a stack; `after` turns the mean, (clips, tags), into the answer.

    Examples
    --------
    >>> squares = Averager(before=np.square, after=np.sqrt)
    >>> squares(np.array([[[1.0]], [[0.5]]]), np.array([0.2, 0.8])).round(3).tolist()
    [[0.632]]
    """

    before: Change = _same
    after: Change = _same

    def __call__(self, stack: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return self.finish(self.before(stack), weights)

    def finish(self, ready: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The answer, within [0, 1], from what `before` has made already."""
        # One model after the other: a matrix product may add in an order that depends on the machine.
        mean = sum(
            (weight * probs for weight, probs in zip(weights, ready, strict=True)), start=np.zeros(ready.shape[1:])
        )
        # Weights that sum to 1 up to rounding may carry a mean of ones to 1 + 2e-16.
        return np.clip(self.after(mean), 0, 1)


def normalized_weights(how: str, weights: Sequence[float] | np.ndarray | None, n: int) -> np.ndarray:
    """What each of `n` predictions counts, summing to 1; without weights all count alike, but for `how` "weighted", which needs them."""
    if how == "weighted" and weights is None:
        raise OptionError(
            "how='weighted' needs weights: one number for each of the predictions, or 'lwlrap' with oof= and truth="
        )
    values = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
    if values.shape != (n,):
        raise OptionError(f"weights has shape {values.shape}; expected one number for each of the {n} predictions")
    if not (np.isfinite(values).all() and (values >= 0).all() and values.sum() > 0):
        raise OptionError(f"weights is {values.tolist()}; expected finite numbers >= 0, not all 0")
    return values / values.sum()


@dataclass(frozen=True)
class WeightedAverage:
    """A blend with its weights (models,), as a function of a stack."""

    blend: Averager
    weights: np.ndarray

    def __call__(self, stack: np.ndarray) -> np.ndarray:
        return self.blend(stack, self.weights)


@runtime_checkable
class FittableEnsemble(Protocol):
    """A way to blend that learns from predictions of clips whose tags are known."""

    def fit(self, stack: np.ndarray, targ: np.ndarray) -> Fitted:
        """A function of a stack, learnt from out-of-fold predictions and the bool table (clips, tags) of what is true of them."""


@ENSEMBLES.register("mean", source="plain average of probabilities; ninth's folds, 36th's and 3rd's whole ensembles")
def mean() -> Averager:
    """Arithmetic mean of the probabilities."""
    return Averager()


@ENSEMBLES.register(
    "weighted", source="fixed weights as of the 4th place; or proportional to the cross-validated score, gold-plan"
)
def weighted() -> Averager:
    """Arithmetic mean with weights that must be given."""
    return Averager()


@ENSEMBLES.register("gmean", source="geometric mean; folds and models of the 1st place")
def gmean(*, floor: float = 2.0**-126) -> Averager:
    """Geometric mean: a tag must please every model; values below `floor` count as `floor`, so one exact 0 does not settle it alone."""
    if not 0 < floor < 1:
        raise OptionError(f"floor is {floor}; expected a number between 0 and 1, such as 1e-7")
    return Averager(before=lambda stack: np.log(np.maximum(stack, floor)), after=np.exp)


@ENSEMBLES.register("rank_clip", source="ranks within each clip; an option of the 3rd place's blending tool")
def rank_clip() -> Averager:
    """Mean of the tags' ranks within each clip, from 0 (last) to 1 (first); ties share the mean of their ranks."""
    return Averager(before=lambda stack: _ranks(stack, axis=2))


@ENSEMBLES.register("rank_tag", source="ranks within each class; gold-plan")
def rank_tag() -> Averager:
    """Mean of the clips' ranks within each tag, from 0 (last) to 1 (first); ties share the mean of their ranks."""
    return Averager(before=lambda stack: _ranks(stack, axis=1))


@ENSEMBLES.register("minmax_tag", source="each class rescaled to [0, 1] in each model, then averaged; ninth")
def minmax_tag() -> Averager:
    """Mean after each tag of each model is stretched so that its clips span 0 to 1; a tag that is the same in all clips stays as it is."""

    def stretch(stack: np.ndarray) -> np.ndarray:
        low = stack.min(axis=1, keepdims=True)
        span = stack.max(axis=1, keepdims=True) - low
        return np.where(span > 0, (stack - low) / np.where(span > 0, span, 1), stack)

    return Averager(before=stretch)


def _ranks(stack: np.ndarray, axis: int) -> np.ndarray:
    """Ranks along `axis` from 0 to 1; what stands alone has no rank and keeps its value."""
    n = stack.shape[axis]
    return (rankdata(stack, axis=axis) - 1) / (n - 1) if n > 1 else stack
