"""Plots of a learner for notebooks: scores per tag, largest losses, Grad-CAM, first filters.

The functions behind `learn.plot_lwlrap`, `learn.plot_top_losses`, `learn.show_cam` and `learn.plot_filters`. In a
notebook, clips that are drawn get an audio player each. Colors are safe for color-blind readers; axes are in Hz and
seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.imports import dispatch
from fastai.interpret import ClassificationInterpretation
from fastai.torch_core import subplots
from torch import Tensor

from fatai.data.labels import multi_hot
from fatai.data.show import format_tags
from fatai.data.tensors import TensorSpec, audio_players, in_notebook
from fatai.errors import DataError, OptionError
from fatai.inference.grad_cam import filter_mosaic, first_filters, grad_cam
from fatai.inference.predictions import Predictions
from fatai.inference.tta import names_and_paths
from fatai.metrics.per_class import tag_intervals
from fatai.metrics.ranking import lwlrap
from fatai.registry import did_you_mean
from fatai.training.learner import TagLearner

__all__ = ["plot_top_losses"]

_BLUE, _VERMILION, _GRAY = "#0072B2", "#D55E00", "#9a9a9a"
_MAX_S = 10.0  # of a clip in show_cam


def plot_lwlrap(learn: TagLearner, preds: Predictions, max_tags: int, figsize: tuple[float, float] | None) -> Any:
    """Draw the lwlrap of each tag on the validation clips; see `FatLearner.plot_lwlrap`."""
    clips = learn.dls.files(1)
    if not len(clips):
        raise DataError("the learner has no validation clip to score; make its loaders with valid_pct above 0")
    preds = preds.select(clips["fname"], learn.tags)
    targ = multi_hot(clips["labels"], learn.tags)
    table = tag_intervals(preds.probs, targ, learn.tags)
    table = table[table["clips"] > 0].sort_values(["lwlrap", "tag"]).head(max_tags)
    axis = subplots(1, 1, figsize=figsize or (6.4, 1.2 + 0.24 * len(table)), layout="constrained")[1].flatten()[0]
    rows = np.arange(len(table))[::-1]
    axis.hlines(rows, table["low"], table["high"], color=_BLUE, linewidth=2)
    axis.plot(table["lwlrap"], rows, "o", color=_BLUE)
    overall = lwlrap(preds.probs, targ)
    axis.axvline(overall, color=_VERMILION, linestyle="--", label=f"all tags: {overall:.3f}")
    axis.set_yticks(rows, [f"{row.tag} ({row.clips})" for row in table.itertuples()], parse_math=False)
    axis.set(xlim=(0, 1.02), xlabel="lwlrap with 95 % interval; number of clips in parentheses")
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    return axis


@dispatch
def plot_top_losses(
    x: TensorSpec, y, samples, outs, raws, losses, nrows=None, ncols=None, figsize=None, tags=None, **kwargs
):
    """Draw the clips with the largest losses, with true and likeliest tags; extends fastai's function.

    `ClassificationInterpretation.plot_top_losses` calls it without the names of the tags: then the title has the tags
    above one half.

    Parameters
    ----------
    x
        Spectrograms (clips, channels, mels, frames).
    samples, outs
        Decoded inputs and predictions of each clip.
    raws, losses
        Probabilities (clips, tags) and losses (clips,).
    nrows, ncols, figsize
        Layout of the figure; None chooses it.
    tags
        Names of the tags.
    """
    n = len(losses)
    ncols = ncols or min(n, 4)
    axes = subplots(nrows or -(-n // ncols), ncols, figsize=figsize or (ncols * 3.4, -(-n // ncols) * 3.2))[1].flatten()
    predicted = [format_tags(out[0]) for out in outs] if tags is None else [_likeliest(raw, tags) for raw in raws]
    titles = [
        f"{format_tags(sample[1])}\npredicted: {words}\nloss {float(loss):.2f}"
        for sample, words, loss in zip(samples, predicted, losses, strict=True)
    ]
    for axis, sample, title in zip(axes[:n], samples, titles, strict=True):
        sample[0].show(ctx=axis, title=title)
    for unused in axes[n:]:
        unused.set_axis_off()
    axes[0].figure.tight_layout()
    if x.wave is not None and len(x.wave) >= n:
        _play([x.wave[i] for i in range(n)], x.wave.sr, titles)
    return axes[:n]


def draw_top_losses(learn: TagLearner, k: int, largest: bool, ds_idx: int, **kwargs: Any) -> Any:
    """Draw the clips with the largest losses; see `FatLearner.plot_top_losses`."""
    from matplotlib.pyplot import gcf

    k = min(k, len(learn.dls.loaders[ds_idx].dataset))
    ClassificationInterpretation.from_learner(learn, ds_idx).plot_top_losses(
        k, largest=largest, tags=learn.tags, **kwargs
    )
    return gcf().axes[:k]  # fastai's method returns nothing


def show_cam(
    learn: TagLearner, n: int, tag: str | None, items: Any, ds_idx: int, figsize: tuple[float, float] | None
) -> np.ndarray:
    """Draw clips and the evidence for a tag in them, and return the axes (2, n); see `FatLearner.show_cam`."""
    if tag is not None and tag not in learn.tags:
        raise OptionError(f"there is no tag {tag!r}; {did_you_mean(tag, learn.tags)}")
    paths, titles = _clips_to_show(learn, n, items, ds_idx)
    axes = np.array(subplots(2, len(paths), figsize=figsize or (3.4 * len(paths), 5.8))[1]).reshape(2, len(paths))
    waves = [learn.clip_config.read(path)[:round(_MAX_S * learn.clip_config.sr)] for path in paths]
    for (top, bottom), wave, title in zip(axes.T, waves, titles, strict=True):
        _draw_cam(learn, wave, tag, top, bottom, title)
    axes[0, 0].figure.tight_layout()
    _play(waves, learn.clip_config.sr, titles)
    return axes


def _clips_to_show(learn: TagLearner, n: int, items: Any, ds_idx: int) -> tuple[list[str], list[str]]:
    """Return paths and titles of at most `n` clips: tags for a part of the loaders, file names for other items."""
    if items is None:
        table = learn.dls.files(ds_idx)
        paths, titles = list(table["path"]), [", ".join(labels) for labels in table["labels"]]
    else:
        paths = names_and_paths(items)[1]
        titles = [Path(path).name for path in paths]
    if not paths[:n]:
        raise DataError(
            f"there is no clip to show; expected some in part {ds_idx} of the loaders, or a list of paths as items"
        )
    return paths[:n], titles[:n]


def _draw_cam(learn: TagLearner, wave: Tensor, tag: str | None, top: Any, bottom: Any, title: str) -> None:
    """Draw the spectrogram of a wave (samples,) on the axis `top`, and with the evidence for a tag on `bottom`."""
    spec = learn.dls.to_spec.spec(learn.clip_config.fit(wave)[None].to(learn.dls.device))
    probs = _predict(learn, spec)
    column = int(probs.argmax()) if tag is None else learn.tags.index(tag)
    heat = grad_cam(learn.model, spec, column)[0].cpu().numpy()
    image = TensorSpec(spec[0])
    image.front_end = learn.clip_config.front_end
    image.show(ctx=top, title=title)
    no_evidence = "" if heat.max() > 0 else "\n(no evidence for it)"
    image.show(ctx=bottom, title=f"{learn.tags[column]} {probs[column]:.2f}{no_evidence}")
    bottom.images[0].set_cmap("gray")
    bottom.imshow(
        np.ones_like(heat), cmap="Wistia", vmin=-1, vmax=1, alpha=0.8 * heat, origin="lower", aspect="auto",
        extent=bottom.images[0].get_extent(),
    )
    for axis in (top, bottom):
        _cover_padding(axis, learn.clip_config.sound_span(len(wave)))


def _cover_padding(axis: Any, sound: tuple[float, float]) -> None:
    """Draw gray over a spectrogram outside its sound, which is given as fractions of the width."""
    right = axis.images[0].get_extent()[1]
    for start, end in ((0.0, sound[0]), (sound[1], 1.0)):
        if end > start:
            axis.axvspan(right * start, right * end, color=_GRAY, alpha=0.85, linewidth=0)
            axis.set_xlabel("seconds (gray: padding)")


def plot_filters(learn: TagLearner, n: int, figsize: tuple[float, float] | None) -> Any:
    """Draw the filters of the first convolution; see `FatLearner.plot_filters`."""
    weights = first_filters(learn.model)
    mosaic = filter_mosaic(weights, n).numpy()
    height = min(9.0, 1.8 + 6.4 * mosaic.shape[0] / mosaic.shape[1])
    axis = subplots(1, 1, figsize=figsize or (6.4, height), layout="constrained")[1].flatten()[0]
    image = axis.imshow(mosaic, origin="lower", cmap="PuOr", vmin=-1, vmax=1, interpolation="nearest")
    axis.set(xticks=[], yticks=[], ylabel="frequency (upwards)", xlabel="time (to the right)")
    shown, total, bands, frames = min(n, len(weights)), len(weights), weights.shape[2], weights.shape[3]
    ms = 1000 * frames * learn.clip_config.front_end.seconds_per_frame
    axis.set_title(f"{shown} of {total} filters: {bands} bands by {frames} frames ({ms:.0f} ms)", fontsize=9)
    axis.figure.colorbar(image, ax=axis, label="weight / largest of the filter", location="bottom", shrink=0.6)
    return axis


def _predict(learn: TagLearner, spec: Tensor) -> np.ndarray:
    """Return probabilities (tags,) of one spectrogram (1, channels, mels, frames)."""
    was_training = learn.model.training
    with torch.inference_mode():
        logits = learn.model.eval()(spec).float()
    learn.model.train(was_training)
    return learn.activation(logits)[0].cpu().numpy()


def _likeliest(probs: Tensor, tags: Sequence[str], n: int = 2) -> str:
    """Return the names and probabilities of the `n` likeliest tags, given `probs` (tags,)."""
    order = np.argsort(-np.asarray(probs), kind="stable")[:n]
    return ", ".join(f"{tags[k]} {float(probs[k]):.2f}" for k in order)


def _play(waves: Sequence[Any], sr: int, titles: Sequence[str]) -> None:
    """Show an audio player for each wave (samples,) at a rate in Hz, in a notebook; elsewhere do nothing."""
    if not in_notebook():
        return
    from IPython.display import display

    plain = [torch.as_tensor(wave).detach().cpu().as_subclass(Tensor).numpy() for wave in waves]
    captions = [title.replace("\n", ", ") for title in titles]
    display(audio_players([(wave, sr, caption) for wave, caption in zip(plain, captions, strict=True)]))


def _refuse_tags(name: str) -> None:
    """Let a method of fastai's interpretation raise for learners of tags; it expects one class for each clip."""
    of_fastai = getattr(ClassificationInterpretation, name)

    @wraps(of_fastai)
    def method(self: ClassificationInterpretation, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.learn, TagLearner):
            raise OptionError(
                f"{name} of fastai counts one class for each clip, and these clips may have several tags; take "
                "confusions(probs, targ, tags) of fatai.metrics.per_class, with probs, targ = learn.get_preds()"
            )
        return of_fastai(self, *args, **kwargs)

    setattr(ClassificationInterpretation, name, method)


for _name in ("confusion_matrix", "print_classification_report"):
    _refuse_tags(_name)
