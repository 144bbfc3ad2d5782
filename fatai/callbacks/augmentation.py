"""Switch augmentation and mixing off in the last epochs of a fit."""

from __future__ import annotations

from fastai.callback.core import Callback

from fatai.augment.base import Augmentation, augmentation_callbacks
from fatai.augment.mixup_base import Mixer
from fatai.errors import OptionError

__all__ = ["DisableAugmentation"]


class DisableAugmentation(Callback):
    """Train the last epochs without augmentation and without mixing, as the 3rd place did; crops stay random.

    Augmentations of items are switched off too, with any number of workers: they are removed from the loader before its
    epoch begins. After the fit every augmentation is active again that was active before.

    Parameters
    ----------
    last
        Number of epochs, at least 1; the 3rd place's were 5 of 20 and 10 of 100 or 150. None keeps augmentation on.
    last_mixup
        Number of last epochs without mixing, at least 1; None takes `last`. With a larger number, clips are augmented
        but not mixed for some epochs.

    Raises
    ------
    OptionError
        If a number is below 1, or both are None.
    """

    # Before everything else in an epoch.
    order = -20

    def __init__(self, last: int | None, *, last_mixup: int | None = None):
        for name, n in (("last", last), ("last_mixup", last_mixup)):
            if n is not None and n < 1:
                raise OptionError(f"{name} is {n}; expected a number of epochs of at least 1")
        if last is None and last_mixup is None:
            raise OptionError("last and last_mixup are None; expected a number of epochs for at least one of them")
        self.last, self.last_mixup = last, last if last_mixup is None else last_mixup
        self._active: dict[Augmentation, bool] = {}

    def before_fit(self) -> None:
        """Undo what an interrupted fit of a plain fastai `Learner` left switched off."""
        self._restore()

    def before_epoch(self) -> None:
        """Switch augmentation or mixing off when the first of its last epochs begins."""
        for cb in augmentation_callbacks(self.learn):
            last = self.last_mixup if isinstance(cb, Mixer) else self.last
            if last is not None and self.learn.epoch >= self.learn.n_epoch - last and cb not in self._active:
                self._active[cb] = cb.active
                cb.active = False

    def after_fit(self) -> None:
        """Switch augmentation on again."""
        self._restore()

    after_cancel_fit = after_fit

    def _restore(self) -> None:
        for cb, active in self._active.items():
            cb.active = active
        self._active = {}
