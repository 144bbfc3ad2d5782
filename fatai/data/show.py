"""fastai's `show_batch` and `show_results` for batches of spectrograms, and what its trackers log of such batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

# plum's dispatcher, keyed by bare name: these extend fastai's own functions, so no other may have their names.
from fastai.imports import dispatch
from fastai.torch_core import subplots
from torch import Tensor

from fatai.data.tensors import TensorSpec, audio_players, in_notebook

__all__ = ["show_batch", "show_results", "tensorboard_log", "wandb_process"]

_LINE = 42  # characters of a title above a spectrogram
# Distinct for every kind of color vision, and legible on white and on gray.
_RIGHT, _WRONG = "#00704d", "#b34a00"


def format_tags(target: Any, max_tags: int = 4) -> str:
    r"""Join the tags of a decoded target, each on a line of its own, at most `max_tags` of them.

    Examples
    --------
    >>> format_tags(["Bark", "Meow", "Purr"], max_tags=2)
    'Bark\nMeow\nand 1 more'
    """
    tags = _tag_list(target)
    more = [f"and {len(tags) - max_tags} more"] if len(tags) > max_tags else []
    return "\n".join(tags[:max_tags] + more) or "no tag"


def _result_title(target: Any, predicted: Any) -> tuple[str, str]:
    """Return a title of two lines, true and predicted tags, and its color: whether the tags are the same."""
    is_right = set(_tag_list(target)) == set(_tag_list(predicted))
    mark, color = ("\N{CHECK MARK}", _RIGHT) if is_right else ("\N{BALLOT X}", _WRONG)
    return f"{_one_line(target)}\n{mark} predicted: {_one_line(predicted, len('x predicted: '))}", color


def _one_line(target: Any, used: int = 0) -> str:
    """Join the tags of a decoded target by commas, cut to a line of which `used` characters are taken."""
    text, room = ", ".join(_tag_list(target)) or "no tag", _LINE - used
    return text if len(text) <= room else f"{text[:room - 1]}\N{HORIZONTAL ELLIPSIS}"


def _tag_list(target: Any) -> list[str]:
    if isinstance(target, (list, tuple)) or hasattr(target, "items"):
        return [str(tag) for tag in target]
    return [str(target)]


def _draw_results(axes: Sequence[Any], samples: Sequence[Any], outs: Sequence[Any]) -> list[str]:
    """Draw spectrograms titled with true and predicted tags, in the color of right and wrong; return the titles."""
    titles = [_result_title(row[1], out[0]) for row, out in zip(samples, outs, strict=False)]
    for axis, row, (title, color) in zip(axes, samples, titles, strict=False):  # a user's axes may be fewer
        row[0].show(ctx=axis, title=title)
        axis.title.set_color(color)
    return [title for title, _ in titles]


def _grid(n: int, nrows: int | None, ncols: int | None, figsize: tuple[float, float] | None) -> list[Any]:
    """Create `n` axes in a grid."""
    ncols = ncols or min(n, 4) if nrows is None else ncols
    rows, cols = nrows or -(-n // (ncols or 1)), ncols or -(-n // (nrows or 1))
    axes = subplots(rows, cols, figsize=figsize or (cols * 3.4, rows * 2.9))[1].flatten()
    for spare in axes[n:]:
        spare.set_axis_off()
    return list(axes[:n])


def _finish(x: TensorSpec, axes: Any, titles: Sequence[str]) -> Any:
    """Lay the figure out, and in a notebook show the players; return the axes."""
    if len(axes) and axes[0].figure is not None:
        axes[0].figure.tight_layout()
    _play(x, [title.replace("\n", ", ") for title in titles])
    return axes


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
    axes = _grid(len(rows), nrows, ncols, figsize) if ctxs is None else ctxs
    titles = [format_tags(row[1]) for row in rows]
    for axis, row, title in zip(axes, rows, titles, strict=False):  # a user's axes may be fewer
        row[0].show(ctx=axis, title=title)
    return _finish(x, axes, titles)


@dispatch
def show_results(x: TensorSpec, y, samples, outs, ctxs=None, max_n=8, nrows=None, ncols=None, figsize=None, **kwargs):
    """Show spectrograms (channels, mels, frames) as `show_batch`, titled with the true and the predicted tags.

    A title has two lines; it is green with a check mark if the tags are the same, else orange with a cross.
    """
    rows = list(samples)[:min(max_n, len(outs))]
    axes = _grid(len(rows), nrows, ncols, figsize) if ctxs is None else ctxs
    return _finish(x, axes, _draw_results(axes, rows, outs))  # fastai passes all outputs of the batch


def _images(samples: Any) -> list[np.ndarray]:
    """Return the first channel of each spectrogram as uint8 (mels, frames), the highest frequency first."""
    specs = [row[0].detach().float().cpu().as_subclass(Tensor)[0].flip(0) for row in samples]
    spans = [(spec - spec.min()) / (spec.max() - spec.min()).clamp(min=1e-12) for spec in specs]
    return [(255 * span).byte().numpy() for span in spans]


def _sounds(x: TensorSpec, n: int) -> list[tuple[np.ndarray, int] | None]:
    """Return the samples of the first `n` clips of a batch with their rate in Hz; None where it has no sound."""
    if x.wave is None:
        return [None] * n
    return [(wave, x.wave.sr) for wave in x.wave.detach().float().cpu().as_subclass(Tensor).numpy()[:n]]


@dispatch
def wandb_process(x: TensorSpec, y, samples, outs, preds):
    """Return the table that fastai's `WandbCallback` logs: spectrogram, sound, tags and predicted tags of clips."""
    import wandb

    rows = zip(_images(samples), _sounds(x, len(samples)), samples, outs, strict=False)
    table = wandb.Table(columns=["Spectrogram", "Sound", "Ground_Truth", "Predictions"])
    for image, sound, row, out in rows:
        audio = None if sound is None else wandb.Audio(sound[0], sample_rate=sound[1])
        table.add_data(wandb.Image(image), audio, format_tags(row[1], 20), format_tags(out[0], 20))
    return {"Prediction_Samples": table}


@dispatch
def tensorboard_log(x: TensorSpec, y, samples, outs, writer, step):
    """Write what fastai's `TensorBoardCallback` logs of a batch: the figure of `show_results` and the sounds."""
    rows = list(samples)
    axes = _grid(len(rows), None, None, None)
    _draw_results(axes, rows, outs)
    axes[0].figure.tight_layout()
    writer.add_figure("Sample results", axes[0].figure, step)
    for k, sound in enumerate(_sounds(x, len(rows))):
        if sound is not None:
            writer.add_audio(f"Sample {k}", sound[0][None], step, sample_rate=sound[1])
