"""Kinds of views: the windows of a clip that are predicted.

A *view* is a window of a clip, by default of `crop_s` seconds. A kind of view is a function of (wave, settings,
generator), where `wave` is the trimmed clip, shape (samples,); it returns a `ClipViews`: that wave, padded if
necessary, and windows of it. Nothing is copied, so a kind with hundreds of views of a clip needs no more memory than
one with a single view. The windows depend on the clip and the generator alone, never on other clips. A clip no longer
than a crop has one view, unless the kind documents otherwise, because all would be the same. Kinds can be pickled, so
workers need not be forked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fatai.audio.waveform import Section, fit_length
from fatai.data.config import ClipConfig
from fatai.errors import OptionError
from fatai.registry import VIEWS

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
    """A clip and its views.

    Attributes
    ----------
    wave
        The padded clip, shape (samples,).
    windows
        Ranges [start, stop) of samples of `wave`, one per view.
    """

    wave: Tensor
    windows: Sequence[Section]

    def views(self) -> Iterator[Tensor]:
        """Yield the samples of each window, shape (stop - start,), without copying."""
        return (self.wave[start:stop] for start, stop in self.windows)


Views = Callable[[Tensor, ClipConfig, torch.Generator], ClipViews]
"""A kind of view: a function of (wave, settings, generator)."""


def _check_n(n: int) -> None:
    if n < 1:
        raise OptionError(f"n is {n}; expected at least one view")


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise OptionError(f"{name} is {value}; expected a number above 0")


def _crops(wave: Tensor, starts: Sequence[int], size: int) -> ClipViews:
    return ClipViews(wave, [Section(start, start + size) for start in starts])


def _spread(last: int, n: int) -> list[int]:
    """Return `n` evenly spaced integers from 0 to `last`, without repeats; a single one is the middle."""
    if last == 0 or n == 1:
        return [last // 2]
    return list(dict.fromkeys(round(last * i / (n - 1)) for i in range(n)))


def _round_up(samples: int, step: int) -> int:
    """Round up to a multiple of `step`."""
    return -(-samples // step) * step


@VIEWS.register("random", source="FAT2019 9th place kernel: 5 views while training, 25 at the end")
def random_views(n: int = 25) -> Views:
    """Build `n` crops with random starts, drawn from the seed of each clip."""
    _check_n(n)
    return partial(_random, n)


def _random(n: int, wave: Tensor, settings: ClipConfig, generator: torch.Generator) -> ClipViews:
    padded, size = settings.fit(wave), settings.crop_samples
    last = len(padded) - size
    return _crops(padded, torch.randint(last + 1, (n if last else 1,), generator=generator).tolist(), size)


@VIEWS.register("even", source="FAT2019 36th place repository: 8 crops from the first frame to the last")
def even_views(n: int = 8) -> Views:
    """Build `n` evenly spaced crops from the start to the end of a clip; a single one is in the middle."""
    _check_n(n)
    return partial(_even, n)


def _even(n: int, wave: Tensor, settings: ClipConfig, generator: torch.Generator) -> ClipViews:
    padded, size = settings.fit(wave), settings.crop_samples
    return _crops(padded, _spread(len(padded) - size, n), size)


@VIEWS.register(
    "varied",
    source="notebook 'Gold-only plan' for FAT2019: 5 even crops, short clips padded or looped from varied starts",
)
def varied_views(n: int = 5) -> Views:
    """Build `n` evenly spaced crops; a clip shorter than a crop lies at a different position of its padding in each."""
    _check_n(n)
    return partial(_varied, n)


def _varied(n: int, wave: Tensor, settings: ClipConfig, generator: torch.Generator) -> ClipViews:
    size, spare = settings.crop_samples, settings.crop_samples - len(wave)
    if spare <= 0:
        return even_views(n)(wave, settings, generator)
    # A repeated clip is periodic, so its first position is also its last.
    last = min(spare, len(wave) - 1) if settings.pad_mode.startswith("wrap") else spare
    return _crops(fit_length(wave, size + last, settings.pad_mode, left=last), _spread(last, n)[::-1], size)


@VIEWS.register("adaptive", source="FAT2019 36th place write-up: overlapping crops, their number by the clip's length")
def adaptive_views(n: int = 32, *, overlap: float = 0.5) -> Views:
    """Build the fewest even crops that overlap by the fraction `overlap` (0 to below 1) or more, but at most `n`.

    Where `n` crops are too few, they overlap less.
    """
    _check_n(n)
    if not 0 <= overlap < 1:
        raise OptionError(f"overlap is {overlap}; expected a fraction of a crop, 0 to below 1")
    return partial(_adaptive, n, overlap)


def _adaptive(n: int, overlap: float, wave: Tensor, settings: ClipConfig, generator: torch.Generator) -> ClipViews:
    padded, size = settings.fit(wave), settings.crop_samples
    last = len(padded) - size
    steps = math.ceil(last / max(1, math.floor(size * (1 - overlap))))
    return _crops(padded, _spread(last, min(n, steps + 1)), size)


@VIEWS.register(
    "tiles", source="FAT2019 1st place repository (argus-freesound): steps of 64 frames, of 128 in the final ensemble"
)
def tile_views(*, step_frames: int = 64, step_s: float | None = None) -> Views:
    """Build crops every `step_frames` frames of the front end or every `step_s` seconds, at most a crop apart.

    The clip is padded evenly on both sides to a whole number of steps from the first crop to the last. The 1st place
    pads with the lowest value of the spectrogram, this with the settings' `pad_mode`.
    """
    _check_positive(step_frames=step_frames, **({} if step_s is None else {"step_s": step_s}))
    return partial(_tiles, step_frames, step_s)


def _tiles(
    step_frames: int, step_s: float | None, wave: Tensor, settings: ClipConfig, generator: torch.Generator
) -> ClipViews:
    size = settings.crop_samples
    step = step_frames * settings.front_end.hop_length if step_s is None else max(1, round(step_s * settings.sr))
    # A step beyond the crop would leave gaps between the crops.
    step = min(size, step)
    samples = size + _round_up(max(0, len(wave) - size), step)
    padded = fit_length(wave, samples, settings.pad_mode, left=(samples - len(wave)) // 2)
    return _crops(padded, range(0, samples - size + 1, step), size)


@VIEWS.register("whole", source="common practice of full-length evaluation: PANNs, FAT2019 3rd place")
def whole_view(n: int = 1, *, step_s: float = 0.5) -> Views:
    """Build one view of the whole clip, padded to a multiple of `step_s` seconds; `n` must be 1.

    Clips of the same padded length share a batch, and the padded length of a clip depends on the clip alone: so its
    prediction does not change with the other clips, and its padding is shorter than `step_s`.
    """
    _check_n(n)
    if n != 1:
        raise OptionError(f"n is {n}; expected 1: 'whole' has one view per clip")
    _check_positive(step_s=step_s)
    return partial(_whole, step_s)


def _whole(step_s: float, wave: Tensor, settings: ClipConfig, generator: torch.Generator) -> ClipViews:
    padded = settings.fit(wave)
    samples = _round_up(len(padded), max(1, round(step_s * settings.sr)))
    return ClipViews(fit_length(padded, samples, settings.pad_mode), [Section(0, samples)])


@VIEWS.register(
    "padded", source="FAT2019 4th place repository: whole clips with 8 or 64 frames of silence on each side"
)
def padded_views(frames: Sequence[int] = (8, 64), *, step_s: float = 0.5) -> Views:
    """Build a view of the whole clip for each entry of `frames`, with that many frames of silence on either side.

    The silence grows until the length is a multiple of `step_s` seconds, so that clips share batches as those of
    "whole" do. It is digital silence: a front end with a floor of 80 dB below the peak maps it to that floor, as in the
    original.
    """
    if not frames or min(frames) < 0:
        raise OptionError(
            f"frames is {tuple(frames)}; expected one or more numbers of frames, 0 or above, such as (8, 64)"
        )
    _check_positive(step_s=step_s)
    return partial(_padded, frames, step_s)


def _padded(
    frames: Sequence[int], step_s: float, wave: Tensor, settings: ClipConfig, generator: torch.Generator
) -> ClipViews:
    clip, step = settings.fit(wave), max(1, round(step_s * settings.sr))
    lengths = [_round_up(len(clip) + 2 * n * settings.front_end.hop_length, step) for n in frames]
    padded = fit_length(clip, max(lengths), "constant_center")
    middle = (len(padded) - len(clip)) // 2
    starts = [middle - (length - len(clip)) // 2 for length in lengths]
    return ClipViews(padded, [Section(start, start + length) for start, length in zip(starts, lengths, strict=True)])
