"""Learning-rate finder: fastai's `lr_find` with checks before and after, and a picture of the result."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import steep, valley
from fastai.learner import Learner
from torch import Tensor

from fatai.errors import DataError, OptionError
from fatai.io.atomic import write_file
from fatai.io.progress import track

__all__ = ["LRFinderResult", "find_lr"]

_MIN_STEPS = 20
_MIN_LOSSES = 6
# From the palette of Okabe and Ito, which is safe for color-blind readers; the marker shapes differ too.
_MARKERS = {"valley": ("o", "#D55E00"), "steep": ("s", "#009E73")}


class LRFinderResult(NamedTuple):
    """Result of `find_lr`.

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
        """Draw the loss over the learning rate, with the suggestions, to a .png, .svg or .pdf."""
        import matplotlib.pyplot as plt

        figure, axis = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
        axis.plot(self.lrs, self.losses, color="black", linewidth=1.2)
        for name, lr in self.suggestions.items():
            marker, color = _MARKERS[name]
            i = int((self.lrs - lr).abs().argmin())
            axis.plot(self.lrs[i], self.losses[i], marker, color=color, markersize=9, label=f"{name}: {lr:.1e}")
        first, best = float(self.losses[0]), float(self.losses.min())
        if first > best:
            # Without limits, the diverging end would flatten the descent.
            axis.set_ylim(best - 0.1 * (first - best), first + 0.5 * (first - best))
        axis.set(xscale="log", xlabel="learning rate", ylabel="training loss, smoothed", title=title)
        axis.grid(alpha=0.3)
        axis.legend()
        with write_file(path) as temporary:
            figure.savefig(temporary, dpi=120)
        plt.close(figure)


def find_lr(
    learn: Learner, *, steps: int = 100, start_lr: float = 1e-7, end_lr: float = 10.0, show_progress: bool = False
) -> LRFinderResult:
    """Suggest learning rates with fastai's `lr_find`.

    The rate grows batch by batch until the loss is four times its best.

    Parameters
    ----------
    learn
        The learner; its weights and its folder are left as they were.
    steps
        Batches from `start_lr` to `end_lr`, at least 20. More give a smoother curve.
    start_lr, end_lr
        First and last learning rate.
    show_progress
        Whether to show the batches on standard error, as a bar on a terminal and as lines elsewhere, instead of what
        the learner shows.

    Returns
    -------
    The rates, the losses and the suggestions.

    Raises
    ------
    OptionError
        If there are fewer than 20 steps, or the rates do not rise.
    DataError
        If the loss became infinite or NaN, or grew too large, before a rate could be suggested.
    """
    if steps < _MIN_STEPS:
        raise OptionError(f"steps is {steps}; expected at least {_MIN_STEPS}: fewer are not enough for a suggestion")
    if not 0 < start_lr < end_lr:
        raise OptionError(f"start_lr is {start_lr} and end_lr {end_lr}; expected 0 < start_lr < end_lr")
    functions = [_with_check(suggest, learn, steps) for suggest in (valley, steep)]
    with _temporary_folder(learn), _progress(learn, steps) if show_progress else nullcontext():
        suggested = learn.lr_find(start_lr, end_lr, num_it=steps, show_plot=False, suggest_funcs=functions)
    recorder = learn.recorder
    return LRFinderResult(_to_tensor(recorder.lrs), _to_tensor(recorder.losses), suggested._asdict())


def _with_check(suggest: Callable[..., Any], learn: Learner, steps: int) -> Callable[..., Any]:
    """Wrap a function of fastai that suggests a rate: pass it the finite losses alone, if there are enough of them."""

    @wraps(suggest)
    def checked(lrs: Tensor, losses: Tensor, num_it: int) -> Any:
        n_finite = int(torch.isfinite(losses).int().cumprod(0).sum())
        if n_finite < _MIN_LOSSES:
            tried = learn.recorder.lrs
            raise DataError(
                f"the loss grew too large after {len(tried)} of {steps} batches, at a learning rate of "
                f"{float(tried[-1]):.1e}, before a rate could be suggested; lower start_lr, or look for clips of "
                "extreme level with fatai-submit scan"
            )
        return suggest(lrs[:n_finite], losses[:n_finite], num_it)

    return checked


class _BatchProgress(Callback):
    """Show how many batches are done."""

    def __init__(self, steps: int):
        self.bar = track(range(steps), "batches with growing learning rates")

    def before_fit(self) -> None:
        """Show that there is none yet."""
        next(self.bar)

    def after_batch(self) -> None:
        """Advance."""
        next(self.bar, None)


@contextmanager
def _progress(learn: Learner, steps: int) -> Iterator[None]:
    """Show the batches of a search instead of the epochs of fastai's bar."""
    shown = _BatchProgress(steps)
    with closing(shown.bar), learn.no_bar(), learn.added_cbs([shown]):
        yield


@contextmanager
def _temporary_folder(learn: Learner) -> Iterator[None]:
    """Let the learner write to a temporary folder: `lr_find` keeps the weights in a file meanwhile."""
    path = learn.path
    with tempfile.TemporaryDirectory() as folder:
        learn.path = Path(folder)
        try:
            yield
        finally:
            learn.path = path


def _to_tensor(values: Any) -> Tensor:
    return torch.tensor([float(v) for v in values])
