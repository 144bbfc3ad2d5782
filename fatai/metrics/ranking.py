"""Ranking of the tags of a clip: lwlrap.

*lwlrap* (label-weighted label-ranking average precision): for each tag present in a clip, the fraction of present tags
among those ranked at or above it; then the mean over all (clip, present tag) pairs. It is the competition's score, and
depends on the order within a clip only: a monotone change of one clip's scores has no effect, a change of one tag's
scores over all clips has one. `fatai.metrics.classification` measures the order of the clips within a tag.

Ties ---- The competition's own code sorts each clip with `argsort`, so tied scores are ordered by their column. Here a
tie counts against the prediction: the rank of a tag is the number of tags that score at least as high. That equals
scikit-learn's `label_ranking_average_precision_score` with each clip weighted by its number of tags, and the
competition's value without ties. Clips without a tag are left out, as in both.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fatai.metrics._validation import check_inputs

__all__ = ["LwlrapPerClass", "lwlrap", "lwlrap_per_class"]


class LwlrapPerClass(NamedTuple):
    """Score and weight of each tag, both of shape (tags,); `(scores * weights).sum()` is the overall lwlrap.

    A tag of no clip has score 0 and weight 0.
    """

    scores: np.ndarray
    weights: np.ndarray


class PrecisionHits(NamedTuple):
    """Precision at the rank of each (clip, present tag) pair, ordered by clip, then tag.

    Attributes
    ----------
    clips, tags
        Shape (pairs,): row and column of each pair.
    precision
        Shape (pairs,): fraction of present tags among those ranked at or above the tag, in (0, 1].
    """

    clips: np.ndarray
    tags: np.ndarray
    precision: np.ndarray


def lwlrap(probs: Any, targ: Any) -> float:
    """Compute the label-weighted label-ranking average precision over all clips, in [0, 1].

    If every clip has one tag, it is the mean reciprocal rank.

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
        If `probs` has NaN, or `targ` other values than 0 and 1.

    Examples
    --------
    The tag of the first clip ranks first (1/1), that of the second clip ranks second (1/2):

    >>> lwlrap([[0.9, 0.1, 0.2], [0.4, 0.8, 0.1]], [[1, 0, 0], [1, 0, 0]])
    0.75
    """
    precision = precision_hits(probs, targ).precision
    return float(precision.mean()) if len(precision) else float("nan")


def lwlrap_per_class(probs: Any, targ: Any) -> LwlrapPerClass:
    """Compute the lwlrap of each tag over the clips that have it, and its fraction of all present tags.

    Parameters and errors are those of `lwlrap`; scores and weights have shape (tags,).

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
    """Compute the precisions of which lwlrap is the mean; parameters and errors are those of `lwlrap`.

    Examples
    --------
    >>> precision_hits([[0.9, 0.8, 0.1]], [[0, 1, 1]]).precision.round(3).tolist()   # ranks 2 and 3: 1/2, 2/3
    [0.5, 0.667]
    """
    scores, _, positives = check_inputs(probs, targ)
    n_tags = scores.shape[1]
    clips, tags = np.divmod(positives, max(n_tags, 1))
    ranks = _ranks(scores, clips, scores.ravel()[positives])
    return PrecisionHits(clips, tags, _count_hits(clips, ranks, n_tags) / ranks)


def _precision_reference(probs: Any, targ: Any) -> np.ndarray:
    """Compute the precisions (pairs,) of `precision_hits` by the definition, clip by clip; the tests compare both."""
    scores, present, _ = check_inputs(probs, targ)
    precision = [np.zeros(0)]
    for clip_scores, is_present in zip(scores, present, strict=True):
        at_least = clip_scores >= clip_scores[is_present, None]  # (present tags, all tags); a tie counts against us
        precision.append((at_least & is_present).sum(1) / at_least.sum(1))
    return np.concatenate(precision)


def _ranks(scores: np.ndarray, clips: np.ndarray, pair_scores: np.ndarray) -> np.ndarray:
    """Count the tags of each pair's clip that score at least as high as the pair.

    Parameters
    ----------
    scores
        Shape (clips, tags).
    clips, pair_scores
        Shape (pairs,): row of each pair, not falling, and its score.

    Returns
    -------
    Shape (pairs,), from 1 to the number of tags.
    """
    n_present = np.bincount(clips, minlength=len(scores))
    first_pairs = np.cumsum(n_present) - n_present
    ranks = np.empty(len(clips), dtype=np.int64)
    # The k-th pairs of all clips at once: a comparison of the table for each k. The table is copied only if some clip
    # has no k-th pair.
    for k in range(n_present.max(initial=0)):
        rows = np.flatnonzero(n_present > k)
        pairs = first_pairs[rows] + k
        table = scores if len(rows) == len(scores) else scores[rows]
        ranks[pairs] = _count_true(table >= pair_scores[pairs, None])  # a tie counts against us
    return ranks


def _count_hits(clips: np.ndarray, ranks: np.ndarray, n_tags: int) -> np.ndarray:
    """Count the pairs of the same clip with the same or a lower rank; arguments and result have shape (pairs,)."""
    hits = np.ones(len(clips))  # a clip's only tag counts itself
    several = np.flatnonzero(np.bincount(clips)[clips] > 1)
    # Clip and rank as one number, so that one sort serves all clips.
    offsets = clips[several] * (n_tags + 1)
    keys = offsets + ranks[several]
    in_order = np.sort(keys)
    hits[several] = np.searchsorted(in_order, keys, side="right") - np.searchsorted(in_order, offsets)
    return hits


def _count_true(flags: np.ndarray) -> np.ndarray:
    """Count the True values of each row of a table (rows, columns), shape (rows,)."""
    # Adding bytes takes a fifth of the time of count_nonzero along rows, but the sum of 256 of them overflows.
    return np.einsum("ij->i", flags.view(np.uint8)) if flags.shape[1] < 256 else np.count_nonzero(flags, axis=1)
