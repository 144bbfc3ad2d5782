"""A run's calibration: fitted on its out-of-fold predictions, judged on folds that it was not fitted on, kept in its folder."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fatai.io.atomic import write_file
from fatai.errors import DataError, OptionError
from fatai.ensemble.members import align_out_of_fold, read_folds
from fatai.inference.predictions import Predictions
from fatai.inference.ground_truth import Table
from fatai.metrics.calibration import CALIBRATION, Calibration, cross_calibrated
from fatai.metrics.ranking import lwlrap
from fatai.metrics.calibration_curve import Reliability, plot_reliability, reliability
from fatai.metrics.thresholds import Thresholds, f1_thresholds, precision_thresholds

__all__ = ["MetricChange", "CalibrationResult", "calibrate_run"]


class MetricChange(NamedTuple):
    """A number of a run's out-of-fold predictions as they are, and calibrated with what was fitted on other folds."""

    before: float
    after: float


@dataclass(frozen=True)
class CalibrationResult:
    """What `calibrate_run` found.

    Attributes
    ----------
    path
        Where the calibration was written.
    calibration
        Fitted on all clips.
    clips
        How many clips have both out-of-fold predictions and a truth.
    errors, scores
        Expected calibration error and lwlrap, before and after; calibration may change the order of tags within a clip.
    curves
        What the errors were measured on, by the names "before" and "after".
    """

    path: Path
    calibration: Calibration
    clips: int
    errors: MetricChange
    scores: MetricChange
    curves: dict[str, Reliability]

    def draw(self, path: str | os.PathLike[str]) -> None:
        """Write the reliability plot, in the format that the suffix of `path` names; one that matplotlib lacks is an `OptionError`."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5, 5), layout="constrained")
        plot_reliability(self.curves, figure.add_subplot())
        with write_file(path) as beside:
            try:
                figure.savefig(beside, dpi=150, format=beside.suffix[1:] or "png")
            except ValueError as e:
                raise OptionError(
                    f"{path} cannot be drawn: {e}; expected a name that ends in .png, .svg or .pdf"
                ) from None


def calibrate_run(
    run: str | os.PathLike[str], truth: Table, *, how: str = "platt", thresholds: str | None = None
) -> CalibrationResult:
    """Fit a calibration on a run's oof.csv and write it to calibration.json in the run.

    Parameters
    ----------
    truth
        Tags of the training clips, a table as in `Predictions.against`; clips without a prediction are left out.
    how
        As in `Calibration.fit`.
    thresholds
        "f1" or a precision, such as "0.9": with which thresholds of the calibrated probabilities are found; None finds none.

    Raises
    ------
    DataError
        If the run has no oof.csv or folds.csv, or fewer than two of its folds were trained.
    OptionError
        If `how` or `thresholds` is unknown.
    """
    run = Path(run)
    oof_score, folds = Predictions.from_csv(run / "oof.csv"), read_folds(run / "folds.csv")
    known = align_out_of_fold([oof_score], truth, oof_score.tags, [folds])
    n_trained = len({folds[name] for name in known.fnames if name in folds})
    if n_trained < 2:
        raise DataError(
            f"{run} has out-of-fold predictions of {n_trained} folds; a calibration is judged across two or more: train them"
        )
    probs, targ = known.probs[0], known.targ
    crossed = cross_calibrated(probs, targ, known.folds, how=how)
    calibration = Calibration.fit(probs, targ, oof_score.tags, how=how)
    if thresholds is not None:
        # Those of the calibrated probabilities that no clip's own label shaped.
        calibration = replace(calibration, thresholds=_thresholds(thresholds, crossed, targ, oof_score.tags))
    curves = {"before": reliability(probs, targ), "after": reliability(crossed, targ)}
    calibration.to_json(run / CALIBRATION)
    return CalibrationResult(
        run / CALIBRATION, calibration, len(known.fnames), MetricChange(curves["before"].error, curves["after"].error),
        MetricChange(lwlrap(probs, targ), lwlrap(crossed, targ)), curves,
    )


def _thresholds(how: str, probs: np.ndarray, targ: np.ndarray, tags: tuple[str, ...]) -> Thresholds:
    if how == "f1":
        return f1_thresholds(probs, targ, tags)
    try:
        precision = float(how)
    except ValueError:
        raise OptionError(f"thresholds is {how!r}; expected f1, or a precision such as 0.9") from None
    return precision_thresholds(probs, targ, precision, tags)
