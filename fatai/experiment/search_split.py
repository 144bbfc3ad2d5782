"""Clips of a search for settings: an outer fold that is held out of it, and inner folds of the others."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from fatai.data.datasets.fat2019 import FATDataset
from fatai.data.labels import multi_hot
from fatai.errors import DataError
from fatai.experiment.clip_tables import folded_table, noisy_table
from fatai.experiment.manifest import data_digest
from fatai.experiment.recipe import Recipe
from fatai.inference.predictions import Predictions
from fatai.metrics.classification import main_score

__all__ = ["InnerClips", "SearchSplit"]

OUTER_FOLD = 0
_MIN_OUTER_FOLDS = 4  # so that a quarter of the clips at most is withheld from the search


@dataclass(frozen=True)
class InnerClips:
    """The clips of the search: their data set, with its folds, and digest."""

    data: FATDataset
    table: pd.DataFrame
    folds: np.ndarray
    noisy: pd.DataFrame | None
    digest: str

    @property
    def n(self) -> int:
        """Number of inner folds."""
        return int(self.folds.max()) + 1

    def score(self, oof: dict[int, Predictions]) -> float:
        """Score the held-out clips of all folds together."""
        targ = multi_hot(self.table["labels"], self.data.tags)
        probs = np.concatenate([oof[fold].probs for fold in sorted(oof)])
        return main_score(probs, np.concatenate([targ[self.folds == fold] for fold in sorted(oof)]))


@dataclass(frozen=True)
class SearchSplit:
    """The outer fold and the inner ones.

    Attributes
    ----------
    n_outer
        Number of outer folds, of which the first is held out.
    outer
        The outer clips, one row each.
    inner
        The clips of the search.
    """

    n_outer: int
    outer: pd.DataFrame
    inner: InnerClips

    @classmethod
    def make(cls, data: FATDataset, base: Recipe, n_inner: int) -> SearchSplit:
        """Split the curated clips twice; `n_inner` is the number of inner folds unless a column gives them.

        Raises
        ------
        DataError
            If there are fewer than three predefined folds, or too few clips.
        """
        predefined = base.folds.splitter == "predefined"
        n_outer = base.folds.n if predefined else max(base.folds.n, _MIN_OUTER_FOLDS)
        table, _, folds = folded_table(data, base.override(n_folds=n_outer))
        n_inner = n_outer - 1 if predefined else n_inner
        if n_inner < 2:
            raise DataError(f"the recipe {base.name} has {n_outer} predefined folds; a search needs 3 or more")
        rest = replace(
            data, curated=table[folds != OUTER_FOLD].reset_index(drop=True), test=data.test.iloc[:0], sample=None
        )
        inner_recipe = base.override(n_folds=n_inner)
        inner_table, _, inner_folds = folded_table(rest, inner_recipe)
        noisy, _ = noisy_table(rest, inner_recipe)
        inner = InnerClips(rest, inner_table, inner_folds, noisy, data_digest(rest))
        return cls(n_outer, table[folds == OUTER_FOLD].reset_index(drop=True), inner)
