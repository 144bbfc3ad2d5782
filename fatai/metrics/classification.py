"""Metrics of each tag as a binary classification: average precision, area under the ROC curve, d-prime.

Each depends on the order of the clips within a tag, which lwlrap does not (see `fatai.metrics.ranking`): a monotone
change of one tag's scores over all clips has no effect, a change within one clip has one. `probs` and `targ` are
(clips, tags), as in `fatai.metrics._validation`.

- *Average precision*: for each clip with the tag, the fraction of clips with it among those that score at least as
high; then the mean.
  mAP is its mean over tags.
- *AUC*: the probability that a clip with the tag scores higher than one without; a tie counts one half.
- *d-prime*: sqrt(2) times the normal quantile of the AUC, the distance of two normal distributions of that AUC.

"macro" is the mean over the tags for which the value exists (both kinds of clips for AUC and d-prime, one with the tag
for mAP), while "micro" takes all (clip, tag) pairs as those of a single tag. d-prime is that of the mean AUC, as is
usual for AudioSet, not a mean of d-primes, which one perfect tag would make infinite. The order of columns and rows has
no effect on ties. All equal scikit-learn's `average_precision_score` and `roc_auc_score`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from fatai.errors import OptionError, ShapeError
from fatai.io.lazy import pandas as pd
from fatai.io.lazy import special
from fatai.metrics._validation import CheckedInputs, check_inputs
from fatai.metrics.ranking import lwlrap, lwlrap_per_class

__all__ = ["d_prime", "mean_ap", "roc_auc", "tag_scores"]

Average: TypeAlias = Literal["macro", "micro"]


def mean_ap(probs: Any, targ: Any, *, average: Average = "macro") -> float:
    """Compute the mean average precision, in [0, 1]; NaN if no clip has any tag.

    Parameters
    ----------
    probs, targ
        Shape (clips, tags), as in `fatai.metrics.ranking.lwlrap`, whose errors are raised.
    average
        "macro" for the mean over tags, "micro" for all (clip, tag) pairs as one tag.

    Examples
    --------
    Clips with the first tag rank first and third (1/1 and 2/3), the one with the second tag ranks second (1/2):

    >>> round(mean_ap([[0.9, 0.1], [0.5, 0.7], [0.4, 0.5]], [[1, 0], [0, 0], [1, 1]]), 4)
    0.6667
    """
    return mean_without_nan(SortedScores(check_inputs(probs, targ), average).average_precision())


def roc_auc(probs: Any, targ: Any, *, average: Average = "macro") -> float:
    """Compute the area under the ROC curve, in [0, 1], one half for chance.

    NaN if no tag has both clips with and without it.

    Parameters and errors are those of `mean_ap`, with `probs` and `targ` of shape (clips, tags).

    Examples
    --------
    >>> roc_auc([[0.9, 0.1], [0.5, 0.7], [0.4, 0.5]], [[1, 0], [0, 0], [1, 1]])
    0.5
    """
    return mean_without_nan(SortedScores(check_inputs(probs, targ), average).auc())


def d_prime(probs: Any, targ: Any, *, average: Average = "macro") -> float:
    """Compute the sensitivity index of the mean AUC: 0 for chance, infinite for a perfect order, NaN if `roc_auc` is.

    Parameters and errors are those of `mean_ap`, with `probs` and `targ` of shape (clips, tags).
    """
    return auc_to_d_prime(roc_auc(probs, targ, average=average))


def tag_scores(probs: Any, targ: Any, tags: Sequence[str] | None = None) -> pd.DataFrame:
    """Compute all metrics of each tag.

    Parameters
    ----------
    probs, targ
        Shape (clips, tags), as in `fatai.metrics.ranking.lwlrap`, whose errors are raised.
    tags
        Names of the columns; their indices if None.

    Returns
    -------
    A row per tag, in order: `tag`, number of `clips`, `lwlrap`, its `weight` in the overall lwlrap, `ap`, `auc` and
    `d_prime`. NaN if the value does not exist: all of them for a tag of no clip, AUC and d-prime also for a tag of
    every clip.
    """
    checked = check_inputs(probs, targ)
    n_tags = checked.present.shape[1]
    names = list(range(n_tags)) if tags is None else list(tags)
    if len(names) != n_tags:
        raise ShapeError(f"there are {len(names)} names of tags; probs has {n_tags} columns")
    clips, in_order = checked.present.sum(axis=0), SortedScores(checked, "macro")
    scores, weight = lwlrap_per_class(*checked[:2])
    auc = in_order.auc()
    return pd.DataFrame({"tag": names, "clips": clips, "lwlrap": np.where(clips > 0, scores, np.nan), "weight": weight,
                         "ap": in_order.average_precision(), "auc": auc, "d_prime": math.sqrt(2) * special.ndtri(auc)})


def main_metric(n_tags: int) -> Literal["lwlrap", "map"]:
    """Return the name of the metric that epochs are selected by and runs are reported with.

    It is lwlrap, but with one tag, for which lwlrap is always 1, mean average precision.
    """
    return "map" if n_tags == 1 else "lwlrap"


def main_score(probs: Any, targ: Any) -> float:
    """Compute the `main_metric` of predictions; parameters, range and errors are those of `mean_ap`."""
    score = lwlrap if main_metric(np.shape(probs)[-1] if np.ndim(probs) else 0) == "lwlrap" else mean_ap
    return score(probs, targ)


def check_average(average: Average) -> Average:
    """Return `average`; raise an `OptionError` if it is neither "macro" nor "micro"."""
    if average not in ("macro", "micro"):
        raise OptionError(f"average is {average!r}; expected 'macro' (mean over tags) or 'micro' (all tags as one)")
    return average


def auc_to_d_prime(auc: float) -> float:
    """Return the d-prime of two normal distributions of equal variance whose area under the ROC curve is `auc`."""
    return float(math.sqrt(2) * special.ndtri(auc))


class SortedScores:
    """Clips sorted once by the scores of each tag, for metrics with any number of different weights of the clips.

    Parameters
    ----------
    checked
        Scores and present tags, (clips, tags).
    average
        "macro" for one row per tag; "micro" for a single row of all (clip, tag) pairs.
    """

    def __init__(self, checked: CheckedInputs, average: Average = "macro"):
        scores, present = (
            x.T if check_average(average) == "macro" else x.reshape(1, -1) for x in checked[:2]
        )  # (rows, n)
        self.n_clips, (n_rows, n) = len(checked.scores), scores.shape
        order = np.argsort(scores, axis=1)[:, ::-1]
        self.clips = order if average == "macro" else order // checked.scores.shape[1]
        in_order = np.take_along_axis(scores, order, axis=1)
        # From here on one entry for each present tag, by row, then column.
        self.rows, columns = np.nonzero(np.take_along_axis(present, order, axis=1))
        self.entry_clips = self.clips[self.rows, columns]
        starts = np.ones((n_rows, n), dtype=bool)  # of runs of tied scores, which are numbered over all rows
        starts[:, 1:] = in_order[:, 1:] != in_order[:, :-1]
        bounds = np.append(np.flatnonzero(starts), n_rows * n)
        run = np.searchsorted(bounds, self.rows * n + columns, side="right")
        # Number of clips of the row before the entry's run, and up to its end; the same for entries, and the row's
        # first entry.
        self.n_before, self.n_through = (bounds[run - k] - self.rows * n for k in (1, 0))
        self.entries_before, self.entries_through = (
            np.searchsorted(run, run, side=side) for side in ("left", "right")
        )
        self.first_entries = np.searchsorted(self.rows, self.rows)

    def average_precision(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Compute the average precision of each row.

        Parameters
        ----------
        weights
            Shape (clips,): weight of each clip, 1 if None.

        Returns
        -------
        Shape (rows,); NaN if no clip with a weight has the tag.
        """
        entry_weights, cumulative, cumulative_entries = self._sums(weights)
        hits = cumulative_entries[self.entries_through] - cumulative_entries[self.first_entries]
        precision = _divide(hits, cumulative[self.rows, self.n_through], empty=0)
        return _divide(self._sum_rows(entry_weights * precision), self._sum_rows(entry_weights))

    def auc(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Compute the area under the ROC curve of each row.

        Parameters
        ----------
        weights
            Shape (clips,): weight of each clip, 1 if None.

        Returns
        -------
        Shape (rows,); NaN if no clip with a weight has the tag, or all have it.
        """
        entry_weights, cumulative, cumulative_entries = self._sums(weights)
        present = self._sum_rows(entry_weights)
        absent = cumulative[:, -1] - present
        higher, as_high = (
            cumulative[self.rows, n] - cumulative_entries[entries] + cumulative_entries[self.first_entries]
            for n, entries in ((self.n_before, self.entries_before), (self.n_through, self.entries_through))
        )
        # A tie with an absent tag counts one half.
        in_order = absent[self.rows] - (higher + as_high) / 2
        return _divide(self._sum_rows(entry_weights * in_order), present * absent)

    def _sums(self, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the weights of the entries, and cumulative weights.

        Those are sums over each row's first k clips, shape (rows, n + 1), and over the first k entries, shape (entries
        + 1,).
        """
        weights = np.ones(self.n_clips) if weights is None else weights
        cumulative = np.zeros((self.clips.shape[0], self.clips.shape[1] + 1))
        np.cumsum(weights[self.clips], axis=1, out=cumulative[:, 1:])
        entry_weights = weights[self.entry_clips]
        return entry_weights, cumulative, np.concatenate([[0.0], np.cumsum(entry_weights)])

    def _sum_rows(self, values: np.ndarray) -> np.ndarray:
        """Sum the values (entries,) of each row, shape (rows,)."""
        return np.bincount(self.rows, weights=values, minlength=len(self.clips))


def _divide(a: np.ndarray, b: np.ndarray, empty: float = np.nan) -> np.ndarray:
    """Return a / b, of any equal shape, with `empty` where b is 0."""
    return np.divide(a, b, out=np.full(b.shape, empty, dtype=float), where=b != 0)


def mean_without_nan(values: np.ndarray) -> float:
    """Return the mean of the values (n,) that are not NaN; NaN if there are none."""
    existing = values[~np.isnan(values)]
    return float(existing.mean()) if len(existing) else math.nan
