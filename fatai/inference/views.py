"""Kinds of views: which stretches of a clip are listened to.

A *view* is a stretch of a clip, by default of `crop_s` seconds. A kind of view is a function of (wave, settings, generator), where
`wave` is the trimmed clip, shape (samples,); it returns a `ClipViews`: that wave, filled where it has to be, and the stretches of it that the
network is shown. Nothing is copied, so a kind with hundreds of views of a clip needs no more memory than one with a single view. What a
kind chooses depends on the clip and the generator alone, never on other clips. A clip no longer than a crop has one view, unless its kind
says otherwise, because all would be the same. Kinds can be pickled, so workers need not be forked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fatai.data.config import ClipConfig
from fatai.errors import OptionError
from fatai.registry import VIEWS
from fatai.audio.waveform import Section, fit_length

__all__ = [
    "ClipViews",
    "Views",
    "adaptive_views",
    "even_views",
    "padded_views",
    "random_views",
    "tile_views",
    "varied_views",
    "whole_view",
]


class ClipViews(NamedTuple):
    """A clip as it is listened to: `wave` (samples,), filled where it was too short, and the `stretches` of it that are heard."""

    wave: Tensor
    stretches: Sequence[Section]

    def views(self) -> Iterator[Tensor]:
        """The stretches, one after another, without copying."""
        return (self.wave[start:stop] for start, stop in self.stretches)


Views = Callable[[Tensor, ClipConfig, torch.Generator], ClipViews]


def _checked(n: int) -> None:
    if n < 1:
        raise OptionError(f"n is {n}; expected at least one view")


def _above_zero(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise OptionError(f"{name} is {value}; expected a number above 0")


def _crops(wave: Tensor, starts: Sequence[int], size: int) -> ClipViews:
    return ClipViews(wave, [Section(start, start + size) for start in starts])


def _spread(last: int, n: int) -> list[int]:
    """`n` whole numbers evenly from 0 to `last`, none of them twice; one alone is the middle."""
    if last == 0 or n == 1:
        return [last // 2]
    return list(dict.fromkeys(round(last * i / (n - 1)) for i in range(n)))


def _up_to(samples: int, step: int) -> int:
    """The next multiple of `step`."""
    return -(-samples // step) * step


@VIEWS.register("random", source="FAT2019 9th place kernel: 5 views while training, 25 at the end")
def random_views(n: int = 25) -> Views:
    """`n` crops that start anywhere, drawn for each clip from its own seed."""
    _checked(n)
    return partial(_random, n)


def _random(n: int, wave: Tensor, settings: ClipConfig, generator: torch.Generator) -> ClipViews:
    filled, size = settings.fit(wave), settings.crop_samples
    last = len(filled) - size
    return _crops(filled, torch.randint(last + 1, (n if last else 1,), generator=generator).tolist(), size)


@VIEWS.register("even", source="FAT2019 36th place repository: 8 crops from the first frame to the last")
def even_views(n: int = 8) -> Views:
    """`n` crops evenly spaced from the start to the end; one alone is the middle."""
    _checked(n)
    return partial(_even, n)


def _even(n: int, wave: Tensor, settings: ClipConfig, generator: torch.Generator) -> ClipViews:
    filled, size = settings.fit(wave), settings.crop_samples
    return _crops(filled, _spread(len(filled) - size, n), size)


@VIEWS.register(
    "varied",
    source="notebook 'Gold-only plan' for FAT2019: 5 even crops, short clips padded or looped from varied starts",
)
def varied_views(n: int = 5) -> Views:
    """`n` crops evenly spaced; of a clip shorter than a crop, as many in which it lies at different places of its filling."""
    _checked(n)
    return partial(_varied, n)


def _varied(n: int, wave: Tensor, settings: ClipConfig, generator: torch.Generator) -> ClipViews:
    size, spare = settings.crop_samples, settings.crop_samples - len(wave)
    if spare <= 0:
        return even_views(n)(wave, settings, generator)
    # A looped clip repeats itself after its length, so its first place is also its last.
    last = min(spare, len(wave) - 1) if settings.pad_mode.startswith("wrap") else spare
    return _crops(fit_length(wave, size + last, settings.pad_mode, left=last), _spread(last, n)[::-1], size)


@VIEWS.register("adaptive", source="FAT2019 36th place write-up: overlapping crops, their number by the clip's length")
def adaptive_views(n: int = 32, *, overlap: float = 0.5) -> Views:
    """As few even crops as share at least `overlap` of themselves with the next; at most `n`, further apart in longer clips."""
    _checked(n)
    if not 0 <= overlap < 1:
        raise OptionError(f"overlap is {overlap}; expected a share of a crop, 0 to below 1")
    return partial(_adaptive, n, overlap)


def _adaptive(n: int, overlap: float, wave: Tensor, settings: ClipConfig, generator: torch.Generator) -> ClipViews:
    filled, size = settings.fit(wave), settings.crop_samples
    last = len(filled) - size
    steps = math.ceil(last / max(1, math.floor(size * (1 - overlap))))
    return _crops(filled, _spread(last, min(n, steps + 1)), size)


@VIEWS.register(
    "tiles", source="FAT2019 1st place repository (argus-freesound): steps of 64 frames, of 128 in the final ensemble"
)
def tile_views(*, step_frames: int = 64, step_s: float | None = None) -> Views:
    """Overlapping crops, one every `step_frames` frames of the front end or every `step_s` seconds, but at least one every crop.

    The clip is filled up evenly on both sides until a whole number of steps leads from the first crop to the last. Theirs fills with the
    lowest value of the spectrogram, ours with what the settings fill short clips with.
    """
    _above_zero(step_frames=step_frames, **({} if step_s is None else {"step_s": step_s}))
    return partial(_tiles, step_frames, step_s)


def _tiles(
    step_frames: int, step_s: float | None, wave: Tensor, settings: ClipConfig, generator: torch.Generator
) -> ClipViews:
    size = settings.crop_samples
    # A step beyond the crop would leave gaps that nobody listens to.
    step = min(
        size, step_frames * settings.front_end.hop_length if step_s is None else max(1, round(step_s * settings.sr))
    )
    samples = size + _up_to(max(0, len(wave) - size), step)
    filled = fit_length(wave, samples, settings.pad_mode, left=(samples - len(wave)) // 2)
    return _crops(filled, range(0, samples - size + 1, step), size)


@VIEWS.register("whole", source="common practice of full-length evaluation: PANNs, FAT2019 3rd place")
def whole_view(n: int = 1, *, step_s: float = 0.5) -> Views:
    """The whole clip, filled up to the next multiple of `step_s` seconds; `n` has to be 1.

    Clips of the same filled length share a batch, and what a clip is filled up to depends on itself alone: so its answer doesn't change
    with its neighbours, and no more than `step_s` of it is filling.
    """
    _checked(n)
    if n != 1:
        raise OptionError(f"n is {n}; expected 1: a clip has one whole")
    _above_zero(step_s=step_s)
    return partial(_whole, step_s)


def _whole(step_s: float, wave: Tensor, settings: ClipConfig, generator: torch.Generator) -> ClipViews:
    filled = settings.fit(wave)
    samples = _up_to(len(filled), max(1, round(step_s * settings.sr)))
    return ClipViews(fit_length(filled, samples, settings.pad_mode), [Section(0, samples)])


@VIEWS.register(
    "padded", source="FAT2019 4th place repository: whole clips with 8 or 64 frames of silence on each side"
)
def padded_views(frames: Sequence[int] = (8, 64), *, step_s: float = 0.5) -> Views:
    """The whole clip several times, each with another number of frames of silence on either side.

    The silence grows until the length is a multiple of `step_s` seconds, so that clips share batches as those of "whole" do. It is
    digital silence: a front end with a floor of 80 dB below the peak shows it at that floor, as theirs is.
    """
    if not frames or min(frames) < 0:
        raise OptionError(
            f"frames is {tuple(frames)}; expected one number of frames or more, none below 0, such as (8, 64)"
        )
    _above_zero(step_s=step_s)
    return partial(_padded, frames, step_s)


def _padded(
    frames: Sequence[int], step_s: float, wave: Tensor, settings: ClipConfig, generator: torch.Generator
) -> ClipViews:
    clip, step = settings.fit(wave), max(1, round(step_s * settings.sr))
    lengths = [_up_to(len(clip) + 2 * pad * settings.front_end.hop_length, step) for pad in frames]
    filled = fit_length(clip, max(lengths), "constant_center")
    middle = (len(filled) - len(clip)) // 2
    starts = [middle - (length - len(clip)) // 2 for length in lengths]
    return ClipViews(filled, [Section(start, start + length) for start, length in zip(starts, lengths)])
