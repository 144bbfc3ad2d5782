"""Networks that map spectrograms to logits, by name; one file for each family.

Importing this package fills the registry `MODELS`; it needs torch alone, and builders import what else they need.
"""

from __future__ import annotations

import inspect
from typing import Any

from fatai.models import (
    backbones,
    convblock,
    efficientat,
    mobilenetv3,
    multilevel,
    panns,
    panns_mobilenet,
    panns_resnet,
    resnet_cbam,
    skip_attention,
    timm_models,
)
from fatai.models.base import BuiltAs, SpectrogramModel, count_parameters
from fatai.registry import MODELS

__all__ = ["MODELS", "SpectrogramModel", "count_parameters", "create_model", "takes_weights"]

# Their import registers the models.
_FAMILIES = (
    backbones,
    convblock,
    efficientat,
    mobilenetv3,
    multilevel,
    panns,
    panns_mobilenet,
    panns_resnet,
    resnet_cbam,
    skip_attention,
    timm_models,
)


def create_model(name: str, n_tags: int, in_channels: int = 1, **options: Any) -> SpectrogramModel:
    """Build a model by name.

    Parameters
    ----------
    name
        One of `MODELS.names()`.
    n_tags
        Number of logits.
    in_channels
        Channels of the spectrograms, see `fatai.audio.channels`.
    options
        Options of the model, such as `width`.

    Returns
    -------
    A model that maps spectrograms (batch, channels, mels, frames) to logits (batch, n_tags).

    Raises
    ------
    UnknownNameError
        If there is no such model; the nearest name is suggested.
    OptionError
        If the model does not have an option, or a value is out of range.

    Examples
    --------
    >>> count_parameters(create_model("m1", n_tags=80))
    6380753
    """
    model = MODELS.build(name, n_tags, in_channels, **options)
    if model.built_as is None:  # a builder may record other options
        model.built_as = BuiltAs(name, options)
    return model


def takes_weights(arch: str) -> bool:
    """Return True if a network can be built with pretrained weights: those of `WEIGHTS`, and those of timm.

    Raises
    ------
    UnknownNameError
        If there is no network of the name.

    Examples
    --------
    >>> takes_weights("mn04"), takes_weights("m3")
    (True, False)
    """
    return "pretrained" in inspect.signature(MODELS.builder(arch)).parameters
