"""Every fold trained, and the out-of-fold table: each clip predicted by the model that never saw it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fatai.errors import DataError

__all__ = ["CrossValResult", "fit_folds"]


@dataclass(frozen=True)
class CrossValResult:
    """What training the folds gave.

    Attributes
    ----------
    oof
        Out-of-fold probabilities, shape (clips, tags); rows of folds that were not trained are NaN.
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
    only: Iterable[int] | None = None,
) -> CrossValResult:
    """Train each fold and gather its predictions for the clips it held out.

    Parameters
    ----------
    table
        One row a clip; `fit_fold` gets it with a column `is_valid` added.
    folds
        Fold number of each row, shape (clips,).
    fit_fold
        Function of (fold, table) that trains and returns the held-out clips' probabilities (held-out clips, tags), in the table's order.
    score
        Function of (probabilities, positions of their rows) for the fold's score.
    only
        Folds to train; all if None.
    """
    if len(folds) != len(table):
        raise DataError(f"there are {len(folds)} fold numbers for {len(table)} clips; expected one each")
    oof = np.full((len(table), n_tags), np.nan)
    scores: dict[int, float] = {}
    for fold in sorted(set(folds.tolist()) if only is None else set(only)):
        oof_score = folds == fold
        if not oof_score.any():
            raise DataError(f"fold {fold} holds no clip; folds are {sorted(set(folds.tolist()))}")
        probs = np.asarray(fit_fold(fold, table.assign(is_valid=oof_score)))
        oof[oof_score] = probs
        scores[fold] = score(probs, np.flatnonzero(oof_score))
    return CrossValResult(oof, scores)
