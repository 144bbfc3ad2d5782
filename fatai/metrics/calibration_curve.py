"""Calibration curves and expected calibration error: predicted probabilities against the observed frequencies.

Conventions: `probs` is (clips, tags), within [0, 1]; `targ` (clips, tags) of 0 and 1. Every (clip, tag) pair has the
same weight; pairs are binned by their probability, as in `sklearn.calibration.calibration_curve`. Most pairs of a clip
with few of many tags are near 0, and rightly so, which makes the error of all of them small: compare it between models
on the same clips and tags, not with numbers from elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fatai.errors import OptionError
from fatai.metrics._validation import check_inputs, check_probabilities

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CalibrationCurve", "calibration_curve", "expected_calibration_error", "plot_calibration_curve"]

# Colors of Okabe and Ito, distinct for all kinds of color vision; markers and lines differ too.
_STYLES = (("#D55E00", "o", "--"), ("#0072B2", "s", "-"), ("#009E73", "^", "-."), ("#CC79A7", "D", ":"))


class CalibrationCurve(NamedTuple):
    """Predicted and observed frequency in each bin that is not empty.

    Attributes
    ----------
    prob_pred
        Shape (bins,): mean probability, in [0, 1].
    prob_true
        Shape (bins,): fraction of pairs whose tag is present, in [0, 1].
    counts
        Shape (bins,): number of pairs.
    """

    prob_pred: np.ndarray
    prob_true: np.ndarray
    counts: np.ndarray

    @property
    def error(self) -> float:
        """Mean distance of predicted and observed frequency, a scalar, weighted by the counts; NaN without pairs."""
        if not len(self.counts):
            return float("nan")
        return float(np.average(np.abs(self.prob_pred - self.prob_true), weights=self.counts))


def calibration_curve(probs: Any, targ: Any, *, n_bins: int = 15, strategy: str = "uniform") -> CalibrationCurve:
    """Compute the observed frequency of tags at each level of probability, over all (clip, tag) pairs.

    Parameters
    ----------
    probs, targ
        Shape (clips, tags).
    n_bins
        Number of bins.
    strategy
        "uniform": bins of equal width, which include their upper end; "quantile": bins with equally many pairs, up to
        ties.

    Raises
    ------
    OptionError
        If `n_bins` is less than 1, or `strategy` unknown.
    ShapeError, DataError
        If the tables do not fit each other, or `probs` exceeds [0, 1].

    Examples
    --------
    >>> calibration_curve([[0.2, 0.9], [0.4, 0.9]], [[0, 1], [1, 1]], n_bins=2).prob_true.tolist()
    [0.5, 1.0]
    """
    from sklearn import calibration

    if n_bins < 1 or strategy not in ("uniform", "quantile"):
        raise OptionError(
            f"n_bins is {n_bins} and strategy {strategy!r}; expected at least one bin, and 'uniform' or 'quantile'"
        )
    checked = check_inputs(probs, targ)
    values, present = check_probabilities(checked.scores.ravel()), checked.present.ravel()
    if not len(values):
        return CalibrationCurve(np.empty(0), np.empty(0), np.empty(0, dtype=int))
    prob_true, prob_pred = calibration.calibration_curve(present, values, n_bins=n_bins, strategy=strategy)
    # scikit-learn does not return the counts: those of the same bins.
    edges = np.linspace(0, 1, n_bins + 1)
    if strategy == "quantile":
        edges = np.percentile(values, edges * 100)
    counts = np.bincount(np.searchsorted(edges[1:-1], values))
    return CalibrationCurve(prob_pred, prob_true, counts[counts > 0])


def expected_calibration_error(
    probs: Any, targ: Any, *, n_bins: int = 15, strategy: str = "uniform", average: str = "micro"
) -> float:
    """Compute the mean distance of predicted and observed frequency, within [0, 1]; 0 is perfect.

    Parameters
    ----------
    probs, targ
        Shape (clips, tags).
    n_bins, strategy
        As in `calibration_curve`, whose errors are raised.
    average
        "micro": one set of bins for all (clip, tag) pairs; "macro": the mean over tags of the error of each.

    Examples
    --------
    Of two clips at 0.8 one has the tag: |0.8 - 0.5|.

    >>> round(expected_calibration_error([[0.8], [0.8]], [[1], [0]]), 6)
    0.3
    """
    if average not in ("micro", "macro"):
        raise OptionError(f"average is {average!r}; expected 'micro' or 'macro'")
    if average == "micro":
        return calibration_curve(probs, targ, n_bins=n_bins, strategy=strategy).error
    scores, present, _ = check_inputs(probs, targ)
    return float(
        np.mean(
            [
                calibration_curve(scores[:, [k]], present[:, [k]], n_bins=n_bins, strategy=strategy).error
                for k in range(scores.shape[1])
            ]
        )
    )


def plot_calibration_curve(curves: Mapping[str, CalibrationCurve], ax: Axes | None = None) -> Axes:
    """Plot observed against predicted frequency for up to four curves; a perfect one is the diagonal.

    Parameters
    ----------
    curves
        Name of each curve, for the legend, to the result of `calibration_curve`.
    ax
        Axes to draw into; a new figure if None.

    Raises
    ------
    OptionError
        If there are no curves, or more than four.
    """
    if not 0 < len(curves) <= len(_STYLES):
        raise OptionError(f"there are {len(curves)} curves; expected 1 to {len(_STYLES)}, which have distinct styles")
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=(5, 5), layout="constrained")
    ax.plot([0, 1], [0, 1], color="#999999", linewidth=1, label="perfect")
    for (name, curve), (color, marker, line) in zip(curves.items(), _STYLES, strict=False):
        label = f"{name}: error {curve.error:.4f}"
        ax.plot(curve.prob_pred, curve.prob_true, color=color, marker=marker, linestyle=line, label=label)
    ax.set(
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        xlabel="predicted probability",
        ylabel="fraction of clips with the tag",
        aspect="equal",
    )
    ax.legend()
    return ax
