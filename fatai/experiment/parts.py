"""Predict any number of sounds in parts: Parquet files written whole or not at all, by any engine, then joined.

The parts of `tags.csv` are in the folder `tags.csv.parts` until they are joined: a file for every thousand sounds, and
`parts.json`, which identifies run, sounds and options. A part that is there is not predicted again, so a stopped
command continues, and an engine may predict a part twice without harm.
"""

from __future__ import annotations

import io
import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import numpy as np

from fatai.errors import DataError, OptionError, StorageError
from fatai.experiment.bulk_predict import none_readable, run_identity
from fatai.experiment.engines import ENGINES
from fatai.experiment.tag_batch import TagBatch
from fatai.inference.prediction_files import PredictionWriter, has_times, status_column
from fatai.io.lazy import pandas as pd
from fatai.io.progress import track
from fatai.registry import did_you_mean

__all__ = ["PredictedRows", "predict_in_parts"]

ROWS = 1000


class PredictedRows(NamedTuple):
    """Numbers of rows of a table of predictions, and of those whose sound cannot be read."""

    rows: int
    unreadable: int


def predict_in_parts(
    run: str | Path,
    items: pd.DataFrame,
    out: str | Path,
    *,
    engine: str = "local",
    rows: int = ROWS,
    n_workers: int | None = None,
    **options: Any,
) -> PredictedRows:
    """Predict sounds into a Parquet or CSV file with one column per tag.

    After a kill, the same call continues where it stopped.

    Parameters
    ----------
    run, options
        As in `fatai.experiment.tag_batch.TagBatch`.
    items
        A table with the columns fname and path; paths may be URLs of fsspec.
    out
        The file to write, or a URL of fsspec such as "s3://bucket/tags.parquet". A CSV has a column of statuses if a
        sound cannot be read or is silent; Parquet always has `status` and `reason`.
    engine
        "local" is this process. "ray" and "dask" use the cluster that RAY_ADDRESS or DASK_SCHEDULER_ADDRESS names, or
        start workers on this machine. Run, sounds and `out` need the same path on every worker.
    rows
        Sounds in a part.
    n_workers
        Processes that "ray" and "dask" start or take; None takes one for each core.

    Raises
    ------
    AudioError
        If none of the sounds can be read; `out` is not written then.
    DataError
        If the parts of other sounds, another run or other options are beside `out`, or two sounds have the same name.
    OptionError
        If the engine is not known or not installed, or `out` is neither Parquet nor CSV.
    """
    out = str(out)
    if engine not in ENGINES:
        raise OptionError(f"engine is {engine!r}; {did_you_mean(engine, tuple(ENGINES))}")
    if not out.endswith((".parquet", ".csv")):
        raise OptionError(f"{out}: the name ends in neither .parquet nor .csv; expected one of them")
    if rows < 1:
        raise OptionError(f"rows is {rows}; expected at least one sound in a part")
    pyarrow_parquet()
    tagger = TagBatch(run, **options)
    tags = tagger.tags  # before the work is spread: a run that cannot be loaded is an error here
    store = _PartStore(f"{out}.parts")
    store.identify({**run_identity(run, items, options), "rows": rows})
    parts = range(-(-len(items) // rows))
    missing = [k for k in parts if not store.has(k)]
    names, paths = items["fname"].astype(str).to_numpy(), items["path"].astype(str).to_numpy()
    work = (
        {"number": k, "fname": names[k * rows:(k + 1) * rows], "path": paths[k * rows:(k + 1) * rows]} for k in missing
    )
    done = ENGINES[engine](PartWriter(tagger, store), work, len(missing), n_workers)
    for _ in track(done, "predicting parts", total=len(missing)):
        pass
    left = [k for k in parts if not store.has(k)]
    if left:
        raise StorageError(f"{len(left)} of {len(parts)} parts of {out} are missing, such as {store.name(left[0])}")
    marked = _marked(store, len(parts), tags)
    all_failed = 0 < len(items) == marked.n_unreadable
    if not all_failed:
        _join(store, len(parts), out, tags, marked)
    store.remove()  # if all failed, the same command tries them again
    if all_failed:
        raise none_readable(items, options.get("channel"))
    return PredictedRows(len(items), marked.n_unreadable)


def pyarrow_parquet() -> Any:
    """Return `pyarrow.parquet`; raises `OptionError` if pyarrow is not installed."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise OptionError('Parquet needs pyarrow; install it with: pip install "fatai[parquet]"') from None
    return parquet


class PartWriter:
    """Predict one part and write its file, unless it is there; picklable.

    Parameters
    ----------
    predict
        Maps columns with `path` to columns, as `TagBatch`.
    store
        Where the parts are.
    """

    def __init__(self, predict: Callable[[Mapping[str, Any]], Mapping[str, Any]], store: _PartStore):
        self.predict, self.store = predict, store

    def __call__(self, part: Mapping[str, Any]) -> int:
        """Predict and write the part {number, fname, path}, and return its number."""
        number = int(part["number"])
        if not self.store.has(number):
            found = dict(self.predict({"path": np.asarray(part["path"], dtype=object)}))
            del found["path"]
            self.store.write(number, {"fname": np.asarray(part["fname"], dtype=object), **found})
        return number


class _PartStore:
    """The files of parts in a folder, which may be a URL of fsspec."""

    def __init__(self, folder: str):
        self.folder = folder

    def _files(self) -> tuple[Any, str]:
        return fsspec.core.url_to_fs(self.folder)

    def name(self, number: int) -> str:
        return f"{self._files()[1]}/part-{number:06d}.parquet"

    def has(self, number: int) -> bool:
        return bool(self._files()[0].exists(self.name(number)))

    def identify(self, identity: dict[str, Any]) -> None:
        """Write what the parts are of; raises `DataError` if they are of something else."""
        files, folder = self._files()
        note, text = f"{folder}/parts.json", json.dumps(identity, sort_keys=True)
        files.makedirs(folder, exist_ok=True)
        if not files.exists(note):
            self._write_whole(note, text.encode())
        elif files.cat_file(note).decode("utf-8", "replace") != text:
            raise DataError(
                f"{self.folder} has parts of other sounds, another run or other options; give the same ones to "
                "continue, or remove it"
            )

    def write(self, number: int, columns: Mapping[str, np.ndarray]) -> None:
        import pyarrow

        file = io.BytesIO()
        pyarrow_parquet().write_table(pyarrow.table(dict(columns)), file)
        self._write_whole(self.name(number), file.getvalue())

    def _write_whole(self, name: str, content: bytes) -> None:
        """Write a file under another name and rename it; two writers of one part leave the file of one of them."""
        files = self._files()[0]
        part = f"{name}.{secrets.token_hex(4)}.tmp"
        files.pipe_file(part, content)
        files.mv(part, name)

    def read(self, number: int, columns: list[str] | None = None) -> Any:
        files = self._files()[0]
        with files.open(self.name(number), "rb") as f:
            return pyarrow_parquet().read_table(f, columns=columns)

    def remove(self) -> None:
        files, folder = self._files()
        files.rm(folder, recursive=True)


class _Marked(NamedTuple):
    """Status of each sound by name, except "ok", and whether any sound is a segment."""

    statuses: dict[str, str]
    with_times: bool

    @property
    def n_unreadable(self) -> int:
        return list(self.statuses.values()).count("unreadable")


def _marked(store: _PartStore, n_parts: int, tags: tuple[str, ...]) -> _Marked:
    """Read the statuses of all parts."""
    column, with_times = status_column(tags), False
    statuses: dict[str, str] = {}
    for k in range(n_parts):
        table = store.read(k, ["fname", column])
        names = table["fname"].to_pylist()
        with_times = with_times or has_times(names)
        pairs = zip(names, table[column].to_pylist(), strict=True)
        statuses.update({name: status for name, status in pairs if status != "ok"})
    return _Marked(statuses, with_times)


def _join(store: _PartStore, n_parts: int, out: str, tags: tuple[str, ...], marked: _Marked) -> None:
    """Join the parts in their order, one at a time."""
    files, name = fsspec.core.url_to_fs(out)
    part = f"{name}.{secrets.token_hex(4)}.tmp"
    tables = (store.read(k) for k in range(n_parts))
    with files.open(part, "wb") as f:
        if out.endswith(".parquet"):
            _write_parquet(tables, f)
        else:
            _write_csv(tables, f, tags, marked.statuses, marked.with_times)
    files.mv(part, name)


def _write_parquet(tables: Iterator[Any], file: Any) -> None:
    with ExitStack() as stack:
        writer = None
        for table in tables:
            writer = writer or stack.enter_context(pyarrow_parquet().ParquetWriter(file, table.schema))
            writer.write_table(table)


def _write_csv(
    tables: Iterable[Any], file: Any, tags: tuple[str, ...], statuses: dict[str, str], with_times: bool
) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = PredictionWriter(text, tags, statuses=statuses, has_times=with_times)
    for table in tables:
        probs = np.stack([table[tag].to_numpy() for tag in tags], axis=1)
        writer.write(table["fname"].to_pylist(), probs)
    text.detach()
