"""Changes of whole clips as they are read for training, before they are cropped, in the loader's workers if there are any.

The place for what is slow, such as a shift of pitch, and for what changes a clip's length. The changes are in the loader's item transforms
while it trains and at no other time, so validation and predictions, also on training clips, never see them.
"""

from __future__ import annotations

from collections.abc import Sequence

from fasttransform import Transform

from fatai.augment.base import like_tensor, plain
from fatai.augment.wave import WaveAugmentation
from fatai.augment.while_training import TrainOnlyCallback
from fatai.data.tensors import TensorWave

__all__ = ["ItemAugmentations"]


class ItemAugmentations(TrainOnlyCallback):
    """Changes of whole clips as they are read for training.

    Parameters
    ----------
    changes
        In this order; their `before_mixing` has no meaning here.

    `active` may be set to False at any time; it counts from the next epoch on, also for workers.
    """

    is_random_change = True

    def __init__(self, *changes: WaveAugmentation):
        self.changes, self.active = changes, True
        self._transform = _ItemChange(changes)

    def put_in(self) -> None:
        if self.active:
            self.learn.dls.train.after_item.add(self._transform)

    def take_out(self) -> None:
        pipeline = self.learn.dls.train.after_item
        pipeline.fs = pipeline.fs.filter(lambda f: f is not self._transform)


class _ItemChange(Transform):
    """Waves of any length, before RandomCrop (order 6) cuts them."""

    order = 5

    def __init__(self, changes: Sequence[WaveAugmentation]):
        super().__init__()
        self.changes = changes

    def encodes(self, wave: TensorWave):
        changed = plain(wave)
        for change in self.changes:
            if change.active:
                changed = change.change_item(changed, wave.rate)
        return like_tensor(wave, changed)
