"""Stacking: what the models say of a clip is the input of another model, fitted on out-of-fold predictions.

A stacked answer is a probability made anew: it may put tags into another order than every model does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fatai.errors import OptionError
from fatai.ensemble.averaging import Fitted
from fatai.registry import ENSEMBLES

__all__ = ["LogisticStack", "MLPStack"]


@dataclass(frozen=True)
class LogisticStack:
    """The settings of `logreg`."""

    C: float
    max_iter: int
    across_tags: bool
    floor: float

    def fit(self, stack: np.ndarray, targ: np.ndarray) -> Fitted:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        inputs = self._inputs(stack)
        learners: list[Any] = []
        for tag, present in enumerate(np.asarray(targ, dtype=bool).T):
            if present.all() or not present.any():
                # Nothing to tell apart: such a tag keeps the models' mean.
                learners.append(None)
                continue
            learner = make_pipeline(StandardScaler(), LogisticRegression(C=self.C, max_iter=self.max_iter))
            learners.append(learner.fit(inputs(tag), present))

        def blend(stack: np.ndarray) -> np.ndarray:
            inputs, probs = self._inputs(stack), stack.mean(axis=0)
            for tag, learner in enumerate(learners):
                if learner is not None:
                    probs[:, tag] = learner.predict_proba(inputs(tag))[:, 1]
            return probs

        return blend

    def _inputs(self, stack: np.ndarray) -> Callable[[int], np.ndarray]:
        """A function of a tag's position that returns its inputs, (clips, inputs)."""
        clipped = np.clip(stack, self.floor, 1 - self.floor)
        logits = np.log(clipped) - np.log1p(-clipped)
        if self.across_tags:
            flat = logits.transpose(1, 0, 2).reshape(logits.shape[1], -1)
            return lambda tag: flat
        return lambda tag: logits[:, :, tag].T


@ENSEMBLES.register(
    "logreg",
    source="stacking by one-vs-rest logistic regression, as the gold plan's classifier on embeddings; own code",
)
def logreg(*, C: float = 1.0, max_iter: int = 1000, across_tags: bool = False, floor: float = 1e-7) -> LogisticStack:
    """A logistic regression for each tag on the models' logits of that tag, or with `across_tags` of all tags.

    Inputs are standardised; `C` is the inverse strength of the penalty. Probabilities are kept `floor` away from 0 and 1 for their logit. A
    tag that no clip or every clip has keeps the mean of the models.
    """
    if not C > 0 or max_iter < 1 or not 0 < floor < 0.5:
        raise OptionError(
            f"C is {C}, max_iter {max_iter} and floor {floor}; expected C above 0, an iteration or more, and a small floor"
        )
    return LogisticStack(C, max_iter, across_tags, floor)


@dataclass(frozen=True)
class MLPStack:
    """The settings of `mlp`."""

    reduction: int
    dropout: float
    lr: float
    patience: int
    factor: float
    base: int
    bs: int
    draws: int
    stop_after: int
    max_epochs: int
    seed: int

    def fit(self, stack: np.ndarray, targ: np.ndarray) -> Fitted:
        # torch takes seconds to import, which blends that need no network should not.
        from fatai.ensemble.stacking_net import fit_network, network_answer

        network = fit_network(_flat(stack), np.asarray(targ, dtype=np.float32), self)
        return lambda stack: network_answer(network, _flat(stack))


@ENSEMBLES.register("mlp", source="second level of the 1st place: a gated MLP on out-of-fold probabilities; own code")
def mlp(
    *,
    reduction: int = 16,
    dropout: float = 0.051,
    lr: float = 4.6e-5,
    patience: int = 5,
    factor: float = 0.658,
    base: int = 512,
    bs: int = 128,
    draws: int = 32768,
    stop_after: int = 30,
    max_epochs: int = 1000,
    seed: int = 0,
) -> MLPStack:
    """The 1st place's stacking network; `reduction`, `dropout`, `lr`, `patience` and `factor` made three members of it.

    The defaults are the first's, the others (2, 0.484, 3.9e-5, 9, 0.795) and (1, 0.166, 2.6e-5, 7, 0.554). An epoch is `draws` clips drawn
    with replacement. A fifth of the clips is held out: where their lwlrap does not rise for `patience` epochs the rate is multiplied by
    `factor`, after `stop_after` the fit ends, and the best epoch's weights answer. The source drew from predictions of tiles; this draws
    from those of whole clips, which is what a run keeps.
    """
    counts = {
        "reduction": reduction,
        "base": base,
        "bs": bs,
        "draws": draws,
        "stop_after": stop_after,
        "max_epochs": max_epochs,
    }
    low = [name for name, value in counts.items() if value < 1]
    if low or patience < 0:
        raise OptionError(
            f"{low[0] if low else 'patience'} is {counts[low[0]] if low else patience}; expected a whole number above 0"
        )
    if not (0 <= dropout < 1 and lr > 0 and 0 < factor < 1):
        raise OptionError(
            f"dropout is {dropout}, lr {lr} and factor {factor}; expected dropout in [0, 1), lr above 0, factor in (0, 1)"
        )
    return MLPStack(reduction, dropout, lr, patience, factor, base, bs, draws, stop_after, max_epochs, seed)


def _flat(stack: np.ndarray) -> np.ndarray:
    """All that the models say of each clip: float32, (clips, models x tags)."""
    return stack.transpose(1, 0, 2).reshape(stack.shape[1], -1).astype(np.float32)
