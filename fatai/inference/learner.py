"""`fat_learner`: from data loaders and the name of a model to a learner that trains, predicts and explains.

`FatLearner` has the methods that need more than training: prediction, embeddings, plots, model folders and reports.
Each is a few lines over a plain function of this package.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastcore.foundation import L
from fastcore.meta import delegates
from torch import Tensor, nn

from fatai.augment.base import augmentation_callbacks
from fatai.augment.show import show_augs
from fatai.callbacks.batch_norm import FreezeBatchNorm
from fatai.callbacks.layer_decay import LayerDecay
from fatai.data.blocks import FATDataLoaders
from fatai.data.labels import multi_hot
from fatai.inference import plots
from fatai.inference.clips import clip_at
from fatai.inference.embeddings import Embeddings, embed_clips
from fatai.inference.predictions import Predictions
from fatai.inference.predictor import Predictor
from fatai.inference.tta import (
    TagScores,
    build_views,
    names_and_paths,
    predict_clip,
    predict_files,
    with_priors,
)
from fatai.inference.views import Views
from fatai.metrics.classification import main_score
from fatai.registry import EXPORTS, REPORTS
from fatai.training.learner import (
    TagLearner,
    add_callbacks,
    build_model,
    check_options,
    decay_layers,
    layer_groups,
    named_loss,
)
from fatai.training.metrics import default_metric
from fatai.training.optimizer import FusedAdam
from fatai.training.precision import learner_precision

__all__ = ["FatLearner", "fat_learner"]


class FatLearner(TagLearner):
    """A fastai `Learner` for audio tagging: it trains, predicts sound files, and shows what it learned.

    Made by `fat_learner`. `learn.tags` are the names of the outputs, `learn.clip_config` how clips are read. Where
    `learn.calibration` is set, `predict` and `tta` return calibrated probabilities.
    """

    def predict(
        self,
        item: str | Path | np.ndarray | Tensor | tuple[np.ndarray | Tensor, int],
        sr: int | None = None,
        *,
        n: int | None = None,
        views: str = "even",
        average: str = "probs",
        **options: Any,
    ) -> TagScores:
        """Predict the tags of one clip.

        Parameters
        ----------
        item
            A path; or an array or tensor (samples,) or (1, samples), integers or floats within [-1, 1]; or such
            samples and their rate, `(samples, sr)`.
        sr
            Rate of the samples in Hz; None is that of a `TensorWave`, or else the learner's.
        n, views, average, options
            Views, as in `tta`.

        Returns
        -------
        All tags as `TagScore(tag, prob)`, best first; never empty, however low the probabilities are.

        Raises
        ------
        AudioError
            If the file cannot be read.
        ShapeError, OptionError
            If samples have another shape, or `sr` is not above 0 or given for a path.
        """
        clip = clip_at(item, sr, self.clip_config.sr)
        predictor = learner_predictor(self, build_views(views, n, **options), average=average)
        return TagScores.sorted(
            self.tags, predict_clip(predictor, clip, self.tags, self.dls.prior, self.calibration)
        )

    def tta(
        self,
        ds_idx: int = 1,
        dl: Any = None,
        *,
        n: int | None = None,
        views: str = "even",
        items: Any = None,
        bs: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
        average: str = "probs",
        save_views: str | os.PathLike[str] | None = None,
        desc: str = "predicting",
        **options: Any,
    ) -> Predictions:
        """Predict clips by the mean over several views of each (test-time augmentation).

        Parameters
        ----------
        ds_idx, dl, items
            Which clips: a part of the data loaders (1 is the validation part), another loader, or a list of paths or a
            table with a column `path`.
        n, views, options
            Number and kind (a name of `VIEWS`) of the views, and options of the kind: `learn.tta(views="tiles",
            step_s=0.5)`. None takes the kind's default number, 8 for "even". More views score a little better and take
            longer.
        bs, num_workers
            Views per batch and processes that read clips; None takes those of the loaders.
        seed
            Seed of random views; the same seed gives the same views of the same clip.
        average
            "probs" averages the probabilities of the views; "logits" averages their logits and takes the probabilities
            of that.
        save_views
            An .npz file for the probabilities of every view, which `load_views` reads.
        desc
            Text beside the progress bar.

        Returns
        -------
        `Predictions` with one row per clip, in the clips' order, calibrated if the learner has a `calibration`. A clip
        that cannot be read or is silent gets the fraction of training clips with each tag; a warning lists such clips,
        and so do `unreadable` and `silent`. Predictions of the validation part carry their lwlrap as `oof_score`, which
        `ensemble` can weight them by.
        """
        names, paths = names_and_paths(self._items(ds_idx, dl) if items is None else items)
        predictor = learner_predictor(
            self, build_views(views, n, **options), bs=bs or self.dls.bs, seed=seed, average=average, group=self.group,
            num_workers=self.dls.loaders[0].fake_l.num_workers if num_workers is None else num_workers,
        )
        output = predict_files(predictor, names, paths, self.tags, save_views=save_views, desc=desc)
        preds = with_priors(names, self.tags, output, self.dls.prior() if output.errors or output.silent else None)
        if self.calibration is not None:
            preds = preds.calibrated(self.calibration)
        return self._with_oof_score(preds) if dl is None and items is None and ds_idx == 1 else preds

    def get_tta_preds(self, ds_idx: int = 1, dl: Any = None, **options: Any) -> tuple[Tensor, Tensor | None]:
        """Predict as `tta` does, in the form of fastai's `Learner.tta`: `preds, targs = learn.get_tta_preds()`.

        Parameters
        ----------
        ds_idx, dl
            Part of the loaders, or another loader.
        options
            Of `tta`.

        Returns
        -------
        Probabilities and multi-hot targets, both float32 (clips, tags); None in place of targets that `dl` lacks.
        """
        probs = torch.tensor(self.tta(ds_idx, dl, **options).probs, dtype=torch.float32)
        items = options.get("items")
        items = self._items(ds_idx, dl) if items is None else items
        if not isinstance(items, pd.DataFrame) or "labels" not in items.columns:
            return probs, None
        return probs, torch.tensor(multi_hot(items["labels"], self.tags), dtype=torch.float32)

    def embed(
        self, items: Any, *, n: int | None = None, views: str = "even", bs: int | None = None, **options: Any
    ) -> Embeddings:
        """Compute features of clips with the learner's network, the mean over the views of each.

        Parameters
        ----------
        items
            Paths, one path, or a table with a column `path`.
        n, views, bs, options
            As in `embed_clips`.

        Returns
        -------
        `Embeddings` with float32 values (clips, features); a row of NaN for a clip that cannot be read.
        """
        return embed_clips(
            self.model, self.clip_config, items, n=n, views=views, precision=learner_precision(self),
            bs=bs or self.dls.bs, **options,
        )

    def plot_lwlrap(
        self,
        preds: Predictions | None = None,
        *,
        max_tags: int = 40,
        figsize: tuple[float, float] | None = None,
        **options: Any,
    ) -> Any:
        """Draw the lwlrap of each tag on the validation clips, lowest first, with 95 % intervals and numbers of clips.

        Parameters
        ----------
        preds
            Predictions of the validation clips; None computes them.
        max_tags
            Tags drawn at most.
        figsize
            Width and height in inches.
        options
            Of `tta`, if it computes the predictions.

        Returns
        -------
        The matplotlib axis.
        """
        return plots.plot_lwlrap(self, self.tta(**options) if preds is None else preds, max_tags, figsize)

    def plot_top_losses(self, k: int = 8, *, largest: bool = True, ds_idx: int = 1, **kwargs: Any) -> Any:
        """Draw the `k` clips of a part of the loaders with the largest (or smallest) losses.

        Parameters
        ----------
        k
            Clips drawn at most.
        largest
            False draws the clips with the smallest losses.
        ds_idx
            Part of the loaders: 0 training, 1 validation.
        kwargs
            `nrows`, `ncols` and `figsize`.

        Returns
        -------
        The list of axes.
        """
        return plots.draw_top_losses(self, k, largest, ds_idx, **kwargs)

    def show_cam(
        self,
        n: int = 4,
        *,
        tag: str | None = None,
        items: Any = None,
        ds_idx: int = 1,
        figsize: tuple[float, float] | None = None,
    ) -> np.ndarray:
        """Draw spectrograms of clips (top) and the evidence for a tag in them (bottom, orange), by Grad-CAM.

        Parameters
        ----------
        n
            Clips drawn at most.
        tag
            The tag to explain; None takes the likeliest tag of each clip.
        items, ds_idx
            Paths of clips, or the part of the data loaders whose first clips are drawn; the first 10 seconds of each.
        figsize
            Width and height in inches.

        Returns
        -------
        Array of axes, shape (2, n).

        Raises
        ------
        OptionError
            If there is no such tag, or the network has no feature maps of convolutions.
        """
        return plots.show_cam(self, n, tag, items, ds_idx, figsize)

    def show_augs(self, n: int = 4, *, figsize: tuple[float, float] | None = None) -> np.ndarray:
        """Draw `n` training clips before (top) and after (bottom) this learner's augmentation, with their tags.

        Parameters
        ----------
        n
            Number of clips.
        figsize
            Width and height in inches; None suits `n`.

        Returns
        -------
        Array of axes, shape (2, n).

        Raises
        ------
        DataError
            If there are fewer than `n` training clips.
        """
        return show_augs(self.dls, augmentation_callbacks(self), n, figsize=figsize)

    def plot_filters(self, n: int = 64, *, figsize: tuple[float, float] | None = None) -> Any:
        """Draw the first `n` filters of the first convolution as patches of a spectrogram, and return the axis.

        Each filter is divided by its largest weight.
        """
        return plots.plot_filters(self, n, figsize)

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        training: Mapping[str, Any] | None = None,
        reference: str | os.PathLike[str] | None = None,
    ) -> Path:
        """Write the network as a model folder, which `load_pretrained` reads without pickle.

        Parameters
        ----------
        folder
            A new or empty folder, or a model folder to replace.
        training
            Notes on the training, beside what the learner records itself.
        reference
            A sound, of which at most 10 s become the reference clip; None synthesizes one.

        Returns
        -------
        The folder.

        Raises
        ------
        OptionError
            If the loss maps logits to probabilities otherwise than by the sigmoid.
        CheckpointError
            If the model was not built by name, or the folder holds other files.
        """
        return EXPORTS.build("folder", self, folder, training=training, reference=reference)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        preds: Predictions | None = None,
        dataset: str | None = None,
        license: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        reference: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> str:
        """Upload the network to the Hugging Face Hub, as a model folder with a card that shows its validation scores.

        Parameters
        ----------
        repo_id
            Repository, owner/name, which `load_pretrained(repo_id)` loads; it is created if there is none.
        preds
            Predictions of the validation clips without calibration; None computes them, unless there are no such clips.
        dataset, license
            Name of the training data and license of the model, such as "cc-by-4.0", for the card, which otherwise says
            that they are missing.
        private
            Whether a new repository is visible to its owner only; None is the owner's default.
        token
            Of an account that may write the repository; None is that of `HF_TOKEN` or of `hf auth login`.
        reference
            As in `save_pretrained`.
        options
            Of `tta`, if it computes the predictions.

        Returns
        -------
        The commit, for `load_pretrained(repo_id, revision=...)`.

        Raises
        ------
        OptionError
            If `repo_id` is not of the form owner/name, or as in `save_pretrained`.
        CheckpointError
            If the model was not built by name, or the repository holds a file that could be code.
        DataError
            If the server cannot be reached or refuses.
        MissingDependencyError
            If huggingface_hub is not installed.
        """
        return EXPORTS.build(
            "hub", self, repo_id, preds=preds, tta=options, dataset=dataset, license=license, private=private,
            token=token, reference=reference,
        )

    def report(
        self, path: str | Path = "report.html", *, preds: Predictions | None = None, **options: Any
    ) -> Path:
        """Write one HTML file about the validation clips: scores, confusions, example clips with players, curves.

        Parameters
        ----------
        path
            The file to write.
        preds
            Predictions of the validation clips; None computes them.
        options
            Of `tta`, if it computes the predictions, such as `n=1` for the middle of each clip alone.

        Returns
        -------
        The path.
        """
        return REPORTS.build("learner", self, path, preds=preds, **options)

    def _items(self, ds_idx: int, dl: Any) -> Any:
        return (self.dls.loaders[ds_idx] if dl is None else dl).dataset.items

    def _with_oof_score(self, preds: Predictions) -> Predictions:
        """Add the score of predictions of the validation part; NaN, where no clip has a tag, becomes None."""
        score = main_score(preds.probs, multi_hot(self.dls.files(1)["labels"], self.tags))
        return replace(preds, oof_score=None if np.isnan(score) else score)


def learner_predictor(learn: TagLearner, views: Views, **options: Any) -> Predictor:
    """Return a predictor with the network, front end, loss activation and precision of a learner.

    Parameters
    ----------
    views
        The views of a clip.
    options
        Of `Predictor`: `bs`, `num_workers`, `seed`, `average`, `group`.
    """
    return Predictor(
        learn.model, learn.clip_config, views, len(learn.tags), to_spec=learn.dls.to_spec, activation=learn.activation,
        precision=learner_precision(learn), device=learn.dls.device, **options,
    )


@delegates(Learner.__init__)
def fat_learner(
    dls: FATDataLoaders,
    arch: str | Callable[..., nn.Module] | nn.Module | None = None,
    *,
    pretrained: bool | str | os.PathLike[str] | None = None,
    width: float | None = None,
    arch_options: dict[str, Any] | None = None,
    loss_func: str | nn.Module | Callable = "bce",
    loss_options: dict[str, Any] | None = None,
    metrics: Any = None,
    no_weight_decay: str = "norm_and_bias",
    layer_decay: float | None = None,
    precision: str = "auto",
    mixup: str | Callback | None = None,
    spec_augment: str | Callback | None = None,
    augment: Sequence[str | Callback] = (),
    cbs: Any = None,
    **kwargs: Any,
) -> FatLearner:
    """Create a learner for audio tagging.

    Parameters
    ----------
    dls
        Loaders of `FATDataLoaders`; the number of input channels and the tags come from them.
    arch
        A name of `MODELS`; a function of (n_tags, in_channels); or a module from (batch, channels, mels, frames) to
        logits (batch, tags). None takes "m3", and without `width` a quarter of its channels up to 2,000 training clips,
        half of them up to 10,000. `learn.fit_default()` fits such a learner well.
    pretrained
        Weights to start from, for a named model that has published ones: True for its own, which are downloaded into
        the user's cache if they are not there; a name of `fatai.models.weights.WEIGHTS`; or the path of a file. The
        last layer is new unless the tags are as many as in the file. Published weights belong to one front end, such as
        `FATDataLoaders.from_path(path, front_end="efficientat")` for "mn04"; with another one there is a warning.
        Batch norms keep the stored means and variances in training (`FreezeBatchNorm`), and `freeze` freezes them too;
        `train_bn=True` trains them as fastai does.
    width
        Factor for the channels of a named model; below 1 for a smaller network. None leaves it as published.
    arch_options, loss_options
        Further options of the named model and of the named loss.
    loss_func
        A name of `LOSSES`, or any loss of (logits, targ), both (batch, tags).
    metrics
        Metrics of the table of epochs; None computes lwlrap over the whole validation set, or with one tag, for which
        lwlrap is always 1, the average precision.
    no_weight_decay
        Parameters without weight decay, a key of `NO_WEIGHT_DECAY`.
    layer_decay
        Factor of the learning rate from each layer to the one before it, see `LayerDecay`; None for the same rate.
    precision
        Of training and prediction: "auto" takes the fastest that the device supports well, "fp32" full precision,
        "bf16" or "fp16" that one.
    mixup, spec_augment, augment
        Augmentation of training batches: names of `MIXERS` and `AUGMENTATIONS`, or such callbacks.
    cbs
        Further callbacks.
    opt_func
        Optimizer; `FusedAdam` unless given, which takes the steps of fastai's Adam in one pass over memory.
    splitter
        Function from the model to groups of parameters, on which `freeze`, `unfreeze`, `fine_tune` and `slice(lr)` act;
        those of the model's `layer_groups`, body and head, unless given; with `layer_decay` those of its `layers`.
    path
        Folder that the learner writes to, for instance below `models/`; the current folder, not that of the data.

    Raises
    ------
    UnknownNameError
        If there is no such arch, loss or augmentation.
    OptionError
        If an option is not one that it takes, or there are no published weights for `arch`.
    CheckpointError
        If the weights do not fit, or are not on this machine and cannot be downloaded.
    DataError
        If `dls` are not `FATDataLoaders`.
    """
    check_options(dls, no_weight_decay)
    # fastai's default is the folder of the data, which may be read-only or shared.
    kwargs.setdefault("path", Path())
    kwargs.setdefault("opt_func", FusedAdam)
    kwargs.setdefault("splitter", layer_groups if layer_decay is None else decay_layers)
    train_bn = kwargs.setdefault("train_bn", not pretrained)
    for_weights = [] if layer_decay is None else [LayerDecay(layer_decay)]
    for_weights += [FreezeBatchNorm()] if pretrained and not train_bn else []
    model = build_model(dls, arch, width=width, pretrained=pretrained, options=arch_options)
    loss = named_loss(loss_func, model, **(loss_options or {}))
    metrics = default_metric(len(dls.tags)) if metrics is None else metrics
    learn = FatLearner(dls, model, loss_func=loss, metrics=metrics, **kwargs)
    learn.no_weight_decay = no_weight_decay
    return add_callbacks(learn, precision, augment=(spec_augment, *augment), mixup=mixup, cbs=[*for_weights, *L(cbs)])
