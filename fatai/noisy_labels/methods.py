"""Select, relabel, weigh doubtful clips: one method for each system, by name in `NOISY`.

`select_noisy_labels(table, tags, "ninth_place_low_loss", probs=..., fnames=...)` looks at a table once and says which clips to train on, with which targets and
weights; `write_labels` and `write_corrections` make files of it. No method looks at anything but what it is given: labels, and
probabilities from models that did not train on the clips.

Methods
-------
as_given
    Every clip with its labels; what the others are compared with.
ninth
    Clips of one label, ranked by log loss; the best N, at most K of a tag.
third, scoring, fullmatch, relabelall and their like
    The 3rd place's; see `fatai.noisy_labels.pseudo_labels`.
gold
    Labels that a teacher believes, weighed by its belief; stages in `fatai.noisy_labels.curriculum`.
36th
    Every clip, with soft targets.
first
    Hand corrections: removed clips, corrected clips as a source of their own, sampling shares.
fourth, fourth_place_pseudo_labels
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
from fatai.registry import NOISY, did_you_mean
from fatai.noisy_labels.selection import (
    LabelSelection,
    NoisyLabelData,
    Method,
    make_selection,
    attach_predictions,
    out_of_fold_mean,
)
from fatai.noisy_labels.io import write_corrections, write_labels
from fatai.noisy_labels.pseudo_labels import label_ranking_agreement, best_first, cardinality_threshold, mean_log_loss

__all__ = [
    "LabelSelection",
    "NoisyLabelData",
    "label_ranking_agreement",
    "cardinality_threshold",
    "select_noisy_labels",
    "attach_predictions",
    "mean_log_loss",
    "out_of_fold_mean",
    "second_head",
    "write_corrections",
    "write_labels",
]


def select_noisy_labels(
    table: pd.DataFrame, tags: Sequence[str], how: str, *, probs: Any = None, fnames: Iterable[str] | None = None,
    trained_on: Iterable[str] = (), out_of_fold: bool = False, **options: Any,
) -> LabelSelection:
    """What a method of `NOISY` makes of a noisy table.

    Parameters
    ----------
    table, tags, probs, fnames, trained_on, out_of_fold
        As in `attach_predictions`.
    how
        A name of `NOISY`, with its parameter behind an underscore for the 3rd place's modes ("scoring_1000"); `options` are its own.

    Examples
    --------
    >>> table = pd.DataFrame({"fname": ["a.wav", "b.wav"], "labels": ["Bark", "Meow"]})
    >>> best = select_noisy_labels(table, ["Bark", "Meow"], "scoring_1", probs=[[0.2, 0.8], [0.1, 0.7]], fnames=["a.wav", "b.wav"])
    >>> best.fnames, best.labels
    (('b.wav',), [['Meow']])
    """
    method: Method = NOISY.build(how, **options)
    return method(attach_predictions(table, tags, probs, fnames, trained_on=trained_on, out_of_fold=out_of_fold))


@NOISY.register("as_given", source="all noisy clips as they are; own code")
def as_given() -> Method:
    """Every clip with its labels, all weighing alike."""
    return lambda judged: make_selection("as_given", judged, np.ones(len(judged), dtype=bool), "as given")


@NOISY.register("ninth", source="FAT2019 9th place kernel and report; own code")
def ninth(*, n: int = 5000, per_tag: int = 50) -> Method:
    """Clips of one label by mean binary log loss: the best `n`, of which at most `per_tag` of each tag. For the fit stage, not the refits.

    First the best `n` are taken, then tags are capped, as published, so that fewer than `n` may stay. Equal losses go by name.
    """
    for name, value in (("n", n), ("per_tag", per_tag)):
        if value < 1:
            raise OptionError(f"{name} is {value}; expected a number of clips of at least 1")

    def method(judged: NoisyLabelData) -> LabelSelection:
        loss = mean_log_loss(judged.probs_for("ninth"), judged.given)
        single = judged.given.sum(1) == 1
        why = np.where(single, f"not among the best {n}", "not of one label").astype(object)
        keep, taken = np.zeros(len(judged), dtype=bool), np.zeros(len(judged.tags), dtype=int)
        for clip in [i for i in best_first(judged, loss) if single[i]][:n]:
            tag = judged.given[clip].argmax()
            keep[clip] = taken[tag] < per_tag
            why[clip] = "as given" if keep[clip] else f"after {per_tag} better ones of their tag"
            taken[tag] += 1
        return make_selection("ninth", judged, keep, why, score=loss)

    return method


@NOISY.register("gold", source="notebook 'Gold-only plan' for FAT2019, a plan that was not run; own code")
def gold(
    *, keep: float = 0.8, add: float | None = 0.95, least: float = 0.5, class_weight: Sequence[float] | None = None
) -> Method:
    """Given labels that the teacher believes, weighed by its belief.

    Parameters
    ----------
    keep
        A given label stays if its probability is at least this.
    add
        A tag that isn't given is added if its probability is at least this; None adds none.
    least
        A clip weighs as much as the largest probability among its tags, kept within `least` and 1. Clips without a tag are dropped.
    class_weight
        One factor for each tag (`fatai.losses.class_weights`), which makes the weights (clips, tags). Not together with the loss
        "bce_class", which weighs tags already.
    """
    for name, value in (("keep", keep), ("add", 1 if add is None else add), ("least", least)):
        if not 0 <= value <= 1:
            raise OptionError(f"{name} is {value}; expected a probability from 0 to 1")

    def method(judged: NoisyLabelData) -> LabelSelection:
        probs = judged.probs_for("gold")
        targ = judged.given & (probs >= keep)
        if add is not None:
            targ |= probs >= add
        stays = targ.sum(1) > 0
        belief = np.where(targ, probs, 0).max(1, initial=0)
        weight = belief.clip(least, 1)
        if class_weight is not None:
            weight = weight[:, None] * _of_tags(class_weight, judged)
        why = np.select([~stays, (targ == judged.given).all(1)], ["without a believed tag", "as given"], "relabelled")
        return make_selection("gold", judged, stays, why, targ=targ, weight=weight, score=belief)

    return method


@NOISY.register("36th", source="FAT2019 36th place repository; own code")
def soft_labels(*, positive: float = 0.8) -> Method:
    """Every clip; given tags have the target `positive`, the rest is spread evenly over the others.

    The 36th place's noisy pool also holds the competition's six corrupted curated files: `read_layout(corrupted="noisy")`.
    """
    if not 0 < positive <= 1:
        raise OptionError(f"positive is {positive}; expected a target above 0 and at most 1")

    def method(judged: NoisyLabelData) -> LabelSelection:
        absent = len(judged.tags) - judged.given.sum(1, keepdims=True)
        targ = np.where(judged.given, positive, (1 - positive) / np.maximum(absent, 1))
        return make_selection(
            "36th", judged, np.ones(len(judged), dtype=bool), "as given, softened", targ=targ, changed=False
        )

    return method


@NOISY.register("first", source="FAT2019 1st place repository (argus-freesound, MIT); own code")
def first(
    *, corrections: pd.DataFrame | None = None, shares: str | Mapping[str, float] | None = None, removals: bool = True,
) -> Method:
    """Clips by hand corrections: the noisy ones that were not removed, and once more, as "corrected", those with corrected labels.

    Train with the loss "split" (Lsoft, or "lq", on noisy rows, BCE on curated and corrected ones, each weighing 0.5).

    Parameters
    ----------
    corrections
        A table of `read_corrections`, whose labels are None where a clip is removed. Those of other clips do nothing.
    shares
        How often to draw from each source: a name of `MIXTURE_WEIGHTS` or a mapping. None means "auxiliary_016" without corrected clips and
        "corr_noisy_004" with some.
    removals
        Whether removed clips leave the noisy rows; the 1st place's first model with corrected clips left them there.
    """
    def method(judged: NoisyLabelData) -> LabelSelection:
        fixes = {} if corrections is None else dict(zip(corrections["fname"], corrections["labels"]))
        if corrections is not None:
            warn_unused_corrections(corrections, judged.fnames, "corrections")
        removed = np.array([removals and name in fixes and fixes[name] is None for name in judged.fnames], dtype=bool)
        noisy = make_selection("first", judged, ~removed, np.where(removed, "removed by hand", "as given"))
        right = pd.DataFrame(
            [(name, fixes[name]) for name in judged.fnames if fixes.get(name) is not None], columns=["fname", "labels"]
        )
        corrected = attach_predictions(right, judged.tags)
        twice = noisy.clips["fname"].isin(corrected.fnames)
        clips = noisy.clips.assign(why=noisy.clips["why"].mask(twice, "as given, and with corrected labels"))
        drawn = _shares(shares, with_corrected=len(corrected) > 0)
        return replace(
            noisy,
            fnames=noisy.fnames + corrected.fnames,
            targ=_joined(noisy.targ, corrected.given),
            weight=_joined(noisy.weight, np.ones(len(corrected))),
            source=noisy.source + ("corrected",) * len(corrected),
            clips=clips,
            shares=drawn,
        )

    return method


@NOISY.register("fourth", source="FAT2019 4th place repository (MIT): multitask learning with a noisy head; own code")
def fourth() -> Method:
    """Every clip with its given labels, taught to a second head: columns for both heads, of which the first's weigh nothing.

    Curated clips get theirs by `second_head(targ, noisy=False)`; predictions are the first half of the logits.
    """
    def method(judged: NoisyLabelData) -> LabelSelection:
        targ, weight = second_head(judged.given, noisy=True)
        heads = (*judged.tags, *(f"{tag} (noisy)" for tag in judged.tags))
        return make_selection(
            "fourth",
            judged,
            np.ones(len(judged), dtype=bool),
            "as given",
            targ=targ,
            weight=weight,
            tags=heads,
            changed=False,
        )

    return method


@NOISY.register("fourth_place_pseudo_labels", source="FAT2019 4th place repository (MIT): semi-supervised second model; own code")
def fourth_place_pseudo_labels(*, power: float = 2.0, weight: float = 20.0) -> Method:
    """Every clip with its probabilities, raised to `power` and divided by their sum, as soft targets.

    Probabilities are the mean over folds and snapshots. `weight` is what the 4th place gave the mean squared error of these targets; with
    a cross-entropy it belongs near 1.
    """
    if not 0 < power < np.inf:
        raise OptionError(
            f"power is {power}; expected a number above 0: 1 keeps the probabilities' ratios, 2 is the published one"
        )

    def method(judged: NoisyLabelData) -> LabelSelection:
        sharp = judged.probs_for("fourth_place_pseudo_labels") ** power
        total = sharp.sum(1, keepdims=True)
        targ = np.divide(sharp, total, out=np.zeros_like(sharp), where=total > 0)
        return make_selection(
            "fourth_place_pseudo_labels",
            judged,
            np.ones(len(judged), dtype=bool),
            "pseudo-labelled",
            targ=targ,
            weight=weight,
            changed=True,
        )

    return method


def second_head(targ: Any, *, noisy: bool) -> tuple[np.ndarray, np.ndarray]:
    """Targets and weights for a model whose outputs are the tags twice, first as in curated, then as in noisy labels.

    Parameters
    ----------
    targ
        Shape (clips, tags).
    noisy
        Whether the labels are noisy ones: they teach the second half then, the first half otherwise.

    Returns
    -------
    Targets and weights, float32, both (clips, 2 tags). The weight is 2 where the clip teaches, so that a mean over all columns is the
    mean over the columns of its own head, and 0 elsewhere.

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
    both = (targ, idle), (np.full_like(targ, 2), idle)
    both_heads = [np.concatenate(halves[::-1] if noisy else halves, 1) for halves in both]
    return both_heads[0], both_heads[1]


def _of_tags(class_weight: Sequence[float], judged: NoisyLabelData) -> np.ndarray:
    weights = np.asarray(class_weight, dtype=np.float64)
    if weights.shape != (len(judged.tags),) or not (weights >= 0).all():
        raise OptionError(
            f"class_weight is {class_weight}; expected a number of at least 0 for each of the {len(judged.tags)} tags"
        )
    return weights


def _shares(given: str | Mapping[str, float] | None, *, with_corrected: bool) -> Mapping[str, float]:
    if given is None:
        given = "corr_noisy_004" if with_corrected else "auxiliary_016"
    if isinstance(given, str):
        if given not in MIXTURE_WEIGHTS:
            raise OptionError(f"no mixture is named {given!r}; {did_you_mean(given, list(MIXTURE_WEIGHTS))}")
        given = MIXTURE_WEIGHTS[given]
    if given.get("corrected") and not with_corrected:
        raise DataError(
            f"shares {dict(given)} draw corrected clips, but no clip is corrected: give corrections, or other shares"
        )
    return dict(given)


def _joined(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    rows = np.concatenate([one, other.astype(one.dtype)])
    rows.setflags(write=False)
    return rows
