"""How good the predictions of held-out clips are: overall, tag by tag, what costs the most, what is confused, how far to be believed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from fatai.report.sections.training import MOST_ROWS
from fatai.report.data import ReportData, SectionUnavailable
from fatai.report.media import COLORS, figure_svg, new_figure, short
from fatai.metrics.bootstrap import score_interval
from fatai.metrics.per_class import confusions, tag_costs, tag_intervals
from fatai.metrics.calibration import cross_calibrated
from fatai.metrics.calibration_curve import plot_reliability, reliability
from fatai.metrics.classification import mean_ap, roc_auc, tag_scores

__all__ = ["calibration", "confused", "costs", "overall", "per_tag"]

_COSTLY = 10
_CONFUSED = 15
_DRAWN_TAGS = 16  # of the picture of confusions


def overall(material: ReportData) -> dict[str, Any]:
    """lwlrap with its interval, and its relatives."""
    fnames, probs, targ = material.judged()
    return {
        "clips": len(fnames),
        "tags": int(targ.any(axis=0).sum()),
        "lwlrap": score_interval(probs, targ),
        "map": mean_ap(probs, targ),
        "auc": roc_auc(probs, targ),
    }


def per_tag(material: ReportData) -> dict[str, Any]:
    """Every tag's scores and interval, the lowest lwlrap first."""
    _, probs, targ = material.judged()
    table = tag_intervals(probs, targ, material.tags).merge(
        tag_scores(probs, targ, material.tags)[["tag", "ap", "auc"]], on="tag"
    )
    table = table.sort_values(["lwlrap", "tag"], ignore_index=True)
    there = table[table["clips"] > 0]
    without = list(table["tag"][table["clips"] == 0])
    return {"rows": _records(there.head(MOST_ROWS)), "n_tags": len(there), "without_clips": without[:MOST_ROWS]}


def costs(material: ReportData) -> dict[str, Any]:
    """The tags whose perfection would raise lwlrap the most."""
    _, probs, targ = material.judged()
    table = tag_costs(probs, targ, material.tags).sort_values(
        ["cost", "tag"], ascending=[False, True], ignore_index=True
    )
    table = table[table["cost"] > 0].head(_COSTLY)
    if not len(table):
        raise SectionUnavailable("No tag costs anything: every clip's tags are ranked above all others.")
    with new_figure(5.5, 1.0 + 0.27 * len(table)) as (figure, axis):
        at = np.arange(len(table))[::-1]
        axis.barh(at, table["missed"], color=COLORS[0], label="missed where it is there")
        axis.barh(
            at,
            table["false_alarms"],
            left=table["missed"],
            color=COLORS[1],
            hatch="//",
            edgecolor="white",
            linewidth=0,
            label="ranked high where it is not",
        )
        axis.set_yticks(at, [short(tag, 28) for tag in table["tag"]])
        axis.set_xlabel("lwlrap that would be gained")
        figure.legend(loc="outside upper left", ncols=2, fontsize=8)
        return {"figure": figure_svg(figure, "What each of the costliest tags costs"), "rows": _records(table)}


def confused(material: ReportData) -> dict[str, Any]:
    """Pairs of tags of which the one that isn't there ranks above the one that is."""
    _, probs, targ = material.judged()
    table = confusions(probs, targ, material.tags)
    if not len(table):
        raise SectionUnavailable("No tag is ranked below one that its clip doesn't have.")
    return {"rows": _records(table.head(_CONFUSED)), "pairs": len(table), "figure": _confusion_figure(table)}


def _confusion_figure(table: pd.DataFrame) -> str:
    """Shares of the tags that are in most confusions."""
    weight = table.groupby("tag")["clips"].sum().add(table.groupby("above")["clips"].sum(), fill_value=0)
    tags = sorted(sorted(weight.index, key=str), key=lambda tag: -weight[tag])[:_DRAWN_TAGS]
    shares = (
        table.pivot(index="tag", columns="above", values="share")
        .reindex(index=tags, columns=tags)
        .fillna(0)
        .to_numpy(copy=True)
    )
    np.fill_diagonal(shares, np.nan)
    side = 2 + 0.25 * len(tags)
    with new_figure(side + 1, side) as (figure, axis):
        mesh = axis.pcolormesh(shares, cmap="cividis", vmin=0, vmax=1)
        ticks = np.arange(len(tags)) + 0.5
        axis.set_xticks(ticks, [short(tag, 28) for tag in tags], rotation=60, ha="right", rotation_mode="anchor")
        axis.set_yticks(ticks, [short(tag, 28) for tag in tags])
        axis.invert_yaxis()
        axis.set(xlabel="is not there, but ranks as high or higher", ylabel="is there")
        figure.colorbar(mesh, ax=axis, label="share of clips", shrink=0.8)
        return figure_svg(figure, "How often a tag that is not there ranks above one that is")


def calibration(material: ReportData) -> dict[str, Any]:
    """What happens at each level of probability, also with the run's calibration where it has one."""
    fnames, probs, targ = material.judged()
    curves = {"as predicted": reliability(probs, targ)}
    folds = np.array([material.folds.get(name, -1) for name in fnames])
    if material.calibration is not None and len(np.unique(folds)) > 1:
        # Each fold by what the others tell, as a new clip would be.
        curves["calibrated"] = reliability(cross_calibrated(probs, targ, folds), targ)
    with new_figure(4.2, 4.2) as (figure, axis):
        plot_reliability(curves, axis)
        axis.legend(fontsize=8)
        return {
            "figure": figure_svg(figure, "Share of clips with the tag at each level of probability"),
            "errors": {name: curve.error for name, curve in curves.items()},
            "pairs": int(next(iter(curves.values())).pairs.sum()),
        }


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]
