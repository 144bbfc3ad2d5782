"""Events of many files in one journal that a killed run goes on with.

A journal is text: a first line that says what made it, then a line of JSON for each file, appended when all of the file is done:
`{"file": ..., "events": [[start_s, end_s, tag, prob], ...]}`, or `{"file": ..., "fault": "why it cannot be read"}`. A last line without its
end is what a killed process left, and is taken off. A file may have several lines, if it could not be read at first; its events count.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fatai.errors import AudioError, DataError
from fatai.inference.events.segments import SoundEvent
from fatai.io.progress import track
from fatai.io.json import parse_json

__all__ = ["FileEvents", "TaggingResult", "read_event_log"]

_MARK = "fatai events 1"


class FileEvents(NamedTuple):
    """A file, by the name it was given, and what is heard in it."""

    file: str
    events: Sequence[SoundEvent]


@dataclass
class TaggingResult:
    """How many files were tagged now, how many had been before, and why the others could not be read, by file."""

    tagged: int = 0
    skipped: int = 0
    faults: dict[str, str] = field(default_factory=dict)


def tag_files(
    tag: Callable[[str], Sequence[SoundEvent]], paths: Iterable[str | Path], out: str | Path, made_by: dict[str, Any],
) -> TaggingResult:
    """Append what `tag` hears in each path to the journal `out`, except for those that it has; begins it if there is none.

    Parameters
    ----------
    made_by
        What decides the events; a journal that was begun with anything else is a `DataError`.
    """
    out, names, counts = Path(out), [os.fspath(path) for path in paths], TaggingResult()
    done = _done(out, made_by)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="ascii", newline="\n") as journal:
        if journal.tell() == 0:
            _append(journal, {"made": _MARK, "by": made_by})
        for name in track(names, "tagging"):
            if name in done:
                counts.skipped += 1
                continue
            done.add(name)
            try:
                events = tag(name)
            except AudioError as e:
                counts.faults[name] = str(e)
                _append(journal, {"file": name, "fault": str(e)})
                continue
            counts.tagged += 1
            _append(journal, {"file": name, "events": [[e.start_s, e.end_s, e.tag, e.prob] for e in events]})
    return counts


def read_event_log(path: str | Path) -> Iterator[FileEvents]:
    """Files and their events, one after another, in the order in which they were tagged; those that could not be read are left out.

    Raises
    ------
    DataError
        If it is no journal; the message names the line.
    """
    for number, entry in _lines(Path(path)):
        if number > 1 and "events" in entry:
            try:
                events = [
                    SoundEvent(float(start), float(end), str(tag), float(prob))
                    for start, end, tag, prob in entry["events"]
                ]
            except (TypeError, ValueError) as e:
                raise DataError(
                    f"{path}, line {number}: its events are not rows of start, end, tag and probability ({e})"
                ) from None
            yield FileEvents(str(entry["file"]), events)


def _append(journal: Any, entry: dict[str, Any]) -> None:
    # One write of the whole line: a killed process leaves it, or a part without an end.
    journal.write(json.dumps(entry) + "\n")
    journal.flush()


def _done(path: Path, made_by: dict[str, Any]) -> set[str]:
    """Files that the journal has events of; takes off what a killed process left."""
    if not path.exists() or path.stat().st_size == 0:
        return set()
    begun = next(_lines(path), (0, {}))[1]
    if begun and begun.get("by") != json.loads(json.dumps(made_by)):
        raise DataError(
            f"{path} was begun with other networks or settings; give the same ones to go on, or another file"
        )
    done = {str(entry["file"]) for number, entry in _lines(path) if number > 1 and "events" in entry}
    with path.open("rb+") as journal:
        journal.truncate(_whole_bytes(journal))
    return done


def _whole_bytes(journal: Any) -> int:
    """Where the last whole line ends."""
    end = journal.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - (1 << 16))
        journal.seek(start)
        found = journal.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and content of every whole line; the first says what made the journal."""
    try:
        with path.open("rb") as journal:
            for number, line in enumerate(journal, 1):
                if not line.endswith(b"\n"):
                    return
                entry = parse_json(line)
                good = entry.get("made") == _MARK if number == 1 else isinstance(entry.get("file"), str)
                if not good:
                    raise ValueError("it is not what is expected there")
                yield number, entry
    except OSError as e:
        raise DataError(f"{path} cannot be opened: {e.strerror}") from None
    except (ValueError, AttributeError) as e:
        raise DataError(f"{path}, line {number}: this is no journal of events ({e}); give another file") from None
