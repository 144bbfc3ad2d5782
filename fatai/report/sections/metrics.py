"""Scores of the held-out clips: overall, per tag, costs, confusions, calibration."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from fatai.experiment.calibrate import RULES, OutOfFold, f1_of_rules, find_thresholds
from fatai.metrics import per_class
from fatai.metrics.bootstrap import score_interval
from fatai.metrics.calibration import Calibration, cross_calibrate
from fatai.metrics.calibration_curve import calibration_curve, plot_calibration_curve
from fatai.metrics.classification import main_metric, mean_ap, roc_auc, tag_scores
from fatai.report.data import ReportData, SectionUnavailable
from fatai.report.media import COLORS, figure_svg, new_figure, shorten
from fatai.report.sections.training import MAX_ROWS

__all__ = ["calibration", "confusions", "costs", "false_alarms", "overall", "per_tag"]

_N_COSTLY = 10
_MAX_FALSE_ALARMS = 20
_N_CONFUSED = 15
_N_DRAWN_TAGS = 16  # in the picture of confusions
_LIGHT_PERCENT = 55  # from here on cividis is so light that black is the more legible color
_MAX_SENTENCE = 500
_MAX_TAG = 28  # characters of a tag in a picture


def overall(report: ReportData) -> dict[str, Any]:
    """Compute the main metric with its interval, mean average precision and ROC AUC.

    The main metric is lwlrap; with one tag it is the average precision, and lwlrap is None.
    """
    fnames, probs, targ = report.scored()
    metric = main_metric(targ.shape[1])
    interval = score_interval(probs, targ, metric)
    frozen = report.manifest.get("frozen_baseline")
    return {
        "frozen": str(frozen.get("text", "")) if isinstance(frozen, dict) else "",
        "clips": len(fnames),
        "tags": int(targ.any(axis=0).sum()),
        "lwlrap": interval if metric == "lwlrap" else None,
        "interval": interval,
        "optimistic": report.recipe is not None and report.recipe.selects_on_held_out,
        "noisy_decision": _noisy_decision(report),
        "teacher_saw": report.manifest.get("teacher_saw_held_out") is True,
        "map": mean_ap(probs, targ),
        "auc": roc_auc(probs, targ),
    }


def _noisy_decision(report: ReportData) -> str | None:
    """Return the sentence of the manifest on noisy clips; None if the run decided nothing on them."""
    noted = report.manifest.get("noisy_decision")
    words = noted.get("in_words") if isinstance(noted, dict) else None
    return words[:_MAX_SENTENCE] if isinstance(words, str) else None


def per_tag(report: ReportData) -> dict[str, Any]:
    """Compute the scores and interval of every tag, the lowest lwlrap first; with one tag lwlrap is NaN."""
    _, probs, targ = report.scored()
    table = per_class.tag_intervals(probs, targ, report.tags).merge(
        tag_scores(probs, targ, report.tags)[["tag", "ap", "auc"]], on="tag"
    )
    if main_metric(targ.shape[1]) != "lwlrap":
        interval = score_interval(probs, targ, "map")
        table = table.assign(lwlrap=np.nan, low=interval.low, high=interval.high)
    table = table.sort_values(["lwlrap", "tag"], ignore_index=True)
    present = table[table["clips"] > 0]
    without = list(table["tag"][table["clips"] == 0])
    return {
        "metric": main_metric(targ.shape[1]),
        "rows": _records(present.head(MAX_ROWS)),
        "n_tags": len(present),
        "without_clips": without[:MAX_ROWS],
    }


def costs(report: ReportData) -> dict[str, Any]:
    """Find the tags that would raise lwlrap the most if they were ranked perfectly."""
    _, probs, targ = report.scored()
    if main_metric(targ.shape[1]) != "lwlrap":
        raise SectionUnavailable(
            f"A cost is a gain of lwlrap, which is not applicable to one tag. {_within_tags(report)}"
        )
    table = per_class.tag_costs(probs, targ, report.tags).sort_values(
        ["cost", "tag"], ascending=[False, True], ignore_index=True
    )
    table = table[table["cost"] > 0].head(_N_COSTLY)
    if not len(table):
        raise SectionUnavailable(
            f"lwlrap is 1: in every clip its tags are ranked above all others. {_within_tags(report)}"
        )
    return {"figure": _cost_figure(table), "rows": _records(table)}


def _within_tags(report: ReportData) -> str:
    """Return a sentence with the scores of the order of the clips within a tag."""
    _, probs, targ = report.scored()
    values = [("average precision", mean_ap(probs, targ)), ("AUC", roc_auc(probs, targ))]
    return "Between clips: " + ", ".join(f"{name} {value:.3f}" for name, value in values if value == value) + "."


def _cost_figure(table: pd.DataFrame) -> Markup:
    with new_figure(5.5, 1.0 + 0.27 * len(table)) as (figure, axis):
        y = np.arange(len(table))[::-1]
        axis.barh(y, table["missed"], color=COLORS[0], label="ranked low where it is present")
        axis.barh(
            y,
            table["false_alarms"],
            left=table["missed"],
            color=COLORS[1],
            hatch="//",
            edgecolor="white",
            linewidth=0,
            label="ranked high where it is absent",
        )
        axis.set_yticks(y, [shorten(tag, _MAX_TAG) for tag in table["tag"]])
        axis.set_xlabel("possible gain of lwlrap")
        figure.legend(loc="outside upper left", ncols=2, fontsize=8)
        return figure_svg(figure, "Cost of each of the costliest tags")


def confusions(report: ReportData) -> dict[str, Any]:
    """Find pairs of tags of which the absent one ranks as high as the present one."""
    _, probs, targ = report.scored()
    if targ.shape[1] == 1:
        raise SectionUnavailable("There is only one tag, which cannot be confused with another.")
    table = per_class.confusions(probs, targ, report.tags)
    if not len(table):
        raise SectionUnavailable("No tag is ranked below one that its clip does not have.")
    return {"rows": _records(table.head(_N_CONFUSED)), "pairs": len(table), "figure": _confusion_figure(table)}


def _confusion_figure(table: pd.DataFrame) -> Markup:
    """Draw the percentage of clips of each pair of the tags with the most confusions, as color and number."""
    counts = table.groupby("tag")["clips"].sum().add(table.groupby("above")["clips"].sum(), fill_value=0)
    tags = sorted(sorted(counts.index, key=str), key=lambda tag: -counts[tag])[:_N_DRAWN_TAGS]
    pairs = table.pivot(index="tag", columns="above", values="fraction")
    percent = 100 * pairs.reindex(index=tags, columns=tags).fillna(0).to_numpy(copy=True)
    np.fill_diagonal(percent, np.nan)
    side = 2 + 0.3 * len(tags)
    names = [shorten(tag, _MAX_TAG) for tag in tags]
    with new_figure(side + 1, side) as (figure, axis):
        mesh = axis.pcolormesh(percent, cmap="cividis", vmin=0, vmax=100)
        for row, column in np.argwhere(percent > 0):
            value = percent[row, column]
            color = "black" if value > _LIGHT_PERCENT else "white"
            axis.text(column + 0.5, row + 0.5, f"{value:.0f}", color=color, size=7, ha="center", va="center")
        ticks = np.arange(len(tags)) + 0.5
        axis.set_xticks(ticks, names, rotation=60, ha="right", rotation_mode="anchor")
        axis.set_yticks(ticks, names)
        axis.invert_yaxis()
        axis.set(xlabel="absent, but ranked as high or higher", ylabel="present")
        figure.colorbar(mesh, ax=axis, label="% of clips", shrink=0.8)
        return figure_svg(figure, "How often an absent tag ranks as high as a present one")


def calibration(report: ReportData) -> dict[str, Any]:
    """Compute the calibration curve, also with the run's calibration if it has one, and the F1 of its thresholds.

    Clips are calibrated, and their tags decided, by what was fitted on the other folds.
    """
    fnames, probs, targ = report.scored()
    curves = {"as predicted": calibration_curve(probs, targ)}
    folds = np.array([report.folds.get(name, -1) for name in fnames])
    f1 = None
    if report.calibration is not None and len(np.unique(folds)) > 1:
        # Each fold is calibrated on the others, as a new clip would be.
        crossed = cross_calibrate(probs, targ, folds, method=report.calibration.method)
        curves["calibrated"] = calibration_curve(crossed, targ)
        if report.calibration.thresholds is not None:
            f1 = _f1_of_thresholds(report.calibration, OutOfFold(probs, crossed, np.asarray(targ, dtype=bool), folds))
    with new_figure(4.2, 4.2) as (figure, axis):
        plot_calibration_curve(curves, axis)
        axis.legend(fontsize=8)
        return {
            "figure": figure_svg(figure, "Fraction of clips with the tag at each level of probability"),
            "errors": {name: curve.error for name, curve in curves.items()},
            "f1": f1,
            "pairs": int(next(iter(curves.values())).counts.sum()),
        }


def _f1_of_thresholds(calibration: Calibration, clips: OutOfFold) -> dict[str, Any]:
    """Return the F1 of each rule for thresholds, and the rule that found the stored ones; None for other thresholds."""
    assert calibration.thresholds is not None
    found = {rule: find_thresholds(rule, calibration, clips.crossed, clips.targ).values for rule in RULES}
    stored = calibration.thresholds.values
    rule = next((rule for rule, values in found.items() if np.allclose(values, stored)), None)
    return {"rows": [(RULES[name], f1, name == rule) for name, f1 in f1_of_rules(clips).items()], "stored": rule}


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]


def false_alarms(report: ReportData) -> dict[str, Any]:
    """List the tags with the most false alarms per hour of background."""
    table = report.background
    if table is None or not len(table):
        return {"rows": [], "n": 0, "minutes": None}
    firing = table[table["events"] > 0].sort_values("per_hour", ascending=False, kind="stable")
    rows = [
        (str(row.tag), float(row.threshold), int(row.events), float(row.per_hour))
        for row in firing.head(_MAX_FALSE_ALARMS).itertuples()
    ]
    return {"rows": rows, "n": len(firing), "minutes": 60 * float(table["hours"].iloc[0])}
