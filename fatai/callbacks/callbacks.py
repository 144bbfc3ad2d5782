"""What happens during fitting: schedules, gradient clamping, switching off, stopping, and what is told of the epochs."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.progress import ProgressCallback
from fastai.callback.tracker import ReduceLROnPlateau
from fastai.learner import Learner

from fatai.augment.base import augmentation_callbacks
from fatai.errors import OptionError
from fatai.registry import SCHEDULES
from fatai.callbacks.failure import SplitBatchOnOOM, NonFiniteError, TerminateOnNaN
from fatai.callbacks.checkpoint import SaveBestModel, SaveSnapshots
from fatai.callbacks.schedulers import Schedule

__all__ = [
    "DisableAugmentation",
    "ClipGradValue",
    "PlainProgress",
    "LRSchedulerCallback",
    "SplitBatchOnOOM",
    "SaveBestModel",
    "NonFiniteError",
    "SaveSnapshots",
    "StopAtLR",
    "TerminateOnNaN",
    "quiet_unless_terminal",
    "schedule_callback",
]


class LRSchedulerCallback(Callback):
    """Set the learning rate from a schedule of `fatai.callbacks.schedulers` before each batch.

    Where the fit was given different rates for the parameter groups, `lr=slice(1e-5, 1e-3)`, their ratios stay: the schedule is that of the
    last group.

    Parameters
    ----------
    schedule
        Function of time in epochs that returns the learning rate.
    """

    # After fastai's own bookkeeping, before anything that reads the rate.
    order = 55
    run_valid = False
    kept_on_resume = ("lrs",)

    def __init__(self, schedule: Schedule):
        self.schedule = schedule
        self.lrs: list[float] = []

    def before_fit(self) -> None:
        lrs = [hyper["lr"] for hyper in self.opt.hypers]
        self.ratios = [lr / lrs[-1] if lrs[-1] else 1.0 for lr in lrs]

    def before_batch(self) -> None:
        lr = self.schedule(self.epoch + self.iter / self.n_iter)
        self.opt.set_hyper("lr", [lr * ratio for ratio in self.ratios])
        self.lrs.append(lr)


def schedule_callback(name: str, epochs: int, lr: float, **options: Any) -> Callback:
    """The callback that makes a fit of `epochs` epochs, begun with the rate `lr`, follow a schedule of `SCHEDULES`."""
    built = SCHEDULES.build(name, epochs, lr, **options)
    return built if isinstance(built, Callback) else LRSchedulerCallback(built)


class DisableAugmentation(Callback):
    """No random changes and no mixing in the last epochs, as the 3rd place trained; crops stay random.

    Changes of items obey too, whatever the workers: they are taken out of the loader before its epoch begins. After the fit all is as it
    was.

    Parameters
    ----------
    last
        How many epochs; the 3rd place's were 5 of 20 and 10 of 100 or 150.
    """

    # The switches are set before anything else of the epoch.
    order = -20

    def __init__(self, last: int):
        if last < 1:
            raise OptionError(f"last is {last}; expected a number of epochs of at least 1")
        self.last = last
        self._were: list[tuple[Any, bool]] = []

    def before_fit(self) -> None:
        self._put_back()

    def before_epoch(self) -> None:
        if self.learn.epoch >= self.learn.n_epoch - self.last and not self._were:
            self._were = [(change, change.active) for change in augmentation_callbacks(self.learn)]
            for change, _ in self._were:
                change.active = False

    def after_fit(self) -> None:
        self._put_back()

    def _put_back(self) -> None:
        for change, active in self._were:
            change.active = active
        self._were = []


class StopAtLR(Callback):
    """End the fit when the learning rate has come down to `rate`: the 9th place's early stopping, after `plateau`."""

    # When ReduceLROnPlateau has decided.
    order = ReduceLROnPlateau.order + 2

    def __init__(self, rate: float = 1e-7):
        if not rate > 0:
            raise OptionError(f"rate is {rate}; expected a learning rate above 0")
        self.rate = rate

    def after_epoch(self) -> None:
        # 1e-4 divided by 10 three times is a hair above 1e-7.
        if self.opt.hypers[-1]["lr"] <= self.rate * (1 + 1e-6):
            raise CancelFitException


class ClipGradValue(Callback):
    """Clamp every element of every gradient to [-limit, limit]: the 9th place kernel's clipping, beside fastai's by norm."""

    # Behind mixed precision, which scales the gradients back.
    order = MixedPrecision.order + 1
    run_valid = False

    def __init__(self, limit: float = 1.0):
        if not limit > 0:
            raise OptionError(f"limit is {limit}; expected a number above 0")
        self.limit = limit

    def before_step(self) -> None:
        grads = [p.grad for p in self.learn.model.parameters() if p.grad is not None]
        torch._foreach_clamp_min_(grads, -self.limit)
        torch._foreach_clamp_max_(grads, self.limit)


class PlainProgress(Callback):
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


def quiet_unless_terminal(learn: Learner) -> Learner:
    """Keep fastai's progress bars on a terminal and in notebooks; elsewhere one line an epoch takes their place."""
    # fastai draws bars into log files too: its own check for a terminal never says no.
    if not sys.stdout.isatty():
        learn.remove_cbs([cb for cb in learn.cbs if isinstance(cb, ProgressCallback)])
        if not any(isinstance(cb, PlainProgress) for cb in learn.cbs):
            learn.add_cb(PlainProgress())
    return learn
