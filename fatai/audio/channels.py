"""One spectrogram to the channels a network sees.

Conventions: in (batch, rows, frames), out (batch, channels, rows, frames); `n_channels` tells the network how many. Channels are made
from the crop that the network is shown, not from the whole clip.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fatai.errors import OptionError, ShapeError
from fatai.registry import CHANNELS

__all__ = ["Deltas", "ImageNet", "Coord", "Repeat", "Windows", "delta"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _checked(spec: Tensor) -> Tensor:
    if spec.ndim != 3:
        raise ShapeError(
            f"got a spectrogram of shape {tuple(spec.shape)}; expected (batch, rows, frames): one clip is spec[None]"
        )
    return spec


class Repeat(nn.Module):
    """The same spectrogram `n_channels` times."""

    def __init__(self, n_channels: int = 1):
        super().__init__()
        if n_channels < 1:
            raise OptionError(f"n_channels={n_channels}; expected at least 1")
        self.n_channels = n_channels

    def forward(self, spec: Tensor) -> Tensor:
        return _checked(spec)[:, None].repeat(1, self.n_channels, 1, 1)


def _savgol(width: int, order: int) -> np.ndarray:
    """Weights (width,) of the `order`-th derivative of the polynomial of that degree that is fitted to `width` values."""
    at = np.arange(width) - width // 2
    fit = np.linalg.pinv(np.vander(at, order + 1, increasing=True))  # coefficients, lowest power first
    # The highest derivative of a polynomial of degree `order` is the same everywhere: order! times its highest coefficient.
    return fit[order] * math.factorial(order)


def delta(spec: Tensor, *, order: int = 1, width: int = 9) -> Tensor:
    """Derivative along the last dimension, `order` times, by a sliding fit; that of `librosa.feature.delta`.

    Parameters
    ----------
    spec
        Shape (..., frames). Fewer frames than `width` are continued by their outermost values (librosa's mode "nearest").
    order, width
        A polynomial of degree `order` is fitted to `width` frames, an odd number of at least 3 above `order`. The outermost
        width // 2 frames take the fit of the outermost `width` ones (mode "interp").

    Returns
    -------
    Shape of `spec`, change per frame.
    """
    if width < 3 or width % 2 == 0 or not 1 <= order < width:
        raise OptionError(
            f"width={width}, order={order}; expected an odd width of at least 3, and an order from 1 to below it"
        )
    half, frames = width // 2, spec.shape[-1]
    kernel = torch.from_numpy(_savgol(width, order)).to(spec)
    rows = spec.reshape(-1, 1, frames)
    if frames < width:
        rows = F.pad(rows, (half, half), mode="replicate")
    middle = F.conv1d(rows, kernel.view(1, 1, -1))
    if frames >= width:
        middle = F.pad(middle, (half, half), mode="replicate")
    return middle.view(spec.shape)


class Deltas(nn.Module):
    """The spectrogram, its first and its second derivative in time."""

    n_channels = 3

    def __init__(self, width: int = 9):
        super().__init__()
        self.width = width

    def forward(self, spec: Tensor) -> Tensor:
        return torch.stack(
            [_checked(spec), delta(spec, order=1, width=self.width), delta(spec, order=2, width=self.width)], 1
        )


class Coord(nn.Module):
    """The spectrogram, a map that rises from -1 at the lowest to +1 at the highest row, and if `time` one from first to last frame."""

    def __init__(self, time: bool = False):
        super().__init__()
        self.n_channels = 3 if time else 2

    def forward(self, spec: Tensor) -> Tensor:
        _, rows, frames = _checked(spec).shape
        maps = [spec, torch.linspace(-1, 1, rows).to(spec)[:, None].expand_as(spec)]
        if self.n_channels == 3:
            maps.append(torch.linspace(-1, 1, frames).to(spec).expand_as(spec))
        return torch.stack(maps, 1)


class ImageNet(nn.Module):
    """An 8-bit picture (0..255) three times, scaled to 0..1 and standardised as pictures of ImageNet are."""

    n_channels = 3
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, spec: Tensor) -> Tensor:
        return (_checked(spec)[:, None] / 255 - self.mean) / self.std


class Windows(nn.Module):
    """Spectrograms of several window lengths, one a channel.

    The front end's `windows` stacks them in its rows: (batch, windows * bins, frames) becomes (batch, windows, bins, frames).
    """

    def __init__(self, n_windows: int = 3):
        super().__init__()
        self.n_channels = n_windows

    def forward(self, spec: Tensor) -> Tensor:
        if _checked(spec).shape[1] % self.n_channels:
            raise ShapeError(f"got {spec.shape[1]} rows, which are not {self.n_channels} windows of equal size; "
                             "give the front end as many `windows`")
        return spec.unflatten(1, (self.n_channels, -1))


@CHANNELS.register("mono", source="common practice")
def mono() -> nn.Module:
    """The spectrogram alone."""
    return Repeat(1)


@CHANNELS.register("repeat3", source="fastai kernel of Freesound Audio Tagging 2019; own code")
def repeat3() -> nn.Module:
    """The spectrogram three times, for bodies that were made for pictures."""
    return Repeat(3)


@CHANNELS.register("imagenet", source="fastai kernel of Freesound Audio Tagging 2019; own code")
def imagenet() -> nn.Module:
    """An 8-bit spectrogram three times, standardised as pictures of ImageNet are."""
    return ImageNet()


@CHANNELS.register("deltas", source="1st place of Freesound Audio Tagging 2019 (argus-freesound, MIT); own code")
def deltas(*, width: int = 9) -> nn.Module:
    """The spectrogram with its first and second derivatives in time."""
    return Deltas(width)


@CHANNELS.register("coord", source="3rd place of Freesound Audio Tagging 2019 (Apache-2.0); own code")
def coord() -> nn.Module:
    """The spectrogram and where each row lies in frequency."""
    return Coord()


@CHANNELS.register("coord_time", source="3rd place of Freesound Audio Tagging 2019 (Apache-2.0), continued; own code")
def coord_time() -> nn.Module:
    """The spectrogram, where each row lies in frequency and each frame in time."""
    return Coord(time=True)


@CHANNELS.register("windows", source="common practice")
def windows(*, n_windows: int = 3) -> nn.Module:
    """Spectrograms of several window lengths, one a channel."""
    return Windows(n_windows)
