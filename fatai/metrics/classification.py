"""How well the clips of a tag are found: average precision, area under the ROC curve, d-prime.

Each reads the order of clips within a tag, which lwlrap does not (see `fatai.metrics.ranking`): a monotone change of one tag's scores over
all clips is neutral, a change within one clip is not. `probs` and `targ` are (clips, tags), as in `fatai.metrics._validation`.

- *Average precision*: for each clip that has the tag, the share of clips with it among those that score at least as high; then the mean.
  mAP is its mean over tags.
- *AUC*: the chance that a clip with the tag scores higher than one without; a tie counts one half.
- *d-prime*: sqrt(2) times the normal quantile of the AUC, the distance of two normal distributions of that AUC.

"macro" is the mean over the tags for which the value exists (both kinds of clips for AUC and d-prime, one with the tag for mAP), while
"micro" takes all (clip, tag) pairs as those of a single tag. d-prime is that of the mean AUC, as is usual for AudioSet, not a mean of
d-primes, which one perfect tag would make infinite. Ties are decided by nobody's column or row. All equal scikit-learn's
`average_precision_score` and `roc_auc_score`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from scipy.special import ndtri

from fatai.errors import OptionError, ShapeError
from fatai.metrics._validation import CheckedInputs, check_inputs
from fatai.metrics.ranking import lwlrap_per_class

__all__ = ["d_prime", "mean_ap", "roc_auc", "tag_scores"]

Average: TypeAlias = Literal["macro", "micro"]


def mean_ap(probs: Any, targ: Any, *, average: Average = "macro") -> float:
    """Mean average precision, in [0, 1]; NaN if no clip has any tag. Errors are those of `fatai.metrics.ranking.lwlrap`.

    Examples
    --------
    Clips with the first tag come first and third (1/1 and 2/3), the one with the second comes second (1/2):

    >>> round(mean_ap([[0.9, 0.1], [0.5, 0.7], [0.4, 0.5]], [[1, 0], [0, 0], [1, 1]]), 4)
    0.6667
    """
    return mean_of_existing(Sorted(check_inputs(probs, targ), average).average_precision())


def roc_auc(probs: Any, targ: Any, *, average: Average = "macro") -> float:
    """Area under the ROC curve, in [0, 1], one half for chance; NaN if no tag has both clips with and without it.

    Examples
    --------
    >>> roc_auc([[0.9, 0.1], [0.5, 0.7], [0.4, 0.5]], [[1, 0], [0, 0], [1, 1]])
    0.5
    """
    return mean_of_existing(Sorted(check_inputs(probs, targ), average).auc())


def d_prime(probs: Any, targ: Any, *, average: Average = "macro") -> float:
    """Sensitivity index of the mean AUC: 0 for chance, infinite where nothing is out of order; NaN where `roc_auc` is."""
    return d_prime_of(roc_auc(probs, targ, average=average))


def tag_scores(probs: Any, targ: Any, tags: Sequence[str] | None = None) -> pd.DataFrame:
    """One row per tag, in order: `tag`, how many `clips` have it, `lwlrap`, its `weight` in that, `ap`, `auc` and `d_prime`.

    What does not exist for a tag is NaN: all of them where no clip has it, AUC and d-prime also where every clip has it.

    Parameters
    ----------
    tags
        Names of the columns; their numbers if None.
    """
    both = check_inputs(probs, targ)
    n_tags = both.present.shape[1]
    names = list(range(n_tags)) if tags is None else list(tags)
    if len(names) != n_tags:
        raise ShapeError(f"there are {len(names)} names of tags; probs has {n_tags} columns")
    clips, in_order = both.present.sum(axis=0), Sorted(both, "macro")
    lwlrap, weight = lwlrap_per_class(*both[:2])
    auc = in_order.auc()
    return pd.DataFrame({"tag": names, "clips": clips, "lwlrap": np.where(clips > 0, lwlrap, np.nan), "weight": weight,
                         "ap": in_order.average_precision(), "auc": auc, "d_prime": math.sqrt(2) * ndtri(auc)})


def check_average(average: Average) -> Average:
    """`average`, or an `OptionError` if it is none."""
    if average not in ("macro", "micro"):
        raise OptionError(f"average is {average!r}; expected 'macro' (mean over tags) or 'micro' (all tags as one)")
    return average


def d_prime_of(auc: float) -> float:
    """d-prime of two normal distributions of equal spread whose area under the ROC curve is `auc`."""
    return float(math.sqrt(2) * ndtri(auc))


class Sorted:
    """Clips in falling order of each tag's scores: sorted once, measured for as many weights of the clips as wanted.

    Parameters
    ----------
    both
        Scores and present tags, (clips, tags).
    average
        "macro" for one row per tag; "micro" for a single row of all (clip, tag) pairs.
    """

    def __init__(self, both: CheckedInputs, average: Average = "macro"):
        scores, present = (
            x.T if check_average(average) == "macro" else x.reshape(1, -1) for x in both[:2]
        )  # (rows, n)
        self.n_clips, (n_rows, n) = len(both.scores), scores.shape
        order = np.argsort(scores, axis=1)[:, ::-1]
        self.clips = order if average == "macro" else order // both.scores.shape[1]
        in_order = np.take_along_axis(scores, order, axis=1)
        # One entry for each present tag from here on, by row, then place.
        self.rows, places = np.nonzero(np.take_along_axis(present, order, axis=1))
        self.own_clips = self.clips[self.rows, places]
        starts = np.ones((n_rows, n), dtype=bool)  # of runs of tied scores, which are numbered over all rows
        starts[:, 1:] = in_order[:, 1:] != in_order[:, :-1]
        bounds = np.append(np.flatnonzero(starts), n_rows * n)
        run = np.searchsorted(bounds, self.rows * n + places, side="right")
        # How many clips of its row come before its run, and up to the end of that; likewise of the entries, with where its row begins.
        self.before, self.upto = (bounds[run - k] - self.rows * n for k in (1, 0))
        self.entries_before, self.entries_upto = (np.searchsorted(run, run, side=side) for side in ("left", "right"))
        self.row_begins = np.searchsorted(self.rows, self.rows)

    def average_precision(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Of each row; each clip counts `weights` times, shape (clips,), by default once. NaN where no clip that counts has the tag."""
        own, everything, with_tag = self._sums(weights)
        right = with_tag[self.entries_upto] - with_tag[self.row_begins]
        precision = _divided(right, everything[self.rows, self.upto], empty=0)
        return _divided(self._by_row(own * precision), self._by_row(own))

    def auc(self, weights: np.ndarray | None = None) -> np.ndarray:
        """As `average_precision`; NaN also where every clip that counts has the tag."""
        own, everything, with_tag = self._sums(weights)
        present = self._by_row(own)
        absent = everything[:, -1] - present
        higher, as_high = (everything[self.rows, upto] - with_tag[entries] + with_tag[self.row_begins]
                           for upto, entries in ((self.before, self.entries_before), (self.upto, self.entries_upto)))
        # Of the absent, those that tie are half beaten.
        return _divided(self._by_row(own * (absent[self.rows] - (higher + as_high) / 2)), present * absent)

    def _sums(self, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights of the entries; sums of the weights of each row's first k clips, (rows, n + 1); of those of the first k entries."""
        weights = np.ones(self.n_clips) if weights is None else weights
        everything = np.zeros((self.clips.shape[0], self.clips.shape[1] + 1))
        np.cumsum(weights[self.clips], axis=1, out=everything[:, 1:])
        own = weights[self.own_clips]
        return own, everything, np.concatenate([[0.0], np.cumsum(own)])

    def _by_row(self, values: np.ndarray) -> np.ndarray:
        """Sum of the entries' values of each row."""
        return np.bincount(self.rows, weights=values, minlength=len(self.clips))


def _divided(a: np.ndarray, b: np.ndarray, empty: float = np.nan) -> np.ndarray:
    """a / b, and `empty` where b is 0."""
    return np.divide(a, b, out=np.full(b.shape, empty, dtype=float), where=b != 0)


def mean_of_existing(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN if none is."""
    exist = values[~np.isnan(values)]
    return float(exist.mean()) if len(exist) else math.nan
