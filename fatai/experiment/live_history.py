"""Draw the page of a run again while it trains."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from fastai.callback.core import Callback
from fastai.callback.progress import CSVLogger
from fastai.torch_core import rank_distrib

from fatai.callbacks.base import is_training

__all__ = ["History", "UpdateHistory"]

History: TypeAlias = Callable[[Path], Any]
"""Draws the page of a run folder, as `fatai.report.history.run_history`."""

_SHARE = 20  # a page takes at most one in so many seconds of a training with quick epochs


class UpdateHistory(Callback):
    """Draw the page of a run after its epochs; those that end too soon after the last page are in the next one.

    Parameters
    ----------
    out
        The run folder.
    history
        Draws the page. An error in it becomes one warning, and the fit goes on.
    """

    order = CSVLogger.order + 1  # after the row of the epoch is written

    def __init__(self, out: Path, history: History):
        self.out, self.history, self.next_at = out, history, 0.0

    def after_epoch(self) -> None:
        """Draw the page."""
        is_last = self.epoch == self.n_epoch - 1
        if is_training(self.learn) and not rank_distrib() and (is_last or time.monotonic() >= self.next_at):
            started = time.monotonic()
            draw_history(self.history, self.out)
            self.next_at = time.monotonic() + _SHARE * (time.monotonic() - started)


def draw_history(history: History | None, out: Path) -> None:
    """Draw the page of a run; an error in it becomes a warning."""
    if history is None:
        return
    try:
        history(out)
    except Exception as e:
        warnings.warn(
            f"the page of {out} with the course of its training cannot be drawn ({type(e).__name__}: {e}); "
            "the training goes on without it",
            stacklevel=2,
        )
