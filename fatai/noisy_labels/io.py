"""LabelSelection clips to files that every loader reads: a table of labels, or corrections to the one that is there."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence

import numpy as np

from fatai.io.atomic import open_atomic
from fatai.data.labels import REMOVE, join_labels
from fatai.errors import DataError, OptionError
from fatai.noisy_labels.selection import LabelSelection

__all__ = ["write_corrections", "write_labels"]


def write_labels(chosen: LabelSelection, path: str | os.PathLike[str], *, weights: bool = True) -> None:
    """Write the kept clips as a table that `fatai.data.labels.read_labels` reads, whole or not at all.

    Parameters
    ----------
    chosen
        Of hard labels, each clip once.
    weights
        Whether to add the column `weight` where clips don't all weigh 1.

    Raises
    ------
    OptionError
        If targets are soft, or weights are per tag, which no such file can say.
    DataError
        If a clip has two rows.
    """
    labels = chosen.labels
    if len(set(chosen.fnames)) < len(chosen):
        raise DataError(
            f"{chosen.method} gives clips as noisy and as corrected ones, which no table of labels says: train on it directly"
        )
    weighted = weights and not (chosen.weight == 1).all()
    if weighted and chosen.weight.ndim > 1:
        raise OptionError(
            f"{chosen.method} weighs each tag of a clip, which no table of labels says: leave out the tags' weights, or say "
            "weights=False"
        )
    rows: Iterable[Sequence[str]] = zip(chosen.fnames, map(join_labels, labels))
    if weighted:
        # Through text, a float32 keeps the few digits that it was meant to have.
        rows = ((*row, str(np.float32(weight))) for row, weight in zip(rows, chosen.weight))
    _write(path, ("fname", "labels", "weight") if weighted else ("fname", "labels"), rows)


def write_corrections(chosen: LabelSelection, path: str | os.PathLike[str]) -> None:
    """Write what differs from the given table as corrections that `fatai.data.labels.read_corrections` reads, whole or not at all.

    Clips with other labels than given are listed with these, clips that were not kept with the word "remove"; the rest isn't there. Weights
    are not part of it. Errors are those of `write_labels`.
    """
    labels = dict(zip(chosen.fnames, chosen.labels))
    if len(labels) < len(chosen):
        raise DataError(
            f"{chosen.method} gives clips as noisy and as corrected ones, which corrections cannot say: train on it directly"
        )
    odd = chosen.clips[~chosen.clips["kept"] | chosen.clips["changed"]]
    _write(path, ("fname", "labels"), ((name, join_labels(labels.get(name, [REMOVE]))) for name in odd["fname"]))


def _write(path: str | os.PathLike[str], header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with open_atomic(path) as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
