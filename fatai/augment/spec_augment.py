"""SpecAugment: masks over mel bins and frames, with every width rule and fill of the systems that fatai re-creates.

Conventions: spectrograms are (batch, channels, mels, frames); all channels of a clip are masked alike. `draw` returns
the bands of each clip, `mask_spec` is the pure function that covers them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from fastcore.meta import delegates
from torch import Tensor

from fatai.augment.base import SpecAugmentation
from fatai.augment.draws import check_probability, check_range, draw_integers, draw_uniform
from fatai.errors import OptionError
from fatai.registry import AUGMENTATIONS, did_you_mean

__all__ = ["FILLS", "MaskSettings", "SpecAugment", "WIDTHS", "mask_spec"]

FILLS = ("zero", "mean", "min")
"""Values of masked parts: 0 (the data set's mean after normalization, silence in power), the clip's mean or minimum."""

WIDTHS = ("fraction", "integer", "double", "center")
"""Rules for the width of a mask; see `MaskSettings`."""


@dataclass(frozen=True)
class MaskSettings:
    """Settings of SpecAugment's masks.

    Attributes
    ----------
    p
        Probability that a clip is masked at all.
    n_masks
        Lowest and highest number of masks of each kind, uniform.
    freq, time
        Largest width of a mask over mel bins and over frames: a float is a fraction of the axis, an integer a count;
        None draws no such masks. For the rule "center" a pair (smallest, largest) of half-widths.
    width
        "fraction": int(U(0, limit)). "integer": uniform from 0 to limit - 1. "double": f uniform from 0 to limit - 1,
        the mask then starts in [0, size - f) and ends uniformly in [start, start + f), so it is short; once f is 0 the
        clip gets no more masks of that kind. "center": from center - half to center + half, cut at the edges, the
        center uniform. A mask never covers a whole axis.
    fill
        A name of `FILLS`; mean and minimum are taken of each clip and channel before any mask.

    Raises
    ------
    OptionError
        If a value is unknown or out of range.
    """

    p: float = 1.0
    n_masks: tuple[int, int] = (2, 2)
    freq: float | int | tuple[int, int] | None = 0.15
    time: float | int | tuple[int, int] | None = 0.30
    width: str = "fraction"
    fill: str = "zero"

    def __post_init__(self) -> None:
        check_probability(self.p)
        check_range(self.n_masks, "n_masks", low=1)
        if self.width not in WIDTHS:
            raise OptionError(f"width is {self.width!r}; {did_you_mean(self.width, WIDTHS)}")
        if self.fill not in FILLS:
            raise OptionError(f"fill is {self.fill!r}; {did_you_mean(self.fill, FILLS)}")
        for name in ("freq", "time"):
            self._check_limit(name, getattr(self, name))

    def _check_limit(self, name: str, limit: Any) -> None:
        if limit is None:
            return
        if self.width == "center":
            if not isinstance(limit, (tuple, list)):
                raise OptionError(
                    f"{name} is {limit!r}; the width rule 'center' takes a pair of half-widths, such as (8, 31)"
                )
            check_range(limit, name, low=0)
        elif isinstance(limit, (tuple, list)) or limit < 0 or (isinstance(limit, float) and limit > 1):
            raise OptionError(
                f"{name} is {limit!r}; expected a fraction of the axis between 0.0 and 1.0, or a whole number of bins "
                "or frames"
            )


class Bands(NamedTuple):
    """Stretches [start, stop) of one axis, each int64, shape (clips, masks)."""

    start: Tensor
    stop: Tensor

    def cover(self, size: int) -> Tensor:
        """Return which of `size` positions lie in any of a clip's bands: bool, shape (clips, size)."""
        at = torch.arange(size, device=self.start.device)
        return ((at >= self.start[..., None]) & (at < self.stop[..., None])).any(1)


class Masks(NamedTuple):
    """Masks of a batch over mel bins and over frames."""

    freq: Bands
    time: Bands


def _draw_bands(
    settings: MaskSettings, limit: Any, size: int, n_masks: Tensor, generator: torch.Generator | None
) -> Bands:
    """Draw the masks of one axis, (clips, masks); of each clip only the first `n_masks`, (clips,), are not empty."""
    shape = (len(n_masks), settings.n_masks[1])
    if limit is None:
        nothing = torch.zeros(shape, dtype=torch.long)
        return Bands(nothing, nothing)
    draw = _draw_centered if settings.width == "center" else _draw_from_start
    start, stop = draw(settings, limit, size, shape, generator)
    used = torch.arange(shape[1]) < n_masks[:, None]
    return Bands(start, torch.where(used, stop, start))


def _draw_centered(
    settings: MaskSettings, limit: Any, size: int, shape: tuple[int, int], generator: torch.Generator | None
) -> Bands:
    center, half = draw_integers(shape, 0, size - 1, generator), draw_integers(shape, limit[0], limit[1], generator)
    start, stop = (center - half).clamp(min=0), (center + half).clamp(max=size)
    return Bands(start, torch.where(stop - start == size, stop - 1, stop))


def _draw_from_start(
    settings: MaskSettings, limit: Any, size: int, shape: tuple[int, int], generator: torch.Generator | None
) -> Bands:
    max_width = min(limit * size if isinstance(limit, float) else limit, size)
    high = max_width if settings.width == "fraction" else int(max_width)
    width = torch.floor(draw_uniform(shape, 0, high, generator)).long().clamp(max=size - 1)
    start = draw_integers(shape, 0, size - width - int(settings.width == "double"), generator)
    if settings.width == "double":
        # A width of 0 ends the drawing of this kind of mask: the masks after it are empty, too.
        inner = draw_integers(shape, 0, (width - 1).clamp(min=0), generator)
        return Bands(start, start + inner * (width > 0).cumprod(1))
    return Bands(start, start + width)


def fill_values(spec: Tensor, fill: str) -> Tensor:
    """Return the value of masked parts for spectrograms (batch, channels, mels, frames): (batch, channels, 1, 1)."""
    if fill == "mean":
        return spec.mean((2, 3), keepdim=True)
    if fill == "min":
        return spec.amin((2, 3), keepdim=True)
    return spec.new_zeros(*spec.shape[:2], 1, 1)


def mask_spec(spec: Tensor, masks: Masks, fill: str = "zero") -> Tensor:
    """Replace bands of bins and of frames by one value.

    Parameters
    ----------
    spec
        Shape (batch, channels, mels, frames).
    masks
        Of as many clips.
    fill
        A name of `FILLS`.

    Returns
    -------
    The shape of `spec`.

    Examples
    --------
    >>> band = lambda start, stop: Bands(torch.tensor([[start]]), torch.tensor([[stop]]))
    >>> mask_spec(torch.ones(1, 1, 2, 4), Masks(band(0, 1), band(1, 3)))[0, 0]
    tensor([[0., 0., 0., 0.],
            [1., 0., 0., 1.]])
    """
    freq, time = (Bands(*(t.to(spec.device) for t in bands)) for bands in masks)
    masked = freq.cover(spec.shape[2])[:, None, :, None] | time.cover(spec.shape[3])[:, None, None, :]
    return torch.where(masked, fill_values(spec, fill), spec)


@AUGMENTATIONS.register(
    "spec_augment", source="Park et al., arXiv:1904.08779; as the FAT2019 9th place kernel draws it"
)
class SpecAugment(SpecAugmentation):
    """Mask bands of mel bins and of frames.

    The defaults are the 9th place's: two of each, up to 15 % and 30 % wide, filled with 0.
    `AUGMENTATIONS` names the settings of other systems: `AUGMENTATIONS.build("spec_augment_panns")`.

    Parameters
    ----------
    p, n_masks, freq, time, width, fill
        As in `MaskSettings`; `n_masks` may be one number.
    domain, before_mixing, generator
        As in `SpecAugmentation`.

    Raises
    ------
    OptionError
        If a value is unknown or out of range.
    """

    def __init__(
        self,
        *,
        p: float = 1.0,
        n_masks: int | tuple[int, int] = 2,
        freq: float | int | tuple[int, int] | None = 0.15,
        time: float | int | tuple[int, int] | None = 0.30,
        width: str = "fraction",
        fill: str = "zero",
        domain: str = "log",
        before_mixing: bool = True,
        generator: torch.Generator | None = None,
    ):
        super().__init__(p=p, domain=domain, before_mixing=before_mixing, generator=generator)
        both = (n_masks, n_masks) if isinstance(n_masks, int) else (n_masks[0], n_masks[1])
        self.masks = MaskSettings(p, both, freq, time, width, fill)

    def draw(self, n: int, mels: int, frames: int, generator: torch.Generator | None = None) -> Masks:
        """Draw the masks of `n` clips."""
        n_masks = draw_integers(n, *self.masks.n_masks, generator)
        freq = _draw_bands(self.masks, self.masks.freq, mels, n_masks, generator)
        return Masks(freq, _draw_bands(self.masks, self.masks.time, frames, n_masks, generator))

    def apply(self, spec: Tensor, drawn: Masks) -> Tensor:
        """Return the masked spectrograms, (batch, channels, mels, frames)."""
        return mask_spec(spec, drawn, self.masks.fill)


@AUGMENTATIONS.register("spec_augment_first_place", source="FAT2019 1st place (argus-freesound, MIT); own code")
@delegates(SpecAugment.__init__)
def spec_augment_first_place(**kwargs: Any) -> SpecAugment:
    """Build SpecAugment of the 1st place: p 0.5, one or two of each, up to 15 % and 20 %, filled with the minimum."""
    return SpecAugment(**{"p": 0.5, "n_masks": (1, 2), "freq": 0.15, "time": 0.20, "fill": "min", **kwargs})


@AUGMENTATIONS.register("spec_augment_kaggle_fat", source="FAT2019 36th place repository; own code")
@delegates(SpecAugment.__init__)
def spec_augment_kaggle_fat(**kwargs: Any) -> SpecAugment:
    """Build SpecAugment of the 36th place: two of each, "double", up to 20 %, filled with the mean, after mixup."""
    return SpecAugment(
        **{"freq": 0.2, "time": 0.2, "width": "double", "fill": "mean", "before_mixing": False, **kwargs}
    )


@AUGMENTATIONS.register("spec_augment_panns", source="PANNs, arXiv:1912.10211 (MIT); own code")
@delegates(SpecAugment.__init__)
def spec_augment_panns(**kwargs: Any) -> SpecAugment:
    """Build SpecAugment of PANNs: two masks of 0 to 63 frames, two of up to an eighth of the bins, behind bn0."""
    return SpecAugment(**{"freq": 0.125, "time": 64, "width": "integer", "domain": "bn0", **kwargs})


@AUGMENTATIONS.register("spec_augment_fourth_place", source="FAT2019 4th place repository (MIT); own code")
@delegates(SpecAugment.__init__)
def spec_augment_fourth_place(**kwargs: Any) -> SpecAugment:
    """Build the 4th place's frequency mask: p 0.5, 8 to 31 bins to either side, 0 in linear power, after mixup."""
    masks = {"p": 0.5, "n_masks": 1, "freq": (8, 31), "time": None, "width": "center"}
    return SpecAugment(**{**masks, "domain": "power", "before_mixing": False, **kwargs})


@AUGMENTATIONS.register("spec_augment_gold_plan", source="Gold-only plan notebook, FAT2019; own code")
@delegates(SpecAugment.__init__)
def spec_augment_gold_plan(**kwargs: Any) -> SpecAugment:
    """Build SpecAugment of the gold plan: two masks of up to 20 bins and two of up to 10 % of the frames."""
    return SpecAugment(**{"freq": 21, "time": 0.10, **kwargs})
