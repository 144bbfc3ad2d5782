"""Warnings about valid predictions that look wrong: constant tags, many ties, a shift against out-of-fold predictions.

None of it is forbidden; each is typical of a broken model, a truncated file or test clips that were prepared otherwise.
"""

from __future__ import annotations

import numpy as np

from fatai.errors import SubmissionError
from fatai.inference.predictions import Predictions
from fatai.io.csv import format_names

__all__ = ["constant_tags", "sanity_warnings", "shifted_tags", "tied_fractions"]

MAX_TIED = 0.1
"""Fraction of tied values above which they are reported; of 80 tags rounded to 4 digits about a seventh tie."""
MAX_TIED_FIRST = 0.01
"""Fraction of clips with a tied first place above which they are reported."""
MIN_SHIFT = 0.2
"""Smallest distance of distributions that is reported."""
ALPHA = 0.001
"""Probability of a reported shift, over all tags, if there is none."""
_MAX_EXACT = 500  # clips up to which scipy chooses the exact test


def sanity_warnings(preds: Predictions, oof: Predictions | None = None) -> list[str]:
    """List what looks wrong in predictions.

    Parameters
    ----------
    preds
        Predictions of the test clips.
    oof
        Out-of-fold predictions of the same model, to compare the distributions with; None skips that check.

    Returns
    -------
    One sentence per finding; empty if nothing looks wrong.

    Raises
    ------
    SubmissionError
        If `oof` lacks a tag.
    """
    return [*_constant_warnings(preds), *_tie_warnings(preds), *([] if oof is None else _shift_warnings(preds, oof))]


def _constant_warnings(preds: Predictions) -> list[str]:
    constant = constant_tags(preds)
    if not constant:
        return []
    return [
        f"{len(constant)} of {len(preds.tags)} tags are the same in every clip: {format_names(constant)}; were they "
        "trained on?"
    ]


def _tie_warnings(preds: Predictions) -> list[str]:
    tied, first = tied_fractions(preds)
    if first > MAX_TIED_FIRST:
        return [f"in {first:.0%} of the clips several tags share the first place; ties lower the score"]
    if tied > MAX_TIED:
        return [
            f"{tied:.0%} of the values are shared by tags of the same clip; ties lower the score: write more digits, "
            "or average probabilities rather than ranks"
        ]
    return []


def _shift_warnings(preds: Predictions, oof: Predictions) -> list[str]:
    shifted = shifted_tags(preds, oof)
    if not shifted:
        return []
    worst = ", ".join(f"{tag!r} (by {distance:.2f})" for tag, distance in shifted[:3])
    return [
        f"{len(shifted)} of {len(preds.tags)} tags have another distribution in the test clips than out of fold, the "
        f"farthest {worst}; are both prepared alike? An average over folds is narrower than a single fold by nature"
    ]


def constant_tags(preds: Predictions) -> list[str]:
    """Return the tags with one value in all clips; none if there are fewer than two clips.

    Examples
    --------
    >>> constant_tags(Predictions(["a", "b"], ["Bark", "Meow"], [[0.5, 0.1], [0.5, 0.2]]))
    ['Bark']
    """
    if len(preds) < 2:
        return []
    return [preds.tags[i] for i in np.flatnonzero(np.ptp(preds.probs, axis=0) == 0)]


def tied_fractions(preds: Predictions) -> tuple[float, float]:
    """Compute how many values are tied within their clip.

    Returns
    -------
    Fraction of values that another tag of the clip has too, and fraction of clips in which several tags have the
    highest value.

    Examples
    --------
    >>> probs = [[0.9, 0.1, 0.1, 0.2], [0.7, 0.7, 0.3, 0.2]]
    >>> tied_fractions(Predictions(["a", "b"], ["Bark", "Meow", "Purr", "Oboe"], probs))
    (0.5, 0.5)
    """
    if not preds.probs.size:
        return 0.0, 0.0
    in_order = np.sort(preds.probs, axis=1)
    same = np.diff(in_order, axis=1) == 0
    none = np.zeros((len(preds), 1), dtype=bool)
    tied = np.hstack([same, none]) | np.hstack([none, same])
    first = same[:, -1:].any(axis=1)
    return float(tied.mean()), float(first.mean())


def shifted_tags(
    preds: Predictions, oof: Predictions, *, min_shift: float = MIN_SHIFT, alpha: float = ALPHA
) -> list[tuple[str, float]]:
    """Find tags whose values have another distribution in the two (two-sample Kolmogorov-Smirnov test).

    Parameters
    ----------
    preds, oof
        Predictions of the same tags for different clips.
    min_shift
        Smallest distance that is returned: the largest gap between the two cumulative distributions, within [0, 1].
    alpha
        Significance level over all tags (Bonferroni).

    Returns
    -------
    Tags with their distances, the farthest first.

    Raises
    ------
    SubmissionError
        If `oof` lacks a tag.
    """
    from scipy.stats import ks_2samp

    missing = [tag for tag in preds.tags if tag not in oof.tags]
    if missing:
        raise SubmissionError(f"the out-of-fold predictions lack the tags {format_names(missing)}")
    if not len(preds) or not len(oof):
        return []
    oof_probs = oof.select(oof.fnames, preds.tags).probs
    # Asymptotic for many clips: the exact test of some thousand clips takes long and differs by nothing.
    method = "auto" if len(preds) < _MAX_EXACT else "asymp"
    tests = [ks_2samp(ours, theirs, method=method) for ours, theirs in zip(preds.probs.T, oof_probs.T, strict=True)]
    found = [
        (tag, float(test.statistic))
        for tag, test in zip(preds.tags, tests, strict=True)
        if test.statistic >= min_shift and test.pvalue < alpha / len(preds.tags)
    ]
    return sorted(found, key=lambda pair: -pair[1])
