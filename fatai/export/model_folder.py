"""The files of a model folder: a network, its config and a reference clip, written and read without pickle.

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
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fatai import __version__
from fatai.audio.io import load_audio, save_audio
from fatai.data.config import ClipConfig
from fatai.errors import CheckpointError, FataiError
from fatai.export.config import ModelConfig, Network
from fatai.export.files import CONFIG, REFERENCE, WEIGHTS, check_files, check_target
from fatai.export.hub import find_cache
from fatai.inference.predictor import Predictor
from fatai.inference.tta import build_views
from fatai.io.atomic import write_text
from fatai.metrics.calibration import Calibration
from fatai.models import create_model
from fatai.models.base import without_memory
from fatai.models.checkpoint import check_weights, load_weights, save_weights
from fatai.models.multi_task import TwoHeadModel

__all__ = ["config_values", "load_model", "save_model_folder", "synthesize_sound"]

MAX_DRIFT = 1e-4
"""Of a probability of the reference clip; a logit may drift by ten times this fraction of the largest logit."""
_MAX_REFERENCE_S = 10.0
_PACKAGES = ("fastai", "torch", "numpy", "soundfile", "soxr", "timm")


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
    values = config_values(model, tags, settings, prior, calibration, training)
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


def load_model(root: Path) -> tuple[ModelConfig, nn.Module]:
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


def config_values(
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
