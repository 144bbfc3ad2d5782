"""A look at every file of a data set: what cannot be read, what is odd, what is twice, what doesn't fit the tables.

`check_dataset(path)` reads all sounds once, whole, on all cores, and changes nothing. Its report is text for people and JSON for programs.
The thresholds are constants of this module and of `fatai.data.audit.audio_file`, and each finding says what was measured, so that it can be judged.
"""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from difflib import get_close_matches
from os.path import isfile  # unlike Path.is_file it is False, not an error, for names that no file can have
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fatai.data.audit.audio_file import MIN_CLIPPED_SAMPLES, AudioFileInfo, check_audio_file
from fatai.data.folds import fold_table, make_folds
from fatai.data.labels import multi_hot, read_labels, read_table, unique_tags
from fatai.data.tables import is_sound_table, read_sound_table
from fatai.data.audit.report import FINDING_KINDS, CostEstimate, Finding, DatasetReport
from fatai.errors import DataError
from fatai.io.progress import track
from fatai.registry import did_you_mean
from fatai.audio.front_ends import FrontEnd, front_end as find_front_end

__all__ = ["DURATION_EDGES_S", "SILENCE_DB", "check_dataset"]

SILENCE_DB = -60.0
"""A file whose highest peak is below this, in dB of full scale, counts as silent."""
DURATION_EDGES_S = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, float("inf"))
_PARTS = ("curated", "noisy", "test")


@dataclass
class _Tables:
    """The tables of a data set, read without judging their labels."""

    root: Path
    rows: dict[str, pd.DataFrame] = field(default_factory=dict)
    tags: tuple[str, ...] | None = None
    places: dict[str, Path] = field(default_factory=dict)  # of the sounds of a table of one's own

    def folder(self, part: str) -> Path:
        return self.root / ("test" if part == "test" else f"train_{part}")

    def file(self, part: str, fname: str) -> Path:
        return self.places[fname] if self.places else self.folder(part) / fname


def check_dataset(
    path: str | Path,
    *,
    front_end: str | FrontEnd = "ninth",
    folds: str = "stratified",
    n_folds: int = 5,
    seed: int = 2019,
    threads: int | None = None,
) -> DatasetReport:
    """Read a whole data set in the competition's layout and report what is odd in it.

    Parameters
    ----------
    path
        The folder; its noisy and test parts may be absent. Or a CSV of one's own sounds, as `fatai.data.tables` reads it.
    front_end
        Whose features the cache's size and the epoch's time are estimated for.
    folds, n_folds, seed
        How the curated part would be split, as in `make_folds`; a column `fold` of its table is taken as given folds.
    threads
        Files that are decoded at once; None takes one thread a core.

    Raises
    ------
    DataError
        No such folder, or tables without their columns; whatever else is wrong is part of the report.
    """
    tables = _read_tables(Path(path))
    listed = [
        (part, fname)
        for part in tables.rows
        for fname in tables.rows[part]["fname"]
        if isfile(tables.file(part, fname))
    ]
    start = time.perf_counter()
    sounds = _examine_all([tables.file(part, fname) for part, fname in listed], threads)
    elapsed = time.perf_counter() - start
    files = _file_table(listed, sounds)
    of_sounds = [*_odd_sounds(listed, sounds), *_duplicates(listed, sounds)]
    findings = [*of_sounds, *_shared_names(tables), *_odd_labels(tables), *_odd_files(tables)]
    order = {kind: k for k, kind in enumerate(FINDING_KINDS)}
    findings.sort(key=lambda f: (order[f.kind], _PARTS.index(f.part), f.fname))
    tags = tables.tags
    if tags is None:
        tags = unique_tags(row for rows in tables.rows.values() if "labels" in rows for row in rows["labels"])
    return DatasetReport(
        Path(path),
        files,
        tuple(findings),
        tags,
        _tags_per_fold(tables, tags, folds, n_folds, seed),
        _length_table(files),
        _costs(files, front_end, elapsed),
    )


def _read_tables(root: Path) -> _Tables:
    if is_sound_table(root):
        table = read_sound_table(root)
        places = {fname: Path(path) for fname, path in zip(table["fname"], table["path"])}
        return _Tables(root, {"curated": table.drop(columns=["path", "exists"])}, places=places)
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; expected one with train_curated.csv and train_curated/")
    tables = _Tables(root)
    for part in ("curated", "noisy"):
        csv = root / f"train_{part}.csv"
        if csv.is_file():
            tables.rows[part] = read_labels(csv)
    sample = root / "sample_submission.csv"
    if sample.is_file():
        submission = read_table(sample, ["fname"])
        tables.tags = tuple(c for c in submission.columns if c != "fname")
        tables.rows["test"] = submission[["fname"]]
    elif tables.folder("test").is_dir():
        tables.rows["test"] = pd.DataFrame(
            {"fname": sorted(f.name for f in tables.folder("test").iterdir() if not f.is_dir())}, dtype=str
        )
    if not tables.rows:
        raise DataError(
            f"{root} has no train_curated.csv, train_noisy.csv or sample_submission.csv; expected at least one of them"
        )
    return tables


def _examine_all(paths: Sequence[Path], threads: int | None) -> list[AudioFileInfo]:
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        return list(track(pool.map(check_audio_file, paths), "reading sounds", total=len(paths)))


def _file_table(listed: Sequence[tuple[str, str]], sounds: Sequence[AudioFileInfo]) -> pd.DataFrame:
    columns = ["part", "fname", "seconds", "sr", "channels", "samples", "peak", "digest", "fault"]
    rows = [
        (part, fname, s.seconds, s.sr, s.channels, s.samples, s.peak, s.digest, s.fault)
        for (part, fname), s in zip(listed, sounds)
    ]
    return pd.DataFrame(rows, columns=columns)


def _odd_sounds(listed: Sequence[tuple[str, str]], sounds: Sequence[AudioFileInfo]) -> Iterator[Finding]:
    """Findings that one file shows alone, and those of a rate that most others don't have."""
    rates = Counter(s.sr for s in sounds if s.samples)
    usual = rates.most_common(1)[0][0] if rates else 0
    for (part, fname), sound in zip(listed, sounds):
        if sound.fault:
            yield Finding(sound.fault, part, fname, sound.what)
            continue
        if sound.peak < 10 ** (SILENCE_DB / 20):
            level = f"its highest peak is {20 * np.log10(sound.peak):.0f} dB" if sound.peak else "all samples are 0"
            yield Finding("silent", part, fname, f"{level} ({sound.seconds:.2f} s)")
        if sound.clipped >= MIN_CLIPPED_SAMPLES:
            yield Finding(
                "clipped", part, fname, f"{sound.clipped:,} of {sound.samples:,} samples are in a row at full scale"
            )
        if sound.sr != usual:
            yield Finding("rate", part, fname, f"{sound.sr:,} Hz; most files have {usual:,} Hz")
        if sound.channels > 1:
            yield Finding("channels", part, fname, f"{sound.channels} channels; they are averaged when it is read")


def _duplicates(listed: Sequence[tuple[str, str]], sounds: Sequence[AudioFileInfo]) -> Iterator[Finding]:
    """Files that sound like one before them; clips of nothing but zeros are reported as silent only."""
    first: dict[str, tuple[str, str]] = {}
    for (part, fname), sound in zip(listed, sounds):
        if not sound.digest or not sound.peak:
            continue
        other = first.setdefault(sound.digest, (part, fname))
        if other != (part, fname):
            leak = " - a leak from training to test" if part == "test" and other[0] != "test" else ""
            yield Finding("duplicate", part, fname, f"sounds the same as {other[0]}/{other[1]}{leak}")


def _shared_names(tables: _Tables) -> Iterator[Finding]:
    first: dict[str, str] = {}
    for part, rows in tables.rows.items():
        for fname in rows["fname"]:
            other = first.setdefault(fname, part)
            if other != part:
                yield Finding("name", part, fname, f"the {other} part has a file of this name, too")


def _odd_labels(tables: _Tables) -> Iterator[Finding]:
    """Labels outside the vocabulary; without a vocabulary, rare ones that look like a frequent one. And rows without any."""
    labelled = {part: rows for part, rows in tables.rows.items() if "labels" in rows}
    count = Counter(label for rows in labelled.values() for row in rows["labels"] for label in row)
    suspects = _misspelt(count) if tables.tags is None else {}
    for part, rows in labelled.items():
        for fname, labels in zip(rows["fname"], rows["labels"]):
            if not labels:
                yield Finding("no_label", part, fname, "its cell of labels is empty")
            for label in labels:
                if tables.tags is not None and label not in tables.tags:
                    yield Finding("label", part, fname, f"unknown tag {label!r}; {did_you_mean(label, tables.tags)}")
                elif label in suspects:
                    yield Finding(
                        "label",
                        part,
                        fname,
                        f"the tag {label!r} occurs {count[label]} times, "
                        f"{suspects[label]!r} {count[suspects[label]]} times: is it the same?",
                    )


def _misspelt(count: Counter[str]) -> dict[str, str]:
    """Rare labels and the label, at least ten times as frequent, that each looks like."""
    found = {}
    for label, n in count.items():
        frequent = {other.lower(): other for other in count if count[other] >= 10 * n}
        near = get_close_matches(label.lower(), list(frequent), n=1, cutoff=0.85)
        if near:
            found[label] = frequent[near[0]]
    return found


def _odd_files(tables: _Tables) -> Iterator[Finding]:
    if tables.places:
        yield from (Finding("missing", "curated", fname, f"no such file in {tables.root.parent} or below it")
                    for fname, place in tables.places.items() if not isfile(place))
        return
    for part in _PARTS:
        folder, rows = tables.folder(part), tables.rows.get(part)
        found = (
            {file.name for file in folder.iterdir() if isfile(file) and not file.name.startswith(".")}
            if folder.is_dir()
            else set()
        )
        if rows is None:
            if found:
                yield Finding("extra", part, "", f"{len(found)} files in {folder.name}/, but no table of them")
        elif not folder.is_dir():
            if len(rows):
                yield Finding("missing", part, "", f"{len(rows)} rows, but no folder {folder.name}/")
        else:
            for fname in rows["fname"]:
                if fname not in found and not isfile(folder / fname):
                    yield Finding("missing", part, fname, f"no such file in {folder.name}/")
            for name in sorted(found - set(rows["fname"])):
                yield Finding("extra", part, name, "no table names it")


def _tags_per_fold(tables: _Tables, tags: Sequence[str], splitter: str, n: int, seed: int) -> pd.DataFrame | None:
    curated = tables.rows.get("curated")
    if curated is None or not tags or len(curated) < 2:
        return None
    known = set(tags)
    targ = multi_hot([[label for label in row if label in known] for row in curated["labels"]], tags)
    groups = None
    if "fold" in curated.columns and curated["fold"].nunique() > 1:
        how, groups = "predefined", list(curated["fold"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the table itself shows which tags are rare
        folds = make_folds(targ, splitter=splitter, n=min(n, len(curated)), seed=seed, groups=groups)
    return fold_table(folds, targ, tags)


def _length_table(files: pd.DataFrame) -> pd.DataFrame:
    """Files per part and bin of seconds, those that were read."""
    edges = DURATION_EDGES_S
    names = [f"{low:g}-{high:g} s" if np.isfinite(high) else f">= {low:g} s" for low, high in zip(edges, edges[1:])]
    read = files[files["samples"] > 0].groupby("part", sort=False)["seconds"]
    return pd.DataFrame({part: np.histogram(seconds, edges)[0] for part, seconds in read}, index=names).T


def _costs(files: pd.DataFrame, front_end: str | FrontEnd, elapsed: float, *, crop_s: float = 4.0) -> CostEstimate:
    settings = find_front_end(front_end)
    read = files[files["samples"] > 0]
    training = read[read["part"] != "test"]
    samples = [max(1, round(float(s) * settings.sr)) for s in read["seconds"]]
    return CostEstimate(
        front_end=front_end if isinstance(front_end, str) else "as given",
        training_clips=len(training),
        training_hours=float(training["seconds"].sum()) / 3600,
        wave_bytes=2 * sum(samples),
        features_bytes=2 * settings.rows * sum(settings.frames(s) for s in samples),
        read_speed=float(read["seconds"].sum()) / max(elapsed, 1e-9),
        front_end_ms=_front_end_ms(settings, round(crop_s * settings.sr)),
        crop_s=crop_s,
    )


def _front_end_ms(settings: FrontEnd, samples: int, *, rounds: int = 5) -> float:
    """Milliseconds that the front end takes for a crop in a batch of 8, the fastest of a few trials."""
    module, batch, best = settings.build().eval(), torch.randn(8, samples) * 0.1, float("inf")
    with torch.no_grad():
        for _ in range(rounds):
            start = time.perf_counter()
            module(batch)
            best = min(best, time.perf_counter() - start)
    return best * 1000 / len(batch)
