"""The 3rd place's five ways to relabel noisy clips, and their last step: best clips as given, pseudo-labels for the rest.

A mode is named with its parameter behind an underscore: `scoring_1000` keeps the 1000 clips whose labels models agree with most,
`fullmatch_1.2`, `relabelall_1.2`, `relabelall-replacenan_1.2` and `relabelall-merge_1.2` turn probabilities into labels by the one
threshold that leaves 1.2 tags a clip in the mean. Without a parameter, a threshold leaves as many tags a clip as are given.

Where the published tool leaves a choice to chance
--------------------------------------------------
- Most good clips agree with the models perfectly, so that the best K are chosen among equals by an unstable sort. Here clips of equal
  agreement are ordered by their mean binary log loss, then by name.
- Two thresholds may come equally close to the wanted number of tags, one above and one below it; the lower threshold is taken.
- Its tables are sorted by name before labels are written by position; rows are matched by name here.
- Despite its name, replacenan fills nothing in: like relabelall it replaces labels and drops clips that are left without any.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from fatai.errors import OptionError
from fatai.registry import NOISY
from fatai.metrics.ranking import precision_hits
from fatai.noisy_labels.selection import LabelSelection, NoisyLabelData, Method, make_selection

__all__ = ["Threshold", "label_ranking_agreement", "best_first", "cardinality_threshold", "mean_log_loss"]

_SOURCE = "FAT2019 3rd place repository (Apache-2.0): relabel_noisy_data; own code"

# Probabilities are kept this far from 0 and 1, where the logarithm ends.
_LEAST = 1e-7
_CANDIDATES = np.linspace(0, 1, 10_000)


class Threshold(NamedTuple):
    """A threshold, and how many tags a clip lie above it in the mean."""

    value: float
    cardinality: float


def cardinality_threshold(probs: np.ndarray, cardinality: float) -> Threshold:
    """The threshold that leaves the mean number of tags above it nearest to `cardinality`.

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
    """Label-ranking average precision of each clip's given labels; 1 for a clip without any, as in scikit-learn.

    A tie counts against the labels. Shapes (clips, tags); returns (clips,).

    Examples
    --------
    >>> label_ranking_agreement(np.array([[0.9, 0.8, 0.1], [0.9, 0.8, 0.1]]), np.array([[True, False, False], [False, True, False]])).tolist()
    [1.0, 0.5]
    """
    hits = precision_hits(probs, given)
    labels = np.asarray(given).sum(1)
    sums = np.bincount(hits.clips, weights=hits.precision, minlength=len(labels))
    return np.where(labels > 0, sums / np.maximum(labels, 1), 1.0)


def mean_log_loss(probs: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Binary log loss of each clip, the mean over all tags; probabilities are kept within [1e-7, 1 - 1e-7].

    Shapes (clips, tags); returns (clips,).

    Examples
    --------
    >>> mean_log_loss(np.array([[0.5, 0.5]]), np.array([[True, False]])).round(4).tolist()
    [0.6931]
    """
    clipped = np.clip(probs, _LEAST, 1 - _LEAST)
    return -np.log(np.where(given, clipped, 1 - clipped)).mean(1)


def best_first(judged: NoisyLabelData, *keys: np.ndarray) -> np.ndarray:
    """Positions of the clips by the first of `keys`, the lowest value first; ties by the next key, at last by name."""
    return np.lexsort((np.array(judged.fnames, dtype=str), *reversed(keys)))


@NOISY.register("scoring", source=_SOURCE)
def scoring(*, k: int = 1000) -> Method:
    """The `k` clips whose given labels rank highest under the models (`label_ranking_agreement`), labels as given.

    Equal clips are ordered by mean log loss, then by name. A clip without labels agrees perfectly, as published.
    """
    if isinstance(k, bool) or int(k) != k or k < 1:
        raise OptionError(f"k is {k!r}; expected how many clips to keep, a whole number of at least 1")

    def method(judged: NoisyLabelData) -> LabelSelection:
        name = f"scoring_{k}"
        keep, score = _top(judged, int(k), name)
        return make_selection(name, judged, keep, np.where(keep, "as given", f"not among the best {k}"), score=score)

    return method


@NOISY.register("fullmatch", source=_SOURCE)
def fullmatch(*, cardinality: float | None = None) -> Method:
    """The clips whose predicted labels are exactly those given."""
    _check(cardinality)

    def method(judged: NoisyLabelData) -> LabelSelection:
        predicted = _predicted(judged, cardinality, "fullmatch")
        keep = ~(predicted ^ judged.given).any(1)
        return make_selection("fullmatch", judged, keep, np.where(keep, "as given", "predicted otherwise"))

    return method


@NOISY.register("relabelall", source=_SOURCE)
def relabelall(*, cardinality: float | None = None) -> Method:
    """Predicted labels in place of those given; clips without any are dropped."""
    return _replaced("relabelall", cardinality)


@NOISY.register("relabelall-replacenan", source=_SOURCE)
def relabelall_replacenan(*, cardinality: float | None = None) -> Method:
    """The same as relabelall, under the name by which the published tool documents it."""
    return _replaced("relabelall-replacenan", cardinality)


@NOISY.register("relabelall-merge", source=_SOURCE)
def relabelall_merge(*, cardinality: float | None = None) -> Method:
    """Given and predicted labels together; every clip stays."""
    _check(cardinality)

    def method(judged: NoisyLabelData) -> LabelSelection:
        merged = judged.given | _predicted(judged, cardinality, "relabelall-merge")
        why = np.where((merged != judged.given).any(1), "with labels added", "as given")
        return make_selection("relabelall-merge", judged, np.ones(len(judged), dtype=bool), why, targ=merged)

    return method


@NOISY.register(
    "third", source="FAT2019 3rd place: after 5,000 clips with their own labels the rest is pseudo-labelled; own code"
)
def third(*, k: int = 5000, cardinality: float | None = None) -> Method:
    """The best `k` clips with their given labels; the others with predicted ones, those without any dropped.

    The threshold is found over all clips. `fatai.noisy_labels.curriculum.ladder` leads here.
    """
    scoring(k=k)
    _check(cardinality)

    def method(judged: NoisyLabelData) -> LabelSelection:
        best, score = _top(judged, k, "third")
        targ = np.where(best[:, None], judged.given, _predicted(judged, cardinality, "third"))
        keep = np.logical_or(best, targ.any(1))
        why = np.select([best, keep], ["as given", "pseudo-labelled"], "without a predicted label")
        return make_selection("third", judged, keep, why, targ=targ, score=score)

    return method


@NOISY.register_pattern("scoring_", source=_SOURCE)
@NOISY.register_pattern("fullmatch_", source=_SOURCE)
@NOISY.register_pattern("relabelall_", source=_SOURCE)
@NOISY.register_pattern("relabelall-replacenan_", source=_SOURCE)
@NOISY.register_pattern("relabelall-merge_", source=_SOURCE)
def with_parameter(name: str) -> Method:
    """A mode of the 3rd place with its parameter, such as scoring_1000 or relabelall_1.2."""
    mode, _, text = name.rpartition("_")
    kind, example = (int, "a whole number of clips, such as scoring_1000") if mode == "scoring" else (
        float, f"a mean number of tags a clip, such as {mode}_1.2")
    try:
        value = kind(text)
    except ValueError:
        raise OptionError(f"the mode {name!r} ends in {text!r}; expected {example}") from None
    return NOISY.build(mode, **{"k" if kind is int else "cardinality": value})


def _replaced(name: str, cardinality: float | None) -> Method:
    _check(cardinality)

    def method(judged: NoisyLabelData) -> LabelSelection:
        predicted = _predicted(judged, cardinality, name)
        keep = predicted.sum(1) > 0
        why = np.select(
            [~keep, (predicted == judged.given).all(1)], ["without a predicted label", "as given"], "relabelled"
        )
        return make_selection(name, judged, keep, why, targ=predicted)

    return method


def _top(judged: NoisyLabelData, k: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Which clips are the best `k`, bool (clips,), and the agreement of each."""
    probs = judged.probs_for(name)
    if k > len(judged):
        warnings.warn(
            f"{name} asks for the best {k} of {len(judged)} clips: all are kept with their own labels", stacklevel=4
        )
    score = label_ranking_agreement(probs, judged.given)
    keep = np.zeros(len(judged), dtype=bool)
    keep[best_first(judged, -score, mean_log_loss(probs, judged.given))[:k]] = True
    return keep, score


def _predicted(judged: NoisyLabelData, cardinality: float | None, name: str) -> np.ndarray:
    """Labels by the threshold for that cardinality, bool (clips, tags)."""
    probs = judged.probs_for(name)
    if not len(judged):
        return judged.given
    wanted = judged.given.sum(1).mean() if cardinality is None else cardinality
    if wanted > len(judged.tags):
        raise OptionError(
            f"{name} is to leave {wanted} tags a clip; expected at most {len(judged.tags)}, the number of tags"
        )
    return probs > cardinality_threshold(probs, wanted).value


def _check(cardinality: float | None) -> None:
    if cardinality is not None and not 0 < cardinality < np.inf:
        raise OptionError(
            f"cardinality is {cardinality}; expected the wanted mean number of tags a clip, above 0 (curated clips: 1.158)"
        )
