"""Confidence intervals of scores and of differences between scores, by resampling the clips (bootstrap).

A resample takes as many clips as there are, with replacement; the interval contains the central 95 % (or
`confidence_level`) of the scores of many resamples. It estimates how much another test set of the same kind would
change the score; not another training run, nor clips of another kind. Average precision increases with clips that are
drawn twice, most of all near chance: there, an interval of mAP may lie above its value.

Nothing is ranked twice: lwlrap needs the sum of precisions of each clip, and mAP and AUC need clips that are sorted
once, each weighted by the number of times it was drawn. Only a score given as a function is computed again for each
resample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from fatai.errors import DataError, OptionError
from fatai.metrics._validation import CheckedInputs, check_inputs
from fatai.metrics.classification import Average, SortedScores, auc_to_d_prime, mean_without_nan
from fatai.metrics.ranking import precision_hits
from fatai.registry import did_you_mean

__all__ = ["Difference", "Interval", "score_difference", "score_interval"]

# Number of times that each clip counts, (clips,), to a score.
WeightedScore: TypeAlias = Callable[[np.ndarray], float]
Score: TypeAlias = str | Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class Interval:
    """A score and its confidence interval.

    Attributes
    ----------
    value
        The score of all clips.
    low, high
        Ends of the interval.
    confidence_level
        Fraction of the resampled scores within the interval.

    Examples
    --------
    >>> print(Interval(0.7531, 0.7412, 0.7648, 0.95))
    0.753, 95 % interval 0.741 to 0.765
    """

    value: float
    low: float
    high: float
    confidence_level: float

    def __str__(self) -> str:
        return f"{self.value:.3f}, {_format_interval(self)}"


@dataclass(frozen=True)
class Difference:
    """Score of the first set of predictions minus that of the second, on the same clips; attributes as of `Interval`.

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
    confidence_level: float

    @property
    def is_significant(self) -> bool:
        """True if the interval does not contain 0."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        if self.value == 0:
            return f"no different, {_format_interval(self)}"
        return f"{abs(self.value):.3f} {'better' if self.value > 0 else 'worse'}, {_format_interval(self)}"


def score_interval(
    probs: Any,
    targ: Any,
    score: Score = "lwlrap",
    *,
    n_resamples: int = 1000,
    confidence_level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Compute a score and its confidence interval over clips.

    Parameters
    ----------
    probs, targ
        Shape (clips, tags), as in `fatai.metrics.ranking.lwlrap`.
    score
        "lwlrap", "map", "auc" or "d_prime", the last three also with "_micro"; or a function of (probs, targ), higher
        is better.
    n_resamples
        Number of resamples; 1000 determine the ends to about a tenth of the interval's width.
    confidence_level
        Fraction of the resampled scores within the interval, between 0 and 1.
    seed
        Equal seeds draw the same clips.

    Raises
    ------
    OptionError
        If there is no score of that name, or an option is out of range.
    DataError
        If no clip has any tag, so that there is no score. Resamples without a score, as of few clips with few tags, are
        ignored.

    Examples
    --------
    >>> probs, targ = [[0.9, 0.1], [0.2, 0.8], [0.7, 0.4]], [[1, 0], [0, 1], [0, 1]]
    >>> print(score_interval(probs, targ))
    0.833, 95 % interval 0.500 to 1.000
    """
    checked = check_inputs(probs, targ)
    weighted = _weighted_score(score, checked)
    n_clips = len(checked.scores)
    resampled = [weighted(counts) for counts in _resample(n_clips, n_resamples, confidence_level, seed)]
    return Interval(*_quantiles(weighted(np.ones(n_clips)), resampled, confidence_level), confidence_level)


def score_difference(
    first: Any,
    second: Any,
    targ: Any,
    score: Score = "lwlrap",
    *,
    n_resamples: int = 1000,
    confidence_level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Compute the score of `first` minus that of `second`, with its confidence interval.

    Each resample scores both on the same clips. Clips that are hard for both cancel out, so the interval is narrower
    than those of the two scores suggest.

    Parameters
    ----------
    first, second
        Shape (clips, tags): two predictions of the same clips.
    targ
        Shape (clips, tags), 0 and 1.
    score, n_resamples, confidence_level, seed
        As in `score_interval`, whose errors are raised.

    Examples
    --------
    >>> targ = [[1, 0], [0, 1], [0, 1]]
    >>> print(score_difference([[0.9, 0.1], [0.2, 0.8], [0.3, 0.4]], [[0.9, 0.1], [0.2, 0.8], [0.7, 0.4]], targ))
    0.167 better, 95 % interval 0.000 to 0.500
    """
    checked = [check_inputs(probs, targ) for probs in (first, second)]
    one, two = (_weighted_score(score, inputs) for inputs in checked)
    n_clips = len(checked[0].scores)
    resampled = [
        one(counts) - two(counts) for counts in _resample(n_clips, n_resamples, confidence_level, seed)
    ]
    once = np.ones(n_clips)
    return Difference(*_quantiles(one(once) - two(once), resampled, confidence_level), confidence_level)


def _resample(n_clips: int, n_resamples: int, confidence_level: float, seed: int) -> Iterator[np.ndarray]:
    """Yield the number of times that each clip is drawn, shape (clips,), one resample after the other."""
    check_resampling(n_resamples, confidence_level)
    rng = np.random.default_rng(seed)
    for _ in range(n_resamples):
        yield np.bincount(rng.integers(n_clips, size=n_clips, dtype=np.int32), minlength=n_clips).astype(np.float64)


def check_resampling(n_resamples: int, confidence_level: float) -> None:
    """Raise an `OptionError` if an option is out of range."""
    if n_resamples < 1 or not 0 < confidence_level < 1:
        raise OptionError(
            f"n_resamples is {n_resamples} and confidence_level {confidence_level}; expected at least one resample, "
            "and a level between 0 and 1, such as 0.95"
        )


def _quantiles(value: float, resampled: list[float], confidence_level: float) -> tuple[float, float, float]:
    if np.isnan(value):
        raise DataError("there is no score to resample: no clip has a tag, or every clip has every tag")
    # The nearest score: infinite values of d-prime cannot be interpolated.
    ends = [(1 - confidence_level) / 2, (1 + confidence_level) / 2]
    low, high = np.nanquantile(resampled, ends, method="nearest")
    return value, float(low), float(high)


def _format_interval(interval: Interval | Difference) -> str:
    # Adding 0 after rounding removes the minus of -0.000.
    low, high = (round(end, 3) + 0.0 for end in (interval.low, interval.high))
    return f"{100 * interval.confidence_level:g} % interval {low:.3f} to {high:.3f}"


# Scores by name, as functions of the number of times that each clip counts.


def _weighted_score(score: Score, checked: CheckedInputs) -> WeightedScore:
    if not isinstance(score, str):
        return lambda counts: float(score(*(x.repeat(counts.astype(int), axis=0) for x in checked[:2])))
    if score not in _SCORES:
        raise OptionError(
            f"no score named {score!r}, and it is not a function of (probs, targ); {did_you_mean(score, list(_SCORES))}"
        )
    return _SCORES[score](checked)


def _weighted_lwlrap(checked: CheckedInputs) -> WeightedScore:
    hits = precision_hits(*checked[:2])
    sums = np.bincount(hits.clips, weights=hits.precision, minlength=len(checked.scores))
    n_present = checked.present.sum(axis=1).astype(float)

    def lwlrap(counts: np.ndarray) -> float:
        total = counts @ n_present
        return float(counts @ sums / total) if total else float("nan")

    return lwlrap


def _weighted_map(checked: CheckedInputs, average: Average = "macro") -> WeightedScore:
    in_order = SortedScores(checked, average)
    return lambda counts: mean_without_nan(in_order.average_precision(counts))


def _weighted_auc(checked: CheckedInputs, average: Average = "macro") -> WeightedScore:
    in_order = SortedScores(checked, average)
    return lambda counts: mean_without_nan(in_order.auc(counts))


def _weighted_d_prime(checked: CheckedInputs, average: Average = "macro") -> WeightedScore:
    auc = _weighted_auc(checked, average)
    return lambda counts: auc_to_d_prime(auc(counts))


_SCORES: dict[str, Callable[[CheckedInputs], WeightedScore]] = {
    "lwlrap": _weighted_lwlrap,
    "map": _weighted_map,
    "map_micro": lambda checked: _weighted_map(checked, "micro"),
    "auc": _weighted_auc,
    "auc_micro": lambda checked: _weighted_auc(checked, "micro"),
    "d_prime": _weighted_d_prime,
    "d_prime_micro": lambda checked: _weighted_d_prime(checked, "micro"),
}
