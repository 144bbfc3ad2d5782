"""Which learning rate: fastai's search, its suggestions, and a picture of them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fastai.callback.schedule import steep, valley
from fastai.learner import Learner
from torch import Tensor

from fatai.io.atomic import write_file
from fatai.errors import DataError, OptionError

__all__ = ["LRSearch", "find_lr"]

# As fastai cuts them: what is suggested lies behind the first tenth and before the last five, where the loss leaps.
_FIRST, _LAST = 10, 5
_FEWEST = 6
# Of Okabe and Ito, which all kinds of colour vision tell apart; the marks differ too.
_MARKS = {"valley": ("o", "#D55E00"), "steep": ("s", "#009E73")}


class LRSearch(NamedTuple):
    """What a search saw.

    Attributes
    ----------
    lrs, losses
        Learning rate and smoothed training loss of each batch, both (batches,).
    suggestions
        "valley": two thirds down the longest descent; "steep": where the loss falls fastest.
    """

    lrs: Tensor
    losses: Tensor
    suggestions: dict[str, float]

    def draw(self, path: str | Path, title: str = "") -> None:
        """Write a picture of losses over rates, with the suggestions, to a .png, .svg or .pdf."""
        import matplotlib.pyplot as plt

        figure, axis = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
        axis.plot(self.lrs, self.losses, color="black", linewidth=1.2)
        for name, lr in self.suggestions.items():
            mark, colour = _MARKS[name]
            at = int((self.lrs - lr).abs().argmin())
            axis.plot(self.lrs[at], self.losses[at], mark, color=colour, markersize=9, label=f"{name}: {lr:.1e}")
        begun, best = float(self.losses[0]), float(self.losses.min())
        if begun > best:
            # Where the loss leaps at the end it would press all that matters into a line.
            axis.set_ylim(best - 0.1 * (begun - best), begun + 0.5 * (begun - best))
        axis.set(xscale="log", xlabel="learning rate", ylabel="training loss, smoothed", title=title)
        axis.grid(alpha=0.3)
        axis.legend()
        with write_file(path) as beside:
            figure.savefig(beside, dpi=120)
        plt.close(figure)


def find_lr(learn: Learner, *, steps: int = 100, start_lr: float = 1e-7, end_lr: float = 10.0) -> LRSearch:
    """Search a learning rate with fastai's `lr_find`: each batch has a larger one, until the loss is four times its best.

    Parameters
    ----------
    learn
        Its weights and its folder are afterwards what they were.
    steps
        Batches from `start_lr` to `end_lr`.

    Raises
    ------
    OptionError
        Fewer than 20 steps, or rates that don't rise.
    DataError
        The loss left the numbers, or grew, before anything could be suggested.
    """
    if steps < 20:
        raise OptionError(f"steps is {steps}; expected at least 20: with fewer nothing can be suggested")
    if not 0 < start_lr < end_lr:
        raise OptionError(f"rates go from {start_lr} to {end_lr}; expected them to rise, and to begin above 0")
    own_path = learn.path
    with tempfile.TemporaryDirectory() as folder:
        # The search keeps the weights in a file meanwhile.
        learn.path = Path(folder)
        try:
            learn.lr_find(start_lr, end_lr, num_it=steps, show_plot=False, suggest_funcs=None)
        finally:
            learn.path = own_path
    lrs, losses = _numbers(learn.recorder.lrs), _numbers(learn.recorder.losses)
    behind = slice(steps // _FIRST, len(lrs) - _LAST)
    tried, seen = lrs[behind], losses[behind]
    good = int(torch.isfinite(seen).int().cumprod(0).sum())
    if good < _FEWEST:
        raise DataError(
            f"the loss grew too large after {len(lrs)} of {steps} batches, at a rate of {float(lrs[-1]):.1e}, before any rate "
            "could be suggested: begin lower, or look for clips of odd level with fatai-submit scan"
        )
    suggestions = {how.__name__: how(tried[:good], seen[:good], steps)[0] for how in (valley, steep)}
    return LRSearch(lrs, losses, suggestions)


def _numbers(values: Any) -> Tensor:
    return torch.tensor([float(v) for v in values])
