"""How well tags are ordered: lwlrap.

Conventions
-----------
`probs` is (clips, tags), any scores of which higher means more likely; `targ` is (clips, tags) and holds 0 and 1 only. Both may be
numpy arrays, data frames or torch tensors on any device. What counts is the order of the scores, so logits serve as well as probabilities.

Metrics
-------
*lwlrap* (label-weighted label-ranking average precision): for each tag that is present in a clip, the share of present tags among
those ranked at or above it; then the mean over all (clip, present tag) pairs. It is the competition's score, and reads the order
within a clip only: a monotone change of one clip's scores is neutral, a change of one tag's scores over all clips is not.

Ties
----
The competition's own code sorts each clip with `argsort`, so tied scores are ordered by their column. Here a tie counts against us: a
tag's rank is the number of tags that score at least as high. That equals scikit-learn's `label_ranking_average_precision_score` with
each clip weighted by its number of tags, and the competition's value where nothing is tied. Clips without a tag are left out, as in both.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fatai.errors import DataError, ShapeError

__all__ = ["LwlrapPerClass", "lwlrap", "lwlrap_per_class"]

# Comparisons held at once: 4 M flags stay in the cache of most machines, and AudioSet's 20,000 x 527 stays far from 1 GB.
_AT_ONCE = 1 << 22


class LwlrapPerClass(NamedTuple):
    """Score and weight of each tag; `(scores * weights).sum()` is the overall lwlrap.

    A tag that no clip has is given score 0 and weight 0.
    """

    scores: np.ndarray
    weights: np.ndarray


class _Hits(NamedTuple):
    """One entry for each (clip, present tag) pair: which clip, which tag, and the precision at that tag's rank."""

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
    precision = _hits(*_checked(probs, targ)).precision
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
    scores, present = _checked(probs, targ)
    hits, n_tags = _hits(scores, present), scores.shape[1]
    counts = np.bincount(hits.tags, minlength=n_tags)
    sums = np.bincount(hits.tags, weights=hits.precision, minlength=n_tags)
    return LwlrapPerClass(sums / np.maximum(counts, 1), counts / max(int(counts.sum()), 1))


def _as_array(values: Any) -> np.ndarray:
    """An array of what may be a tensor on any device, of any dtype; this module works without torch."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()
    return np.asarray(values)


def _checked(probs: Any, targ: Any) -> tuple[np.ndarray, np.ndarray]:
    """Scores as floats and flags of the present tags, both (clips, tags)."""
    scores, present = _as_array(probs), _as_array(targ)
    if scores.ndim != 2 or scores.shape != present.shape:
        raise ShapeError(f"probs has shape {scores.shape} and targ {present.shape}; expected both as (clips, tags)")
    if scores.dtype.kind not in "fiub" or present.dtype.kind not in "fiub":
        raise DataError(f"probs is of type {scores.dtype} and targ of {present.dtype}; expected numbers")
    if scores.dtype.kind == "f" and np.isnan(scores).any():
        clip, tag = np.argwhere(np.isnan(scores))[0]
        raise DataError(f"probs holds NaN at clip {clip}, tag {tag}: a score that is no number has no rank")
    if present.dtype != bool:
        flags = present != 0
        if (present != flags).any():
            clip, tag = np.argwhere(present != flags)[0]
            raise DataError(f"targ holds {present[clip, tag]} at clip {clip}, tag {tag}; expected 0 or 1: decide what counts as present, "
                            "for instance targ > 0.5")
        present = flags
    return scores, present


def _hits(scores: np.ndarray, present: np.ndarray) -> _Hits:
    """Precision at each present tag, in the order of clips, then tags."""
    clips, tags = np.nonzero(present)
    precision = np.empty(len(clips))
    step = max(1, _AT_ONCE // max(1, scores.shape[1]))
    for start in range(0, len(clips), step):
        part = slice(start, start + step)
        rows = clips[part]
        at_least = scores[rows] >= scores[rows, tags[part], None]  # (pairs, tags); a tie counts against us
        ranks = np.count_nonzero(at_least, axis=1)
        at_least &= present[rows]
        precision[part] = np.count_nonzero(at_least, axis=1) / ranks
    return _Hits(clips, tags, precision)
