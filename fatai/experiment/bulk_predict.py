"""Any number of clips predicted with a run: a few thousand at a time, in parts of a list, going on where a killed process stopped.

While it goes on, the rows stand in a journal beside the table: text, a first line that says what made it, then a line of JSON for each
clip, `[fname, prob, ...]`. A last line without its end is what a killed process left, and is taken off.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from fatai.io.atomic import translate_os_errors, open_atomic
from fatai.data.datasets.fetch import file_digest
from fatai.errors import CheckpointError, DataError, OptionError
from fatai.ensemble.streaming import concat_files
from fatai.experiment.run_folder import predict_with_run
from fatai.io.json import parse_json

__all__ = ["ListPart", "merge_parts", "part_of", "predict_list"]

_MARK = "fatai rows 1"


class ListPart(NamedTuple):
    """Part `number`, from 1, of a list that is cut into `of` parts."""

    number: int
    of: int

    def rows(self, n: int) -> slice:
        """Which of `n` things are in this part; the parts follow each other and are equally long, up to one.

        Examples
        --------
        >>> [ListPart(k, 3).rows(8) for k in (1, 2, 3)]
        [slice(0, 2, None), slice(2, 5, None), slice(5, 8, None)]
        """
        return slice(n * (self.number - 1) // self.of, n * self.number // self.of)

    def file(self, whole: Path) -> Path:
        """Where this part of the file `whole` is: "tags.csv" has "tags.2-of-8.csv"."""
        return whole.with_name(f"{whole.stem}.{self.number}-of-{self.of}{whole.suffix}")


def part_of(text: str) -> ListPart:
    """A part as it is written: "2/8" is the second of eight; raises `OptionError`."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise OptionError(
            f"the shard is {text!r}; expected its number and how many there are, such as 2/8: 1/8 is the first, 8/8 the last"
        )
    return ListPart(int(found[1]), int(found[2]))


def predict_list(
    run: str | Path,
    items: pd.DataFrame,
    out: str | Path,
    *,
    chunk: int = 2048,
    keep_journal: bool = False,
    **options: Any,
) -> int:
    """Predict clips into a CSV of one column per tag; returns how many there are.

    Memory holds `chunk` clips' rows. If the process is killed, the same call goes on where it stopped.

    Parameters
    ----------
    run, options
        As in `predict_with_run`.
    items
        A table with the columns fname and path.
    keep_journal
        Whether the journal stays, so that the same call has nothing left to do; of parts it goes when they are merged.

    Raises
    ------
    DataError
        If a journal of other clips, another run or other options lies beside `out`, or two clips have the same name.
    """
    out, names = Path(out), [str(name) for name in items["fname"]]
    doubled = items["fname"][items["fname"].duplicated()]
    if len(doubled):
        raise DataError(f"two clips are called {doubled.iloc[0]!r}; give every clip a name of its own")
    made_by = {
        "run": _digest_of(Path(run)),
        "clips": _digest(names),
        "options": {k: repr(v) for k, v in sorted(options.items())},
    }
    journal = _journal_of(out)
    done = _go_on(journal, made_by)
    workers = {k: options.pop(k) for k in ("num_workers",) if k in options}
    with translate_os_errors(journal), journal.open("a", encoding="utf-8", newline="\n") as f:
        if journal.stat().st_size == 0:
            f.write(json.dumps({"made": _MARK, "by": made_by}) + "\n")
        for start in range(done, len(names), chunk):
            part = predict_with_run(run, items.iloc[start:start + chunk], **workers, **options)
            if start == 0:
                f.write(json.dumps({"tags": part.tags}) + "\n")
            # One write of whole lines, and nothing left in the buffer.
            f.write("".join(json.dumps([name, *row]) + "\n" for name, row in zip(part.fnames, part.probs.tolist())))
            f.flush()
    n = _write_table(journal, out)
    if not keep_journal:
        journal.unlink()
    return n


def merge_parts(whole: str | Path) -> int:
    """Join the parts of a table to the file `whole`, and remove them; returns how many rows it has.

    Raises
    ------
    DataError
        If there are none, some are lacking, or they are of several ways to cut the list.
    """
    whole = Path(whole)
    shape = re.compile(re.escape(whole.stem) + r"\.(\d+)-of-(\d+)" + re.escape(whole.suffix))
    found = {
        ListPart(int(m[1]), int(m[2])): file for file in whole.parent.glob("*") if (m := shape.fullmatch(file.name))
    }
    counts = sorted({part.of for part in found})
    if not found:
        raise DataError(
            f"there are no parts of {whole}, such as {ListPart(1, 2).file(whole).name}; make them with --shard 1/2 and so on"
        )
    if len(counts) > 1:
        raise DataError(f"the parts of {whole} are of lists cut into {counts}; remove those that don't belong together")
    lacking = [f"{k}/{counts[0]}" for k in range(1, counts[0] + 1) if ListPart(k, counts[0]) not in found]
    if lacking:
        raise DataError(
            f"of {whole} the parts {', '.join(lacking[:5])}{' ...' * (len(lacking) > 5)} are lacking; make them first"
        )
    parts = [found[part] for part in sorted(found)]
    n = concat_files(parts, whole)
    for part in parts:
        part.unlink()
        _journal_of(part).unlink(missing_ok=True)
    return n


def _journal_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.journal")


def _go_on(journal: Path, made_by: dict[str, Any]) -> int:
    """How many clips a journal has; takes off what a killed process left."""
    if not journal.exists():
        journal.parent.mkdir(parents=True, exist_ok=True)
        return 0
    lines = whole = 0
    with journal.open("rb+") as f:
        for line in f:
            if not line.endswith(b"\n"):
                break
            if lines == 0 and _told(journal, line).get("by") != made_by:
                raise DataError(
                    f"{journal} was begun with other clips, another run or other options; give the same ones to go on, "
                    "or remove it"
                )
            lines, whole = lines + 1, whole + len(line)
        if lines == 1:
            whole = 0  # begun, and not even the tags are known
        f.truncate(whole)
    return max(0, lines - 2)


def _told(journal: Path, line: bytes) -> dict[str, Any]:
    try:
        told = parse_json(line)
        if told["made"] == _MARK:
            return told
    except (ValueError, TypeError, KeyError):
        pass
    raise DataError(f"{journal} is no journal of predictions; remove it, or choose another --out")


def _write_table(journal: Path, out: Path) -> int:
    def rows() -> Iterator[Any]:
        with journal.open(encoding="utf-8") as f:
            yield from (json.loads(line) for line in f)

    n, each = -1, rows()
    next(each)
    with open_atomic(out) as f:
        writer = csv.writer(f, lineterminator="\n")
        for n, row in enumerate(each):
            writer.writerow(row if n else ("fname", *row["tags"]))
    return n


def _digest_of(run: Path) -> str:
    """Of all weights and settings of a run or model folder."""
    files = [
        f
        for pattern in ("*.toml", "*.json", "*.safetensors", "fold_*/model.safetensors")
        for f in sorted(run.glob(pattern))
    ]
    return _digest([_digest_of_file(f) for f in files if f.name != "manifest.json"])


def _digest_of_file(path: Path) -> str:
    if not path.is_file():
        raise CheckpointError(f"{path} is no file, and was not opened")
    return file_digest(path, "sha256")


def _digest(lines: list[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()
