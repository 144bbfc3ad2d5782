"""How well the tags of a clip are ordered: lwlrap.

*lwlrap* (label-weighted label-ranking average precision): for each tag that is present in a clip, the share of present tags among
those ranked at or above it; then the mean over all (clip, present tag) pairs. It is the competition's score, and reads the order
within a clip only: a monotone change of one clip's scores is neutral, a change of one tag's scores over all clips is not. How clips are
ordered within a tag is what `fatai.metrics.classification` measures.

Ties
----
The competition's own code sorts each clip with `argsort`, so tied scores are ordered by their column. Here a tie counts against us: a
tag's rank is the number of tags that score at least as high. That equals scikit-learn's `label_ranking_average_precision_score` with
each clip weighted by its number of tags, and the competition's value where nothing is tied. Clips without a tag are left out, as in both.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fatai.metrics._validation import check_inputs

__all__ = ["LwlrapPerClass", "lwlrap", "lwlrap_per_class"]


class LwlrapPerClass(NamedTuple):
    """Score and weight of each tag; `(scores * weights).sum()` is the overall lwlrap.

    A tag that no clip has is given score 0 and weight 0.
    """

    scores: np.ndarray
    weights: np.ndarray


class PrecisionHits(NamedTuple):
    """One entry for each (clip, present tag) pair, by clip, then tag: which clip, which tag, and the precision at that tag's rank."""

    clips: np.ndarray
    tags: np.ndarray
    precision: np.ndarray


def lwlrap(probs: Any, targ: Any) -> float:
    """Label-weighted label-ranking average precision over all clips, in [0, 1]; the share of tags that come first when clips have one tag.

    Parameters
    ----------
    probs
        Shape (clips, tags): scores, higher is more likely; infinite ones are fine.
    targ
        Shape (clips, tags): 0 and 1.

    Returns
    -------
    The mean precision over all present tags; NaN if no clip has any.

    Raises
    ------
    ShapeError
        If the shapes differ or are not (clips, tags).
    DataError
        If `probs` holds NaN or `targ` something other than 0 and 1.

    Examples
    --------
    The tag of the first clip ranks first (1/1), that of the second clip ranks second (1/2):

    >>> lwlrap([[0.9, 0.1, 0.2], [0.4, 0.8, 0.1]], [[1, 0, 0], [1, 0, 0]])
    0.75
    """
    precision = precision_hits(probs, targ).precision
    return float(precision.mean()) if len(precision) else float("nan")


def lwlrap_per_class(probs: Any, targ: Any) -> LwlrapPerClass:
    """The lwlrap of each tag over the clips that have it, and the tag's share of all present tags.

    Parameters and errors are those of `lwlrap`.

    Examples
    --------
    >>> scores, weights = lwlrap_per_class([[0.9, 0.1, 0.2], [0.4, 0.8, 0.1]], [[1, 0, 0], [1, 1, 0]])
    >>> scores.tolist(), weights.round(3).tolist()
    ([1.0, 1.0, 0.0], [0.667, 0.333, 0.0])
    """
    hits, n_tags = precision_hits(probs, targ), np.shape(probs)[1]
    counts = np.bincount(hits.tags, minlength=n_tags)
    sums = np.bincount(hits.tags, weights=hits.precision, minlength=n_tags)
    return LwlrapPerClass(sums / np.maximum(counts, 1), counts / max(int(counts.sum()), 1))


def precision_hits(probs: Any, targ: Any) -> PrecisionHits:
    """The pairs of which lwlrap is the mean; parameters and errors are those of `lwlrap`."""
    scores, _, places = check_inputs(probs, targ)
    n_clips, n_tags = scores.shape
    clips, tags = np.divmod(places, max(n_tags, 1))
    per_clip = np.bincount(clips, minlength=n_clips)
    own, firsts = scores.ravel()[places], np.cumsum(per_clip) - per_clip
    ranks = np.empty(len(places), dtype=np.int64)
    # The first present tag of every clip, then the second of those that have one, and so on: most clips are compared where they lie.
    for k in range(per_clip.max(initial=0)):
        rows = np.flatnonzero(per_clip > k)
        among = firsts[rows] + k
        table = scores if len(rows) == n_clips else scores[rows]
        ranks[among] = _count_rows(table >= own[among, None])  # a tie counts against us
    hits = np.ones(len(places))  # of a clip's only tag, itself
    several = np.flatnonzero(per_clip[clips] > 1)
    # In a clip, those ranked at or above: clip and rank in one number, so that one sort does for all.
    begins = clips[several] * (n_tags + 1)
    in_order = np.sort(begins + ranks[several])
    hits[several] = np.searchsorted(in_order, begins + ranks[several], side="right") - np.searchsorted(in_order, begins)
    return PrecisionHits(clips, tags, hits / ranks)


def _count_rows(flags: np.ndarray) -> np.ndarray:
    """How many flags of each row are set."""
    # Adding bytes takes a fifth of the time of count_nonzero along rows, but a byte holds no more than 255.
    return np.einsum("ij->i", flags.view(np.uint8)) if flags.shape[1] < 256 else np.count_nonzero(flags, axis=1)
