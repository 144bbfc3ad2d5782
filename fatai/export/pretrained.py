"""Model folders: `learn.save_pretrained(folder)` writes one and `load_pretrained(folder)` reads it, without pickle.

A folder holds `model.safetensors` (weights), `config.json` (everything else, see `ModelConfig`) and `reference.wav`, a
short sound; the config holds the output of the model for it. Loading computes that output again, on the CPU in float32,
and refuses a folder whose output has drifted: the weights or the front end were changed, or a library computes
differently. A folder may be untrusted: file names are fixed, links are refused, sizes are checked before memory is
allocated, and nothing in it is executed.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fatai import __version__
from fatai.audio.io import load_audio, save_audio
from fatai.audio.stream import Sound
from fatai.data.config import ClipConfig
from fatai.data.labels import multi_hot
from fatai.device import inference_device
from fatai.errors import CheckpointError, FataiError, OptionError
from fatai.export.config import ModelConfig, Network
from fatai.export.files import CONFIG, REFERENCE, WEIGHTS, check_files, check_target
from fatai.export.hub import check_repo_id, download_model_folder, find_cache, is_repo_id, upload_model_folder
from fatai.export.model_card import model_card, score_notes
from fatai.inference.clips import clip_at
from fatai.inference.embeddings import Embeddings, embed_clips
from fatai.inference.events.segments import SoundEvent
from fatai.inference.events.tagger import SlidingWindowTagger, weights_digest
from fatai.inference.predictions import Predictions
from fatai.inference.predictor import Predictor
from fatai.inference.tta import TagScores, build_views, names_and_paths, predict_clip, predict_files, with_priors
from fatai.io.atomic import write_text
from fatai.metrics.calibration import Calibration
from fatai.models import create_model
from fatai.models.base import without_memory
from fatai.models.checkpoint import check_weights, load_weights, save_weights
from fatai.models.multi_task import TwoHeadModel
from fatai.models.weights import find_published
from fatai.registry import EXPORTS
from fatai.training.autocast import fast_layout

if TYPE_CHECKING:
    from fatai.inference.learner import FatLearner
    from fatai.training.learner import TagLearner

__all__ = ["Pretrained", "is_model_folder", "load_pretrained", "save_model_folder"]

MAX_DRIFT = 1e-4
"""Of a probability of the reference clip; a logit may drift by ten times this fraction of the largest logit."""
_MAX_REFERENCE_S = 10.0
_PACKAGES = ("fastai", "torch", "numpy", "soundfile", "soxr", "timm")


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
        probs = predict_clip(predictor, clip, self.tags, lambda: self.prior)
        return TagScores.sorted(
            self.tags, probs if self.calibration is None else self.calibration.apply(probs[None])[0]
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
            **_config_values(self.model, self.tags, self.settings, self.prior, self.calibration, training)
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
        config, model = _load_folder(Path(folder))
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
        return _load_folder(folder)
    except CheckpointError as e:
        raise CheckpointError(str(e).replace(str(folder), repo_id)) from None


def _load_folder(root: Path) -> tuple[ModelConfig, nn.Module]:
    """Load and check a model folder; the files of one in the cache of the Hub may be links into the cache."""
    check_files(root, cache=find_cache(root))
    config = ModelConfig.read(root / CONFIG)
    model = _build_checked(root, config)
    load_weights(root / WEIGHTS, model)
    _check_drift(root, config, _reference_logits(root, config, model))
    return config, model


def _build_checked(root: Path, config: ModelConfig) -> nn.Module:
    """Build the network, after the weights file has been seen to have tensors of its names and shapes."""
    try:
        # On the meta device tensors take no memory: a config cannot allocate more than its weights file holds.
        with without_memory():
            check_weights(root / WEIGHTS, _build_network(config))
        return _build_network(config)
    except CheckpointError:
        raise
    except (FataiError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise CheckpointError(
            f"{root / CONFIG}: the network {config.network.arch!r} cannot be built: {str(e)[:300]}"
        ) from None


def save_model_folder(
    folder: str | os.PathLike[str],
    model: nn.Module,
    tags: tuple[str, ...],
    settings: ClipConfig,
    prior: np.ndarray,
    *,
    calibration: Calibration | None = None,
    training: Mapping[str, Any] | None = None,
    reference: str | os.PathLike[str] | None = None,
) -> Path:
    """Write a model folder, replacing an earlier one.

    Parameters
    ----------
    folder
        A new or empty folder, or a model folder.
    model
        A network built by name: by `create_model`, `fat_learner(dls, arch="...")` or a recipe.
    tags
        Meaning of its logits.
    settings
        How clips are read and turned into spectrograms.
    prior
        Fraction of the training clips that have each tag, shape (tags,), in [0, 1].
    calibration
        Stored for the tags of the model; None if there is none.
    training
        Notes on the training that JSON can hold.
    reference
        A sound file, of which at most 10 s become the reference clip; None synthesizes one, which has no license of
        others.

    Returns
    -------
    The folder.

    Raises
    ------
    CheckpointError
        If the model was not built by name, or was changed afterwards; or if the folder holds other files.
    """
    root = Path(folder)
    check_target(root)
    values = _config_values(model, tags, settings, prior, calibration, training)
    config = ModelConfig.from_values(**values)
    # A folder without a config is not a model folder: an interrupted save leaves nothing that looks complete.
    (root / CONFIG).unlink(missing_ok=True)
    save_weights(root / WEIGHTS, model, {})
    sound = (
        synthesize_sound(settings)
        if reference is None
        else load_audio(reference, settings.sr, duration_s=_MAX_REFERENCE_S, channel=settings.channel)
    )
    save_audio(root / REFERENCE, sound, settings.sr, subtype="PCM_16")
    # Computed by a network that is built and loaded from the files, which proves that they are complete.
    rebuilt = _build_network(config)
    load_weights(root / WEIGHTS, rebuilt)
    logits = _reference_logits(root, config, rebuilt)
    write_text(root / CONFIG, ModelConfig.from_values(**values, logits=tuple(logits.tolist())).to_json())
    return root


def _config_values(
    model: nn.Module,
    tags: tuple[str, ...],
    settings: ClipConfig,
    prior: np.ndarray,
    calibration: Calibration | None,
    training: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the values of a config but the logits."""
    return {
        "network": _describe_network(model),
        "clips": settings,
        "tags": tuple(tags),
        "prior": tuple(float(p) for p in prior),
        "calibration": None if calibration is None else calibration.select(tags).to_dict(),
        "training": dict(training or {}),
        "versions": _versions(),
    }


@EXPORTS.register("folder", source="own design")
def save_learner(
    learn: TagLearner,
    folder: str | os.PathLike[str],
    *,
    training: Mapping[str, Any] | None = None,
    reference: str | os.PathLike[str] | None = None,
) -> Path:
    """Write the network of a learner as a model folder; `learn.save_pretrained` calls this.

    Parameters
    ----------
    learn
        A learner whose loss maps logits to probabilities by the sigmoid.
    folder, reference
        As in `save_model_folder`.
    training
        Notes on the training, beside loss, numbers of clips and the metrics of the last epoch, which are stored anyway.

    Raises
    ------
    OptionError
        If the loss maps logits to probabilities by another function.
    CheckpointError
        As in `save_model_folder`.
    """
    activation, probe = getattr(learn.loss_func, "activation", torch.sigmoid), torch.linspace(-4, 4, 9)[None]
    if not torch.allclose(activation(probe), probe.sigmoid()):
        raise OptionError(
            f"the loss {type(learn.loss_func).__name__} maps logits to probabilities by another function than the "
            "sigmoid; a model folder supports only the sigmoid"
        )
    return save_model_folder(
        folder, learn.model, learn.tags, learn.clip_config, learn.dls.prior(), calibration=learn.calibration,
        training={**_training_notes(learn), **(training or {})}, reference=reference,
    )


@EXPORTS.register("hub", source="own design")
def push_learner(
    learn: FatLearner, repo_id: str, *, preds: Predictions | None = None, tta: Mapping[str, Any], **options: Any
) -> str:
    """Upload the network of a learner as a model folder with a card; `learn.push_to_hub` calls this.

    Parameters
    ----------
    preds
        Predictions of the validation clips without calibration, whose scores the card shows; None computes them, unless
        there are no such clips.
    tta
        Options of `learn.tta`, if it computes the predictions.
    options
        Of `Pretrained.push_to_hub`.
    """
    check_repo_id(repo_id)
    if preds is None and len(learn.dls.valid_ds):
        calibration, learn.calibration = learn.calibration, None  # it was fitted on such clips
        try:
            preds = learn.tta(**tta)
        finally:
            learn.calibration = calibration
    scores = [] if preds is None else _validation_scores(learn, preds)
    with TemporaryDirectory() as temp:
        folder = save_learner(learn, Path(temp, "model"), training={"scores": scores})
        return load_pretrained(folder, device="cpu").push_to_hub(repo_id, **options)


def _validation_scores(learn: FatLearner, preds: Predictions) -> list[dict[str, Any]]:
    clips = learn.dls.files(1)
    labels = dict(zip(clips["fname"], clips["labels"], strict=True))
    scored = preds.select([name for name in preds.fnames if name in labels], learn.tags)
    targ = multi_hot([labels[name] for name in scored.fnames], learn.tags)
    return score_notes(scored.probs, targ, "validation clips")


def _without_folders(value: Any) -> Any:
    """Return notes in which an absolute path is its last part: a shared model need not show the author's folders."""
    if isinstance(value, Mapping):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_folders(item) for item in value]
    return Path(value).name if isinstance(value, (str, Path)) and os.path.isabs(value) else value


def _training_notes(learn: TagLearner) -> dict[str, Any]:
    """Return loss, initial weights, numbers of clips and the metrics of the last epoch."""
    built = getattr(learn.model, "built_as", None)
    notes: dict[str, Any] = {
        "loss": type(learn.loss_func).__name__,
        **({} if built is None else initial_weights(built.arch, built.options.get("pretrained"))),
        "train_clips": len(learn.dls.train_ds),
        "valid_clips": len(learn.dls.valid_ds),
    }
    record = getattr(learn, "final_record", None)
    if record:
        names = ["train_loss", "valid_loss", *(m.name for m in learn.metrics)]
        notes["last_epoch"] = {
            name: float(value)
            for name, value in zip(names, record, strict=False)  # a fit without validation records fewer
            if value is not None and np.isfinite(value)
        }
    return notes


def initial_weights(arch: str, pretrained: bool | str | os.PathLike[str] | None) -> dict[str, str]:
    """Return the note `pretrained` on the weights that a network was built with; empty if there are none."""
    if not pretrained or not isinstance(pretrained, (bool, str, os.PathLike)):
        return {}
    published = find_published(arch, pretrained)
    if published is None:
        return {"pretrained": "its published weights" if isinstance(pretrained, bool) else Path(pretrained).name}
    return {"pretrained": f"{published.name} ({published.trained_on}, license {published.license})"}


def _describe_network(model: nn.Module) -> Network:
    inner = model.model if isinstance(model, TwoHeadModel) else model
    built = getattr(inner, "built_as", None)
    if built is None:
        raise CheckpointError(
            f"the network is a {type(inner).__name__} that was not built by name, so a folder cannot hold how to "
            "build it again; give fat_learner the name of a registered model (@MODELS.register adds yours)"
        )
    return Network.from_built(built, isinstance(model, TwoHeadModel))


def _build_network(config: ModelConfig) -> nn.Module:
    """Build the network with initial weights on the current default device."""
    n_tags, network = len(config.tags), config.network
    channels = int(config.clips.channels_module().n_channels)  # type: ignore[arg-type]
    model = create_model(network.arch, n_tags * (2 if network.two_heads else 1), channels, **network.options)
    return (TwoHeadModel(model, n_tags) if network.two_heads else model).eval()


def _reference_logits(root: Path, config: ModelConfig, model: nn.Module) -> np.ndarray:
    """Return the logits (tags,) of the middle crop of the reference clip, float64, computed on the CPU.

    The clip is read and trimmed as every other clip; it has one channel, whichever is taken of others.
    """
    try:
        output = Predictor(
            model, replace(config.clips, channel="mean"), build_views("even", 1), len(config.tags), device="cpu",
            activation=_identity,
        ).predict([root / REFERENCE], desc="reference")
    except (FataiError, RuntimeError) as e:
        raise CheckpointError(f"{root}: the network cannot be run on the reference clip: {e}") from None
    if output.errors:
        raise CheckpointError(f"{root}: the reference clip cannot be read: {output.errors[0]}")
    if not np.isfinite(output.probs).all():
        raise CheckpointError(
            f"{root}: the network's output for the reference clip is not finite; its weights or front end are broken"
        )
    return output.probs[0]


def _identity(logits: Tensor) -> Tensor:
    return logits


def _check_drift(root: Path, config: ModelConfig, logits: np.ndarray) -> None:
    """Raise `CheckpointError` if logits (tags,) differ from those of the config."""
    if not config.logits:
        raise CheckpointError(
            f"{root / CONFIG} holds no logits of the reference clip; expected a file of save_pretrained"
        )
    stored = np.array(config.logits)
    # A difference of sigmoids, by tanh, which never overflows.
    drift = float(np.abs(np.tanh(logits / 2) - np.tanh(stored / 2)).max() / 2)
    # Where all probabilities are close to 0, only the logits show a difference.
    logit_drift = float(np.abs(logits - stored).max() / max(1.0, np.abs(stored).max()))
    if drift > MAX_DRIFT or logit_drift > 10 * MAX_DRIFT:
        versions = ", ".join(f"{k} {v}" for k, v in sorted(config.versions.items())[:10])
        raise CheckpointError(
            f"{root}: the scores of the reference clip have drifted by {drift:.2g} (logits by {logit_drift:.2g} of the "
            f"largest); expected at most {MAX_DRIFT:g}: a file was changed, or a package computes differently than it "
            f"did (made with {versions[:300]})"
        )


def synthesize_sound(settings: ClipConfig) -> Tensor:
    """Return a rising tone with bursts of noise, shape (samples,), in [-1, 1]: energy in all bands, loud and quiet."""
    samples = max(2, min(settings.crop_samples, round(_MAX_REFERENCE_S * settings.sr)))
    t = torch.arange(samples, dtype=torch.float64) / samples
    cycles = samples * t * (0.001 + 0.2 * t)
    noise = torch.randn(samples, generator=torch.Generator().manual_seed(2019), dtype=torch.float64)
    return (0.3 * (2 * torch.pi * cycles).sin() + 0.15 * noise * (-5 * (4 * t % 1)).exp()).clamp(-0.99, 0.99).float()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "fatai": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
