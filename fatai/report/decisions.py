"""Decisions of a label review on disk: corrections.csv, which every loader reads, and a file of confirmed clips.

A decision is the tags of a clip, or None to remove the clip. The tags as given confirm the clip: this is no correction
and goes to `<corrections>.confirmed.csv`, which only a continued review reads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from fatai.data.labels import REMOVE, check_labels, join_labels, read_corrections, read_table
from fatai.errors import LabelError
from fatai.io.atomic import write_text

__all__ = ["Decisions"]

_Decided = dict[str, list[str] | None]


class Decisions:
    """The decisions of a review, in two files that are complete at any time; threads may share one.

    Parameters
    ----------
    path
        corrections.csv; it need not exist. Corrections of clips that are not under review stay in it.
    tags
        The vocabulary.
    given
        The tags given to each clip under review.
    """

    def __init__(self, path: str | Path, tags: Sequence[str], given: Mapping[str, Sequence[str]]):
        self.path, self._tags, self._given, self._lock = Path(path), tuple(tags), dict(given), threading.Lock()

    @property
    def confirmed_path(self) -> Path:
        """The file of confirmed clips, with one column `fname`."""
        return self.path.with_suffix(".confirmed.csv")

    def read(self) -> _Decided:
        """Read the decision of each clip that has one; errors are those of `read_corrections`."""
        decided: _Decided = {}
        if self.confirmed_path.is_file():
            names = read_table(self.confirmed_path, ["fname"])["fname"]
            decided = {fname: list(self._given[fname]) for fname in names if fname in self._given}
        if self.path.is_file():
            table = read_corrections(self.path, tags=self._tags)
            decided.update(zip(table["fname"], table["labels"], strict=True))
        return decided

    def decide(self, fname: str, labels: Sequence[str] | None) -> int:
        """Write a decision, tags or None to remove the clip; return the number of decided clips.

        Raises
        ------
        LabelError
            If the clip is not under review, a tag is unknown, or none is left where the clip had some.
        """
        if fname in self._given and labels is not None:
            if not labels and self._given[fname]:
                raise LabelError(f"{fname} would have no tag left; give at least one, or remove the clip")
            check_labels(pd.DataFrame({"fname": [fname], "labels": [list(labels)]}), self._tags, "the decision")
        return self._update(fname, lambda decided: {**decided, fname: None if labels is None else list(labels)})

    def undo(self, fname: str) -> int:
        """Remove the decision on a clip; return the number of decided clips.

        Raises
        ------
        LabelError
            If the clip is not under review.
        """
        return self._update(fname, lambda decided: {name: labels for name, labels in decided.items() if name != fname})

    def _update(self, fname: str, change: Callable[[_Decided], _Decided]) -> int:
        if fname not in self._given:
            raise LabelError(f"{fname[:80]!r} is no clip of this review; reload the page")
        with self._lock:
            # Read again each time, so that changes of the file by others are kept.
            decided = change(self.read())
            confirmed = {name for name, labels in decided.items() if self._is_confirmed(name, labels)}
            corrected = sorted(set(decided) - confirmed)
            _write_table(self.confirmed_path, {"fname": sorted(confirmed)})
            labels = [join_labels(_labels_or_remove(decided[name])) for name in corrected]
            _write_table(self.path, {"fname": corrected, "labels": labels})
        return len(decided.keys() & self._given.keys())

    def _is_confirmed(self, fname: str, labels: Sequence[str] | None) -> bool:
        return labels is not None and fname in self._given and set(labels) == set(self._given[fname])


def _labels_or_remove(labels: Sequence[str] | None) -> Sequence[str]:
    return [REMOVE] if labels is None else labels


def _write_table(path: Path, columns: Mapping[str, Iterable[str]]) -> None:
    write_text(path, pd.DataFrame(columns).to_csv(index=False, lineterminator="\n"))
