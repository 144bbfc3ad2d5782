"""Label issues: tags that look wrong or missing, by predictions of models that were not trained on the clip.

A pair of a clip and a tag is scored by log-odds, log(p / (1 - p)):

- a given tag looks *wrong* the more, the likelier another tag is that isn't given in the same clip: the difference of
  their log-odds;
- a tag that isn't given looks *missing* the more, the likelier it is than not: its own log-odds.

A mislabelled clip mostly shows both. The difference does not change when all logits of a clip are shifted, so that
wrong tags are also found with models that were trained to rank. On digits with a tenth of the labels swapped, it found
swapped ones as often as the log loss of the clip, and more often than the difference of the probabilities.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fatai.data.labels import join_labels
from fatai.metrics._validation import check_inputs
from fatai.noisy_labels.selection import check_no_leakage, check_probs

__all__ = ["find_label_issues"]

# Probabilities are clipped this far from 0 and 1, where the logarithm is infinite.
_MIN_PROB = 1e-7


def find_label_issues(
    probs: Any, targ: Any, tags: Sequence[str], fnames: Sequence[str], *, n: int | None = None, per_clip: bool = False,
    min_score: float = 0.0, trained_on: Iterable[str] = (), out_of_fold: bool = False,
) -> pd.DataFrame:
    """Find pairs of a clip and a tag that look wrong or missing, the most suspect first.

    Parameters
    ----------
    probs
        Shape (clips, tags), within [0, 1]: from models that were not trained on the clip, such as a run's `oof.csv`.
    targ
        Shape (clips, tags), 0 and 1: the labels to check, row by row with `probs`.
    tags, fnames
        Names of the columns and rows.
    n
        Largest number of rows; None for all.
    per_clip
        True names each clip once, with its most suspect pair.
    min_score
        Pairs that score no more than this are left out; 0 leaves those that are likelier wrong than right by the
        predictions, -inf all.
    trained_on, out_of_fold
        As in `fatai.noisy_labels.selection.attach_predictions`: names of the clips that the models were trained on,
        none of `fnames` among them unless each row comes only from models that left its clip out.

    Returns
    -------
    Columns `rank` (among pairs of that tag and kind, from 1), `tag`, `kind` ("wrong" or "missing"), `fname`, `labels`
    (as given, one text), `prob` of the tag, `instead` (for a wrong tag the likeliest one that isn't given; else empty)
    and `score`. Equal scores are ordered by name, then tag.

    Raises
    ------
    DataError
        Values that are no probabilities, names that are there twice, or clips that models were trained on.
    ShapeError
        Shapes that do not fit each other or the names.

    Examples
    --------
    >>> found = find_label_issues([[0.1, 0.9], [0.8, 0.3]], [[1, 0], [1, 0]], ["Bark", "Meow"], ["a.wav", "b.wav"])
    >>> found[["kind", "tag", "fname", "prob", "instead"]].values.tolist()
    [['wrong', 'Bark', 'a.wav', 0.1, 'Meow'], ['missing', 'Meow', 'a.wav', 0.9, '']]
    """
    p, given, _ = check_inputs(check_probs(probs, fnames, tags), targ)
    check_no_leakage(fnames, trained_on, out_of_fold=out_of_fold)
    score, rival = _score_pairs(p, given)
    clips, columns = np.nonzero(score > min_score)
    wrong = given[clips, columns]
    labels = [join_labels([tag for tag, present in zip(tags, row, strict=True) if present]) for row in given]
    has_rival = wrong & ~given[clips].all(1)
    found = pd.DataFrame({
        "tag": [tags[int(k)] for k in columns],
        "kind": np.where(wrong, "wrong", "missing").astype(object),
        "fname": [fnames[int(i)] for i in clips],
        "labels": [labels[i] for i in clips],
        "prob": p[clips, columns],
        "instead": [tags[int(rival[i])] if has else "" for i, has in zip(clips, has_rival, strict=True)],
        "score": score[clips, columns],
    }).sort_values(["score", "fname", "tag"], ascending=[False, True, True], ignore_index=True)
    found.insert(0, "rank", found.groupby(["tag", "kind"]).cumcount() + 1)
    if per_clip:
        found = found.drop_duplicates("fname", ignore_index=True)
    return found if n is None else found.head(n)


def _score_pairs(probs: np.ndarray, given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the score of each pair, (clips, tags), and the likeliest tag of each clip that isn't given, (clips,)."""
    clipped = probs.clip(_MIN_PROB, 1 - _MIN_PROB)
    log_odds = np.log(clipped) - np.log1p(-clipped)
    others = np.where(given, -np.inf, log_odds)
    rival = others.argmax(1) if probs.shape[1] else np.zeros(len(probs), dtype=int)
    # A clip with every tag has no rival: its tags are compared with even odds.
    best_other = np.where(given.all(1), 0, others.max(1, initial=-np.inf))
    return np.where(given, best_other[:, None] - log_odds, log_odds), rival
