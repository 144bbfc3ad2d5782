"""What stands behind each tag's lwlrap: how sure it is, what it costs the whole, and which tags are ranked above it.

Conventions are those of `fatai.metrics.ranking`: `probs` and `targ` are (clips, tags), and a tie counts against us.

*Cost* of a tag: what lwlrap would gain if that tag alone were ranked perfectly, above all others in clips that have it and below all
others in clips that don't. Both parts concern different clips, so they add up: what is *missed*, and what is a *false alarm*. Costs of
several tags do not add up: a clip whose two tags are both ranked low is mended by either in part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from fatai.errors import OptionError, ShapeError
from fatai.metrics._validation import CheckedInputs, check_inputs
from fatai.metrics.ranking import precision_hits

__all__ = ["confusions", "tag_costs", "tag_intervals"]


def tag_intervals(
    probs: Any, targ: Any, tags: Sequence[str] | None = None, *, draws: int = 1000, level: float = 0.95, seed: int = 0,
) -> pd.DataFrame:
    """One row per tag, in order: `tag`, how many `clips` have it, its `lwlrap`, and `low` and `high`, between which it likely lies.

    The clips that have the tag are drawn again, as many as there are, `draws` times; the interval holds the share `level` of the means. The
    one clip of a tag says nothing about others: its interval is that clip alone. Tags without clips have NaN.

    Errors are those of `fatai.metrics.ranking.lwlrap`, and an `OptionError` for no draw or a level that is not between 0 and 1.

    Examples
    --------
    >>> tag_intervals([[0.9, 0.1], [0.2, 0.8], [0.7, 0.4]], [[1, 0], [0, 1], [0, 1]], ["Bark", "Meow"]).values.tolist()
    [['Bark', 1, 1.0, 1.0, 1.0], ['Meow', 2, 0.75, 0.5, 1.0]]
    """
    if draws < 1 or not 0 < level < 1:
        raise OptionError(
            f"draws is {draws} and level {level}; expected at least one draw and a level between 0 and 1, such as 0.95"
        )
    both = check_inputs(probs, targ)
    hits, rng = precision_hits(*both[:2]), np.random.default_rng(seed)
    rows = []
    for k, tag in enumerate(_names(both, tags)):
        own = hits.precision[hits.tags == k]
        if len(own):
            means = own[rng.integers(len(own), size=(draws, len(own)))].mean(axis=1)
            low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], method="nearest")
            rows.append((tag, len(own), own.mean(), low, high))
        else:
            rows.append((tag, 0, np.nan, np.nan, np.nan))
    return pd.DataFrame(rows, columns=["tag", "clips", "lwlrap", "low", "high"])


def tag_costs(probs: Any, targ: Any, tags: Sequence[str] | None = None) -> pd.DataFrame:
    """One row per tag, in order: `tag`, `clips`, and what lwlrap would gain were it ranked perfectly: `missed`, `false_alarms`, `cost`.

    `cost` is the sum of the other two. All are 0 if no clip has any tag.

    Examples
    --------
    The second clip's tag ranks second, below the first tag, which isn't there; either one's perfection would give that clip 1, not 1/2:

    >>> tag_costs([[0.9, 0.1], [0.8, 0.2]], [[1, 0], [0, 1]], ["Bark", "Meow"]).values.tolist()
    [['Bark', 1, 0.0, 0.25, 0.25], ['Meow', 1, 0.25, 0.0, 0.25]]
    """
    both = check_inputs(probs, targ)
    clips, own = np.divmod(both.places, max(both.scores.shape[1], 1))
    # One row for each pair of a clip and a tag that it has.
    scores, present = both.scores[clips], both.present[clips]
    above = scores >= both.scores.ravel()[both.places][:, None]
    rank, right = above.sum(axis=1, keepdims=True), (above & present).sum(axis=1, keepdims=True)
    precision = right / rank
    # An absent tag that leaves makes the rank one better; a present one that arrives makes the rank and what is right one more.
    relieved = np.divide(right, rank - 1, out=np.ones(precision.shape), where=rank > 1) - precision
    arrived = (right + 1) / (rank + 1) - precision
    false_alarms = np.where(above & ~present, relieved, 0).sum(axis=0)
    missed = np.where(present & ~above, arrived, 0).sum(axis=0)
    missed += np.bincount(own, weights=1 - precision[:, 0], minlength=len(missed))
    pairs = max(len(own), 1)
    table = pd.DataFrame({"tag": _names(both, tags), "clips": both.present.sum(axis=0), "missed": missed / pairs,
                          "false_alarms": false_alarms / pairs})
    return table.assign(cost=table["missed"] + table["false_alarms"])


def confusions(probs: Any, targ: Any, tags: Sequence[str] | None = None) -> pd.DataFrame:
    """Which tags that a clip doesn't have are ranked above those that it has, most often first.

    Returns
    -------
    A row for each pair that happens: `tag` is there, `above` is not and yet ranks as high or higher, in `clips` of the `of` clips that have
    `tag` and lack `above`; their `share`; and in how many clips both are there, `together`. Where two tags often go together, a confusion
    may be a label that was forgotten. Equal rows go by share, then by name.

    Examples
    --------
    >>> confusions([[0.9, 0.1], [0.8, 0.2], [0.9, 0.8]], [[1, 0], [0, 1], [1, 1]], ["Bark", "Meow"]).values.tolist()
    [['Meow', 'Bark', 1, 1, 1.0, 1]]
    """
    both = check_inputs(probs, targ)
    names = np.array(_names(both, tags), dtype=object)
    present = both.present
    # (tag, above): clips that have the first, lack the second, and rank it as high.
    clips = np.array([((both.scores[rows] >= both.scores[rows][:, [k]]) & ~present[rows]).sum(axis=0)
                      for k, rows in enumerate(present.T)], dtype=int).reshape(len(names), len(names))
    together = present.T.astype(int) @ present.astype(int)
    of = present.sum(axis=0)[:, None] - together
    at = np.nonzero(clips)
    table = pd.DataFrame(
        {
            "tag": names[at[0]],
            "above": names[at[1]],
            "clips": clips[at],
            "of": of[at],
            "share": clips[at] / of[at],
            "together": together[at],
        }
    )
    return table.sort_values(
        ["clips", "share", "tag", "above"], ascending=[False, False, True, True], ignore_index=True
    )


def _names(both: CheckedInputs, tags: Sequence[str] | None) -> list[Any]:
    n_tags = both.present.shape[1]
    names = list(range(n_tags)) if tags is None else list(tags)
    if len(names) != n_tags:
        raise ShapeError(f"there are {len(names)} names of tags; probs has {n_tags} columns")
    return names
