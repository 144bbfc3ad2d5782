"""Write events to files for people and other programs: CSV, JSON, Audacity label tracks, Raven selection tables.

CSV and JSON hold the events of many recordings, a file for Audacity or Raven those of one. Seconds have three decimals,
probabilities four (two in a label). Every file is complete or not there, and UTF-8; names that are not UTF-8 keep their
bytes.
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

from fatai.errors import DataError, OptionError
from fatai.inference.events.progress_log import FileEvents
from fatai.inference.events.segments import ChannelEvent, SoundEvent
from fatai.io.atomic import write_file
from fatai.registry import did_you_mean

__all__ = ["EVENT_FORMATS", "write_events"]

EVENT_FORMATS = ("csv", "json", "audacity", "raven")
"""Formats of `write_events`."""

_MAX_NAME_BYTES = 255
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
    out: str | Path | IO[str],
    results: Iterable[FileEvents],
    file_format: str = "csv",
    *,
    high_hz: float = 22050.0,
    root: str | Path | None = None,
    channels: bool = False,
) -> None:
    """Write the events of recordings to one file, or with `root` to one file for each.

    Parameters
    ----------
    out
        A file; with `root` a folder. Or an open text file, such as `sys.stdout`, which stays open.
    results
        Recordings and their events. "audacity" and "raven" without `root` take a single recording.
    file_format
        "csv": a header and the columns file, start_s, end_s, tag, prob. "json": `{"files": [{"file", "events":
        [{"start_s", "end_s", "tag", "prob"}]}]}`; recordings without events are included. "audacity": start, end, and
        tag with probability, tab separated, for File > Import > Labels. "raven": a selection table with a header, tab
        separated. The channel of a `ChannelEvent` is a last column of CSV, a key of JSON, Raven's column Channel, and
        in Audacity part of the label.
    high_hz
        Upper edge of Raven's selections in Hz; the lower one is 0.
    root
        A folder that contains all recordings: `root/a/b.wav` gets the file `out/a/b.wav.txt`.
    channels
        Whether CSV has a column for the channel.

    Raises
    ------
    OptionError
        If there is no such format, or it cannot hold several recordings.
    DataError
        If a recording is not below `root`.

    Examples
    --------
    >>> import tempfile
    >>> out = Path(tempfile.mkdtemp(), "events.csv")
    >>> _ = write_events(out, [FileEvents("a.wav", [SoundEvent(0.75, 2.25, "Bark", 0.9)])])
    >>> print(out.read_text(), end="")
    file,start_s,end_s,tag,prob
    a.wav,0.750,2.250,Bark,0.9000
    """
    if file_format not in EVENT_FORMATS:
        raise OptionError(f"there is no event format {file_format!r}; {did_you_mean(file_format, EVENT_FORMATS)}")
    if not isinstance(out, (str, Path)):
        _write_text(out, results, file_format, high_hz, channels)
        return
    if root is None:
        _write(Path(out), results, file_format, high_hz, channels)
        return
    for result in results:
        relative = os.path.relpath(os.path.abspath(result.file), os.path.abspath(root))
        if relative.startswith(os.pardir):
            raise DataError(f"{result.file} is not below {root}; expected a folder that contains all recordings")
        _write(Path(out, _shorten_name(f"{relative}.txt")), [result], file_format, high_hz, channels)


def _shorten_name(path: str) -> str:
    """Replace the middle of a file name by a digest if the name is longer than file systems allow, 255 bytes."""
    folder, name = os.path.split(path)
    encoded = os.fsencode(name)
    if len(encoded) <= _MAX_NAME_BYTES:
        return path
    digest = hashlib.blake2b(encoded, digest_size=8).hexdigest()
    return os.path.join(folder, f"{os.fsdecode(encoded[:200])}.{digest}{name[-8:]}")


def _write(path: Path, results: Iterable[FileEvents], file_format: str, high_hz: float, channels: bool) -> None:
    # The name of a file that is not UTF-8 is text with surrogates, which only this error handler accepts.
    with (
        write_file(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as f,
    ):
        _write_text(f, results, file_format, high_hz, channels)


def _write_text(
    f: IO[str], results: Iterable[FileEvents], file_format: str, high_hz: float, channels: bool
) -> None:
    if file_format == "csv":
        _write_csv(f, results, channels)
    elif file_format == "json":
        _write_json(f, results)
    elif file_format == "audacity":
        _write_labels(f, _single(results, file_format).events)
    else:
        _write_selections(f, _single(results, file_format), high_hz)


def _single(results: Iterable[FileEvents], file_format: str) -> FileEvents:
    found = list(islice(results, 2))
    if len(found) != 1:
        raise OptionError(
            f"the format {file_format} takes the events of one recording per file, got {len(found) or 'none'}; give "
            "root and a folder"
        )
    return found[0]


def _channel(event: SoundEvent) -> int:
    return event.channel if isinstance(event, ChannelEvent) else 1


def _write_csv(f: IO[str], results: Iterable[FileEvents], channels: bool) -> None:
    rows = csv.writer(f, lineterminator="\n")
    rows.writerow(("file", "start_s", "end_s", "tag", "prob", *(["channel"] if channels else [])))
    for file, events in results:
        rows.writerows(
            (file, f"{e.start_s:.3f}", f"{e.end_s:.3f}", e.tag, f"{e.prob:.4f}", *([_channel(e)] if channels else []))
            for e in events
        )


def _write_json(f: IO[str], results: Iterable[FileEvents]) -> None:
    # File by file, so that many thousands of them are never in memory at once.
    f.write('{"files": [')
    for k, (file, events) in enumerate(results):
        listed = [
            {"start_s": round(e.start_s, 3), "end_s": round(e.end_s, 3), "tag": e.tag, "prob": round(e.prob, 4)}
            | ({"channel": e.channel} if isinstance(e, ChannelEvent) else {})
            for e in events
        ]
        f.write((",\n" if k else "\n") + json.dumps({"file": file, "events": listed}))
    f.write("\n]}\n")


def _write_labels(f: IO[str], events: Sequence[SoundEvent]) -> None:
    for e in events:
        channel = f" channel {e.channel}" if isinstance(e, ChannelEvent) else ""
        f.write(f"{e.start_s:.3f}\t{e.end_s:.3f}\t{_cell(e.tag)} {e.prob:.2f}{channel}\n")


def _write_selections(f: IO[str], result: FileEvents, high_hz: float) -> None:
    f.write("\t".join(_RAVEN_COLUMNS) + "\n")
    for number, e in enumerate(result.events, 1):
        times = (f"{e.start_s:.3f}", f"{e.end_s:.3f}", "0.0", f"{high_hz:.1f}")
        values = (*times, _cell(result.file), _cell(e.tag), f"{e.prob:.4f}")
        row = (str(number), "Spectrogram 1", str(_channel(e)), *values)
        f.write("\t".join(row) + "\n")


def _cell(text: str) -> str:
    """Replace tabs and line ends by spaces."""
    return " ".join(text.split())
