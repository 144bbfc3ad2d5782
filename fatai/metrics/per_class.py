"""Analysis of the lwlrap of each tag: confidence intervals, the cost of errors, and confusions.

Conventions are those of `fatai.metrics.ranking`: `probs` and `targ` are (clips, tags), and a tie counts against the
prediction.

*Cost* of a tag: the gain of lwlrap if that tag alone were ranked perfectly, above all others in clips that have it and
below all others in clips that don't. Both parts concern different clips, so they add up: *missed* tags and *false
alarms*. Costs of several tags do not add up: if both tags of a clip are ranked low, correcting either one recovers a
part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fatai.errors import ShapeError
from fatai.io.lazy import pandas as pd
from fatai.metrics._validation import CheckedInputs, check_inputs
from fatai.metrics.bootstrap import check_resampling
from fatai.metrics.ranking import precision_hits

__all__ = ["confusions", "tag_costs", "tag_intervals"]


def tag_intervals(
    probs: Any,
    targ: Any,
    tags: Sequence[str] | None = None,
    *,
    n_resamples: int = 1000,
    confidence_level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Compute the lwlrap of each tag and its confidence interval.

    The clips of the tag are resampled with replacement. The interval of a tag with one clip is that clip's precision.

    Parameters
    ----------
    probs, targ
        Shape (clips, tags), as in `fatai.metrics.ranking.lwlrap`, whose errors are raised.
    tags
        Names of the columns; their indices if None.
    n_resamples, confidence_level, seed
        As in `fatai.metrics.bootstrap.score_interval`.

    Returns
    -------
    A row per tag, in order: `tag`, number of `clips`, `lwlrap`, and the ends of the interval, `low` and `high`; NaN for
    tags without clips.

    Raises
    ------
    OptionError
        If an option is out of range.

    Examples
    --------
    >>> tag_intervals([[0.9, 0.1], [0.2, 0.8], [0.7, 0.4]], [[1, 0], [0, 1], [0, 1]], ["Bark", "Meow"]).values.tolist()
    [['Bark', 1, 1.0, 1.0, 1.0], ['Meow', 2, 0.75, 0.5, 1.0]]
    """
    check_resampling(n_resamples, confidence_level)
    checked = check_inputs(probs, targ)
    hits, rng = precision_hits(*checked[:2]), np.random.default_rng(seed)
    ends = [(1 - confidence_level) / 2, (1 + confidence_level) / 2]
    rows = []
    for k, tag in enumerate(_names(checked, tags)):
        precision = hits.precision[hits.tags == k]
        n = len(precision)
        if n:
            means = precision[rng.integers(n, size=(n_resamples, n))].mean(axis=1)
            rows.append((tag, n, precision.mean(), *np.quantile(means, ends, method="nearest")))
        else:
            rows.append((tag, 0, np.nan, np.nan, np.nan))
    return pd.DataFrame(rows, columns=["tag", "clips", "lwlrap", "low", "high"])


def tag_costs(probs: Any, targ: Any, tags: Sequence[str] | None = None) -> pd.DataFrame:
    """Compute the gain of lwlrap if each tag alone were ranked perfectly.

    Parameters
    ----------
    probs, targ
        Shape (clips, tags), as in `fatai.metrics.ranking.lwlrap`, whose errors are raised.
    tags
        Names of the columns; their indices if None.

    Returns
    -------
    A row per tag, in order: `tag`, number of `clips`, and the gains `missed`, `false_alarms` and their sum, `cost`; 0
    if no clip has a tag.

    Examples
    --------
    The second clip's tag ranks second, below the absent first tag; perfection of either one would raise the clip from
    1/2 to 1:

    >>> tag_costs([[0.9, 0.1], [0.8, 0.2]], [[1, 0], [0, 1]], ["Bark", "Meow"]).values.tolist()
    [['Bark', 1, 0.0, 0.25, 0.25], ['Meow', 1, 0.25, 0.0, 0.25]]
    """
    checked = check_inputs(probs, targ)
    clips, pair_tags = np.divmod(checked.positives, max(checked.scores.shape[1], 1))
    # One row for each (clip, present tag) pair.
    scores, present = checked.scores[clips], checked.present[clips]
    at_least = scores >= checked.scores.ravel()[checked.positives][:, None]
    rank, hits = at_least.sum(axis=1, keepdims=True), (at_least & present).sum(axis=1, keepdims=True)
    precision = hits / rank
    # Without an absent tag above, the rank improves by one; with a present tag moved above, rank and hits increase by
    # one.
    gain_without = np.divide(hits, rank - 1, out=np.ones(precision.shape), where=rank > 1) - precision
    gain_with = (hits + 1) / (rank + 1) - precision
    false_alarms = np.where(at_least & ~present, gain_without, 0).sum(axis=0)
    missed = np.where(present & ~at_least, gain_with, 0).sum(axis=0)
    missed += np.bincount(pair_tags, weights=1 - precision[:, 0], minlength=len(missed))
    n_pairs = max(len(pair_tags), 1)
    table = pd.DataFrame({"tag": _names(checked, tags), "clips": checked.present.sum(axis=0),
                          "missed": missed / n_pairs, "false_alarms": false_alarms / n_pairs})
    return table.assign(cost=table["missed"] + table["false_alarms"])


def confusions(probs: Any, targ: Any, tags: Sequence[str] | None = None) -> pd.DataFrame:
    """List the pairs of tags of which the absent one ranks as high as the present one or higher, most frequent first.

    Where two tags often occur together, a confusion may be a missing label.

    Parameters
    ----------
    probs, targ
        Shape (clips, tags), as in `fatai.metrics.ranking.lwlrap`, whose errors are raised.
    tags
        Names of the columns; their indices if None.

    Returns
    -------
    A row per pair that occurs: the present `tag` and the absent one `above` it; the number of `clips`; the `total` of
    clips that have `tag` and lack `above`; the `fraction` of these; and the number of clips with `both` tags. Equal
    numbers are sorted by fraction, then by name.

    Examples
    --------
    >>> confusions([[0.9, 0.1], [0.8, 0.2], [0.9, 0.8]], [[1, 0], [0, 1], [1, 1]], ["Bark", "Meow"]).values.tolist()
    [['Meow', 'Bark', 1, 1, 1.0, 1]]
    """
    checked = check_inputs(probs, targ)
    names = np.array(_names(checked, tags), dtype=object)
    clips, both = _confusion_counts(checked)
    total = checked.present.sum(axis=0)[:, None] - both
    at = np.nonzero(clips)
    table = pd.DataFrame(
        {
            "tag": names[at[0]],
            "above": names[at[1]],
            "clips": clips[at],
            "total": total[at],
            "fraction": clips[at] / total[at],
            "both": both[at],
        }
    )
    order = {"clips": False, "fraction": False, "tag": True, "above": True}
    return table.sort_values(list(order), ascending=list(order.values()), ignore_index=True)


def _confusion_counts(checked: CheckedInputs) -> tuple[np.ndarray, np.ndarray]:
    """Count clips of each (present tag, other tag), two tables (tags, tags): ranked as high, absent; both present."""
    scores, present = checked.scores, checked.present
    clips = [
        ((scores[rows] >= scores[rows][:, [k]]) & ~present[rows]).sum(axis=0) for k, rows in enumerate(present.T)
    ]
    n_tags = present.shape[1]
    return np.array(clips, dtype=int).reshape(n_tags, n_tags), present.T.astype(int) @ present.astype(int)


def _names(checked: CheckedInputs, tags: Sequence[str] | None) -> list[Any]:
    n_tags = checked.present.shape[1]
    names = list(range(n_tags)) if tags is None else list(tags)
    if len(names) != n_tags:
        raise ShapeError(f"there are {len(names)} names of tags; probs has {n_tags} columns")
    return names
