"""A table of predictions, clips by tags: to and from CSV, scored, and written as a checked submission.

Conventions: `probs` is float64, (clips, tags), within [0, 1]; rows are matched by `fnames`, columns by `tags`. A CSV
has the column `fname`, then one per tag. CSV files are untrusted: they are read as text, cell by cell, and errors name
line and column.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fatai.errors import DataError, SubmissionError
from fatai.inference.ground_truth import Table, read_truth
from fatai.inference.submission import check_submission, submission_problems
from fatai.io.atomic import write_file
from fatai.io.csv import format_names, read_sample_submission, row_chunks, write_rows
from fatai.metrics.bootstrap import Difference, Interval, Score, score_difference, score_interval
from fatai.metrics.calibration import Calibration
from fatai.metrics.classification import main_score, tag_scores
from fatai.metrics.thresholds import Thresholds

__all__ = ["PairedPredictions", "Predictions", "check_submission", "submission_problems"]


class PairedPredictions(NamedTuple):
    """Predictions and ground truth of the same clips: `probs` float and `targ` bool, both (clips, tags)."""

    probs: np.ndarray
    targ: np.ndarray


@dataclass(frozen=True, eq=False)
class Predictions:
    """Probability of each tag in each clip.

    Parameters
    ----------
    fnames
        Name of each clip, as in the sample submission; no name twice.
    tags
        Name of each tag; no name twice.
    probs
        Shape (clips, tags), finite, within [0, 1]; an array or a tensor. Stored as a read-only float64 copy.
    unreadable
        Those of `fnames` whose file cannot be read, so that their row is a guess. Not part of the CSV.
    oof_score
        lwlrap of the same model on clips that it was not trained on, if known; `ensemble(..., weights="lwlrap")`
        weights by it. Not part of the CSV, and ignored by `==`.

    Raises
    ------
    SubmissionError
        If the shape does not match the names, a name is empty or appears twice, or a value is not a probability.

    Examples
    --------
    >>> preds = Predictions(["a.wav", "b.wav"], ["Bark", "Meow"], [[0.9, 0.2], [0.4, 0.3]])
    >>> preds.score(pd.DataFrame({"fname": ["b.wav", "a.wav"], "labels": ["Meow", "Bark"]}))
    0.75
    """

    fnames: tuple[str, ...]
    tags: tuple[str, ...]
    probs: np.ndarray
    unreadable: tuple[str, ...] = ()
    oof_score: float | None = None

    def __post_init__(self) -> None:
        for field in ("fnames", "tags", "unreadable"):
            object.__setattr__(self, field, _to_names(getattr(self, field), field))
        probs = _to_float64(self.probs)
        self._check_probs(probs)
        unknown = set(self.unreadable).difference(self.fnames)
        if unknown:
            raise SubmissionError(f"unreadable has {format_names(sorted(unknown))}; expected names of fnames")
        if self.oof_score is not None and not 0 <= self.oof_score <= 1:
            raise SubmissionError(f"oof_score is {self.oof_score}; expected an lwlrap, within [0, 1], or None")
        probs.setflags(write=False)
        object.__setattr__(self, "probs", probs)

    def _check_probs(self, probs: np.ndarray) -> None:
        expected = (len(self.fnames), len(self.tags))
        if probs.shape != expected:
            raise SubmissionError(
                f"probs has shape {probs.shape}; expected {expected}: one row for each fname, one column for each tag"
            )
        bad = ~((probs >= 0) & (probs <= 1))  # written so that NaN is bad too
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise SubmissionError(
                f"probs has the value {probs[row, column]} for {self.fnames[row]!r}, tag {self.tags[column]!r} "
                f"({int(bad.sum())} such values); expected numbers within [0, 1]: take the sigmoid of logits first"
            )

    def __len__(self) -> int:
        return len(self.fnames)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Predictions):
            return NotImplemented
        same_names = (self.fnames, self.tags, self.unreadable) == (other.fnames, other.tags, other.unreadable)
        return same_names and np.array_equal(self.probs, other.probs)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        unreadable = f", {len(self.unreadable)} unreadable" if self.unreadable else ""
        return f"Predictions({len(self.fnames)} clips, {len(self.tags)} tags{unreadable})"

    @classmethod
    def from_csv(cls, path: str | os.PathLike[str]) -> Predictions:
        """Read predictions from a CSV file with the column `fname` and one column per tag.

        Raises
        ------
        DataError
            If the file is missing, empty or not text, or has an invalid row or cell; the message names the line.
        """
        tags, chunks = row_chunks(path)
        parts = list(chunks)
        fnames = tuple(name for part in parts for name in part.fnames)
        return cls(fnames, tags, np.concatenate([np.empty((0, len(tags))), *(part.probs for part in parts)]))

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the column `fname` and one column per tag; the file is complete or not there.

        Each number is written with the fewest digits that read back as the same number, so equal predictions give equal
        bytes.
        """
        with write_file(path) as temporary:
            _write_csv(temporary, self)

    def to_frame(self) -> pd.DataFrame:
        """Return a data frame with the column `fname`, then one per tag."""
        names = pd.DataFrame({"fname": list(self.fnames)})
        return pd.concat([names, pd.DataFrame(self.probs, columns=list(self.tags))], axis=1)

    def select(self, fnames: Iterable[str], tags: Iterable[str] | None = None) -> Predictions:
        """Return the rows of `fnames` and the columns of `tags` (None is all), in the given order.

        Raises
        ------
        SubmissionError
            If a clip or a tag is missing.
        """
        fnames, tags = tuple(fnames), self.tags if tags is None else tuple(tags)
        rows, columns = _positions(fnames, self.fnames, "clips"), _positions(tags, self.tags, "tags")
        selected = set(fnames)
        unreadable = tuple(name for name in self.unreadable if name in selected)
        return Predictions(fnames, tags, self.probs[np.ix_(rows, columns)], unreadable, self.oof_score)

    def calibrated(self, calibration: Calibration) -> Predictions:
        """Return predictions with each tag calibrated; `oof_score` is dropped, because the score changes.

        Rows of unreadable clips, which are fractions of training clips, stay as they are.

        Raises
        ------
        DataError
            If the calibration lacks a tag.
        """
        probs = calibration.select(self.tags).apply(self.probs)
        guessed = np.isin(np.array(self.fnames, dtype=object), np.array(self.unreadable, dtype=object))
        probs[guessed] = self.probs[guessed]
        return Predictions(self.fnames, self.tags, probs, self.unreadable)

    def decide(self, thresholds: Thresholds) -> pd.DataFrame:
        """Assign to each clip the tags that reach their threshold.

        Returns
        -------
        Data frame with the columns `fname` and `labels`, joined by commas.

        Raises
        ------
        DataError
            If there is no threshold for a tag.

        Examples
        --------
        >>> preds = Predictions(["a.wav", "b.wav"], ["Bark", "Meow"], [[0.9, 0.6], [0.4, 0.3]])
        >>> preds.decide(Thresholds(("Bark", "Meow"), (0.5, 0.5)))["labels"].tolist()
        ['Bark,Meow', '']
        """
        missing = sorted(set(self.tags).difference(thresholds.tags))
        if missing:
            raise DataError(f"there is no threshold for the tags {format_names(missing)}")
        values = dict(zip(thresholds.tags, thresholds.values, strict=True))
        flags = Thresholds(self.tags, tuple(values[tag] for tag in self.tags)).apply(self.probs)
        labels = [",".join(np.array(self.tags)[row]) for row in flags]
        return pd.DataFrame({"fname": list(self.fnames), "labels": labels})

    def align_with(self, truth: Table, *, partial: bool = False) -> PairedPredictions:
        """Pair predictions and ground truth, for any score.

        Parameters
        ----------
        truth
            A CSV file or data frame with `fname` and either `labels` (separated by commas or semicolons) or a column of
            0 and 1 for each tag. Rows and tags may come in any order.
        partial
            Allow clips that only one of the two has, and leave them out.

        Returns
        -------
        `probs` float64 and `targ` bool, both (clips, tags), in the order of these predictions.

        Raises
        ------
        DataError
            If a clip is in only one of the two (unless `partial`) or appears twice, or the table has another layout.
        LabelError
            If a label is not one of `tags`.
        """
        flags = read_truth(truth, self.tags)
        both = [name for name in self.fnames if name in flags]
        if len(both) < max(len(self.fnames), len(flags)) and not (partial and both):
            raise DataError(_mismatch(self.fnames, flags, bool(both)))
        targ = np.array([flags[name] for name in both], dtype=bool).reshape(len(both), len(self.tags))
        return PairedPredictions(self.select(both).probs, targ)

    def score(self, truth: Table, *, partial: bool = False) -> float:
        """Compute the lwlrap against ground truth, or with one tag, for which it is always 1, the average precision.

        It is within [0, 1]; arguments and errors are those of `align_with`.
        """
        return main_score(*self.align_with(truth, partial=partial))

    def per_tag(self, truth: Table, *, partial: bool = False) -> pd.DataFrame:
        """Score each tag; arguments and errors are those of `align_with`.

        Returns
        -------
        One row per tag, worst lwlrap first, with the columns of `fatai.metrics.classification.tag_scores`; NaN where no
        clip has the tag.
        """
        table = tag_scores(*self.align_with(truth, partial=partial), self.tags)
        return table.sort_values(["lwlrap", "tag"], ignore_index=True)

    def interval(self, truth: Table, score: Score = "lwlrap", *, partial: bool = False, **options: Any) -> Interval:
        """Compute a score and its confidence interval.

        Parameters
        ----------
        truth, partial
            As in `align_with`.
        score, options
            As in `fatai.metrics.bootstrap.score_interval`.
        """
        return score_interval(*self.align_with(truth, partial=partial), score, **options)

    def compare(
        self, other: Predictions, truth: Table, score: Score = "lwlrap", *, partial: bool = False, **options: Any
    ) -> Difference:
        """Compute how much better these predictions are than `other`, with a confidence interval.

        Parameters
        ----------
        other
            Predictions of the same clips and tags, in any order.
        truth, partial
            As in `align_with`.
        score, options
            As in `fatai.metrics.bootstrap.score_difference`.
        """
        ours = self.align_with(truth, partial=partial)
        theirs = other.select(self.fnames, self.tags).align_with(truth, partial=partial)
        return score_difference(ours.probs, theirs.probs, ours.targ, score, **options)

    def top(self, n: int = 3) -> pd.DataFrame:
        """Return the `n` likeliest tags of each clip, best first; equal values keep the order of the tags.

        Returns
        -------
        Data frame with the columns `fname`, `rank` (from 1), `tag`, `prob`.
        """
        n = max(0, min(n, len(self.tags)))
        order = np.argsort(-self.probs, axis=1, kind="stable")[:, :n]
        return pd.DataFrame({
            "fname": [name for name in self.fnames for _ in range(n)],
            "rank": np.tile(np.arange(1, n + 1), len(self)),
            "tag": [self.tags[i] for i in order.ravel()],
            "prob": np.take_along_axis(self.probs, order, axis=1).ravel(),
        })

    def to_submission(self, path: str | os.PathLike[str], *, sample: str | os.PathLike[str]) -> None:
        """Write the rows and columns of a sample submission, in its order.

        The file is checked before it takes its name, and is complete or not there. Clips that the sample does not list
        are left out; the tags must be the same.

        Raises
        ------
        SubmissionError
            If the sample lists a clip or tag that the predictions lack, or they have another tag; the message names
            them.
        DataError
            If the sample cannot be read.
        """
        fnames, tags = read_sample_submission(sample)
        extra = sorted(set(self.tags).difference(tags))
        if extra:
            raise SubmissionError(
                f"{sample} has no column for the tags {format_names(extra)}: predict with the sample's vocabulary"
            )
        with write_file(path) as temporary:
            _write_csv(temporary, self.select(fnames, tags))
            check_submission(temporary, sample)


def _mismatch(fnames: Sequence[str], flags: Iterable[str], overlap: bool) -> str:
    """Return a message about clips that only predictions or only ground truth have."""
    known = set(flags)
    missing, extra = [name for name in fnames if name not in known], sorted(known.difference(fnames))
    parts = [
        f"the truth lacks {format_names(missing)}" if missing else "",
        f"the predictions lack {format_names(extra)}" if extra else "",
    ]
    remedy = "score the same clips, or only those in both with partial=True"
    return f"{'; '.join(filter(None, parts))}: {remedy if overlap else 'no clip is in both; is this the right truth?'}"


def _write_csv(path: Path, preds: Predictions) -> None:
    # Names of files that are not UTF-8 are escaped, so that the table can be read everywhere.
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(("fname", *preds.tags))
        # csv writes a Python float as repr does: the shortest text that reads back as the same number.
        write_rows(writer, preds.fnames, preds.probs)


def _to_names(values: Any, field: str) -> tuple[str, ...]:
    if isinstance(values, str):
        raise SubmissionError(f"{field} is the text {values!r}; expected a sequence of names")
    names = tuple(str(name) for name in values)
    if len(set(names)) < len(names):
        counts = pd.Series(names).value_counts()
        raise SubmissionError(f"{field} has {format_names(counts.index[counts > 1].tolist())} more than once")
    if not all(names):
        raise SubmissionError(f"{field} has an empty name, at position {names.index('')}")
    return names


def _to_float64(values: Any) -> np.ndarray:
    """Copy an array, a nested list or a tensor on any device to float64."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    try:
        return np.array(values, dtype=np.float64) + 0.0  # -0.0 becomes 0.0: equal values are written alike
    except (TypeError, ValueError) as e:
        raise SubmissionError(f"probs cannot be read as a table of numbers: {e}") from e


def _positions(names: Sequence[str], known: Sequence[str], kind: str) -> list[int]:
    index = {name: i for i, name in enumerate(known)}
    missing = [name for name in names if name not in index]
    if missing:
        raise SubmissionError(f"the predictions lack the {kind} {format_names(missing)}")
    return [index[name] for name in names]
