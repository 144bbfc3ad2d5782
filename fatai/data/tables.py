"""Tables of training clips, and which of their files can be read.

A *standard table* has the columns fname, path, labels (a list of tags) and is_valid, whatever the user's table calls them; the columns
weight (how much a clip counts in training) and noisy (whether its labels are doubtful) go along if there are such.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fatai.data.datasets.fat2019 import FATDataset
from fatai.data.labels import parse_labels
from fatai.errors import AudioError, DataError
from fatai.registry import did_you_mean
from fatai.audio.io import check_audio

__all__ = ["check_readable", "standardize_table", "training_table"]


def check_readable(paths: Sequence[Path]) -> tuple[np.ndarray, list[str]]:
    """Which sound files can be read to their ends: a mask (files,), and a sentence for each that cannot."""

    def fault(path: Path) -> str:
        try:
            check_audio(path)
        except AudioError as e:
            return str(e)
        return ""

    with ThreadPoolExecutor() as pool:
        faults = list(pool.map(fault, paths, chunksize=64))
    return np.array([not f for f in faults], dtype=bool), [f for f in faults if f]


def training_table(
    data: FATDataset, *, noisy: bool = False, valid_pct: float = 0.2, seed: int | None = None
) -> pd.DataFrame:
    """Curated clips with a random part of them held out, then, if asked, the noisy ones: columns fname, path, labels, is_valid."""
    columns = ["fname", "path", "labels"]
    table = data.curated[columns].copy()
    oof_score = np.zeros(len(table), dtype=bool)
    order = torch.randperm(len(table), generator=None if seed is None else torch.Generator().manual_seed(seed)).numpy()
    oof_score[order[: int(valid_pct * len(table))]] = True
    table["is_valid"] = oof_score
    if noisy:
        table["noisy"] = False
        if data.noisy is None:
            raise DataError(f"{data.path} has no noisy part; expected train_noisy.csv and train_noisy/, or noisy=False")
        table = pd.concat([table, data.noisy[columns].assign(is_valid=False, noisy=True)], ignore_index=True)
    return table


def standardize_table(
    df: pd.DataFrame,
    root: Path,
    fn_col: int | str,
    path_col: int | str | None,
    label_col: int | str,
    valid_col: int | str | None,
    suff: str,
    label_delim: str | None,
) -> pd.DataFrame:
    """Columns fname, path, labels (lists of tags) and is_valid, whatever the table calls them; weight, noisy, source if there are such."""

    def column(which: int | str, what: str) -> pd.Series:
        if isinstance(which, int):
            if which >= df.shape[1]:
                raise DataError(
                    f"{what} is column number {which}, but the table has {df.shape[1]}: {', '.join(map(str, df.columns))}"
                )
            return df.iloc[:, which]
        if which not in df.columns:
            raise DataError(
                f"{what} is {which!r}, which is no column; {did_you_mean(which, [str(c) for c in df.columns])}"
            )
        return df[which]

    names = [str(n) for n in column(fn_col, "fn_col")]
    cells = column(label_col, "label_col")
    labels = [parse_labels(cell, label_delim) for cell in cells]
    table = pd.DataFrame({"fname": [Path(n).name if Path(n).is_absolute() else n for n in names]})
    table["path"] = (
        [str(root / f"{n}{suff}") for n in names]
        if path_col is None
        else [str(p) for p in column(path_col, "path_col")]
    )
    table["labels"] = labels
    table["is_valid"] = False if valid_col is None else _truth_of(column(valid_col, "valid_col"), "valid_col")
    if "noisy" in df.columns:
        table["noisy"] = _truth_of(df["noisy"], "the column")
    if "weight" in df.columns:
        table["weight"] = _numbers_of(df["weight"])
    if "source" in df.columns:
        table["source"] = [str(s) for s in df["source"]]
    return table


def _numbers_of(column: pd.Series) -> list[float]:
    try:
        return [float(v) for v in column]
    except (TypeError, ValueError) as e:
        raise DataError(
            f"the column {column.name!r} holds what is no number ({e}); expected how much each clip counts, such as 1 or 0.5"
        ) from None


def _truth_of(column: pd.Series, what: str) -> list[bool]:
    """Booleans from booleans, 0/1 or the words a CSV holds; a word like "no" must not count as true because it is not empty."""
    words = {
        "true": True,
        "1": True,
        "1.0": True,
        "yes": True,
        "false": False,
        "0": False,
        "0.0": False,
        "no": False,
        "": False,
    }
    try:
        return [words[str(v).strip().lower()] for v in column]
    except KeyError as e:
        raise DataError(
            f"{what} {column.name!r} holds {e.args[0]!r}; expected true or false, yes or no, 1 or 0"
        ) from None
