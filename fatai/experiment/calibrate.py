"""Calibrate a run on its out-of-fold predictions, evaluated across folds, and write the calibration into its folder.

The thresholds of a run are found by one of `RULES`, the one with the highest mean F1 across folds: a rule with more
freedom is better only where there are enough clips.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fatai.ensemble.members import align_out_of_fold, read_folds, run_table
from fatai.errors import DataError, OptionError
from fatai.inference.ground_truth import Table
from fatai.inference.predictions import Predictions
from fatai.io.atomic import write_file
from fatai.metrics.calibration import CALIBRATION, Calibration, cross_calibrate, cross_decide
from fatai.metrics.calibration_curve import CalibrationCurve, calibration_curve, plot_calibration_curve
from fatai.metrics.ranking import lwlrap
from fatai.metrics.thresholds import Thresholds, f1_thresholds, mean_f1, precision_thresholds

__all__ = ["MetricChange", "CalibrationResult", "calibrate_run"]


class MetricChange(NamedTuple):
    """A metric of out-of-fold predictions before calibration, and after one that was fitted on the other folds."""

    before: float
    after: float


_N_PARTS = 5  # in place of folds, where there is only one

RULES = {
    "half": "0.5 for all tags, as predicted",
    "f1_shared": "one for all tags",
    "f1_shrunk": "one for each tag, near that of all where it has few clips",
}
"""Rules for the thresholds of a run, from the one that is not fitted to the one with the most freedom."""

# Clips of a tag, as in `f1_thresholds`.
_SHRINKS = {"f1": 0.0, "f1_shrunk": 100.0, "f1_shared": np.inf}


class OutOfFold(NamedTuple):
    """Out-of-fold predictions of a run, `probs`, the same calibrated by the other folds, `crossed`, and `targ`.

    All three have shape (clips, tags); `folds` has the fold of each clip, shape (clips,).
    """

    probs: np.ndarray
    crossed: np.ndarray
    targ: np.ndarray
    folds: np.ndarray

    def select(self, clips: np.ndarray) -> OutOfFold:
        """Return the clips of a mask, shape (clips,); those of a single fold are split in parts."""
        probs, crossed, targ, folds = (part[clips] for part in self)
        if len(np.unique(folds)) < 2:
            folds = np.arange(len(folds)) % _N_PARTS
        return OutOfFold(probs, crossed, targ, folds)


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
    f1
        Mean F1 of the tags, at 0.5 before and at the thresholds after, those of each clip found on the other folds;
        None without thresholds.
    criterion
        That of the thresholds: the argument `thresholds`, or the rule that "best" chose.
    f1_of
        Mean F1 of each of `RULES`, found for each fold on the other folds, if "best" chose.
    """

    path: Path
    calibration: Calibration
    clips: int
    errors: MetricChange
    scores: MetricChange
    curves: dict[str, CalibrationCurve]
    f1: MetricChange | None = None
    criterion: str | None = None
    f1_of: dict[str, float] = field(default_factory=dict)

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

    Metrics are cross-fitted: the clips of each fold are calibrated by the other folds. If only one fold was trained,
    five parts of its held-out clips take the place of the folds.

    Parameters
    ----------
    truth
        Tags of the training clips, a table as in `Predictions.score`; clips without a prediction are left out.
    method
        As in `Calibration.fit`.
    thresholds
        Criterion of the thresholds of calibrated probabilities: "f1"; "f1_shrunk", which shrinks those of tags with few
        clips towards the one of all tags; "f1_shared", the latter; "half", 0.5 before calibration; "best", the one of
        the last three with the highest F1 across folds; or a precision such as "0.9". None finds no thresholds.

    Raises
    ------
    DataError
        If the run has no oof.csv or folds.csv, or predictions of fewer than two clips.
    OptionError
        If `method` or `thresholds` is unknown.
    """
    run = Path(run)
    oof, folds = Predictions.from_csv(run_table(run, "oof.csv")), read_folds(run / "folds.csv")
    known = align_out_of_fold([oof], truth, oof.tags, [folds])
    if len(known.fnames) < 2:
        raise DataError(f"{run} has out-of-fold predictions of {len(known.fnames)} clip; expected at least two clips")
    probs, targ = known.probs[0], known.targ
    crossed = cross_calibrate(probs, targ, known.folds, method=method)
    calibration = Calibration.fit(probs, targ, oof.tags, method=method)
    f1, criterion, f1_of = None, thresholds, {}
    if thresholds is not None:
        # On probabilities whose calibration was not fitted on the clip itself.
        clips = OutOfFold(probs, crossed, targ, known.folds)
        if thresholds == "best":
            f1_of = f1_of_rules(clips)
            criterion = _best(f1_of)
        assert criterion is not None
        calibration = replace(calibration, thresholds=find_thresholds(criterion, calibration, crossed, targ))
        f1 = MetricChange(mean_f1(probs >= 0.5, targ), mean_f1(_decide(thresholds, clips), targ))
    curves = {"before": calibration_curve(probs, targ), "after": calibration_curve(crossed, targ)}
    calibration.to_json(run / CALIBRATION)
    return CalibrationResult(
        run / CALIBRATION, calibration, len(known.fnames), MetricChange(curves["before"].error, curves["after"].error),
        MetricChange(lwlrap(probs, targ), lwlrap(crossed, targ)), curves, f1, criterion, f1_of,
    )


def calibrate_new_run(run: Path, truth: Table, log: Callable[[str], None]) -> dict[str, Any]:
    """Calibrate a run that has just ended, with thresholds by the best of `RULES`, and return notes for its manifest.

    The notes are empty, and nothing is written, if its clips do not suffice.
    """
    try:
        result = calibrate_run(run, truth, method="shared", thresholds="best")
    except DataError as e:
        log(f"no calibration and no thresholds: {e}")
        return {}
    assert result.f1 is not None and result.criterion is not None
    log(
        f"calibration and thresholds, each fold's found on the others: F1 {result.f1.after:.3f} "
        f"({result.f1.before:.3f} at 0.5), calibration error {result.errors.after:.4f} "
        f"({result.errors.before:.4f} as predicted)"
    )
    scores = ", ".join(f"{text} {result.f1_of[rule]:.3f}" for rule, text in RULES.items())
    log(f"thresholds: {RULES[result.criterion]}, the best of: {scores}")
    notes = {
        "method": "shared", "thresholds": result.criterion, "f1": result.f1._asdict(), "f1_of": result.f1_of,
        "error": result.errors._asdict(),
    }
    return {"calibration": notes}


def f1_of_rules(clips: OutOfFold) -> dict[str, float]:
    """Return the mean F1 of each of `RULES`, whose thresholds are found for each fold on the other folds."""
    return {rule: mean_f1(_decide(rule, clips), clips.targ) for rule in RULES}


def find_thresholds(
    criterion: str, calibration: Calibration, probs: np.ndarray, targ: np.ndarray
) -> Thresholds:
    """Find thresholds of the tags of a calibration.

    Parameters
    ----------
    criterion
        As in `calibrate_run`, except "best".
    probs, targ
        Calibrated probabilities and labels, shape (clips, tags).
    """
    if criterion == "half":
        return Thresholds(calibration.tags, tuple(calibration.apply(np.full((1, probs.shape[1]), 0.5))[0].tolist()))
    return _fitted_thresholds(criterion, probs, targ, calibration.tags)


def _best(f1_of: dict[str, float]) -> str:
    """Return the rule with the highest F1; of equal ones, and without any, the first."""
    return max(f1_of, key=lambda rule: np.nan_to_num(f1_of[rule], nan=-1.0))


def _decide(criterion: str, clips: OutOfFold) -> np.ndarray:
    """Decide tags, bool (clips, tags), for each fold by what was found, and with "best" also chosen, on the others."""
    if criterion == "half":
        return clips.probs >= 0.5
    if criterion != "best":
        find = partial(_fitted_thresholds, criterion)
        return cross_decide(clips.crossed, clips.targ, clips.folds, thresholds=find)
    decided = np.zeros(clips.targ.shape, dtype=bool)
    for number in np.unique(clips.folds):
        held_out = clips.folds == number
        others = clips.select(~held_out)
        rule = _best(f1_of_rules(others)) if len(others.folds) > 1 else "half"
        if rule == "half":
            decided[held_out] = clips.probs[held_out] >= 0.5
        else:
            found = _fitted_thresholds(rule, others.crossed, others.targ)
            decided[held_out] = found.apply(clips.crossed[held_out])
    return decided


def _fitted_thresholds(
    criterion: str, probs: np.ndarray, targ: np.ndarray, tags: tuple[str, ...] | None = None
) -> Thresholds:
    """Find the thresholds for calibrated probabilities (clips, tags) and labels (clips, tags)."""
    if criterion in _SHRINKS:
        return f1_thresholds(probs, targ, tags, shrink=_SHRINKS[criterion])
    try:
        precision = float(criterion)
    except ValueError:
        known = ", ".join(("best", *RULES, "f1"))
        raise OptionError(f"thresholds is {criterion!r}; expected {known}, or a precision such as 0.9") from None
    return precision_thresholds(probs, targ, precision, tags)
