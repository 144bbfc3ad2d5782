"""The base class of all models, and what `create_model` notes about a model that it built.

Conventions: a *spec* is (batch, channels, mels, frames); *features* are (batch, features), one row per clip; *logits* are
(batch, tags), before the sigmoid. This module needs torch alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fatai.errors import OptionError, ShapeError

__all__ = ["BuiltAs", "SpectrogramModel", "count_parameters", "in_float32"]


class BuiltAs(NamedTuple):
    """The name and the options that `create_model` built a network with."""

    arch: str
    options: dict[str, Any]


class SpectrogramModel(nn.Module):
    """What every fatai model is: spectrograms in, logits out, with an embedding between.

    A subclass sets `min_mels` and `min_frames` and writes `features` (maps to one row per clip) and `classify` (rows to
    logits). Inputs that are shorter or narrower than the smallest are padded with copies of their last frame or
    highest bin, which needs no knowledge of what silence is in the units of the spectrogram.

    Parameters
    ----------
    n_tags
        Number of logits.
    in_channels
        Channels of the spectrogram.

    Attributes
    ----------
    min_mels, min_frames : the smallest input that is used as it is.
    n_mels : number of mel bins that the model is tied to, None when any number will do.
    head_names : submodules that belong to the head; what is left is the body.
    built_as : what `create_model` was asked for; None of a network that was built otherwise.
    """

    min_mels: int = 1
    min_frames: int = 1
    n_mels: int | None = None
    head_names: tuple[str, ...] = ("head",)
    built_as: BuiltAs | None = None

    def __init__(self, n_tags: int, in_channels: int):
        super().__init__()
        for name, value in (("n_tags", n_tags), ("in_channels", in_channels)):
            if not isinstance(value, int) or value < 1:
                raise OptionError(f"{name}={value!r} is not a number of at least 1")
        self.n_tags, self.in_channels = n_tags, in_channels

    def forward(self, spec: Tensor) -> Tensor:
        """Logits (batch, tags) of spectrograms (batch, channels, mels, frames); in float32 within autocast too."""
        return in_float32(self.classify, self.features(self.prepared(spec)))

    def embed(self, spec: Tensor) -> Tensor:
        """Features (batch, features) of spectrograms (batch, channels, mels, frames): what the head sees."""
        return self.features(self.prepared(spec))

    def features(self, spec: Tensor) -> Tensor:
        """One row per clip from spectrograms of sufficient size."""
        raise NotImplementedError

    def classify(self, features: Tensor) -> Tensor:
        """Logits from features."""
        raise NotImplementedError

    def prepared(self, spec: Tensor) -> Tensor:
        """`spec`, checked, and padded to the smallest size that the model can use.

        Raises
        ------
        ShapeError
            If it is no spectrogram, or has other channels or (where the model is tied to them) other mel bins.
        """
        shape = tuple(spec.shape)
        if spec.ndim != 4 or 0 in shape:
            raise ShapeError(
                f"the model got an input of shape {shape}; expected (batch, channels, mels, frames), none of them 0"
            )
        if shape[1] != self.in_channels:
            raise ShapeError(
                f"the model got {shape[1]} channels in an input of shape {shape}; it was built with in_channels={self.in_channels}: "
                "build it for the channels that your front end makes"
            )
        if self.n_mels is not None and shape[2] > self.n_mels:
            raise ShapeError(
                f"the model got {shape[2]} mel bins in an input of shape {shape}; it was built with n_mels={self.n_mels}"
            )
        if self.training and shape[0] == 1 and any(isinstance(m, nn.BatchNorm1d) for m in self.modules()):
            raise ShapeError(
                f"the model got one clip, shape {shape}; batch norm of its head needs at least 2 in training: raise bs"
            )
        more_mels, more_frames = max(self.min_mels - shape[2], 0), max(self.min_frames - shape[3], 0)
        if more_mels or more_frames:
            return F.pad(spec, (0, more_frames, 0, more_mels), mode="replicate")
        return spec

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Parameters of the body, then of the head: for learning rates that differ, as a fastai splitter returns them."""
        head = {id(p) for name in self.head_names for p in self.get_submodule(name).parameters()}
        return [[p for p in self.parameters() if id(p) not in head], [p for p in self.parameters() if id(p) in head]]


def count_parameters(modules: nn.Module | Sequence[nn.Module], *, trainable: bool = False) -> int:
    """Number of parameters in a module, or in several; only those that train if `trainable`."""
    several = [modules] if isinstance(modules, nn.Module) else modules
    return sum(p.numel() for m in several for p in m.parameters() if p.requires_grad or not trainable)


def in_float32(head: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
    """What `head` makes of `features`, in float32 within autocast too.

    The head costs nothing, and bfloat16 logits have so few digits that tags would tie.
    """
    device = features.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return head(features)
    with torch.autocast(features.device.type, enabled=False):
        return head(features.float())
