"""fastai metrics that score the whole validation set at once, never by a mean of batch values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from fastai.learner import Learner, Metric

from fatai.errors import OptionError
from fatai.metrics.classification import Average, check_average, d_prime, main_metric, mean_ap, roc_auc
from fatai.metrics.ranking import lwlrap

__all__ = ["DPrime", "LwLRAP", "MeanAP", "RankingMetric", "RocAUC"]


class RankingMetric(Metric):
    """A function of the probabilities and targets of all validation clips.

    Parameters
    ----------
    func
        Function of (probs, targ), float arrays (clips, tags), such as those of `fatai.metrics.ranking` and
        `fatai.metrics.classification`; higher values must be better.
    name
        Column in the table of epochs.

    Notes
    -----
    In distributed runs every process gathers the clips of all processes before it scores, so all get the same value;
    clips that fastai repeats to give every process the same number are counted once.
    """

    def __init__(self, func: Callable[[np.ndarray, np.ndarray], float], name: str):
        if not callable(func):
            raise OptionError(f"func is {func!r}; expected a function of (probs, targ)")
        self.func, self._name = func, name
        self.reset()

    def reset(self) -> None:
        """Drop the batches of the last epoch."""
        self.probs: list[torch.Tensor] = []
        self.targs: list[torch.Tensor] = []

    def accumulate(self, learn: Learner) -> None:
        """Store the probabilities and targets (clips, tags) of a batch."""
        activation = getattr(learn.loss_func, "activation", torch.sigmoid)
        # In float64 on the CPU: in float32 the sigmoids of logits above 17 are all 1, and tie.
        probs = activation(learn.to_detach(learn.pred).double())
        self.probs.append(probs.as_subclass(torch.Tensor))
        self.targs.append(learn.to_detach(learn.y).as_subclass(torch.Tensor))

    @property
    def value(self) -> float | None:
        """The score of all clips so far; None before the first batch."""
        if not self.probs:
            return None
        return float(self.func(torch.cat(self.probs).numpy(), torch.cat(self.targs).numpy()))

    @property
    def name(self) -> str:
        """Column in the table of epochs."""
        return self._name


class LwLRAP(RankingMetric):
    """Label-weighted label-ranking average precision; see `fatai.metrics.ranking.lwlrap`."""

    def __init__(self) -> None:
        super().__init__(lwlrap, "lwlrap")


class _AveragedMetric(RankingMetric):
    """A score of `fatai.metrics.classification`, "macro" (mean over tags) or "micro" (all tags as one)."""

    score: Callable[..., float]
    column: str

    def __init__(self, average: Average = "macro") -> None:
        func = partial(type(self).score, average=check_average(average))
        super().__init__(func, self.column if average == "macro" else f"{self.column}_{average}")


class MeanAP(_AveragedMetric):
    """Mean average precision, "macro" or "micro"; see `fatai.metrics.classification.mean_ap`."""

    score, column = staticmethod(mean_ap), "map"


class RocAUC(_AveragedMetric):
    """Area under the ROC curve, "macro" or "micro"; see `fatai.metrics.classification.roc_auc`."""

    score, column = staticmethod(roc_auc), "auc"


class DPrime(_AveragedMetric):
    """d-prime, "macro" or "micro"; see `fatai.metrics.classification.d_prime`."""

    score, column = staticmethod(d_prime), "d_prime"


def default_metric(n_tags: int) -> RankingMetric:
    """Return the metric of the table of epochs unless others are given, that of `main_metric`."""
    return LwLRAP() if main_metric(n_tags) == "lwlrap" else MeanAP()
