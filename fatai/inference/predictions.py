"""A table of predictions: clips by tags, to and from CSV, scored, and written as a checked submission.

Conventions: `probs` is float64, (clips, tags), within [0, 1]; rows are known by `fnames`, columns by `tags`. A CSV has the column
`fname`, then one per tag. CSV files may come from strangers: they are read as text, cell by cell, and errors name line and column.
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

from fatai.io.atomic import write_file
from fatai.errors import DataError, SubmissionError
from fatai.io.csv import format_names, read_sample_submission, row_chunks, write_rows
from fatai.inference.submission import check_submission, submission_problems
from fatai.inference.ground_truth import Table, read_truth
from fatai.metrics.bootstrap import Difference, Interval, Score, score_difference, score_interval
from fatai.metrics.calibration import Calibration
from fatai.metrics.ranking import lwlrap
from fatai.metrics.classification import tag_scores
from fatai.metrics.thresholds import Thresholds

__all__ = ["PairedPredictions", "Predictions", "check_submission", "submission_problems"]


class PairedPredictions(NamedTuple):
    """Predictions beside their truth, row by row: `probs` float and `targ` bool, both (clips, tags)."""

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
        Shape (clips, tags), finite, within [0, 1]; an array or a tensor. Kept as a read-only float64 copy.
    unreadable
        Those of `fnames` whose sound could not be read, so that their row is a guess. Not part of the CSV.
    held_out
        lwlrap of what made them on clips that it was not trained on, if that is known: what `ensemble(..., weights="lwlrap")` weighs by.
        Not part of the CSV, and not looked at by `==`.

    Raises
    ------
    SubmissionError
        If the shape does not fit the names, a name is empty or there twice, or a value is not a probability.

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
            object.__setattr__(self, field, _names(getattr(self, field), field))
        probs = _float64(self.probs)
        expected = (len(self.fnames), len(self.tags))
        if probs.shape != expected:
            raise SubmissionError(
                f"probs has shape {probs.shape}; expected {expected}: one row for each fname, one column for each tag"
            )
        bad = ~((probs >= 0) & (probs <= 1))  # written so that NaN is bad too
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise SubmissionError(
                f"probs holds {probs[row, column]} for {self.fnames[row]!r}, tag {self.tags[column]!r} "
                f"({int(bad.sum())} such values); expected numbers within [0, 1]: take the sigmoid of logits first"
            )
        unknown = set(self.unreadable).difference(self.fnames)
        if unknown:
            raise SubmissionError(f"unreadable names {format_names(sorted(unknown))}, which fnames lacks")
        if self.oof_score is not None and not 0 <= self.oof_score <= 1:
            raise SubmissionError(f"held_out is {self.oof_score}; expected an lwlrap, within [0, 1], or None")
        probs.setflags(write=False)
        object.__setattr__(self, "probs", probs)

    def __len__(self) -> int:
        return len(self.fnames)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Predictions):
            return NotImplemented
        same_names = (self.fnames, self.tags, self.unreadable) == (other.fnames, other.tags, other.unreadable)
        return same_names and np.array_equal(self.probs, other.probs)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        odd = f", {len(self.unreadable)} unreadable" if self.unreadable else ""
        return f"Predictions({len(self.fnames)} clips, {len(self.tags)} tags{odd})"

    @classmethod
    def from_csv(cls, path: str | os.PathLike[str]) -> Predictions:
        """Read the column `fname` and one column per tag.

        Raises
        ------
        DataError
            If the file is missing, empty or no text, or has a row or cell that does not fit; the message names the line.
        """
        tags, chunks = row_chunks(path)
        parts = list(chunks)
        fnames = tuple(name for part in parts for name in part.fnames)
        return cls(fnames, tags, np.concatenate([np.empty((0, len(tags))), *(part.probs for part in parts)]))

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the column `fname` and one column per tag, whole or not at all.

        Each number is written with the fewest digits that read back as the same number, so equal predictions give equal bytes.
        """
        with write_file(path) as beside:
            _write_csv(beside, self)

    def to_frame(self) -> pd.DataFrame:
        """A data frame with the column `fname`, then one per tag."""
        return pd.concat(
            [pd.DataFrame({"fname": list(self.fnames)}), pd.DataFrame(self.probs, columns=list(self.tags))], axis=1
        )

    def select(self, fnames: Iterable[str], tags: Iterable[str] | None = None) -> Predictions:
        """The rows of `fnames` and the columns of `tags` (by default all), in the order given.

        One that is not there is a `SubmissionError`.
        """
        fnames, tags = tuple(fnames), self.tags if tags is None else tuple(tags)
        rows, columns = _positions(fnames, self.fnames, "clips"), _positions(tags, self.tags, "tags")
        kept = set(fnames).intersection(self.unreadable)
        return Predictions(
            fnames,
            tags,
            self.probs[np.ix_(rows, columns)],
            tuple(u for u in self.unreadable if u in kept),
            self.oof_score,
        )

    def calibrated(self, calibration: Calibration) -> Predictions:
        """These, each tag calibrated by its name; rows of unreadable clips, which hold shares of clips, stay as they are.

        `oof_score` is given up, since other probabilities score otherwise. A tag that the calibration lacks is a `DataError`.
        """
        probs = calibration.select(self.tags).apply(self.probs)
        guessed = np.isin(np.array(self.fnames, dtype=object), np.array(self.unreadable, dtype=object))
        probs[guessed] = self.probs[guessed]
        return Predictions(self.fnames, self.tags, probs, self.unreadable)

    def decide(self, thresholds: Thresholds) -> pd.DataFrame:
        """Which tags each clip has: columns `fname` and `labels`, the tags that reach their threshold, joined by commas.

        Examples
        --------
        >>> preds = Predictions(["a.wav", "b.wav"], ["Bark", "Meow"], [[0.9, 0.6], [0.4, 0.3]])
        >>> preds.decide(Thresholds(("Bark", "Meow"), (0.5, 0.5)))["labels"].tolist()
        ['Bark,Meow', '']
        """
        lacking = sorted(set(self.tags).difference(thresholds.tags))
        if lacking:
            raise DataError(f"there is no threshold for the tags {format_names(lacking)}")
        at = dict(zip(thresholds.tags, thresholds.values, strict=True))
        there = Thresholds(self.tags, tuple(at[tag] for tag in self.tags)).apply(self.probs)
        return pd.DataFrame(
            {"fname": list(self.fnames), "labels": [",".join(np.array(self.tags)[row]) for row in there]}
        )

    def align_with(self, truth: Table, *, partial: bool = False) -> PairedPredictions:
        """These predictions and the truth, row by row, for any score.

        Parameters
        ----------
        truth
            A CSV file or data frame with `fname` and either `labels` (separated by commas or semicolons) or a column of 0 and 1 for each
            tag. Rows and tags may come in any order.
        partial
            Whether the truth may have fewer or more clips than the predictions; then the clips that both have are returned.

        Raises
        ------
        DataError
            If a clip is in only one of the two (unless `partial`), is there twice, or the table is not laid out as said.
        LabelError
            If a label is none of `tags`.
        """
        known = read_truth(truth, self.tags)
        both = [name for name in self.fnames if name in known]
        lacking = [name for name in self.fnames if name not in known]
        extra = sorted(set(known).difference(self.fnames))
        if (lacking or extra) and not (partial and both):
            said = [
                f"the truth lacks {format_names(lacking)}" if lacking else "",
                f"the predictions lack {format_names(extra)}" if extra else "",
            ]
            remedy = (
                "score the same clips, or only those in both with partial=True"
                if both
                else "no clip is in both: is this its truth?"
            )
            raise DataError(f"{'; '.join(filter(None, said))}: {remedy}")
        return PairedPredictions(
            self.select(both).probs,
            np.array([known[name] for name in both], dtype=bool).reshape(len(both), len(self.tags)),
        )

    def score(self, truth: Table, *, partial: bool = False) -> float:
        """The lwlrap against a truth table; arguments and errors are those of `against`."""
        return lwlrap(*self.align_with(truth, partial=partial))

    def per_tag(self, truth: Table, *, partial: bool = False) -> pd.DataFrame:
        """One row per tag, worst lwlrap first, with the columns of `fatai.metrics.classification.tag_scores`.

        Where no clip has the tag, the scores are NaN. Arguments and errors are those of `against`.
        """
        table = tag_scores(*self.align_with(truth, partial=partial), self.tags)
        return table.sort_values(["lwlrap", "tag"], ignore_index=True)

    def interval(self, truth: Table, score: Score = "lwlrap", *, partial: bool = False, **options: Any) -> Interval:
        """A score and how sure it is.

        `score` and `options` are those of `fatai.metrics.bootstrap.score_interval`, the rest that of `against`.
        """
        return score_interval(*self.align_with(truth, partial=partial), score, **options)

    def compare(
        self, other: Predictions, truth: Table, score: Score = "lwlrap", *, partial: bool = False, **options: Any
    ) -> Difference:
        """How much better these are than `other`, of the same clips and tags in any order, and how sure that is.

        `score` and `options` are those of `fatai.metrics.bootstrap.score_difference`, the rest that of `against`.
        """
        ours, theirs = (
            self.align_with(truth, partial=partial),
            other.select(self.fnames, self.tags).align_with(truth, partial=partial),
        )
        return score_difference(ours.probs, theirs.probs, ours.targ, score, **options)

    def top(self, n: int = 3) -> pd.DataFrame:
        """The `n` likeliest tags of each clip, best first: columns `fname`, `rank` (from 1), `tag`, `prob`.

        Equal values keep the order of the tags.
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
        """Write exactly the rows and columns of a sample submission, in its order, whole or not at all.

        Clips that the sample does not list are left out; the tags must be the same. The file is checked before it takes its name.

        Raises
        ------
        SubmissionError
            If the sample lists a clip or tag that the predictions lack, or they have another tag, with the names.
        DataError
            If the sample cannot be read.
        """
        fnames, tags = read_sample_submission(sample)
        extra = sorted(set(self.tags).difference(tags))
        if extra:
            raise SubmissionError(
                f"{sample} has no column for the tags {format_names(extra)}: predict with the sample's vocabulary"
            )
        with write_file(path) as beside:
            _write_csv(beside, self.select(fnames, tags))
            check_submission(beside, sample)


def _write_csv(path: Path, preds: Predictions) -> None:
    # Of a name that is not UTF-8 on the disk the bytes are told: what is written can be read everywhere.
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(("fname", *preds.tags))
        # csv writes a Python float as repr does: the shortest text that reads back as the same number.
        write_rows(writer, preds.fnames, preds.probs)


def _names(given: Any, field: str) -> tuple[str, ...]:
    if isinstance(given, str):
        raise SubmissionError(f"{field} is the text {given!r}; expected a sequence of names")
    names = tuple(str(name) for name in given)
    if len(set(names)) < len(names):
        counts = pd.Series(names).value_counts()
        raise SubmissionError(f"{field} holds {format_names(counts.index[counts > 1].tolist())} more than once")
    if not all(names):
        raise SubmissionError(f"{field} holds an empty name, at position {names.index('')}")
    return names


def _float64(values: Any) -> np.ndarray:
    """A copy as float64 of an array, a nested list or a tensor on any device."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    try:
        return np.array(values, dtype=np.float64) + 0.0  # -0.0 becomes 0.0: equal values are written alike
    except (TypeError, ValueError) as e:
        raise SubmissionError(f"probs cannot be read as a table of numbers: {e}") from e


def _positions(wanted: Sequence[str], held: Sequence[str], kind: str) -> list[int]:
    index = {name: i for i, name in enumerate(held)}
    lacking = [name for name in wanted if name not in index]
    if lacking:
        raise SubmissionError(f"the predictions lack the {kind} {format_names(lacking)}")
    return [index[name] for name in wanted]
