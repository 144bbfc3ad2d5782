"""Random draws of augmentations, one row for each clip, and the checks of their probabilities and ranges.

Draws come from torch's global generator, or from one that is given, on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from fatai.errors import OptionError

__all__ = ["check_probability", "check_range", "draw_bernoulli", "draw_integers", "draw_uniform", "take_rows"]

Drawn = TypeVar("Drawn", bound=tuple)


def draw_uniform(
    shape: int | Sequence[int], low: float, high: float, generator: torch.Generator | None = None
) -> Tensor:
    """Draw numbers from U(low, high); float64 of the given shape, on the CPU."""
    size = (shape,) if isinstance(shape, int) else tuple(shape)
    return low + (high - low) * torch.rand(size, generator=generator, dtype=torch.float64)


def draw_integers(
    shape: int | Sequence[int], low: int | Tensor, high: int | Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Draw whole numbers from `low` to `high`, both included.

    Parameters
    ----------
    shape
        Shape of the result.
    low, high
        Numbers, or tensors that broadcast to `shape`.
    generator
        Of the draws; None is torch's global one.

    Returns
    -------
    int64 of that shape, on the CPU.
    """
    return (low + torch.floor(draw_uniform(shape, 0, 1, generator) * (high - low + 1))).long()


def draw_bernoulli(n: int, p: float, generator: torch.Generator | None = None) -> Tensor:
    """Draw `n` booleans, each True with probability `p`; bool, shape (n,), on the CPU."""
    return draw_uniform(n, 0, 1, generator) < p


def take_rows(drawn: Drawn, rows: Tensor) -> Drawn:
    """Return the draws of some clips.

    Parameters
    ----------
    drawn
        A tuple, named or not, of tensors with a row for each clip, or of such tuples.
    rows
        Positions of the clips, int64 of any shape.
    """
    parts = [take_rows(d, rows) if isinstance(d, tuple) else d[rows] for d in drawn]
    return type(drawn)(*parts) if hasattr(drawn, "_fields") else type(drawn)(parts)


def check_probability(p: float, name: str = "p") -> float:
    """Return `p`; raise `OptionError` if it is not within [0, 1]."""
    if not 0 <= p <= 1:
        raise OptionError(f"{name} is {p}; expected a probability between 0 and 1")
    return p


def check_range(
    values: Sequence[float], name: str, *, low: float = -float("inf"), high: float = float("inf")
) -> None:
    """Raise `OptionError` unless `values` are two numbers in rising order within [low, high]."""
    if len(values) != 2 or not low <= values[0] <= values[1] <= high:
        within = "" if low == -float("inf") and high == float("inf") else f" within [{low:g}, {high:g}]"
        raise OptionError(f"{name} is {tuple(values)}; expected two numbers in rising order{within}")
