"""Learning rate schedules by name, closed forms and fastai's own, and the callbacks that apply them or stop at a rate.

Conventions: a schedule is a function of time `t` in epochs, `epoch + batch / batches`, in [0, epochs); it returns the
learning rate. They are closed forms because the chained schedulers of torch start from the rate set last, so that their
values depend on history. "one_cycle" and "plateau" build fastai's callbacks; `schedule_callback` makes a callback of
either kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fastai.callback.core import Callback, CancelFitException
from fastai.callback.schedule import ParamScheduler, combined_cos
from fastai.callback.tracker import ReduceLROnPlateau

from fatai.errors import OptionError
from fatai.registry import SCHEDULES

__all__ = [
    "LRSchedulerCallback",
    "StopAtLR",
    "constant",
    "cosine_restarts",
    "linear_one_cycle",
    "one_cycle",
    "plateau",
    "schedule_callback",
    "step_decay",
    "warmup_cosine",
    "warmup_smooth_cosine",
    "warmup_multistep",
]

Schedule = Callable[[float], float]
"""Function of time in epochs that returns the learning rate."""


def _check_positive(epochs: float, lr: float) -> None:
    if epochs <= 0 or lr <= 0:
        raise OptionError(f"epochs is {epochs} and lr is {lr}; expected both above 0")


def _cosine(angle: float, lr: float, final_lr: float) -> float:
    """Return the value of half a cosine from `lr`, at the angle 0, to `final_lr`, at pi."""
    return final_lr + (lr - final_lr) * (1 + math.cos(angle)) / 2


@SCHEDULES.register("constant", source="-")
def constant(epochs: int, lr: float) -> Schedule:
    """Keep the learning rate constant."""
    _check_positive(epochs, lr)
    return lambda t: lr


@SCHEDULES.register("warmup_cosine", source="FAT2019 9th place kernel: the rates its log shows")
def warmup_cosine(
    epochs: int, lr: float, *, warmup: float = 0.1, start: float = 0.05, final_lr: float = 1e-7
) -> Schedule:
    """Warm up linearly, then follow a cosine that starts after the warm-up: the 9th place's run.

    The rate changes once an epoch. The period of the cosine is `epochs`, not what remains of them, so that the rate
    ends above `final_lr`: with 65 epochs at 1e-3, at 3.7e-5.

    Parameters
    ----------
    epochs
        Epochs of the fit.
    lr
        Highest rate.
    warmup
        Fraction of the epochs in which the rate rises, in steps of `lr / (warmup * epochs)`.
    start
        First rate, as a fraction of `lr`.
    final_lr
        End of the cosine.

    Examples
    --------
    >>> lr = warmup_cosine(65, 1e-3)
    >>> [f"{lr(e):.2e}" for e in (0, 6, 7, 64)]
    ['5.00e-05', '9.73e-04', '1.00e-03', '3.70e-05']
    """
    _check_positive(epochs, lr)
    n_warmup = warmup * epochs

    def at(t: float) -> float:
        epoch = math.floor(t)
        if epoch < n_warmup:
            return min(lr, start * lr + lr * epoch / n_warmup)
        return _cosine(math.pi * (epoch - math.ceil(n_warmup)) / epochs, lr, final_lr)

    return at


@SCHEDULES.register("warmup_multistep", source="FAT2019 36th place repository")
def warmup_multistep(
    epochs: int,
    lr: float,
    *,
    warmup: float = 0.05,
    start: float = 0.1,
    milestones: tuple[float, ...] = (0.3, 0.6, 0.9),
    factor: float = 0.1,
) -> Schedule:
    """Warm up linearly, then multiply the rate by `factor` at each milestone; changes every iteration.

    Parameters
    ----------
    epochs
        Epochs of the fit.
    lr
        Highest rate.
    warmup
        Fraction of the fit in which the rate rises.
    start
        First rate, as a fraction of `lr`.
    milestones
        Fractions of the fit at which the rate falls.
    factor
        Below 1.
    """
    _check_positive(epochs, lr)

    def at(t: float) -> float:
        progress = t / epochs
        if progress < warmup:
            return lr * (start + (1 - start) * progress / warmup)
        return lr * factor ** sum(progress >= m for m in milestones)

    return at


@SCHEDULES.register("linear_one_cycle", source="FAT2019 3rd place repository (Apache-2.0): 1cycle_0.0001_0.005")
def linear_one_cycle(
    epochs: int, lr: float = 5e-3, *, start_lr: float = 1e-4, pct_start: float = 0.3, final_divisor: float = 1000.0
) -> Schedule:
    """Raise the rate linearly from `start_lr` to `lr`, then lower it linearly; changes every iteration.

    Parameters
    ----------
    epochs
        Epochs of the fit.
    lr
        Highest rate.
    start_lr
        First rate.
    pct_start
        Fraction of the fit in which the rate rises.
    final_divisor
        `start_lr` divided by the last rate.
    """
    _check_positive(epochs, lr)
    final = start_lr / final_divisor

    def at(t: float) -> float:
        progress = t / epochs
        if progress < pct_start:
            return start_lr + (lr - start_lr) * progress / pct_start
        return lr + (final - lr) * (progress - pct_start) / (1 - pct_start)

    return at


@SCHEDULES.register("cosine_restarts", source="FAT2019 4th place repository (MIT); arXiv:1608.03983")
def cosine_restarts(epochs: int, lr: float, *, cycle: int = 64, mult: int = 1, final_lr: float = 1e-6) -> Schedule:
    """Lower the rate along a cosine and restart it, cycle after cycle; changes every iteration.

    The 4th place saved a snapshot at the end of each cycle: `fatai.callbacks.checkpoint.SaveSnapshots`. The 1st place
    refined with `cycle` 10, `mult` 2, from 3e-4 to 1e-5.

    Parameters
    ----------
    epochs
        Epochs of the fit.
    lr
        Rate at the start of each cycle.
    cycle
        Epochs of the first cycle.
    mult
        Each cycle is `mult` times as long as the one before.
    final_lr
        Rate at the end of each cycle.
    """
    _check_positive(epochs, lr)
    starts = [0, *cycle_ends(epochs, cycle, mult)]

    def at(t: float) -> float:
        k = max(i for i, start in enumerate(starts) if start <= t)
        progress = (t - starts[k]) / (cycle * mult**k)
        return _cosine(math.pi * progress, lr, final_lr)

    return at


def cycle_ends(epochs: int, cycle: int, mult: int = 1) -> list[int]:
    """Return the number of epochs done at the end of each whole cycle of `cosine_restarts`.

    Raises
    ------
    OptionError
        If `cycle` or `mult` is below 1.

    Examples
    --------
    >>> cycle_ends(150, 10, 2)
    [10, 30, 70, 150]
    """
    if cycle < 1 or mult < 1:
        raise OptionError(f"cycle is {cycle} and mult {mult}; expected whole numbers of at least 1")
    ends: list[int] = []
    length = cycle
    while (end := (ends[-1] if ends else 0) + length) <= epochs:
        ends.append(end)
        length *= mult
    return ends


@SCHEDULES.register(
    "step_decay",
    source="DCASE 2019 Task 2 baseline: staircase decay, its curated stage 0.94 every 2.5 epochs from 3e-3",
)
def step_decay(epochs: int, lr: float, *, factor: float = 0.94, every: float = 2.5) -> Schedule:
    """Multiply the rate by `factor` each time that `every` epochs have passed."""
    _check_positive(epochs, lr)
    if not every > 0:
        raise OptionError(f"every is {every}; expected a number of epochs above 0")
    return lambda t: lr * factor ** math.floor(t / every)


@SCHEDULES.register("warmup_smooth_cosine", source="gold-plan: one epoch of warm-up, then a cosine")
def warmup_smooth_cosine(epochs: int, lr: float, *, warmup_epochs: float = 1.0, final_lr: float = 0.0) -> Schedule:
    """Raise the rate linearly from 0, then follow a cosine to `final_lr` over the rest; changes every iteration.

    The first iteration has the rate 0 and does not change the weights.

    Parameters
    ----------
    epochs
        Epochs of the fit.
    lr
        Highest rate.
    warmup_epochs
        Epochs in which the rate rises, fewer than `epochs`.
    final_lr
        Last rate.
    """
    _check_positive(epochs, lr)
    if not 0 <= warmup_epochs < epochs:
        raise OptionError(
            f"warmup_epochs is {warmup_epochs}; expected a number of at least 0 and less than the {epochs} epochs"
        )

    def at(t: float) -> float:
        if t < warmup_epochs:
            return lr * t / warmup_epochs
        return _cosine(math.pi * (t - warmup_epochs) / (epochs - warmup_epochs), lr, final_lr)

    return at


@SCHEDULES.register("one_cycle", source="fastai (Apache-2.0), fit_one_cycle; arXiv:1708.07120")
def one_cycle(
    epochs: int, lr: float, *, div: float = 25.0, div_final: float = 1e5, pct_start: float = 0.25,
    moms: tuple[float, float, float] = (0.95, 0.85, 0.95),
) -> ParamScheduler:
    """Follow the schedule of fastai's `fit_one_cycle`: cosine up to `lr` and down again, momentum the other way round.

    The options are those of `fit_one_cycle`.
    """
    _check_positive(epochs, lr)
    return ParamScheduler(
        {"lr": combined_cos(pct_start, lr / div, lr, lr / div_final), "mom": combined_cos(pct_start, *moms)}
    )


@SCHEDULES.register(
    "plateau",
    source="fastai (Apache-2.0), ReduceLROnPlateau; the 9th place's refit on the loss, the 1st place on lwlrap",
)
def plateau(
    epochs: int,
    lr: float,
    *,
    monitor: str = "valid_loss",
    patience: int = 3,
    factor: float = 0.1,
    min_lr: float = 0.0,
    min_delta: float = 0.0,
) -> ReduceLROnPlateau:
    """Multiply the rate by `factor` when `monitor` has not improved for more than `patience` epochs.

    The defaults are the 9th place's, which stopped at 1e-7 (`StopAtLR`); the 1st place's are "lwlrap", 6, 0.6, 1e-8.

    Parameters
    ----------
    epochs
        Epochs of the fit; without effect.
    lr
        Rate that the fit begins with.
    monitor
        "valid_loss", or a metric such as "lwlrap", of which higher is better.
    patience
        Epochs without improvement that are accepted, as in torch and the published systems; the next one lowers the
        rate. fastai's own callback counts the epoch that lowers it, one more.
    factor
        Between 0 and 1; fastai's own is its inverse.
    min_lr
        Lowest rate.
    min_delta
        Smallest difference that counts as an improvement.
    """
    _check_positive(epochs, lr)
    if not 0 < factor < 1 or patience < 0:
        raise OptionError(
            f"factor is {factor} and patience {patience}; expected a factor between 0 and 1 and at least 0 epochs"
        )
    return ReduceLROnPlateau(monitor, min_delta=min_delta, patience=patience + 1, factor=1 / factor, min_lr=min_lr)


def schedule_callback(name: str, epochs: int, lr: float, **options: Any) -> Callback:
    """Return the callback that applies a schedule of `SCHEDULES` to a fit.

    Parameters
    ----------
    name
        Name of the schedule.
    epochs
        Epochs of the fit.
    lr
        Learning rate that the fit is given, usually the highest of the schedule.
    options
        Options of the schedule.

    Raises
    ------
    UnknownNameError
        If there is no such schedule; the nearest name is suggested.
    OptionError
        If the schedule does not have an option, or a value is out of range.
    """
    built = SCHEDULES.build(name, epochs, lr, **options)
    return built if isinstance(built, Callback) else LRSchedulerCallback(built)


class LRSchedulerCallback(ParamScheduler):
    """Set the learning rate from a schedule before each batch.

    Where the fit was given different rates for the layer groups, `lr=slice(1e-5, 1e-3)`, their ratios are kept: the
    schedule is that of the last group. The rates are recorded in `hps["lr"]`, as fastai's `ParamScheduler` does.

    Parameters
    ----------
    schedule
        Function of time in epochs that returns the learning rate.
    """

    # After fastai's own bookkeeping, before anything that reads the rate.
    order = 55

    def __init__(self, schedule: Schedule):
        super().__init__({"lr": schedule})

    def before_fit(self) -> None:
        """Note the ratios of the rates of the layer groups."""
        super().before_fit()
        lrs = [hyper["lr"] for hyper in self.opt.hypers]
        self.ratios = [lr / lrs[-1] if lrs[-1] else 1.0 for lr in lrs]

    def before_batch(self) -> None:
        """Set the rates."""
        lr = self.scheds["lr"](self.epoch + self.iter / self.n_iter)
        self.opt.set_hyper("lr", [lr * ratio for ratio in self.ratios])


class StopAtLR(Callback):
    """End the fit when the learning rate has fallen to `min_lr`: the 9th place's early stopping, after `plateau`.

    Parameters
    ----------
    min_lr
        Learning rate, above 0.

    Raises
    ------
    OptionError
        If `min_lr` is not above 0.
    """

    # After ReduceLROnPlateau.
    order = ReduceLROnPlateau.order + 2

    def __init__(self, min_lr: float = 1e-7):
        if not min_lr > 0:
            raise OptionError(f"min_lr is {min_lr}; expected a learning rate above 0")
        self.min_lr = min_lr

    def after_epoch(self) -> None:
        """End the fit if the rate is low enough."""
        # 1e-4 divided by 10 three times is slightly above 1e-7.
        if self.opt.hypers[-1]["lr"] <= self.min_lr * (1 + 1e-6):
            raise CancelFitException
