"""What stands in a batch beside short sounds: loops of them instead of silence, and no more silence than the longest needs.

Both work on the waves of a training batch, whose clips were filled with zeros to the length of a crop.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from fastcore.meta import delegates
from torch import Tensor

from fatai.augment.base import BatchAugmentation
from fatai.augment.functional_mixup import content
from fatai.augment.wave import WaveAugmentation, rate_of
from fatai.errors import OptionError
from fatai.registry import AUGMENTATIONS

__all__ = ["RepeatPad", "TrimToLongest"]


class _Nothing(NamedTuple):
    """No draws beyond which clips are chosen."""


@AUGMENTATIONS.register(
    "loop_fill", source="Gold-only plan notebook, FAT2019: p 0.1; 1st place (argus-freesound, MIT): p 0.5; own code"
)
class RepeatPad(WaveAugmentation):
    """Where a clip was filled with zeros, before or behind its sound, the sound is repeated instead, without a gap.

    Examples
    --------
    >>> RepeatPad(p=1).change(torch.tensor([[0.0, 1.0, 2.0, 0.0, 0.0]]), sr=10)
    tensor([[2., 1., 2., 1., 2.]])
    """

    @delegates(WaveAugmentation.__init__)
    def __init__(self, *, p: float = 0.1, **kwargs: Any):
        super().__init__(p=p, **kwargs)

    def draw(self, n: int, samples: int, sr: int, generator: torch.Generator | None = None) -> _Nothing:
        return _Nothing()

    def apply(self, wave: Tensor, drawn: _Nothing, sr: int) -> Tensor:
        start, stop, _ = (int(x) for x in content(wave[None], "wave"))
        return wave[start + (torch.arange(len(wave), device=wave.device) - start) % (stop - start)]


@AUGMENTATIONS.register(
    "to_longest", source="FAT2019 3rd place repository (Apache-2.0): batches filled to their longest clip; own code"
)
class TrimToLongest(BatchAugmentation):
    """The zeros that all clips of a batch end with are cut off, so that the network isn't shown more silence than it has to be.

    The 3rd place filled each batch to its longest clip; with `crop_s = 15` and `pad_mode = "constant_right"` this comes to the same. It is
    no random change, and stays on where those are switched off.

    Parameters
    ----------
    least_s
        Seconds that are kept in any case.
    room
        Silence left behind the longest clip, as a share of it, for changes that lengthen it.
    before_mixing
        Whether clips are cut before they are mixed, or the mixtures.
    """

    is_random_change = False

    def __init__(self, *, least_s: float = 1.5, room: float = 0.0, before_mixing: bool = False):
        super().__init__("wave", -1 if before_mixing else 1)
        if not least_s > 0 or not room >= 0:
            raise OptionError(
                f"least_s is {least_s} and room {room}; expected seconds above 0 and a share of at least 0"
            )
        self.least_s, self.room = least_s, room

    def change(self, wave: Tensor, sr: int) -> Tensor:
        """Waves (batch, samples), all cut to the same length."""
        longest = int(content(wave, "wave").stop.max())
        kept = max(round(longest * (1 + self.room)), round(self.least_s * sr))
        return wave if kept >= wave.shape[1] else wave[:, :kept]

    def change_batch(self, x: Tensor, batch: Any) -> Tensor:
        return self.change(x, rate_of(batch))
