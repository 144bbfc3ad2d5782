"""What a learner hears well and badly, drawn in a notebook: `plot_lwlrap`, `plot_top_losses`, `show_cam`, `plot_filters`.

Where sound is shown, a notebook gets a player for each. Colours are safe for every kind of colour vision; axes are in Hz and seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from fatai.data.tensors import TensorSpec, in_notebook, audio_players
from fatai.errors import DataError, OptionError
from fatai.inference.grad_cam import filter_mosaic, first_filters, grad_cam
from fatai.inference.predictions import Predictions
from fatai.inference.tta import names_and_paths
from fatai.registry import did_you_mean
from fatai.metrics.per_class import tag_intervals
from fatai.metrics.ranking import lwlrap
from fatai.training.learner import TagLearner

__all__ = ["plot_top_losses"]

_BLUE, _VERMILION = "#0072B2", "#D55E00"
_LONGEST_S = 10.0  # of a clip that is looked at


def plot_lwlrap(
    learn: TagLearner, preds: Predictions, max_tags: int, figsize: tuple[float, float] | None
) -> Any:
    """Draw the lwlrap of each tag on the validation clips; see `FatLearner.plot_lwlrap`."""
    clips = learn.dls.files(1)
    if not len(clips):
        raise DataError("the learner has no validation clip to score; make its loaders with valid_pct above 0")
    preds = preds.select(clips["fname"], learn.tags)
    targ = multi_hot(clips["labels"], learn.tags)
    table = tag_intervals(preds.probs, targ, learn.tags)
    table = table[table["clips"] > 0].sort_values(["lwlrap", "tag"]).head(max_tags)
    axis = subplots(1, 1, figsize=figsize or (6.4, 1.2 + 0.24 * len(table)), layout="constrained")[1].flatten()[0]
    at = np.arange(len(table))[::-1]
    axis.hlines(at, table["low"], table["high"], color=_BLUE, linewidth=2)
    axis.plot(table["lwlrap"], at, "o", color=_BLUE)
    whole = lwlrap(preds.probs, targ)
    axis.axvline(whole, color=_VERMILION, linestyle="--", label=f"all tags: {whole:.3f}")
    axis.set_yticks(at, [f"{row.tag} ({row.clips})" for row in table.itertuples()], parse_math=False)
    axis.set(xlim=(0, 1.02), xlabel="lwlrap and 95 % interval; clips in brackets")
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    return axis


@dispatch
def plot_top_losses(
    x: TensorSpec, y, samples, outs, raws, losses, nrows=None, ncols=None, figsize=None, tags=None, **kwargs
):
    """Spectrograms of the clips with the largest losses, with their tags, the likeliest of `tags` and the loss; extends fastai's.

    `ClassificationInterpretation.plot_top_losses` doesn't know the tags' names: it says those that are above one half.
    """
    n = len(losses)
    ncols = ncols or min(n, 4)
    axes = subplots(nrows or -(-n // ncols), ncols, figsize=figsize or (ncols * 3.4, -(-n // ncols) * 3.2))[1].flatten()
    predicted = [format_tags(out[0]) for out in outs] if tags is None else [_likeliest(raw, tags) for raw in raws]
    titles = [f"{format_tags(sample[1])}\npredicted: {words}\nloss {float(loss):.2f}"
              for sample, words, loss in zip(samples, predicted, losses)]
    for axis, sample, title in zip(axes, samples, titles):
        sample[0].show(ctx=axis, title=title)
    for spare in axes[n:]:
        spare.set_axis_off()
    axes[0].figure.tight_layout()
    wave = getattr(x, "wave", None)
    if wave is not None and len(wave) >= n:
        _play([wave[i] for i in range(n)], wave.sr, titles)
    return axes[:n]


def draw_top_losses(learn: TagLearner, k: int, largest: bool, ds_idx: int, **kwargs: Any) -> Any:
    """Draw the clips with the largest losses; see `FatLearner.plot_top_losses`."""
    from matplotlib.pyplot import gcf

    k = min(k, len(learn.dls.loaders[ds_idx].dataset))
    ClassificationInterpretation.from_learner(learn, ds_idx).plot_top_losses(
        k, largest=largest, tags=learn.tags, **kwargs
    )
    return gcf().axes[:k]  # fastai's returns nothing


def show_cam(
    learn: TagLearner,
    n: int,
    tag: str | None,
    items: Any,
    ds_idx: int,
    figsize: tuple[float, float] | None,
) -> np.ndarray:
    """Draw clips and the evidence for a tag in them; see `FatLearner.show_cam`."""
    if tag is not None and tag not in learn.tags:
        raise OptionError(f"there is no tag {tag!r}; {did_you_mean(tag, learn.tags)}")
    table = learn.dls.files(ds_idx) if items is None else None
    paths = names_and_paths(table if items is None else items)[1][:n]
    if not paths:
        raise DataError(
            f"there is no clip to show; expected some in part {ds_idx} of the loaders, or a list of paths as items"
        )
    given = (
        [", ".join(labels) for labels in table["labels"][:n]] if table is not None else [Path(p).name for p in paths]
    )
    axes = np.array(subplots(2, len(paths), figsize=figsize or (3.4 * len(paths), 5.8))[1]).reshape(2, len(paths))
    waves = []
    for (above, below), path, title in zip(axes.T, paths, given):
        wave = learn.settings.read(path)[:round(_LONGEST_S * learn.settings.sr)]
        spec = learn.dls.to_spec.spec(learn.settings.fit(wave)[None].to(learn.dls.device))
        probs = _probs(learn, spec)
        column = int(probs.argmax()) if tag is None else learn.tags.index(tag)
        heat = grad_cam(learn.model, spec, column)[0].cpu().numpy()
        shown = TensorSpec(spec[0])
        shown.front_end = learn.settings.front_end
        shown.show(ctx=above, title=title)
        shown.show(
            ctx=below,
            title=f"{learn.tags[column]} {probs[column]:.2f}" + ("" if heat.max() > 0 else "\n(nothing speaks for it)"),
        )
        below.images[0].set_cmap("gray")
        below.imshow(
            np.ones_like(heat),
            cmap="Wistia",
            vmin=-1,
            vmax=1,
            alpha=0.8 * heat,
            origin="lower",
            aspect="auto",
            extent=below.images[0].get_extent(),
        )
        waves.append(wave)
    axes[0, 0].figure.tight_layout()
    _play(waves, learn.settings.sr, given)
    return axes


def plot_filters(learn: TagLearner, n: int, figsize: tuple[float, float] | None) -> Any:
    """Draw the first convolution's filters; see `FatLearner.plot_filters`."""
    weights = first_filters(learn.model)
    mosaic = filter_mosaic(weights, n).numpy()
    height = min(9.0, 1.8 + 6.4 * mosaic.shape[0] / mosaic.shape[1])
    axis = subplots(1, 1, figsize=figsize or (6.4, height), layout="constrained")[1].flatten()[0]
    image = axis.imshow(mosaic, origin="lower", cmap="PuOr", vmin=-1, vmax=1, interpolation="nearest")
    axis.set(xticks=[], yticks=[], ylabel="Hz upwards", xlabel="seconds to the right")
    ms = 1000 * weights.shape[3] * learn.settings.front_end.seconds_per_frame
    axis.set_title(
        f"{min(n, len(weights))} of {len(weights)} filters: {weights.shape[2]} bands by {weights.shape[3]} frames ({ms:.0f} ms)",
        fontsize=9,
    )
    axis.figure.colorbar(image, ax=axis, label="weight over the filter's largest", location="bottom", shrink=0.6)
    return axis


def _probs(learn: TagLearner, spec: Tensor) -> np.ndarray:
    """Probabilities (tags,) of a batch of one."""
    training = learn.model.training
    with torch.inference_mode():
        logits = learn.model.eval()(spec).float()
    learn.model.train(training)
    return getattr(learn.loss_func, "activation", torch.sigmoid)(logits)[0].cpu().numpy()


def _likeliest(probs: Tensor, tags: Sequence[str], n: int = 2) -> str:
    order = np.argsort(-np.asarray(probs), kind="stable")[:n]
    return ", ".join(f"{tags[k]} {float(probs[k]):.2f}" for k in order)


def _play(waves: Sequence[Any], sr: int, titles: Sequence[str]) -> None:
    if in_notebook():
        from IPython.display import display

        plain = [torch.as_tensor(wave).detach().cpu().as_subclass(Tensor).numpy() for wave in waves]
        display(audio_players([(wave, sr, title.replace("\n", ", ")) for wave, title in zip(plain, titles)]))
