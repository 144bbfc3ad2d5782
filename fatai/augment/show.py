"""What random changes do to a batch, before and after, to look at: `show_augs`, also as a method of every learner."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.torch_core import subplots, to_device
from fastcore.foundation import L
from torch import nn

from fatai.augment.base import BatchAugmentation, like_tensor, plain, augmentation_callbacks
from fatai.augment.item import ItemAugmentations
from fatai.errors import DataError

__all__ = ["augmented", "show_augs", "show_each"]


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
    of_items = [c for c in changes if isinstance(c, ItemAugmentations)]
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
        if isinstance(change, BatchAugmentation):
            _apply(learn, change)
    return plain_batch, (learn.xb[0], learn.yb[0])


def _read(dls: DataLoaders, n: int) -> tuple[Any, ...]:
    loader = dls.train
    loader.before_iter()  # which tells the transforms that this is training
    return tuple(
        loader.after_batch(to_device(loader.do_batch([loader.do_item(i) for i in range(n)]), loader.device))[:2]
    )


def _apply(learn: Learner, change: BatchAugmentation) -> None:
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
        _draw_row(row, x, targ, dls.vocab)
    axes[0, 0].figure.tight_layout()
    return axes


def _always(change: Any) -> Any:
    """A copy that changes every clip."""
    twin = copy.copy(change)
    twin.p = 1.0
    return twin


def _draw_row(row: np.ndarray, x: Any, targ: torch.Tensor, tags: Sequence[str]) -> None:
    """A batch on axes; mixtures of pairs fill fewer than there are."""
    for i, axis in enumerate(row):
        if i < len(x):
            x[i].show(ctx=axis, title=_words(targ[i], tags))
        else:
            axis.set_axis_off()


def _name_row(row: np.ndarray, name: str, *, last: bool) -> None:
    """The row's name at its left; the words on an axis only where no neighbour says them."""
    row[0].set_ylabel(f"{name}\n{row[0].get_ylabel()}")
    for axis in row[1:]:
        axis.set_ylabel("")
    if not last:
        for axis in row:
            axis.set_xlabel("")


def show_each(dls: DataLoaders, changes: Mapping[str, Any], n: int = 4, *, seed: int = 0) -> np.ndarray:
    """Draw `n` training clips as they are read, and below them once more for each change or group of changes.

    Parameters
    ----------
    dls, n
        As in `augmented`.
    changes
        The name of each row, and what one gives a learner as callbacks for it; at least one. A change alone in its row is shown on every
        clip, and its probability told; several together act as in training.
    seed
        Every row shows the same crops, and a change draws the same again; torch's own generator goes on as if nothing had been drawn.

    Returns
    -------
    The axes, shape (1 + rows, n). All share one scale of colours.
    """
    rows: dict[str, tuple[Any, ...]] = {}
    for name, of_row in changes.items():
        group = L(of_row)
        if len(group) == 1 and getattr(group[0], "p", 1) < 1:
            name, group = f"{name} (p {group[0].p:g})", [_always(group[0])]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            rows["as read"], rows[name] = augmented(dls, group, n)
    figure, axes = subplots(len(rows), n, figsize=(3.1 * n + 0.6, 2.5 * len(rows)), layout="constrained")
    axes = np.array(axes).reshape(len(rows), n)
    clean = plain(rows["as read"][0]).float()
    for i, (name, (x, targ)) in enumerate(rows.items()):
        _draw_row(axes[i], x, targ, dls.vocab)
        _name_row(axes[i], name, last=i == len(rows) - 1)
    for image in (image for axis in axes.flat for image in axis.images):
        image.set_clim(float(clean.min()), float(clean.max()))
    figure.colorbar(
        axes[0, 0].images[0],
        ax=axes,
        label="value, as the network sees it",
        pad=0.01,
        shrink=min(1, 3 / len(rows)),
        anchor=(0, 1),
    )
    return axes


def _show_augs(self: Learner, n: int = 4, **kwargs: Any) -> np.ndarray:
    """Draw `n` training clips before and after this learner's random changes; see `fatai.augment.show.show_augs`."""
    return show_augs(self.dls, augmentation_callbacks(self), n, **kwargs)


Learner.show_augs = _show_augs
