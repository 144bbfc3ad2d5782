"""Scores as fastai metrics: over the whole validation set, never a mean of batch values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from fastai.learner import Learner, Metric

from fatai.errors import OptionError
from fatai.metrics.ranking import lwlrap
from fatai.metrics.classification import Average, check_average, d_prime, mean_ap, roc_auc

__all__ = ["DPrime", "LwLRAP", "MeanAP", "RankingMetric", "RocAUC"]


class RankingMetric(Metric):
    """A function of (probs, targ), arrays (clips, tags), of all validation clips at once.

    Parameters
    ----------
    func
        Such as those of `fatai.metrics.ranking` and `fatai.metrics.classification`; a higher value must be better.
    name
        Column in the table of epochs.

    Notes
    -----
    In distributed runs every process gathers the clips of all before it scores, so all agree; clips that fastai repeats to give every
    process as many are counted once.
    """

    def __init__(self, func: Callable[[np.ndarray, np.ndarray], float], name: str):
        if not callable(func):
            raise OptionError(f"func is {func!r}; expected a function of (probs, targ)")
        self.func, self._name = func, name
        self.reset()

    def reset(self) -> None:
        self.probs: list[torch.Tensor] = []
        self.targs: list[torch.Tensor] = []

    def accumulate(self, learn: Learner) -> None:
        activation = getattr(learn.loss_func, "activation", torch.sigmoid)
        # In float32, as ranking ties would be decided by rounding otherwise.
        probs = activation(learn.to_detach(learn.pred.float()))
        self.probs.append(probs.as_subclass(torch.Tensor))
        self.targs.append(learn.to_detach(learn.y).as_subclass(torch.Tensor))

    @property
    def value(self) -> float | None:
        if not self.probs:
            return None
        return float(self.func(torch.cat(self.probs).numpy(), torch.cat(self.targs).numpy()))

    @property
    def name(self) -> str:
        return self._name


class LwLRAP(RankingMetric):
    """Label-weighted label-ranking average precision over all validation clips; see `fatai.metrics.ranking.lwlrap`."""

    def __init__(self) -> None:
        super().__init__(lwlrap, "lwlrap")


class _OverTags(RankingMetric):
    """A score of `fatai.metrics.classification`, "macro" (mean over tags) or "micro" (all tags as one)."""

    score: Callable[..., float]
    word: str

    def __init__(self, average: Average = "macro") -> None:
        func = partial(type(self).score, average=check_average(average))
        super().__init__(func, self.word if average == "macro" else f"{self.word}_{average}")


class MeanAP(_OverTags):
    """Mean average precision over all validation clips, "macro" or "micro"; see `fatai.metrics.classification.mean_ap`."""

    score, word = staticmethod(mean_ap), "map"


class RocAUC(_OverTags):
    """Area under the ROC curve over all validation clips, "macro" or "micro"; see `fatai.metrics.classification.roc_auc`."""

    score, word = staticmethod(roc_auc), "auc"


class DPrime(_OverTags):
    """d-prime over all validation clips, "macro" or "micro"; see `fatai.metrics.classification.d_prime`."""

    score, word = staticmethod(d_prime), "d_prime"
