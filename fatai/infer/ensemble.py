"""Several predictions to one.

Conventions: a *stack* is float64, (models, clips, tags), within [0, 1]; weights are (models,), sum to 1, and every blend takes them. An
entry of `ENSEMBLES` takes its own options and returns the blend, a function of (stack, weights) to (clips, tags).

lwlrap reads the order of tags within a clip. So `rank_clip`, which throws away all but that order, and `mean`, keep what the score
sees of one model; `rank_tag` and `minmax_tag` put tags on a common scale across clips, and thereby change it, for better or worse.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import rankdata

from fatai.errors import OptionError, SubmissionError
from fatai.infer.csv_rows import some
from fatai.infer.predictions import Predictions
from fatai.infer.truth import Table
from fatai.registry import ENSEMBLES, did_you_mean
from fatai.score.ranking import lwlrap

__all__ = ["ensemble"]

Blend = Callable[[np.ndarray, np.ndarray], np.ndarray]
Given = Predictions | str | os.PathLike[str]


def ensemble(
    predictions: Sequence[Given],
    how: str = "mean",
    weights: Sequence[float] | str | None = None,
    *,
    oof: Sequence[Given] | None = None,
    truth: Table | None = None,
    **options: object,
) -> Predictions:
    """Blend predictions of the same clips and tags; rows and columns are matched by name, so their order may differ.

    Parameters
    ----------
    predictions
        `Predictions` or CSV files of them, one or more. The first one's order of rows and columns is kept.
    how
        A name of `ENSEMBLES`; `options` are its own.
    weights
        One number >= 0 for each of `predictions` (only their ratios count); None weighs all alike; "lwlrap" weighs each by the score of
        its out-of-fold predictions.
    oof, truth
        For weights by name: out-of-fold predictions, in the order of `predictions`, and their truth table as in `Predictions.score`;
        clips that only one of the two has are left out.

    Returns
    -------
    Predictions within [0, 1]; a clip that was unreadable to any is unreadable.

    Raises
    ------
    SubmissionError
        If the clips or tags are not the same, with the names that differ.
    OptionError
        If the weights do not fit, or `how` is "weighted" and there are none.
    UnknownName
        If there is no such `how`.

    Examples
    --------
    >>> one = Predictions(["a.wav", "b.wav"], ["Bark", "Meow"], [[0.5, 0.25], [1.0, 0.0]])
    >>> two = Predictions(["b.wav", "a.wav"], ["Bark", "Meow"], [[0.5, 0.5], [0.0, 0.75]])
    >>> ensemble([one, two], weights=[3, 1]).probs.tolist()
    [[0.375, 0.375], [0.875, 0.125]]
    """
    given = _loaded(predictions, "predictions")
    if how == "weighted" and weights is None:
        raise OptionError("how='weighted' needs weights: one number for each of the predictions, or 'lwlrap' with oof= and truth=")
    blend: Blend = ENSEMBLES.build(how, **options)
    first = given[0]
    stack = np.stack([_like(first, other, i).probs for i, other in enumerate(given)])
    probs = blend(stack, _weights(weights, len(given), oof, truth))
    unreadable = dict.fromkeys(name for each in given for name in each.unreadable)
    # Weights that sum to 1 up to rounding may carry a mean of ones to 1 + 2e-16.
    return Predictions(first.fnames, first.tags, np.clip(probs, 0, 1), tuple(unreadable))


@ENSEMBLES.register("mean", source="plain average of probabilities; ninth's folds, 36th's and 3rd's whole ensembles")
def mean() -> Blend:
    """Arithmetic mean of the probabilities."""
    return _average


@ENSEMBLES.register("weighted", source="fixed weights as of the 4th place; or proportional to the cross-validated score, gold-plan")
def weighted() -> Blend:
    """Arithmetic mean with weights that must be given."""
    return _average


@ENSEMBLES.register("gmean", source="geometric mean; folds and models of the 1st place")
def gmean(*, floor: float = 2.0**-126) -> Blend:
    """Geometric mean: a tag must please every model; values below `floor` count as `floor`, so one exact 0 does not settle it alone."""
    if not 0 < floor < 1:
        raise OptionError(f"floor is {floor}; expected a number between 0 and 1, such as 1e-7")
    return lambda stack, weights: np.exp(_average(np.log(np.maximum(stack, floor)), weights))


@ENSEMBLES.register("rank_clip", source="ranks within each clip; an option of the 3rd place's blending tool")
def rank_clip() -> Blend:
    """Mean of the tags' ranks within each clip, from 0 (last) to 1 (first); ties share the mean of their ranks."""
    return lambda stack, weights: _average(_ranks(stack, axis=2), weights)


@ENSEMBLES.register("rank_tag", source="ranks within each class; gold-plan")
def rank_tag() -> Blend:
    """Mean of the clips' ranks within each tag, from 0 (last) to 1 (first); ties share the mean of their ranks."""
    return lambda stack, weights: _average(_ranks(stack, axis=1), weights)


@ENSEMBLES.register("minmax_tag", source="each class rescaled to [0, 1] in each model, then averaged; ninth")
def minmax_tag() -> Blend:
    """Mean after each tag of each model is stretched so that its clips span 0 to 1; a tag that is the same in all clips stays as it is."""

    def blend(stack: np.ndarray, weights: np.ndarray) -> np.ndarray:
        low = stack.min(axis=1, keepdims=True)
        span = stack.max(axis=1, keepdims=True) - low
        return _average(np.where(span > 0, (stack - low) / np.where(span > 0, span, 1), stack), weights)

    return blend


def _average(stack: np.ndarray, weights: np.ndarray) -> np.ndarray:
    # One model after the other: a matrix product may add in an order that depends on the machine.
    return sum((weight * probs for weight, probs in zip(weights, stack, strict=True)), start=np.zeros(stack.shape[1:]))


def _ranks(stack: np.ndarray, axis: int) -> np.ndarray:
    """Ranks along `axis` from 0 to 1; what stands alone has no rank and keeps its value."""
    n = stack.shape[axis]
    return (rankdata(stack, axis=axis) - 1) / (n - 1) if n > 1 else stack


def _loaded(given: Sequence[Given], what: str) -> list[Predictions]:
    if isinstance(given, (str, os.PathLike, Predictions)):
        raise OptionError(f"{what} is a single {type(given).__name__}; expected a list of Predictions or of their CSV files")
    loaded = [each if isinstance(each, Predictions) else Predictions.from_csv(each) for each in given]
    if not loaded:
        raise OptionError(f"{what} is empty; an ensemble needs at least one")
    return loaded


def _like(first: Predictions, other: Predictions, position: int) -> Predictions:
    """`other` with the rows and columns of `first`, in its order."""
    differences = []
    for kind, ours, theirs in (("clips", first.fnames, other.fnames), ("tags", first.tags, other.tags)):
        lacking, extra = sorted(set(ours).difference(theirs)), sorted(set(theirs).difference(ours))
        differences += [f"lack the {kind} {some(lacking)}"] if lacking else []
        differences += [f"have the {kind} {some(extra)} besides"] if extra else []
    if differences:
        raise SubmissionError(f"predictions {position + 1} do not match the first: they {' and '.join(differences)}")
    return other.select(first.fnames, first.tags)


def _weights(weights: Sequence[float] | str | None, n: int, oof: Sequence[Given] | None, truth: Table | None) -> np.ndarray:
    """Weights that sum to 1."""
    if weights is None:
        values = np.ones(n)
    elif isinstance(weights, str):
        values = _weights_by_rule(weights, n, oof, truth)
    else:
        values = np.asarray(weights, dtype=np.float64)
    if values.shape != (n,):
        raise OptionError(f"weights has shape {values.shape}; expected one number for each of the {n} predictions")
    if not (np.isfinite(values).all() and (values >= 0).all() and values.sum() > 0):
        raise OptionError(f"weights is {values.tolist()}; expected finite numbers >= 0, not all 0")
    return values / values.sum()


def _weights_by_rule(rule: str, n: int, oof: Sequence[Given] | None, truth: Table | None) -> np.ndarray:
    if rule not in WEIGHT_RULES:
        raise OptionError(f"weights is {rule!r}; {did_you_mean(rule, list(WEIGHT_RULES))}, or a list of numbers")
    if oof is None or truth is None:
        raise OptionError(f"weights={rule!r} is learnt from out-of-fold predictions: pass oof=[...] (one for each of the {n}) and truth=")
    loaded = _loaded(oof, "oof")
    if len(loaded) != n:
        raise OptionError(f"oof holds {len(loaded)} predictions; expected {n}, one for each of those to blend, in the same order")
    scored = [each.against(truth, partial=True) for each in loaded]
    return WEIGHT_RULES[rule]([a.probs for a in scored], [a.targ for a in scored])


def _by_lwlrap(probs: Sequence[np.ndarray], targ: Sequence[np.ndarray]) -> np.ndarray:
    """Weights in proportion to each model's score."""
    return np.array([lwlrap(p, t) for p, t in zip(probs, targ, strict=True)])


WEIGHT_RULES: dict[str, Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], np.ndarray]] = {"lwlrap": _by_lwlrap}
