"""What happens during fitting: schedules, gradient clamping, a line an epoch where there is no terminal."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.callback.tracker import SaveModelCallback, TrackerCallback
from fastai.learner import Learner

from fatai.errors import FataiError, OptionError
from fatai.train.schedules import Schedule

__all__ = ["ClampGradients", "EpochLines", "FollowSchedule", "KeepBest", "NotFinite", "StopOnNaN", "quiet_unless_terminal"]


class FollowSchedule(Callback):
    """Set every parameter group's learning rate from a schedule of `fatai.train.schedules` before each batch.

    Parameters
    ----------
    schedule
        Function of time in epochs that returns the learning rate.
    """

    # After fastai's own bookkeeping, before anything that reads the rate.
    order = 55
    run_valid = False

    def __init__(self, schedule: Schedule):
        self.schedule = schedule
        self.lrs: list[float] = []

    def before_batch(self) -> None:
        lr = self.schedule(self.epoch + self.iter / self.n_iter)
        self.opt.set_hyper("lr", lr)
        self.lrs.append(lr)


class ClampGradients(Callback):
    """Clamp every element of every gradient to [-limit, limit]: the 9th place kernel's clipping, beside fastai's by norm."""

    order = 10
    run_valid = False

    def __init__(self, limit: float = 1.0):
        if not limit > 0:
            raise OptionError(f"limit is {limit}; expected a number above 0")
        self.limit = limit

    def before_step(self) -> None:
        grads = [p.grad for p in self.learn.model.parameters() if p.grad is not None]
        torch._foreach_clamp_min_(grads, -self.limit)
        torch._foreach_clamp_max_(grads, self.limit)


class StopOnNaN(Callback):
    """Stop with a clear error when the training loss is no longer a number."""

    order = 60
    run_valid = False

    def after_loss(self) -> None:
        if not torch.isfinite(self.learn.loss_grad).all():
            raise NotFinite(
                f"the training loss became {float(self.learn.loss_grad.detach().mean())} in epoch {self.epoch}, batch {self.iter}: "
                f"lower the learning rate, or look for clips of odd level with fatai-submit scan"
            )


class NotFinite(FataiError, ArithmeticError):
    """The loss left the numbers."""


class EpochLines(Callback):
    """One plain line an epoch, for logs and files: epoch, losses, metrics, seconds."""

    # Where fastai's progress bar stands, which this replaces.
    order = ProgressCallback.order

    def __init__(self, out: Any = None):
        self.out = out

    def _print(self, text: str) -> None:
        print(text, file=self.out or sys.stdout, flush=True)

    def before_fit(self) -> None:
        self.started = time.monotonic()
        self.silent = hasattr(self.learn, "lr_finder") or hasattr(self.learn, "gather_preds")
        if self.silent:
            return
        # The recorder hands its row to learn.logger at each epoch's end; fastai's default prints a raw list.
        self.old_logger, self.learn.logger = self.learn.logger, self._row

    def _row(self, values: list[Any]) -> None:
        names = self.recorder.metric_names
        words = [
            f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}"
            for name, value in zip(names, values)
            if name != "time" and value is not None
        ]
        self._print("  ".join(words) + f"  {time.monotonic() - self.started:.0f} s")

    def after_fit(self) -> None:
        if not self.silent:
            self.learn.logger = self.old_logger

    after_cancel_fit = after_fit


class KeepBest(SaveModelCallback):
    """fastai's `SaveModelCallback` without its line for each better epoch, which the table of epochs shows anyway."""

    def after_epoch(self) -> None:
        TrackerCallback.after_epoch(self)
        if self.new_best:
            self._save(self.fname)


def quiet_unless_terminal(learn: Learner) -> Learner:
    """Keep fastai's progress bars on a terminal and in notebooks; elsewhere one line an epoch takes their place."""
    # fastai draws bars into log files too: its own check for a terminal never says no.
    if not sys.stdout.isatty():
        learn.remove_cbs([cb for cb in learn.cbs if isinstance(cb, ProgressCallback)])
        if not any(isinstance(cb, EpochLines) for cb in learn.cbs):
            learn.add_cb(EpochLines())
    return learn
