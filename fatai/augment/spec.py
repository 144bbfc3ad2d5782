"""Augmentation of spectrograms other than masks: crops, time warp, time reversal, brightness and contrast.

Conventions: spectrograms are (batch, channels, mels, frames); all channels of a clip are changed alike, each clip on
its own, on the spectrograms' device. Each augmentation is a fastai callback (`cbs=TimeReverse()`) whose `draw` returns
all random numbers as a named tuple with a row for each clip, and whose `apply` is a pure function: nothing changes in
place; dtype, device and shape stay. `augment(spec)` does both.
"""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import torch
from fastcore.meta import delegates
from torch import Tensor

from fatai.audio.channels import IMAGENET_MEAN, IMAGENET_STD
from fatai.audio.waveform import exact_dtype
from fatai.augment.base import SpecAugmentation
from fatai.augment.batch_input import BatchInput
from fatai.augment.draws import check_probability, check_range, draw_bernoulli, draw_integers, draw_uniform
from fatai.augment.spec_augment import FILLS, Bands, fill_values
from fatai.errors import OptionError
from fatai.registry import AUGMENTATIONS, did_you_mean

__all__ = [
    "BrightnessContrast",
    "RandomResizedCrop",
    "RandomTimeCrop",
    "TimeReverse",
    "TimeWarp",
    "brightness_contrast",
    "resized_crop",
    "time_warp",
]


class Boxes(NamedTuple):
    """A rectangle of each clip: lowest bin, first frame, height in bins, width in frames; each int64, (clips,)."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


def _source_positions(
    start: Tensor, length: Tensor, size: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Stretch [start, start + length) to `size` positions: neighbors below and above, fraction; each (clips, size)."""
    start, length = start.to(device)[:, None], length.to(device)[:, None]
    dtype = exact_dtype(device)
    at = ((torch.arange(size, device=device, dtype=dtype) + 0.5) * (length / size) - 0.5).clamp(min=0)
    at = torch.minimum(at, (length - 1).to(dtype))
    low = at.floor().long()
    return start + low, start + torch.minimum(low + 1, length - 1), at - low


def _interpolate(spec: Tensor, low: Tensor, high: Tensor, fraction: Tensor, dim: int) -> Tensor:
    """Interpolate linearly along one dimension between positions that differ from clip to clip, each (clips, size)."""
    shape = [len(spec), 1, 1, 1]
    shape[dim] = low.shape[1]
    out_shape = [*spec.shape]
    out_shape[dim] = low.shape[1]
    below, above = (spec.gather(dim, i.view(shape).expand(out_shape)) for i in (low, high))
    return torch.lerp(below, above, fraction.to(spec.dtype).view(shape))


def resized_crop(spec: Tensor, boxes: Boxes) -> Tensor:
    """Stretch a rectangle of each spectrogram to the whole, by bilinear interpolation that uses nothing outside of it.

    Parameters
    ----------
    spec
        Shape (batch, channels, mels, frames).
    boxes
        One rectangle for each clip.

    Returns
    -------
    The shape of `spec`.

    Examples
    --------
    >>> spec = torch.tensor([0.0, 2.0, 4.0, 9.0]).view(1, 1, 1, 4)
    >>> resized_crop(spec, Boxes(*torch.tensor([[0], [0], [1], [2]])))[0, 0]
    tensor([[0.0000, 0.5000, 1.5000, 2.0000]])
    """
    spec = _interpolate(spec, *_source_positions(boxes.top, boxes.height, spec.shape[2], spec.device), dim=2)
    return _interpolate(spec, *_source_positions(boxes.left, boxes.width, spec.shape[3], spec.device), dim=3)


@AUGMENTATIONS.register(
    "random_resized_crop", source="Szegedy et al., arXiv:1409.4842; ranges of the FAT2019 1st place (MIT); own code"
)
class RandomResizedCrop(SpecAugmentation):
    """Stretch a random rectangle of the spectrogram to the whole: a shift and scaling of pitch and tempo.

    Parameters
    ----------
    scale
        Lowest and highest area of the rectangle as a fraction of the whole, uniform; smaller areas distort more.
    ratio
        Lowest and highest width/height ratio as a factor of the whole's, log-uniform. The 1st place's 1.7 to 2.3 of 128
        x 256 pictures is 0.85 to 1.15; its 1.6 to 2.4 is 0.8 to 1.2.
    n_tries
        Rectangles drawn until one fits; after that the whole spectrogram is taken.
    p, domain, before_mixing, generator
        As in `SpecAugmentation`.

    Raises
    ------
    OptionError
        If a range is not in rising order or leaves its bounds, or `n_tries` is below 1.
    """

    @delegates(SpecAugmentation.__init__)
    def __init__(
        self,
        *,
        scale: tuple[float, float] = (0.8, 1.0),
        ratio: tuple[float, float] = (0.85, 1.15),
        n_tries: int = 10,
        p: float = 0.33,
        **kwargs: Any,
    ):
        super().__init__(p=p, **kwargs)
        check_range(scale, "scale", low=1e-6, high=1)
        check_range(ratio, "ratio", low=1e-6)
        if n_tries < 1:
            raise OptionError(f"n_tries is {n_tries}; expected at least 1")
        self.scale, self.ratio, self.n_tries = scale, ratio, n_tries

    def draw(self, n: int, mels: int, frames: int, generator: torch.Generator | None = None) -> Boxes:
        """Draw a rectangle for each of `n` clips."""
        shape = (n, self.n_tries)
        area = draw_uniform(shape, *self.scale, generator) * mels * frames
        ratio = draw_uniform(shape, math.log(self.ratio[0]), math.log(self.ratio[1]), generator).exp() * frames / mels
        width, height = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
        fits = (width >= 1) & (width <= frames) & (height >= 1) & (height <= mels)
        first = fits.int().argmax(1, keepdim=True)
        found = fits.any(1)
        height = torch.where(found, height.gather(1, first)[:, 0], mels)
        width = torch.where(found, width.gather(1, first)[:, 0], frames)
        top = draw_integers(n, 0, mels - height, generator)
        return Boxes(top, draw_integers(n, 0, frames - width, generator), height, width)

    def apply(self, spec: Tensor, drawn: Boxes) -> Tensor:
        """Return the stretched rectangles, shaped like `spec`, (batch, channels, mels, frames)."""
        return resized_crop(spec, drawn)


class _WarpDraws(NamedTuple):
    """The frame that moves, and where it moves to; each float64, shape (clips,)."""

    source: Tensor
    target: Tensor


def time_warp(spec: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Move frame `source` to `target` and stretch either side of it linearly; the first and the last frame stay.

    Parameters
    ----------
    spec
        Shape (batch, channels, mels, frames).
    source, target
        Frame numbers, shape (batch,), strictly between 0 and frames - 1.

    Returns
    -------
    The shape of `spec`.

    Examples
    --------
    >>> spec = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 5)
    >>> time_warp(spec, torch.tensor([1.0]), torch.tensor([2.0]))[0, 0]
    tensor([[0.0000, 0.5000, 1.0000, 2.5000, 4.0000]])
    """
    last = spec.shape[3] - 1
    dtype = exact_dtype(spec.device)
    source, target = (t.to(spec.device, dtype)[:, None] for t in (source, target))
    at = torch.arange(last + 1, device=spec.device, dtype=dtype)
    before, after = at * source / target, last - (last - at) * (last - source) / (last - target)
    position = torch.where(at < target, before, after).clamp(0, last)
    low = position.floor().long()
    return _interpolate(spec, low, (low + 1).clamp(max=last), position - low, dim=3)


@AUGMENTATIONS.register("time_warp", source="Park et al., arXiv:1904.08779; rate of the FAT2019 36th place; own code")
class TimeWarp(SpecAugmentation):
    """Move one frame in time and stretch either side of it.

    Parameters
    ----------
    rate
        Largest shift as a fraction of the frames, from 0 to below 0.5; the moved frame keeps as far from either end.
    p, domain, before_mixing, generator
        As in `SpecAugmentation`.

    Raises
    ------
    OptionError
        If `rate` is not within [0, 0.5).
    """

    @delegates(SpecAugmentation.__init__)
    def __init__(self, *, rate: float = 0.1, p: float = 1.0, **kwargs: Any):
        super().__init__(p=p, **kwargs)
        if not 0 <= rate < 0.5:
            raise OptionError(f"rate is {rate}; expected a fraction of the frames from 0 to below 0.5")
        self.rate = rate

    def draw(self, n: int, mels: int, frames: int, generator: torch.Generator | None = None) -> _WarpDraws:
        """Draw source and target frame of `n` clips."""
        # Both keep off the ends, where there would be nothing left to stretch.
        max_shift = min(int(self.rate * frames), max(0, (frames - 3) // 2))
        source = draw_uniform(n, max_shift + 1, max(max_shift + 1, frames - 2 - max_shift), generator)
        return _WarpDraws(source, source + draw_uniform(n, -max_shift, max_shift, generator))

    def apply(self, spec: Tensor, drawn: _WarpDraws) -> Tensor:
        """Return the warped spectrograms (batch, channels, mels, frames); those of fewer than 3 frames stay."""
        return time_warp(spec, drawn.source, drawn.target) if spec.shape[3] >= 3 else spec


class _NoDraws(NamedTuple):
    """No draws beyond which clips are chosen."""


@AUGMENTATIONS.register("time_reverse", source="FAT2019 fastai kernel: do_flip; own code")
class TimeReverse(SpecAugmentation):
    """Reverse time, in half of the clips by default.

    Parameters
    ----------
    p, domain, before_mixing, generator
        As in `SpecAugmentation`.
    """

    @delegates(SpecAugmentation.__init__)
    def __init__(self, *, p: float = 0.5, **kwargs: Any):
        super().__init__(p=p, **kwargs)

    def draw(self, n: int, mels: int, frames: int, generator: torch.Generator | None = None) -> _NoDraws:
        """Draw nothing."""
        return _NoDraws()

    def apply(self, spec: Tensor, drawn: _NoDraws) -> Tensor:
        """Return the spectrograms (batch, channels, mels, frames) with their frames in reverse order."""
        return spec.flip(-1)


@AUGMENTATIONS.register(
    "random_time_crop", source="FAT2019 4th place repository, crop 'additional' (MIT), rows and frames set right"
)
class RandomTimeCrop(SpecAugmentation):
    """Keep a random stretch of the frames and silence the rest, in place.

    Parameters
    ----------
    fraction
        Lowest and highest length kept as a fraction of the frames, uniform; at least one frame is kept.
    fill
        Value of silence, a name of `FILLS`: "min" for log spectrograms, "zero" with domain="power".
    p, domain, before_mixing, generator
        As in `SpecAugmentation`.

    Raises
    ------
    OptionError
        If `fraction` is no range within [0, 1], or `fill` is unknown.
    """

    @delegates(SpecAugmentation.__init__)
    def __init__(
        self, *, fraction: tuple[float, float] = (0.25, 1.0), fill: str = "min", p: float = 0.5, **kwargs: Any
    ):
        super().__init__(p=p, **kwargs)
        check_range(fraction, "fraction", low=0, high=1)
        if fill not in FILLS:
            raise OptionError(f"fill is {fill!r}; {did_you_mean(fill, FILLS)}")
        self.fraction, self.fill = fraction, fill

    def draw(self, n: int, mels: int, frames: int, generator: torch.Generator | None = None) -> Bands:
        """Draw the kept frames of `n` clips."""
        length = (draw_uniform((n, 1), *self.fraction, generator) * frames).round().long().clamp(min=1)
        start = draw_integers((n, 1), 0, frames - length, generator)
        return Bands(start, start + length)

    def apply(self, spec: Tensor, drawn: Bands) -> Tensor:
        """Return the spectrograms (batch, channels, mels, frames) with the other frames silenced."""
        kept = Bands(*(t.to(spec.device) for t in drawn)).cover(spec.shape[3])
        return torch.where(kept[:, None, None, :], spec, fill_values(spec, self.fill))


class _LightingDraws(NamedTuple):
    """Brightness to add and contrast to multiply with, on the scale of logits; each float64, shape (clips,)."""

    brightness: Tensor
    contrast: Tensor


def brightness_contrast(pixels: Tensor, brightness: Tensor, contrast: Tensor) -> Tensor:
    """Change brightness and contrast as fastai does: logit of the pixels, plus brightness, times contrast, sigmoid.

    Parameters
    ----------
    pixels
        Shape (batch, channels, mels, frames), within [0, 1].
    brightness, contrast
        Shape (batch,); 0 and 1 change nothing except pixels nearer than 1e-6 to 0 or 1, which are moved that far away.

    Returns
    -------
    The shape of `pixels`, within [0, 1].

    Examples
    --------
    >>> half = torch.full((1, 1, 1, 1), 0.5)
    >>> brightness_contrast(half, torch.tensor([1.0]), torch.tensor([1.0])).item()  # 1 / (1 + 1 / e)
    0.7310585975646973
    """
    brightness, contrast = (t.to(pixels)[:, None, None, None] for t in (brightness, contrast))
    return ((pixels.logit(eps=1e-6) + brightness) * contrast).sigmoid()


@AUGMENTATIONS.register(
    "brightness_contrast", source="fastai (Apache-2.0), max_lighting=0.1 of the FAT2019 fastai kernel; own code"
)
class BrightnessContrast(SpecAugmentation):
    """Change brightness and contrast, each in three of four clips by default.

    Parameters
    ----------
    max_lighting
        m, from 0 to below 1: brightness is logit(U(0.5 (1 - m), 0.5 (1 + m))), contrast log-uniform from 1 - m to 1 /
        (1 - m).
    p_lighting
        Probability of either.
    scale
        How values become pixels: "imagenet" (three channels standardized as ImageNet's), "range" (each clip and channel
        from its smallest to its largest value); None takes "imagenet" if the batch's front end makes pictures, else
        "range".
    p, domain, before_mixing, generator
        As in `SpecAugmentation`.

    Raises
    ------
    OptionError
        If `max_lighting` or `p_lighting` is out of range, or `scale` is unknown.
    """

    @delegates(SpecAugmentation.__init__)
    def __init__(self, *, max_lighting: float = 0.1, p_lighting: float = 0.75, scale: str | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        if not 0 <= max_lighting < 1:
            raise OptionError(f"max_lighting is {max_lighting}; expected a number from 0 to below 1")
        if scale not in (None, "imagenet", "range"):
            raise OptionError(f"scale is {scale!r}; expected 'imagenet', 'range' or None")
        self.max_lighting, self.scale = max_lighting, scale
        self.p_lighting = check_probability(p_lighting, "p_lighting")

    def draw(self, n: int, mels: int, frames: int, generator: torch.Generator | None = None) -> _LightingDraws:
        """Draw brightness and contrast of `n` clips."""
        m, p = self.max_lighting, self.p_lighting
        is_brighter, is_stronger = draw_bernoulli(n, p, generator), draw_bernoulli(n, p, generator)
        brightness = draw_uniform(n, 0.5 * (1 - m), 0.5 * (1 + m), generator).logit()
        contrast = draw_uniform(n, math.log(1 - m), -math.log(1 - m), generator).exp()
        return _LightingDraws(torch.where(is_brighter, brightness, 0.0), torch.where(is_stronger, contrast, 1.0))

    def augment_values(self, x: Tensor, batch: BatchInput) -> Tensor:
        """Return the augmented spectrograms, of the shape of `x`, at the scale that suits the batch's front end."""
        is_image = batch.front_end is not None and batch.front_end.normalize == "image" and x.shape[1] == 3
        scaled = copy.copy(self)
        scaled.scale = self.scale or ("imagenet" if is_image else "range")
        return super(BrightnessContrast, scaled).augment_values(x, batch)

    def apply(self, spec: Tensor, drawn: _LightingDraws) -> Tensor:
        """Return the spectrograms (batch, channels, mels, frames) with another brightness and contrast."""
        if self.scale == "imagenet":
            mean, std = (spec.new_tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
            return (brightness_contrast((spec * std + mean).clamp(0, 1), *drawn) - mean) / std
        low, high = spec.amin((2, 3), keepdim=True), spec.amax((2, 3), keepdim=True)
        size = (high - low).clamp(min=torch.finfo(spec.dtype).tiny)
        return brightness_contrast((spec - low) / size, *drawn) * size + low
