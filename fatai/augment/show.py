"""Show augmentation: training clips before and after it, by `show_augs` and `show_each`."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.torch_core import subplots, to_device
from fastcore.foundation import L
from torch import nn

from fatai.augment.base import AugmentBatch, BatchAugmentation
from fatai.augment.batch_input import restore_type, to_plain_tensor
from fatai.augment.item import ItemAugmentations
from fatai.errors import DataError

__all__ = ["augmented", "show_augs", "show_each"]

_BEFORE, _AFTER = "before", "after"  # names of rows


def augmented(dls: DataLoaders, augs: Any, n: int = 4) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return the first `n` training clips as they are read, and augmented.

    Parameters
    ----------
    dls
        Loaders of the training clips; validation and the loaders themselves stay as they are.
    augs
        One augmentation or several, as they are given to a learner as callbacks. Those behind bn0 act on the network's
        input instead. With augmentations of whole clips, both results are random crops, which are not the same.
    n
        Number of clips.

    Returns
    -------
    Two batches (x, targ): x of shape (n, channels, mels, frames) or (n, samples), targ (n, tags). Mixing of pairs gives
    fewer augmented clips than `n`.

    Raises
    ------
    DataError
        If there are fewer than `n` training clips.
    """
    if len(dls.train.dataset) < n:
        raise DataError(f"there are {len(dls.train.dataset)} training clips to show; expected at least n={n}")
    # Copies: the augmentations may be attached to another learner, and must stay so.
    cbs = [copy.copy(aug) for aug in L(augs)]
    learn = Learner(dls, nn.Identity(), loss_func=nn.Identity(), cbs=[*cbs, AugmentBatch()])
    learn.training = True
    batch = _read(dls, n)
    with _attached([cb for cb in cbs if isinstance(cb, ItemAugmentations)]) as of_items:
        learn._split(_read(dls, n) if of_items else batch)
    learn.augment_batch.before_batch()
    for cb in learn.cbs.sorted("order"):
        if isinstance(cb, BatchAugmentation) and cb.domain == "bn0" and cb.active:
            _augment_input_instead(learn, cb)
    return batch, (learn.xb[0], learn.yb[0])


@contextmanager
def _attached(augmentations: list[ItemAugmentations]) -> Iterator[list[ItemAugmentations]]:
    for augmentation in augmentations:
        augmentation.attach()
    try:
        yield augmentations
    finally:
        for augmentation in augmentations:
            augmentation.detach()


def _read(dls: DataLoaders, n: int) -> tuple[Any, ...]:
    loader = dls.train
    loader.before_iter()  # sets the split of the transforms to training
    return tuple(
        loader.after_batch(to_device(loader.do_batch([loader.do_item(i) for i in range(n)]), loader.device))[:2]
    )


def _augment_input_instead(learn: Learner, augmentation: BatchAugmentation) -> None:
    """Apply an augmentation of the domain "bn0" to the input of the network."""
    with torch.no_grad():
        x = learn.xb[0]
        learn.xb = (restore_type(augmentation.augment_hidden(to_plain_tensor(x)), x),)


def _tag_lines(targ: torch.Tensor, tags: Sequence[str]) -> str:
    """List the tags of a multi-hot row (tags,), each on a line, with their weights where those are not 1."""
    present = [(float(v), tag) for v, tag in zip(to_plain_tensor(targ), tags, strict=True) if v > 0]
    return "\n".join(tag if weight == 1 else f"{weight:.2f} {tag}" for weight, tag in present) or "no tag"


def show_augs(dls: DataLoaders, augs: Any, n: int = 4, *, figsize: tuple[float, float] | None = None) -> np.ndarray:
    """Draw `n` training clips before (above) and after (below) augmentation, with their tags.

    Parameters
    ----------
    dls, augs, n
        As in `augmented`.
    figsize
        In inches; None suits `n`.

    Returns
    -------
    The axes, shape (2, n): mixing of pairs may fill fewer of the second row.

    Raises
    ------
    DataError
        If there are fewer than `n` training clips.
    """
    batches = augmented(dls, augs, n)
    axes = np.array(subplots(2, n, figsize=figsize or (3.4 * n, 5.8))[1]).reshape(2, n)
    for row, name, (x, targ) in zip(axes, (_BEFORE, _AFTER), batches, strict=True):
        _draw_row(row, x, targ, dls.vocab)
        _label_row(row, name, last=name == _AFTER)
    axes[0, 0].figure.tight_layout()
    return axes


def _with_p_1(augmentation: Any) -> Any:
    """Return a copy that changes every clip."""
    twin = copy.copy(augmentation)
    twin.p = 1.0
    return twin


def _draw_row(row: np.ndarray, x: Any, targ: torch.Tensor, tags: Sequence[str]) -> None:
    """Draw a batch on a row of axes; mixing of pairs fills fewer than there are."""
    for i, axis in enumerate(row):
        if i < len(x):
            x[i].show(ctx=axis, title=_tag_lines(targ[i], tags))
        else:
            axis.set_axis_off()


def _label_row(row: np.ndarray, name: str, *, last: bool) -> None:
    """Write the row's name at its left; keep axis labels only at the left and below the last row."""
    row[0].set_ylabel(f"{name}\n{row[0].get_ylabel()}")
    for axis in row[1:]:
        axis.set_ylabel("")
    if not last:
        for axis in row:
            axis.set_xlabel("")


def show_each(dls: DataLoaders, augs: Mapping[str, Any], n: int = 4, *, seed: int = 0) -> np.ndarray:
    """Draw `n` training clips as they are read, and below them one row for each augmentation or group of augmentations.

    Parameters
    ----------
    dls, n
        As in `augmented`.
    augs
        Name of each row to its augmentations, as they are given to a learner as callbacks; at least one. An
        augmentation alone in its row changes every clip, and its probability is written beside it; several together act
        as in training.
    seed
        Of the crops and draws, the same for every row; torch's own generator is left as it was.

    Returns
    -------
    The axes, shape (1 + rows, n), with a common color scale.

    Raises
    ------
    DataError
        If there are fewer than `n` training clips.
    """
    rows = _augmented_rows(dls, augs, n, seed)
    figure, axes = subplots(len(rows), n, figsize=(3.1 * n + 0.6, 2.5 * len(rows)), layout="constrained")
    axes = np.array(axes).reshape(len(rows), n)
    for i, (name, (x, targ)) in enumerate(rows.items()):
        _draw_row(axes[i], x, targ, dls.vocab)
        _label_row(axes[i], name, last=i == len(rows) - 1)
    clean = to_plain_tensor(rows[_BEFORE][0]).float()
    for image in (image for axis in axes.flat for image in axis.images):
        image.set_clim(float(clean.min()), float(clean.max()))
    _add_colorbar(figure, axes)
    return axes


def _augmented_rows(dls: DataLoaders, augs: Mapping[str, Any], n: int, seed: int) -> dict[str, tuple[Any, ...]]:
    """Return the batch (x, targ) of each row by its name, the clips as they are read first."""
    rows: dict[str, tuple[Any, ...]] = {}
    for name, row_augs in augs.items():
        group = L(row_augs)
        if len(group) == 1 and getattr(group[0], "p", 1) < 1:
            name, group = f"{name} (p {group[0].p:g})", [_with_p_1(group[0])]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            rows[_BEFORE], rows[f"{_AFTER} {name}"] = augmented(dls, group, n)
    return rows


def _add_colorbar(figure: Any, axes: np.ndarray) -> None:
    figure.colorbar(
        axes[0, 0].images[0],
        ax=axes,
        label="value, as the network's input",
        pad=0.01,
        shrink=min(1, 3 / len(axes)),
        anchor=(0, 1),
    )
