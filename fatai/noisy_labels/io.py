"""Write selected clips to files that every loader reads: a table of labels, or corrections to an existing one."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence

import numpy as np

from fatai.data.labels import REMOVE, join_labels
from fatai.errors import DataError, OptionError
from fatai.io.atomic import open_atomic
from fatai.noisy_labels.selection import LabelSelection

__all__ = ["write_corrections", "write_labels"]


def write_labels(selection: LabelSelection, path: str | os.PathLike[str], *, weights: bool = True) -> None:
    """Write the selected clips as a table that `fatai.data.labels.read_labels` reads, atomically.

    Parameters
    ----------
    selection
        With hard labels, each clip once.
    path
        The file; its folder is created.
    weights
        True adds the column `weight` where not all clips weigh 1.

    Raises
    ------
    OptionError
        If targets are soft, or weights are per tag, which no such file can express.
    DataError
        If a clip has two rows.
    """
    labels = selection.labels
    if len(set(selection.fnames)) < len(selection):
        raise DataError(
            f"{selection.method} gives clips as noisy and as corrected ones, which a table of labels cannot express: "
            "train on the selection directly"
        )
    has_weights = weights and not (selection.weight == 1).all()
    if has_weights and selection.weight.ndim > 1:
        raise OptionError(
            f"{selection.method} weights each tag of a clip, which a table of labels cannot express: leave out the "
            "weights of tags, or pass weights=False"
        )
    rows: Iterable[Sequence[str]] = zip(selection.fnames, map(join_labels, labels), strict=True)
    if has_weights:
        # As text, a float32 keeps the few digits that were meant.
        rows = ((*row, str(np.float32(weight))) for row, weight in zip(rows, selection.weight, strict=True))
    _write(path, ("fname", "labels", "weight") if has_weights else ("fname", "labels"), rows)


def write_corrections(selection: LabelSelection, path: str | os.PathLike[str]) -> None:
    """Write the differences to the given table as corrections, atomically.

    `fatai.data.labels.read_corrections` reads them. Clips whose labels were changed are listed with their new labels,
    clips that were not kept with the word "remove"; other clips are not listed. Weights are not written.

    Parameters
    ----------
    selection
        With hard labels, each clip once.
    path
        The file; its folder is created.

    Raises
    ------
    OptionError
        If targets are soft.
    DataError
        If a clip has two rows.
    """
    labels = dict(zip(selection.fnames, selection.labels, strict=True))
    if len(labels) < len(selection):
        raise DataError(
            f"{selection.method} gives clips as noisy and as corrected ones, which corrections cannot express: train "
            "on the selection directly"
        )
    differing = selection.clips[~selection.clips["kept"] | selection.clips["changed"]]
    rows = ((name, join_labels(labels.get(name, [REMOVE]))) for name in differing["fname"])
    _write(path, ("fname", "labels"), rows)


def _write(path: str | os.PathLike[str], header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with open_atomic(path) as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
