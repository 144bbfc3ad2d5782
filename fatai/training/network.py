"""Build the network for the spectrograms of a configuration, and name what decays of it; needs torch alone."""

from __future__ import annotations

import inspect
import os
import warnings
from typing import Any

from torch import nn

from fatai.audio.front_ends import FrontEnd
from fatai.audio.front_ends import front_end as find_front_end
from fatai.data.config import ClipConfig
from fatai.errors import OptionError
from fatai.models import create_model
from fatai.models.weights import find_published
from fatai.registry import FRONT_ENDS, MODELS

__all__ = ["NO_WEIGHT_DECAY", "named_model"]

NO_WEIGHT_DECAY = {
    "norm_and_bias": "every bias and the weights of normalization layers (fastai's default)",
    "bias": "parameters whose name contains 'bias' (the 9th place kernel)",
    "none": "all parameters decay",
}
"""Parameters that weight decay leaves out: names and what they mean."""


def named_model(
    arch: str,
    n_tags: int,
    in_channels: int,
    clip_config: ClipConfig,
    *,
    width: float | None = None,
    options: dict[str, Any] | None = None,
) -> nn.Module:
    """Build a model by name for the spectrograms of crops.

    Parameters
    ----------
    arch
        A name of `MODELS`.
    n_tags, in_channels
        Number of outputs and of input channels.
    clip_config
        How clips become spectrograms. Networks with an option `n_mels` get the front end's number of bins, those with
        `spec_size` the mels and frames of a crop, those with `imagenet_input` whether the channels are "imagenet".
    width, options
        Factor for the channels, and further options of the model.

    Returns
    -------
    A network from (batch, in_channels, mels, frames) to logits (batch, n_tags).

    Raises
    ------
    OptionError
        If `width` is given with published weights, which are of width 1.
    """
    options = {**(options or {}), **({} if width is None else {"width": width})}
    parameters = inspect.signature(MODELS.builder(arch)).parameters
    if "n_mels" in parameters:
        options.setdefault("n_mels", clip_config.front_end.bins)
    if "spec_size" in parameters:
        options.setdefault("spec_size", clip_config.spec_size)
    if "imagenet_input" in parameters and clip_config.channels_name == "imagenet":
        options.setdefault("imagenet_input", True)
    _check_width(arch, options)
    _warn_about_front_end(arch, options.get("pretrained"), clip_config.front_end)
    return create_model(arch, n_tags, in_channels, **options)


def _check_width(arch: str, options: dict[str, Any]) -> None:
    """Raise `OptionError` if published weights are to be loaded into a network of another width."""
    published, width = find_published(arch, options.get("pretrained")), options.get("width", 1)
    if published is not None and published.arch == arch and width != 1:
        raise OptionError(
            f"the width is {width:g}, and the published weights {published.name} are of width 1; leave the width out, "
            "or the weights"
        )


def _warn_about_front_end(
    arch: str, pretrained: bool | str | os.PathLike[str] | None, front_end: FrontEnd
) -> None:
    """Warn if published weights were trained on another front end than that of the spectrograms."""
    published = find_published(arch, pretrained)
    if published is None:
        return
    expected = find_front_end(published.front_end)
    if front_end.replace(channels=expected.channels) != expected:
        warnings.warn(
            f"the weights {published.name} were trained on the front end {published.front_end} "
            f"({_described(expected)}), and the spectrograms are of {_name_of(front_end)} ({_described(front_end)}): "
            f'the network works worse on them; choose front_end="{published.front_end}"',
            stacklevel=4,
        )


def _described(front_end: FrontEnd) -> str:
    return f"{front_end.sr} Hz, {front_end.rows} rows, {front_end.seconds_per_frame * 1000:.3g} ms per frame"


def _name_of(front_end: FrontEnd) -> str:
    """Return the name of a front end in `FRONT_ENDS`, or that it has settings of its own."""
    names = (name for name in FRONT_ENDS.names() if find_front_end(name) == front_end)
    return next(names, "other settings")
