"""Labels of windows in the files of other programs: Raven, Audacity, Label Studio and OpenSoundscape.

- *csv*: this library's table of window labels, `labels.csv`; other tables of sounds and tags are read, too.
- *raven*: selection tables, tab separated, one for each recording, named `REC.Table.1.selections.txt`.
- *audacity*: label tracks, tab separated, one for each recording, named `REC.txt`.
- *label-studio*: a list of tasks in JSON, with a region for each window; also the short form JSON_MIN is read.
- *opensoundscape*: one-hot clips in CSV: file, start_time, end_time, a column for each tag of 1 (present), 0 (absent)
  or nothing (not known).

Only csv and opensoundscape hold which tags are absent. Files of the others are taken to list what is present, and say
nothing about the rest.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pandas as pd

from fatai.audio.segments import split_segment
from fatai.data.labels import is_flag, join_labels, parse_labels, read_table
from fatai.data.locate import locate_files
from fatai.data.tables import read_sound_table
from fatai.errors import DataError, OptionError
from fatai.inference.search.labels import read_window_labels, window_label_csv, window_label_table
from fatai.io.atomic import write_text
from fatai.io.json import read_json_limited
from fatai.io.table_text import format_row
from fatai.registry import did_you_mean

__all__ = ["LABEL_FORMATS", "read_label_file", "write_label_files"]

LABEL_FORMATS = ("csv", "raven", "audacity", "label-studio", "opensoundscape")
"""Formats of `write_label_files`; `read_label_file` recognizes all of them."""

_MAX_JSON_BYTES = 1 << 28
_UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-(?=.)")
_ONE_HOT = ("file", "start_time", "end_time")
_RAVEN_COLUMNS = (
    "Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)", "Begin Path",
    "Tag",
)


def read_label_file(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read labels of windows of any of the formats, which is recognized by the content.

    Parameters
    ----------
    path
        The file. Recordings are looked up beside it and below, if their paths are not absolute.

    Returns
    -------
    A table of window labels, as in `fatai.inference.search.labels`; `user` is empty unless the file names one.

    Raises
    ------
    DataError
        If the file is of none of these formats; the message names it, and the row if there is one.
    """
    source = Path(path)
    if source.suffix.lower() == ".json":
        return _read_label_studio(source)
    if source.suffix.lower() == ".csv" and source.is_file():
        header = list(read_table(source, []).columns)
        if {"file", "start", "end", "labels"} <= set(header):
            return _located(read_window_labels(source), source)
        if tuple(header[:3]) == _ONE_HOT:
            return _located(_read_one_hot(source), source)
    table = read_sound_table(source)
    segments = [split_segment(file) for file in table["path"]]
    return window_label_table(
        {
            "file": segment.path, "start": math.nan if segment.end_s is None else segment.start_s,
            "end": math.nan if segment.end_s is None else segment.end_s, "labels": labels,
        }
        for segment, labels in zip(segments, table["labels"], strict=True)
    )


def _located(table: pd.DataFrame, source: Path) -> pd.DataFrame:
    """Replace the files of a table by the paths of recordings beside it, where they exist."""
    names = list(dict.fromkeys(table["file"]))
    paths = {
        name: str(found) if found.is_file() else name
        for name, found in zip(names, locate_files(names, source), strict=True)
    }
    return table.assign(file=[paths[name] for name in table["file"]])


def _read_one_hot(source: Path) -> pd.DataFrame:
    table, rows = read_table(source, _ONE_HOT), []
    tags = [column for column in table.columns if column not in _ONE_HOT]
    for k, row in enumerate(table.to_dict("records")):
        start, end = (_seconds(row[name], source, k) for name in _ONE_HOT[1:])
        wrong = next((tag for tag in tags if not is_flag(row[tag])), None)
        if wrong is not None:
            raise DataError(
                f"{source}, {format_row(k, source)}: {wrong} is {row[wrong]!r}; expected 1, 0 or nothing"
            )
        known = {tag: cell for tag in tags if (cell := row[tag].strip().lower()) not in ("", "nan")}
        present = [tag for tag, cell in known.items() if cell in ("1", "1.0", "true")]
        rows.append({"file": row["file"], "start": start, "end": end, "labels": present,
                     "absent": [tag for tag in known if tag not in present]})
    return window_label_table(rows)


def _seconds(cell: Any, source: Path, row: int) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError):
        raise DataError(f"{source}, {format_row(row, source)}: {cell!r} is no time in seconds") from None


def _read_label_studio(source: Path) -> pd.DataFrame:
    try:
        tasks = read_json_limited(source, _MAX_JSON_BYTES)
        if not isinstance(tasks, list):
            raise ValueError("expected a list of tasks")
        rows = [row for task in tasks for row in _task_rows(task)]
    except OSError as e:
        raise DataError(f"{source} cannot be read: {e.strerror or e}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise DataError(f"{source} is no export of Label Studio in JSON or JSON_MIN: {e}") from None
    return _located(window_label_table(rows), source)


def _task_rows(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the windows of a task of Label Studio."""
    data = task.get("data", task)
    audio = next((data[key] for key in ("audio", "sound", "file", "url") if isinstance(data.get(key), str)), None)
    if audio is None:
        raise ValueError(f"the task {task.get('id', '')} has no audio")
    file, regions = _file_of_url(audio), []
    for annotation in task.get("annotations", task.get("completions", [])):
        who = annotation.get("completed_by", "")
        user = str(who.get("email", who.get("id", "")) if isinstance(who, dict) else who)
        regions += [(user, region["value"]) for region in annotation["result"] if "value" in region]
    if "annotations" not in task and "completions" not in task:
        short = next((value for value in task.values() if isinstance(value, list)), [])
        regions += [(str(task.get("annotator", "")), value) for value in short]
    for user, value in regions:
        tags = value.get("labels", value.get("choices", []))
        times = {name: float(value[name]) for name in ("start", "end") if name in value}
        yield {"file": file, **times, "labels": parse_labels(list(tags)), "user": user}


def _file_of_url(audio: str) -> str:
    """Return the path or name of a sound by the address that Label Studio gives it."""
    url = urlsplit(audio)
    if "d" in parse_qs(url.query):  # local files
        return parse_qs(url.query)["d"][0]
    if url.scheme in ("http", "https") or audio.startswith("/data/"):
        return _UPLOAD_PREFIX.sub("", os.path.basename(unquote(url.path)))
    return audio


def write_label_files(table: pd.DataFrame, out: str | os.PathLike[str], file_format: str = "csv") -> int:
    """Write labels of windows; return the number of files.

    Parameters
    ----------
    table
        A table of window labels.
    out
        A file; for "raven" and "audacity" a folder, with a file for each recording.
    file_format
        One of `LABEL_FORMATS`.

    Raises
    ------
    OptionError
        If there is no such format.
    DataError
        If two recordings of one name would be written to one file, or one label of a whole file to a format with times.
    """
    if file_format not in LABEL_FORMATS:
        raise OptionError(f"there is no format {file_format!r}; {did_you_mean(file_format, LABEL_FORMATS)}")
    path = Path(out)
    if file_format == "csv":
        write_text(path, window_label_csv(table))
        return 1
    if file_format == "opensoundscape":
        write_text(path, _one_hot_csv(_with_times(table)))
        return 1
    shown = table[[len(labels) > 0 for labels in table["labels"]]]
    if len(shown) < len(table):
        warnings.warn(
            f"{len(table) - len(shown)} windows without a tag are left out: {file_format} has no tags that are absent",
            stacklevel=2,
        )
    if file_format == "label-studio":
        write_text(path, json.dumps(_tasks(shown), indent=1, ensure_ascii=False) + "\n")
        return 1
    return _write_each(_with_times(shown), path, file_format)


def _with_times(table: pd.DataFrame) -> pd.DataFrame:
    whole = table[table["start"].isna()]
    if len(whole):
        raise DataError(
            f"the label of {whole['file'].iloc[0]} is of the whole file; this format needs start and end: write csv or "
            "label-studio"
        )
    return table


def _one_hot_csv(table: pd.DataFrame) -> str:
    tags = sorted({tag for name in ("labels", "absent") for row in table[name] for tag in row})
    flags = {
        tag: ["1" if tag in row.labels else "0" if tag in row.absent else "" for row in table.itertuples()]
        for tag in tags
    }
    columns = {"file": table["file"].tolist(), "start_time": table["start"].tolist(), "end_time": table["end"].tolist()}
    return pd.DataFrame({**columns, **flags}).to_csv(index=False, lineterminator="\n")


def _tasks(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the tasks of Label Studio, one for each recording, with a region for each of its windows."""
    tasks = []
    for file, rows in table.groupby("file", sort=False):
        result = []
        for k, row in enumerate(rows.itertuples(), 1):
            whole = math.isnan(row.start)
            kind, name = ("choices", "choice") if whole else ("labels", "label")
            value = {kind: list(row.labels), **({} if whole else {"start": row.start, "end": row.end, "channel": 0})}
            result.append({"id": str(k), "type": kind, "from_name": name, "to_name": "audio", "value": value})
        tasks.append({"data": {"audio": file}, "annotations": [{"result": result}]})
    return tasks


def _write_each(table: pd.DataFrame, folder: Path, file_format: str) -> int:
    suffix = ".Table.1.selections.txt" if file_format == "raven" else ".txt"
    files = list(dict.fromkeys(table["file"]))
    repeated = [stem for stem, n in Counter(Path(file).stem for file in files).items() if n > 1]
    if repeated:
        raise DataError(
            f"{sum(Path(file).stem == repeated[0] for file in files)} recordings are called {repeated[0]}, and each "
            f"has a file of that name in {folder}; write csv, or rename the recordings"
        )
    for file, rows in table.groupby("file", sort=False):
        text = _raven(rows) if file_format == "raven" else _audacity(rows)
        write_text(folder / f"{Path(str(file)).stem}{suffix}", text)
    return len(files)


def _raven(rows: pd.DataFrame) -> str:
    lines = ["\t".join(_RAVEN_COLUMNS)]
    for k, row in enumerate(rows.itertuples(), 1):
        times = (f"{row.start:.3f}", f"{row.end:.3f}", "0.0", "22050.0")
        lines.append("\t".join((str(k), "Spectrogram 1", "1", *times, _cell(row.file), _tags(row.labels))))
    return "\n".join(lines) + "\n"


def _audacity(rows: pd.DataFrame) -> str:
    return "".join(f"{row.start:.6f}\t{row.end:.6f}\t{_tags(row.labels)}\n" for row in rows.itertuples())


def _tags(labels: Sequence[str]) -> str:
    return _cell(join_labels(labels))


def _cell(text: str) -> str:
    return " ".join(text.split())
