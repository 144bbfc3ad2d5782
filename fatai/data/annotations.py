"""Annotations of one recording in the files of editors: Audacity's label tracks, Raven's selection tables.

Such a file lies beside its recording and has its name: rec.txt, or rec.Table.1.selections.txt, beside rec.wav.
"""

from __future__ import annotations

import re
from pathlib import Path

from fatai.audio.io import AUDIO_EXTENSIONS
from fatai.errors import DataError
from fatai.io.lazy import pandas as pd

__all__ = ["read_label_track", "recording_beside"]

_LABEL = re.compile(r"\s*(\d+(?:[.,]\d+)?)\t(\d+(?:[.,]\d+)?)(?:\t(.*))?")
_MAX_START = 4096  # characters that tell a label track from a table


def read_label_track(path: Path) -> pd.DataFrame | None:
    """Read a label track of Audacity: start, end and label of each, separated by tabs, without a header.

    Lines that start with a back slash, the frequencies of the label before, are left out.

    Returns
    -------
    Columns fname (the recording beside it), start_time, end_time and labels, all text; None if the file is no label
    track.

    Raises
    ------
    DataError
        If a line is none of these, a label has no length, as a mark of a moment has none, or there is no recording
        beside the file.
    """
    with path.open("rb") as file:
        start = file.read(_MAX_START).decode("utf-8-sig", errors="replace").lstrip()
    if path.suffix.lower() != ".txt" or not _LABEL.match(start):
        return None
    lines = path.read_bytes().decode("utf-8-sig", errors="replace").splitlines()
    rows = []
    for number, line in enumerate(lines):
        if not line.strip() or line.lstrip().startswith("\\"):
            continue
        found = _LABEL.fullmatch(line)
        if not found:
            raise DataError(
                f"{path}, line {number + 1} is {line[:60]!r}; expected start, end and label, separated by tabs, as "
                "Audacity exports labels"
            )
        start_s, end_s = (float(cell.replace(",", ".")) for cell in found.groups()[:2])
        if not start_s < end_s:
            raise DataError(
                f"{path}, line {number + 1}: the label {(found[3] or '').strip()!r} starts at {found[1]} and ends at "
                f"{found[2]}; expected an end after the start: give it a length, or remove it"
            )
        rows.append((found[1], found[2], (found[3] or "").strip()))
    table = pd.DataFrame(rows, columns=["start_time", "end_time", "labels"], dtype=str)
    table.insert(0, "fname", recording_beside(path))
    return table


def recording_beside(path: Path) -> str:
    """Return the name of the recording that a file of annotations belongs to.

    Raises
    ------
    DataError
        If there is no such sound file, or several.
    """
    sounds = [file for file in path.parent.iterdir() if file.suffix.lower() in AUDIO_EXTENSIONS and file.is_file()]
    stems = [file for file in sounds if path.name.startswith(f"{file.stem}.")]
    longest = max((len(file.stem) for file in stems), default=0)
    found = sorted(file.name for file in stems if len(file.stem) == longest)
    if len(found) != 1:
        what = f"several: {', '.join(found)}" if found else "none"
        raise DataError(
            f"{path} has no column of files; expected one recording of its name beside it, such as {path.stem}.wav, "
            f"but there is {what}"
        )
    return found[0]
