"""What a batch of spectrograms looks and sounds like: fastai's `show_batch` and `show_results` for `TensorSpec`."""

from __future__ import annotations

from typing import Any

import numpy as np
# plum's dispatcher, keyed by bare name: these two extend fastai's own functions and nothing else may be dispatched under their names.
from fastai.imports import dispatch
from fastai.torch_core import subplots
from torch import Tensor

from fatai.data.tensors import TensorSpec, in_notebook, audio_players

__all__ = ["show_batch", "show_results"]


def format_tags(target: Any, most: int = 4) -> str:
    """Tags of a decoded target, each on a line of its own; of many, which a network that knows little predicts, the first ones."""
    tags = [str(t) for t in target] if isinstance(target, (list, tuple)) or hasattr(target, "items") else [str(target)]
    return "\n".join(tags[:most] + [f"and {len(tags) - most} more"] * (len(tags) > most)) or "no tag"


def _grid(
    x: TensorSpec, n: int, ctxs: Any, nrows: int | None, ncols: int | None, figsize: tuple[float, float] | None
) -> Any:
    if ctxs is not None:
        return ctxs
    ncols = ncols or min(n, 4) if nrows is None else ncols
    rows, cols = nrows or -(-n // (ncols or 1)), ncols or -(-n // (nrows or 1))
    axes = subplots(rows, cols, figsize=figsize or (cols * 3.4, rows * 2.9))[1].flatten()
    for spare in axes[n:]:
        spare.set_axis_off()
    return list(axes[:n])


def _play(x: TensorSpec, titles: list[str]) -> None:
    wave = getattr(x, "wave", None)
    if wave is None or not in_notebook():
        return
    from IPython.display import display

    samples: np.ndarray = wave.detach().cpu().as_subclass(Tensor).numpy()
    display(audio_players([(samples[i], wave.rate, title) for i, title in enumerate(titles)]))


def _tidy(ctxs: Any) -> None:
    figure = ctxs[0].figure if len(ctxs) else None
    if figure is not None:
        figure.tight_layout()


@dispatch
def show_batch(
    x: TensorSpec, y, samples, ctxs=None, max_n=8, nrows=None, ncols=None, figsize=None, **kwargs
):
    """Spectrograms with their tags, frequency in Hz and time in seconds, and in a notebook a player for each."""
    shown = list(samples)[:max_n]
    ctxs = _grid(x, len(shown), ctxs, nrows, ncols, figsize)
    titles = [format_tags(sample[1]) for sample in shown]
    for sample, ctx, title in zip(shown, ctxs, titles):
        sample[0].show(ctx=ctx, title=title)
    _tidy(ctxs)
    _play(x, [t.replace("\n", ", ") for t in titles])
    return ctxs


@dispatch
def show_results(
    x: TensorSpec, y, samples, outs, ctxs=None, max_n=8, nrows=None, ncols=None, figsize=None, **kwargs
):
    """As `show_batch`, with the true tags in the first lines of a title and the predicted ones below."""
    shown = list(samples)[:max_n]
    ctxs = _grid(x, len(shown), ctxs, nrows, ncols, figsize)
    titles = [f"{format_tags(sample[1])}\npredicted: {format_tags(out[0])}" for sample, out in zip(shown, outs)]
    for sample, ctx, title in zip(shown, ctxs, titles):
        sample[0].show(ctx=ctx, title=title)
    _tidy(ctxs)
    _play(x, [t.replace("\n", ", ") for t in titles])
    return ctxs
