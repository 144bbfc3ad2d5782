"""The base class of all models, and the record of how `create_model` built one.

Conventions: a *spec* is (batch, channels, mels, frames); *features* are (batch, features), one row per clip; *logits*
are (batch, tags), before the sigmoid. This module needs torch alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fatai.errors import OptionError, ShapeError

__all__ = ["BuiltAs", "SpectrogramModel", "count_parameters", "in_float32", "without_memory"]


class BuiltAs(NamedTuple):
    """Name and options that `create_model` built a model with.

    Attributes
    ----------
    arch
        Name in the registry `MODELS`.
    options
        Options of the builder.
    """

    arch: str
    options: dict[str, Any]


class SpectrogramModel(nn.Module):
    """Base class of all models: spectrograms (batch, channels, mels, frames) to logits (batch, tags).

    A subclass sets `min_mels` and `min_frames` and implements `features` (spectrograms to one row per clip) and
    `classify` (rows to logits). Smaller inputs are padded with copies of their last frame or highest bin, which works
    whatever value silence has in the spectrogram.

    Parameters
    ----------
    n_tags
        Number of logits, at least 1.
    in_channels
        Channels of the spectrogram, at least 1.

    Attributes
    ----------
    min_mels, min_frames
        The smallest input that is used without padding.
    n_mels
        Number of mel bins that the model requires, None if it works with any number.
    head_names
        Submodules that belong to the head; the others are the body.
    aux_weights
        Weights of the losses of several outputs in training, main output first; None for models with one output.
    auto_precision
        What the precision "auto" means for the model: "fp32" where rounding changes its outputs too much.
    built_as
        Name and options that `create_model` was called with; None for a model that was built otherwise.

    Raises
    ------
    OptionError
        If `n_tags` or `in_channels` is not an integer of at least 1.
    """

    min_mels: int = 1
    min_frames: int = 1
    n_mels: int | None = None
    head_names: tuple[str, ...] = ("head",)
    aux_weights: tuple[float, ...] | None = None
    auto_precision: str = "auto"
    built_as: BuiltAs | None = None

    def __init__(self, n_tags: int, in_channels: int):
        super().__init__()
        for name, value in (("n_tags", n_tags), ("in_channels", in_channels)):
            if not isinstance(value, int) or value < 1:
                raise OptionError(f"{name}={value!r}; expected an integer of at least 1")
        self.n_tags, self.in_channels = n_tags, in_channels

    def forward(self, spec: Tensor) -> Tensor:
        """Return logits (batch, tags) of spectrograms (batch, channels, mels, frames); float32 within autocast too."""
        return in_float32(self.classify, self.features(self.prepare_input(spec)))

    def embed(self, spec: Tensor) -> Tensor:
        """Return features (batch, features), the input of the head, of spectrograms (batch, channels, mels, frames)."""
        return self.features(self.prepare_input(spec))

    def features(self, spec: Tensor) -> Tensor:
        """Return features (batch, features) of spectrograms (batch, channels, mels, frames) of sufficient size."""
        raise NotImplementedError

    def classify(self, features: Tensor) -> Tensor:
        """Return logits (batch, tags) of features (batch, features)."""
        raise NotImplementedError

    def prepare_input(self, spec: Tensor) -> Tensor:
        """Check spectrograms (batch, channels, mels, frames), and pad them to the smallest size that the model can use.

        Raises
        ------
        ShapeError
            If the shape is not that of spectrograms, the number of channels differs from `in_channels`, there are more
            mel bins than `n_mels`, or one clip is given in training to a model whose head has a batch norm.
        """
        shape = tuple(spec.shape)
        if spec.ndim != 4 or 0 in shape:
            raise ShapeError(
                f"the input of the model has shape {shape}; expected (batch, channels, mels, frames), none of them 0"
            )
        if shape[1] != self.in_channels:
            raise ShapeError(
                f"the input of the model has {shape[1]} channels, shape {shape}; it was built with "
                f"in_channels={self.in_channels}: build it for the channels of your front end"
            )
        if self.n_mels is not None and shape[2] > self.n_mels:
            raise ShapeError(
                f"the input of the model has {shape[2]} mel bins, shape {shape}; it was built with n_mels={self.n_mels}"
            )
        if self.training and shape[0] == 1 and any(isinstance(m, nn.BatchNorm1d) for m in self.modules()):
            raise ShapeError(
                f"the input of the model is one clip, shape {shape}; the batch norm of its head needs at least 2 in "
                "training: take bs of 2 or more, and as many training clips"
            )
        return self._pad(spec)

    def _pad(self, spec: Tensor) -> Tensor:
        mels, frames = spec.shape[2:]
        more_mels, more_frames = max(self.min_mels - mels, 0), max(self.min_frames - frames, 0)
        if more_mels or more_frames:
            return F.pad(spec, (0, more_frames, 0, more_mels), mode="replicate")
        return spec

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the body and of the head, as a fastai splitter, for different learning rates."""
        head = {id(p) for name in self.head_names for p in self.get_submodule(name).parameters()}
        return [[p for p in self.parameters() if id(p) not in head], [p for p in self.parameters() if id(p) in head]]

    def layers(self) -> list[list[nn.Parameter]]:
        """Return the parameters of each layer, from the first to the head, for layer-wise decay of the learning rate.

        They are those of `layer_groups`, unless a model has finer ones.
        """
        return self.layer_groups()


def count_parameters(modules: nn.Module | Sequence[nn.Module], *, trainable: bool = False) -> int:
    """Return the number of parameters of a module, or of several; only those with a gradient if `trainable`."""
    several = [modules] if isinstance(modules, nn.Module) else modules
    return sum(p.numel() for m in several for p in m.parameters() if p.requires_grad or not trainable)


_RANDOM = (Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)


class _SkipRandomValues(TorchFunctionMode):
    """Leave out random values of tensors without memory; torch imports its compiler to compute none of them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _RANDOM:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


@contextmanager
def without_memory() -> Iterator[None]:
    """Build networks whose tensors have a shape and no values, on the device "meta"; it takes milliseconds.

    Examples
    --------
    >>> with without_memory():
    ...     layer = nn.Linear(100_000, 100_000)
    >>> layer.weight.device.type, count_parameters(layer)
    ('meta', 10000100000)
    """
    with torch.device("meta"), _SkipRandomValues():
        yield


def in_float32(head: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
    """Call the head of a model with features of any shape, in float32 within autocast too.

    A head takes hardly any time, and bfloat16 logits have so few digits that tags would tie.
    """
    device = features.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return head(features)
    with torch.autocast(features.device.type, enabled=False):
        return head(features.float())
