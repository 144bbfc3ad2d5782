"""Pseudo-labels: the 3rd place's five modes to relabel noisy clips, and its last step.

A mode is named with its parameter behind an underscore: `scoring_1000` keeps the 1000 clips whose labels agree best
with the predictions; `fullmatch_1.2`, `relabelall_1.2`, `relabelall-replacenan_1.2` and `relabelall-merge_1.2` turn
probabilities into labels by the one threshold that leaves 1.2 tags a clip on average. Without a parameter, the
threshold leaves as many tags a clip as are given. The last step keeps the best clips as given and gives pseudo-labels
to the rest.

Where the published tool leaves a choice to chance
--------------------------------------------------
- Most good clips agree with the predictions perfectly, so that the best K are selected among equals by an unstable
  sort. Here clips of equal agreement are ordered by their mean binary log loss, then by name.
- Two thresholds may come equally close to the wanted number of tags, one above and one below it; the lower threshold is
  taken.
- Its tables are sorted by name before labels are written by position; rows are matched by name here.
- Despite its name, replacenan fills nothing in: like relabelall it replaces labels and drops clips that are left
  without any.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from fatai.errors import OptionError
from fatai.metrics.ranking import precision_hits
from fatai.noisy_labels.selection import LabelSelection, Method, NoisyLabelData, make_selection
from fatai.registry import NOISY

__all__ = ["cardinality_threshold", "label_ranking_agreement", "mean_log_loss"]

_SOURCE = "FAT2019 3rd place repository (Apache-2.0): relabel_noisy_data; own code"

# Probabilities are clipped this far from 0 and 1, where the logarithm is infinite.
_MIN_PROB = 1e-7
_CANDIDATES = np.linspace(0, 1, 10_000)


class Threshold(NamedTuple):
    """A threshold, and the mean number of tags of a clip above it."""

    value: float
    cardinality: float


def cardinality_threshold(probs: np.ndarray, cardinality: float) -> Threshold:
    """Find the threshold that leaves a mean number of tags above it as near as possible to `cardinality`.

    Of 10,000 even steps from 0 to 1; where several come equally close, the lowest.

    Parameters
    ----------
    probs
        Shape (clips, tags), within [0, 1]; at least one clip.
    cardinality
        Wanted mean number of tags of a clip.

    Examples
    --------
    >>> threshold = cardinality_threshold(np.array([[0.9, 0.1], [0.6, 0.4]]), 1.0)
    >>> round(threshold.value, 4), threshold.cardinality
    (0.4, 1.0)
    """
    ordered = np.sort(np.asarray(probs, dtype=np.float64), axis=None)
    above = (ordered.size - np.searchsorted(ordered, _CANDIDATES, side="right")) / len(probs)
    best = int(np.abs(above - cardinality).argmin())
    return Threshold(float(_CANDIDATES[best]), float(above[best]))


def label_ranking_agreement(probs: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Compute the label-ranking average precision of each clip's given labels.

    Parameters
    ----------
    probs
        Shape (clips, tags). A tie counts against the labels.
    given
        bool, shape (clips, tags).

    Returns
    -------
    Shape (clips,), within [0, 1]; 1 for a clip without labels, as in scikit-learn.

    Examples
    --------
    >>> probs, given = np.array([[0.9, 0.8, 0.1]] * 2), np.array([[True, False, False], [False, True, False]])
    >>> label_ranking_agreement(probs, given).tolist()
    [1.0, 0.5]
    """
    hits = precision_hits(probs, given)
    labels = np.asarray(given).sum(1)
    sums = np.bincount(hits.clips, weights=hits.precision, minlength=len(labels))
    return np.where(labels > 0, sums / np.maximum(labels, 1), 1.0)


def mean_log_loss(probs: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Compute the binary log loss of each clip, the mean over all tags.

    Parameters
    ----------
    probs
        Shape (clips, tags); clipped to [1e-7, 1 - 1e-7].
    given
        bool, shape (clips, tags).

    Returns
    -------
    Shape (clips,), at least 0.

    Examples
    --------
    >>> mean_log_loss(np.array([[0.5, 0.5]]), np.array([[True, False]])).round(4).tolist()
    [0.6931]
    """
    clipped = np.clip(probs, _MIN_PROB, 1 - _MIN_PROB)
    return -np.log(np.where(given, clipped, 1 - clipped)).mean(1)


def sort_clips(data: NoisyLabelData, *keys: np.ndarray) -> np.ndarray:
    """Return the positions of the clips, (clips,), sorted by `keys`, each (clips,), in this order, at last by name."""
    return np.lexsort((np.array(data.fnames, dtype=str), *reversed(keys)))


@NOISY.register("scoring", source=_SOURCE)
def scoring(*, k: int = 1000) -> Method:
    """Select the `k` clips whose given labels rank highest in the predictions, labels as given.

    The rank is that of `label_ranking_agreement`. Equal clips are ordered by mean log loss, then by name. A clip
    without labels agrees perfectly, as published.

    Parameters
    ----------
    k
        A whole number of at least 1.
    """
    if isinstance(k, bool) or int(k) != k or k < 1:
        raise OptionError(f"k is {k!r}; expected the number of clips to keep, a whole number of at least 1")

    def select(data: NoisyLabelData) -> LabelSelection:
        name = f"scoring_{k}"
        keep, score = _best_clips(data, int(k), name)
        return make_selection(name, data, keep, np.where(keep, "as given", f"not among the best {k}"), score=score)

    return select


@NOISY.register("fullmatch", source=_SOURCE)
def fullmatch(*, cardinality: float | None = None) -> Method:
    """Select the clips whose predicted labels are exactly those given.

    Parameters
    ----------
    cardinality
        Mean number of predicted tags a clip, above 0; None takes that of the given labels.
    """
    _check_cardinality(cardinality)

    def select(data: NoisyLabelData) -> LabelSelection:
        predicted = _predict_labels(data, cardinality, "fullmatch")
        keep = ~(predicted ^ data.given).any(1)
        return make_selection("fullmatch", data, keep, np.where(keep, "as given", "predicted otherwise"))

    return select


@NOISY.register("relabelall", source=_SOURCE)
def relabelall(*, cardinality: float | None = None) -> Method:
    """Replace given by predicted labels; clips without any are dropped. `cardinality` is as in `fullmatch`."""
    return _replace_labels("relabelall", cardinality)


@NOISY.register("relabelall-replacenan", source=_SOURCE)
def relabelall_replacenan(*, cardinality: float | None = None) -> Method:
    """Replace labels as relabelall does: the name under which the published tool documents it."""
    return _replace_labels("relabelall-replacenan", cardinality)


@NOISY.register("relabelall-merge", source=_SOURCE)
def relabelall_merge(*, cardinality: float | None = None) -> Method:
    """Unite given and predicted labels; every clip stays. `cardinality` as in `fullmatch`."""
    _check_cardinality(cardinality)

    def select(data: NoisyLabelData) -> LabelSelection:
        merged = data.given | _predict_labels(data, cardinality, "relabelall-merge")
        reason = np.where((merged != data.given).any(1), "with labels added", "as given")
        return make_selection("relabelall-merge", data, np.ones(len(data), dtype=bool), reason, targ=merged)

    return select


@NOISY.register(
    "third_place_pseudo_labels",
    source="FAT2019 3rd place: after 5,000 clips with their own labels the rest is pseudo-labelled; own code",
)
def third_place_pseudo_labels(*, k: int = 5000, cardinality: float | None = None) -> Method:
    """Keep the best `k` clips with their given labels, and pseudo-label the others.

    Clips without any predicted label are dropped. The threshold is found over all clips. It is the last step of
    `fatai.noisy_labels.curriculum.noisy_curriculum`.

    Parameters
    ----------
    k
        A whole number of at least 1.
    cardinality
        As in `fullmatch`.
    """
    scoring(k=k)
    _check_cardinality(cardinality)

    def select(data: NoisyLabelData) -> LabelSelection:
        best, score = _best_clips(data, k, "third_place_pseudo_labels")
        predicted = _predict_labels(data, cardinality, "third_place_pseudo_labels")
        targ = np.where(best[:, None], data.given, predicted)
        keep = np.logical_or(best, targ.any(1))
        reason = np.select([best, keep], ["as given", "pseudo-labelled"], "without a predicted label")
        return make_selection("third_place_pseudo_labels", data, keep, reason, targ=targ, score=score)

    return select


@NOISY.register_pattern("scoring_", source=_SOURCE)
@NOISY.register_pattern("fullmatch_", source=_SOURCE)
@NOISY.register_pattern("relabelall_", source=_SOURCE)
@NOISY.register_pattern("relabelall-replacenan_", source=_SOURCE)
@NOISY.register_pattern("relabelall-merge_", source=_SOURCE)
def with_parameter(name: str) -> Method:
    """Build a mode of the 3rd place with its parameter, such as scoring_1000 or relabelall_1.2."""
    mode, _, text = name.rpartition("_")
    is_count = mode == "scoring"
    try:
        value = int(text) if is_count else float(text)
    except ValueError:
        kind = "a whole number of clips" if is_count else "a mean number of tags a clip"
        example = "scoring_1000" if is_count else f"{mode}_1.2"
        raise OptionError(f"the mode {name!r} ends in {text!r}; expected {kind}, such as {example}") from None
    return NOISY.build(mode, **{"k" if is_count else "cardinality": value})


def _replace_labels(name: str, cardinality: float | None) -> Method:
    _check_cardinality(cardinality)

    def select(data: NoisyLabelData) -> LabelSelection:
        predicted = _predict_labels(data, cardinality, name)
        keep = predicted.sum(1) > 0
        conditions = [~keep, (predicted == data.given).all(1)]
        reason = np.select(conditions, ["without a predicted label", "as given"], "relabelled")
        return make_selection(name, data, keep, reason, targ=predicted)

    return select


def _best_clips(data: NoisyLabelData, k: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return which clips are the best `k`, bool (clips,), and the agreement of each, (clips,)."""
    probs = data.probs_for(name)
    if k > len(data):
        warnings.warn(
            f"{name} asks for the best {k} of {len(data)} clips: all are kept with their given labels", stacklevel=4
        )
    score = label_ranking_agreement(probs, data.given)
    keep = np.zeros(len(data), dtype=bool)
    keep[sort_clips(data, -score, mean_log_loss(probs, data.given))[:k]] = True
    return keep, score


def _predict_labels(data: NoisyLabelData, cardinality: float | None, name: str) -> np.ndarray:
    """Return labels by the threshold for that cardinality, bool (clips, tags)."""
    probs = data.probs_for(name)
    if not len(data):
        return data.given
    wanted = data.given.sum(1).mean() if cardinality is None else cardinality
    if wanted > len(data.tags):
        raise OptionError(
            f"{name} is to leave {wanted} tags a clip; expected at most {len(data.tags)}, the number of tags"
        )
    return probs > cardinality_threshold(probs, wanted).value


def _check_cardinality(cardinality: float | None) -> None:
    if cardinality is not None and not 0 < cardinality < np.inf:
        raise OptionError(
            f"cardinality is {cardinality}; expected the wanted mean number of tags a clip, above 0 (curated clips: "
            "1.158)"
        )
