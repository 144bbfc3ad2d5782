"""Learning rates over a fit: closed forms, and fastai's own schedules by name.

Conventions: a schedule is a function of time `t` in epochs, `epoch + batch / batches`, in [0, epochs); it returns the learning rate.
Closed forms because chained schedulers of the frameworks start from whatever rate was set last, so their values depend on history.
What fastai has stays fastai's: "one_cycle" and "plateau" build its callbacks. `fatai.callbacks.callbacks.scheduled` makes a callback of either.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from fastai.callback.schedule import ParamScheduler, combined_cos
from fastai.callback.tracker import ReduceLROnPlateau

from fatai.errors import OptionError
from fatai.registry import SCHEDULES

__all__ = [
    "Schedule",
    "constant",
    "cosine_restarts",
    "linear_one_cycle",
    "one_cycle",
    "plateau",
    "restarts",
    "stairs",
    "warmup_cosine",
    "warmup_smooth_cosine",
    "warmup_steps",
]

Schedule = Callable[[float], float]


def _checked(epochs: float, lr: float) -> None:
    if epochs <= 0 or lr <= 0:
        raise OptionError(f"epochs is {epochs} and lr is {lr}; expected both above 0")


@SCHEDULES.register("constant", source="-")
def constant(epochs: int, lr: float) -> Schedule:
    """The same rate all along."""
    _checked(epochs, lr)
    return lambda t: lr


@SCHEDULES.register("warmup_cosine", source="FAT2019 9th place kernel: the rates its log shows")
def warmup_cosine(
    epochs: int, lr: float, *, warmup: float = 0.1, start: float = 0.05, final_lr: float = 1e-7
) -> Schedule:
    """Linear warm-up, then a cosine whose counter starts after it: ninth's real run.

    The rate changes once an epoch. Over the first `warmup * epochs` epochs it climbs from `start * lr` in steps of
    `lr / (warmup * epochs)`; then a cosine with a period of all `epochs` begins, so it stops short of `final_lr`: with 65 epochs at 1e-3,
    at 3.7e-5.

    Examples
    --------
    >>> lr = warmup_cosine(65, 1e-3)
    >>> [f"{lr(e):.2e}" for e in (0, 6, 7, 64)]
    ['5.00e-05', '9.73e-04', '1.00e-03', '3.70e-05']
    """
    _checked(epochs, lr)
    warm = warmup * epochs

    def at(t: float) -> float:
        epoch = math.floor(t)
        if epoch < warm:
            return min(lr, start * lr + lr * epoch / warm)
        step = epoch - math.ceil(warm)
        return final_lr + (lr - final_lr) * (1 + math.cos(math.pi * step / epochs)) / 2

    return at


@SCHEDULES.register("warmup_steps", source="FAT2019 36th place repository")
def warmup_steps(
    epochs: int,
    lr: float,
    *,
    warmup: float = 0.05,
    start: float = 0.1,
    milestones: tuple[float, ...] = (0.3, 0.6, 0.9),
    factor: float = 0.1,
) -> Schedule:
    """Linear warm-up from `start * lr` over the first share `warmup`, then times `factor` at each milestone (shares of the whole)."""
    _checked(epochs, lr)

    def at(t: float) -> float:
        share = t / epochs
        if share < warmup:
            return lr * (start + (1 - start) * share / warmup)
        return lr * factor ** sum(share >= m for m in milestones)

    return at


@SCHEDULES.register("linear_one_cycle", source="FAT2019 3rd place repository (Apache-2.0): 1cycle_0.0001_0.005")
def linear_one_cycle(
    epochs: int, lr: float = 5e-3, *, start_lr: float = 1e-4, up: float = 0.3, final_divisor: float = 1000.0
) -> Schedule:
    """Straight up from `start_lr` to `lr` over the first share `up`, then straight down to `start_lr / final_divisor`; every iteration."""
    _checked(epochs, lr)
    final = start_lr / final_divisor

    def at(t: float) -> float:
        share = t / epochs
        if share < up:
            return start_lr + (lr - start_lr) * share / up
        return lr + (final - lr) * (share - up) / (1 - up)

    return at


@SCHEDULES.register("cosine_restarts", source="FAT2019 4th place repository (MIT); arXiv:1608.03983")
def cosine_restarts(epochs: int, lr: float, *, cycle: int = 64, mult: int = 1, final_lr: float = 1e-6) -> Schedule:
    """Cosine from `lr` to `final_lr` over `cycle` epochs, again and again, each cycle `mult` times as long as the last; every iteration.

    The 4th place took a snapshot at the end of each cycle: `fatai.callbacks.checkpoint.SaveSnapshots`. The 1st place refined with `cycle` 10,
    `mult` 2, 3e-4 to 1e-5.
    """
    _checked(epochs, lr)
    starts = [0, *restarts(epochs, cycle, mult)]

    def at(t: float) -> float:
        k = max(i for i, start in enumerate(starts) if start <= t)
        share = (t - starts[k]) / (cycle * mult**k)
        return final_lr + (lr - final_lr) * (1 + math.cos(math.pi * share)) / 2

    return at


def restarts(epochs: int, cycle: int, mult: int = 1) -> list[int]:
    """How many epochs are done at the end of each whole cycle of `cosine_restarts`.

    Examples
    --------
    >>> restarts(150, 10, 2)
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
    "stairs", source="DCASE 2019 Task 2 baseline: staircase decay, its curated stage 0.94 every 2.5 epochs from 3e-3"
)
def stairs(epochs: int, lr: float, *, factor: float = 0.94, every: float = 2.5) -> Schedule:
    """Times `factor` every so many epochs."""
    _checked(epochs, lr)
    if not every > 0:
        raise OptionError(f"every is {every}; expected a number of epochs above 0")
    return lambda t: lr * factor ** math.floor(t / every)


@SCHEDULES.register("warmup_smooth_cosine", source="gold-plan: one epoch of warm-up, then a cosine")
def warmup_smooth_cosine(epochs: int, lr: float, *, warmup_epochs: float = 1.0, final_lr: float = 0.0) -> Schedule:
    """Straight up from 0 over the first epochs, then a cosine to `final_lr` over the rest; every iteration.

    The first iteration has the rate 0 and teaches nothing.
    """
    _checked(epochs, lr)
    if not 0 <= warmup_epochs < epochs:
        raise OptionError(
            f"warmup_epochs is {warmup_epochs}; expected a number from 0 up, less than the {epochs} epochs"
        )

    def at(t: float) -> float:
        if t < warmup_epochs:
            return lr * t / warmup_epochs
        return final_lr + (lr - final_lr) * (1 + math.cos(math.pi * (t - warmup_epochs) / (epochs - warmup_epochs))) / 2

    return at


@SCHEDULES.register("one_cycle", source="fastai (Apache-2.0), fit_one_cycle; arXiv:1708.07120")
def one_cycle(
    epochs: int, lr: float, *, div: float = 25.0, div_final: float = 1e5, pct_start: float = 0.25,
    moms: tuple[float, float, float] = (0.95, 0.85, 0.95),
) -> ParamScheduler:
    """fastai's `fit_one_cycle` as a callback of a plain fit: cosine up to `lr` and down again, momentum the other way round."""
    _checked(epochs, lr)
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
    """Times `factor` when `monitor` got no better for more than `patience` epochs; from the rate that the fit begins with.

    As it stands the 9th place's, which stopped at 1e-7 (`fatai.callbacks.callbacks.StopAtLR`); the 1st place's is "lwlrap", 6, 0.6, 1e-8.

    Parameters
    ----------
    monitor
        "valid_loss", or a metric such as "lwlrap", of which more is better.
    patience
        Epochs without gain that are put up with, as in torch and the published systems; the next one lowers the rate. In fastai's own
        callback it is the epoch that lowers it, one more.
    factor
        Below 1; fastai's own is its inverse.
    """
    _checked(epochs, lr)
    if not 0 < factor < 1 or patience < 0:
        raise OptionError(
            f"factor is {factor} and patience {patience}; expected a factor between 0 and 1 and at least 0 epochs"
        )
    return ReduceLROnPlateau(monitor, min_delta=min_delta, patience=patience + 1, factor=1 / factor, min_lr=min_lr)
