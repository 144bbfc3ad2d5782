"""Helpers that the callbacks of a fit share: which fits are real ones, and which attributes survive a resumed fit."""

from __future__ import annotations

from typing import ClassVar

from fastai.callback.core import Callback
from fastai.learner import Learner

__all__ = ["ResumableCallback", "is_training"]


class ResumableCallback(Callback):
    """A callback with state from earlier epochs, which `fatai.callbacks.resume.ResumeTraining` stores and restores.

    Attributes
    ----------
    resume_state
        Names of the attributes to store: numbers, strings, tensors, or lists and dicts of them.
    """

    resume_state: ClassVar[tuple[str, ...]] = ()

    def after_resume(self) -> None:
        """Act on the restored attributes; does nothing by default."""


def is_training(learn: Learner) -> bool:
    """Return True in a fit that trains, False within `lr_find` and `get_preds`, which call the same events."""
    return not hasattr(learn, "lr_finder") and not hasattr(learn, "gather_preds")
