"""What a reviewer decided, on disk: corrections.csv as every loader reads it, and beside it the clips that were found right.

A decision is the tags of a clip, or None for a clip to be removed. Tags as given mean that the clip is right: no correction, so it goes to
`<corrections>.kept.csv`, which only a review that is gone on with reads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from fatai.io.atomic import write_text
from fatai.data.labels import REMOVE, check_labels, join_labels, read_corrections, read_table
from fatai.errors import LabelError

__all__ = ["Decisions"]


class Decisions:
    """The decisions of a review, in two files that are whole at any time; threads may share one.

    Parameters
    ----------
    path
        corrections.csv; it need not be there yet. Corrections of clips that are not under review stay in it.
    tags
        The vocabulary.
    given
        The tags given to each clip under review.
    """

    def __init__(self, path: str | Path, tags: Sequence[str], given: Mapping[str, Sequence[str]]):
        self.path, self._tags, self._given, self._lock = Path(path), tuple(tags), dict(given), threading.Lock()

    @property
    def kept_path(self) -> Path:
        """The clips that were found right, a column `fname`."""
        return self.path.with_suffix(".kept.csv")

    def read(self) -> dict[str, list[str] | None]:
        """The decision of each clip that has one; raises as `read_corrections`."""
        decided: dict[str, list[str] | None] = {}
        if self.kept_path.is_file():
            names = read_table(self.kept_path, ["fname"])["fname"]
            decided = {fname: list(self._given[fname]) for fname in names if fname in self._given}
        if self.path.is_file():
            table = read_corrections(self.path, tags=self._tags)
            decided.update(zip(table["fname"], table["labels"]))
        return decided

    def decide(self, fname: str, labels: Sequence[str] | None) -> int:
        """Write a decision, tags or None to remove the clip; returns how many clips are decided.

        Raises
        ------
        LabelError
            If the clip is not under review, a tag is unknown, or none is left where the clip had some.
        """
        if fname in self._given and labels is not None:
            if not labels and self._given[fname]:
                raise LabelError(f"{fname} would have no tag left; expected at least one, or remove the clip")
            check_labels(pd.DataFrame({"fname": [fname], "labels": [list(labels)]}), self._tags, "the decision")
        return self._changed(fname, lambda decided: {**decided, fname: None if labels is None else list(labels)})

    def forget(self, fname: str) -> int:
        """Take a decision back; returns how many clips are decided."""
        return self._changed(fname, lambda decided: {name: labels for name, labels in decided.items() if name != fname})

    def _changed(self, fname: str, change) -> int:
        if fname not in self._given:
            raise LabelError(f"{fname[:80]!r} is no clip of this review; reload the page")
        with self._lock:
            # Read anew each time, so that what somebody wrote into the file meanwhile stays.
            decided = change(self.read())
            right = [
                name
                for name, labels in decided.items()
                if labels is not None and set(labels) == set(self._given.get(name, ())) and name in self._given
            ]
            _write(self.kept_path, {"fname": sorted(right)})
            wrong = sorted(set(decided).difference(right))
            _write(self.path, {"fname": wrong, "labels": [join_labels(_or_remove(decided[name])) for name in wrong]})
        return len(decided.keys() & self._given.keys())


def _or_remove(labels: Sequence[str] | None) -> Sequence[str]:
    return [REMOVE] if labels is None else labels


def _write(path: Path, columns: Mapping[str, Iterable[str]]) -> None:
    write_text(path, pd.DataFrame(columns).to_csv(index=False, lineterminator="\n"))
