"""`SampleWeights`: how much each training clip counts, and which ones are noisy, told to the loss batch by batch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastcore.basics import GetAttr
from torch import Tensor

from fatai.augment.while_training import TrainOnlyCallback
from fatai.errors import DataError, OptionError, ShapeError
from fatai.losses.composite import weighted_loss

__all__ = ["SampleWeights"]


class SampleWeights(TrainOnlyCallback):
    """Weights and noisy marks of training clips, looked up by the clip and told to the loss: `loss.w`, `loss.noisy`.

    They travel with the clips, so any order of a sampler and any number of workers is fine; mixers of `fatai.augment` mix them along
    with the labels. Only while an epoch trains: validation, predictions, and all that is done outside of a fit know nothing of them.

    Parameters
    ----------
    weights
        File name to weight, as a dict or a Series: a number from 0 up, or one number for each tag, in the tags' order. Clips that it
        doesn't name count 1. A single number is the weight of every noisy clip, where the others count 1. None takes the column `weight`
        of the loaders' table if it has one. A new value, `learn.noisy_weights.weights = 0.75`, counts from the next epoch on.
    noisy
        File names of noisy clips. None takes the column `noisy` of the table, which `FATDataLoaders.from_path(noisy=True)` fills.
    targets
        File name to row of targets, for those that no list of labels can say: soft ones, or more columns than tags. Where there are any
        with more columns, every training clip needs its row.

    Raises
    ------
    OptionError, ShapeError
        When the fit begins: weights below 0 or of no training clip, rows of weights that are not as long as the targets, targets outside
        [0, 1], or a loss that doesn't read `w`, which all of `LOSSES` do.
    """

    # Before all random changes and mixers, which mix what the loss was told.
    order = -8

    def __init__(
        self, weights: float | Mapping[str, Any] | pd.Series | None = None, noisy: Collection[str] | None = None,
        targets: Mapping[str, np.ndarray] | None = None,
    ):
        self.weights, self.noisy, self.targets = weights, noisy, targets
        self._clips: Any = None

    def before_fit(self) -> None:
        self.take_out()
        if weighted_loss(self.learn.loss_func) is None:
            raise OptionError(
                f"the loss {type(self.learn.loss_func).__name__} takes no weights; take one of LOSSES, such as 'bce'"
            )
        self.of_clips()
        self._own_targets()

    def of_clips(self) -> tuple[Tensor, Tensor]:
        """Weights, shape (clips,) or (clips, tags), and noisy marks, shape (clips,), of the training clips in their data set's order."""
        table = self._table()
        noisy = _marks(table, self.noisy)
        if self.weights is None:
            return _checked(_column(table), table), noisy
        if isinstance(self.weights, (int, float)):
            return _checked(torch.where(noisy > 0, float(self.weights), 1.0), table), noisy
        width = len(self.learn.dls.tags) if not self.targets else len(next(iter(self.targets.values())))
        return _checked(_looked_up(table, self.weights, width), table), noisy

    def _table(self) -> pd.DataFrame:
        table = getattr(self.learn.dls.train.dataset, "items", None)
        if not isinstance(table, pd.DataFrame) or "fname" not in table.columns:
            raise DataError(
                "the training clips have no file names to look weights up by; make the loaders with FATDataLoaders"
            )
        return table

    def _own_targets(self) -> list[Tensor | None] | None:
        """For each training clip the row that stands for its labels; None where there is none."""
        if not self.targets:
            return None
        names = list(self._table()["fname"])
        rows = {name: _target(name, row) for name, row in self.targets.items()}
        widths = {len(row) for row in rows.values()}
        lacking = [name for name in names if name not in rows]
        if len(widths) > 1 or (widths != {len(self.learn.dls.tags)} and lacking):
            without = f" and {lacking[0]} has none" if lacking else ""
            raise ShapeError(
                f"targets have {sorted(widths)} columns for {len(self.learn.dls.tags)} tags{without}; expected one number for "
                "each tag, or rows of one length for all clips"
            )
        return [rows.get(name) for name in names]

    def put_in(self) -> None:
        loader = self.learn.dls.train
        self._clips, loader.dataset = loader.dataset, _Weighed(loader.dataset, *self.of_clips(), self._own_targets())

    def before_batch(self) -> None:
        self._tell(None, None)
        if self._clips is not None and len(self.learn.yb) == 3:
            targ, w, noisy = self.learn.yb
            self.learn.yb = (targ,)
            self._tell(w, noisy)

    def after_batch(self) -> None:
        self._tell(None, None)

    def _tell(self, w: Tensor | None, noisy: Tensor | None) -> None:
        loss = weighted_loss(self.learn.loss_func)
        if loss is not None:
            loss.set_batch(w, noisy)

    def take_out(self) -> None:
        if self._clips is not None:
            self.learn.dls.train.dataset, self._clips = self._clips, None


class _Weighed(GetAttr):
    """A data set whose items have their weight and their mark behind the label; in all else the data set that it holds."""

    _default = "clips"

    def __init__(self, clips: Any, w: Tensor, noisy: Tensor, targets: list[Tensor | None] | None):
        self.clips, self.w, self.noisy, self.targets = clips, w, noisy, targets

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, i: int) -> tuple[Any, ...]:
        *inputs, targ = self.clips[i]
        own = None if self.targets is None else self.targets[i]
        return (*inputs, targ if own is None else own.as_subclass(type(targ)), self.w[i], self.noisy[i])


def _target(name: str, row: Any) -> Tensor:
    target = torch.from_numpy(np.array(row, dtype=np.float32))
    if target.ndim != 1 or not ((target >= 0) & (target <= 1)).all():
        raise OptionError(f"the target of {name} is {row}; expected a row of numbers within [0, 1]")
    return target


def _marks(table: pd.DataFrame, names: Collection[str] | None) -> Tensor:
    if names is None:
        marks = (
            table["noisy"].to_numpy(dtype=np.float32)
            if "noisy" in table.columns
            else np.zeros(len(table), dtype=np.float32)
        )
    else:
        marks = table["fname"].isin({str(n) for n in names}).to_numpy(dtype=np.float32)
        if len(names) and not marks.any():
            raise OptionError(
                f"none of the {len(names)} noisy names is a training clip; names look like {table['fname'].iloc[0]!r}"
            )
    return torch.from_numpy(marks.copy())


def _column(table: pd.DataFrame) -> Tensor:
    weights = (
        table["weight"].to_numpy(dtype=np.float32)
        if "weight" in table.columns
        else np.ones(len(table), dtype=np.float32)
    )
    return torch.from_numpy(weights.copy())


def _looked_up(table: pd.DataFrame, weights: Mapping[str, Any] | pd.Series, n_tags: int) -> Tensor:
    known = dict(weights.items())
    rows = [
        np.asarray(known[n], dtype=np.float32) if n in known else np.ones((), dtype=np.float32) for n in table["fname"]
    ]
    if known and not table["fname"].isin(known).any():
        raise OptionError(
            f"none of the {len(known)} names with weights is a training clip; names look like {table['fname'].iloc[0]!r}"
        )
    per_tag = any(row.ndim for row in rows)
    for name, row in zip(table["fname"], rows):
        if row.shape not in ((), (n_tags,)):
            raise ShapeError(
                f"the weight of {name} has shape {row.shape}; expected one number, or one for each of the {n_tags} tags"
            )
    return torch.from_numpy(np.stack([np.broadcast_to(row, (n_tags,) if per_tag else ()) for row in rows]))


def _checked(w: Tensor, table: pd.DataFrame) -> Tensor:
    odd = ~((w >= 0) & w.isfinite())
    if odd.any():
        clip = int(odd.flatten(1).any(1).nonzero()[0]) if w.ndim > 1 else int(odd.nonzero()[0])
        raise OptionError(
            f"the weight of {table['fname'].iloc[clip]} is {w[clip].tolist()}; expected numbers from 0 up"
        )
    return w
