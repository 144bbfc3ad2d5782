"""What random changes do to a batch, before and after, to look at: `show_augs`, also as a method of every learner."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.torch_core import subplots, to_device
from fastcore.foundation import L
from torch import nn

from fatai.augment.change import BatchChange, like_tensor, plain, random_changes
from fatai.augment.on_items import OnItems
from fatai.errors import DataError

__all__ = ["augmented", "show_augs"]


def augmented(dls: DataLoaders, augs: Any, n: int = 4) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The first `n` training clips as they are read, and after random changes, as batches (x, targ).

    Parameters
    ----------
    dls
        Loaders whose training part is taken; validation and the loaders themselves stay as they are.
    augs
        One change or several: what one gives a learner as callbacks. Those behind bn0 are shown on the network's input instead. Of changes
        of whole clips both sides show random crops, which are not the same.
    n
        Number of clips, of which there must be as many.
    """
    if len(dls.train.dataset) < n:
        raise DataError(f"there are {len(dls.train.dataset)} training clips to show; expected at least n={n}")
    # Copies: the changes may belong to another learner, which they must not forget.
    changes = [copy.copy(aug) for aug in L(augs)]
    learn = Learner(dls, nn.Identity(), loss_func=nn.Identity(), cbs=changes)
    learn.training = True
    plain_batch = batch = _read(dls, n)
    of_items = [c for c in changes if isinstance(c, OnItems)]
    if of_items:
        for change in of_items:
            change.before_train()
        try:
            batch = _read(dls, n)
        finally:
            for change in of_items:
                change.after_train()
    learn._split(batch)
    for change in learn.cbs.sorted("order"):
        if isinstance(change, BatchChange):
            _apply(learn, change)
    return plain_batch, (learn.xb[0], learn.yb[0])


def _read(dls: DataLoaders, n: int) -> tuple[Any, ...]:
    loader = dls.train
    loader.before_iter()  # which tells the transforms that this is training
    return tuple(loader.after_batch(to_device(loader.do_batch([loader.do_item(i) for i in range(n)]), loader.device))[:2])


def _apply(learn: Learner, change: BatchChange) -> None:
    if change.place != "bn0":
        change.before_batch()
    elif change.active:
        with torch.no_grad():
            x = learn.xb[0]
            learn.xb = (like_tensor(x, change.change_inside(plain(x))),)


def _words(targ: torch.Tensor, tags: Sequence[str]) -> str:
    """Tags of a multi-hot row, each on a line, with their shares where those are not 1."""
    found = [(float(v), tag) for v, tag in zip(plain(targ), tags) if v > 0]
    return "\n".join(tag if share == 1 else f"{share:.2f} {tag}" for share, tag in found) or "no tag"


def show_augs(dls: DataLoaders, augs: Any, n: int = 4, *, figsize: tuple[float, float] | None = None) -> np.ndarray:
    """Draw `n` training clips before (above) and after (below) random changes, with their tags.

    Parameters
    ----------
    dls, augs, n
        As in `augmented`.
    figsize
        In inches; None suits `n`.

    Returns
    -------
    The axes, shape (2, n): mixtures of pairs may fill fewer of the second row.
    """
    batches = augmented(dls, augs, n)
    axes = np.array(subplots(2, n, figsize=figsize or (3.4 * n, 5.8))[1]).reshape(2, n)
    for row, (x, targ) in zip(axes, batches):
        for i, axis in enumerate(row):
            if i < len(x):
                x[i].show(ctx=axis, title=_words(targ[i], dls.vocab))
            else:
                axis.set_axis_off()
    axes[0, 0].figure.tight_layout()
    return axes


def _show_augs(self: Learner, n: int = 4, **kwargs: Any) -> np.ndarray:
    """Draw `n` training clips before and after this learner's random changes; see `fatai.augment.show.show_augs`."""
    return show_augs(self.dls, random_changes(self), n, **kwargs)


Learner.show_augs = _show_augs
