"""Weights of an average, searched on out-of-fold predictions: by score, COBYLA or forward selection.

A rule takes `SearchInputs` and returns weights >= 0, shape (models,), of which only the ratios count. lwlrap is a step
function of the weights: it has no useful gradient, and several weights may give the same score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fatai.ensemble.averaging import Averager, FittableEnsemble, FittedEnsemble, WeightedAverage, rank_tag
from fatai.errors import OptionError
from fatai.metrics.calibration import Calibration
from fatai.metrics.classification import main_score
from fatai.registry import ENSEMBLES

__all__ = ["WEIGHT_RULES", "WeightSearch"]


class SearchInputs(NamedTuple):
    """Inputs of a rule.

    Attributes
    ----------
    model_scores
        lwlrap of each model, shape (models,).
    score
        lwlrap of the average, given weights that sum to 1.
    values
        What the average takes a weighted mean of, shape (models, clips, tags).
    score_mean
        lwlrap of the average, given that mean, shape (clips, tags).
    """

    model_scores: np.ndarray
    score: Callable[[np.ndarray], float]
    values: np.ndarray
    score_mean: Callable[[np.ndarray], float]


Rule = Callable[[SearchInputs], np.ndarray]


@dataclass(frozen=True)
class WeightSearch:
    """An average whose weights are found by a rule on out-of-fold predictions."""

    averager: Averager
    rule: Rule

    def fit(self, probs: np.ndarray, targ: np.ndarray) -> WeightedAverage:
        """Find weights for predictions (models, clips, tags) of clips with the bool targets (clips, tags)."""
        values = self.averager.before(probs)
        model_scores = np.array([main_score(each, targ) for each in probs])
        weights = self.rule(SearchInputs(
            model_scores, lambda w: main_score(self.averager.average_transformed(values, w), targ),
            values, lambda mean: main_score(self.averager.finish(mean), targ),
        ))
        # Where all models score 0, equal weights are as good as any.
        total = weights.sum()
        return WeightedAverage(self.averager, weights / total if total > 0 else np.full(len(probs), 1 / len(probs)))


@ENSEMBLES.register("lwlrap_weights", source="weights proportional to the cross-validated lwlrap, gold-plan")
def lwlrap_weights(*, average: str = "mean") -> WeightSearch:
    """Weight each model by its out-of-fold lwlrap, as weights="lwlrap" does.

    Parameters
    ----------
    average
        Name of a fixed average in `ENSEMBLES`.
    """
    return WeightSearch(_build_averager(average), _by_lwlrap)


@ENSEMBLES.register("cobyla", source="blending tool of the 3rd place: COBYLA on out-of-fold lwlrap")
def cobyla(*, average: str = "mean", rhobeg: float = 0.5, maxiter: int = 300) -> WeightSearch:
    """Search the weights with the best out-of-fold lwlrap by COBYLA, starting from equal weights.

    Each weight lies in [0, 1] and their sum in [0.01, 0.99], as in the source. If the result scores below the equal
    weights, those are kept.

    Parameters
    ----------
    average
        Name of a fixed average in `ENSEMBLES`.
    rhobeg
        First step, as a fraction of an equal weight.
    maxiter
        Maximum number of evaluations; raise it for more than about ten models.

    Raises
    ------
    OptionError
        If `rhobeg` or `maxiter` is not positive.
    """
    if not rhobeg > 0 or maxiter < 1:
        raise OptionError(
            f"rhobeg is {rhobeg} and maxiter {maxiter}; expected a step above 0, such as 0.5, and at "
            "least one evaluation"
        )
    return WeightSearch(_build_averager(average), lambda search: _minimize_by_cobyla(search, rhobeg, maxiter))


def _minimize_by_cobyla(search: SearchInputs, rhobeg: float, maxiter: int) -> np.ndarray:
    from scipy.optimize import LinearConstraint, minimize

    n = len(search.model_scores)
    equal = np.full(n, 1 / n)
    if n == 1:
        return equal

    def loss(weights: np.ndarray) -> float:
        # COBYLA may violate the constraints during the search.
        inside = np.clip(weights, 0, 1)
        return -search.score(inside / inside.sum()) if inside.sum() >= 0.01 else 0.0

    limits = [LinearConstraint(np.eye(n), 0, 1), LinearConstraint(np.ones((1, n)), 0.01, 0.99)]
    found = minimize(
        loss, equal, method="COBYLA", constraints=limits, options={"rhobeg": rhobeg / n, "maxiter": maxiter}
    ).x
    return np.clip(found, 0, 1) if loss(found) < loss(equal) else equal


@ENSEMBLES.register("forward", source="Caruana et al. 2004, ensemble selection from libraries of models; own code")
def forward(*, average: str = "mean", rounds: int = 50) -> WeightSearch:
    """Select models greedily, with replacement: each round adds the model that gives the best out-of-fold lwlrap.

    The weights are the counts after the best round, the earliest of equal ones. Of models that score the same the first
    is added.

    Parameters
    ----------
    average
        Name of a fixed average in `ENSEMBLES`.
    rounds
        Number of additions; more allow finer weights.

    Raises
    ------
    OptionError
        If `rounds` is below 1.
    """
    if rounds < 1:
        raise OptionError(f"rounds is {rounds}; expected at least one")
    return WeightSearch(_build_averager(average), lambda search: _select_forward(search, rounds))


def _select_forward(search: SearchInputs, rounds: int) -> np.ndarray:
    counts = best = np.zeros(len(search.model_scores))
    best_score = -1.0
    # The sum of the selected models, so that the time of a candidate does not grow with their number.
    total = np.zeros(search.values.shape[1:])
    for size in range(1, rounds + 1):
        scores = [search.score_mean((total + each) / size) for each in search.values]
        added = int(np.argmax(scores))
        counts, total = counts + np.eye(len(counts))[added], total + search.values[added]
        if scores[added] > best_score:
            best, best_score = counts, scores[added]
    return best


@dataclass(frozen=True)
class RankTemperature:
    """Average ranks within each tag, weighted by lwlrap; scale to [0, 1], then a temperature per tag."""

    def fit(self, probs: np.ndarray, targ: np.ndarray) -> FittedEnsemble:
        """Fit weights and temperatures on predictions (models, clips, tags) and bool targets (clips, tags)."""
        ranked = WeightSearch(rank_tag(), _by_lwlrap).fit(probs, targ)
        calibration = Calibration.fit(ranked(probs), targ, method="temperature", stretch=True)
        return lambda probs: calibration.apply(ranked(probs))


@ENSEMBLES.register(
    "rank_temperature", source="the gold plan's ensemble: rank mean within a tag, min-max, logit, temperature"
)
def rank_temperature() -> RankTemperature:
    """Build the gold plan's rank average with a temperature per tag, all fitted on out-of-fold predictions."""
    return RankTemperature()


def _by_lwlrap(search: SearchInputs) -> np.ndarray:
    return search.model_scores


WEIGHT_RULES: dict[str, Rule] = {"lwlrap": _by_lwlrap}


def _build_averager(name: str) -> Averager:
    averager = ENSEMBLES.build(name)
    if isinstance(averager, FittableEnsemble):
        raise OptionError(
            f"average is {name!r}, which is itself fitted; expected a fixed average such as mean, gmean or rank_clip"
        )
    return averager
