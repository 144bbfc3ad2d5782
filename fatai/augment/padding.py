"""Padding of short clips: repeat the sound in place of zeros, and trim a batch to its longest clip.

Both work on the waves of a training batch, whose clips were padded with zeros to the length of a crop.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from fastcore.meta import delegates
from torch import Tensor

from fatai.augment.base import BatchAugmentation
from fatai.augment.batch_input import BatchInput
from fatai.augment.functional_mixup import content
from fatai.augment.wave_base import WaveAugmentation
from fatai.errors import OptionError
from fatai.registry import AUGMENTATIONS

__all__ = ["RepeatPad", "TrimToLongest"]


class _NoDraws(NamedTuple):
    """No draws beyond which clips are chosen."""


@AUGMENTATIONS.register(
    "repeat_pad", source="Gold-only plan notebook, FAT2019: p 0.1; 1st place (argus-freesound, MIT): p 0.5; own code"
)
class RepeatPad(WaveAugmentation):
    """Repeat a clip's sound, without a gap, where the clip was padded with zeros before or behind it.

    Parameters
    ----------
    p, before_mixing, generator
        As in `WaveAugmentation`.

    Examples
    --------
    >>> RepeatPad(p=1).augment(torch.tensor([[0.0, 1.0, 2.0, 0.0, 0.0]]), sr=10)
    tensor([[2., 1., 2., 1., 2.]])
    """

    @delegates(WaveAugmentation.__init__)
    def __init__(self, *, p: float = 0.1, **kwargs: Any):
        super().__init__(p=p, **kwargs)

    def draw(self, n: int, samples: int, sr: int, generator: torch.Generator | None = None) -> _NoDraws:
        """Draw nothing."""
        return _NoDraws()

    def apply(self, wave: Tensor, drawn: _NoDraws, sr: int) -> Tensor:
        """Return the repeated sound, (samples,) like `wave`."""
        start, stop, _ = (int(x) for x in content(wave[None], "wave"))
        return wave[start + (torch.arange(len(wave), device=wave.device) - start) % (stop - start)]


@AUGMENTATIONS.register(
    "trim_to_longest",
    source="FAT2019 3rd place repository (Apache-2.0): batches padded to their longest clip; own code",
)
class TrimToLongest(BatchAugmentation):
    """Cut off the zeros that all clips of a batch end with, so that the network computes no needless silence.

    The 3rd place padded each batch to its longest clip; with `crop_s = 15` and `pad_mode = "constant_right"` the result
    is the same. It is no random change: it stays on where those are switched off, and in validation.

    Parameters
    ----------
    min_s
        Seconds that are kept in any case.
    margin
        Silence left behind the longest clip, as a fraction of its length, for augmentations that lengthen it; none is
        left in validation.
    before_mixing
        True cuts the clips before they are mixed, False the mixtures.

    Raises
    ------
    OptionError
        If `min_s` is not above 0, or `margin` is below 0.
    """

    is_random = False
    in_validation = True

    def __init__(self, *, min_s: float = 1.5, margin: float = 0.0, before_mixing: bool = False):
        super().__init__("wave", -1 if before_mixing else 1)
        if not min_s > 0 or not margin >= 0:
            raise OptionError(
                f"min_s is {min_s} and margin {margin}; expected seconds above 0 and a fraction of at least 0"
            )
        self.min_s, self.margin = min_s, margin

    def augment(self, wave: Tensor, sr: int, *, margin: float | None = None) -> Tensor:
        """Return waves (batch, samples) of rate `sr` in Hz, all cut to the same length; None takes the own margin."""
        longest = int(content(wave, "wave").stop.max())
        length = max(round(longest * (1 + (self.margin if margin is None else margin))), round(self.min_s * sr))
        return wave if length >= wave.shape[1] else wave[:, :length]

    def augment_values(self, x: Tensor, batch: BatchInput) -> Tensor:
        """Return the waves (batch, samples), cut."""
        is_validation = self.learn is not None and not self.learn.training
        return self.augment(x, batch.rate, margin=0.0 if is_validation else None)
