"""A table of predictions: clips by tags, to and from CSV, scored, and written as a checked submission.

Conventions: `probs` is float64, (clips, tags), within [0, 1]; rows are known by `fnames`, columns by `tags`. A CSV has the column
`fname`, then one per tag. CSV files may come from strangers: they are read as text, cell by cell, and errors name line and column.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from fatai.atomic import write_atomic
from fatai.data.labels import parse_labels
from fatai.errors import DataError, LabelError, SubmissionError
from fatai.registry import did_you_mean
from fatai.score.ranking import lwlrap, lwlrap_per_class

__all__ = ["Aligned", "Predictions", "check_submission", "submission_problems"]

# Far above the competition's 24,000 x 80 (about 40 MB), far below what fills the memory of the machine that reads it.
MAX_CSV_BYTES = 1 << 30
_SHOWN = 20  # faults that a message lists before it counts the rest

Table: TypeAlias = str | os.PathLike[str] | pd.DataFrame


class Aligned(NamedTuple):
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

    def __post_init__(self) -> None:
        for field in ("fnames", "tags", "unreadable"):
            object.__setattr__(self, field, _names(getattr(self, field), field))
        probs = _float64(self.probs)
        expected = (len(self.fnames), len(self.tags))
        if probs.shape != expected:
            raise SubmissionError(f"probs has shape {probs.shape}; expected {expected}: one row for each fname, one column for each tag")
        bad = ~((probs >= 0) & (probs <= 1))  # written so that NaN is bad too
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise SubmissionError(f"probs holds {probs[row, column]} for {self.fnames[row]!r}, tag {self.tags[column]!r} "
                                  f"({int(bad.sum())} such values); expected numbers within [0, 1]: take the sigmoid of logits first")
        unknown = set(self.unreadable).difference(self.fnames)
        if unknown:
            raise SubmissionError(f"unreadable names {some(sorted(unknown))}, which fnames lacks")
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
        table = _read_csv(path)
        tags = _tag_columns(table)
        fnames, values, seen = [], [], _Duplicates()
        for row in table.rows:
            fault = _width_fault(row, table.columns) or seen.fault(row) or next(_value_faults(row, tags), None)
            if fault:
                raise DataError(f"{path}: {fault}")
            fnames.append(row.cells[0])
            values.append([float(cell) for cell in row.cells[1:]])
        return cls(tuple(fnames), tags, np.array(values).reshape(len(fnames), len(tags)))

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the column `fname` and one column per tag, whole or not at all.

        Each number is written with the fewest digits that read back as the same number, so equal predictions give equal bytes.
        """
        with write_atomic(path) as beside:
            _write_csv(beside, self)

    def to_frame(self) -> pd.DataFrame:
        """A data frame with the column `fname`, then one per tag."""
        return pd.concat([pd.DataFrame({"fname": list(self.fnames)}), pd.DataFrame(self.probs, columns=list(self.tags))], axis=1)

    def select(self, fnames: Iterable[str], tags: Iterable[str] | None = None) -> Predictions:
        """The rows of `fnames` and the columns of `tags` (by default all), in the order given.

        One that is not there is a `SubmissionError`.
        """
        fnames, tags = tuple(fnames), self.tags if tags is None else tuple(tags)
        rows, columns = _positions(fnames, self.fnames, "clips"), _positions(tags, self.tags, "tags")
        kept = set(fnames).intersection(self.unreadable)
        return Predictions(fnames, tags, self.probs[np.ix_(rows, columns)], tuple(u for u in self.unreadable if u in kept))

    def against(self, truth: Table, *, partial: bool = False) -> Aligned:
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
        known = _read_truth(truth, self.tags)
        both = [name for name in self.fnames if name in known]
        lacking = [name for name in self.fnames if name not in known]
        extra = sorted(set(known).difference(self.fnames))
        if (lacking or extra) and not (partial and both):
            said = [f"the truth lacks {some(lacking)}" if lacking else "", f"the predictions lack {some(extra)}" if extra else ""]
            remedy = "score the same clips, or only those in both with partial=True" if both else "no clip is in both: is this its truth?"
            raise DataError(f"{'; '.join(filter(None, said))}: {remedy}")
        return Aligned(self.select(both).probs, np.array([known[name] for name in both], dtype=bool).reshape(len(both), len(self.tags)))

    def score(self, truth: Table, *, partial: bool = False) -> float:
        """The lwlrap against a truth table; arguments and errors are those of `against`."""
        return lwlrap(*self.against(truth, partial=partial))

    def per_tag(self, truth: Table, *, partial: bool = False) -> pd.DataFrame:
        """One row per tag, worst first: `tag`, `lwlrap`, `clips` that have it, and its `weight` in the overall score.

        Where no clip has the tag, lwlrap is NaN. Arguments and errors are those of `against`.
        """
        probs, targ = self.against(truth, partial=partial)
        scores, weights = lwlrap_per_class(probs, targ)
        clips = targ.sum(axis=0)
        table = pd.DataFrame({"tag": list(self.tags), "lwlrap": np.where(clips > 0, scores, np.nan), "clips": clips, "weight": weights})
        return table.sort_values(["lwlrap", "tag"], ignore_index=True)

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
        fnames, tags = _read_sample(sample)
        extra = sorted(set(self.tags).difference(tags))
        if extra:
            raise SubmissionError(f"{sample} has no column for the tags {some(extra)}: predict with the sample's vocabulary")
        with write_atomic(path) as beside:
            _write_csv(beside, self.select(fnames, tags))
            check_submission(beside, sample)


def submission_problems(path: str | os.PathLike[str], sample: str | os.PathLike[str]) -> list[str]:
    """Everything that is wrong with a submission, one sentence each, with the line or column; an empty list means that it is fine.

    It must have the columns of the sample in its order, each row of the sample once (in any order: rows are known by their fname) and no
    other, and finite numbers within [0, 1]. Problems of the header are listed alone, since cells cannot be told without it.

    Raises
    ------
    DataError
        If the sample cannot be read.
    """
    fnames, tags = _read_sample(sample)
    try:
        table = _read_csv(path)
        if problems := _header_problems(table.columns, ("fname", *tags)):
            return problems
        return _row_problems(table, fnames, tags)
    except DataError as e:
        return [str(e)]


def check_submission(path: str | os.PathLike[str], sample: str | os.PathLike[str]) -> None:
    """Raise a `SubmissionError` that lists what `submission_problems` finds, if it finds anything."""
    problems = submission_problems(path, sample)
    if problems:
        rest = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise SubmissionError(f"{path} does not fit {sample}:\n  " + "\n  ".join(problems[:_SHOWN]) + rest)


# Reading and writing CSV: text in, one row at a time, and every complaint with its line.


class _Row(NamedTuple):
    line: int
    cells: list[str]


class _Table(NamedTuple):
    path: str
    columns: tuple[str, ...]
    rows: Iterator[_Row]


class _Duplicates:
    """Remembers the line of each fname, to name both lines of a duplicate."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}

    def fault(self, row: _Row) -> str:
        """What is wrong with the first cell, or nothing."""
        name = row.cells[0]
        first = self.lines.setdefault(name, row.line)
        if not name:
            return f"line {row.line}: the fname is empty"
        return f"line {row.line}: the row of {name!r} is a duplicate, it is on line {first} already" if first != row.line else ""


def _read_csv(path: str | os.PathLike[str]) -> _Table:
    """Columns and, one after the other, rows of a CSV file; blank lines are passed over."""
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{path}: no such file; expected a CSV file with the column fname")
    if file.stat().st_size > MAX_CSV_BYTES:
        raise DataError(f"{path}: {file.stat().st_size / 1e9:.1f} GB; a table of more than {MAX_CSV_BYTES / 1e9:.1f} GB is not read")
    rows = _csv_rows(file)
    header = next(rows, None)
    if header is None:
        raise DataError(f"{path}: the file is empty; expected a header with fname and one column per tag")
    columns = tuple(cell.strip() for cell in header.cells)
    twice = sorted({c for c in columns if columns.count(c) > 1}) if len(set(columns)) < len(columns) else []
    if twice:
        raise DataError(f"{path}: line {header.line}: the column {some(twice)} is there twice")
    return _Table(str(path), columns, rows)


def _csv_rows(file: Path) -> Iterator[_Row]:
    # utf-8-sig: a spreadsheet puts a mark before the first column's name, which would then not be "fname".
    with file.open(encoding="utf-8-sig", newline="") as f:
        reader = csv.reader(f, strict=True)
        try:
            for cells in reader:
                if cells:
                    yield _Row(reader.line_num, cells)
        except csv.Error as e:
            raise DataError(f"{file}: line {reader.line_num}: not a CSV row ({e})") from e
        except UnicodeDecodeError as e:
            raise DataError(f"{file}: after line {reader.line_num}: not UTF-8 text ({e.reason}); is this a CSV file?") from e


def _tag_columns(table: _Table) -> tuple[str, ...]:
    if table.columns[0] != "fname" or len(table.columns) < 2 or not all(table.columns):
        shown = ", ".join(table.columns[:4])
        raise DataError(f"{table.path}: the header begins {shown!r}; expected fname, then one column per tag, each with a name")
    return table.columns[1:]


def _read_sample(path: str | os.PathLike[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Clips and tags of a sample submission; its values are not looked at."""
    table = _read_csv(path)
    tags, seen = _tag_columns(table), _Duplicates()
    for row in table.rows:
        fault = seen.fault(row)
        if fault:
            raise DataError(f"{path}: {fault}")
    return tuple(seen.lines), tags


def _width_fault(row: _Row, columns: Sequence[str]) -> str:
    given, expected = len(row.cells), len(columns)
    return f"line {row.line} ({row.cells[0]!r}): {given} cells; expected {expected}, as in the header" if given != expected else ""


def _value_faults(row: _Row, tags: Sequence[str]) -> Iterator[str]:
    """What is wrong with the cells after the first: no number, not finite, outside [0, 1]."""
    for tag, cell in zip(tags, row.cells[1:], strict=True):
        try:
            # Python reads 1_0 as 10; a CSV file means nothing by it.
            value = float(cell) if "_" not in cell else None
        except ValueError:
            value = None
        if value is not None and 0 <= value <= 1:
            continue
        what = "is no number" if value is None else "is not finite" if not math.isfinite(value) else "lies outside [0, 1]"
        yield f"line {row.line} ({row.cells[0]!r}), column {tag!r}: {cell[:40]!r} {what}"


def _write_csv(path: Path, preds: Predictions) -> None:
    with path.open("w", encoding="utf-8", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(("fname", *preds.tags))
        # csv writes a Python float as repr does: the shortest text that reads back as the same number.
        writer.writerows((name, *row) for name, row in zip(preds.fnames, preds.probs.tolist(), strict=True))


# What a submission may have wrong.


def _header_problems(columns: Sequence[str], expected: Sequence[str]) -> list[str]:
    lacking, extra = [c for c in expected if c not in set(columns)], [c for c in columns if c not in set(expected)]
    problems = [f"the column {c!r} is missing; {did_you_mean(c, extra)}" if extra else f"the column {c!r} is missing" for c in lacking]
    problems += [f"the column {c!r} is not in the sample" for c in extra]
    if problems:
        return problems
    moved = [(i, given, wanted) for i, (given, wanted) in enumerate(zip(columns, expected, strict=True), start=1) if given != wanted]
    if len(moved) == 2:
        return [f"the columns {moved[0][1]!r} and {moved[1][1]!r} are swapped (columns {moved[0][0]} and {moved[1][0]})"]
    return [f"the columns are in another order: column {i} is {given!r}; expected {wanted!r}" for i, given, wanted in moved]


def _row_problems(table: _Table, fnames: Sequence[str], tags: Sequence[str]) -> list[str]:
    problems: list[str] = []
    seen, known = _Duplicates(), set(fnames)
    for row in table.rows:
        fault = _width_fault(row, table.columns)
        problems += [fault] if fault else _value_faults(row, tags)
        duplicate = seen.fault(row)
        if duplicate:
            problems.append(duplicate)
        elif row.cells[0] not in known:
            problems.append(f"line {row.line}: the row of {row.cells[0]!r} is not in the sample")
    return problems + [f"the row of {name!r} is missing" for name in fnames if name not in seen.lines]


# The truth.


def _read_truth(truth: Table, tags: Sequence[str]) -> dict[str, np.ndarray]:
    """Flags of the present tags for each fname of a truth table."""
    if isinstance(truth, pd.DataFrame):
        columns = tuple(str(c) for c in truth.columns)
        # Row numbers as in a CSV of the same frame: the header is line 1.
        numbered = enumerate(truth.itertuples(index=False, name=None), start=2)
        rows = (_Row(line, [_as_text(cell) for cell in cells]) for line, cells in numbered)
        table = _Table("the truth table", columns, rows)
    else:
        table = _read_csv(truth)
    if "fname" not in table.columns:
        raise DataError(f"{table.path}: no column fname; its columns are {some(table.columns)}")
    by_column = set(tags) <= set(table.columns)
    if not by_column and "labels" not in table.columns:
        lacking = [t for t in tags if t not in table.columns]
        raise DataError(f"{table.path}: it has neither a column labels nor a column for each tag: it lacks {some(lacking)}")
    if by_column and (extra := set(table.columns).difference(tags, ["fname"])):
        raise DataError(f"{table.path}: the columns {some(sorted(extra))} are no tags of the predictions")
    name_at = table.columns.index("fname")
    known: dict[str, np.ndarray] = {}
    seen = _Duplicates()
    for row in table.rows:
        fault = _width_fault(row, table.columns) or seen.fault(_Row(row.line, [row.cells[name_at]]))
        if fault:
            raise DataError(f"{table.path}: {fault}")
        cells = dict(zip(table.columns, row.cells, strict=True))
        known[row.cells[name_at]] = _flags(cells, tags, row, table.path) if by_column else _parsed(cells["labels"], tags, row, table.path)
    return known


def _as_text(cell: Any) -> str:
    """A cell of a data frame as a CSV has it: nothing for a missing value, labels joined where they are a list."""
    if isinstance(cell, (list, tuple)):
        return ",".join(str(label) for label in cell)
    return "" if cell is None or cell != cell else str(cell)


def _flags(cells: dict[str, str], tags: Sequence[str], row: _Row, path: str) -> np.ndarray:
    """Flags from one cell of 0 or 1 (or False and True) per tag."""
    meaning = {"0": False, "1": True, "0.0": False, "1.0": True, "False": False, "True": True}
    for tag in tags:
        if cells[tag].strip() not in meaning:
            raise DataError(f"{path}: line {row.line}, column {tag!r}: {cells[tag][:40]!r}; expected 0 or 1")
    return np.array([meaning[cells[tag].strip()] for tag in tags], dtype=bool)


def _parsed(cell: str, tags: Sequence[str], row: _Row, path: str) -> np.ndarray:
    """Flags from one cell of labels."""
    labels = parse_labels(cell)
    for label in labels:
        if label not in tags:
            raise LabelError(f"{path}: line {row.line}: {label!r} is no tag of the predictions; {did_you_mean(label, tags)}")
    return np.array([tag in labels for tag in tags], dtype=bool)


# Names and numbers.


def _names(given: Any, field: str) -> tuple[str, ...]:
    if isinstance(given, str):
        raise SubmissionError(f"{field} is the text {given!r}; expected a sequence of names")
    names = tuple(str(name) for name in given)
    if len(set(names)) < len(names):
        counts = pd.Series(names).value_counts()
        raise SubmissionError(f"{field} holds {some(counts.index[counts > 1].tolist())} more than once")
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
        raise SubmissionError(f"the predictions lack the {kind} {some(lacking)}")
    return [index[name] for name in wanted]


def some(names: Sequence[str], shown: int = 3) -> str:
    """The first few names, and how many more there are."""
    listed = ", ".join(repr(name) for name in names[:shown])
    return f"{listed} and {len(names) - shown} more" if len(names) > shown else listed
