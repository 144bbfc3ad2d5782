"""Calibrate a run on its out-of-fold predictions, evaluated across folds, and write the calibration into its folder."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fatai.ensemble.members import align_out_of_fold, read_folds
from fatai.errors import DataError, OptionError
from fatai.inference.ground_truth import Table
from fatai.inference.predictions import Predictions
from fatai.io.atomic import write_file
from fatai.metrics.calibration import CALIBRATION, Calibration, cross_calibrate
from fatai.metrics.calibration_curve import CalibrationCurve, calibration_curve, plot_calibration_curve
from fatai.metrics.ranking import lwlrap
from fatai.metrics.thresholds import Thresholds, f1_thresholds, precision_thresholds

__all__ = ["MetricChange", "CalibrationResult", "calibrate_run"]


class MetricChange(NamedTuple):
    """A metric of out-of-fold predictions before calibration, and after one that was fitted on the other folds."""

    before: float
    after: float


@dataclass(frozen=True)
class CalibrationResult:
    """Result of `calibrate_run`.

    Attributes
    ----------
    path
        The file with the calibration.
    calibration
        Fitted on all clips.
    clips
        Number of clips with both out-of-fold predictions and a truth.
    errors, scores
        Expected calibration error and lwlrap, before and after; a calibration may change the order of tags within a
        clip.
    curves
        Reliability curves "before" and "after".
    """

    path: Path
    calibration: Calibration
    clips: int
    errors: MetricChange
    scores: MetricChange
    curves: dict[str, CalibrationCurve]

    def draw(self, path: str | os.PathLike[str]) -> None:
        """Write the reliability plot in the format of the suffix of `path`.

        Raises
        ------
        OptionError
            If matplotlib does not support the format.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5, 5), layout="constrained")
        plot_calibration_curve(self.curves, figure.add_subplot())
        with write_file(path) as beside:
            try:
                figure.savefig(beside, dpi=150, format=beside.suffix[1:] or "png")
            except ValueError as e:
                raise OptionError(
                    f"{path} cannot be drawn: {e}; expected a name that ends in .png, .svg or .pdf"
                ) from None


def calibrate_run(
    run: str | os.PathLike[str], truth: Table, *, method: str = "platt", thresholds: str | None = None
) -> CalibrationResult:
    """Fit a calibration on a run's oof.csv and write it to calibration.json in the run.

    Parameters
    ----------
    truth
        Tags of the training clips, a table as in `Predictions.score`; clips without a prediction are left out.
    method
        As `how` of `Calibration.fit`.
    thresholds
        Criterion of the thresholds of calibrated probabilities: "f1", or a precision such as "0.9"; None finds no
        thresholds.

    Raises
    ------
    DataError
        If the run has no oof.csv or folds.csv, or fewer than two of its folds were trained.
    OptionError
        If `method` or `thresholds` is unknown.
    """
    run = Path(run)
    oof, folds = Predictions.from_csv(run / "oof.csv"), read_folds(run / "folds.csv")
    known = align_out_of_fold([oof], truth, oof.tags, [folds])
    n_trained = len({folds[name] for name in known.fnames if name in folds})
    if n_trained < 2:
        raise DataError(
            f"{run} has out-of-fold predictions of {n_trained} folds; expected at least two, to evaluate the "
            "calibration across folds: train more"
        )
    probs, targ = known.probs[0], known.targ
    crossed = cross_calibrate(probs, targ, known.folds, method=method)
    calibration = Calibration.fit(probs, targ, oof.tags, method=method)
    if thresholds is not None:
        # On probabilities whose calibration was not fitted on the clip itself.
        calibration = replace(calibration, thresholds=_thresholds(thresholds, crossed, targ, oof.tags))
    curves = {"before": calibration_curve(probs, targ), "after": calibration_curve(crossed, targ)}
    calibration.to_json(run / CALIBRATION)
    return CalibrationResult(
        run / CALIBRATION, calibration, len(known.fnames), MetricChange(curves["before"].error, curves["after"].error),
        MetricChange(lwlrap(probs, targ), lwlrap(crossed, targ)), curves,
    )


def _thresholds(criterion: str, probs: np.ndarray, targ: np.ndarray, tags: tuple[str, ...]) -> Thresholds:
    """Find the thresholds for probabilities (clips, tags) and labels (clips, tags)."""
    if criterion == "f1":
        return f1_thresholds(probs, targ, tags)
    try:
        precision = float(criterion)
    except ValueError:
        raise OptionError(f"thresholds is {criterion!r}; expected f1, or a precision such as 0.9") from None
    return precision_thresholds(probs, targ, precision, tags)
