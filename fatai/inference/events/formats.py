"""Events to files that people and other programs read: CSV, JSON, Audacity's label tracks, Raven's selection tables.

CSV and JSON hold the events of many sounds, a file for Audacity or Raven those of one. Seconds have three decimals, probabilities four (two
in a label). Every file is written whole or not at all, as UTF-8; a name that is not UTF-8 keeps its bytes.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import IO

from fatai.io.atomic import write_file
from fatai.errors import DataError, OptionError
from fatai.inference.events.progress_log import FileEvents
from fatai.inference.events.segments import SoundEvent
from fatai.registry import did_you_mean

__all__ = ["EVENT_FORMATS", "write_events"]

EVENT_FORMATS = ("csv", "json", "audacity", "raven")
"""What `write_events` can write."""

_LONGEST_NAME = 255  # bytes
_RAVEN_COLUMNS = (
    "Selection",
    "View",
    "Channel",
    "Begin Time (s)",
    "End Time (s)",
    "Low Freq (Hz)",
    "High Freq (Hz)",
    "Begin Path",
    "Tag",
    "Probability",
)


def write_events(
    out: str | Path,
    results: Iterable[FileEvents],
    how: str = "csv",
    *,
    high_hz: float = 22050.0,
    root: str | Path | None = None,
) -> None:
    """Write the events of sounds to one file, or with `root` to one for each sound.

    Parameters
    ----------
    out
        A file; with `root` a folder.
    results
        Sounds and their events. "audacity" and "raven" without `root` take a single sound.
    how
        "csv": a header and the columns file, start_s, end_s, tag, prob. "json": `{"files": [{"file", "events": [{"start_s", "end_s", "tag",
        "prob"}]}]}`; sounds without events are in it. "audacity": start, end, and tag with probability, tab separated, for File > Import >
        Labels. "raven": a selection table with a header, tab separated.
    high_hz
        Upper edge of Raven's selections in Hz; the lower one is 0.
    root
        A folder that all sounds are in: `root/a/b.wav` gets the file `out/a/b.wav.txt`.

    Raises
    ------
    OptionError
        If there is no such format, or it cannot hold several sounds.
    DataError
        If a sound is not below `root`.

    Examples
    --------
    >>> import tempfile
    >>> out = Path(tempfile.mkdtemp(), "events.csv")
    >>> _ = write_events(out, [FileEvents("a.wav", [SoundEvent(0.75, 2.25, "Bark", 0.9)])])
    >>> print(out.read_text(), end="")
    file,start_s,end_s,tag,prob
    a.wav,0.750,2.250,Bark,0.9000
    """
    if how not in EVENT_FORMATS:
        raise OptionError(f"no format of events is called {how!r}; {did_you_mean(how, EVENT_FORMATS)}")
    if root is None:
        _write(Path(out), results, how, high_hz)
        return
    for result in results:
        below = os.path.relpath(os.path.abspath(result.file), os.path.abspath(root))
        if below.startswith(os.pardir):
            raise DataError(f"{result.file} is not below {root}; give the folder that all sounds are in")
        _write(Path(out, _short_name(f"{below}.txt")), [result], how, high_hz)


def _short_name(below: str) -> str:
    """A path whose last part a file can have, which takes at most 255 bytes: the middle of a longer one becomes a digest."""
    folder, name = os.path.split(below)
    encoded = os.fsencode(name)
    if len(encoded) <= _LONGEST_NAME:
        return below
    digest = hashlib.blake2b(encoded, digest_size=8).hexdigest()
    return os.path.join(folder, f"{os.fsdecode(encoded[:200])}.{digest}{name[-8:]}")


def _write(path: Path, results: Iterable[FileEvents], how: str, high_hz: float) -> None:
    # A name of a file that is not UTF-8 is text with surrogates, which only this way of writing takes.
    with write_file(path) as beside, open(beside, "w", encoding="utf-8", errors="surrogateescape", newline="") as f:
        if how == "csv":
            _write_csv(f, results)
        elif how == "json":
            _write_json(f, results)
        else:
            result = _only_one(results, how)
            _write_labels(f, result.events) if how == "audacity" else _write_selections(f, result, high_hz)


def _only_one(results: Iterable[FileEvents], how: str) -> FileEvents:
    found = list(islice(results, 2))
    if len(found) != 1:
        raise OptionError(
            f"a file for {how} holds the events of one sound, here are {len(found) or 'none'}; give a root and a folder"
        )
    return found[0]


def _write_csv(f: IO[str], results: Iterable[FileEvents]) -> None:
    rows = csv.writer(f, lineterminator="\n")
    rows.writerow(("file", "start_s", "end_s", "tag", "prob"))
    for file, events in results:
        rows.writerows((file, f"{e.start_s:.3f}", f"{e.end_s:.3f}", e.tag, f"{e.prob:.4f}") for e in events)


def _write_json(f: IO[str], results: Iterable[FileEvents]) -> None:
    # File by file, so that a hundred thousand of them are never one object in memory.
    f.write('{"files": [')
    for k, (file, events) in enumerate(results):
        listed = [
            {"start_s": round(e.start_s, 3), "end_s": round(e.end_s, 3), "tag": e.tag, "prob": round(e.prob, 4)}
            for e in events
        ]
        f.write((",\n" if k else "\n") + json.dumps({"file": file, "events": listed}))
    f.write("\n]}\n")


def _write_labels(f: IO[str], events: Sequence[SoundEvent]) -> None:
    f.writelines(f"{e.start_s:.3f}\t{e.end_s:.3f}\t{_cell(e.tag)} {e.prob:.2f}\n" for e in events)


def _write_selections(f: IO[str], result: FileEvents, high_hz: float) -> None:
    f.write("\t".join(_RAVEN_COLUMNS) + "\n")
    for number, e in enumerate(result.events, 1):
        row = (
            number,
            "Spectrogram 1",
            1,
            f"{e.start_s:.3f}",
            f"{e.end_s:.3f}",
            "0.0",
            f"{high_hz:.1f}",
            _cell(result.file),
            _cell(e.tag),
            f"{e.prob:.4f}",
        )
        f.write("\t".join(map(str, row)) + "\n")


def _cell(text: str) -> str:
    """Text that neither ends its column nor its line."""
    return " ".join(text.split())
