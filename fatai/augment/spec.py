"""Random changes of spectrograms beside masks, on their device and for each clip by itself: crops, warps, flips, light.

Conventions: spectrograms are (batch, channels, mels, frames); all channels of a clip are changed alike. Each change is a fastai callback
(`cbs=Flip()`) whose `draw` gives all random numbers as a named tuple with a row for each clip, and whose `apply` is a pure function:
nothing changes in place, dtype, device and shape stay. `change(spec)` does both.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from fastcore.meta import delegates
from torch import Tensor

from fatai.augment.base import SpecAugmentation, chance, checked_p, checked_range, integers, uniform
from fatai.augment.spec_augment import FILLS, Bands, fill_of
from fatai.errors import OptionError
from fatai.registry import AUGMENTATIONS, did_you_mean
from fatai.audio.channels import IMAGENET_MEAN, IMAGENET_STD

__all__ = [
    "Boxes",
    "ContentShrink",
    "Flip",
    "BrightnessContrast",
    "RandomResizedCrop",
    "TimeWarp",
    "light",
    "resized_crop",
    "time_warp",
]


class Boxes(NamedTuple):
    """A rectangle of each clip: its lowest bin, first frame, height in bins, width in frames; int64 (clips,)."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


def _between(start: Tensor, length: Tensor, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For `size` places stretched over [start, start + length): the neighbours below and above, and how far between them, (clips, size)."""
    start, length = start.to(device)[:, None], length.to(device)[:, None]
    at = ((torch.arange(size, device=device, dtype=torch.float64) + 0.5) * (length / size) - 0.5).clamp(min=0)
    at = torch.minimum(at, (length - 1).double())
    low = at.floor().long()
    return start + low, start + torch.minimum(low + 1, length - 1), at - low


def _interpolated(spec: Tensor, low: Tensor, high: Tensor, part: Tensor, dim: int) -> Tensor:
    """Linear interpolation along one dimension between places that differ from clip to clip, each (clips, size)."""
    shape = [len(spec), 1, 1, 1]
    shape[dim] = low.shape[1]
    wanted = [*spec.shape]
    wanted[dim] = low.shape[1]
    below, above = (spec.gather(dim, i.view(shape).expand(wanted)) for i in (low, high))
    return torch.lerp(below, above, part.to(spec.dtype).view(shape))


def resized_crop(spec: Tensor, boxes: Boxes) -> Tensor:
    """A rectangle of each spectrogram, stretched to the whole with bilinear interpolation that sees nothing outside of it.

    Examples
    --------
    >>> spec = torch.tensor([0.0, 2.0, 4.0, 9.0]).view(1, 1, 1, 4)
    >>> resized_crop(spec, Boxes(*torch.tensor([[0], [0], [1], [2]])))[0, 0]
    tensor([[0.0000, 0.5000, 1.5000, 2.0000]])
    """
    spec = _interpolated(spec, *_between(boxes.top, boxes.height, spec.shape[2], spec.device), dim=2)
    return _interpolated(spec, *_between(boxes.left, boxes.width, spec.shape[3], spec.device), dim=3)


@AUGMENTATIONS.register(
    "random_resized_crop", source="Szegedy et al., arXiv:1409.4842; ranges of the FAT2019 1st place (MIT); own code"
)
class RandomResizedCrop(SpecAugmentation):
    """A random rectangle of the spectrogram stretched to its whole: a shift and scaling of pitch and tempo.

    Parameters
    ----------
    scale
        Area of the rectangle as a share of the whole, uniform.
    ratio
        Its width/height ratio as a factor of the whole's, log-uniform. The 1st place's 1.7 to 2.3 of 128 x 256 pictures is 0.85 to 1.15;
        its 1.6 to 2.4 is 0.8 to 1.2.
    tries
        Rectangles drawn until one fits; after that the whole spectrogram is taken.
    p, domain, before_mixing, generator
        As in `SpecAugmentation`.
    """

    @delegates(SpecAugmentation.__init__)
    def __init__(
        self,
        *,
        scale: tuple[float, float] = (0.8, 1.0),
        ratio: tuple[float, float] = (0.85, 1.15),
        tries: int = 10,
        p: float = 0.33,
        **kwargs: Any,
    ):
        super().__init__(p=p, **kwargs)
        checked_range(scale, "scale", low=1e-6, high=1)
        checked_range(ratio, "ratio", low=1e-6)
        if tries < 1:
            raise OptionError(f"tries is {tries}; expected at least 1")
        self.scale, self.ratio, self.tries = scale, ratio, tries

    def draw(self, n: int, mels: int, frames: int, generator: torch.Generator | None = None) -> Boxes:
        shape = (n, self.tries)
        area = uniform(shape, *self.scale, generator) * mels * frames
        ratio = uniform(shape, math.log(self.ratio[0]), math.log(self.ratio[1]), generator).exp() * frames / mels
        width, height = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
        fits = (width >= 1) & (width <= frames) & (height >= 1) & (height <= mels)
        first = fits.int().argmax(1, keepdim=True)
        found = fits.any(1)
        height = torch.where(found, height.gather(1, first)[:, 0], mels)
        width = torch.where(found, width.gather(1, first)[:, 0], frames)
        return Boxes(integers(n, 0, mels - height, generator), integers(n, 0, frames - width, generator), height, width)

    def apply(self, spec: Tensor, drawn: Boxes) -> Tensor:
        return resized_crop(spec, drawn)


class _Warp(NamedTuple):
    """Which frame moves, and to where; float64 (clips,)."""

    source: Tensor
    target: Tensor


def time_warp(spec: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Move frame `source` to `target` and stretch what lies on either side of it linearly; first and last frame stay.

    Parameters
    ----------
    spec
        Shape (batch, channels, mels, frames).
    source, target
        Frame numbers, shape (batch,), strictly between 0 and frames - 1.

    Examples
    --------
    >>> spec = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 5)
    >>> time_warp(spec, torch.tensor([1.0]), torch.tensor([2.0]))[0, 0]
    tensor([[0.0000, 0.5000, 1.0000, 2.5000, 4.0000]])
    """
    last = spec.shape[3] - 1
    source, target = (t.to(spec.device).double()[:, None] for t in (source, target))
    at = torch.arange(last + 1, device=spec.device, dtype=torch.float64)
    before, after = at * source / target, last - (last - at) * (last - source) / (last - target)
    place = torch.where(at < target, before, after).clamp(0, last)
    low = place.floor().long()
    return _interpolated(spec, low, (low + 1).clamp(max=last), place - low, dim=3)


@AUGMENTATIONS.register("time_warp", source="Park et al., arXiv:1904.08779; rate of the FAT2019 36th place; own code")
class TimeWarp(SpecAugmentation):
    """One frame is moved by up to `rate` of the length, and what lies around it is stretched.

    Parameters
    ----------
    rate
        Largest shift as a share of the frames, below 0.5; the moved frame keeps as far from either end.
    p, domain, before_mixing, generator
        As in `SpecAugmentation`.
    """

    @delegates(SpecAugmentation.__init__)
    def __init__(self, *, rate: float = 0.1, p: float = 1.0, **kwargs: Any):
        super().__init__(p=p, **kwargs)
        if not 0 <= rate < 0.5:
            raise OptionError(f"rate is {rate}; expected a share of the frames from 0 to below 0.5")
        self.rate = rate

    def draw(self, n: int, mels: int, frames: int, generator: torch.Generator | None = None) -> _Warp:
        # Both stay off the ends, where there would be nothing left to stretch.
        reach = min(int(self.rate * frames), max(0, (frames - 3) // 2))
        source = uniform(n, reach + 1, max(reach + 1, frames - 2 - reach), generator)
        return _Warp(source, source + uniform(n, -reach, reach, generator))

    def apply(self, spec: Tensor, drawn: _Warp) -> Tensor:
        return time_warp(spec, drawn.source, drawn.target) if spec.shape[3] >= 3 else spec


class _Nothing(NamedTuple):
    """No draws beyond which clips are chosen."""


@AUGMENTATIONS.register("flip", source="FAT2019 fastai kernel: do_flip; own code")
class Flip(SpecAugmentation):
    """Time runs backwards in half of the clips."""

    @delegates(SpecAugmentation.__init__)
    def __init__(self, *, p: float = 0.5, **kwargs: Any):
        super().__init__(p=p, **kwargs)

    def draw(self, n: int, mels: int, frames: int, generator: torch.Generator | None = None) -> _Nothing:
        return _Nothing()

    def apply(self, spec: Tensor, drawn: _Nothing) -> Tensor:
        return spec.flip(-1)


@AUGMENTATIONS.register(
    "content_shrink", source="FAT2019 4th place repository, crop 'additional' (MIT), rows and frames set right"
)
class ContentShrink(SpecAugmentation):
    """Only a random stretch of the frames is kept, the rest is silence: the network learns from little.

    Parameters
    ----------
    share
        Length kept as a share of the frames, uniform; at least one frame.
    fill
        What silence is, a name of `FILLS`: "min" for log spectrograms, "zero" with domain="power".
    p, domain, before_mixing, generator
        As in `SpecAugmentation`.
    """

    @delegates(SpecAugmentation.__init__)
    def __init__(self, *, share: tuple[float, float] = (0.25, 1.0), fill: str = "min", p: float = 0.5, **kwargs: Any):
        super().__init__(p=p, **kwargs)
        checked_range(share, "share", low=0, high=1)
        if fill not in FILLS:
            raise OptionError(f"fill is {fill!r}; {did_you_mean(fill, FILLS)}")
        self.share, self.fill = share, fill

    def draw(self, n: int, mels: int, frames: int, generator: torch.Generator | None = None) -> Bands:
        kept = (uniform((n, 1), *self.share, generator) * frames).round().long().clamp(min=1)
        start = integers((n, 1), 0, frames - kept, generator)
        return Bands(start, start + kept)

    def apply(self, spec: Tensor, drawn: Bands) -> Tensor:
        kept = Bands(*(t.to(spec.device) for t in drawn)).cover(spec.shape[3])
        return torch.where(kept[:, None, None, :], spec, fill_of(spec, self.fill))


class _Light(NamedTuple):
    """Brightness to add and contrast to multiply with, on the scale of logits; float64 (clips,)."""

    brightness: Tensor
    contrast: Tensor


def light(pixels: Tensor, brightness: Tensor, contrast: Tensor) -> Tensor:
    """Brightness and contrast as fastai has them: pixels in [0, 1] go through logit, + brightness, * contrast, and the sigmoid.

    Parameters
    ----------
    pixels
        Shape (batch, channels, mels, frames), in [0, 1].
    brightness, contrast
        Shape (batch,); 0 and 1 change nothing but pixels nearer than 1e-6 to black or white, which become that near.

    Examples
    --------
    >>> light(torch.full((1, 1, 1, 1), 0.5), torch.tensor([1.0]), torch.tensor([1.0])).item()  # 1 / (1 + 1 / e)
    0.7310585975646973
    """
    brightness, contrast = (t.to(pixels)[:, None, None, None] for t in (brightness, contrast))
    return ((pixels.logit(eps=1e-6) + brightness) * contrast).sigmoid()


@AUGMENTATIONS.register(
    "lighting", source="fastai (Apache-2.0), max_lighting=0.1 of the FAT2019 fastai kernel; own code"
)
class BrightnessContrast(SpecAugmentation):
    """Brightness and contrast, each in three of four clips.

    Parameters
    ----------
    max_lighting
        Brightness is logit(U(0.5 (1 - m), 0.5 (1 + m))), contrast log-uniform from 1 - m to 1 / (1 - m).
    p_lighting
        Probability of either.
    scale
        How values become pixels: "imagenet" (three channels standardised as ImageNet's), "range" (each clip and channel from its smallest
        to its largest value); None takes "imagenet" if the batch's front end makes pictures.
    domain, before_mixing, generator
        As in `SpecAugmentation`.
    """

    @delegates(SpecAugmentation.__init__)
    def __init__(self, *, max_lighting: float = 0.1, p_lighting: float = 0.75, scale: str | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        if not 0 <= max_lighting < 1:
            raise OptionError(f"max_lighting is {max_lighting}; expected a number from 0 to below 1")
        if scale not in (None, "imagenet", "range"):
            raise OptionError(f"scale is {scale!r}; expected 'imagenet', 'range' or None")
        self.max_lighting, self.p_lighting, self.scale = max_lighting, checked_p(p_lighting, "p_lighting"), scale

    def draw(self, n: int, mels: int, frames: int, generator: torch.Generator | None = None) -> _Light:
        m = self.max_lighting
        bright, strong = chance(n, self.p_lighting, generator), chance(n, self.p_lighting, generator)
        brightness = uniform(n, 0.5 * (1 - m), 0.5 * (1 + m), generator).logit()
        contrast = uniform(n, math.log(1 - m), -math.log(1 - m), generator).exp()
        return _Light(torch.where(bright, brightness, 0.0), torch.where(strong, contrast, 1.0))

    def change_batch(self, x: Tensor, batch: Tensor) -> Tensor:
        self._picture = getattr(getattr(batch, "front_end", None), "normalize", None) == "image" and x.shape[1] == 3
        return super().change_batch(x, batch)

    _picture = False

    def apply(self, spec: Tensor, drawn: _Light) -> Tensor:
        if self.scale == "imagenet" or (self.scale is None and self._picture):
            mean, std = (spec.new_tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
            return (light((spec * std + mean).clamp(0, 1), *drawn) - mean) / std
        low, high = spec.amin((2, 3), keepdim=True), spec.amax((2, 3), keepdim=True)
        size = (high - low).clamp(min=torch.finfo(spec.dtype).tiny)
        return light((spec - low) / size, *drawn) * size + low
