"""Learning rates over a fit, as closed forms.

Conventions: a schedule is a function of time `t` in epochs, `epoch + batch / batches`, in [0, epochs); it returns the learning rate.
Closed forms because chained schedulers of the frameworks start from whatever rate was set last, so their values depend on history.
What fastai has (one-cycle, cosine with restarts, plateau) is fastai's.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from fatai.errors import OptionError
from fatai.registry import SCHEDULES

__all__ = ["Schedule", "constant", "cosine_restarts", "linear_one_cycle", "warmup_cosine", "warmup_steps"]

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
def warmup_cosine(epochs: int, lr: float, *, warmup: float = 0.1, start: float = 0.05, final_lr: float = 1e-7) -> Schedule:
    """Linear warm-up, then a cosine whose counter starts after it: ninth's real run.

    The rate changes once an epoch. Over the first `warmup * epochs` epochs it climbs from `start * lr` in steps of
    `lr / (warmup * epochs)`; then a cosine with a period of all `epochs` begins, so it stops short of `final_lr`: with 65 epochs at 1e-3,
    at 3.7e-5.

    Examples
    --------
    >>> lr = warmup_cosine(65, 1e-3)
    >>> [f"{lr(e):.2e}" for e in (0, 6, 7, 64)]
    ['5.00e-05', '9.73e-04', '1.00e-03', '3.69e-05']
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
    epochs: int, lr: float, *, warmup: float = 0.05, start: float = 0.1, milestones: tuple[float, ...] = (0.3, 0.6, 0.9),
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
def linear_one_cycle(epochs: int, lr: float = 5e-3, *, start_lr: float = 1e-4, up: float = 0.3, final_divisor: float = 1000.0) -> Schedule:
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
def cosine_restarts(epochs: int, lr: float, *, cycle: int = 64, final_lr: float = 1e-6) -> Schedule:
    """Cosine from `lr` to `final_lr` over `cycle` epochs, again and again; every iteration."""
    _checked(epochs, lr)
    return lambda t: final_lr + (lr - final_lr) * (1 + math.cos(math.pi * (t % cycle) / cycle)) / 2
