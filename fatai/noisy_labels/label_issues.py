"""Clips whose labels look wrong or missing, by what models that never saw them think.

A pair of a clip and a tag is suspect by log-odds, log(p / (1 - p)):

- a given tag looks *wrong* as far as another tag, that isn't given, is likelier in the same clip: the difference of their log-odds;
- a tag that isn't given looks *missing* as far as it is likelier than not: its own log-odds.

A mislabelled clip mostly shows both. The difference is what a clip-wide shift of the logits leaves alone, so that wrong tags are found in
models that were trained to rank as well. On digits with a tenth of the labels swapped, it found swapped ones as often as the log loss of
the clip, and more often than the difference of the probabilities.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fatai.data.labels import join_labels
from fatai.metrics._validation import check_inputs
from fatai.noisy_labels.selection import check_no_leakage, checked_probs

__all__ = ["find_label_issues"]

_LEAST = 1e-7


def find_label_issues(
    probs: Any, targ: Any, tags: Sequence[str], fnames: Sequence[str], *, n: int | None = None, per_clip: bool = False,
    least: float = 0.0, trained_on: Iterable[str] = (), out_of_fold: bool = False,
) -> pd.DataFrame:
    """Pairs of a clip and a tag that look wrong or missing, the most suspect first.

    Parameters
    ----------
    probs
        Shape (clips, tags), within [0, 1]: from models that didn't train on the clip, such as a run's `oof.csv`.
    targ
        Shape (clips, tags), 0 and 1: the labels in doubt, row by row with `probs`.
    tags, fnames
        Names of the columns and rows.
    n
        At most so many rows; None for all.
    per_clip
        Whether to name each clip once, by its most suspect pair.
    least
        Pairs that score no more than this are left out; 0 leaves those that the models find likelier wrong than right. -inf leaves all.
    trained_on, out_of_fold
        As in `fatai.noisy_labels.selection.judge`: names of the clips that the models trained on, none of `fnames` among them, unless each row comes
        only from models that left its clip out.

    Returns
    -------
    Columns `rank` (among pairs of that tag and kind, from 1), `tag`, `kind` ("wrong" or "missing"), `fname`, `labels` (as given, one text),
    `prob` of the tag, `instead` (for a wrong tag the likeliest one that isn't given; else empty) and `score`. Equal scores go by name,
    then tag.

    Raises
    ------
    DataError
        Values that are no probabilities, names that are there twice, or clips that models trained on.
    ShapeError
        Shapes that do not fit each other or the names.

    Examples
    --------
    >>> found = find_label_issues([[0.1, 0.9], [0.8, 0.3]], [[1, 0], [1, 0]], ["Bark", "Meow"], ["a.wav", "b.wav"])
    >>> found[["kind", "tag", "fname", "prob", "instead"]].values.tolist()
    [['wrong', 'Bark', 'a.wav', 0.1, 'Meow'], ['missing', 'Meow', 'a.wav', 0.9, '']]
    """
    p, given, _ = check_inputs(checked_probs(probs, fnames, tags), targ)
    check_no_leakage(fnames, trained_on, out_of_fold=out_of_fold)
    clipped = p.clip(_LEAST, 1 - _LEAST)
    log_odds = np.log(clipped) - np.log1p(-clipped)
    others = np.where(given, -np.inf, log_odds)
    rival = others.argmax(1) if len(tags) else np.zeros(len(p), dtype=int)
    # A clip with every tag has no rival: its tags are measured against being as likely as not.
    best_other = np.where(given.all(1), 0, others.max(1, initial=-np.inf))
    score = np.where(given, best_other[:, None] - log_odds, log_odds)
    clips, columns = np.nonzero(score > least)
    wrong = given[clips, columns]
    labels = [join_labels([tag for tag, there in zip(tags, row) if there]) for row in given]
    found = pd.DataFrame({
        "tag": [tags[int(k)] for k in columns],
        "kind": np.where(wrong, "wrong", "missing").astype(object),
        "fname": [fnames[int(i)] for i in clips],
        "labels": [labels[i] for i in clips],
        "prob": p[clips, columns],
        "instead": [tags[int(rival[i])] if w and not given[i].all() else "" for i, w in zip(clips, wrong)],
        "score": score[clips, columns],
    }).sort_values(["score", "fname", "tag"], ascending=[False, True, True], ignore_index=True)
    found.insert(0, "rank", found.groupby(["tag", "kind"]).cumcount() + 1)
    if per_clip:
        found = found.drop_duplicates("fname", ignore_index=True)
    return found if n is None else found.head(n)
