"""Weights of a blend that are found on out-of-fold predictions: by score, by COBYLA, by forward selection; and the gold plan's ranks.

A rule sees a `Search` and returns weights >= 0, (models,), of which only the ratios count. lwlrap is a step function of the weights: no
gradient leads it anywhere, and several weights may score the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fatai.errors import OptionError
from fatai.ensemble.averaging import Averager, Fitted, WeightedAverage, FittableEnsemble, rank_tag
from fatai.registry import ENSEMBLES
from fatai.metrics.calibration import Calibration
from fatai.metrics.ranking import lwlrap

__all__ = ["WEIGHT_RULES", "WeightSearch"]


class Search(NamedTuple):
    """What a rule may look at: the models' own lwlrap, and the blend's as a function of weights that sum to 1."""

    alone: np.ndarray
    score: Callable[[np.ndarray], float]


Rule = Callable[[Search], np.ndarray]


@dataclass(frozen=True)
class WeightSearch:
    """A fixed blend whose weights are found by a rule."""

    blend: Averager
    rule: Rule

    def fit(self, stack: np.ndarray, targ: np.ndarray) -> WeightedAverage:
        ready = self.blend.before(stack)
        alone = np.array([lwlrap(probs, targ) for probs in stack])
        weights = self.rule(Search(alone, lambda weights: lwlrap(self.blend.finish(ready, weights), targ)))
        # All models at 0 leaves nothing to tell them apart.
        return WeightedAverage(
            self.blend, weights / weights.sum() if weights.sum() > 0 else np.full(len(stack), 1 / len(stack))
        )


@ENSEMBLES.register("lwlrap_weights", source="weights proportional to the cross-validated lwlrap, gold-plan")
def lwlrap_weights(*, of: str = "mean") -> WeightSearch:
    """The blend `of`, each model weighted by its out-of-fold lwlrap; the same as weights="lwlrap"."""
    return WeightSearch(_fixed(of), _by_lwlrap)


@ENSEMBLES.register("cobyla", source="blending tool of the 3rd place: COBYLA on out-of-fold lwlrap")
def cobyla(*, of: str = "mean", rhobeg: float = 0.5, maxiter: int = 300) -> WeightSearch:
    """The blend `of` with the weights that COBYLA finds for the best out-of-fold lwlrap, from equal ones on.

    Each weight lies in [0, 1], their sum in [0.01, 0.99], as in the source. The first step is `rhobeg` times an equal weight, and there are
    at most `maxiter` trials. Where COBYLA ends below its start, the start is kept.
    """
    if not rhobeg > 0 or maxiter < 1:
        raise OptionError(
            f"rhobeg is {rhobeg} and maxiter {maxiter}; expected a step above 0, such as 0.5, and at least one trial"
        )

    def rule(search: Search) -> np.ndarray:
        from scipy.optimize import LinearConstraint, minimize

        n = len(search.alone)
        equal = np.full(n, 1 / n)
        if n == 1:
            return equal

        def loss(weights: np.ndarray) -> float:
            # COBYLA may step outside the constraints on its way.
            inside = np.clip(weights, 0, 1)
            return -search.score(inside / inside.sum()) if inside.sum() >= 0.01 else 0.0

        limits = [LinearConstraint(np.eye(n), 0, 1), LinearConstraint(np.ones((1, n)), 0.01, 0.99)]
        found = minimize(
            loss, equal, method="COBYLA", constraints=limits, options={"rhobeg": rhobeg / n, "maxiter": maxiter}
        ).x
        return np.clip(found, 0, 1) if loss(found) < loss(equal) else equal

    return WeightSearch(_fixed(of), rule)


@ENSEMBLES.register("forward", source="Caruana et al. 2004, ensemble selection from libraries of models; own code")
def forward(*, of: str = "mean", rounds: int = 50) -> WeightSearch:
    """The blend `of`, to which the model that helps out-of-fold lwlrap most is added, `rounds` times; models may come again.

    The weights are the counts at the round that scored best, the earliest of equal ones. Of models that help alike the first is taken.
    """
    if rounds < 1:
        raise OptionError(f"rounds is {rounds}; expected at least one")

    def rule(search: Search) -> np.ndarray:
        counts = best = np.zeros(len(search.alone))
        best_score = -1.0
        for size in range(1, rounds + 1):
            candidates = counts + np.eye(len(counts))
            scores = [search.score(each / size) for each in candidates]
            counts = candidates[int(np.argmax(scores))]
            if max(scores) > best_score:
                best, best_score = counts, max(scores)
        return best

    return WeightSearch(_fixed(of), rule)


@dataclass(frozen=True)
class RankTemperature:
    """Ranks within each tag, weighted by lwlrap; the mean rank stretched to [0, 1], and its logit divided by the tag's temperature."""

    def fit(self, stack: np.ndarray, targ: np.ndarray) -> Fitted:
        ranked = WeightSearch(rank_tag(), _by_lwlrap).fit(stack, targ)
        calibration = Calibration.fit(ranked(stack), targ, how="temperature", stretch=True)
        return lambda stack: calibration.apply(ranked(stack))


@ENSEMBLES.register(
    "rank_temperature", source="the gold plan's ensemble: rank mean within a tag, min-max, logit, temperature"
)
def rank_temperature() -> RankTemperature:
    """Ranks within a tag, weighted by lwlrap, min-max and a temperature for each tag, all from out-of-fold predictions."""
    return RankTemperature()


def _by_lwlrap(search: Search) -> np.ndarray:
    return search.alone


WEIGHT_RULES: dict[str, Rule] = {"lwlrap": _by_lwlrap}


def _fixed(of: str) -> Averager:
    blend = ENSEMBLES.build(of)
    if isinstance(blend, FittableEnsemble):
        raise OptionError(
            f"of is {of!r}, which is fitted itself; expected a fixed blend such as mean, gmean or rank_clip"
        )
    return blend
