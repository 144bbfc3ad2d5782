"""Data sets from the web, in the competition's layout: fetched, checked, unpacked, and their tables rewritten."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pandas as pd

from fatai.io.atomic import write_text
from fatai.data.datasets.fetch import fetch
from fatai.data.labels import join_labels, read_labels, read_table, unique_tags
from fatai.data.datasets.archives import unpack
from fatai.errors import DataError, OptionError
from fatai.registry import did_you_mean

__all__ = ["DATASETS", "DatasetSource", "download"]

_ZENODO = "https://zenodo.org/records/3612637/files/FSDKaggle2019"


@dataclass(frozen=True)
class DatasetSource:
    """Where a data set is.

    Attributes
    ----------
    archives
        By the part that it holds ("meta", "curated", "noisy", "test", "all"): the addresses of an archive, several of a split one.
    listing
        Address of a JSON with `files`: a list of `key` (a file's name) and `checksum`; "" where there is none.
    most_bytes
        What an archive may unpack to.
    about
        What it is, and its licence.
    """

    archives: dict[str, tuple[str, ...]]
    listing: str
    most_bytes: int
    about: str


DATASETS: dict[str, DatasetSource] = {
    "fsdkaggle2019": DatasetSource(
        archives={
            "meta": (f"{_ZENODO}.meta.zip",),
            "curated": (f"{_ZENODO}.audio_train_curated.zip",),
            "test": (f"{_ZENODO}.audio_test.zip",),
            "noisy": (
                *(f"{_ZENODO}.audio_train_noisy.z{k:02d}" for k in range(1, 7)),
                f"{_ZENODO}.audio_train_noisy.zip",
            ),
        },
        listing="https://zenodo.org/api/records/3612637",
        most_bytes=60 * 10**9,
        about="the data of Freesound Audio Tagging 2019 with the labels of the test part; CC BY 4.0, each clip its own licence",
    ),
    "esc50": DatasetSource(
        archives={"all": ("https://github.com/karoldvl/ESC-50/archive/master.zip",)},
        listing="",
        most_bytes=4 * 10**9,
        about="2,000 recordings of 50 kinds of sound; its fold 5 becomes the test part; CC BY-NC",
    ),
}


def download(name: str, dest: str | Path, *, noisy: bool = True, keep_archives: bool = False) -> Path:
    """Get a data set into `dest`, in the layout that `read_layout` and the command read.

    Parameters
    ----------
    name
        A key of `DATASETS`.
    dest
        A folder; it may hold what an earlier, interrupted call left, which is used.
    noisy
        Whether to get the noisy part, where there is one: most of the bytes.
    keep_archives
        Whether to keep what was downloaded, in `dest/.download`.

    Returns
    -------
    `dest`, with train_curated.csv, train_curated/, test/, sample_submission.csv, the noisy part, and the labels of the test part in
    truth/test.csv, which no model should read.

    Raises
    ------
    DataError
        What could not be fetched, is damaged, or is not what was expected.
    """
    if name not in DATASETS:
        raise OptionError(f"no data set is called {name!r}; {did_you_mean(name, list(DATASETS))}")
    data, dest = DATASETS[name], Path(dest)
    store = dest / ".download"
    checksums = _checksums(data, store)
    for part, urls in data.archives.items():
        if part == "noisy" and not noisy:
            continue
        parts = [fetch(url, store / (file := _file_name(url)), checksum=checksums.get(file, "")) for url in urls]
        if not unpack(parts, lambda inside: _LAYOUTS[name].place(dest, inside), most_bytes=data.most_bytes):
            raise DataError(f"{parts[-1].name} holds none of the files that were expected; it may have changed")
    _LAYOUTS[name].tables(dest, noisy)
    if not keep_archives:
        shutil.rmtree(store)
    return dest


def _file_name(url: str) -> str:
    return PurePosixPath(url.partition("?")[0]).name


def _checksums(data: DatasetSource, store: Path) -> dict[str, str]:
    """Checksums by file name, as the place that keeps the data states them."""
    if not data.listing:
        return {}
    try:
        listing = json.loads(fetch(data.listing, store / "listing.json", tries=2).read_text(encoding="utf-8"))
        return {str(file["key"]): str(file["checksum"]) for file in listing["files"]}
    except (DataError, ValueError, KeyError, TypeError) as e:
        (store / "listing.json").unlink(missing_ok=True)
        warnings.warn(f"the checksums at {data.listing} cannot be read ({e}); only lengths are checked", stacklevel=3)
        return {}


def _write(dest: Path, name: str, table: pd.DataFrame) -> None:
    write_text(dest / name, table.to_csv(index=False, lineterminator="\n"))


def _with_cells(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(labels=[join_labels(row) for row in table["labels"]])


def _write_test(dest: Path, test: pd.DataFrame, tags: tuple[str, ...]) -> None:
    """The sample submission, and apart from it the truth."""
    test = test.sort_values("fname", kind="stable")
    _write(dest, "truth/test.csv", _with_cells(test))
    _write(dest, "sample_submission.csv", pd.DataFrame({"fname": test["fname"], **{tag: 0 for tag in tags}}))


_FSD_FOLDERS = {"audio_train_curated": "train_curated", "audio_train_noisy": "train_noisy", "audio_test": "test"}


def _place_fsdkaggle2019(dest: Path, inside: str) -> Path | None:
    file = PurePosixPath(inside)
    folder = _FSD_FOLDERS.get(file.parent.name.rpartition(".")[2])
    if folder and file.suffix == ".wav":
        return dest / folder / file.name
    return (
        dest / ".download" / "meta" / file.name
        if file.parent.name.endswith(".meta") and file.suffix == ".csv"
        else None
    )


def _tables_fsdkaggle2019(dest: Path, noisy: bool) -> None:
    meta = dest / ".download" / "meta"
    tables = {
        part: read_labels(meta / f"{part}_post_competition.csv") for part in ("train_curated", "train_noisy", "test")
    }
    for part in ("train_curated", *(("train_noisy",) if noisy else ())):
        _write(dest, f"{part}.csv", _with_cells(tables[part]))
    _write_test(dest, tables["test"], unique_tags(row for table in tables.values() for row in table["labels"]))


def _place_esc50(dest: Path, inside: str) -> Path | None:
    file = PurePosixPath(inside)
    if file.parent.name == "audio" and file.suffix == ".wav":
        return dest / ("test" if _fold_of(file.name) == _TEST_FOLD else "train_curated") / file.name
    return dest / ".download" / file.name if file.parts[-2:] == ("meta", "esc50.csv") else None


_TEST_FOLD = "5"


def _fold_of(fname: str) -> str:
    """ESC-50's names are FOLD-CLIP-TAKE-TARGET.wav."""
    return fname.partition("-")[0]


def _tables_esc50(dest: Path, noisy: bool) -> None:
    table = read_table(dest / ".download" / "esc50.csv", ["filename", "fold", "category"])
    table = table.rename(columns={"filename": "fname", "category": "labels"})[["fname", "labels", "fold"]]
    table["labels"] = [[label] for label in table["labels"]]
    oof_score = table["fold"] == _TEST_FOLD
    _write(dest, "train_curated.csv", _with_cells(table[~oof_score]))
    _write_test(dest, table[oof_score], unique_tags(table["labels"]))


@dataclass(frozen=True)
class _Layout:
    """Where a data set's files go, and what writes its tables."""

    place: Callable[[Path, str], Path | None]
    tables: Callable[[Path, bool], None]


_LAYOUTS = {
    "fsdkaggle2019": _Layout(_place_fsdkaggle2019, _tables_fsdkaggle2019),
    "esc50": _Layout(_place_esc50, _tables_esc50),
}
