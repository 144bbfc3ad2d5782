"""fastai's `show_batch` and `show_results` for batches of spectrograms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# plum's dispatcher, keyed by bare name: these two extend fastai's own functions, so no other may have their names.
from fastai.imports import dispatch
from fastai.torch_core import subplots
from torch import Tensor

from fatai.data.tensors import TensorSpec, audio_players, in_notebook

__all__ = ["show_batch", "show_results"]


def format_tags(target: Any, max_tags: int = 4) -> str:
    r"""Join the tags of a decoded target, each on a line of its own, at most `max_tags` of them.

    Examples
    --------
    >>> format_tags(["Bark", "Meow", "Purr"], max_tags=2)
    'Bark\nMeow\nand 1 more'
    """
    tags = [str(t) for t in target] if isinstance(target, (list, tuple)) or hasattr(target, "items") else [str(target)]
    more = [f"and {len(tags) - max_tags} more"] if len(tags) > max_tags else []
    return "\n".join(tags[:max_tags] + more) or "no tag"


def _grid(n: int, nrows: int | None, ncols: int | None, figsize: tuple[float, float] | None) -> list[Any]:
    """Create `n` axes in a grid."""
    ncols = ncols or min(n, 4) if nrows is None else ncols
    rows, cols = nrows or -(-n // (ncols or 1)), ncols or -(-n // (nrows or 1))
    axes = subplots(rows, cols, figsize=figsize or (cols * 3.4, rows * 2.9))[1].flatten()
    for spare in axes[n:]:
        spare.set_axis_off()
    return list(axes[:n])


def _show(x: TensorSpec, specs: Sequence[TensorSpec], titles: Sequence[str], ctxs: Any, options: dict[str, Any]) -> Any:
    """Draw spectrograms with titles, and in a notebook their players; return the axes."""
    ctxs = _grid(len(specs), **options) if ctxs is None else ctxs
    for spec, ctx, title in zip(specs, ctxs, titles, strict=False):  # a user's axes may be fewer
        spec.show(ctx=ctx, title=title)
    if len(ctxs) and ctxs[0].figure is not None:
        ctxs[0].figure.tight_layout()
    _play(x, [title.replace("\n", ", ") for title in titles])
    return ctxs


def _play(x: TensorSpec, titles: list[str]) -> None:
    if x.wave is None or not in_notebook():
        return
    from IPython.display import display

    samples = x.wave.detach().cpu().as_subclass(Tensor).numpy()
    display(audio_players([(samples[i], x.wave.sr, title) for i, title in enumerate(titles)]))


@dispatch
def show_batch(x: TensorSpec, y, samples, ctxs=None, max_n=8, nrows=None, ncols=None, figsize=None, **kwargs):
    """Show spectrograms (channels, mels, frames) with their tags, and in a notebook an audio player for each."""
    rows = list(samples)[:max_n]
    titles = [format_tags(row[1]) for row in rows]
    return _show(x, [row[0] for row in rows], titles, ctxs, {"nrows": nrows, "ncols": ncols, "figsize": figsize})


@dispatch
def show_results(x: TensorSpec, y, samples, outs, ctxs=None, max_n=8, nrows=None, ncols=None, figsize=None, **kwargs):
    """Show spectrograms (channels, mels, frames) as `show_batch`, titled with the true and the predicted tags."""
    rows = list(samples)[:max_n]
    titles = [
        f"{format_tags(row[1])}\npredicted: {format_tags(out[0])}" for row, out in zip(rows, outs, strict=False)
    ]  # fastai passes all outputs of the batch
    specs = [row[0] for row in rows[:len(titles)]]
    return _show(x, specs, titles, ctxs, {"nrows": nrows, "ncols": ncols, "figsize": figsize})
