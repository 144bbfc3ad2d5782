"""`SampleWeights`: weights, noisy flags and soft targets of training clips, passed to the loss batch by batch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastcore.basics import GetAttr
from torch import Tensor

from fatai.augment.base import TrainOnlyCallback
from fatai.data.clip_names import match_clips
from fatai.errors import DataError, OptionError, ShapeError
from fatai.losses.composite import weighted_loss

__all__ = ["SampleWeights"]


class SampleWeights(TrainOnlyCallback):
    """Look up weights and noisy flags of training clips, and pass those of each batch to `TagLoss.set_batch`.

    They travel with the clips, so that any sampler and any number of workers is fine; mixers of `fatai.augment` mix
    them together with the labels. They apply while an epoch trains only: not in validation, predictions, or anything
    outside of a fit.

    Parameters
    ----------
    weights
        Clip to weight, as a dict or a Series: a number from 0 up, or one number for each tag, shape (tags,), in the
        order of the tags. A clip is called by its path, its name, or an end of its path that no other clip of the
        loaders has. Clips that are not in it have weight 1. A single number is the weight of every noisy
        clip, the others having weight 1. None uses the column `weight` of the loaders' table if there is one. Lower the
        weight of noisy clips when their labels are unreliable. A new value, `learn.sample_weights.weights = 0.75`,
        takes effect from the next epoch on.
    noisy
        Noisy clips, called as in `weights`. None uses the column `noisy` of the table, which
        `FATDataLoaders.from_path(noisy=True)` fills.
    targets
        Clip to row of targets within [0, 1], for targets that a list of labels cannot express: soft ones, shape
        (tags,), or more columns than tags. Where there are more columns, every training clip needs a row.

    Raises
    ------
    OptionError, ShapeError
        When the fit begins: weights that are negative or belong to no training clip, a name that several clips have,
        rows of weights that are not as long as the targets, targets outside [0, 1], or a loss that accepts no weights,
        which all of `LOSSES` do.
    """

    # Before all augmentations and mixers, since the latter mix the weights that the loss was given.
    order = -8

    def __init__(
        self, weights: float | Mapping[str, Any] | pd.Series | None = None, noisy: Collection[str] | None = None,
        targets: Mapping[str, np.ndarray] | None = None,
    ):
        self.weights, self.noisy, self.targets = weights, noisy, targets
        self._dataset: Any = None

    def before_fit(self) -> None:
        """Check the loss, the weights and the targets."""
        self.detach()
        if weighted_loss(self.learn.loss_func) is None:
            raise OptionError(
                f"the loss {type(self.learn.loss_func).__name__} accepts no weights; take one of LOSSES, such as 'bce'"
            )
        self.values()
        self._target_rows()

    def values(self) -> tuple[Tensor, Tensor]:
        """Return weights, shape (clips,) or (clips, tags), and noisy flags, shape (clips,), one for each clip."""
        table = self._table()
        noisy = _column(table, "noisy", default=0.0) if self.noisy is None else self._noisy_flags(self.noisy)
        if self.weights is None:
            return _checked_weights(_column(table, "weight", default=1.0), table), noisy
        if isinstance(self.weights, (int, float)):
            return _checked_weights(torch.where(noisy > 0, float(self.weights), 1.0), table), noisy
        n_columns = len(self.learn.dls.tags) if not self.targets else len(next(iter(self.targets.values())))
        values = self._values_of_rows(dict(self.weights.items()), "names with weights")
        return _checked_weights(_stack_weights(values, table, n_columns), table), noisy

    def _table(self) -> pd.DataFrame:
        table = getattr(self.learn.dls.train.dataset, "items", None)
        if not isinstance(table, pd.DataFrame) or "fname" not in table.columns:
            raise DataError("the training clips have no file names, by which weights are found; use FATDataLoaders")
        return table

    def _values_of_rows(self, values: Mapping[str, Any], what: str) -> list[Any]:
        """Return the value of each training clip, None where it has none; at least one must have one."""
        n_train = len(self._table())
        parts = [getattr(loader.dataset, "items", None) for loader in self.learn.dls.loaders]
        # Clips that are held out count too: a name that one of them shares must not be taken for a training clip.
        clips = pd.concat([part for part in parts if isinstance(part, pd.DataFrame)], ignore_index=True)
        names = [str(name) for name in clips["fname"]]
        paths = [str(path) for path in clips["path"]] if "path" in clips.columns else names
        rows: list[Any] = [None] * len(clips)
        by_name = {str(name): value for name, value in values.items()}
        for name, matched in match_clips(by_name, names, paths).items():
            for row in matched:
                rows[row] = by_name[name]
        if values and all(value is None for value in rows[:n_train]):
            raise OptionError(f"none of the {len(values)} {what} is a training clip; names look like {names[0]!r}")
        return rows[:n_train]

    def _noisy_flags(self, names: Collection[str]) -> Tensor:
        rows = self._values_of_rows(dict.fromkeys(names, True), "noisy names")
        return torch.tensor([0.0 if row is None else 1.0 for row in rows])

    def _target_rows(self) -> list[Tensor | None] | None:
        """Return for each training clip the row that replaces its labels, None where there is none."""
        if not self.targets:
            return None
        n_tags = len(self.learn.dls.tags)
        targets = {str(name): _checked_target(name, row) for name, row in self.targets.items()}
        lengths = {len(row) for row in targets.values()}
        rows = self._values_of_rows(targets, "names with targets")
        missing = [name for name, row in zip(self._table()["fname"], rows, strict=True) if row is None]
        if len(lengths) > 1 or (lengths != {n_tags} and missing):
            without = f" and {missing[0]} has none" if missing else ""
            raise ShapeError(
                f"targets have {sorted(lengths)} columns for {n_tags} tags{without}; expected one number for each tag, "
                "or rows of one length for all clips"
            )
        return rows

    def attach(self) -> None:
        """Replace the training set by one whose items also have a weight and a flag."""
        loader = self.learn.dls.train
        self._dataset = loader.dataset
        loader.dataset = _WeightedDataset(loader.dataset, *self.values(), self._target_rows())

    def before_batch(self) -> None:
        """Take weights and flags out of the batch and pass them to the loss."""
        self._set_batch(None, None)
        if self._dataset is not None and len(self.learn.yb) == 3:
            targ, weight, noisy = self.learn.yb
            self.learn.yb = (targ,)
            self._set_batch(weight, noisy)

    def after_batch(self) -> None:
        """Clear the weights of the loss."""
        self._set_batch(None, None)

    after_cancel_batch = after_batch

    def _set_batch(self, weight: Tensor | None, noisy: Tensor | None) -> None:
        loss = weighted_loss(self.learn.loss_func)
        if loss is not None:
            loss.set_batch(weight, noisy)

    def detach(self) -> None:
        """Put the training set back."""
        if self._dataset is not None:
            self.learn.dls.train.dataset, self._dataset = self._dataset, None


class _WeightedDataset(GetAttr):
    """A data set whose items have their weight and their noisy flag after the label; otherwise the data set inside."""

    _default = "dataset"

    def __init__(self, dataset: Any, weight: Tensor, noisy: Tensor, targets: list[Tensor | None] | None):
        self.dataset, self.weight, self.noisy, self.targets = dataset, weight, noisy, targets

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> tuple[Any, ...]:
        *inputs, targ = self.dataset[i]
        row = None if self.targets is None else self.targets[i]
        return (*inputs, targ if row is None else row.as_subclass(type(targ)), self.weight[i], self.noisy[i])

    def batch_targets(self, rows: Tensor, targ: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what follows the input of a batch of rows, (batch,), from its targets (batch, tags)."""
        if self.targets is not None:
            own = [self.targets[i] for i in rows.tolist()]
            plain = targ.as_subclass(Tensor)
            targets = [t if row is None else row.to(plain.device) for row, t in zip(own, plain, strict=True)]
            targ = torch.stack(targets).as_subclass(type(targ))
        return targ, self.weight[rows], self.noisy[rows]


def _checked_target(name: str, row: Any) -> Tensor:
    target = torch.from_numpy(np.array(row, dtype=np.float32))
    if target.ndim != 1 or not ((target >= 0) & (target <= 1)).all():
        raise OptionError(f"the target of {name} is {row}; expected a row of numbers within [0, 1]")
    return target


def _column(table: pd.DataFrame, name: str, *, default: float) -> Tensor:
    """Return a column as float32, shape (clips,), or the default for each clip where there is no such column."""
    if name not in table.columns:
        return torch.full((len(table),), default)
    return torch.from_numpy(table[name].to_numpy(dtype=np.float32).copy())


def _stack_weights(values: list[Any], table: pd.DataFrame, n_columns: int) -> Tensor:
    """Return weights of shape (clips,), or (clips, columns) where any clip has one for each column; None is 1."""
    rows = [np.asarray(1.0 if value is None else value, dtype=np.float32) for value in values]
    for name, row in zip(table["fname"], rows, strict=True):
        if row.shape not in ((), (n_columns,)):
            raise ShapeError(
                f"the weight of {name} has shape {row.shape}; "
                f"expected one number, or one for each of the {n_columns} tags"
            )
    shape = (n_columns,) if any(row.ndim for row in rows) else ()
    return torch.from_numpy(np.stack([np.broadcast_to(row, shape) for row in rows]))


def _checked_weights(weights: Tensor, table: pd.DataFrame) -> Tensor:
    wrong = ~((weights >= 0) & weights.isfinite())
    if wrong.any():
        clip = int(wrong.reshape(len(wrong), -1).any(1).nonzero()[0])
        raise OptionError(
            f"the weight of {table['fname'].iloc[clip]} is {weights[clip].tolist()}; expected numbers from 0 up"
        )
    return weights
