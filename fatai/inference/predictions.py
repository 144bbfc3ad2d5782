"""A table of predictions, clips by tags: to and from CSV, scored, and written as a checked submission.

Conventions: `probs` is float64, (clips, tags), within [0, 1]; rows are matched by `fnames`, columns by `tags`.
`fatai.inference.prediction_files` describes the columns of a CSV. CSV files are untrusted: they are read as text, cell
by cell, and errors name line and column.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fatai.data.clip_names import pair_names
from fatai.errors import DataError, SubmissionError
from fatai.inference.ground_truth import Table, read_truth
from fatai.inference.prediction_files import PredictionWriter, has_times, read_sample_submission, row_chunks
from fatai.inference.submission import check_submission, submission_problems
from fatai.io.atomic import write_file
from fatai.io.csv import format_names
from fatai.io.lazy import pandas as pd
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
        Those of `fnames` whose file cannot be read, so that their row is the prior, a guess. If there are any, the CSV
        has a last column `status` that marks them; a submission does not.
    oof_score
        lwlrap of the same model on clips that it was not trained on, if known; `ensemble(..., weights="lwlrap")`
        weights by it. Not part of the CSV, and ignored by `==`.
    silent
        Those of `fnames` whose sound is silent, so that their row is the prior as well; marked in the same column.

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
    silent: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in ("fnames", "tags", "unreadable", "silent"):
            object.__setattr__(self, field, _to_names(getattr(self, field), field))
        probs = _to_float64(self.probs)
        self._check_probs(probs)
        for field in ("unreadable", "silent"):
            unknown = set(getattr(self, field)).difference(self.fnames)
            if unknown:
                raise SubmissionError(f"{field} has {format_names(sorted(unknown))}; expected names of fnames")
        if self.unreadable or self.silent:
            # In the order of the rows, as a CSV has them, and each once.
            unreadable = set(self.unreadable)
            silent = set(self.silent).difference(unreadable)
            object.__setattr__(self, "unreadable", tuple(name for name in self.fnames if name in unreadable))
            object.__setattr__(self, "silent", tuple(name for name in self.fnames if name in silent))
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
        same = all(getattr(self, f) == getattr(other, f) for f in ("fnames", "tags", "unreadable", "silent"))
        return same and np.array_equal(self.probs, other.probs)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        unreadable = f", {len(self.unreadable)} unreadable" if self.unreadable else ""
        return f"Predictions({len(self.fnames)} clips, {len(self.tags)} tags{unreadable})"

    @classmethod
    def from_csv(cls, path: str | os.PathLike[str]) -> Predictions:
        """Read predictions from a CSV file with the column `fname` and one column per tag.

        Also with the columns `start_s` and `end_s` of segments, and `status`; and in the encodings and with the
        separators that `fatai.io.table_text` finds.

        Raises
        ------
        DataError
            If the file is missing, empty or not text, or has an invalid row or cell; the message names the line.
        """
        tags, chunks = row_chunks(path)
        parts = list(chunks)
        fnames = tuple(name for part in parts for name in part.fnames)
        statuses = {name: status for part in parts for name, status in part.statuses.items()}
        unreadable, silent = (
            tuple(name for name, status in statuses.items() if status == wanted) for wanted in ("unreadable", "silent")
        )
        probs = np.concatenate([np.empty((0, len(tags))), *(part.probs for part in parts)])
        return cls(fnames, tags, probs, unreadable, silent=silent)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the column `fname` and one column per tag.

        If clips are segments, `start_s` and `end_s` come before the tags; if a clip is unreadable or silent, `status`
        comes after them. The file is complete or not there.

        Each number is written with the fewest digits that read back as the same number, so equal predictions give equal
        bytes.
        """
        with write_file(path) as temporary:
            _write_csv(temporary, self, self.statuses, has_times(self.fnames))

    @property
    def statuses(self) -> dict[str, str]:
        """Names of unreadable and silent clips, and which of the two they are."""
        return {**dict.fromkeys(self.silent, "silent"), **dict.fromkeys(self.unreadable, "unreadable")}

    def to_frame(self) -> pd.DataFrame:
        """Return a data frame with the column `fname`, then one per tag."""
        names = pd.DataFrame({"fname": _name_column(self.fnames)})
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
        silent = tuple(name for name in self.silent if name in selected)
        return Predictions(fnames, tags, self.probs[np.ix_(rows, columns)], unreadable, self.oof_score, silent)

    def calibrated(self, calibration: Calibration) -> Predictions:
        """Return predictions with each tag calibrated; `oof_score` is dropped, because the score changes.

        Rows of unreadable and silent clips, which are fractions of training clips, stay as they are.

        Raises
        ------
        DataError
            If the calibration lacks a tag.
        """
        probs = calibration.select(self.tags).apply(self.probs)
        guessed = np.isin(
            np.array(self.fnames, dtype=object), np.array([*self.unreadable, *self.silent], dtype=object)
        )
        probs[guessed] = self.probs[guessed]
        return Predictions(self.fnames, self.tags, probs, self.unreadable, silent=self.silent)

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
        return pd.DataFrame({"fname": _name_column(self.fnames), "labels": labels})

    def align_with(self, truth: Table, *, partial: bool = False) -> PairedPredictions:
        """Pair predictions and ground truth, for any score.

        Parameters
        ----------
        truth
            A CSV file or data frame with `fname` and either `labels` (separated by commas or semicolons) or a column of
            0 and 1 for each tag. Rows and tags may come in any order. A clip may have another folder before its name
            than in the predictions, as long as the end of its path is that of one clip.
        partial
            Allow clips that only one of the two has, and leave them out.

        Returns
        -------
        `probs` float64 and `targ` bool, both (clips, tags), in the order of these predictions. As in a competition, the
        rows of unreadable clips count with the prior; a warning names them.

        Raises
        ------
        DataError
            If a clip is in only one of the two (unless `partial`) or appears twice, or the table has another layout.
        LabelError
            If a label is not one of `tags`.
        OptionError
            If a name is the end of several paths.
        """
        flags = read_truth(truth, self.tags)
        names = pair_names(self.fnames, list(flags))
        both = list(names)
        if len(both) < max(len(self.fnames), len(flags)) and not (partial and both):
            known = set(names.values())
            raise DataError(_mismatch(
                [name for name in self.fnames if name not in names], sorted(set(flags) - known), bool(both)
            ))
        scored = self.select(both)
        warn_of_priors(scored.unreadable, len(both))
        targ = np.array([flags[names[name]] for name in both], dtype=bool).reshape(len(both), len(self.tags))
        return PairedPredictions(scored.probs, targ)

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

    def top_columns(self, n: int = 3) -> np.ndarray:
        """Return the columns of the `n` likeliest tags of each clip, best first, int64 (clips, n or all tags)."""
        return np.argsort(-self.probs, axis=1, kind="stable")[:, :max(0, n)]

    def top(self, n: int = 3) -> pd.DataFrame:
        """Return the `n` likeliest tags of each clip, best first; equal values keep the order of the tags.

        Returns
        -------
        Data frame with the columns `fname`, `rank` (from 1), `tag`, `prob`.
        """
        order = self.top_columns(n)
        n = order.shape[1]
        return pd.DataFrame({
            "fname": _name_column([name for name in self.fnames for _ in range(n)]),
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


def _name_column(names: Sequence[str]) -> pd.Series:
    # As objects: Arrow's strings, which pandas takes where it finds pyarrow, cannot hold a name that is not text.
    return pd.Series(list(names), dtype=object)


def warn_of_priors(unreadable: Sequence[str], n_clips: int) -> None:
    """Warn that some of the clips that enter a score have no prediction, as every row of a submission counts."""
    if unreadable:
        warnings.warn(
            f"{len(unreadable)} of {n_clips} clips could not be read and count with the prior: "
            f"{format_names(unreadable)}", stacklevel=2,
        )


def _mismatch(missing: Sequence[str], extra: Sequence[str], overlap: bool) -> str:
    """Return a message about clips that only predictions (`missing`) or only ground truth have."""
    parts = [
        f"the truth lacks {format_names(missing)}" if missing else "",
        f"the predictions lack {format_names(extra)}" if extra else "",
    ]
    remedy = "score the same clips, or only those in both with partial=True"
    return f"{'; '.join(filter(None, parts))}: {remedy if overlap else 'no clip is in both; is this the right truth?'}"


def _write_csv(
    path: Path, preds: Predictions, statuses: dict[str, str] | None = None, with_times: bool = False
) -> None:
    # Names of files that are not UTF-8 are escaped, so that the table can be read everywhere.
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as f:
        # csv writes a Python float as repr does: the shortest text that reads back as the same number.
        PredictionWriter(f, preds.tags, statuses=statuses, has_times=with_times).write(preds.fnames, preds.probs)


def _to_names(values: Any, field: str) -> tuple[str, ...]:
    if isinstance(values, str):
        raise SubmissionError(f"{field} is the text {values!r}; expected a sequence of names")
    names = tuple(str(name) for name in values)
    if len(set(names)) < len(names):
        repeated = [name for name, count in Counter(names).items() if count > 1]
        raise SubmissionError(f"{field} has {format_names(repeated)} more than once")
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
