"""Tag many files into one resumable log.

A log is text: a first line that identifies the format and the settings, then a line of JSON for each file, appended
when the whole file is done: `{"file": ..., "events": [[start_s, end_s, tag, prob], ...]}`, or `{"file": ..., "error":
"why it cannot be read"}`. An incomplete last line is left by a killed process, and is removed. A file may have several
lines, if it could not be read at first; its events count. A `ChannelEvent` has its channel in the last place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fatai.errors import AudioError, DataError
from fatai.inference.events.segments import ChannelEvent, SoundEvent
from fatai.io.json import parse_json
from fatai.io.progress import track

__all__ = ["FileEvents", "TaggingResult", "read_event_log"]

_FORMAT = "fatai events 1"
_BLOCK = 1 << 16  # bytes read at a time from the end


class FileEvents(NamedTuple):
    """A file, by the name it was given, and its events."""

    file: str
    events: Sequence[SoundEvent]


@dataclass
class TaggingResult:
    """Counts of a call of `tag_files`.

    Attributes
    ----------
    tagged, skipped
        Number of files tagged now, and of files that the log had already.
    errors
        Name of each unreadable file to the message that says why.
    """

    tagged: int = 0
    skipped: int = 0
    errors: dict[str, str] = field(default_factory=dict)


def tag_files(
    tag: Callable[[str], Sequence[SoundEvent]], paths: Iterable[str | Path], out: str | Path, settings: dict[str, Any]
) -> TaggingResult:
    """Append the events of each file to a log, except for files that it has; start the log if there is none.

    Parameters
    ----------
    tag
        Function from a path to its events; an `AudioError` goes to the log as well.
    paths
        The files.
    out
        The log.
    settings
        All that determines the events, as JSON values.

    Raises
    ------
    DataError
        If the file is not a log, or was started with other settings.
    """
    out, names, result = Path(out), [os.fspath(path) for path in paths], TaggingResult()
    done = _resume(out, settings)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="ascii", newline="\n") as log:
        if log.tell() == 0:
            _append(log, {"format": _FORMAT, "settings": settings})
        for name in track(names, "tagging"):
            if name in done:
                result.skipped += 1
                continue
            done.add(name)
            _append(log, _tag_file(tag, name, result))
    return result


def _tag_file(tag: Callable[[str], Sequence[SoundEvent]], name: str, result: TaggingResult) -> dict[str, Any]:
    """Tag one file, count it in `result`, and return its entry."""
    try:
        events = tag(name)
    except AudioError as e:
        result.errors[name] = str(e)
        return {"file": name, "error": str(e)}
    result.tagged += 1
    return {"file": name, "events": [list(astuple(e)) for e in events]}


def read_event_log(path: str | Path) -> Iterator[FileEvents]:
    """Yield files and their events in the order in which they were tagged, without unreadable files.

    Raises
    ------
    DataError
        If the file is not a log; the message names the line.
    """
    for number, entry in _entries(Path(path)):
        if number > 1 and "events" in entry:
            try:
                events = [_event(*row) for row in entry["events"]]
            except (TypeError, ValueError) as e:
                raise DataError(
                    f"{path}, line {number}: the events are not rows of start, end, tag and probability ({e})"
                ) from None
            yield FileEvents(str(entry["file"]), events)


def _event(start: Any, end: Any, tag: Any, prob: Any, channel: Any = None) -> SoundEvent:
    values = float(start), float(end), str(tag), float(prob)
    return SoundEvent(*values) if channel is None else ChannelEvent(*values, int(channel))


def _append(log: Any, entry: dict[str, Any]) -> None:
    # One write of the whole line: a killed process leaves it, or a part without a line end.
    log.write(json.dumps(entry) + "\n")
    log.flush()


def _resume(path: Path, settings: dict[str, Any]) -> set[str]:
    """Return the files that a log has events of, after removing an incomplete last line."""
    if not path.exists() or path.stat().st_size == 0:
        return set()
    header = next(_entries(path), (0, {}))[1]
    if header and header.get("settings") != json.loads(json.dumps(settings)):
        raise DataError(
            f"{path} was started with other networks or settings; repeat those to continue it, or choose another file"
        )
    done = {str(entry["file"]) for number, entry in _entries(path) if number > 1 and "events" in entry}
    with path.open("rb+") as log:
        log.truncate(_complete_bytes(log))
    return done


def _complete_bytes(log: Any) -> int:
    """Return the position after the last complete line."""
    end = log.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - _BLOCK)
        log.seek(start)
        found = log.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _entries(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and content of every complete line; the first is the header."""
    number = 0
    try:
        with path.open("rb") as log:
            for number, line in enumerate(log, 1):
                if not line.endswith(b"\n"):
                    return
                entry = parse_json(line)
                valid = entry.get("format") == _FORMAT if number == 1 else isinstance(entry.get("file"), str)
                if not valid:
                    raise ValueError(f"expected {'the header' if number == 1 else 'an entry with a file'}")
                yield number, entry
    except OSError as e:
        raise DataError(f"{path} cannot be opened: {e.strerror}") from None
    except (ValueError, AttributeError) as e:
        raise DataError(f"{path}, line {number}: not a log of events ({e}); choose another file") from None
