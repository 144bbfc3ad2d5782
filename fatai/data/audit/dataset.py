"""Check of every file of a data set: unreadable and unusual files, duplicates, and mismatches with the tables.

`check_dataset(path)` decodes all sound files once, in parallel, and changes nothing. Its report is available as text
and JSON. The thresholds are constants of this module and of `fatai.data.audit.audio_file`; each finding includes the
measured value.
"""

from __future__ import annotations

import os
import re
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import combinations, pairwise
from os.path import isfile  # unlike Path.is_file it returns False, and raises no error, for invalid names
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fatai.audio.folders import is_hidden
from fatai.audio.front_ends import FrontEnd
from fatai.audio.front_ends import front_end as find_front_end
from fatai.audio.segments import Segment, file_of, split_segment
from fatai.audio.waveform import SILENCE_DB
from fatai.data.audit.audio_file import MIN_CLIPPED_SAMPLES, AudioFileInfo, check_audio_file
from fatai.data.audit.report import FINDING_KINDS, CostEstimate, DatasetReport, Finding
from fatai.data.folds import fold_table, make_folds
from fatai.data.labels import multi_hot, read_labels, read_table, unique_tags
from fatai.data.table_columns import TableColumns
from fatai.data.tables import (
    check_data_folder,
    is_class_folder,
    is_sound_table,
    read_class_folder,
    read_sound_table,
)
from fatai.errors import AudioError, DataError
from fatai.io.progress import track
from fatai.registry import did_you_mean

__all__ = ["check_dataset"]

DURATION_EDGES_S = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, float("inf"))
"""Edges of the duration histogram, in seconds."""
_PARTS = ("curated", "noisy", "test")


@dataclass
class _Tables:
    """The tables of a data set, read without validation of their labels.

    Attributes
    ----------
    root
        The folder, or the CSV of a sound table.
    parts
        Table of each part.
    tags
        The vocabulary of the sample submission, or None.
    sound_paths
        Maps names to paths of a sound table's files; empty for a folder.
    """

    root: Path
    parts: dict[str, pd.DataFrame] = field(default_factory=dict)
    tags: tuple[str, ...] | None = None
    sound_paths: dict[str, Path] = field(default_factory=dict)

    def folder(self, part: str) -> Path:
        """Return the folder of a part's sound files."""
        return self.root / ("test" if part == "test" else f"train_{part}")

    def file(self, part: str, fname: str) -> Path:
        """Return the path of a sound file."""
        return self.sound_paths[fname] if self.sound_paths else self.folder(part) / fname

    def segments(self) -> dict[str, Segment]:
        """Return the rows of a sound table that are segments, by their names."""
        rows = {fname: split_segment(path) for fname, path in self.sound_paths.items()}
        return {fname: segment for fname, segment in rows.items() if segment.end_s is not None}

    def existing_files(self) -> list[tuple[str, str]]:
        """List (part, fname) of all files that rows name, or have segments of, and that exist."""
        rows = dict.fromkeys((part, file_of(fname)) for part, table in self.parts.items() for fname in table["fname"])
        return [(part, fname) for part, fname in rows if isfile(self.file(part, fname))]

    def labeled(self) -> dict[str, pd.DataFrame]:
        """Return the parts that have labels."""
        return {part: table for part, table in self.parts.items() if "labels" in table}

    def vocabulary(self) -> tuple[str, ...]:
        """Return the tags of the sample submission, or else the sorted labels."""
        if self.tags is not None:
            return self.tags
        return unique_tags(row for table in self.labeled().values() for row in table["labels"])


def check_dataset(
    path: str | Path,
    *,
    front_end: str | FrontEnd = "ninth",
    folds: str = "stratified",
    n_folds: int = 5,
    seed: int = 2019,
    threads: int | None = None,
    columns: TableColumns | None = None,
) -> DatasetReport:
    """Decode all files of a data set and report what is wrong or unusual.

    Parameters
    ----------
    path
        A folder in the competition's layout, whose noisy and test parts are optional; or a table of sound files or a
        folder of classes, as `fatai.data.tables` describes them.
    front_end
        Front end for the estimates of cache size and epoch time.
    folds, n_folds, seed
        Splitter, number and seed of folds of the curated part, as in `make_folds`; a column `fold` of its table takes
        precedence.
    threads
        Files that are decoded in parallel; None takes one thread per core.
    columns
        The columns of a table of sounds, where they cannot be found.

    Returns
    -------
    The report; `print(report.to_text())` shows it.

    Raises
    ------
    DataError
        If there is no such folder, or tables lack their columns; all other problems are findings.
    """
    tables = _read_tables(Path(path), columns)
    listed = tables.existing_files()
    start = time.perf_counter()
    sounds = _check_files([tables.file(part, fname) for part, fname in listed], threads)
    elapsed_s = time.perf_counter() - start
    files, tags = _file_table(listed, sounds), tables.vocabulary()
    return DatasetReport(
        Path(path),
        files,
        _sorted_findings(tables, listed, sounds),
        tags,
        _fold_counts(tables, tags, folds, n_folds, seed),
        _duration_table(files),
        _estimate_costs(files, front_end, elapsed_s),
    )


def _sorted_findings(
    tables: _Tables, listed: Sequence[tuple[str, str]], sounds: Sequence[AudioFileInfo]
) -> tuple[Finding, ...]:
    findings = [
        *_sound_findings(listed, sounds),
        *_duplicates(listed, sounds),
        *_segment_findings(tables, {sound.path: sound for sound in sounds}),
        *_shared_names(tables),
        *_label_findings(tables),
        *_file_findings(tables),
    ]
    order = {kind: k for k, kind in enumerate(FINDING_KINDS)}
    return tuple(sorted(findings, key=lambda f: (order[f.kind], _PARTS.index(f.part), f.fname)))


def _read_tables(root: Path, columns: TableColumns | None = None) -> _Tables:
    is_table = is_sound_table(root)
    if is_table or (not (root / "train_curated.csv").is_file() and is_class_folder(root)):
        table = read_sound_table(root, columns) if is_table else read_class_folder(root).assign(exists=True)
        rows = list(zip(table["fname"], table["path"], strict=True))
        paths = {fname: Path(path) for fname, path in [*rows, *((file_of(n), file_of(path)) for n, path in rows)]}
        return _Tables(root, {"curated": table.drop(columns=["path", "exists"])}, sound_paths=paths)
    check_data_folder(root)
    tables = _Tables(root)
    for part in ("curated", "noisy"):
        csv = root / f"train_{part}.csv"
        if csv.is_file():
            tables.parts[part] = read_labels(csv)
    _read_test(tables)
    if not tables.parts:
        raise DataError(
            f"{root} has no train_curated.csv, train_noisy.csv or sample_submission.csv; expected at least one of them"
        )
    return tables


def _read_test(tables: _Tables) -> None:
    """Add the test part and the vocabulary: the sample submission, or else the files of `test/`."""
    sample, folder = tables.root / "sample_submission.csv", tables.folder("test")
    if sample.is_file():
        submission = read_table(sample, ["fname"])
        tables.tags = tuple(c for c in submission.columns if c != "fname")
        tables.parts["test"] = submission[["fname"]]
    elif folder.is_dir():
        names = sorted(f.name for f in folder.iterdir() if not f.is_dir() and not is_hidden(f.name))
        tables.parts["test"] = pd.DataFrame({"fname": names}, dtype=str)


def _check_files(paths: Sequence[Path], threads: int | None) -> list[AudioFileInfo]:
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        return list(track(pool.map(check_audio_file, paths), "reading sounds", total=len(paths)))


def _file_table(listed: Sequence[tuple[str, str]], sounds: Sequence[AudioFileInfo]) -> pd.DataFrame:
    columns = ["part", "fname", "seconds", "sr", "channels", "samples", "peak", "digest", "error"]
    rows = [
        (part, fname, s.seconds, s.sr, s.channels, s.samples, s.peak, s.digest, s.error)
        for (part, fname), s in zip(listed, sounds, strict=True)
    ]
    return pd.DataFrame(rows, columns=columns)


def _sound_findings(listed: Sequence[tuple[str, str]], sounds: Sequence[AudioFileInfo]) -> Iterator[Finding]:
    """Yield the findings of single files, including sample rates that differ from the most common one."""
    rates = Counter(s.sr for s in sounds if s.samples)
    common_sr = rates.most_common(1)[0][0] if rates else 0
    for (part, fname), sound in zip(listed, sounds, strict=True):
        if sound.error:
            yield Finding(sound.error, part, fname, sound.detail)
        else:
            yield from (Finding(kind, part, fname, detail) for kind, detail in _oddities(sound, common_sr))


def _oddities(sound: AudioFileInfo, common_sr: int) -> Iterator[tuple[str, str]]:
    """Yield kind and detail of what is unusual about a file that can be decoded."""
    if sound.level < 10 ** (SILENCE_DB / 20):
        level = f"its peak is {20 * np.log10(sound.level):.0f} dB" if sound.level else "all samples are equal"
        level = level if sound.peak else "all samples are 0"
        yield "silent", f"{level} ({sound.seconds:.2f} s)"
    if sound.mismatch:
        yield "cut", f"{sound.seconds:.3f} s are there; {sound.mismatch}"
    for notice in sound.notices:
        yield "downmix", notice
    if sound.coding:
        yield "coding", sound.coding
    if sound.clipped >= MIN_CLIPPED_SAMPLES:
        yield "clipped", f"{sound.clipped:,} of {sound.samples:,} samples are in a row at full scale"
    if sound.sr != common_sr:
        yield "rate", f"{sound.sr:,} Hz; most files have {common_sr:,} Hz"
    if sound.channels > 1:
        yield "channels", f"{sound.channels} channels; {'one is taken' if sound.notices else 'averaged'} on loading"


def _segment_findings(tables: _Tables, sounds: Mapping[Path, AudioFileInfo]) -> Iterator[Finding]:
    """Yield segments that lead beyond the end of their file."""
    for fname, segment in tables.segments().items():
        sound = sounds.get(Path(segment.path))
        if sound is not None and not sound.error:
            try:
                segment.section(sound.seconds)
            except AudioError as e:
                yield Finding("segment", "curated", fname, str(e).removeprefix(f"{segment.path}: "))


def _duplicates(listed: Sequence[tuple[str, str]], sounds: Sequence[AudioFileInfo]) -> Iterator[Finding]:
    """Yield files with the samples of an earlier one; files of zeros are reported as silent only."""
    first: dict[str, tuple[str, str]] = {}
    for (part, fname), sound in zip(listed, sounds, strict=True):
        if not sound.digest or not sound.peak:
            continue
        other = first.setdefault(sound.digest, (part, fname))
        if other != (part, fname):
            leak = " - a leak from training to test" if part == "test" and other[0] != "test" else ""
            yield Finding("duplicate", part, fname, f"same samples as {other[0]}/{other[1]}{leak}")


def _shared_names(tables: _Tables) -> Iterator[Finding]:
    first: dict[str, str] = {}
    for part, rows in tables.parts.items():
        for fname in rows["fname"]:
            other = first.setdefault(fname, part)
            if other != part:
                yield Finding("name", part, fname, f"the {other} part also has a file of this name")


def _label_findings(tables: _Tables) -> Iterator[Finding]:
    """Yield rows without labels and unknown labels; without a vocabulary, rare labels similar to a frequent one."""
    labeled = tables.labeled()
    count = Counter(label for rows in labeled.values() for row in rows["labels"] for label in row)
    similar = _similar_labels(count) if tables.tags is None else {}
    yield from _spelling_findings(labeled, count, similar) if tables.tags is None else ()
    for part, rows in labeled.items():
        for fname, labels in zip(rows["fname"], rows["labels"], strict=True):
            if not labels:
                yield Finding("no_label", part, fname, "its cell of labels is empty, or says NaN, None or null")
            for label in labels:
                detail = _label_problem(label, tables.tags, similar, count)
                if detail:
                    yield Finding("label", part, fname, detail)


def _label_problem(label: str, tags: Sequence[str] | None, similar: dict[str, str], count: Counter[str]) -> str:
    if tags is not None and label not in tags:
        return f"unknown tag {label!r}; {did_you_mean(label, tags)}"
    if label in similar:
        other = similar[label]
        return f"the tag {label!r} occurs {count[label]} times, {other!r} {count[other]} times: are they the same?"
    return ""


def _similar_labels(count: Counter[str]) -> dict[str, str]:
    """Map rare labels to a similar label that is at least ten times as frequent."""
    similar = {}
    for label, n in count.items():
        frequent = {other.lower(): other for other in count if count[other] >= 10 * n}
        near = get_close_matches(label.lower(), list(frequent), n=1, cutoff=0.85)
        if near:
            similar[label] = frequent[near[0]]
    return similar


def _spelling_findings(
    labeled: dict[str, pd.DataFrame], count: Counter[str], similar: dict[str, str]
) -> Iterator[Finding]:
    """Yield pairs of tags that differ in case, spaces or a letter, at the first clip of the rarer tag."""
    first = {
        label: (part, fname)
        for part, rows in reversed(labeled.items())
        for fname, labels in reversed(list(zip(rows["fname"], rows["labels"], strict=True)))
        for label in labels
    }
    # The pairs that _similar_labels found are named at every clip.
    for one, other in combinations(sorted(count, key=lambda label: (count[label], label)), 2):
        if one not in similar and _differ_little(one, other):
            part, fname = first[one]
            counts = f"{one!r} ({count[one]} clips) and {other!r} ({count[other]})"
            yield Finding("label", part, fname, f"the tags {counts} differ little: are they the same?")


def _differ_little(one: str, other: str, min_length: int = 4) -> bool:
    """Return whether two tags differ only in case, spaces and hyphens, or by one letter of a longer word."""
    one, other = (re.sub(r"[\s_-]+", "", label).casefold() for label in (one, other))
    short, long = sorted((one, other), key=len)
    if short == long:
        return True
    if len(short) < min_length or len(long) - len(short) > 1:
        return False
    start = next((k for k, letter in enumerate(short) if letter != long[k]), len(short))
    # Numbered tags, such as Site_1 and Site_2, differ on purpose.
    changed = long[start] + (short[start] if len(short) == len(long) else "")
    return changed.isalpha() and long[start + 1:] == short[start + (len(short) == len(long)):]


def _file_findings(tables: _Tables) -> Iterator[Finding]:
    """Yield missing and extra files."""
    if tables.sound_paths:
        for fname, path in tables.sound_paths.items():
            if split_segment(path).end_s is None and not isfile(path):
                yield Finding("missing", "curated", fname, f"no such file in {tables.root.parent} or below it")
        return
    for part in _PARTS:
        yield from _part_findings(part, tables.folder(part), tables.parts.get(part))


def _part_findings(part: str, folder: Path, rows: pd.DataFrame | None) -> Iterator[Finding]:
    is_dir = folder.is_dir()
    names = {f.name for f in folder.iterdir() if isfile(f) and not is_hidden(f.name)} if is_dir else set()
    if rows is None:
        if names:
            yield Finding("extra", part, "", f"{len(names)} files in {folder.name}/, but no table of them")
    elif not is_dir:
        if len(rows):
            yield Finding("missing", part, "", f"{len(rows)} rows, but no folder {folder.name}/")
    else:
        for fname in rows["fname"]:
            if fname not in names and not isfile(folder / fname):
                yield Finding("missing", part, fname, f"no such file in {folder.name}/")
        for name in sorted(names - set(rows["fname"])):
            yield Finding("extra", part, name, "not in the table")


def _fold_counts(tables: _Tables, tags: Sequence[str], splitter: str, n: int, seed: int) -> pd.DataFrame | None:
    """Count the curated clips of each tag that each fold would hold out; return None if they cannot be split."""
    curated = tables.parts.get("curated")
    if curated is None or not tags or len(curated) < 2:
        return None
    known = set(tags)
    targ = multi_hot([[label for label in row if label in known] for row in curated["labels"]], tags)
    groups = None
    if "fold" in curated.columns and curated["fold"].nunique() > 1:
        splitter, groups = "predefined", list(curated["fold"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the table itself shows which tags are rare
        folds = make_folds(targ, splitter=splitter, n=min(n, len(curated)), seed=seed, groups=groups)
    return fold_table(folds, targ, tags)


def _duration_table(files: pd.DataFrame) -> pd.DataFrame:
    """Count the decoded files per part and duration bin."""
    edges = DURATION_EDGES_S
    names = [f"{low:g}-{high:g} s" if np.isfinite(high) else f">= {low:g} s" for low, high in pairwise(edges)]
    seconds = files[files["samples"] > 0].groupby("part", sort=False)["seconds"]
    return pd.DataFrame({part: np.histogram(values, edges)[0] for part, values in seconds}, index=names).T


def _estimate_costs(
    files: pd.DataFrame, front_end: str | FrontEnd, elapsed_s: float, *, crop_s: float = 4.0
) -> CostEstimate:
    described = find_front_end(front_end)
    decoded = files[files["samples"] > 0]
    training = decoded[decoded["part"] != "test"]
    samples = [max(1, round(float(s) * described.sr)) for s in decoded["seconds"]]
    return CostEstimate(
        front_end=front_end if isinstance(front_end, str) else "as given",
        training_clips=len(training),
        training_hours=float(training["seconds"].sum()) / 3600,
        wave_bytes=2 * sum(samples),
        features_bytes=2 * described.rows * sum(described.frames(s) for s in samples),
        read_speed=float(decoded["seconds"].sum()) / max(elapsed_s, 1e-9),
        front_end_ms=_front_end_ms(described, round(crop_s * described.sr)),
        crop_s=crop_s,
    )


def _front_end_ms(front_end: FrontEnd, samples: int, *, rounds: int = 5) -> float:
    """Measure the milliseconds of the front end for a crop in a batch of 8, the fastest of a few rounds."""
    module, batch, best = front_end.build().eval(), torch.randn(8, samples) * 0.1, float("inf")
    with torch.no_grad():
        for _ in range(rounds):
            start = time.perf_counter()
            module(batch)
            best = min(best, time.perf_counter() - start)
    return best * 1000 / len(batch)
