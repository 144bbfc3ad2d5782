"""Trained models that predict: `load_pretrained` loads what `learn.save_pretrained` or `learn.push_to_hub` wrote."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fatai.audio.stream import Sound
from fatai.data.config import ClipConfig
from fatai.device import inference_device
from fatai.errors import CheckpointError, OptionError
from fatai.export.config import ModelConfig
from fatai.export.files import CONFIG
from fatai.export.hub import check_repo_id, download_model_folder, is_repo_id, upload_model_folder
from fatai.export.model_card import model_card
from fatai.export.model_folder import config_values, load_model, save_model_folder
from fatai.inference.clips import clip_at
from fatai.inference.embeddings import Embeddings, embed_clips
from fatai.inference.events.segments import SoundEvent
from fatai.inference.events.tagger import SlidingWindowTagger, weights_digest
from fatai.inference.predictions import Predictions
from fatai.inference.predictor import Predictor
from fatai.inference.tta import TagScores, build_views, names_and_paths, predict_clip, predict_files, with_priors
from fatai.metrics.calibration import Calibration
from fatai.training.autocast import fast_layout

__all__ = ["Pretrained", "is_model_folder", "load_pretrained"]


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A trained model with its tags and the settings of its inputs; returned by `load_pretrained`.

    Attributes
    ----------
    model
        On its device, in evaluation mode; `fat_learner(dls, arch=pretrained.model)` continues training it.
    tags
        Meaning of the logits, in their order.
    settings
        How clips are read and turned into spectrograms.
    prior
        Fraction of the training clips that have each tag, shape (tags,), in [0, 1].
    calibration
        Applied by `tta`; None if there is none.
    training, versions
        Notes on the training and versions of packages, as stored in the folder.
    precision
        A name in `fatai.training.autocast.PRECISIONS`, used for predictions.
    """

    model: nn.Module
    tags: tuple[str, ...]
    settings: ClipConfig
    prior: np.ndarray
    calibration: Calibration | None
    training: Mapping[str, Any]
    versions: Mapping[str, str]
    precision: str = "fp32"

    @property
    def device(self) -> torch.device:
        """Device of the model's parameters."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    def digest(self) -> str:
        """Return the SHA-256 of the weights and the clip settings, in hexadecimal."""
        return weights_digest([self.model], repr(self.settings))

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
        """Predict the tags of one clip, a path or samples; parameters, result and errors are those of `learn.predict`.

        The probabilities are calibrated if the model has a calibration.
        """
        clip = clip_at(item, sr, self.settings.sr)
        predictor = Predictor(
            self.model, self.settings, build_views(views, n, **options), len(self.tags), precision=self.precision,
            average=average,
        )
        return TagScores.sorted(
            self.tags, predict_clip(predictor, clip, self.tags, lambda: self.prior, self.calibration)
        )

    def tag(
        self,
        sound: Sound,
        sr: int | None = None,
        *,
        threshold: float | Mapping[str, float] | None = None,
        top: int | None = None,
        **options: Any,
    ) -> list[SoundEvent]:
        """Detect the sound events of a recording of any length; `pd.DataFrame(events)` is a table of them.

        Parameters
        ----------
        sound, sr, threshold, top
            As in `SlidingWindowTagger.tag`.
        options
            Of `SlidingWindowTagger`, such as `step_s`.

        Returns
        -------
        The events with start and end in seconds, sorted by start.

        Raises
        ------
        AudioError
            If the file cannot be read to its end.
        ShapeError, OptionError
            If the samples or an option are invalid.
        """
        return self.tagger(**options).tag(sound, sr, threshold=threshold, top=top)

    def tta(
        self,
        items: Any,
        *,
        n: int | None = None,
        views: str = "even",
        bs: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        average: str = "probs",
        save_views: str | os.PathLike[str] | None = None,
        desc: str = "predicting",
        **options: Any,
    ) -> Predictions:
        """Predict clips by the mean over several views of each; the parameters are those of `learn.tta`.

        The result is calibrated if the model has a calibration; unreadable and silent clips get the prior and are
        listed as such.
        """
        names, paths = names_and_paths(items)
        predictor = Predictor(
            self.model, self.settings, build_views(views, n, **options), len(self.tags), precision=self.precision,
            bs=bs, num_workers=num_workers, seed=seed, average=average,
        )
        output = predict_files(predictor, names, paths, self.tags, save_views=save_views, desc=desc)
        preds = with_priors(names, self.tags, output, self.prior)
        return preds if self.calibration is None else preds.calibrated(self.calibration)

    def embed(self, items: Any, *, n: int | None = None, views: str = "even", **options: Any) -> Embeddings:
        """Compute features of clips, the mean over several views of each; the parameters are those of `embed_clips`."""
        return embed_clips(self.model, self.settings, items, n=n, views=views, precision=self.precision, **options)

    def tagger(self, **options: Any) -> SlidingWindowTagger:
        """Return a tagger of recordings of any length; `options` are those of `SlidingWindowTagger`."""
        return SlidingWindowTagger(
            [self.model], self.tags, self.settings, precision=self.precision, calibration=self.calibration,
            prior=self.prior, **options,
        )

    def save(self, folder: str | os.PathLike[str], *, reference: str | os.PathLike[str] | None = None) -> Path:
        """Write a model folder and return it; see `save_model_folder`."""
        return save_model_folder(
            folder, self.model, self.tags, self.settings, self.prior, calibration=self.calibration,
            training=self.training, reference=reference,
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        dataset: str | None = None,
        license: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        reference: str | os.PathLike[str] | None = None,
    ) -> str:
        """Upload the model folder and a model card to the Hugging Face Hub, in one commit.

        The card is written from `training`, and says what is missing there, such as scores. None as `dataset` or
        `license` takes those in `training`. Parameters, result and errors are otherwise those of `learn.push_to_hub`.
        """
        card = self.model_card(repo_id, dataset=dataset, license=license)
        with TemporaryDirectory() as temp:
            folder = self._shared(dataset, license).save(Path(temp, "model"), reference=reference)
            return upload_model_folder(folder, repo_id, card, private=private, token=token)

    def model_card(self, repo_id: str, *, dataset: str | None = None, license: str | None = None) -> str:
        """Return the text of the README.md that `push_to_hub` uploads; parameters and errors as there."""
        check_repo_id(repo_id)
        training = self._shared(dataset, license).training
        config = ModelConfig.from_values(
            **config_values(self.model, self.tags, self.settings, self.prior, self.calibration, training)
        )
        return model_card(config, repo_id, sum(p.numel() for p in self.model.parameters()))

    def _shared(self, dataset: str | None, license: str | None) -> Pretrained:
        """Return this model with notes for others."""
        given = {key: value for key, value in (("dataset", dataset), ("license", license)) if value is not None}
        return replace(self, training=_without_folders({**self.training, **given}))


def is_model_folder(folder: str | os.PathLike[str]) -> bool:
    """Return true if a folder has a config.json, as `save_pretrained` writes it."""
    return os.path.lexists(Path(folder, CONFIG))


def load_pretrained(
    folder: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    device: torch.device | str | None = None,
    precision: str = "fp32",
    calibrate: bool | None = None,
) -> Pretrained:
    """Load a model folder, of this machine or of the Hugging Face Hub; it may be untrusted.

    Parameters
    ----------
    folder
        A folder written by `save_pretrained` or `fatai-submit export`; or a text owner/name that is no folder here, the
        repository of `learn.push_to_hub` or `fatai-submit push`. Its files are downloaded into the cache of
        huggingface_hub, which serves them without a network from then on.
    revision
        Branch, tag or commit of the repository; None is the branch main. A whole commit is always the same model.
    token
        Of an account that may read the repository; None is that of `HF_TOKEN` or of `hf auth login`, False none.
    device
        Device of the network; None takes a GPU if there is one.
    precision
        A name in `fatai.training.autocast.PRECISIONS`, used for predictions; the reference is always computed in
        float32.
    calibrate
        Whether to keep the calibration, which predictions apply; None keeps it if there is one.

    Raises
    ------
    CheckpointError
        If a file is missing, a link, too large or damaged; if another file in the folder could be code; if the config
        has an unknown key or a value out of range; if the weights do not fit the network; if the output for the
        reference clip has drifted; or if it has no calibration although `calibrate` is True.
    OptionError
        If there is a `revision` or `token` for a folder of this machine.
    DataError
        If the repository is not in the cache, and the Hub cannot be reached or refuses.
    MissingDependencyError
        If `folder` is a repository and huggingface_hub is not installed.
    """
    if isinstance(folder, str) and is_repo_id(folder) and not os.path.lexists(folder):
        config, model = _load_repository(folder, revision, token)
    elif revision is not None or token is not None:
        raise OptionError(f"revision and token are for repositories of the Hub, owner/name; {folder} is a folder")
    else:
        config, model = load_model(Path(folder))
    calibration = None if calibrate is False else config.load_calibration()
    if calibrate and calibration is None:
        raise CheckpointError(
            f"{folder} has no calibration; expected a model that was calibrated before it was saved"
        )
    device = inference_device() if device is None else torch.device(device)
    return Pretrained(
        fast_layout(model.to(device), device, precision).eval(),
        config.tags,
        config.clips,
        np.array(config.prior),
        calibration,
        config.training,
        config.versions,
        precision,
    )


def _load_repository(repo_id: str, revision: str | None, token: str | bool | None) -> tuple[ModelConfig, nn.Module]:
    """Download and load a model folder of the Hub; messages name the repository in place of the cache."""
    folder = download_model_folder(repo_id, revision=revision, token=token)
    try:
        return load_model(folder)
    except CheckpointError as e:
        raise CheckpointError(str(e).replace(str(folder), repo_id)) from None


def _without_folders(value: Any) -> Any:
    """Return notes in which an absolute path is its last part: a shared model need not show the author's folders."""
    if isinstance(value, Mapping):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_folders(item) for item in value]
    return Path(value).name if isinstance(value, (str, Path)) and os.path.isabs(value) else value
