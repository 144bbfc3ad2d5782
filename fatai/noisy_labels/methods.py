"""Methods that select, relabel and weight noisy clips: one for each system, by name in `NOISY`.

`select_noisy_labels(table, tags, "ninth_place_low_loss", probs=..., fnames=...)` applies a method to a table and
returns the clips to train on, with their targets and weights; `fatai.noisy_labels.io` writes them to files. A method
uses nothing but its arguments: labels, and probabilities from models that were not trained on the clips.

Methods
-------
as_given
    Every clip with its labels: the baseline.
ninth_place_low_loss
    Clips of one label, ranked by log loss; the best N, at most K of a tag.
scoring, fullmatch, relabelall, relabelall-replacenan, relabelall-merge, third_place_pseudo_labels
    The 3rd place's; see `fatai.noisy_labels.pseudo_labels`.
gold_plan_confidence
    Given labels that a teacher confirms, weighted by its confidence; stages in `fatai.noisy_labels.curriculum`.
kaggle_fat_soft_labels
    The 36th place's: every clip, with soft targets.
first_place_corrections
    Corrections by hand: removed clips, corrected clips as a source of their own, sampling weights.
fourth_place_second_head, fourth_place_pseudo_labels
    A second head for the given labels; sharpened probabilities as targets of the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from fatai.data.labels import warn_unused_corrections
from fatai.data.samplers import MIXTURE_WEIGHTS
from fatai.errors import DataError, OptionError, ShapeError
from fatai.noisy_labels.pseudo_labels import mean_log_loss, sort_clips
from fatai.noisy_labels.selection import LabelSelection, Method, NoisyLabelData, attach_predictions, make_selection
from fatai.registry import NOISY, did_you_mean

__all__ = ["second_head", "select_noisy_labels"]


def select_noisy_labels(
    table: pd.DataFrame, tags: Sequence[str], method: str, *, probs: Any = None, fnames: Iterable[str] | None = None,
    trained_on: Iterable[str] = (), out_of_fold: bool = False, **options: Any,
) -> LabelSelection:
    """Apply a method of `NOISY` to a noisy table.

    Parameters
    ----------
    table, tags, fnames, trained_on, out_of_fold
        As in `attach_predictions`.
    method
        A name of `NOISY`, for the 3rd place's modes with their parameter behind an underscore ("scoring_1000").
    probs
        Shape (predicted clips, tags), within [0, 1]; None for methods that need no predictions.
    options
        Those of the method.

    Raises
    ------
    UnknownNameError
        If there is no such method.
    OptionError
        If an option is unknown or out of range, or the method needs predictions and gets none.
    DataError, LabelError, ShapeError
        As in `attach_predictions`.

    Examples
    --------
    >>> table, fnames = pd.DataFrame({"fname": ["a.wav", "b.wav"], "labels": ["Bark", "Meow"]}), ["a.wav", "b.wav"]
    >>> best = select_noisy_labels(table, ["Bark", "Meow"], "scoring_1", probs=[[0.2, 0.8], [0.1, 0.7]], fnames=fnames)
    >>> best.fnames, best.labels
    (('b.wav',), [['Meow']])
    """
    select: Method = NOISY.build(method, **options)
    return select(attach_predictions(table, tags, probs, fnames, trained_on=trained_on, out_of_fold=out_of_fold))


def _all_clips(data: NoisyLabelData) -> np.ndarray:
    return np.ones(len(data), dtype=bool)


@NOISY.register("as_given", source="all noisy clips as they are; own code")
def as_given() -> Method:
    """Select every clip with its labels, all with the same weight."""
    return lambda data: make_selection("as_given", data, _all_clips(data), "as given")


@NOISY.register("ninth_place_low_loss", source="FAT2019 9th place kernel and report; own code")
def ninth_place_low_loss(*, n: int = 5000, per_tag: int = 50) -> Method:
    """Select the clips of one label with the lowest mean binary log loss, at most `per_tag` of each tag.

    For the fit stage, not the refits. First the best `n` are taken, then tags are capped, as published, so that fewer
    than `n` may stay. Equal losses are ordered by name.

    Parameters
    ----------
    n, per_tag
        Numbers of clips, at least 1.
    """
    for name, value in (("n", n), ("per_tag", per_tag)):
        if value < 1:
            raise OptionError(f"{name} is {value}; expected a number of clips of at least 1")

    def select(data: NoisyLabelData) -> LabelSelection:
        loss = mean_log_loss(data.probs_for("ninth_place_low_loss"), data.given)
        single = data.given.sum(1) == 1
        reason = np.where(single, f"not among the best {n}", "not of one label").astype(object)
        keep, taken = np.zeros(len(data), dtype=bool), np.zeros(len(data.tags), dtype=int)
        for clip in [i for i in sort_clips(data, loss) if single[i]][:n]:
            tag = data.given[clip].argmax()
            keep[clip] = taken[tag] < per_tag
            reason[clip] = "as given" if keep[clip] else f"after {per_tag} better ones of their tag"
            taken[tag] += 1
        return make_selection("ninth_place_low_loss", data, keep, reason, score=loss)

    return select


@NOISY.register(
    "gold_plan_confidence", source="notebook 'Gold-only plan' for FAT2019, a plan that was not run; own code"
)
def gold_plan_confidence(
    *,
    keep_threshold: float = 0.8,
    add_threshold: float | None = 0.95,
    min_prob: float = 0.5,
    class_weight: Sequence[float] | None = None,
) -> Method:
    """Select given labels that a teacher confirms, weighted by its confidence.

    Parameters
    ----------
    keep_threshold
        A given label stays if its probability is at least this.
    add_threshold
        A tag that isn't given is added if its probability is at least this; None adds none.
    min_prob
        The weight of a clip is the largest probability among its tags, at least `min_prob`. Clips without a tag are
        dropped.
    class_weight
        One factor for each tag (`fatai.losses.losses.class_weights`), which makes the weights (clips, tags). Not
        together with the loss "bce_class", which weights tags already.
    """
    added = 1 if add_threshold is None else add_threshold
    for name, value in (("keep_threshold", keep_threshold), ("add_threshold", added), ("min_prob", min_prob)):
        if not 0 <= value <= 1:
            raise OptionError(f"{name} is {value}; expected a probability from 0 to 1")

    def select(data: NoisyLabelData) -> LabelSelection:
        probs = data.probs_for("gold_plan_confidence")
        targ = data.given & (probs >= keep_threshold)
        if add_threshold is not None:
            targ |= probs >= add_threshold
        keep = targ.sum(1) > 0
        confidence = np.where(targ, probs, 0).max(1, initial=0)
        weight = confidence.clip(min_prob, 1)
        if class_weight is not None:
            weight = weight[:, None] * _tag_weights(class_weight, data)
        conditions = [~keep, (targ == data.given).all(1)]
        reason = np.select(conditions, ["without a confirmed tag", "as given"], "relabelled")
        return make_selection(
            "gold_plan_confidence", data, keep, reason, targ=targ, weight=weight, score=confidence
        )

    return select


@NOISY.register("kaggle_fat_soft_labels", source="FAT2019 36th place repository; own code")
def kaggle_fat_soft_labels(*, positive: float = 0.8) -> Method:
    """Select every clip, with soft targets: `positive` for given tags, the rest spread evenly over the others.

    The 36th place's noisy pool also holds the competition's six corrupted curated files:
    `load_dataset(corrupted_files="noisy")`.

    Parameters
    ----------
    positive
        Above 0, at most 1.
    """
    if not 0 < positive <= 1:
        raise OptionError(f"positive is {positive}; expected a target above 0 and at most 1")

    def select(data: NoisyLabelData) -> LabelSelection:
        absent = len(data.tags) - data.given.sum(1, keepdims=True)
        targ = np.where(data.given, positive, (1 - positive) / np.maximum(absent, 1))
        return make_selection(
            "kaggle_fat_soft_labels", data, _all_clips(data), "as given, softened", targ=targ, changed=False
        )

    return select


@NOISY.register("first_place_corrections", source="FAT2019 1st place repository (argus-freesound, MIT); own code")
def first_place_corrections(
    *,
    corrections: pd.DataFrame | None = None,
    source_weights: str | Mapping[str, float] | None = None,
    removals: bool = True,
) -> Method:
    """Select the noisy clips that were not removed by hand, and once more, as "corrected", those with corrected labels.

    Train with the loss "split" (Lsoft, or "lq", on noisy rows, BCE on curated and corrected ones, each weighing 0.5).

    Parameters
    ----------
    corrections
        A table of `read_corrections`, whose labels are None where a clip is removed. Those of other clips are ignored
        with a warning.
    source_weights
        Probability of drawing from each source: a name of `MIXTURE_WEIGHTS` or a mapping. None means "auxiliary_016"
        without corrected clips and "corr_noisy_004" with some.
    removals
        True drops removed clips from the noisy rows; the 1st place's first model with corrected clips kept them.
    """

    def select(data: NoisyLabelData) -> LabelSelection:
        fixes = {} if corrections is None else dict(zip(corrections["fname"], corrections["labels"], strict=True))
        if corrections is not None:
            warn_unused_corrections(corrections, data.fnames, "corrections")
        removed = np.array([removals and name in fixes and fixes[name] is None for name in data.fnames], dtype=bool)
        reason = np.where(removed, "removed by hand", "as given")
        noisy = make_selection("first_place_corrections", data, ~removed, reason)
        return _append_corrected(noisy, _corrected_clips(data, fixes), source_weights)

    return select


def _corrected_clips(data: NoisyLabelData, fixes: Mapping[str, Any]) -> NoisyLabelData:
    rows = [(name, fixes[name]) for name in data.fnames if fixes.get(name) is not None]
    return attach_predictions(pd.DataFrame(rows, columns=["fname", "labels"]), data.tags)


def _append_corrected(
    noisy: LabelSelection, corrected: NoisyLabelData, source_weights: str | Mapping[str, float] | None
) -> LabelSelection:
    has_both = noisy.clips["fname"].isin(corrected.fnames)
    return replace(
        noisy,
        fnames=noisy.fnames + corrected.fnames,
        targ=_concat(noisy.targ, corrected.given),
        weight=_concat(noisy.weight, np.ones(len(corrected))),
        source=noisy.source + ("corrected",) * len(corrected),
        clips=noisy.clips.assign(reason=noisy.clips["reason"].mask(has_both, "as given, and with corrected labels")),
        source_weights=_resolve_weights(source_weights, has_corrected=len(corrected) > 0),
    )


@NOISY.register(
    "fourth_place_second_head",
    source="FAT2019 4th place repository (MIT): multitask learning with a noisy head; own code",
)
def fourth_place_second_head() -> Method:
    """Select every clip, with its labels as targets of a second head.

    There are columns for both heads; those of the first have weight 0. Curated clips get theirs by
    `second_head(targ, noisy=False)`; predictions are the first half of the logits.
    """

    def select(data: NoisyLabelData) -> LabelSelection:
        targ, weight = second_head(data.given, noisy=True)
        heads = (*data.tags, *(f"{tag} (noisy)" for tag in data.tags))
        keep = _all_clips(data)
        return make_selection(
            "fourth_place_second_head", data, keep, "as given", targ=targ, weight=weight, tags=heads, changed=False
        )

    return select


@NOISY.register(
    "fourth_place_pseudo_labels", source="FAT2019 4th place repository (MIT): semi-supervised second model; own code"
)
def fourth_place_pseudo_labels(*, power: float = 2.0, weight: float = 20.0) -> Method:
    """Select every clip with its probabilities, raised to `power` and divided by their sum, as soft targets.

    Give the mean probabilities over folds and snapshots.

    Parameters
    ----------
    power
        Above 0: 1 keeps the probabilities' ratios, 2 is the published one.
    weight
        Sample weight of every clip. The default is what the 4th place gave the mean squared error of these targets;
        with a cross-entropy take about 1.
    """
    if not 0 < power < np.inf:
        raise OptionError(
            f"power is {power}; expected a number above 0: 1 keeps the probabilities' ratios, 2 is the published one"
        )

    def select(data: NoisyLabelData) -> LabelSelection:
        sharp = data.probs_for("fourth_place_pseudo_labels") ** power
        total = sharp.sum(1, keepdims=True)
        targ = np.divide(sharp, total, out=np.zeros_like(sharp), where=total > 0)
        keep = _all_clips(data)
        return make_selection(
            "fourth_place_pseudo_labels", data, keep, "pseudo-labelled", targ=targ, weight=weight, changed=True
        )

    return select


def second_head(targ: Any, *, noisy: bool) -> tuple[np.ndarray, np.ndarray]:
    """Build targets and weights for a model whose outputs are the tags twice: first for curated, then for noisy labels.

    Parameters
    ----------
    targ
        Shape (clips, tags).
    noisy
        True for noisy labels, which train the second half; others train the first half.

    Returns
    -------
    targ, weight
        float32, both (clips, 2 tags). The weight is 2 in the clip's half, so that a mean over all columns is the mean
        over the columns of its head, and 0 in the other.

    Raises
    ------
    ShapeError
        If `targ` is not of two dimensions.

    Examples
    --------
    >>> targ, weight = second_head([[1, 0]], noisy=True)
    >>> targ.tolist(), weight.tolist()
    ([[0.0, 0.0, 1.0, 0.0]], [[0.0, 0.0, 2.0, 2.0]])
    """
    targ = np.asarray(targ, dtype=np.float32)
    if targ.ndim != 2:
        raise ShapeError(f"targ has shape {targ.shape}; expected (clips, tags), as multi_hot makes it")
    idle = np.zeros_like(targ)
    halves = (targ, idle), (np.full_like(targ, 2), idle)
    both_heads = [np.concatenate(pair[::-1] if noisy else pair, 1) for pair in halves]
    return both_heads[0], both_heads[1]


def _tag_weights(class_weight: Sequence[float], data: NoisyLabelData) -> np.ndarray:
    weights = np.asarray(class_weight, dtype=np.float64)
    if weights.shape != (len(data.tags),) or not (weights >= 0).all():
        raise OptionError(
            f"class_weight is {class_weight}; expected a number of at least 0 for each of the {len(data.tags)} tags"
        )
    return weights


def _resolve_weights(given: str | Mapping[str, float] | None, *, has_corrected: bool) -> Mapping[str, float]:
    if given is None:
        given = "corr_noisy_004" if has_corrected else "auxiliary_016"
    if isinstance(given, str):
        if given not in MIXTURE_WEIGHTS:
            raise OptionError(f"no mixture is named {given!r}; {did_you_mean(given, list(MIXTURE_WEIGHTS))}")
        given = MIXTURE_WEIGHTS[given]
    if given.get("corrected") and not has_corrected:
        raise DataError(
            f"source_weights {dict(given)} draw corrected clips, but no clip is corrected: give corrections, or other "
            "weights"
        )
    return dict(given)


def _concat(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    rows = np.concatenate([one, other.astype(one.dtype)])
    rows.setflags(write=False)
    return rows
