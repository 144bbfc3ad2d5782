"""Report of a data set check, as text and JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

__all__ = ["CostEstimate", "DatasetReport", "Finding"]

FINDING_KINDS = {
    "unreadable": "cannot be decoded",
    "empty": "without samples",
    "not_finite": "samples that are not finite",
    "cut": "cut short, or a wrong length in the header",
    "silent": "silent",
    "downmix": "channels that cancel or are dead, floats on the scale of integers",
    "coding": "few bits for each sample",
    "clipped": "clipped",
    "rate": "sample rate differs from most files",
    "channels": "several channels",
    "duplicate": "duplicate sounds",
    "name": "same name in two parts",
    "label": "unknown labels",
    "no_label": "rows without a label",
    "missing": "rows without a file",
    "segment": "times beyond the end of a file",
    "extra": "files without a row",
}
"""Kinds of findings with their titles, in the order of the report."""


@dataclass(frozen=True)
class Finding:
    """One problem of a data set.

    Attributes
    ----------
    kind
        A key of `FINDING_KINDS`.
    part, fname
        Part and file; `fname` is "" for findings of a whole part.
    detail
        Description with the measured value.
    """

    kind: str
    part: str
    fname: str
    detail: str

    def __str__(self) -> str:
        return f"{self.part}/{self.fname}: {self.detail}" if self.fname else f"{self.part}: {self.detail}"


@dataclass(frozen=True)
class CostEstimate:
    """Disk space of caches and time of an epoch without the network.

    Sizes are exact: every clip as 16-bit samples, or as 16-bit floats behind the front end. Times are those of this
    machine at the time of the check: reading at the speed of the check (all threads), and the front end at the speed of
    a short benchmark on crops.

    Attributes
    ----------
    front_end
        Name of the front end.
    training_clips, training_hours
        Number and total duration of curated and noisy clips.
    wave_bytes, features_bytes
        Size of a cache of all clips.
    read_speed
        Seconds of sound decoded per second.
    front_end_ms
        Milliseconds of the front end per crop.
    crop_s
        Length of a crop in seconds.
    """

    front_end: str
    training_clips: int
    training_hours: float
    wave_bytes: int
    features_bytes: int
    read_speed: float
    front_end_ms: float
    crop_s: float = 4.0

    @property
    def reading_s(self) -> float:
        """Seconds to decode the training clips once."""
        return self.training_hours * 3600 / self.read_speed if self.read_speed else 0.0

    @property
    def front_end_s(self) -> float:
        """Seconds of the front end for one crop of each training clip."""
        return self.training_clips * self.front_end_ms / 1000

    def lines(self) -> list[str]:
        """Format the estimates with their formulas."""
        return [
            f"cache of waves:    {self.wave_bytes / 1e6:9.1f} MB (samples of all clips x 2 bytes)",
            f"cache of features: {self.features_bytes / 1e6:9.1f} MB (frames of all clips x bands x 2 bytes, front end "
            f"{self.front_end})",
            f"an epoch without the network: {self.reading_s + self.front_end_s:.1f} s = reading {self.reading_s:.1f} s "
            f"({self.training_hours:.2f} h of training clips / {self.read_speed:.0f} times real time, as here) "
            f"+ front end {self.front_end_s:.1f} s ({self.training_clips} crops of {self.crop_s:g} s x "
            f"{self.front_end_ms:.1f} ms)",
            "with the network: add (clips / batch size) x its seconds per step",
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the estimates and the formula for JSON."""
        return {
            "front_end": self.front_end,
            "training_clips": self.training_clips,
            "training_hours": round(self.training_hours, 4),
            "cache_wave_bytes": self.wave_bytes,
            "cache_features_bytes": self.features_bytes,
            "read_times_real_time": round(self.read_speed, 1),
            "front_end_ms_per_crop": round(self.front_end_ms, 3),
            "crop_s": self.crop_s,
            "epoch_reading_s": round(self.reading_s, 2),
            "epoch_front_end_s": round(self.front_end_s, 2),
            "formula": "epoch_s = training_hours * 3600 / read_times_real_time + "
            "training_clips * front_end_ms_per_crop / 1000 + steps * seconds_per_step_of_the_network",
        }


@dataclass(frozen=True)
class DatasetReport:
    """Result of `check_dataset`.

    Attributes
    ----------
    path
        The data set.
    files
        A row per existing file: part, fname, seconds, sr, channels, samples, peak, digest, error.
    findings
        All problems, sorted by kind, part and name.
    tags, folds
        The vocabulary, and a table of how many curated clips of each tag each fold would hold out; None without curated
        labels.
    durations
        A row per part, a column per bin of `DURATION_EDGES_S`: numbers of files.
    costs
        Estimates of disk space and time.
    """

    path: Path
    files: pd.DataFrame
    findings: tuple[Finding, ...]
    tags: tuple[str, ...]
    folds: pd.DataFrame | None
    durations: pd.DataFrame
    costs: CostEstimate

    @property
    def hours(self) -> dict[str, float]:
        """Hours of sound of each part."""
        seconds = self.files.groupby("part", sort=False)["seconds"].sum()
        return {str(part): float(value) / 3600 for part, value in seconds.items()}

    def of_kind(self, kind: str) -> list[Finding]:
        """Return the findings of one kind of `FINDING_KINDS`."""
        return [finding for finding in self.findings if finding.kind == kind]

    def to_json(self) -> str:
        """Format everything as JSON: all findings, the tables, the estimates."""
        findings = {
            kind: [{"part": f.part, "fname": f.fname, "detail": f.detail} for f in self.of_kind(kind)]
            for kind in FINDING_KINDS
        }
        report = {
            "path": str(self.path),
            "files": {part: int(n) for part, n in Counter(self.files["part"]).items()},
            "hours": {part: round(hours, 4) for part, hours in self.hours.items()},
            "findings": findings,
            "tags": list(self.tags),
            "tags_per_fold": None if self.folds is None else _counts(self.folds),
            "durations": _counts(self.durations),
            "estimates": self.costs.to_dict(),
        }
        return json.dumps(report, indent=2, ensure_ascii=False)

    def to_text(self, *, max_per_kind: int = 20) -> str:
        """Format everything as text, with at most `max_per_kind` findings of each kind."""
        sections = [
            self._parts_text(),
            self._findings_text(max_per_kind),
            self._durations_text(),
            self._folds_text(),
            self._costs_text(),
        ]
        return "\n\n".join(text for text in ("\n".join(section) for section in sections) if text)

    def _parts_text(self) -> Iterator[str]:
        yield f"{self.path}: {len(self.files)} files, {sum(self.hours.values()):.2f} hours, {len(self.tags)} tags"
        for part, rows in self.files.groupby("part", sort=False):
            seconds = rows["seconds"][rows["seconds"] > 0]
            if len(seconds):
                yield (f"  {part:8s} {len(rows):6d} files  {seconds.sum() / 3600:7.2f} h   "
                       f"{seconds.min():.2f} to {seconds.max():.2f} s, median {seconds.median():.2f} s")

    def _findings_text(self, max_per_kind: int) -> Iterator[str]:
        some = f"{len(self.findings)} finding{'s' * (len(self.findings) != 1)}"
        yield some if self.findings else "no problems found"
        for kind, title in FINDING_KINDS.items():
            found = self.of_kind(kind)
            if not found:
                continue
            yield f"  {title} ({len(found)})"
            yield from (f"    {finding}" for finding in found[:max_per_kind])
            if len(found) > max_per_kind:
                yield f"    ... and {len(found) - max_per_kind} more; the JSON lists all"

    def _durations_text(self) -> Iterator[str]:
        if not len(self.durations):
            return
        yield "durations"
        total = self.durations.sum()
        for name, count in total.items():
            yield f"  {name:>10s} {count:7d} {'#' * -(-40 * int(count) // max(1, int(total.max())))}".rstrip()

    def _folds_text(self) -> Iterator[str]:
        if self.folds is None:
            return
        width = max([len(str(tag)) for tag in self.folds.index] + [3])
        yield "tags per fold (clips that each fold would hold out)"
        yield f"  {'':{width}s} " + " ".join(f"{column!s:>6s}" for column in self.folds.columns)
        for tag, row in self.folds.iterrows():
            yield f"  {tag!s:{width}s} " + " ".join(f"{int(v):6d}" for v in row)
        for column in self.folds.columns:
            absent = [str(tag) for tag in self.folds.index[self.folds[column] == 0]]
            if absent:
                subject = "no curated clip" if column == "all" else f"fold {column} holds out no clip"
                yield f"  {subject} of: {', '.join(absent)}"

    def _costs_text(self) -> Iterator[str]:
        yield "estimates"
        yield from (f"  {line}" for line in self.costs.lines())


def _counts(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Convert a table of counts to nested dicts of rows."""
    return {str(name): {str(k): int(v) for k, v in row.items()} for name, row in table.iterrows()}
