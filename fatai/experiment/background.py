"""Background in training: the sounds that can be read, as negative clips of the folds that do not hold them out."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from fatai.data.background import background_folds, cut_background
from fatai.data.datasets.fat2019 import FATDataset
from fatai.data.tables import check_readable

__all__ = ["readable_background", "with_background"]

MAX_FRACTION = 0.25
"""Clips of background that a fold trains on, at most, as a fraction of its other training clips."""


def readable_background(data: FATDataset) -> FATDataset:
    """Return the data with the background that can be read, long sounds of it cut; a warning names the others."""
    if data.background is None:
        return data
    readable, faults = check_readable([Path(path) for path in data.background["path"]])
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults)
        warnings.warn(f"{len(faults)} sounds of background cannot be read and are left out:\n{listed}", stacklevel=3)
    kept = data.background[readable].reset_index(drop=True)
    return replace(data, background=cut_background(kept) if len(kept) else None)


def with_background(table: pd.DataFrame, data: FATDataset, fold: int, n_folds: int) -> pd.DataFrame:
    """Append the background that a fold trains on to its table, as clips without tags.

    Parameters
    ----------
    table
        Columns fname, path, labels and is_valid.
    data
        The result of `readable_background`.
    fold, n_folds
        The fold that is held out, and the number of folds.
    """
    if data.background is None:
        return table
    clips = data.background[background_folds(data.background, n_folds) != fold]
    n_most = max(1, round(MAX_FRACTION * int((~table["is_valid"].astype(bool)).sum())))
    if len(clips) > n_most:
        clips = clips.iloc[np.linspace(0, len(clips) - 1, n_most).astype(int)]
    labels = pd.Series([[] for _ in range(len(clips))], index=clips.index, dtype=object)
    return pd.concat([table, clips.assign(labels=labels, is_valid=False)], ignore_index=True)
