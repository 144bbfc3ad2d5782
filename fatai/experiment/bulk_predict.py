"""Predict any number of clips into a CSV: in chunks, in shards, resumable after a kill.

Finished rows are kept in a journal beside the table: a text file with a first line that identifies run, clips and
options, a line with the tags, and then a line of JSON for each clip, `[fname, prob, ...]`, with a last element
"unreadable" or "silent" if it is. An incomplete last line, left by a killed process, is removed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from fatai.audio.io import load_audio
from fatai.ensemble.streaming import concat_files, scan_files
from fatai.errors import AudioError, CheckpointError, DataError, OptionError
from fatai.experiment.ensemble_folder import EnsembleFolder, is_ensemble_folder
from fatai.experiment.run_folder import predict_with_run
from fatai.inference.prediction_files import CHUNK, PredictionWriter, has_times, row_chunks
from fatai.inference.predictions import Predictions
from fatai.io.atomic import open_atomic, translate_os_errors
from fatai.io.csv import Duplicates, Row, read_csv
from fatai.io.fetch import file_digest
from fatai.io.json import parse_json
from fatai.io.lazy import is_data_frame
from fatai.io.lazy import pandas as pd
from fatai.io.lock import lock_output

__all__ = ["Shard", "count_unreadable", "merge_shards", "parse_shard", "predict_to_csv", "run_identity"]

_FORMAT = "fatai rows 1"


class Shard(NamedTuple):
    """A part of a list that is split into consecutive parts of equal length, up to one item.

    Attributes
    ----------
    number
        Its number, from 1.
    total
        Number of shards.
    """

    number: int
    total: int

    def rows(self, n: int) -> slice:
        """Return the positions of the shard in a list of `n` items.

        Examples
        --------
        >>> [Shard(k, 3).rows(8) for k in (1, 2, 3)]
        [slice(0, 2, None), slice(2, 5, None), slice(5, 8, None)]
        """
        return slice(n * (self.number - 1) // self.total, n * self.number // self.total)

    def file(self, whole: Path) -> Path:
        """Return the path of this shard of the file `whole`: "tags.csv" has "tags.2-of-8.csv"."""
        return whole.with_name(f"{whole.stem}.{self.number}-of-{self.total}{whole.suffix}")


def parse_shard(text: str) -> Shard:
    """Parse a shard such as "2/8", the second of eight; raises `OptionError` if it is not of this form.

    Examples
    --------
    >>> parse_shard("2/8")
    Shard(number=2, total=8)
    """
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise OptionError(
            f"the shard is {text!r}; expected its number and the number of shards, such as 2/8 "
            "(1/8 is the first, 8/8 the last)"
        )
    return Shard(int(found[1]), int(found[2]))


def predict_to_csv(
    run: str | Path,
    items: pd.DataFrame | Sequence[tuple[str, str | Path]],
    out: str | Path,
    *,
    chunk: int = 2048,
    keep_journal: bool = False,
    **options: Any,
) -> int:
    """Predict clips into a CSV with one column per tag, and return the number of clips.

    After a kill, the same call continues where it stopped.

    Parameters
    ----------
    run, options
        As in `fatai.experiment.run_folder.predict_with_run`.
    items
        Pairs of a name and a path, or a table with the columns fname and path.
    chunk
        Clips whose predictions are held in memory; more use larger batches of work between two writes.
    keep_journal
        Whether the journal stays, so that the same call finds nothing left to do; that of a shard is removed by
        `merge_shards`.

    Raises
    ------
    AudioError
        If none of the clips can be read, unless `keep_journal` is True; `out` is not written then.
    DataError
        If a journal of other clips, another run or other options is beside `out`, or two clips have the same name.
    StorageError
        If another command is writing `out`.
    """
    pairs = _pairs(items)
    out, identity = Path(out), run_identity(run, pairs, options)
    with lock_output(out):
        return _predict_with_journal(run, pairs, out, identity, options, chunk, keep_journal)


def run_identity(
    run: str | Path, items: pd.DataFrame | Sequence[tuple[str, str | Path]], options: dict[str, Any]
) -> dict[str, Any]:
    """Return what identifies predictions: digests of run and of the clips' names and paths, and the options.

    Raises
    ------
    DataError
        If two clips have the same name.
    """
    names = [str(name) for name, _ in _pairs(items)]
    repeated = next((name for name, count in Counter(names).items() if count > 1), None)
    if repeated is not None:
        raise DataError(f"two clips are named {repeated!r}; give every clip a name of its own")
    return {
        "run": _run_digest(Path(run)),
        "clips": _digest([f"{name}\0{path}" for name, path in _pairs(items)]),
        # Without the number of workers, which does not change the predictions and may change between two calls.
        "options": {k: repr(v) for k, v in sorted({"calibrate": None, **options}.items()) if k != "num_workers"},
    }


def _pairs(items: Any) -> list[tuple[str, str | Path]]:
    """Return pairs of a name and a path of a table with these columns, or pairs as they are."""
    return list(zip(items["fname"], items["path"], strict=True)) if is_data_frame(items) else list(items)


def _predict_with_journal(
    run: str | Path, pairs: Sequence[tuple[str, str | Path]], out: Path, identity: dict[str, Any],
    options: dict[str, Any], chunk: int, keep_journal: bool,
) -> int:
    journal = _journal_path(out)
    n_done = _resume_journal(journal, identity)
    with translate_os_errors(journal), journal.open("a", encoding="utf-8", newline="\n") as f:
        if journal.stat().st_size == 0:
            f.write(json.dumps({"made": _FORMAT, "by": identity}) + "\n")
        for start in range(n_done, max(1, len(pairs)), chunk):  # once without clips, as in some of many shards
            predictions = predict_with_run(run, pairs[start:start + chunk], **options)
            if start == 0:
                f.write(json.dumps({"tags": predictions.tags}) + "\n")
            _append_rows(f, predictions)
    if pairs and not keep_journal and not _has_readable(journal):
        journal.unlink()  # the same command tries them again
        raise none_readable(pairs, options.get("channel"))
    n = _write_table(journal, out)
    if not keep_journal:
        journal.unlink()
    return n


def _has_readable(journal: Path) -> bool:
    with journal.open(encoding="utf-8") as f:
        return any(json.loads(line)[-1] != "unreadable" for line in islice(f, 2, None))


def none_readable(
    items: pd.DataFrame | Sequence[tuple[str, str | Path]], channel: str | int | None = None
) -> AudioError:
    """Return the error for clips of which none can be read, with the reason of the first, which is read once more.

    Parameters
    ----------
    items
        As in `predict_to_csv`, at least one.
    channel
        As in `fatai.experiment.run_folder.predict_with_run`.
    """
    pairs = _pairs(items)
    reason = f"{pairs[0][1]} cannot be read"
    try:
        load_audio(pairs[0][1], channel="auto" if channel is None else channel)
    except AudioError as e:
        reason = str(e)
    several = f"none of the {len(pairs)} sounds can be read; the first: " if len(pairs) > 1 else ""
    return AudioError(several + reason)


def _append_rows(f: IO[str], predictions: Predictions) -> None:
    """Append whole lines with a single write, so that the buffer never holds a part of a line."""
    marks = {name: [status] for name, status in predictions.statuses.items()}
    rows = zip(predictions.fnames, predictions.probs.tolist(), strict=True)
    f.write("".join(json.dumps([name, *row, *marks.get(name, [])]) + "\n" for name, row in rows))
    f.flush()


def merge_shards(whole: str | Path) -> int:
    """Join the shards of a table to the file `whole`, remove them, and return the number of rows.

    Raises
    ------
    DataError
        If there are none, some are missing, or they are of different numbers of shards.
    """
    whole = Path(whole)
    pattern = re.compile(re.escape(whole.stem) + r"\.(\d+)-of-(\d+)" + re.escape(whole.suffix))
    found = {
        Shard(int(m[1]), int(m[2])): file for file in whole.parent.glob("*") if (m := pattern.fullmatch(file.name))
    }
    totals = sorted({shard.total for shard in found})
    if not found:
        raise DataError(
            f"there are no shards of {whole}, such as {Shard(1, 2).file(whole).name}; make them with "
            "--shard 1/2 and so on"
        )
    if len(totals) > 1:
        raise DataError(f"there are shards of {whole} out of {totals}; remove those that don't belong together")
    missing = [f"{k}/{totals[0]}" for k in range(1, totals[0] + 1) if Shard(k, totals[0]) not in found]
    if missing:
        raise DataError(
            f"the shards {', '.join(missing[:5])}{' ...' * (len(missing) > 5)} of {whole} are missing; make them first"
        )
    files = [found[shard] for shard in sorted(found)]
    n = _concat_shards(files, whole)
    for file in files:
        file.unlink()
        _journal_path(file).unlink(missing_ok=True)
    return n


def _concat_shards(files: list[Path], whole: Path) -> int:
    """Concatenate the tables of shards; if one has a column of statuses or times, so has the result."""
    headers = {read_csv(file).columns for file in files}
    if len(headers) < 2 or len({columns[0] for columns in headers} - {"fname"}):
        return concat_files(files, whole)
    tables = [row_chunks(file) for file in files]
    if len({table.tags for table in tables}) > 1:
        return concat_files(files, whole)  # which says how they differ
    marks, n, seen = scan_files(files), 0, Duplicates()
    with open_atomic(whole) as f:
        writer = PredictionWriter(f, tables[0].tags, statuses=marks.statuses, has_times=marks.has_times)
        for file, table in zip(files, tables, strict=True):
            for part in table.chunks:
                for name in part.fnames:
                    n += 1
                    if error := seen.error(Row(n + 1, [name])):
                        raise DataError(f"{file}: {error}")
                writer.write(part.fnames, part.probs)
    return n


def count_unreadable(table: str | Path) -> int:
    """Return the number of clips that are marked as unreadable in a CSV of predictions."""
    return sum(status == "unreadable" for part in row_chunks(table).chunks for status in part.statuses.values())


def _journal_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.journal")


def _resume_journal(journal: Path, identity: dict[str, Any]) -> int:
    """Return the number of clips in a journal, after removing an incomplete last line."""
    if not journal.exists():
        journal.parent.mkdir(parents=True, exist_ok=True)
        return 0
    n_lines = n_bytes = 0
    with journal.open("rb+") as f:
        for line in f:
            if not line.endswith(b"\n"):
                break
            if n_lines == 0 and _header(journal, line).get("by") != identity:
                raise DataError(
                    f"{journal} was written for other clips, another run or other options; give the same ones to "
                    "continue, or remove it"
                )
            n_lines, n_bytes = n_lines + 1, n_bytes + len(line)
        if n_lines < 3:
            n_bytes = 0  # the header and the tags, which are written with the first rows
        f.truncate(n_bytes)
    return max(0, n_lines - 2)


def _header(journal: Path, line: bytes) -> dict[str, Any]:
    try:
        header = parse_json(line)
        if header["made"] == _FORMAT:
            return header
    except (ValueError, TypeError, KeyError):
        pass
    raise DataError(f"{journal} is not a journal of predictions; remove it, or choose another --out")


def _write_table(journal: Path, out: Path) -> int:
    """Write the rows of a journal as a CSV and return their number."""
    def rows() -> Iterator[Any]:
        with journal.open(encoding="utf-8") as f:
            yield from (json.loads(line) for line in f)

    lines = rows()
    next(lines)
    tags, n, with_times = next(lines)["tags"], 0, False
    statuses: dict[str, str] = {}
    for name, *values in lines:
        with_times = with_times or has_times([name])
        if len(values) > len(tags):
            statuses[name] = values[-1]
    lines = islice(rows(), 2, None)
    with open_atomic(out) as f:
        writer = PredictionWriter(f, tags, statuses=statuses, has_times=with_times)
        while chunk := list(islice(lines, CHUNK)):
            writer.write([row[0] for row in chunk], np.array([row[1:len(tags) + 1] for row in chunk]))
            n += len(chunk)
    return n


def _run_digest(run: Path) -> str:
    """Return a digest of all weights and settings of a run or model folder, or of an ensemble and its runs."""
    runs = EnsembleFolder.open(run).runs if is_ensemble_folder(run) else ()
    patterns = ("*.toml", "*.json", "*.safetensors", "fold_*/model.safetensors")
    files = [f for pattern in patterns for f in sorted(run.glob(pattern))]
    return _digest([*(_checked_file_digest(f) for f in files if f.name != "manifest.json"), *map(_run_digest, runs)])


def _checked_file_digest(path: Path) -> str:
    if not path.is_file():
        raise CheckpointError(f"{path} is not a regular file and was not opened")
    return file_digest(path, "sha256")


def _digest(lines: list[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()
