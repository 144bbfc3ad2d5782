"""Check a submission against the sample submission.

A submission is a CSV file with the column `fname`, then one per tag; the sample defines the clips, the tags, and the
order of the tags.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from fatai.errors import DataError, SubmissionError
from fatai.inference.prediction_files import read_sample_submission
from fatai.io.csv import CsvTable, Duplicates, read_csv, value_errors, width_error

__all__ = ["check_submission", "submission_problems"]

_MAX_LISTED = 20  # problems in a message; the rest are counted


def submission_problems(path: str | os.PathLike[str], sample: str | os.PathLike[str]) -> list[str]:
    """List the problems of a submission.

    It must have the columns of the sample in the same order, each row of the sample once (in any order: rows are
    matched by fname) and no other, and finite numbers within [0, 1].

    Returns
    -------
    One sentence per problem, with the line or column; empty for a valid submission. Problems of the header are listed
    alone, because cells cannot be assigned without it.

    Raises
    ------
    DataError
        If the sample cannot be read.
    """
    fnames, tags = read_sample_submission(sample)
    try:
        table = read_csv(path, strict=True)
        if problems := _header_problems(table.columns, ("fname", *tags)):
            return problems
        return _row_problems(table, fnames, tags)
    except DataError as e:
        return [str(e)]


def check_submission(path: str | os.PathLike[str], sample: str | os.PathLike[str]) -> None:
    """Check a submission.

    Raises
    ------
    SubmissionError
        If `submission_problems` finds any; the message lists them.
    DataError
        If the sample cannot be read.
    """
    problems = submission_problems(path, sample)
    if problems:
        rest = f"\n  and {len(problems) - _MAX_LISTED} more" if len(problems) > _MAX_LISTED else ""
        raise SubmissionError(f"{path} does not match {sample}:\n  " + "\n  ".join(problems[:_MAX_LISTED]) + rest)


def _header_problems(columns: Sequence[str], expected: Sequence[str]) -> list[str]:
    missing = [f"the column {c!r} is missing" for c in expected if c not in set(columns)]
    extra = [f"the column {c!r} is not in the sample" for c in columns if c not in set(expected)]
    if missing or extra:
        return missing + extra
    pairs = enumerate(zip(columns, expected, strict=True), start=1)
    moved = [(i, column, wanted) for i, (column, wanted) in pairs if column != wanted]
    if len(moved) == 2:
        (i, first, _), (k, second, _) = moved
        return [f"the columns {first!r} and {second!r} are swapped (columns {i} and {k})"]
    return [
        f"the columns are in another order: column {i} is {column!r}; expected {wanted!r}"
        for i, column, wanted in moved
    ]


def _row_problems(table: CsvTable, fnames: Sequence[str], tags: Sequence[str]) -> list[str]:
    problems: list[str] = []
    seen, expected = Duplicates(), set(fnames)
    for row in table.rows:
        error = width_error(row, table.columns)
        problems += [error] if error else value_errors(row, tags)
        duplicate = seen.error(row)
        if duplicate:
            problems.append(duplicate)
        elif row.cells[0] not in expected:
            problems.append(f"line {row.line}: the row of {row.cells[0]!r} is not in the sample")
    return problems + [f"the row of {name!r} is missing" for name in fnames if name not in seen.lines]
