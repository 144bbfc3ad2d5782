"""How far probabilities are from what happens: expected calibration error and the picture of it.

Conventions: `probs` is (clips, tags), within [0, 1]; `targ` (clips, tags) of 0 and 1. Every (clip, tag) pair counts alike; pairs fall into
bins by their probability. Most pairs of a clip with few of many tags are near 0 and rightly so, which makes the error of all of them
small: compare it between models on the same clips and tags, not with numbers from elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fatai.errors import DataError, OptionError
from fatai.metrics._validation import check_inputs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Reliability", "expected_calibration_error", "plot_reliability", "reliability"]

# Of Okabe and Ito, which all kinds of colour vision tell apart; marks and lines differ too.
_STYLES = (("#D55E00", "o", "--"), ("#0072B2", "s", "-"), ("#009E73", "^", "-."), ("#CC79A7", "D", ":"))


class Reliability(NamedTuple):
    """One entry for each bin that is not empty: mean probability, share of pairs whose tag is present, number of pairs."""

    prob: np.ndarray
    share: np.ndarray
    pairs: np.ndarray

    @property
    def error(self) -> float:
        """Mean distance of probability and share, each bin counted by its pairs; NaN without any."""
        return (
            float(np.average(np.abs(self.prob - self.share), weights=self.pairs)) if len(self.pairs) else float("nan")
        )


def reliability(probs: Any, targ: Any, *, bins: int = 15, by: str = "width") -> Reliability:
    """What happens at each level of probability.

    Parameters
    ----------
    probs, targ
        Shape (clips, tags).
    bins
        How many.
    by
        "width": bins of equal width, the upper end belongs to a bin; "count": bins with equally many pairs, up to one.

    Raises
    ------
    OptionError
        If there is no bin or no such `by`.
    ShapeError, DataError
        If the tables do not fit each other, or `probs` leaves [0, 1].

    Examples
    --------
    >>> reliability([[0.2, 0.9], [0.4, 0.9]], [[0, 1], [1, 1]], bins=2).share.tolist()
    [0.5, 1.0]
    """
    if bins < 1 or by not in ("width", "count"):
        raise OptionError(f"bins is {bins} and by {by!r}; expected a bin or more, by 'width' or 'count'")
    both = check_inputs(probs, targ)
    values, present = both.scores.ravel().astype(np.float64), both.present.ravel()
    if not ((values >= 0) & (values <= 1)).all():
        raise DataError("probs leaves [0, 1]; expected probabilities: take the sigmoid of logits first")
    if by == "width":
        at = np.clip(np.ceil(values * bins).astype(int) - 1, 0, bins - 1)
    else:
        at = np.empty(len(values), dtype=int)
        at[np.argsort(values, kind="stable")] = np.arange(len(values)) * bins // max(1, len(values))
    count, prob, share = (np.bincount(at, weights=w, minlength=bins) for w in (np.ones(len(values)), values, present))
    full = count > 0
    return Reliability(prob[full] / count[full], share[full] / count[full], count[full].astype(int))


def expected_calibration_error(
    probs: Any, targ: Any, *, bins: int = 15, by: str = "width", average: str = "micro"
) -> float:
    """Mean distance of what is said and what happens, within [0, 1]; 0 is perfect.

    Parameters
    ----------
    average
        "micro": one set of bins for all (clip, tag) pairs; "macro": the mean over tags of each tag's own error.

    The other parameters and errors are those of `reliability`.

    Examples
    --------
    Of two clips at 0.8 one has the tag: |0.8 - 0.5|.

    >>> round(expected_calibration_error([[0.8], [0.8]], [[1], [0]]), 6)
    0.3
    """
    if average not in ("micro", "macro"):
        raise OptionError(f"average is {average!r}; expected 'micro' or 'macro'")
    if average == "micro":
        return reliability(probs, targ, bins=bins, by=by).error
    both = check_inputs(probs, targ)
    columns = range(both.scores.shape[1])
    return float(
        np.mean([reliability(both.scores[:, [k]], both.present[:, [k]], bins=bins, by=by).error for k in columns])
    )


def plot_reliability(curves: Mapping[str, Reliability], ax: Axes | None = None) -> Axes:
    """Draw what happens over what was said, a line for each of up to four curves; the diagonal is perfect.

    Parameters
    ----------
    curves
        Name of each curve, for the legend, to what `reliability` returned.
    ax
        Where to draw; a new figure if None.
    """
    if not 0 < len(curves) <= len(_STYLES):
        raise OptionError(f"there are {len(curves)} curves; expected 1 to {len(_STYLES)}, which can be told apart")
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=(5, 5), layout="constrained")
    ax.plot([0, 1], [0, 1], color="#999999", linewidth=1, label="perfect")
    for (name, curve), (colour, marker, line) in zip(curves.items(), _STYLES):
        ax.plot(
            curve.prob,
            curve.share,
            color=colour,
            marker=marker,
            linestyle=line,
            label=f"{name}: error {curve.error:.4f}",
        )
    ax.set(
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        xlabel="probability said",
        ylabel="share of clips with the tag",
        aspect="equal",
    )
    ax.legend()
    return ax
