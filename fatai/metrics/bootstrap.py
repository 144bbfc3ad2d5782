"""How sure a score is: intervals from clips drawn again, and whether one set of predictions is better than another.

A draw takes as many clips as there are, with replacement; the interval holds the middle 95 % (or `level`) of the scores of many draws. It
says how much another test set of the same kind may move the score; not how much another training run, nor clips of another kind. Average
precision rises with clips that are drawn twice, by far the most where it is near chance: there, an interval of mAP may lie above its value.

Nothing is ranked twice: lwlrap needs the sum of precisions of each clip, and mAP and AUC clips that stay sorted, each counted as often as
it was drawn. Only a score given as a function is computed anew in each draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from fatai.errors import DataError, OptionError
from fatai.registry import did_you_mean
from fatai.metrics._validation import CheckedInputs, check_inputs
from fatai.metrics.ranking import precision_hits
from fatai.metrics.classification import Average, Sorted, d_prime_of, mean_of_existing

__all__ = ["Difference", "Interval", "score_difference", "score_interval"]

# How often each clip counts, (clips,), to a score.
Counted: TypeAlias = Callable[[np.ndarray], float]
Score: TypeAlias = str | Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class Interval:
    """A score and the interval that holds the share `level` of the scores of other draws.

    Examples
    --------
    >>> print(Interval(0.7531, 0.7412, 0.7648, 0.95))
    0.753, 95 % interval 0.741 to 0.765
    """

    value: float
    low: float
    high: float
    level: float

    def __str__(self) -> str:
        return f"{self.value:.3f}, {_interval(self)}"


@dataclass(frozen=True)
class Difference:
    """How much higher the first set of predictions scores than the second, on the same clips; the fields are those of `Interval`.

    Examples
    --------
    >>> print(Difference(0.0031, -0.0042, 0.0098, 0.95))
    0.003 better, 95 % interval -0.004 to 0.010
    >>> print(Difference(-0.0231, -0.0342, -0.0098, 0.9))
    0.023 worse, 90 % interval -0.034 to -0.010
    """

    value: float
    low: float
    high: float
    level: float

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        said = "no different" if self.value == 0 else f"{abs(self.value):.3f} {'better' if self.value > 0 else 'worse'}"
        return f"{said}, {_interval(self)}"


def score_interval(
    probs: Any, targ: Any, score: Score = "lwlrap", *, draws: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """A score of (clips, tags) and its interval over clips.

    Parameters
    ----------
    probs, targ
        As in `fatai.metrics.ranking.lwlrap`.
    score
        "lwlrap", "map", "auc" or "d_prime", the last three also with "_micro"; or a function of (probs, targ), higher is better.
    draws
        How many; 1000 settle the ends to about a tenth of the interval's width.
    level
        Share of the draws within the interval.
    seed
        Equal seeds draw the same clips.

    Raises
    ------
    OptionError
        If the score has no such name, or there are no draws, or the level is not between 0 and 1.
    DataError
        If no clip has any tag, so that there is no score. Draws without a score, as of few clips with few tags, are left out.

    Examples
    --------
    >>> probs, targ = [[0.9, 0.1], [0.2, 0.8], [0.7, 0.4]], [[1, 0], [0, 1], [0, 1]]
    >>> print(score_interval(probs, targ))
    0.833, 95 % interval 0.500 to 1.000
    """
    both = check_inputs(probs, targ)
    counted = _counted(score, both)
    drawn = [counted(counts) for counts in _draws(len(both.scores), draws, level, seed)]
    return Interval(*_middle(counted(np.ones(len(both.scores))), drawn, level), level)


def score_difference(
    first: Any,
    second: Any,
    targ: Any,
    score: Score = "lwlrap",
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """How much better `first` is than `second`, two tables of probabilities (clips, tags) for the same rows.

    Both are scored on the same clips in each draw: what is hard for both cancels, so the interval is narrower than those of the two scores
    let expect. The other parameters and errors are those of `score_interval`.

    Examples
    --------
    >>> targ = [[1, 0], [0, 1], [0, 1]]
    >>> print(score_difference([[0.9, 0.1], [0.2, 0.8], [0.3, 0.4]], [[0.9, 0.1], [0.2, 0.8], [0.7, 0.4]], targ))
    0.167 better, 95 % interval 0.000 to 0.500
    """
    one, two = _counted(score, check_inputs(first, targ)), _counted(score, check_inputs(second, targ))
    n_clips = len(np.asarray(targ))
    drawn = [one(counts) - two(counts) for counts in _draws(n_clips, draws, level, seed)]
    every = np.ones(n_clips)
    return Difference(*_middle(one(every) - two(every), drawn, level), level)


def _draws(n_clips: int, draws: int, level: float, seed: int) -> Iterator[np.ndarray]:
    """How often each clip is drawn, (clips,), one draw after the other."""
    if draws < 1 or not 0 < level < 1:
        raise OptionError(
            f"draws is {draws} and level {level}; expected at least one draw and a level between 0 and 1, such as 0.95"
        )
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        yield np.bincount(rng.integers(n_clips, size=n_clips, dtype=np.int32), minlength=n_clips).astype(np.float64)


def _middle(value: float, drawn: list[float], level: float) -> tuple[float, float, float]:
    if np.isnan(value):
        raise DataError("there is no score to draw from: no clip has a tag, or every clip has every tag")
    # Nearest draw: between two infinite values of d-prime nothing can be interpolated.
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    return value, float(low), float(high)


def _interval(of: Interval | Difference) -> str:
    # Adding 0 after rounding takes the minus from -0.000.
    low, high = (round(end, 3) + 0.0 for end in (of.low, of.high))
    return f"{100 * of.level:g} % interval {low:.3f} to {high:.3f}"


# Scores by name, as functions of how often each clip counts.


def _counted(score: Score, both: CheckedInputs) -> Counted:
    if not isinstance(score, str):
        return lambda counts: float(score(*(x.repeat(counts.astype(int), axis=0) for x in both[:2])))
    if score not in _COUNTED:
        raise OptionError(
            f"no score named {score!r}; {did_you_mean(score, list(_COUNTED))}, or a function of (probs, targ)"
        )
    return _COUNTED[score](both)


def _counted_lwlrap(both: CheckedInputs) -> Counted:
    hits = precision_hits(*both[:2])
    sums, tags = (
        np.bincount(hits.clips, weights=hits.precision, minlength=len(both.scores)),
        both.present.sum(axis=1).astype(float),
    )

    def lwlrap(counts: np.ndarray) -> float:
        total = counts @ tags
        return float(counts @ sums / total) if total else float("nan")

    return lwlrap


def _counted_map(both: CheckedInputs, average: Average = "macro") -> Counted:
    in_order = Sorted(both, average)
    return lambda counts: mean_of_existing(in_order.average_precision(counts))


def _counted_auc(both: CheckedInputs, average: Average = "macro") -> Counted:
    in_order = Sorted(both, average)
    return lambda counts: mean_of_existing(in_order.auc(counts))


def _counted_d_prime(both: CheckedInputs, average: Average = "macro") -> Counted:
    auc = _counted_auc(both, average)
    return lambda counts: d_prime_of(auc(counts))


_COUNTED: dict[str, Callable[[CheckedInputs], Counted]] = {
    "lwlrap": _counted_lwlrap,
    "map": _counted_map,
    "map_micro": lambda both: _counted_map(both, "micro"),
    "auc": _counted_auc,
    "auc_micro": lambda both: _counted_auc(both, "micro"),
    "d_prime": _counted_d_prime,
    "d_prime_micro": lambda both: _counted_d_prime(both, "micro"),
}
