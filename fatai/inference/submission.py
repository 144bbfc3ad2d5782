"""Whether a submission fits the sample submission, fault by fault.

A submission is a CSV file with the column `fname`, then one per tag; the sample says which clips and tags, and the order of the tags.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from fatai.errors import DataError, SubmissionError
from fatai.io.csv import CsvTable, Duplicates, read_csv, read_sample_submission, value_errors, width_error

__all__ = ["check_submission", "submission_problems"]

_SHOWN = 20  # faults that a message lists before it counts the rest


def submission_problems(path: str | os.PathLike[str], sample: str | os.PathLike[str]) -> list[str]:
    """Everything that is wrong with a submission, one sentence each, with the line or column; an empty list means that it is fine.

    It must have the columns of the sample in its order, each row of the sample once (in any order: rows are known by their fname) and no
    other, and finite numbers within [0, 1]. Problems of the header are listed alone, since cells cannot be told without it.

    Raises
    ------
    DataError
        If the sample cannot be read.
    """
    fnames, tags = read_sample_submission(sample)
    try:
        table = read_csv(path)
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


def _header_problems(columns: Sequence[str], expected: Sequence[str]) -> list[str]:
    lacking, extra = [c for c in expected if c not in set(columns)], [c for c in columns if c not in set(expected)]
    problems = [f"the column {c!r} is missing" for c in lacking] + [
        f"the column {c!r} is not in the sample" for c in extra
    ]
    if problems:
        return problems
    moved = [
        (i, given, wanted)
        for i, (given, wanted) in enumerate(zip(columns, expected, strict=True), start=1)
        if given != wanted
    ]
    if len(moved) == 2:
        return [
            f"the columns {moved[0][1]!r} and {moved[1][1]!r} are swapped (columns {moved[0][0]} and {moved[1][0]})"
        ]
    return [
        f"the columns are in another order: column {i} is {given!r}; expected {wanted!r}" for i, given, wanted in moved
    ]


def _row_problems(table: CsvTable, fnames: Sequence[str], tags: Sequence[str]) -> list[str]:
    problems: list[str] = []
    seen, known = Duplicates(), set(fnames)
    for row in table.rows:
        fault = width_error(row, table.columns)
        problems += [fault] if fault else value_errors(row, tags)
        duplicate = seen.error(row)
        if duplicate:
            problems.append(duplicate)
        elif row.cells[0] not in known:
            problems.append(f"line {row.line}: the row of {row.cells[0]!r} is not in the sample")
    return problems + [f"the row of {name!r} is missing" for name in fnames if name not in seen.lines]
