"""What a scan found, as text for people and JSON for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

__all__ = ["FINDING_KINDS", "CostEstimate", "Finding", "DatasetReport"]

FINDING_KINDS = {
    "unreadable": "cannot be decoded",
    "empty": "without a single sample",
    "not_finite": "samples that are no numbers",
    "silent": "silent",
    "clipped": "clipped",
    "rate": "another sample rate than most",
    "channels": "several channels",
    "duplicate": "the same sound twice",
    "name": "the same name in two parts",
    "label": "unknown labels",
    "no_label": "rows without a label",
    "missing": "rows without a file",
    "extra": "files without a row",
}
"""Kinds of findings, in the order of the report."""


@dataclass(frozen=True)
class Finding:
    """One thing that is odd: its kind (a key of `FINDING_KINDS`), the part and file it was found in, and what was seen."""

    kind: str
    part: str
    fname: str
    what: str

    def __str__(self) -> str:
        return f"{self.part}/{self.fname}: {self.what}" if self.fname else f"{self.part}: {self.what}"


@dataclass(frozen=True)
class CostEstimate:
    """What a data set costs in room and time.

    Sizes are exact: every clip as 16-bit samples, or as 16-bit floats behind the front end. Times are those of this machine, now: reading
    at the speed of the scan (all threads), and the front end at the speed of a short trial on crops. A network's own time comes on top.
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
        return self.training_hours * 3600 / self.read_speed if self.read_speed else 0.0

    @property
    def front_end_s(self) -> float:
        return self.training_clips * self.front_end_ms / 1000

    def sentences(self) -> list[str]:
        return [
            f"cache of waves:    {self.wave_bytes / 1e6:9.1f} MB (samples of all clips x 2 bytes)",
            f"cache of features: {self.features_bytes / 1e6:9.1f} MB (frames of all clips x bands x 2 bytes, front end {self.front_end})",
            f"an epoch without the network: {self.reading_s + self.front_end_s:.1f} s = reading {self.reading_s:.1f} s "
            f"({self.training_hours:.2f} h of training sound / {self.read_speed:.0f} times real time, as this scan read) "
            f"+ front end {self.front_end_s:.1f} s ({self.training_clips} crops of {self.crop_s:g} s x {self.front_end_ms:.1f} ms)",
            "with the network: add (clips / batch size) x its seconds a step",
        ]

    def to_dict(self) -> dict[str, Any]:
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
            "formula": "epoch_s = training_hours * 3600 / read_times_real_time + training_clips * front_end_ms_per_crop / 1000 "
            "+ steps * seconds_per_step_of_the_network",
        }


@dataclass(frozen=True)
class DatasetReport:
    """What `scan` found.

    Attributes
    ----------
    path
        The data set.
    files
        A row per file that was read: part, fname, seconds, sr, channels, samples, peak, digest, fault.
    findings
        All oddities, by kind, part and name.
    tags, folds
        The vocabulary, and how many curated clips of each tag each fold would hold out; None without curated labels.
    hours
        Hours of sound of each part.
    lengths
        A row per part, a column per bin of `DURATION_EDGES_S`: numbers of files.
    costs
        Estimates with the formulas that made them.
    """

    path: Path
    files: pd.DataFrame
    findings: tuple[Finding, ...]
    tags: tuple[str, ...]
    folds: pd.DataFrame | None
    lengths: pd.DataFrame
    costs: CostEstimate

    @property
    def hours(self) -> dict[str, float]:
        return {
            str(part): float(seconds) / 3600
            for part, seconds in self.files.groupby("part", sort=False)["seconds"].sum().items()
        }

    def of_kind(self, kind: str) -> list[Finding]:
        """Findings of one kind of `FINDING_KINDS`."""
        return [finding for finding in self.findings if finding.kind == kind]

    def to_json(self) -> str:
        """All of it as JSON: every finding, the tables, the estimates."""
        folds = (
            None
            if self.folds is None
            else {str(tag): {str(k): int(v) for k, v in row.items()} for tag, row in self.folds.iterrows()}
        )
        return json.dumps(
            {
                "path": str(self.path),
                "files": {part: int(n) for part, n in Counter(self.files["part"]).items()},
                "hours": {part: round(hours, 4) for part, hours in self.hours.items()},
                "findings": {
                    kind: [{"part": f.part, "fname": f.fname, "what": f.what} for f in self.of_kind(kind)]
                    for kind in FINDING_KINDS
                },
                "tags": list(self.tags),
                "tags_per_fold": folds,
                "lengths": {
                    str(part): {str(k): int(v) for k, v in row.items()} for part, row in self.lengths.iterrows()
                },
                "estimates": self.costs.to_dict(),
            },
            indent=2,
            ensure_ascii=False,
        )

    def to_text(self, *, most: int = 20) -> str:
        """All of it for a reader; at most `most` findings of a kind are listed."""
        sections = [
            self._parts_text(),
            self._findings_text(most),
            self._lengths_text(),
            self._folds_text(),
            self._costs_text(),
        ]
        return "\n\n".join(text for text in ("\n".join(section) for section in sections) if text)

    def _parts_text(self) -> Iterator[str]:
        yield f"{self.path}: {len(self.files)} files, {sum(self.hours.values()):.2f} hours, {len(self.tags)} tags"
        for part, rows in self.files.groupby("part", sort=False):
            heard = rows["seconds"][rows["seconds"] > 0]
            if len(heard):
                yield (f"  {part:8s} {len(rows):6d} files  {heard.sum() / 3600:7.2f} h   "
                       f"{heard.min():.2f} to {heard.max():.2f} s, median {heard.median():.2f} s")

    def _findings_text(self, most: int) -> Iterator[str]:
        yield f"{len(self.findings)} findings" if self.findings else "nothing odd was found"
        for kind, title in FINDING_KINDS.items():
            found = self.of_kind(kind)
            if not found:
                continue
            yield f"  {title} ({len(found)})"
            yield from (f"    {finding}" for finding in found[:most])
            if len(found) > most:
                yield f"    ... and {len(found) - most} more; the JSON lists all"

    def _lengths_text(self) -> Iterator[str]:
        if not len(self.lengths):
            return
        yield "lengths"
        total = self.lengths.sum()
        for name, count in total.items():
            yield f"  {name:>10s} {count:7d} {'#' * -(-40 * int(count) // max(1, int(total.max())))}".rstrip()

    def _folds_text(self) -> Iterator[str]:
        if self.folds is None:
            return
        width = max([len(str(tag)) for tag in self.folds.index] + [3])
        yield "tags per fold (clips that each fold would hold out)"
        yield f"  {'':{width}s} " + " ".join(f"{str(column):>6s}" for column in self.folds.columns)
        for tag, row in self.folds.iterrows():
            yield f"  {str(tag):{width}s} " + " ".join(f"{int(v):6d}" for v in row)
        for column in self.folds.columns:
            absent = [str(tag) for tag in self.folds.index[self.folds[column] == 0]]
            if absent:
                yield f"  {'no curated clip' if column == 'all' else f'fold {column} holds out none'} of: {', '.join(absent)}"

    def _costs_text(self) -> Iterator[str]:
        yield "estimates"
        yield from (f"  {line}" for line in self.costs.sentences())
