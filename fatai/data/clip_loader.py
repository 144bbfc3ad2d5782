"""`ClipDL`: a fastai loader that gathers whole batches from clips in memory, without touching the items one by one.

It draws the same crops as fastai's loader does from the same random state, in the same order, and yields the same
types. Wherever anything but a crop happens to an item, for instance an item transform, it loads items one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
from fastai.data.all import Datasets, TfmdDL, ToTensor
from fasttransform import Pipeline
from torch import Tensor

from fatai.data.resident import ResidentClips
from fatai.data.transforms import CenterCrop, LoadClip, RandomCrop

__all__ = ["ClipDL"]

# Parts of fastai's loader that a user may replace; then items are made one by one.
_PER_ITEM = ("create_item", "create_batch", "do_item", "do_batch", "retain")


class _Rows(NamedTuple):
    """What is gathered of the rows of a data set.

    Attributes
    ----------
    dataset
        The data set.
    positions
        Position of each row's clip among the clips in memory.
    targets
        For every further part of an item, such as the tags, a tensor (rows, ...).
    """

    dataset: Datasets
    positions: list[int]
    targets: tuple[Tensor, ...]


class ClipDL(TfmdDL):
    """A loader of `FATDataLoaders`, faster than fastai's where its clips are in memory.

    Attributes
    ----------
    clips
        The clips in memory; None loads every item.
    """

    clips: ResidentClips | None = None
    _rows: _Rows | None = None

    def new(self, dataset: Any = None, cls: Any = None, **kwargs: Any) -> Any:
        """Create a loader like this one; for the same data set, with the same clips in memory."""
        created = super().new(dataset, cls, **kwargs)
        if isinstance(created, ClipDL) and created.dataset is self.dataset:
            created.clips, created._rows = self.clips, self._rows
        return created

    @property
    def gathers(self) -> bool:
        """True if whole batches are gathered, False if items are made one by one."""
        return self._crop() is not None and self._found_rows() is not None

    def create_batches(self, samps: Any) -> Iterator[tuple]:
        """Yield the batches of an iterator over rows, before the batch transforms."""
        crop, rows = self._crop(), self._found_rows()
        if crop is None or rows is None:
            yield from super().create_batches(samps)
            return
        # Crops are drawn one by one, also those of a last batch that is dropped: so are they where items are loaded.
        drawn = (self._draw(int(i or 0), crop, rows) for i in samps)
        for batch in self.chunkify(drawn):
            yield self._gather_batch(batch, rows)

    def _draw(self, row: int, crop: RandomCrop, rows: _Rows) -> tuple[int, int]:
        """Return a row and the start of its crop."""
        assert self.clips is not None
        return row, crop.start(self.clips.spare(rows.positions[row]))

    def _gather_batch(self, drawn: Sequence[tuple[int, int]], rows: _Rows) -> tuple:
        assert self.clips is not None
        batch, starts = zip(*drawn, strict=True)
        index = torch.tensor(batch)
        targets = tuple(targ[index.to(targ.device)] for targ in rows.targets)
        if self.dataset is not rows.dataset:
            targets = self.dataset.batch_targets(index, *targets)
        return (self.clips.crops([rows.positions[i] for i in batch], starts), *targets)

    def _crop(self) -> RandomCrop | None:
        """Return the transform that crops the items, or None if anything else happens to them."""
        if self.clips is None or self.prebatched or any(name in vars(self) for name in _PER_ITEM):
            return None
        pipelines = (self.after_item, self.before_batch)
        if not all(isinstance(pipeline, Pipeline) for pipeline in pipelines) or len(self.before_batch.fs):
            return None
        transforms = [t for t in self.after_item.fs if not isinstance(t, ToTensor)]
        if {type(t) for t in transforms} != {RandomCrop, CenterCrop}:
            return None
        wanted = RandomCrop if self.after_item.split_idx == 0 else CenterCrop
        return next(t for t in transforms if type(t) is wanted)

    def _found_rows(self) -> _Rows | None:
        """Return what is gathered, computed once for a data set; None if a clip is not in memory."""
        dataset = self.dataset
        if hasattr(type(dataset), "batch_targets"):  # of SampleWeights: adds weights to the targets of another data set
            dataset = dataset.dataset
        if not isinstance(dataset, Datasets) or not isinstance(dataset.items, pd.DataFrame) or self.clips is None:
            return None
        if self._rows is None or self._rows.dataset is not dataset:
            self._rows = _find_rows(dataset, self.clips)
        return self._rows


def _find_rows(dataset: Datasets, clips: ResidentClips) -> _Rows | None:
    load = dataset.tls[0].tfms.fs[-1] if len(dataset.tls[0].tfms.fs) else None
    if not isinstance(load, LoadClip) or load.cache is not clips.cache or "path" not in dataset.items.columns:
        return None
    positions = clips.positions(list(dataset.items["path"]))
    if not positions:
        return None
    targets = [[part[i] for i in range(len(dataset))] for part in dataset.tls[1:]]
    if not all(isinstance(value, Tensor) and value.shape == part[0].shape for part in targets for value in part):
        return None
    stacked = (torch.stack([torch.as_tensor(v).as_subclass(Tensor) for v in part]) for part in targets)
    device = clips.values.device
    typed = (x.to(device).as_subclass(type(part[0])) for x, part in zip(stacked, targets, strict=True))
    return _Rows(dataset, positions, tuple(typed))
