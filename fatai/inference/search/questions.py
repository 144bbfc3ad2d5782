"""The label loop: which windows to ask a user about next, and what a probe learns from the answers.

A probe is a logistic regression for each tag on the standardized features of the index, fitted on the windows that
are known to have or to lack the tag; windows of which nothing is known are not taken for either. Some sounds are *held
out*: by a hash of their name, so that they are the same in every round. Their answers are never trained on, and
questions about them are drawn at random rather than chosen, so that the average precision on them is not that of easy
or hard cases.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from fatai.errors import DataError, OptionError
from fatai.inference.linear_probe import LinearProbe
from fatai.inference.search.index import SoundIndex
from fatai.inference.search.labels import LabeledWindows
from fatai.inference.search.ranking import (
    RankedWindows,
    cosine_similarity,
    likely_windows,
    rank_windows,
    similar_windows,
    uncertainty,
)
from fatai.metrics.classification import mean_ap

__all__ = ["HeldOutScore", "WindowProbe", "fit_probe", "held_out_rows", "held_out_score", "next_questions"]

HOLDOUT = 0.2
"""Fraction of sounds, and of questions, that are held out."""
C = 0.01
"""Inverse strength of the penalty; features are standardized, and answers are few."""

_LIKELY_EVERY = 4  # of the chosen questions one in so many is the most likely window, the others the most uncertain
_Question: TypeAlias = tuple[int, float, str]  # row, score, why


class WindowProbe(NamedTuple):
    """Logistic regressions on the features of an index.

    Attributes
    ----------
    probe
        For the tags with at least one window that has it and one that lacks it.
    n_present, n_absent
        Number of windows of both kinds that each tag was fitted on.
    """

    probe: LinearProbe
    n_present: dict[str, int]
    n_absent: dict[str, int]

    def probs(self, features: np.ndarray, tag: str) -> np.ndarray:
        """Return the probability of a tag, (windows,), from features (windows, features)."""
        return self.probe.probs(features)[:, self.probe.tags.index(tag)]


class HeldOutScore(NamedTuple):
    """Average precision of a tag in [0, 1] on held-out windows, of which `n_present` have it and `n_absent` lack it.

    `ap` is None unless there are both.
    """

    ap: float | None
    n_present: int
    n_absent: int


def held_out_rows(index: SoundIndex, fraction: float = HOLDOUT) -> np.ndarray:
    """Return which windows are held out, bool (windows,): those of a fixed fraction of the sounds, by their names.

    Raises
    ------
    OptionError
        If `fraction` is not within [0, 0.9].
    """
    if not 0 <= fraction <= 0.9:
        raise OptionError(f"the fraction of held-out sounds is {fraction}; expected 0 to 0.9")
    names = (os.path.basename(path) for path in index.paths)
    digests = (hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=4).digest() for name in names)
    is_held_out = np.array([int.from_bytes(digest, "big") < fraction * 2**32 for digest in digests], dtype=bool)
    return is_held_out[index.file]


def feature_statistics(index: SoundIndex) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each feature over all windows, float64 (features,); 1 for constant ones.

    Raises
    ------
    DataError
        If the index has no windows.
    """
    from sklearn.preprocessing import StandardScaler

    if not len(index):
        raise DataError(f"{index.folder} has no windows; add sounds with fatai-submit index")
    scaler = StandardScaler()
    for _, features in index.blocks():
        scaler.partial_fit(features.astype(np.float64))
    return scaler.mean_, scaler.scale_


def fit_probe(
    index: SoundIndex,
    labeled: LabeledWindows,
    *,
    tags: Sequence[str] | None = None,
    holdout: float = HOLDOUT,
    examples: dict[str, np.ndarray] | None = None,
    statistics: tuple[np.ndarray, np.ndarray] | None = None,
) -> WindowProbe | None:
    """Fit a logistic regression for each tag on the answers of windows that are not held out; takes seconds at most.

    Parameters
    ----------
    index
        The windows.
    labeled
        What is known of them.
    tags
        Tags to fit; None for all of `labeled`.
    holdout
        As in `held_out_rows`.
    examples
        Features (examples, features) of sounds outside the index that have a tag, by tag.
    statistics
        The result of `feature_statistics`, if it is at hand.

    Returns
    -------
    The probe, or None if no tag has both kinds of windows.
    """
    from sklearn.linear_model import LogisticRegression

    mean, scale = feature_statistics(index) if statistics is None else statistics
    held_out, fitted, n_present, n_absent = held_out_rows(index, holdout), [], {}, {}
    for tag in labeled.tags if tags is None else tags:
        rows, present = labeled.of(tag)
        rows, present = rows[~held_out[rows]], present[~held_out[rows]]
        own = (examples or {}).get(tag, np.zeros((0, len(mean)), np.float32))
        targ = np.concatenate([np.ones(len(own), bool), present])
        n_present[tag], n_absent[tag] = int(targ.sum()), int((~targ).sum())
        if not n_present[tag] or not n_absent[tag]:
            continue
        values = (np.concatenate([own, index.features(rows)]) - mean) / scale
        # Answers have other proportions than the sounds: weighted equally, 0.5 separates both kinds.
        model = LogisticRegression(C=C, max_iter=1000, class_weight="balanced").fit(values, targ)
        fitted.append((tag, targ.mean(), model.coef_[0], model.intercept_[0]))
    if not fitted:
        return None
    names, prior, coef, intercept = zip(*fitted, strict=True)
    probe = LinearProbe(names, np.array(prior), mean, scale, np.stack(coef), np.array(intercept))
    return WindowProbe(probe, n_present, n_absent)


def held_out_score(
    index: SoundIndex, labeled: LabeledWindows, probe: WindowProbe | None, tag: str, *, holdout: float = HOLDOUT
) -> HeldOutScore:
    """Score a probe on the answered windows of held-out sounds; without a probe only count them."""
    rows, present = labeled.of(tag)
    is_held_out = held_out_rows(index, holdout)[rows]
    rows, present = rows[is_held_out], present[is_held_out]
    counts = int(present.sum()), int((~present).sum())
    if not all(counts) or probe is None or tag not in probe.probe.tags:
        return HeldOutScore(None, *counts)
    return HeldOutScore(mean_ap(probe.probs(index.features(rows), tag)[:, None], present[:, None]), *counts)


def next_questions(
    index: SoundIndex,
    labeled: LabeledWindows,
    tag: str,
    n: int = 20,
    *,
    probe: WindowProbe | None = None,
    examples: np.ndarray | None = None,
    holdout: float = HOLDOUT,
    exclude: Collection[int] = (),
    seed: int = 0,
) -> pd.DataFrame:
    """Choose the windows to ask about next.

    Until windows with and without the tag are known, half of these are the most similar to those known to have it, or
    where there are none the most likely by the network of the index, and half are drawn at random, most of which lack a
    rare tag. Then, one in four is the most likely by the probe, and the others are those whose probability is nearest
    to 0.5. A fraction is drawn at random from held-out sounds.

    Parameters
    ----------
    index, labeled
        The windows, and what is known of them.
    tag
        The tag to ask about.
    n
        Number of windows.
    probe
        Fitted on the answers; None if there is none yet.
    examples
        Features (examples, features) of sounds that have the tag.
    holdout
        Fraction of held-out sounds, and of questions about them.
    exclude
        More rows that are not asked about.
    seed
        Seed of the random draw.

    Returns
    -------
    Columns `file`, `start`, `end`, `score` (cosine or probability) and `why` ("similar", "likely", "uncertain",
    "random" or "held out"); the rows of the index as index; in the order to ask in.

    Raises
    ------
    OptionError
        If there is nothing to begin with: neither an example nor an answer nor a network with the tag.
    """
    is_held_out = held_out_rows(index, holdout)
    known = set(labeled.of(tag)[0].tolist()) | set(exclude)
    drawn = _draw(np.flatnonzero(is_held_out), known, round(holdout * n), seed)
    avoid = known | set(np.flatnonzero(is_held_out).tolist())
    chosen, score = _choose(index, labeled, tag, n - len(drawn), probe, examples, avoid, seed)
    scores = score(index.features(drawn)) if len(drawn) else np.zeros(0)
    chosen += list(zip(drawn.tolist(), np.asarray(scores).tolist(), ["held out"] * len(drawn), strict=True))
    # Held-out windows are spread over the others.
    places = [*np.arange(len(chosen) - len(drawn)), *(np.linspace(0, len(chosen), len(drawn) + 2)[1:-1] - 0.5)]
    rows, values, why = (
        zip(*[chosen[k] for k in np.argsort(places, kind="stable")], strict=True) if chosen else ((), (), ())
    )
    return index.table(np.array(rows, dtype=np.int64)).assign(score=np.array(values, float), why=list(why))


def _draw(rows: np.ndarray, known: Collection[int], n: int, seed: int) -> np.ndarray:
    """Draw unknown rows: the first of a fixed random order, so that answers do not change what is drawn next."""
    order = np.random.default_rng(seed).permutation(rows)
    return np.array([row for row in order.tolist() if row not in known][:n], dtype=np.int64)


def _choose(
    index: SoundIndex,
    labeled: LabeledWindows,
    tag: str,
    n: int,
    probe: WindowProbe | None,
    examples: np.ndarray | None,
    avoid: Collection[int],
    seed: int,
) -> tuple[list[_Question], Callable[[np.ndarray], np.ndarray]]:
    """Return (row, score, why) of the chosen questions, and the function that scores features (windows, features)."""
    if probe is not None and tag in probe.probe.tags:
        def score(features: np.ndarray) -> np.ndarray:
            return probe.probs(features, tag)

        n_likely = -(-n // _LIKELY_EVERY)
        likely = rank_windows(index, score, max(n_likely, 1), exclude=avoid)
        uncertain = rank_windows(
            index, lambda features: uncertainty(score(features)), max(n, 1), exclude=[*avoid, *likely.rows.tolist()]
        )
        by_score = score(index.features(uncertain.rows)) if len(uncertain.rows) else uncertain.scores
        chosen = _interleave(_with(likely, "likely"), _with(RankedWindows(uncertain.rows, by_score), "uncertain"), n)
        return chosen, score
    rows, present = labeled.of(tag)
    positives = np.concatenate([index.features(rows[present]), *([] if examples is None else [examples])])
    n_first = max(-(-n // 2), 1)
    if len(positives):
        first = _with(similar_windows(index, positives, n_first, exclude=avoid), "similar")
        score = partial(cosine_similarity, positives)
    elif tag in index.tags:
        first, score = _with(likely_windows(index, tag, n_first, exclude=avoid), "likely"), _unknown
    else:
        raise OptionError(
            f"nothing is known of the tag {tag!r}: the network of {index.folder} does not predict it, and there is no "
            "window that has it; give an example"
        )
    others = _draw(np.arange(len(index)), {*avoid, *(row for row, *_ in first)}, n, seed)
    values = score(index.features(others))
    return _interleave(first, _with(RankedWindows(others, values), "random"), n, every=2), score


def _with(ranked: RankedWindows, why: str) -> list[_Question]:
    return [(row, value, why) for row, value in zip(ranked.rows.tolist(), ranked.scores.tolist(), strict=True)]


def _unknown(features: np.ndarray) -> np.ndarray:
    return np.full(len(features), np.nan)


def _interleave(
    first: list[_Question], others: list[_Question], n: int, every: int = _LIKELY_EVERY
) -> list[_Question]:
    """Return one of the first and then `every - 1` of the others, again and again."""
    ranks = [*(every * k for k in range(len(first))), *(k + k // (every - 1) + 1 for k in range(len(others)))]
    both = [*first, *others]
    return [both[k] for k in np.argsort(ranks, kind="stable")[:n]]
