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
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fatai import __version__
from fatai.audio.io import audio_info, load_audio, save_audio
from fatai.data.config import ClipConfig
from fatai.errors import AudioError, CheckpointError, FataiError, OptionError
from fatai.export.config import ModelConfig, Network
from fatai.inference.embeddings import Embeddings, embed_clips
from fatai.inference.events.tagger import SlidingWindowTagger, weights_digest
from fatai.inference.predictions import Predictions
from fatai.inference.predictor import Predictor
from fatai.inference.tta import build_views, names_and_paths, predict_files, with_priors
from fatai.io.atomic import write_text
from fatai.metrics.calibration import Calibration
from fatai.models import create_model
from fatai.models.checkpoint import check_weights, load_weights, save_weights
from fatai.models.multi_task import TwoHeadModel
from fatai.registry import EXPORTS
from fatai.training.learner import TagLearner
from fatai.training.precision import fast_layout

__all__ = ["Pretrained", "is_model_folder", "load_pretrained", "save_model_folder"]

WEIGHTS, CONFIG, REFERENCE = FILES = ("model.safetensors", "config.json", "reference.wav")
MAX_DRIFT = 1e-4
"""Of a probability of the reference clip; a logit may drift by ten times this fraction of the largest logit."""
_MAX_WEIGHTS_BYTES = 1 << 32
_MAX_CONFIG_BYTES = 1 << 62  # checked when it is read
_MAX_REFERENCE_BYTES = 1 << 25
_MAX_REFERENCE_S = 10.0
_CODE_SUFFIXES = frozenset(
    {".bin", ".ckpt", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth", ".py", ".so"}
)
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
        A name in `fatai.training.precision.PRECISIONS`, used for predictions.
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

        The result is calibrated if the model has a calibration; unreadable clips get the prior and are listed as
        unreadable.
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
            [self.model], self.tags, self.settings, precision=self.precision, calibration=self.calibration, **options
        )

    def save(self, folder: str | os.PathLike[str], *, reference: str | os.PathLike[str] | None = None) -> Path:
        """Write a model folder and return it; see `save_model_folder`."""
        return save_model_folder(
            folder, self.model, self.tags, self.settings, self.prior, calibration=self.calibration,
            training=self.training, reference=reference,
        )


def is_model_folder(folder: str | os.PathLike[str]) -> bool:
    """Return true if a folder has a config.json, as `save_pretrained` writes it."""
    return os.path.lexists(Path(folder, CONFIG))


def load_pretrained(
    folder: str | os.PathLike[str],
    *,
    device: torch.device | str | None = None,
    precision: str = "fp32",
) -> Pretrained:
    """Load a model folder, which may be untrusted.

    Parameters
    ----------
    folder
        A folder written by `save_pretrained` or `fatai-submit export`.
    device
        Device of the network; None takes a GPU if there is one.
    precision
        A name in `fatai.training.precision.PRECISIONS`, used for predictions; the reference is always computed in
        float32.

    Raises
    ------
    CheckpointError
        If a file is missing, a link, too large or damaged; if another file in the folder could be code; if the config
        has an unknown key or a value out of range; if the weights do not fit the network; or if the output for the
        reference clip has drifted.
    """
    root = Path(folder)
    _check_files(root)
    config = ModelConfig.read(root / CONFIG)
    model = _build_checked(root, config)
    load_weights(root / WEIGHTS, model)
    _check_drift(root, config, _reference_logits(root, config, model))
    device = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    return Pretrained(
        fast_layout(model.to(device), device, precision).eval(),
        config.tags,
        config.clips,
        np.array(config.prior),
        config.load_calibration(),
        config.training,
        config.versions,
        precision,
    )


def _build_checked(root: Path, config: ModelConfig) -> nn.Module:
    """Build the network, after the weights file has been seen to have tensors of its names and shapes."""
    try:
        # On the meta device tensors take no memory: a config cannot allocate more than its weights file holds.
        with torch.device("meta"):
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
    _check_target(root)
    values: dict[str, Any] = {
        "network": _describe_network(model),
        "clips": settings,
        "tags": tuple(tags),
        "prior": tuple(float(p) for p in prior),
        "calibration": None if calibration is None else calibration.select(tags).to_dict(),
        "training": dict(training or {}),
        "versions": _versions(),
    }
    config = ModelConfig.from_values(**values)
    # A folder without a config is not a model folder: an interrupted save leaves nothing that looks complete.
    (root / CONFIG).unlink(missing_ok=True)
    save_weights(root / WEIGHTS, model, {})
    sound = (
        synthesize_sound(settings)
        if reference is None
        else load_audio(reference, settings.sr, duration_s=_MAX_REFERENCE_S)
    )
    save_audio(root / REFERENCE, sound, settings.sr, subtype="PCM_16")
    # Computed by a network that is built and loaded from the files, which proves that they are complete.
    rebuilt = _build_network(config)
    load_weights(root / WEIGHTS, rebuilt)
    logits = _reference_logits(root, config, rebuilt)
    write_text(root / CONFIG, ModelConfig.from_values(**values, logits=tuple(logits.tolist())).to_json())
    return root


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


def _training_notes(learn: TagLearner) -> dict[str, Any]:
    """Return loss, numbers of clips and the metrics of the last epoch."""
    notes: dict[str, Any] = {
        "loss": type(learn.loss_func).__name__,
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

    The clip is read and trimmed as every other clip.
    """
    try:
        output = Predictor(
            model, config.clips, build_views("even", 1), len(config.tags), device="cpu", activation=_identity
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


def _check_files(root: Path) -> None:
    """Check the files of an untrusted folder before any of them is opened."""
    if not root.is_dir():
        raise CheckpointError(f"{root} is not a folder; expected a model folder with {', '.join(FILES)}")
    limits = (_MAX_WEIGHTS_BYTES, _MAX_CONFIG_BYTES, _MAX_REFERENCE_BYTES)
    for name, max_bytes in zip(FILES, limits, strict=True):
        if not os.path.lexists(root / name):
            raise CheckpointError(f"{root} is not a model folder: it lacks {name}; expected {', '.join(FILES)}")
        _check_file(root / name, max_bytes)
    for entry in os.scandir(root):
        if Path(entry.name).suffix.lower() in _CODE_SUFFIXES:
            raise CheckpointError(
                f"{root} holds {entry.name}, which could be code; no file of the folder was opened. A model folder "
                f"needs only {', '.join(FILES)}: if you trust its author, move the other files away"
            )
    _check_reference(root / REFERENCE)


def _check_file(file: Path, max_bytes: int) -> None:
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode):
        kind = "a link" if stat.S_ISLNK(status.st_mode) else "not a regular file"
        raise CheckpointError(f"{file} is {kind} and was not opened; expected the file itself")
    if status.st_size > max_bytes:
        raise CheckpointError(f"{file} has {status.st_size:,} bytes; expected at most {max_bytes:,}")


def _check_reference(path: Path) -> None:
    try:
        info = audio_info(path)
    except AudioError as e:
        raise CheckpointError(f"the reference clip cannot be read: {e}") from None
    if info.format != "WAV" or info.channels != 1 or info.seconds > 60:
        raise CheckpointError(
            f"{path} is {info.seconds:.0f} s of {info.format} with {info.channels} channels; "
            "expected a WAV of one channel and at most 60 s"
        )


def _check_target(root: Path) -> None:
    """Check that a folder can be written without touching files of others."""
    if root.exists() and not root.is_dir():
        raise CheckpointError(f"{root} is a file; expected the name of a folder")
    others = sorted(entry.name for entry in os.scandir(root) if entry.name not in FILES) if root.is_dir() else []
    if others:
        raise CheckpointError(
            f"{root} holds {others[0]}, which is no part of a model folder; choose a new or empty folder"
        )
    linked = [name for name in FILES if (root / name).is_symlink()]
    if linked:
        raise CheckpointError(
            f"{root / linked[0]} is a link, which would be followed when writing; choose a new or empty folder"
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
