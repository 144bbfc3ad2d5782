"""Averages of predictions that need no fitting, and the protocol of those that do.

Conventions: `probs` of several models is float64, shape (models, clips, tags), in [0, 1]; weights have shape (models,)
and sum to 1. A builder in `ENSEMBLES` takes the options of its method and returns an `Averager`, which is fixed, or a
`FittableEnsemble`, which is first fitted on out-of-fold predictions.

lwlrap depends only on the order of tags within a clip. `rank_clip`, which discards all but that order, and `mean`
therefore keep what the score sees of a single model; `rank_tag` and `minmax_tag` put tags on a common scale across
clips, which changes that order, for better or worse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from fatai.errors import OptionError
from fatai.io.lazy import stats
from fatai.registry import ENSEMBLES

__all__ = ["Averager", "FittableEnsemble", "WeightedAverage", "normalized_weights"]

ArrayFunction = Callable[[np.ndarray], np.ndarray]
FittedEnsemble = Callable[[np.ndarray], np.ndarray]
"""Maps probabilities (models, clips, tags) to (clips, tags)."""


def _identity(values: np.ndarray) -> np.ndarray:
    return values


@dataclass(frozen=True)
class Averager:
    """Average transformed probabilities over models with given weights.

    Parameters
    ----------
    before
        Applied to the probabilities, shape (models, clips, tags), before the weighted mean; must keep the shape.
    after
        Applied to the mean, shape (clips, tags); usually the inverse of `before`.

    Examples
    --------
    >>> squares = Averager(before=np.square, after=np.sqrt)
    >>> squares(np.array([[[1.0]], [[0.5]]]), np.array([0.2, 0.8])).round(3).tolist()
    [[0.632]]
    """

    before: ArrayFunction = _identity
    after: ArrayFunction = _identity

    def __call__(self, probs: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Average probabilities (models, clips, tags) with weights (models,) to (clips, tags), in [0, 1]."""
        return self.average_transformed(self.before(probs), weights)

    def average_transformed(self, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Average what `before` returned, so that a search over weights transforms the probabilities only once.

        Parameters
        ----------
        values
            Output of `before`, shape (models, clips, tags).
        weights
            Shape (models,), summing to 1.

        Returns
        -------
        Shape (clips, tags), in [0, 1].
        """
        # One model after the other: a matrix product may add in an order that depends on the machine.
        mean = sum(
            (weight * each for weight, each in zip(weights, values, strict=True)), start=np.zeros(values.shape[1:])
        )
        return self.finish(mean)

    def finish(self, mean: np.ndarray) -> np.ndarray:
        """Return the average, in [0, 1], of the weighted mean (clips, tags) of what `before` returned."""
        # Weights that sum to 1 up to rounding may give a mean of ones of 1 + 2e-16.
        return np.clip(self.after(mean), 0, 1)


def normalized_weights(how: str, weights: Sequence[float] | np.ndarray | None, n: int) -> np.ndarray:
    """Check the weights of `n` predictions and scale them to sum to 1.

    Parameters
    ----------
    how
        Name of the average; "weighted" requires weights.
    weights
        `n` finite numbers >= 0, not all 0; None gives equal weights.
    n
        Number of predictions.

    Returns
    -------
    Shape (n,), float64.

    Raises
    ------
    OptionError
        If the weights have another shape, are negative, not finite or all 0, or are missing for "weighted".

    Examples
    --------
    >>> normalized_weights("mean", [3, 1], 2).tolist()
    [0.75, 0.25]
    """
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
    """Average predictions with fixed weights, shape (models,), summing to 1."""

    averager: Averager
    weights: np.ndarray

    def __call__(self, probs: np.ndarray) -> np.ndarray:
        """Average probabilities (models, clips, tags) to (clips, tags)."""
        return self.averager(probs, self.weights)


@runtime_checkable
class FittableEnsemble(Protocol):
    """An ensemble method that is fitted on predictions of clips with known tags."""

    def fit(self, probs: np.ndarray, targ: np.ndarray) -> FittedEnsemble:
        """Fit on out-of-fold predictions.

        Parameters
        ----------
        probs
            Shape (models, clips, tags), in [0, 1]; each clip predicted by models that were not trained on it.
        targ
            Bool, shape (clips, tags).

        Returns
        -------
        A function that maps probabilities (models, clips, tags) to (clips, tags).
        """


@ENSEMBLES.register("mean", source="plain average of probabilities; ninth's folds, 36th's and 3rd's whole ensembles")
def mean() -> Averager:
    """Build the arithmetic mean of the probabilities."""
    return Averager()


@ENSEMBLES.register(
    "weighted", source="fixed weights as of the 4th place; or proportional to the cross-validated score, gold-plan"
)
def weighted() -> Averager:
    """Build the arithmetic mean with weights that the caller must give."""
    return Averager()


@ENSEMBLES.register("gmean", source="geometric mean; folds and models of the 1st place")
def gmean(*, floor: float = 2.0**-126) -> Averager:
    """Build the geometric mean, which is high only where every model gives a high probability.

    Parameters
    ----------
    floor
        Smaller probabilities count as `floor`, in (0, 1), so that a single exact 0 does not decide alone. Raise it
        (1e-7) where models are saturated.
    """
    if not 0 < floor < 1:
        raise OptionError(f"floor is {floor}; expected a number between 0 and 1, such as 1e-7")
    return Averager(before=lambda probs: np.log(np.maximum(probs, floor)), after=np.exp)


@ENSEMBLES.register("rank_clip", source="ranks within each clip; an option of the 3rd place's blending tool")
def rank_clip() -> Averager:
    """Build the mean of the tags' ranks within each clip, from 0 (last) to 1 (first); ties get their mean rank."""
    return Averager(before=lambda probs: _scaled_ranks(probs, axis=2))


@ENSEMBLES.register("rank_tag", source="ranks within each class; gold-plan")
def rank_tag() -> Averager:
    """Build the mean of the clips' ranks within each tag, from 0 (last) to 1 (first); ties get their mean rank."""
    return Averager(before=lambda probs: _scaled_ranks(probs, axis=1))


@ENSEMBLES.register("minmax_tag", source="each class rescaled to [0, 1] in each model, then averaged; ninth")
def minmax_tag() -> Averager:
    """Build the mean of tags that are scaled to span [0, 1] over the clips of each model; a constant tag is kept."""

    def scale(probs: np.ndarray) -> np.ndarray:
        low = probs.min(axis=1, keepdims=True)
        span = probs.max(axis=1, keepdims=True) - low
        return np.where(span > 0, (probs - low) / np.where(span > 0, span, 1), probs)

    return Averager(before=scale)


def _scaled_ranks(values: np.ndarray, axis: int) -> np.ndarray:
    """Rank along `axis`, scaled to [0, 1]; a single value has no rank and is kept."""
    n = values.shape[axis]
    return (stats.rankdata(values, axis=axis) - 1) / (n - 1) if n > 1 else values
