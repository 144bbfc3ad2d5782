"""Labels of windows of sound: tags that are present, tags that are absent, and nothing about all others.

A *table of window labels* has the columns `file` (a path), `start` and `end` (seconds; NaN for a whole file), `labels`
and `absent` (lists of tags), and `user`. As CSV, `labels.csv`, it is a table of sounds that every loader and
fatai-submit run read: rows with no labels are clips without any tag.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fatai.audio.segments import segment_path, split_segment
from fatai.data.clip_names import match_clips
from fatai.data.labels import join_labels, parse_labels, read_table
from fatai.errors import DataError, LabelError
from fatai.inference.search.index import SoundIndex
from fatai.io.atomic import write_text
from fatai.io.table_text import format_row

__all__ = ["LabeledWindows", "MergedLabels", "WindowLabelFile", "label_windows", "merge_labels", "read_window_labels",
           "window_label_csv"]

COLUMNS = ("file", "start", "end", "labels", "absent", "user")


def window_label_table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return a table of window labels of rows, in which all but `file` may be absent."""
    defaults = {"start": math.nan, "end": math.nan, "labels": [], "absent": [], "user": ""}
    table = pd.DataFrame([{**defaults, **row} for row in rows], columns=list(COLUMNS))
    return table.astype({"file": object, "start": float, "end": float, "user": object})


def read_window_labels(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a table of window labels that `window_label_csv` formatted.

    Raises
    ------
    DataError
        If the file is missing, lacks a column, or a time is no number; the message names the row.
    """
    table, rows = read_table(Path(path), ["file", "start", "end", "labels"]), []
    for k, row in enumerate(table.to_dict("records")):
        try:
            start, end = (float(row[name] or "nan") for name in ("start", "end"))
        except ValueError:
            start = end = -1.0
        if not (row["file"] and (math.isnan(start) and math.isnan(end) or 0 <= start < end)):
            raise DataError(
                f"{path}, {format_row(k, Path(path))}: file {row['file']!r}, start {row['start']!r}, end "
                f"{row['end']!r}; expected a file and seconds, with an end after the start"
            )
        labels, absent = parse_labels(row["labels"]), parse_labels(row.get("absent", ""))
        rows.append({"file": row["file"], "start": start, "end": end, "labels": labels, "absent": absent,
                     "user": row.get("user", "")})
    return window_label_table(rows)


def window_label_csv(table: pd.DataFrame) -> str:
    """Format a table of window labels as CSV; raises `LabelError` if a tag cannot be written to a cell."""
    cells = table.assign(
        labels=[join_labels(tags) for tags in table["labels"]], absent=[join_labels(tags) for tags in table["absent"]]
    )
    return cells[list(COLUMNS)].to_csv(index=False, lineterminator="\n")


class MergedLabels(NamedTuple):
    """Merged window labels, and the `conflicts`: columns file, start, end, tag, present and absent (users)."""

    table: pd.DataFrame
    conflicts: pd.DataFrame


def merge_labels(tables: Sequence[pd.DataFrame]) -> MergedLabels:
    """Merge the window labels of several users.

    A tag that some found present and others absent in the same window is a conflict: it is left out of that window.

    Parameters
    ----------
    tables
        Tables of window labels.
    """
    windows: dict[tuple[Any, ...], tuple[dict[str, set[str]], dict[str, set[str]]]] = {}
    for table in tables:
        for row in table.to_dict("records"):
            key = (row["file"], *(None if math.isnan(row[name]) else round(row[name], 3) for name in ("start", "end")))
            for users_of, tags in zip(windows.setdefault(key, ({}, {})), (row["labels"], row["absent"]), strict=True):
                for tag in tags:
                    users_of.setdefault(tag, set()).add(row["user"] or "unknown")
    merged, conflicts = [], []
    for (file, start, end), (present, absent) in windows.items():
        both = present.keys() & absent.keys()
        times = {"file": file, "start": math.nan if start is None else start, "end": math.nan if end is None else end}
        conflicts += [
            {**times, "tag": tag, "present": ", ".join(sorted(present[tag])), "absent": ", ".join(sorted(absent[tag]))}
            for tag in sorted(both)
        ]
        labels, not_there = ([tag for tag in users_of if tag not in both] for users_of in (present, absent))
        users = {user for users_of in (present, absent) for names in users_of.values() for user in names} - {"unknown"}
        if labels or not_there or not both:
            merged.append({**times, "labels": labels, "absent": not_there, "user": " ".join(sorted(users))})
    columns = ["file", "start", "end", "tag", "present", "absent"]
    return MergedLabels(window_label_table(merged), pd.DataFrame(conflicts, columns=columns))


class LabeledWindows(NamedTuple):
    """Labels of the windows of an index.

    Attributes
    ----------
    rows
        The windows with labels, int64 (windows,), ascending.
    tags
        All tags of the labels, sorted.
    targ
        float32 (windows, tags): 1 where a tag is present, 0 where it is absent, NaN where nothing is known.
    n_unmatched
        Number of rows of labels that no window of the index fits.
    """

    rows: np.ndarray
    tags: tuple[str, ...]
    targ: np.ndarray
    n_unmatched: int

    def of(self, tag: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows that are known to have or to lack a tag, and bool (windows,), True where it is present."""
        if tag not in self.tags:
            return np.zeros(0, np.int64), np.zeros(0, bool)
        column = self.targ[:, self.tags.index(tag)]
        known = ~np.isnan(column)
        return self.rows[known], column[known] > 0


def label_windows(index: SoundIndex, table: pd.DataFrame) -> LabeledWindows:
    """Find the windows of an index that labels describe.

    A label describes the window of the same times, or else those that share more than half with it. If labels of one
    window disagree, a tag counts as present.

    Parameters
    ----------
    index
        The windows.
    table
        Window labels. Their files are absolute paths, or names or ends of paths that one sound of the index has.
    """
    paths = _match_files(table["file"], index)
    tags = tuple(sorted({tag for name in ("labels", "absent") for row in table[name] for tag in row}))
    column, known, n_unmatched = {tag: k for k, tag in enumerate(tags)}, dict[int, np.ndarray](), 0
    for row in table.to_dict("records"):
        path, start = paths.get(row["file"]), 0.0 if math.isnan(row["start"]) else row["start"]
        end = None if math.isnan(row["end"]) else row["end"]
        found = [] if path is None else index.rows_of(path, start, end).tolist()
        n_unmatched += not found
        for window in found:
            targ = known.setdefault(window, np.full(len(tags), np.nan, dtype=np.float32))
            for tag in row["absent"]:
                targ[column[tag]] = np.fmax(targ[column[tag]], 0)
            for tag in row["labels"]:
                targ[column[tag]] = 1
    rows = np.array(sorted(known), dtype=np.int64)
    targ = np.stack([known[row] for row in rows.tolist()]) if known else np.zeros((0, len(tags)), np.float32)
    return LabeledWindows(rows, tags, targ, n_unmatched)


def _match_files(files: Iterable[str], index: SoundIndex) -> dict[str, str]:
    """Return the path in the index of each file of a table that it has."""
    paths = list(index.paths)
    absolute = {file: os.path.abspath(file) for file in dict.fromkeys(files)}
    keys = {file: path if path in index.sounds else file for file, path in absolute.items()}
    found = match_clips(keys.values(), [os.path.basename(path) for path in paths], paths)
    return {file: paths[found[key][0]] for file, key in keys.items() if key in found}


class WindowLabelFile:
    """A file of window labels that is complete at any time; threads may share one.

    Parameters
    ----------
    path
        labels.csv; it need not exist.
    user
        Name of who labels, written to each row.

    Raises
    ------
    DataError
        If the file exists but is no table of window labels.
    """

    def __init__(self, path: str | os.PathLike[str], user: str = ""):
        self.path, self.user, self._lock = Path(path), user, threading.Lock()
        self.read()

    def read(self) -> pd.DataFrame:
        """Read the table of window labels; without rows if there is no file."""
        return read_window_labels(self.path) if self.path.is_file() else window_label_table([])

    def decisions(self) -> dict[str, dict[str, list[str]]]:
        """Read the decided tags of each window by its name, such as `rec.wav#t=12.5,15`."""
        return {
            window_name(row["file"], row["start"], row["end"]): {"labels": row["labels"], "absent": row["absent"]}
            for row in self.read().to_dict("records")
        }

    def write(self, window: str, labels: Sequence[str] | None, absent: Sequence[str] = ()) -> int:
        """Write what is known of a window; return the number of windows with labels.

        Parameters
        ----------
        window
            Its name, such as `rec.wav#t=12.5,15`.
        labels, absent
            Tags that are present and absent; `labels` None removes what was known.

        Raises
        ------
        LabelError
            If a tag is both, or cannot be written to a cell.
        """
        segment = split_segment(window)
        both = sorted(set(labels or ()) & set(absent))
        if both:
            raise LabelError(f"{window}: the tag {both[0]!r} is both present and absent; expected one of the two")
        new = {"file": segment.path, "start": segment.start_s if segment.end_s else math.nan,
               "end": segment.end_s or math.nan, "labels": list(labels or ()), "absent": list(absent),
               "user": self.user}
        with self._lock:
            rows = [
                row for row in self.read().to_dict("records")
                if window_name(row["file"], row["start"], row["end"]) != window
            ]
            table = window_label_table(rows if labels is None else [*rows, new])
            write_text(self.path, window_label_csv(table))
        return len(table)


def window_name(file: str, start_s: float, end_s: float) -> str:
    """Return the name of a window, such as `rec.wav#t=12.5,15`; that of a whole file has no times."""
    return file if math.isnan(start_s) else segment_path(file, start_s, end_s)
