"""One line an epoch for logs and files, where fastai's progress bars do not belong."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.learner import Learner

from fatai.callbacks.base import is_training

__all__ = ["PlainProgress", "quiet_unless_terminal"]


class PlainProgress(Callback):
    """Print one plain line an epoch: epoch, losses, metrics, seconds since the fit began.

    Parameters
    ----------
    out
        Stream to print to; None is the standard output at the time of printing.
    prefix
        Begin of every line, such as "fold 2: " where several processes print.
    """

    # That of fastai's progress bar, which this replaces.
    order = ProgressCallback.order

    def __init__(self, out: TextIO | None = None, prefix: str = ""):
        self.out, self.prefix = out, prefix

    def before_fit(self) -> None:
        """Replace the logger of the learner."""
        self.started = time.monotonic()
        self.silent = not is_training(self.learn)
        if self.silent:
            return
        # The recorder passes its row to learn.logger at the end of each epoch; fastai's default prints a raw list.
        self.old_logger, self.learn.logger = self.learn.logger, self._print_row

    def _print_row(self, values: list[Any]) -> None:
        parts = [
            f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}"
            for name, value in zip(self.recorder.metric_names, values, strict=False)
            if name != "time" and value is not None
        ]
        line = self.prefix + "  ".join(parts) + f"  {time.monotonic() - self.started:.0f} s"
        print(line, file=self.out or sys.stdout, flush=True)

    def after_fit(self) -> None:
        """Restore the logger of the learner."""
        if not self.silent:
            self.learn.logger = self.old_logger

    after_cancel_fit = after_fit


def quiet_unless_terminal(learn: Learner, prefix: str | None = None) -> Learner:
    """Replace fastai's progress bars by `PlainProgress` unless the output is a terminal or notebook; return `learn`.

    With a `prefix` they are replaced there too: bars of several processes would overwrite each other.
    """
    # fastai draws bars into log files too: its own check for a terminal is always true.
    if prefix is not None or not sys.stdout.isatty():
        learn.remove_cbs([cb for cb in learn.cbs if isinstance(cb, ProgressCallback)])
        if not any(isinstance(cb, PlainProgress) for cb in learn.cbs):
            learn.add_cb(PlainProgress(prefix=prefix or ""))
    return learn
