"""Augmentation of whole clips as they are read for training, before they are cropped.

They run in the loader's workers if there are any. This is the place for slow augmentations, such as a shift of pitch,
and for those that change a clip's length. They are in the loader's item transforms while it trains and at no other
time, so validation and predictions, also on training clips, are not augmented.
"""

from __future__ import annotations

from collections.abc import Sequence

from fasttransform import Transform
from torch import Tensor

from fatai.augment.base import Augmentation, TrainOnlyCallback
from fatai.augment.batch_input import restore_type, to_plain_tensor
from fatai.augment.wave_base import WaveAugmentation
from fatai.data.cache import CachedClip
from fatai.data.tensors import TensorWave
from fatai.errors import OptionError

__all__ = ["ItemAugmentations"]


class ItemAugmentations(TrainOnlyCallback, Augmentation):
    """Augmentations of whole clips as they are read for training.

    `active` may be set to False at any time; it takes effect from the next epoch on, also in workers.

    Parameters
    ----------
    augmentations
        Run in this order. Their `before_mixing` has no meaning here; their draws come from torch's global generator in
        each worker.
    """

    def __init__(self, *augmentations: WaveAugmentation):
        self.augmentations = augmentations
        self._transform = _AugmentItem(augmentations)

    def attach(self) -> None:
        """Add the augmentations to the item transforms of the training loader."""
        if self.active:
            self.learn.dls.train.after_item.add(self._transform)

    def detach(self) -> None:
        """Remove them from the item transforms."""
        pipeline = self.learn.dls.train.after_item
        pipeline.fs = pipeline.fs.filter(lambda f: f is not self._transform)


class _AugmentItem(Transform):
    """Augment waves of any length, also cached ones, before RandomCrop (order 6) cuts them."""

    order = 5

    def __init__(self, augmentations: Sequence[WaveAugmentation]):
        super().__init__()
        self.augmentations = augmentations

    def encodes(self, clip: CachedClip):
        if not clip.is_wave:
            raise OptionError(
                "item transforms augment waves, but the cache holds features; choose cache='wave', 'device' or 'none'"
            )
        return self._augmented(TensorWave(clip.crop(), sr=clip.sr))

    def encodes(self, wave: TensorWave):  # type: ignore[no-redef]  # noqa: F811 - fastai dispatches on the annotation
        return self._augmented(wave)

    def _augmented(self, wave: TensorWave) -> Tensor:
        augmented = to_plain_tensor(wave)
        for augmentation in self.augmentations:
            if augmentation.active:
                augmented = augmentation.augment_item(augmented, wave.sr)
        return restore_type(augmented, wave)
