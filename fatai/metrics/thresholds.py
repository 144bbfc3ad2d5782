"""Decide tags from probabilities: a threshold for each tag.

Conventions: `probs` is (clips, tags), `targ` (clips, tags) of 0 and 1. A tag is predicted if its probability is at
least its threshold; a threshold of infinity predicts it never. Candidates are the thresholds of scikit-learn's
`precision_recall_curve`: the values that occur. Fit thresholds on predictions of clips that the model was not trained
on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fatai.errors import DataError, OptionError, ShapeError
from fatai.io.lazy import special
from fatai.metrics._validation import as_array, check_flags, check_inputs, check_probabilities

__all__ = ["Thresholds", "f1_thresholds", "mean_f1", "precision_thresholds"]

_N_CANDIDATES = 401  # of one threshold for all tags: quantiles of the probabilities
_MIN_PROB = 1e-7  # and its distance from 1, so that logits are finite
_ROUNDING = 1e-12  # precision and recall are fractions of counts: closer values differ by rounding only


@dataclass(frozen=True)
class Thresholds:
    """The lowest probability at which each tag is predicted.

    Parameters
    ----------
    tags
        Name of each tag, without duplicates.
    values
        Threshold of each tag, within [0, 1], or infinity.

    Raises
    ------
    DataError
        If the numbers do not fit the tags, or are out of range.

    Examples
    --------
    >>> Thresholds(("Bark", "Meow"), (0.5, math.inf)).apply([[0.5, 1.0], [0.4, 0.0]]).tolist()
    [[True, False], [False, False]]
    """

    tags: tuple[str, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.values) != len(self.tags) or len(set(self.tags)) < len(self.tags):
            raise DataError(
                f"there are {len(self.values)} thresholds for {len(self.tags)} tags; expected one for each tag, "
                "without duplicate tags"
            )
        if not all(0 <= value <= 1 or value == math.inf for value in self.values):
            invalid = next(v for v in self.values if not 0 <= v <= 1 and v != math.inf)
            raise DataError(f"a threshold is {invalid}; expected numbers within [0, 1], or infinity for never")

    def apply(self, probs: Any) -> np.ndarray:
        """Return the predicted tags, bool.

        Parameters
        ----------
        probs
            Shape (clips, tags), columns in the order of `tags`.

        Returns
        -------
        Shape (clips, tags).

        Raises
        ------
        ShapeError
            If `probs` has another number of columns.
        """
        values = as_array(probs).astype(np.float64)
        if values.ndim != 2 or values.shape[1] != len(self.tags):
            raise ShapeError(
                f"probs has shape {values.shape}; expected (clips, {len(self.tags)}), a column for each tag"
            )
        return values >= np.array(self.values)

    def to_list(self) -> list[float | None]:
        """Return the thresholds for JSON, which has no infinity: None stands for it."""
        return [None if value == math.inf else value for value in self.values]

    @classmethod
    def from_list(cls, tags: Sequence[str], values: Any) -> Thresholds:
        """Convert and check the result of `to_list`; a `DataError` if it is something else."""
        numbers = isinstance(values, list) and all(
            v is None or isinstance(v, (int, float)) and not isinstance(v, bool) for v in values
        )
        if not numbers:
            raise DataError("thresholds is not a list of numbers and nulls")
        return cls(tuple(tags), tuple(math.inf if v is None else float(v) for v in values))


class _Curve(NamedTuple):
    """Precision and recall of one tag at each threshold, all of shape (n,); thresholds rise."""

    precision: np.ndarray
    recall: np.ndarray
    thresholds: np.ndarray


def f1_thresholds(
    probs: Any, targ: Any, tags: Sequence[str] | None = None, *, shrink: float = 0.0
) -> Thresholds:
    """Find the threshold of each tag with the highest F1, of equal ones the highest; infinity for a tag of no clip.

    Parameters
    ----------
    probs, targ
        Shape (clips, tags), as in `fatai.metrics.ranking.lwlrap`.
    tags
        Names of the columns; their indices if None.
    shrink
        Clips of a tag at which its threshold lies halfway, in logits, between its own best one and the one that is best
        for all tags together; with fewer it is nearer to the latter. 0 takes its own: with few clips that overfits;
        infinity takes the one for all.

    Raises
    ------
    OptionError
        If `shrink` is negative.
    DataError
        If `probs` exceeds [0, 1].

    Examples
    --------
    >>> f1_thresholds([[0.9], [0.6], [0.5], [0.1]], [[1], [0], [1], [0]]).values   # F1 2/3, 1/2, 4/5, 2/3
    (0.5,)
    """

    def best(curve: _Curve) -> float:
        total = curve.precision + curve.recall
        f1 = 2 * curve.precision * curve.recall / np.where(total > 0, total, 1)
        return float(curve.thresholds[f1 >= f1.max() - _ROUNDING][-1])

    if not shrink >= 0:
        raise OptionError(f"shrink is {shrink}; expected a number of clips of at least 0")
    own = _for_each_tag(probs, targ, tags, best)
    return own if shrink == 0 else _shrunk(own, probs, targ, shrink)


def _shrunk(own: Thresholds, probs: Any, targ: Any, shrink: float) -> Thresholds:
    """Move thresholds towards the one with the highest mean F1 of all tags."""
    checked = check_inputs(probs, targ)
    values, present = checked.scores.astype(np.float64), checked.present
    common = _common_threshold(values, present)
    counts = present.sum(axis=0)
    weight, thresholds = counts / (counts + shrink), np.array(own.values)
    known = np.isfinite(thresholds)
    logits = [special.logit(np.clip(x, _MIN_PROB, 1 - _MIN_PROB)) for x in (np.where(known, thresholds, 0.5), common)]
    moved = np.where(known, special.expit(weight * logits[0] + (1 - weight) * logits[1]), math.inf)
    return Thresholds(own.tags, tuple(moved.tolist()))


def _common_threshold(values: np.ndarray, present: np.ndarray) -> float:
    """Return the threshold of all tags with the highest mean F1, among quantiles of values (clips, tags)."""
    candidates = np.unique(np.quantile(values, np.linspace(0, 1, _N_CANDIDATES)))
    known = present.any(axis=0)
    f1 = np.zeros((len(candidates), int(known.sum())))
    for k, (column, flags) in enumerate(zip(values.T[known], present.T[known], strict=True)):
        decided, hits = (len(x) - np.searchsorted(np.sort(x), candidates) for x in (column, column[flags]))
        f1[:, k] = 2 * hits / (decided + flags.sum())
    mean = f1.sum(axis=1)
    best = np.flatnonzero(mean >= mean.max() - _ROUNDING)
    return float(candidates[best[len(best) // 2]])


def precision_thresholds(probs: Any, targ: Any, precision: float, tags: Sequence[str] | None = None) -> Thresholds:
    """Find the lowest threshold of each tag with at least the given precision; infinity if none has it.

    Parameters
    ----------
    probs, targ
        Shape (clips, tags), as in `fatai.metrics.ranking.lwlrap`.
    precision
        Above 0, at most 1; a higher one gives fewer false alarms and finds fewer clips.
    tags
        Names of the columns; their indices if None.

    Raises
    ------
    OptionError
        If `precision` is out of range.
    DataError
        If `probs` exceeds [0, 1].

    Examples
    --------
    >>> precision_thresholds([[0.9], [0.6], [0.5], [0.1]], [[1], [0], [1], [0]], 0.6).values   # 1, 1/2, 2/3, 1/2
    (0.5,)
    """
    if not 0 < precision <= 1:
        raise OptionError(f"precision is {precision}; expected a fraction above 0 and at most 1, such as 0.9")

    def lowest(curve: _Curve) -> float:
        sufficient = curve.thresholds[curve.precision >= precision - _ROUNDING]
        return float(sufficient[0]) if len(sufficient) else math.inf

    return _for_each_tag(probs, targ, tags, lowest)


def mean_f1(decided: Any, targ: Any) -> float:
    """Compute the mean over tags (macro average) of F1; NaN if no clip has a tag.

    Parameters
    ----------
    decided, targ
        Shape (clips, tags), 0 and 1: predicted and true tags. Tags of no clip are left out.

    Raises
    ------
    ShapeError
        If the shapes differ or are not (clips, tags).
    DataError
        If there are other numbers than 0 and 1.

    Examples
    --------
    >>> mean_f1([[1, 0], [1, 0]], [[1, 0], [0, 0]])   # precision 1/2, recall 1
    0.6666666666666666
    """
    decided, present = as_array(decided), as_array(targ)
    if decided.ndim != 2 or decided.shape != present.shape:
        raise ShapeError(f"decided has shape {decided.shape} and targ {present.shape}; expected both as (clips, tags)")
    decided, present = check_flags(decided, "decided")[0], check_flags(present, "targ")[0]
    known = present.any(axis=0)
    hits = (decided & present).sum(axis=0)[known]
    total = (decided.sum(axis=0) + present.sum(axis=0))[known]
    return float((2 * hits / total).mean()) if known.any() else float("nan")


def _for_each_tag(probs: Any, targ: Any, tags: Sequence[str] | None, choose: Callable[[_Curve], float]) -> Thresholds:
    """Choose a threshold from the curve of each tag of (clips, tags); infinity for a tag of no clip."""
    checked = check_inputs(probs, targ)
    scores = check_probabilities(checked.scores)
    names = tuple(str(i) for i in range(scores.shape[1])) if tags is None else tuple(tags)
    columns = zip(scores.T, checked.present.T, strict=True)
    return Thresholds(names, tuple(choose(_curve(p, y)) if y.any() else math.inf for p, y in columns))


def _curve(probs: np.ndarray, present: np.ndarray) -> _Curve:
    """Return the curve of one tag with probabilities and flags of shape (clips,)."""
    # The values of scikit-learn's precision_recall_curve, whose checks of its arguments take most of its time.
    thresholds = np.unique(probs)
    decided, hits = (len(x) - np.searchsorted(np.sort(x), thresholds) for x in (probs, probs[present]))
    return _Curve(hits / decided, hits / present.sum(), thresholds)
