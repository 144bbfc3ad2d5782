"""Every fold trained, and the out-of-fold table: each clip predicted by the model that never saw it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from fatai.io.atomic import write_file
from fatai.errors import CheckpointError, DataError

__all__ = ["CrossValResult", "check_weights", "fit_folds", "load_weights", "save_weights"]


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


def save_weights(path: str | Path, model: nn.Module, notes: dict[str, str]) -> None:
    """Write a model's weights and some text beside them as safetensors: nothing in it can be executed on reading."""
    # Copies, because safetensors refuses tensors that share storage and fastai's subclasses.
    plain = {k: v.detach().as_subclass(torch.Tensor).cpu().contiguous().clone() for k, v in model.state_dict().items()}
    with write_file(path) as beside:
        save_file(plain, str(beside), metadata=notes)


def check_weights(path: str | Path, model: nn.Module) -> None:
    """Compare the names and shapes in a file of weights with a model's, which may be on the device "meta"; no tensor is read.

    Raises `CheckpointError` if the file is no safetensors file, or names what does not fit.
    """
    own = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    with _opened(path) as f:
        held = {k: tuple(f.get_slice(k).get_shape()) for k in f.keys()}
    missing, extra = sorted(own.keys() - held.keys()), sorted(held.keys() - own.keys())
    shaped = sorted(k for k in own.keys() & held.keys() if own[k] != held[k])
    for what, keys in (("lacks", missing), ("has the unknown", extra), ("has another shape of", shaped)):
        if keys:
            listed = ", ".join(keys[:3]) + (" ..." if len(keys) > 3 else "")
            raise CheckpointError(f"{path} does not fit its model: it {what} {listed}")


def load_weights(path: str | Path, model: nn.Module) -> None:
    """Read weights of `save_weights` into a model of the same shape; raises `CheckpointError` that names what does not fit."""
    check_weights(path, model)
    with _opened(path) as f:
        state = {k: f.get_tensor(k) for k in f.keys()}
    model.load_state_dict(state)


def notes_of(path: str | Path) -> dict[str, str]:
    """The text beside the weights."""
    with _opened(path) as f:
        return dict(f.metadata() or {})


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    try:
        with safe_open(str(path), framework="pt") as f:
            yield f
    except (SafetensorError, OSError) as e:
        raise CheckpointError(
            f"{path} cannot be read as safetensors ({e}); expected the model.safetensors of a run"
        ) from None
