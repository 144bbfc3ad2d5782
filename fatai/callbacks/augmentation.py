"""Switch augmentation off in the last epochs of a fit."""

from __future__ import annotations

from fastai.callback.core import Callback

from fatai.augment.base import Augmentation, augmentation_callbacks
from fatai.errors import OptionError

__all__ = ["DisableAugmentation"]


class DisableAugmentation(Callback):
    """Train the last epochs without augmentation and without mixing, as the 3rd place did; crops stay random.

    Augmentations of items are switched off too, with any number of workers: they are removed from the loader before its
    epoch begins. After the fit every augmentation is active again that was active before.

    Parameters
    ----------
    last
        Number of epochs, at least 1; the 3rd place's were 5 of 20 and 10 of 100 or 150.

    Raises
    ------
    OptionError
        If `last` is below 1.
    """

    # Before everything else in an epoch.
    order = -20

    def __init__(self, last: int):
        if last < 1:
            raise OptionError(f"last is {last}; expected a number of epochs of at least 1")
        self.last = last
        self._active: list[tuple[Augmentation, bool]] = []

    def before_fit(self) -> None:
        """Undo what an interrupted fit of a plain fastai `Learner` left switched off."""
        self._restore()

    def before_epoch(self) -> None:
        """Switch augmentation off when the first of the last epochs begins."""
        if self.learn.epoch >= self.learn.n_epoch - self.last and not self._active:
            self._active = [(cb, cb.active) for cb in augmentation_callbacks(self.learn)]
            for cb, _ in self._active:
                cb.active = False

    def after_fit(self) -> None:
        """Switch augmentation on again."""
        self._restore()

    after_cancel_fit = after_fit

    def _restore(self) -> None:
        for cb, active in self._active:
            cb.active = active
        self._active = []
