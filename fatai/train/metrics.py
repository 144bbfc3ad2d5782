"""Scores as fastai metrics: over the whole validation set, never a mean of batch values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from fastai.learner import Learner, Metric

from fatai.errors import OptionError
from fatai.score.ranking import lwlrap

__all__ = ["LwLRAP", "RankingMetric"]


class RankingMetric(Metric):
    """A function of (probs, targ), arrays (clips, tags), of all validation clips at once.

    Parameters
    ----------
    func
        Such as those of `fatai.score.ranking`; a higher value must be better.
    name
        Column in the table of epochs.

    Notes
    -----
    In distributed runs every process gathers the clips of all before it scores, so all agree.
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
        probs = activation(learn.to_detach(learn.pred, gather=False).float())
        self.probs.append(probs.as_subclass(torch.Tensor))
        self.targs.append(learn.to_detach(learn.y, gather=False).as_subclass(torch.Tensor))

    @property
    def value(self) -> float | None:
        if not self.probs:
            return None
        probs, targs = _gathered(torch.cat(self.probs)), _gathered(torch.cat(self.targs))
        return float(self.func(probs.numpy(), targs.numpy()))

    @property
    def name(self) -> str:
        return self._name


class LwLRAP(RankingMetric):
    """Label-weighted label-ranking average precision over all validation clips; see `fatai.score.ranking.lwlrap`."""

    def __init__(self) -> None:
        super().__init__(lwlrap, "lwlrap")


def _gathered(part: torch.Tensor) -> torch.Tensor:
    """Rows of all processes, which may have different numbers of them."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return part
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, part)
    return torch.cat(parts)
