"""Public data sets in the competition's layout: download, verify, unpack, and convert the tables."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pandas as pd

from fatai.data.datasets.archives import unpack
from fatai.data.labels import join_labels, read_labels, read_table, unique_tags
from fatai.errors import DataError, OptionError
from fatai.io.atomic import write_text
from fatai.io.fetch import fetch
from fatai.registry import did_you_mean

__all__ = ["DATASETS", "download"]

_ZENODO = "https://zenodo.org/records/3612637/files/FSDKaggle2019"


@dataclass(frozen=True)
class DatasetSource:
    """Addresses of a data set.

    Attributes
    ----------
    archives
        Maps a part ("meta", "curated", "noisy", "test", "all") to the URLs of its archive, several of a split one.
    listing
        URL of a JSON with `files`: a list of `key` (file name) and `checksum`; "" if there is none.
    max_bytes
        Maximum size of an unpacked archive.
    description
        Content and license.
    """

    archives: dict[str, tuple[str, ...]]
    listing: str
    max_bytes: int
    description: str


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
        max_bytes=60 * 10**9,
        description="the data of Freesound Audio Tagging 2019 with the labels of the test part; CC BY 4.0, each "
        "clip has its own license",
    ),
    "esc50": DatasetSource(
        archives={"all": ("https://github.com/karoldvl/ESC-50/archive/master.zip",)},
        listing="",
        max_bytes=4 * 10**9,
        description="2,000 recordings of 50 classes; its fold 5 becomes the test part; CC BY-NC",
    ),
}
"""Data sets that `download` offers, by name."""


def download(name: str, dest: str | Path, *, noisy: bool = True, keep_archives: bool = False) -> Path:
    """Download a data set into the layout that `load_dataset` and the commands read.

    Parameters
    ----------
    name
        A key of `DATASETS`.
    dest
        The folder; an interrupted download in it is resumed.
    noisy
        Include the noisy part, if there is one: most of the bytes.
    keep_archives
        Keep the archives in `dest/.download`.

    Returns
    -------
    `dest`, with train_curated.csv, train_curated/, test/, sample_submission.csv, the noisy part, and the labels of the
    test part in truth/test.csv, which no model should read.

    Raises
    ------
    OptionError
        If there is no such data set.
    DataError
        If an archive cannot be downloaded, is damaged, or lacks the expected files.
    """
    if name not in DATASETS:
        raise OptionError(f"there is no data set {name!r}; {did_you_mean(name, list(DATASETS))}")
    source, layout, dest = DATASETS[name], _LAYOUTS[name], Path(dest)
    folder = dest / ".download"
    checksums = _checksums(source, folder)
    for part, urls in source.archives.items():
        if part == "noisy" and not noisy:
            continue
        files = [_file_name(url) for url in urls]
        parts = [
            fetch(url, folder / file, checksum=checksums.get(file, "")) for url, file in zip(urls, files, strict=True)
        ]
        if not unpack(parts, lambda inside: layout.target_path(dest, inside), max_bytes=source.max_bytes):
            raise DataError(f"{parts[-1].name} contains none of the expected files; the archive may have changed")
    layout.write_tables(dest, noisy)
    if not keep_archives:
        shutil.rmtree(folder)
    return dest


def _file_name(url: str) -> str:
    return PurePosixPath(url.partition("?")[0]).name


def _checksums(source: DatasetSource, folder: Path) -> dict[str, str]:
    """Return checksums by file name, as the data set's host publishes them."""
    if not source.listing:
        return {}
    try:
        listing = json.loads(fetch(source.listing, folder / "listing.json", tries=2).read_text(encoding="utf-8"))
        return {str(file["key"]): str(file["checksum"]) for file in listing["files"]}
    except (DataError, ValueError, KeyError, TypeError) as e:
        (folder / "listing.json").unlink(missing_ok=True)
        warnings.warn(
            f"the checksums at {source.listing} cannot be read ({e}); only lengths are verified", stacklevel=3
        )
        return {}


def _write(dest: Path, name: str, table: pd.DataFrame) -> None:
    write_text(dest / name, table.to_csv(index=False, lineterminator="\n"))


def _join_cells(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(labels=[join_labels(row) for row in table["labels"]])


def _write_test(dest: Path, test: pd.DataFrame, tags: tuple[str, ...]) -> None:
    """Write the sample submission, and the true labels in a folder of their own."""
    test = test.sort_values("fname", kind="stable")
    _write(dest, "truth/test.csv", _join_cells(test))
    _write(dest, "sample_submission.csv", pd.DataFrame({"fname": test["fname"], **{tag: 0 for tag in tags}}))


_FSD_FOLDERS = {"audio_train_curated": "train_curated", "audio_train_noisy": "train_noisy", "audio_test": "test"}


def _fsdkaggle2019_path(dest: Path, inside: str) -> Path | None:
    file = PurePosixPath(inside)
    folder = _FSD_FOLDERS.get(file.parent.name.rpartition(".")[2])
    if folder and file.suffix == ".wav":
        return dest / folder / file.name
    return (
        dest / ".download" / "meta" / file.name
        if file.parent.name.endswith(".meta") and file.suffix == ".csv"
        else None
    )


def _write_fsdkaggle2019(dest: Path, noisy: bool) -> None:
    meta = dest / ".download" / "meta"
    tables = {
        part: read_labels(meta / f"{part}_post_competition.csv") for part in ("train_curated", "train_noisy", "test")
    }
    for part in ("train_curated", *(("train_noisy",) if noisy else ())):
        _write(dest, f"{part}.csv", _join_cells(tables[part]))
    _write_test(dest, tables["test"], unique_tags(row for table in tables.values() for row in table["labels"]))


def _esc50_path(dest: Path, inside: str) -> Path | None:
    file = PurePosixPath(inside)
    if file.parent.name == "audio" and file.suffix == ".wav":
        return dest / ("test" if _fold_of(file.name) == _TEST_FOLD else "train_curated") / file.name
    return dest / ".download" / file.name if file.parts[-2:] == ("meta", "esc50.csv") else None


_TEST_FOLD = "5"


def _fold_of(fname: str) -> str:
    """Parse an ESC-50 file name, FOLD-CLIP-TAKE-TARGET.wav."""
    return fname.partition("-")[0]


def _write_esc50(dest: Path, noisy: bool) -> None:
    table = read_table(dest / ".download" / "esc50.csv", ["filename", "fold", "category"])
    table = table.rename(columns={"filename": "fname", "category": "labels"})[["fname", "labels", "fold"]]
    table["labels"] = [[label] for label in table["labels"]]
    is_test = table["fold"] == _TEST_FOLD
    _write(dest, "train_curated.csv", _join_cells(table[~is_test]))
    _write_test(dest, table[is_test], unique_tags(table["labels"]))


@dataclass(frozen=True)
class _Layout:
    """Target paths of a data set's files, and the function that writes its tables."""

    target_path: Callable[[Path, str], Path | None]
    write_tables: Callable[[Path, bool], None]


_LAYOUTS = {
    "fsdkaggle2019": _Layout(_fsdkaggle2019_path, _write_fsdkaggle2019),
    "esc50": _Layout(_esc50_path, _write_esc50),
}
