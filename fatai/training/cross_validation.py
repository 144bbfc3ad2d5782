"""Cross-validation: train every fold, and collect the out-of-fold predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fatai.errors import DataError

__all__ = ["CrossValResult", "fit_folds"]


@dataclass(frozen=True)
class CrossValResult:
    """Result of `fit_folds`.

    Attributes
    ----------
    oof
        Out-of-fold probabilities, float64 (clips, tags); rows of folds that were not trained are NaN.
    scores
        Fold number to its score.
    """

    oof: np.ndarray
    scores: dict[int, float]


def fit_folds(
    table: pd.DataFrame,
    folds: np.ndarray,
    n_tags: int,
    fit_fold: Callable[[int, pd.DataFrame], np.ndarray],
    score: Callable[[np.ndarray, np.ndarray], float],
    *,
    run_folds: Iterable[int] | None = None,
) -> CrossValResult:
    """Train each fold and collect its predictions for its validation clips.

    Parameters
    ----------
    table
        One row per clip; `fit_fold` gets it with a column `is_valid` added.
    folds
        Fold number of each row, shape (clips,).
    n_tags
        Columns of the probabilities.
    fit_fold
        Function of (fold, table) that trains and returns the probabilities (validation clips, tags), in the table's
        order.
    score
        Function of (probabilities, positions of their rows in the table) that returns the fold's score.
    run_folds
        Folds to train; None trains all.

    Raises
    ------
    DataError
        If there is not one fold number per clip, or a fold of `run_folds` has no clip.
    """
    if len(folds) != len(table):
        raise DataError(f"there are {len(folds)} fold numbers for {len(table)} clips; expected one for each clip")
    oof = np.full((len(table), n_tags), np.nan)
    scores: dict[int, float] = {}
    for fold in sorted(set(folds.tolist()) if run_folds is None else set(run_folds)):
        is_valid = folds == fold
        if not is_valid.any():
            raise DataError(f"fold {fold} has no clip; expected one of {sorted(set(folds.tolist()))}")
        probs = np.asarray(fit_fold(fold, table.assign(is_valid=is_valid)))
        oof[is_valid] = probs
        scores[fold] = score(probs, np.flatnonzero(is_valid))
    return CrossValResult(oof, scores)
