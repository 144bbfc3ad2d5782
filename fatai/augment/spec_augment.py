"""Masks over mel bins and frames: SpecAugment in every width rule and fill of the systems that fatai re-creates.

Conventions: spectrograms are (batch, channels, mels, frames); all channels of a clip are masked alike. `draw` gives the bands of each clip,
`mask_spec` is the pure function that covers them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from fastcore.meta import delegates
from torch import Tensor

from fatai.augment.base import SpecAugmentation, checked_p, checked_range, integers, uniform
from fatai.errors import OptionError
from fatai.registry import AUGMENTATIONS, did_you_mean

__all__ = ["Bands", "FILLS", "MaskSettings", "Masks", "SpecAugment", "WIDTHS", "mask_spec"]

FILLS = ("zero", "mean", "min")
"""What a mask holds: 0 (after normalisation the data set's mean, in linear power silence), or the clip's own mean or smallest value."""

WIDTHS = ("share", "integer", "double", "centre")
"""Rules for the width of a mask; see `MaskSettings`."""


@dataclass(frozen=True)
class MaskSettings:
    """How SpecAugment's masks are drawn and filled.

    Attributes
    ----------
    p
        Probability that a clip is masked at all.
    rounds
        Number of masks of each kind, uniform from the first to the second number.
    freq, time
        How wide a mask may be, over mel bins and over frames: a float is a share of the axis, an integer a count; None draws no such masks.
        For the rule "centre" a pair (smallest, largest) of half-widths.
    width
        "share": int(U(0, limit)). "integer": uniform from 0 to limit - 1. "double": f uniform from 0 to limit - 1, the mask then starts in
        [0, size - f) and ends uniformly in [start, start + f), so it is short; once f is 0 the clip gets no more masks of that kind.
        "centre": from centre - half to centre + half, cut at the edges, the centre uniform. A mask never covers a whole axis.
    fill
        A name of `FILLS`; mean and minimum are taken of each clip and channel before any mask.
    """

    p: float = 1.0
    rounds: tuple[int, int] = (2, 2)
    freq: float | int | tuple[int, int] | None = 0.15
    time: float | int | tuple[int, int] | None = 0.30
    width: str = "share"
    fill: str = "zero"

    def __post_init__(self) -> None:
        checked_p(self.p)
        checked_range(self.rounds, "rounds", low=1)
        if self.width not in WIDTHS:
            raise OptionError(f"width is {self.width!r}; {did_you_mean(self.width, WIDTHS)}")
        if self.fill not in FILLS:
            raise OptionError(f"fill is {self.fill!r}; {did_you_mean(self.fill, FILLS)}")
        for name in ("freq", "time"):
            self._check_limit(name, getattr(self, name))

    def _check_limit(self, name: str, limit: Any) -> None:
        if limit is None:
            return
        if self.width == "centre":
            if not isinstance(limit, (tuple, list)):
                raise OptionError(
                    f"{name} is {limit!r}; the width rule 'centre' takes a pair of half-widths, such as (8, 31)"
                )
            checked_range(limit, name, low=0)
        elif isinstance(limit, (tuple, list)) or limit < 0 or (isinstance(limit, float) and limit > 1):
            raise OptionError(
                f"{name} is {limit!r}; expected a share of the axis between 0.0 and 1.0, or a whole number of bins or frames"
            )


class Bands(NamedTuple):
    """Stretches of one axis, each (clips, masks): from `start` up to, without, `stop`."""

    start: Tensor
    stop: Tensor

    def cover(self, size: int) -> Tensor:
        """Which of `size` places lie in any of a clip's bands: bool (clips, size)."""
        at = torch.arange(size, device=self.start.device)
        return ((at >= self.start[..., None]) & (at < self.stop[..., None])).any(1)


class Masks(NamedTuple):
    """Masks of a batch over mel bins and over frames."""

    freq: Bands
    time: Bands


def _draw_bands(
    settings: MaskSettings, limit: Any, size: int, rounds: Tensor, generator: torch.Generator | None
) -> Bands:
    shape = (len(rounds), settings.rounds[1])
    if limit is None:
        nothing = torch.zeros(shape, dtype=torch.long)
        return Bands(nothing, nothing)
    if settings.width == "centre":
        centre, half = integers(shape, 0, size - 1, generator), integers(shape, limit[0], limit[1], generator)
        start, stop = (centre - half).clamp(min=0), (centre + half).clamp(max=size)
        stop = torch.where(stop - start == size, stop - 1, stop)
    else:
        most = min(limit * size if isinstance(limit, float) else limit, size)
        first = (
            torch.floor(uniform(shape, 0, most if settings.width == "share" else int(most), generator))
            .long()
            .clamp(max=size - 1)
        )
        start = integers(shape, 0, size - first - int(settings.width == "double"), generator)
        if settings.width == "double":
            inside = (first - 1).clamp(min=0)
            # A width of 0 ends the drawing of this kind of mask: what comes after it is empty, too.
            stop = start + integers(shape, 0, inside, generator) * (first > 0).cumprod(1)
        else:
            stop = start + first
    used = torch.arange(shape[1]) < rounds[:, None]
    return Bands(start, torch.where(used, stop, start))


def fill_of(spec: Tensor, fill: str) -> Tensor:
    """What masks hold, for each clip and channel: (batch, channels, 1, 1)."""
    if fill == "mean":
        return spec.mean((2, 3), keepdim=True)
    if fill == "min":
        return spec.amin((2, 3), keepdim=True)
    return spec.new_zeros(*spec.shape[:2], 1, 1)


def mask_spec(spec: Tensor, masks: Masks, fill: str = "zero") -> Tensor:
    """Spectrograms with bands of bins and of frames replaced by one value.

    Parameters
    ----------
    spec
        Shape (batch, channels, mels, frames).
    masks
        Of as many clips.
    fill
        A name of `FILLS`.

    Examples
    --------
    >>> band = lambda start, stop: Bands(torch.tensor([[start]]), torch.tensor([[stop]]))
    >>> mask_spec(torch.ones(1, 1, 2, 4), Masks(band(0, 1), band(1, 3)))[0, 0]
    tensor([[0., 0., 0., 0.],
            [1., 0., 0., 1.]])
    """
    freq, time = (Bands(*(t.to(spec.device) for t in bands)) for bands in masks)
    hidden = freq.cover(spec.shape[2])[:, None, :, None] | time.cover(spec.shape[3])[:, None, None, :]
    return torch.where(hidden, fill_of(spec, fill), spec)


@AUGMENTATIONS.register(
    "spec_augment", source="Park et al., arXiv:1904.08779; as the FAT2019 9th place kernel draws it"
)
class SpecAugment(SpecAugmentation):
    """Masks over mel bins and frames; as it stands, the 9th place's: two of each, up to 15 % and 30 % wide, filled with 0.

    Parameters
    ----------
    p, rounds, freq, time, width, fill
        As in `MaskSettings`; `rounds` may be one number.
    domain, before_mixing, generator
        As in `SpecAugmentation`.

    Other systems' are named in `AUGMENTATIONS`: `AUGMENTATIONS.build("spec_augment_panns")`.
    """

    def __init__(
        self,
        *,
        p: float = 1.0,
        rounds: int | tuple[int, int] = 2,
        freq: float | int | tuple[int, int] | None = 0.15,
        time: float | int | tuple[int, int] | None = 0.30,
        width: str = "share",
        fill: str = "zero",
        domain: str = "log",
        before_mixing: bool = True,
        generator: torch.Generator | None = None,
    ):
        super().__init__(p=p, domain=domain, before_mixing=before_mixing, generator=generator)
        both = (rounds, rounds) if isinstance(rounds, int) else (rounds[0], rounds[1])
        self.masks = MaskSettings(p, both, freq, time, width, fill)

    def draw(self, n: int, mels: int, frames: int, generator: torch.Generator | None = None) -> Masks:
        rounds = integers(n, *self.masks.rounds, generator)
        freq = _draw_bands(self.masks, self.masks.freq, mels, rounds, generator)
        return Masks(freq, _draw_bands(self.masks, self.masks.time, frames, rounds, generator))

    def apply(self, spec: Tensor, drawn: Masks) -> Tensor:
        return mask_spec(spec, drawn, self.masks.fill)


@AUGMENTATIONS.register("spec_augment_first", source="FAT2019 1st place (argus-freesound, MIT); own code")
@delegates(SpecAugment.__init__)
def spec_augment_first(**kwargs: Any) -> SpecAugment:
    """SpecAugment of the 1st place: in half of the clips one or two rounds, up to 15 % and 20 %, filled with the picture's minimum."""
    return SpecAugment(**{"p": 0.5, "rounds": (1, 2), "freq": 0.15, "time": 0.20, "fill": "min", **kwargs})


@AUGMENTATIONS.register("spec_augment_kaggle_fat", source="FAT2019 36th place repository; own code")
@delegates(SpecAugment.__init__)
def spec_augment_kaggle_fat(**kwargs: Any) -> SpecAugment:
    """SpecAugment of the 36th place: two and two doubly random masks, 20 % at most, filled with the clip's mean, after mixup."""
    return SpecAugment(
        **{"freq": 0.2, "time": 0.2, "width": "double", "fill": "mean", "before_mixing": False, **kwargs}
    )


@AUGMENTATIONS.register("spec_augment_panns", source="PANNs, arXiv:1912.10211 (MIT); own code")
@delegates(SpecAugment.__init__)
def spec_augment_panns(**kwargs: Any) -> SpecAugment:
    """SpecAugment of PANNs: two stripes of 0 to 63 frames and two of up to an eighth of the bins, 0 behind bn0, before mixup."""
    return SpecAugment(**{"freq": 0.125, "time": 64, "width": "integer", "domain": "bn0", **kwargs})


@AUGMENTATIONS.register("spec_augment_fourth", source="FAT2019 4th place repository (MIT); own code")
@delegates(SpecAugment.__init__)
def spec_augment_fourth(**kwargs: Any) -> SpecAugment:
    """Frequency mask of the 4th place: in half of the mixtures one, 8 to 31 bins to either side of its centre, 0 in linear power."""
    masks = {"p": 0.5, "rounds": 1, "freq": (8, 31), "time": None, "width": "centre"}
    return SpecAugment(**{**masks, "domain": "power", "before_mixing": False, **kwargs})


@AUGMENTATIONS.register("spec_augment_gold_plan", source="Gold-only plan notebook, FAT2019; own code")
@delegates(SpecAugment.__init__)
def spec_augment_gold_plan(**kwargs: Any) -> SpecAugment:
    """SpecAugment of the gold plan: two masks of at most 20 bins and two of at most 10 % of the frames."""
    return SpecAugment(**{"freq": 21, "time": 0.10, **kwargs})
