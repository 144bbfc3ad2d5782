"""What goes into an ensemble: predictions from memory, CSV files or run folders, and their out-of-fold predictions, matched by name.

Of a run folder `test.csv` is blended; `oof.csv`, `folds.csv` and the score in `manifest.json` stand for it on clips whose tags are known.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from fatai.data.folds import make_folds
from fatai.errors import DataError, OptionError, SubmissionError
from fatai.io.csv import read_csv, some, width_fault
from fatai.inference.predictions import Predictions
from fatai.inference.ground_truth import Table, read_truth
from fatai.io.json import read_json_limited

__all__ = ["Given", "Member", "OutOfFold", "members_of", "out_of_fold", "read_folds"]

Given: TypeAlias = Predictions | str | os.PathLike[str]
_FOLDS = 5  # where the runs do not agree on theirs


class Member(NamedTuple):
    """One of what is blended; what is not known of it is None."""

    name: str
    predictions: Predictions
    oof: Predictions | None
    folds: dict[str, int] | None


class OutOfFold(NamedTuple):
    """Predictions for clips that their models were not trained on, beside the truth.

    `stack` is float64 (models, clips, tags), `targ` bool (clips, tags), `folds` int64 (clips,): which clips are judged together.
    """

    fnames: tuple[str, ...]
    stack: np.ndarray
    targ: np.ndarray
    folds: np.ndarray


def members_of(given: Sequence[Given], what: str = "predictions", *, part: str = "test.csv") -> list[Member]:
    """Each of `given` with what is known of it; a folder is a run, whose `part` is taken. Errors call them `what`."""
    if isinstance(given, (str, os.PathLike, Predictions)):
        raise OptionError(
            f"{what} is a single {type(given).__name__}; expected a list of Predictions or of their CSV files"
        )
    if not len(given):
        raise OptionError(f"{what} is empty; an ensemble needs at least one")
    return [_member(each, i, part) for i, each in enumerate(given, start=1)]


def _member(given: Given, position: int, part: str) -> Member:
    if isinstance(given, Predictions):
        return Member(f"predictions {position}", given, None, None)
    path = Path(given)
    if not path.is_dir():
        return Member(str(path), Predictions.from_csv(path), None, None)
    oof, folds = path / "oof.csv", path / "folds.csv"
    preds = Predictions.from_csv(path / part)
    return Member(
        str(path),
        Predictions(preds.fnames, preds.tags, preds.probs, oof_score=_noted_score(path / "manifest.json")),
        Predictions.from_csv(oof) if oof.is_file() else None,
        read_folds(folds) if folds.is_file() else None,
    )


def _noted_score(manifest: Path) -> float | None:
    """The out-of-fold lwlrap that a run's manifest names, if it does."""
    try:
        score = read_json_limited(manifest)["lwlrap"]["oof"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(score) if isinstance(score, (int, float)) and 0 <= score <= 1 else None


def read_folds(path: str | os.PathLike[str]) -> dict[str, int]:
    """Number of the fold that holds each clip out, from a CSV with the columns `fname` and `fold`."""
    table = read_csv(path)
    if not {"fname", "fold"} <= set(table.columns):
        raise DataError(f"{path}: its columns are {some(table.columns)}; expected fname and fold")
    name_at, fold_at = table.columns.index("fname"), table.columns.index("fold")
    folds: dict[str, int] = {}
    for row in table.rows:
        if fault := width_fault(row, table.columns):
            raise DataError(f"{path}: {fault}")
        try:
            folds[row.cells[name_at]] = int(row.cells[fold_at])
        except ValueError:
            raise DataError(
                f"{path}: line {row.line}: fold is {row.cells[fold_at][:40]!r}; expected a whole number"
            ) from None
    return folds


def aligned(first: Predictions, other: Predictions, position: int) -> Predictions:
    """`other` with the rows and columns of `first`, in its order; `position`, from 1, is named where they do not match."""
    differences = []
    for kind, ours, theirs in (("clips", first.fnames, other.fnames), ("tags", first.tags, other.tags)):
        lacking, extra = sorted(set(ours).difference(theirs)), sorted(set(theirs).difference(ours))
        differences += [f"lack the {kind} {some(lacking)}"] if lacking else []
        differences += [f"have the {kind} {some(extra)} besides"] if extra else []
    if differences:
        raise SubmissionError(f"predictions {position} do not match the first: they {' and '.join(differences)}")
    return other.select(first.fnames, first.tags)


def out_of_fold(
    parts: Sequence[Predictions], truth: Table, tags: Sequence[str], folds: Sequence[dict[str, int] | None] = (),
) -> OutOfFold:
    """Out-of-fold predictions of several models and the truth, for the clips that all of them have.

    Parameters
    ----------
    parts
        One for each model.
    truth
        As in `Predictions.against`.
    tags
        The order of the columns.
    folds
        Those of the runs that `parts` are from. If they agree they are used; else five are made, shuffled.

    Raises
    ------
    DataError
        If no clip is in all, or none of them has a tag.
    SubmissionError
        If a model lacks a tag.
    """
    known = read_truth(truth, tags)
    common = set(known).intersection(*(part.fnames for part in parts))
    fnames = tuple(name for name in parts[0].fnames if name in common)
    if not fnames:
        raise DataError(
            "no clip is in the truth and in the out-of-fold predictions of every model: is this their truth?"
        )
    targ = np.array([known[name] for name in fnames], dtype=bool)
    if not targ.any():
        raise DataError(
            f"none of the {len(fnames)} clips in both the truth and the out-of-fold predictions has a tag: nothing to learn"
        )
    stack = np.stack([part.select(fnames, tags).probs for part in parts])
    return OutOfFold(fnames, stack, targ, _folds_for(fnames, targ, folds))


def _folds_for(fnames: Sequence[str], targ: np.ndarray, given: Sequence[dict[str, int] | None]) -> np.ndarray:
    tables = [[folds.get(name, -1) for name in fnames] for folds in given if folds is not None]
    if tables and len(tables) == len(given) and all(table == tables[0] for table in tables) and len(set(tables[0])) > 1:
        return pd.factorize(np.array(tables[0]), sort=True)[0].astype(np.int64)
    if len(fnames) < 2:
        return np.zeros(len(fnames), dtype=np.int64)
    return make_folds(targ, how="plain", n=min(_FOLDS, len(fnames)))
