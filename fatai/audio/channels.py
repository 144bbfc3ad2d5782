"""Input channels of a network, computed from one spectrogram.

Conventions: the input is (batch, rows, frames), the output (batch, channels, rows, frames); `n_channels` is the number
of input channels that the network needs. Channels are computed from the crop that the network receives, not from the
whole clip.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from fatai.errors import OptionError, ShapeError
from fatai.registry import CHANNELS

__all__ = ["DEFAULT_CHANNELS", "Coord", "Deltas", "ImageNet", "Repeat", "Windows", "delta"]

DEFAULT_CHANNELS = "repeat3"
"""Channels of the loaders, blocks and the recipe `default` where neither a front end nor channels are given."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _check(spec: Tensor) -> Tensor:
    """Return a spectrogram of shape (batch, rows, frames); any other shape raises a `ShapeError`."""
    if spec.ndim != 3:
        raise ShapeError(
            f"got a spectrogram of shape {tuple(spec.shape)}; expected (batch, rows, frames): one clip is spec[None]"
        )
    return spec


class Repeat(nn.Module):
    """Repeat the spectrogram (batch, rows, frames) to (batch, n_channels, rows, frames).

    Parameters
    ----------
    n_channels
        At least 1; 3 for backbones pretrained on images.

    Raises
    ------
    OptionError
        If `n_channels` is less than 1.
    """

    def __init__(self, n_channels: int = 1):
        super().__init__()
        if n_channels < 1:
            raise OptionError(f"n_channels={n_channels}; expected at least 1")
        self.n_channels = n_channels

    def forward(self, spec: Tensor) -> Tensor:
        """Return shape (batch, n_channels, rows, frames)."""
        return _check(spec)[:, None].repeat(1, self.n_channels, 1, 1)


def _savgol(width: int, order: int) -> list[float]:
    """Return the weights (width,) of the `order`-th derivative of a polynomial of that degree fitted to values."""
    at = np.arange(width) - width // 2
    fit = np.linalg.pinv(np.vander(at, order + 1, increasing=True))  # coefficients, lowest power first
    # The highest derivative of a polynomial of degree `order` is the same everywhere: order! times its highest
    # coefficient.
    return (fit[order] * math.factorial(order)).tolist()


# What `torch.compiler.assume_constant_result` does, without its import of torch._dynamo, which predictions do not need.
_savgol.__dict__["_dynamo_marked_constant"] = True


def delta(spec: Tensor, *, order: int = 1, width: int = 9) -> Tensor:
    """Compute a derivative along the last dimension by a Savitzky-Golay filter, as `librosa.feature.delta` does.

    Parameters
    ----------
    spec
        Shape (..., frames). With fewer frames than `width` the outermost values are repeated (librosa's mode
        "nearest").
    order, width
        A polynomial of degree `order` is fitted to `width` frames, an odd number of at least 3 above `order`; its
        `order`-th derivative is returned. A larger width is smoother. The outermost width // 2 frames use the fit of
        the outermost `width` frames (mode "interp").

    Returns
    -------
    Shape of `spec`, change per frame.

    Raises
    ------
    OptionError
        If `order` or `width` is out of range.

    Examples
    --------
    >>> delta(torch.arange(12.0))[:3].round(decimals=3)
    tensor([1., 1., 1.])
    """
    if width < 3 or width % 2 == 0 or not 1 <= order < width:
        raise OptionError(
            f"width={width}, order={order}; expected an odd width of at least 3, and an order from 1 to below it"
        )
    half, frames = width // 2, spec.shape[-1]
    rows = spec if frames >= width else _repeat_ends(spec, half)
    n, weights = rows.shape[-1] - 2 * half, _savgol(width, order)
    # No convolution: within autocast it rounds to half precision, on a GPU to TF32, and on a CPU it takes longer.
    derivative = rows[..., :n] * weights[0]
    for k, weight in enumerate(weights[1:], 1):
        derivative.add_(rows[..., k:k + n], alpha=weight)
    return derivative if frames < width else _repeat_ends(derivative, half)


def _repeat_ends(spec: Tensor, n: int) -> Tensor:
    """Repeat the outermost frames of (..., frames) `n` times at either end."""
    first, last = (frame.expand(*spec.shape[:-1], n) for frame in (spec[..., :1], spec[..., -1:]))
    return torch.cat([first, spec, last], -1)


class Deltas(nn.Module):
    """Stack a spectrogram (batch, rows, frames) and its first two derivatives in time to (batch, 3, rows, frames).

    Parameters
    ----------
    width
        Number of frames of the filter; see `delta`.
    """

    n_channels = 3

    def __init__(self, width: int = 9):
        super().__init__()
        self.width = width

    def forward(self, spec: Tensor) -> Tensor:
        """Return shape (batch, 3, rows, frames)."""
        return torch.stack(
            [_check(spec), delta(spec, order=1, width=self.width), delta(spec, order=2, width=self.width)], 1
        )


class Coord(nn.Module):
    """Add coordinate channels to a spectrogram, as CoordConv does.

    (batch, rows, frames) becomes (batch, 2 or 3, rows, frames). The second channel rises from -1 at the lowest to +1 at
    the highest row.

    Parameters
    ----------
    time
        True adds a third channel, which rises from -1 at the first to +1 at the last frame.
    """

    def __init__(self, time: bool = False):
        super().__init__()
        self.n_channels = 3 if time else 2

    def forward(self, spec: Tensor) -> Tensor:
        """Return shape (batch, 2 or 3, rows, frames)."""
        _, rows, frames = _check(spec).shape
        maps = [spec, torch.linspace(-1, 1, rows).to(spec)[:, None].expand_as(spec)]
        if self.n_channels == 3:
            maps.append(torch.linspace(-1, 1, frames).to(spec).expand_as(spec))
        return torch.stack(maps, 1)


class ImageNet(nn.Module):
    """Repeat an 8-bit spectrogram three times, scaled to 0..1 and standardized by the constants of ImageNet.

    (batch, rows, frames) in 0..255 becomes (batch, 3, rows, frames).
    """

    n_channels = 3
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, spec: Tensor) -> Tensor:
        """Return shape (batch, 3, rows, frames)."""
        return (_check(spec)[:, None] / 255 - self.mean) / self.std


class Windows(nn.Module):
    """Unstack window lengths: (batch, n_windows * bins, frames) to (batch, n_windows, bins, frames).

    Parameters
    ----------
    n_windows
        Number of window lengths, that of the front end's setting `windows`.
    """

    def __init__(self, n_windows: int = 3):
        super().__init__()
        self.n_channels = n_windows

    def forward(self, spec: Tensor) -> Tensor:
        """Return shape (batch, n_windows, bins, frames); raise a `ShapeError` if the rows cannot be split evenly."""
        if _check(spec).shape[1] % self.n_channels:
            raise ShapeError(f"got {spec.shape[1]} rows, which are not {self.n_channels} windows of equal size; "
                             "give the front end as many `windows`")
        return spec.unflatten(1, (self.n_channels, -1))


@CHANNELS.register("mono", source="common practice")
def mono() -> nn.Module:
    """Use the spectrogram alone."""
    return Repeat(1)


@CHANNELS.register("repeat3", source="fastai kernel of Freesound Audio Tagging 2019; own code")
def repeat3() -> nn.Module:
    """Repeat the spectrogram three times, for backbones made for images."""
    return Repeat(3)


@CHANNELS.register("imagenet", source="fastai kernel of Freesound Audio Tagging 2019; own code")
def imagenet() -> nn.Module:
    """Repeat an 8-bit spectrogram three times, standardized as images of ImageNet are."""
    return ImageNet()


@CHANNELS.register("deltas", source="1st place of Freesound Audio Tagging 2019 (argus-freesound, MIT); own code")
def deltas(*, width: int = 9) -> nn.Module:
    """Add the first and second derivatives in time."""
    return Deltas(width)


@CHANNELS.register("coord", source="3rd place of Freesound Audio Tagging 2019 (Apache-2.0); own code")
def coord() -> nn.Module:
    """Add the position of each row, -1 to 1."""
    return Coord()


@CHANNELS.register("coord_time", source="3rd place of Freesound Audio Tagging 2019 (Apache-2.0), continued; own code")
def coord_time() -> nn.Module:
    """Add the position of each row and that of each frame, -1 to 1."""
    return Coord(time=True)


@CHANNELS.register("windows", source="common practice")
def windows(*, n_windows: int = 3) -> nn.Module:
    """Separate stacked spectrograms of several window lengths, one per channel."""
    return Windows(n_windows)
