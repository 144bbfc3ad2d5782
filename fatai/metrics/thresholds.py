"""From probabilities to tags: how high each tag's probability must be.

Conventions: `probs` is (clips, tags), `targ` (clips, tags) of 0 and 1. A tag is there where its probability is at least its threshold; a
threshold of infinity is reached by nothing. Only values that occur are tried, as in scikit-learn's `precision_recall_curve`: between two
of them nothing changes. Thresholds are fitted on predictions of clips that the model was not trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fatai.errors import DataError, OptionError, ShapeError
from fatai.metrics._validation import check_inputs

__all__ = ["Thresholds", "f1_thresholds", "precision_thresholds"]


@dataclass(frozen=True)
class Thresholds:
    """The least probability at which each tag is there.

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
                f"there are {len(self.values)} thresholds for {len(self.tags)} tags; expected one for each tag, no tag twice"
            )
        if not all(0 <= value <= 1 or value == math.inf for value in self.values):
            raise DataError(
                f"thresholds hold {next(v for v in self.values if not 0 <= v <= 1 and v != math.inf)}; expected numbers "
                "within [0, 1], or infinity for never"
            )

    def apply(self, probs: Any) -> np.ndarray:
        """Bool, shape (clips, tags): which tags are there, of probabilities whose columns are in the order of `tags`."""
        values = np.asarray(probs, dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != len(self.tags):
            raise ShapeError(
                f"probs has shape {values.shape}; expected (clips, {len(self.tags)}), a column for each tag"
            )
        return values >= np.array(self.values)

    def to_list(self) -> list[float | None]:
        """For JSON, which has no infinity: None stands for it."""
        return [None if value == math.inf else value for value in self.values]

    @classmethod
    def from_list(cls, tags: Sequence[str], values: Any) -> Thresholds:
        """What `to_list` made, checked."""
        numbers = isinstance(values, list) and all(
            v is None or isinstance(v, (int, float)) and not isinstance(v, bool) for v in values
        )
        if not numbers:
            raise DataError("thresholds is no list of numbers and nulls")
        return cls(tuple(tags), tuple(math.inf if v is None else float(v) for v in values))


def f1_thresholds(probs: Any, targ: Any, tags: Sequence[str] | None = None) -> Thresholds:
    """For each tag the threshold with the highest F1, of equal ones the highest; infinity for a tag that no clip has.

    Examples
    --------
    >>> f1_thresholds([[0.9], [0.6], [0.5], [0.1]], [[1], [0], [1], [0]]).values   # F1 2/3, 1/2, 4/5, 2/3
    (0.5,)
    """

    def best(curve: _Curve) -> float:
        # 2 / (1 / precision + 1 / recall), without the divisions by 0.
        f1 = 2 * curve.hits / (curve.said + curve.present)
        return float(curve.values[int(np.argmax(f1))]) if curve.present else math.inf

    return _for_each_tag(probs, targ, tags, best)


def precision_thresholds(probs: Any, targ: Any, precision: float, tags: Sequence[str] | None = None) -> Thresholds:
    """For each tag the smallest threshold at which the precision is at least `precision`; infinity where none reaches it.

    Examples
    --------
    >>> precision_thresholds([[0.9], [0.6], [0.5], [0.1]], [[1], [0], [1], [0]], 0.6).values   # precision 1, 1/2, 2/3, 1/2
    (0.5,)
    """
    if not 0 < precision <= 1:
        raise OptionError(f"precision is {precision}; expected a share above 0 and at most 1, such as 0.9")

    def least(curve: _Curve) -> float:
        enough = np.flatnonzero(curve.hits >= precision * curve.said)
        return float(curve.values[enough[-1]]) if len(enough) else math.inf

    return _for_each_tag(probs, targ, tags, least)


@dataclass(frozen=True)
class _Curve:
    """Of one tag: the values that occur, highest first; clips at or above each, those of them that have it, all that have it."""

    values: np.ndarray
    said: np.ndarray
    hits: np.ndarray
    present: int


def _for_each_tag(probs: Any, targ: Any, tags: Sequence[str] | None, choose: Callable[[_Curve], float]) -> Thresholds:
    both = check_inputs(probs, targ)
    scores = both.scores.astype(np.float64)
    names = tuple(str(i) for i in range(scores.shape[1])) if tags is None else tuple(tags)
    return Thresholds(
        names, tuple(choose(_curve(p, y)) if len(p) else math.inf for p, y in zip(scores.T, both.present.T))
    )


def _curve(probs: np.ndarray, present: np.ndarray) -> _Curve:
    values, at = np.unique(-probs, return_inverse=True)
    said, hits = (np.bincount(at, weights=w, minlength=len(values)).cumsum() for w in (np.ones(len(probs)), present))
    return _Curve(-values, said, hits, int(present.sum()))
