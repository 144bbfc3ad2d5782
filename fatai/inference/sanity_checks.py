"""What looks wrong in predictions that fit their sample: constant tags, many ties, test scores unlike the out-of-fold ones.

None of it is forbidden; each is what a broken model, a cut file or another preparation of the test clips looks like.
"""

from __future__ import annotations

import numpy as np

from fatai.errors import SubmissionError
from fatai.io.csv import format_names
from fatai.inference.predictions import Predictions

__all__ = ["constant_tags", "shifted_tags", "sanity_warnings", "tied_share"]

TIED_SHARE = 0.1  # of the values of a table; of 80 tags rounded to 4 digits about a seventh tie
TIED_FIRST = 0.01  # of the clips: whose first place is shared
SHIFT, SURE = (
    0.2,
    0.001,
)  # least distance of the distributions that is told, and the chance of it, over all tags, if there were none


def sanity_warnings(preds: Predictions, oof: Predictions | None = None) -> list[str]:
    """One sentence for each thing that looks wrong; none if nothing does.

    Parameters
    ----------
    preds
        Of test clips.
    oof
        Out-of-fold predictions of the same model, for the comparison of distributions.

    Raises
    ------
    SubmissionError
        If `oof` lacks a tag.
    """
    found = []
    constant = constant_tags(preds)
    if constant:
        found.append(
            f"{len(constant)} of {len(preds.tags)} tags are the same in every clip: {format_names(constant)}; were they trained on?"
        )
    tied, first = tied_share(preds)
    if first > TIED_FIRST:
        found.append(
            f"in {first:.0%} of the clips several tags share the first place; the score counts ties against you"
        )
    elif tied > TIED_SHARE:
        found.append(
            f"{tied:.0%} of the values are shared by tags of the same clip; the score counts ties against you: write more digits, "
            "or blend by mean rather than by a rank"
        )
    if oof is not None:
        shifted = shifted_tags(preds, oof)
        if shifted:
            worst = ", ".join(f"{tag!r} (by {distance:.2f})" for tag, distance in shifted[:3])
            found.append(
                f"{len(shifted)} of {len(preds.tags)} tags are distributed otherwise in the test clips than out of fold, most "
                f"of all {worst}; are both prepared alike? A mean over folds is narrower than one fold by nature"
            )
    return found


def constant_tags(preds: Predictions) -> list[str]:
    """Tags with one value in all clips; none if there are fewer than two clips.

    Examples
    --------
    >>> constant_tags(Predictions(["a", "b"], ["Bark", "Meow"], [[0.5, 0.1], [0.5, 0.2]]))
    ['Bark']
    """
    if len(preds) < 2:
        return []
    return [preds.tags[i] for i in np.flatnonzero(np.ptp(preds.probs, axis=0) == 0)]


def tied_share(preds: Predictions) -> tuple[float, float]:
    """Share of values that another tag of the clip has too, and share of clips in which several tags have the highest value.

    Examples
    --------
    >>> tied_share(Predictions(["a", "b"], ["Bark", "Meow", "Purr", "Oboe"], [[0.9, 0.1, 0.1, 0.2], [0.7, 0.7, 0.3, 0.2]]))
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
    preds: Predictions, oof: Predictions, *, least: float = SHIFT, sure: float = SURE
) -> list[tuple[str, float]]:
    """Tags whose values are distributed otherwise in the two, the farthest first, each with the distance.

    The distance is that of Kolmogorov and Smirnov: the greatest gap between the shares of clips below a value, in [0, 1]. Told are
    distances of at least `least` that have a chance below `sure`, divided by the number of tags, if both come from one distribution.
    """
    from scipy.stats import ks_2samp

    lacking = [tag for tag in preds.tags if tag not in oof.tags]
    if lacking:
        raise SubmissionError(f"the out-of-fold predictions lack the tags {format_names(lacking)}")
    if not len(preds) or not len(oof):
        return []
    theirs = oof.select(oof.fnames, preds.tags).probs
    # The asymptotic chance: the exact one of some thousand clips takes long and differs by nothing.
    tests = [
        ks_2samp(ours, other, method="auto" if len(ours) < 500 else "asymp")
        for ours, other in zip(preds.probs.T, theirs.T)
    ]
    found = [
        (tag, float(t.statistic))
        for tag, t in zip(preds.tags, tests)
        if t.statistic >= least and t.pvalue < sure / len(preds.tags)
    ]
    return sorted(found, key=lambda pair: -pair[1])
