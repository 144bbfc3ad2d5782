"""Model folders: `learn.save_pretrained(folder)` writes one, `load_pretrained(folder)` reads one, and nothing on this road is pickled.

A folder holds `model.safetensors` (weights), `config.json` (all else, see `ModelConfig`) and `reference.wav`, a short sound whose answer
stands in the config. Loading computes that answer anew, on the CPU in float32, and refuses a folder whose answer has drifted: other
weights, another front end, or a library that computes otherwise. A folder may come from a stranger: files have fixed names, links are
refused, sizes are checked before memory is taken, and what is in it is never executed.
"""

from __future__ import annotations

import os
import platform
import stat
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastcore.basics import patch
from torch import Tensor, nn

from fatai import __version__
from fatai.io.atomic import write_text
from fatai.data.blocks import WaveToSpec
from fatai.data.config import ClipConfig
from fatai.errors import AudioError, CheckpointError, FataiError, OptionError
from fatai.inference.embeddings import Embeddings, embed_clips
from fatai.inference.view_store import views_file
from fatai.export.config import ModelConfig, Network
from fatai.inference.predictions import Predictions
from fatai.inference.events.tagger import SlidingWindowTagger, weights_digest
from fatai.inference.tta import build_views, names_and_paths, predict_clips, with_priors
from fatai.models import create_model
from fatai.models.multi_task import TwoHeadModel
from fatai.metrics.calibration import Calibration
from fatai.audio.io import audio_info, load_audio, save_audio
from fatai.models.checkpoint import check_weights, load_weights, save_weights
from fatai.training.learner import FatLearner
from fatai.training.precision import autocast_for, fast_layout

__all__ = ["Pretrained", "is_model_folder", "load_pretrained", "save_model_folder"]

WEIGHTS, CONFIG, REFERENCE = FILES = ("model.safetensors", "config.json", "reference.wav")
MAX_DRIFT = 1e-4
"""Of a probability of the reference clip; a logit may drift by as much of the largest logit, times ten."""
_MAX_WEIGHTS = 1 << 32  # bytes
_MAX_REFERENCE = 1 << 25  # bytes
_LONGEST_S = 10.0
_COULD_BE_CODE = frozenset({".bin", ".ckpt", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth", ".py", ".so"})
_PACKAGES = ("fastai", "torch", "numpy", "soundfile", "soxr", "timm")


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A network that knows its tags and how its clips are read; what `load_pretrained` returns.

    Attributes
    ----------
    model
        On its device, in evaluation; `fat_learner(dls, arch=pretrained.model)` goes on training it.
    prior
        Share of the training clips that had each tag, shape (tags,).
    calibration
        Applied by `tta`; None if there is none.
    training, versions
        What the folder tells of its making.
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
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    def digest(self) -> str:
        """SHA-256 of the weights and of how clips are read."""
        return weights_digest([self.model], repr(self.settings))

    def tta(
        self, items: Any, *, n: int | None = None, how: str = "even", bs: int = 64, num_workers: int = 0, seed: int = 0,
        mean: str = "probs", keep_views: str | os.PathLike[str] | None = None, what: str = "listening", **options: Any,
    ) -> Predictions:
        """Predict clips by the mean over several views of each; arguments are those of `learn.tta`."""
        names, paths = names_and_paths(items)
        with (
            nullcontext() if keep_views is None else views_file(keep_views, names, self.tags, self.settings.sr) as keep
        ):
            answers = predict_clips(
                self.model,
                self.settings,
                paths,
                len(self.tags),
                views=build_views(how, n, **options),
                to_spec=WaveToSpec(self.settings),
                arithmetic=autocast_for(self.device, self.precision),
                bs=bs,
                num_workers=num_workers,
                seed=seed,
                mean=mean,
                keep=keep,
                what=what,
            )
        predicted = with_priors(names, self.tags, answers, self.prior)
        return predicted if self.calibration is None else predicted.calibrated(self.calibration)

    def embed(self, items: Any, *, n: int | None = None, how: str = "even", **options: Any) -> Embeddings:
        """Features of clips, the mean over several views of each; arguments are those of `embed_clips`."""
        return embed_clips(
            self.model,
            self.settings,
            items,
            n=n,
            how=how,
            arithmetic=autocast_for(self.device, self.precision),
            **options,
        )

    def tagger(self, **options: Any) -> SlidingWindowTagger:
        """A tagger of sound of any length; `options` are those of `SlidingWindowTagger`."""
        return SlidingWindowTagger(
            [self.model], self.tags, self.settings, precision=self.precision, calibration=self.calibration, **options
        )

    def save(self, folder: str | os.PathLike[str], *, reference: str | os.PathLike[str] | None = None) -> Path:
        """Write a model folder; see `save_model_folder`."""
        return save_model_folder(folder, self.model, self.tags, self.settings, self.prior, calibration=self.calibration,
                                 training=self.training, reference=reference)


def is_model_folder(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder looks like one of `save_pretrained`."""
    return os.path.lexists(Path(folder, CONFIG))


def load_pretrained(
    folder: str | os.PathLike[str], *, device: torch.device | str | None = None, precision: str = "fp32",
) -> Pretrained:
    """Read a model folder, which may come from a stranger.

    Parameters
    ----------
    device
        Where the network goes; None takes a GPU if there is one.
    precision
        A name of `fatai.training.precision.PRECISIONS`, for predictions; the reference is always replayed in float32.

    Raises
    ------
    CheckpointError
        If a file is missing, a link, too large, damaged or not of its kind; if something beside them could be code; if the config has an
        unknown key or a value out of range; if the weights do not fit the network; or if the reference clip's scores have drifted.
    """
    root = Path(folder)
    _refuse_odd(root)
    config = ModelConfig.read(root / CONFIG)
    try:
        with torch.device("meta"):
            check_weights(root / WEIGHTS, _network(config))
        model = _network(config)
    except CheckpointError:
        raise
    except (FataiError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise CheckpointError(
            f"{root / CONFIG}: the network {config.network.arch!r} cannot be built: {str(e)[:300]}"
        ) from None
    load_weights(root / WEIGHTS, model)
    _refuse_drift(root, config, _reference_logits(root, config, model))
    device = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    return Pretrained(
        fast_layout(model.to(device), device, precision).eval(),
        config.tags,
        config.clips,
        np.array(config.prior),
        config.calibrated(),
        config.training,
        config.versions,
        precision,
    )


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
    """Write a model folder; an earlier one at its place is replaced.

    Parameters
    ----------
    model
        Built by name: with `create_model`, `fat_learner(dls, arch="...")` or a recipe.
    reference
        A sound, of which at most 10 s become the reference clip; None takes a made one, since sounds of others have licences.

    Raises
    ------
    CheckpointError
        If the model was not built by name, or is no longer what its name says; or if the folder holds other things.
    """
    root = Path(folder)
    _refuse_other_content(root)
    inner = model.model if isinstance(model, TwoHeadModel) else model
    built = getattr(inner, "built_as", None)
    if built is None:
        raise CheckpointError(
            f"the network is a {type(inner).__name__} that was not built by name, so a folder cannot say how to build it "
            "again; give fat_learner the name of a registered model, @MODELS.register adds yours"
        )
    values: dict[str, Any] = {
        "network": Network.of(built, isinstance(model, TwoHeadModel)),
        "clips": settings,
        "tags": tuple(tags),
        "prior": tuple(float(p) for p in prior),
        "calibration": None if calibration is None else calibration.select(tags).to_plain(),
        "training": dict(training or {}),
        "versions": _versions(),
    }
    config = ModelConfig.of(**values)
    (root / CONFIG).unlink(
        missing_ok=True
    )  # a folder without it is none: a save that is killed leaves nothing that looks whole
    save_weights(root / WEIGHTS, model, {})
    sound = made_sound(settings) if reference is None else load_audio(reference, settings.sr, duration_s=_LONGEST_S)
    save_audio(root / REFERENCE, sound, settings.sr, subtype="PCM_16")
    # Computed by a network that was made of the files, which thereby are known to hold all of it.
    again = _network(config)
    load_weights(root / WEIGHTS, again)
    logits = _reference_logits(root, config, again)
    write_text(root / CONFIG, ModelConfig.of(**values, logits=tuple(logits.tolist())).to_json())
    return root


@patch
def save_pretrained(
    self: FatLearner, folder: str | os.PathLike[str], *, training: Mapping[str, Any] | None = None,
    reference: str | os.PathLike[str] | None = None,
) -> Path:
    """Write the learner's network as a model folder, which `load_pretrained` reads; see `save_model_folder`.

    Parameters
    ----------
    training
        What to tell of the training, besides what the learner knows of it.
    """
    activation, probe = getattr(self.loss_func, "activation", torch.sigmoid), torch.linspace(-4, 4, 9)[None]
    if not torch.allclose(activation(probe), probe.sigmoid()):
        raise OptionError(
            f"the loss {type(self.loss_func).__name__} turns logits into probabilities by another way than the sigmoid; "
            "a model folder knows no other"
        )
    return save_model_folder(
        folder, self.model, self.tags, self.settings, self.dls.prior(), calibration=self.calibration,
        training={**_told_by(self), **(training or {})}, reference=reference,
    )


def _told_by(learn: FatLearner) -> dict[str, Any]:
    """What a learner knows of its training, as JSON holds it."""
    told: dict[str, Any] = {
        "loss": type(learn.loss_func).__name__,
        "clips": len(learn.dls.train_ds),
        "held_out": len(learn.dls.valid_ds),
    }
    record = getattr(learn, "final_record", None)
    if record:
        names = ["train_loss", "valid_loss", *(m.name for m in learn.metrics)]
        told["last_epoch"] = {
            name: float(value) for name, value in zip(names, record) if value is not None and np.isfinite(value)
        }
    return told


def _network(config: ModelConfig) -> nn.Module:
    """Newly built, on the current default device."""
    tags, network = len(config.tags), config.network
    channels = int(config.clips.channels_module().n_channels)  # type: ignore[arg-type]
    model = create_model(network.arch, tags * (2 if network.two_heads else 1), channels, **network.options)
    return (TwoHeadModel(model, tags) if network.two_heads else model).eval()


def _reference_logits(root: Path, config: ModelConfig, model: nn.Module) -> np.ndarray:
    """Answer of a network on the CPU to the middle crop of the reference clip, float64 (tags,); read and trimmed as every clip is."""
    try:
        answers = predict_clips(
            model, config.clips, [root / REFERENCE], len(config.tags), views=build_views("even", 1), device="cpu",
            arithmetic=torch.autocast("cpu", enabled=False), activation=_unchanged, what="reference",
        )
    except (FataiError, RuntimeError) as e:
        raise CheckpointError(f"{root}: the network cannot answer for the reference clip: {e}") from None
    if answers.faults:
        raise CheckpointError(f"{root}: the reference clip cannot be read: {answers.faults[0]}")
    if not np.isfinite(answers.probs).all():
        raise CheckpointError(
            f"{root}: the network's answer for the reference clip is not finite; its weights or its front end are broken"
        )
    return answers.probs[0]


def _unchanged(logits: Tensor) -> Tensor:
    return logits


def _refuse_drift(root: Path, config: ModelConfig, logits: np.ndarray) -> None:
    if not config.logits:
        raise CheckpointError(
            f"{root / CONFIG} holds no logits of the reference clip; expected what save_pretrained writes"
        )
    noted = np.array(config.logits)
    # Of sigmoids by way of tanh, which never overflows.
    drift = float(np.abs(np.tanh(logits / 2) - np.tanh(noted / 2)).max() / 2)
    # Where all probabilities are next to 0, only the logits tell one network from another.
    logit_drift = float(np.abs(logits - noted).max() / max(1.0, np.abs(noted).max()))
    if drift > MAX_DRIFT or logit_drift > 10 * MAX_DRIFT:
        made = ", ".join(f"{k} {v}" for k, v in sorted(config.versions.items())[:10])
        raise CheckpointError(
            f"{root}: the scores of the reference clip have drifted by {drift:.2g} (logits by {logit_drift:.2g} of the largest); at most "
            f"{MAX_DRIFT:g} is the same model: a file was changed, or a package computes otherwise than it did (made with {made[:300]})"
        )


def _refuse_odd(root: Path) -> None:
    """What is wrong with the files before any of them is opened."""
    if not root.is_dir():
        raise CheckpointError(f"{root} is no folder; expected a model folder with {', '.join(FILES)}")
    for name, most in zip(FILES, (_MAX_WEIGHTS, 1 << 62, _MAX_REFERENCE)):
        file = root / name
        if not os.path.lexists(file):
            raise CheckpointError(f"{root} is no model folder: it lacks {name}; expected {', '.join(FILES)}")
        about = file.lstat()
        if not stat.S_ISREG(about.st_mode):
            kind = "a link" if stat.S_ISLNK(about.st_mode) else "no ordinary file"
            raise CheckpointError(f"{file} is {kind}, and was not opened; expected the file itself")
        if about.st_size > most:
            raise CheckpointError(f"{file} has {about.st_size:,} bytes; at most {most:,} are read")
    for entry in os.scandir(root):
        if Path(entry.name).suffix.lower() in _COULD_BE_CODE:
            raise CheckpointError(
                f"{root} holds {entry.name}, which could be code; nothing of the folder was opened. A model folder needs "
                f"only {', '.join(FILES)}: where you trust its maker, move the rest away"
            )
    info = _reference_info(root / REFERENCE)
    if info.format != "WAV" or info.channels != 1 or info.seconds > 60:
        raise CheckpointError(
            f"{root / REFERENCE} is {info.seconds:.0f} s of {info.format} with {info.channels} channels; "
            "expected a WAV of one channel and at most 60 s"
        )


def _reference_info(path: Path) -> Any:
    try:
        return audio_info(path)
    except AudioError as e:
        raise CheckpointError(f"the reference clip cannot be read: {e}") from None


def _refuse_other_content(root: Path) -> None:
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
            f"{root / linked[0]} is a link, which would be written through; choose a new or empty folder"
        )


def made_sound(settings: ClipConfig) -> Tensor:
    """A rising tone under bursts of noise, (samples,): something in every band, loud and quiet."""
    samples = max(2, min(settings.crop_samples, round(_LONGEST_S * settings.sr)))
    t = torch.arange(samples, dtype=torch.float64) / samples
    cycles = samples * t * (0.001 + 0.2 * t)
    noise = torch.randn(samples, generator=torch.Generator().manual_seed(2019), dtype=torch.float64)
    return (0.3 * (2 * torch.pi * cycles).sin() + 0.15 * noise * (-5 * (4 * t % 1)).exp()).clamp(-0.99, 0.99).float()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "fatai": __version__}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
