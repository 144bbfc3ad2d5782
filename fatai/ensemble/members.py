"""Load the members of an ensemble from memory, CSV files or run folders; match out-of-fold predictions by name.

Of a run folder, `test.csv` is combined; `oof.csv`, `folds.csv` and the score in `manifest.json` are its predictions,
folds and score on clips with known tags.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from fatai.data.clip_names import pair_names
from fatai.data.folds import make_folds
from fatai.errors import DataError, OptionError, SubmissionError
from fatai.inference.ground_truth import Table, read_truth
from fatai.inference.predictions import Predictions, warn_of_priors
from fatai.io.csv import format_names, read_csv, width_error
from fatai.io.json import read_json_limited
from fatai.io.lazy import pandas as pd

__all__ = ["Member", "OutOfFold", "PredictionSource", "align_out_of_fold", "load_members", "read_folds", "run_table"]

PredictionSource: TypeAlias = Predictions | str | os.PathLike[str]
_N_FOLDS = 5  # where the folds of the runs differ
_WRITTEN = {
    "oof.csv": "a run writes it at its end: continue one that was stopped by its command and --resume",
    "test.csv": "a run writes it at its end, if its data have a test part and it is not run with --no-predict",
}


class Member(NamedTuple):
    """One member of an ensemble; `oof` and `folds` (fold numbers by file name) are None where unknown."""

    name: str
    predictions: Predictions
    oof: Predictions | None
    folds: dict[str, int] | None


class OutOfFold(NamedTuple):
    """Predictions of clips by models that were not trained on them, with the truth.

    Attributes
    ----------
    fnames
        File names of the clips.
    probs
        float64, shape (models, clips, tags), in [0, 1].
    targ
        Bool, shape (clips, tags).
    folds
        int64, shape (clips,): the fold of each clip.
    """

    fnames: tuple[str, ...]
    probs: np.ndarray
    targ: np.ndarray
    folds: np.ndarray


def load_members(
    sources: Sequence[PredictionSource], argument: str = "predictions", *, part: str = "test.csv"
) -> list[Member]:
    """Load the members of an ensemble.

    Parameters
    ----------
    sources
        `Predictions`, CSV files of them, or run folders.
    argument
        Name of the argument in error messages.
    part
        The table of a run folder that is loaded.

    Raises
    ------
    OptionError
        If `sources` is empty or a single prediction.
    """
    if isinstance(sources, (str, os.PathLike, Predictions)):
        raise OptionError(
            f"{argument} is a single {type(sources).__name__}; expected a list of Predictions or of their CSV files"
        )
    if not len(sources):
        raise OptionError(f"{argument} is empty; expected one prediction or more")
    return [_load_member(source, i, part) for i, source in enumerate(sources, start=1)]


def _load_member(source: PredictionSource, position: int, part: str) -> Member:
    if isinstance(source, Predictions):
        return Member(f"predictions {position}", source, None, None)
    if not isinstance(source, (str, os.PathLike)):
        raise OptionError(
            f"predictions {position} are of type {type(source).__name__}; expected Predictions, as learn.tta() returns "
            "them, or the path of a CSV of them or of a run folder"
        )
    path = Path(source)
    if not path.is_dir():
        return Member(str(path), Predictions.from_csv(path), None, None)
    oof, folds = path / "oof.csv", path / "folds.csv"
    preds = Predictions.from_csv(run_table(path, part))
    return Member(
        str(path),
        replace(preds, oof_score=_manifest_score(path / "manifest.json")),
        Predictions.from_csv(oof) if oof.is_file() else None,
        read_folds(folds) if folds.is_file() else None,
    )


def run_table(run: Path, name: str) -> Path:
    """Return the path of the predictions of a run, oof.csv or test.csv.

    Raises
    ------
    DataError
        If there is no such run, or it has not written them.
    """
    path = run / name
    if path.is_file():
        return path
    if not run.exists():
        raise DataError(f"there is no folder {run}; expected that of a run with {name}")
    raise DataError(f"{run} has no {name}; {_WRITTEN[name]}")


def _manifest_score(manifest: Path) -> float | None:
    """Read the out-of-fold score, lwlrap or, of one tag, mAP, from the manifest of a run; None if it holds none."""
    try:
        notes = read_json_limited(manifest)
        score = notes["map" if "map" in notes else "lwlrap"]["oof"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(score) if isinstance(score, (int, float)) and 0 <= score <= 1 else None


def read_folds(path: str | os.PathLike[str]) -> dict[str, int]:
    """Read the validation fold of each clip from a CSV file with the columns `fname` and `fold`.

    Raises
    ------
    DataError
        If the file is missing, lacks a column, or has a row that does not fit; the message names the line.
    """
    table = read_csv(path)
    if not {"fname", "fold"} <= set(table.columns):
        raise DataError(f"{path}: its columns are {format_names(table.columns)}; expected fname and fold")
    name_col, fold_col = table.columns.index("fname"), table.columns.index("fold")
    folds: dict[str, int] = {}
    for row in table.rows:
        if error := width_error(row, table.columns):
            raise DataError(f"{path}: {error}")
        try:
            folds[row.cells[name_col]] = int(row.cells[fold_col])
        except ValueError:
            raise DataError(
                f"{path}: line {row.line}: fold is {row.cells[fold_col][:40]!r}; expected a whole number"
            ) from None
    return folds


def align(first: Predictions, other: Predictions, position: int) -> Predictions:
    """Reorder the rows and columns of `other` as in `first`.

    Parameters
    ----------
    first, other
        Predictions of the same clips and tags in any order.
    position
        Position of `other` in the list, counted from 1, for the error message.

    Raises
    ------
    SubmissionError
        If the clips or tags differ.
    """
    differences = []
    for kind, ours, theirs in (("clips", first.fnames, other.fnames), ("tags", first.tags, other.tags)):
        missing, extra = sorted(set(ours).difference(theirs)), sorted(set(theirs).difference(ours))
        differences += [f"lack the {kind} {format_names(missing)}"] if missing else []
        differences += [f"have the extra {kind} {format_names(extra)}"] if extra else []
    if differences:
        raise SubmissionError(f"predictions {position} do not match the first: they {' and '.join(differences)}")
    return other.select(first.fnames, first.tags)


def align_out_of_fold(
    parts: Sequence[Predictions], truth: Table, tags: Sequence[str], folds: Sequence[dict[str, int] | None] = (),
) -> OutOfFold:
    """Align out-of-fold predictions of several models with the truth, for the clips that all of them have.

    Parameters
    ----------
    parts
        One for each model.
    truth
        As in `Predictions.align_with`.
    tags
        Order of the columns.
    folds
        Fold numbers by file name, those of the runs of `parts`. If they agree they are used; otherwise five shuffled
        folds are made.

    Raises
    ------
    DataError
        If no clip is in all of them, or none of the clips has a tag.
    SubmissionError
        If a model lacks a tag.
    """
    known = read_truth(truth, tags)
    common = set(parts[0].fnames).intersection(*(part.fnames for part in parts))
    names = pair_names([name for name in parts[0].fnames if name in common], list(known))
    fnames = tuple(names)
    if not fnames:
        raise DataError(
            "no clip is in the truth and in the out-of-fold predictions of every model; expected the truth of "
            "these clips"
        )
    unreadable = {name for part in parts for name in part.unreadable}
    warn_of_priors([name for name in fnames if name in unreadable], len(fnames))
    targ = np.array([known[names[name]] for name in fnames], dtype=bool)
    if not targ.any():
        raise DataError(
            f"none of the {len(fnames)} clips in both the truth and the out-of-fold predictions has a tag; expected "
            "at least one tag"
        )
    probs = np.stack([part.select(fnames, tags).probs for part in parts])
    return OutOfFold(fnames, probs, targ, _common_folds(fnames, targ, folds))


def _common_folds(fnames: Sequence[str], targ: np.ndarray, given: Sequence[dict[str, int] | None]) -> np.ndarray:
    tables = [[folds.get(name, -1) for name in fnames] for folds in given if folds is not None]
    if tables and len(tables) == len(given) and all(table == tables[0] for table in tables) and len(set(tables[0])) > 1:
        return pd.factorize(np.array(tables[0]), sort=True)[0].astype(np.int64)
    if len(fnames) < 2:
        return np.zeros(len(fnames), dtype=np.int64)
    return make_folds(targ, splitter="kfold", n=min(_N_FOLDS, len(fnames)))
