"""Load the network that an index of sounds is made with: a run, a model folder, or published weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fatai.audio.front_ends import front_end
from fatai.data.config import ClipConfig
from fatai.device import inference_device
from fatai.errors import OptionError
from fatai.experiment.run_folder import trained_model
from fatai.export.pretrained import is_model_folder
from fatai.inference.search.encoder import WindowEncoder
from fatai.models import MODELS, SpectrogramModel, create_model
from fatai.models.weights import WEIGHTS, find_published
from fatai.registry import did_you_mean

__all__ = ["load_encoder"]

WINDOW_S = 5.0
"""Seconds of a window of published weights, as in recipe `probe`."""


def load_encoder(
    network: str | Path,
    *,
    weights: str | Path | None = None,
    fold: int = 0,
    window_s: float | None = None,
    channel: str | int | None = None,
) -> tuple[WindowEncoder, dict[str, Any]]:
    """Load a frozen network for an index of sounds.

    Parameters
    ----------
    network
        A run folder, an exported model, the name of published weights (`WEIGHTS`), or that of their network.
    weights
        The file of published weights, if it is not in the user's cache.
    fold
        Fold of a run, from 0.
    window_s
        Seconds of a window; None takes the crop of the run, and 5 s for published weights.
    channel
        Channel of sound files instead of that of training, as in `load_audio`.

    Returns
    -------
    The encoder, and the arguments that load it again, as JSON values.

    Raises
    ------
    OptionError
        If `network` is neither a folder nor a name, or `weights` are given with a folder.
    CheckpointError
        If the folder is neither a run nor a model, or the weights cannot be loaded.
    """
    source: dict[str, Any] = {"network": str(network), "window_s": window_s, "channel": channel}
    if Path(network).is_dir():
        if weights is not None:
            raise OptionError(f"weights are given with the folder {network}, which has its own; leave them out")
        source |= {"network": str(Path(network).resolve()), "fold": 0 if is_model_folder(network) else fold}
        trained = trained_model(network, fold)
        settings = _changed(trained.settings, window_s, channel)
        return WindowEncoder(trained.model, settings, trained.tags, trained.precision), source
    name = str(network)
    arch = WEIGHTS[name].arch if name in WEIGHTS else name
    published = find_published(arch)
    if published is None or arch not in MODELS:
        known = [*WEIGHTS, *dict.fromkeys(entry.arch for entry in WEIGHTS.values())]
        raise OptionError(
            f"{network} is neither a folder nor the name of published weights; expected a run, an exported model, or "
            f"one of fatai-submit weights: {did_you_mean(name, known)}"
        )
    if weights is not None:
        source["weights"] = str(Path(weights).resolve() if Path(weights).is_file() else weights)
    pretrained = weights if weights is not None else name if name in WEIGHTS else True
    settings = ClipConfig(front_end(published.front_end), crop_s=WINDOW_S, trim_db=None, pad_mode="constant_right")
    model = create_model(arch, 1, int(settings.channels_module().n_channels), pretrained=pretrained)  # type: ignore[arg-type]
    return WindowEncoder(_without_head(model).to(inference_device()), _changed(settings, window_s, channel)), source


def _changed(settings: ClipConfig, window_s: float | None, channel: str | int | None) -> ClipConfig:
    changes: dict[str, Any] = {"crop_s": window_s, "channel": channel}
    return replace(settings, **{name: value for name, value in changes.items() if value is not None})


def _without_head(model: SpectrogramModel) -> SpectrogramModel:
    """Zero the head, which is newly initialized and not used: it would change the digest of the weights."""
    with torch.no_grad():
        for parameter in model.layer_groups()[1]:
            parameter.zero_()
    return model
