"""Gradient clipping by value; fastai's `GradientClip` clips by norm."""

from __future__ import annotations

import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision

from fatai.errors import OptionError

__all__ = ["ClipGradValue"]


class ClipGradValue(Callback):
    """Clip every element of every gradient to [-limit, limit], as the 9th place's kernel did.

    Parameters
    ----------
    limit
        Above 0. Unlike clipping by norm, this changes the direction of the gradient.

    Raises
    ------
    OptionError
        If `limit` is not above 0.
    """

    # After mixed precision, which unscales the gradients.
    order = MixedPrecision.order + 1
    run_valid = False

    def __init__(self, limit: float = 1.0):
        if not limit > 0:
            raise OptionError(f"limit is {limit}; expected a number above 0")
        self.limit = limit

    def before_step(self) -> None:
        """Clip the gradients of the whole model."""
        grads = [p.grad for p in self.learn.model.parameters() if p.grad is not None]
        torch._foreach_clamp_min_(grads, -self.limit)
        torch._foreach_clamp_max_(grads, self.limit)
