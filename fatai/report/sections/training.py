"""Inputs and course of the training: sound files, tags, folds, epochs, time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from fatai.audio.io import audio_info
from fatai.data.folds import absent_tags, fold_table
from fatai.errors import AudioError, FataiError
from fatai.experiment.build import recipe_parameters
from fatai.metrics.classification import main_metric
from fatai.report.data import ReportData, SectionUnavailable
from fatai.report.media import COLORS, figure_svg, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "MAX_ROWS", "clip_lengths", "clips_per_tag", "data_summary", "draw_histories", "fold_summary", "speed",
    "training_curves",
]

MAX_ROWS = 200
"""Maximum rows of a table; the report states how many more there are."""

_MAX_FILES = 5000  # whose length is read, of each part, evenly spaced
_MAX_POINTS = 300  # of a curve
_MAX_FOLDS = 10  # whose curves are drawn
_MAX_STAGE_LINES = 50
_TICKS_S = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)
_LINE_STYLES = ("-", "--", ":", "-.")
_GRAY = "#888888"


def data_summary(report: ReportData) -> dict[str, Any]:
    """Summarize files and lengths of each part, tags per clip, and broken files."""
    lengths = {name: clip_lengths(_evenly_spaced(paths)) for name, paths in report.parts.items()}
    readable = {name: seconds[seconds > 0] for name, seconds in lengths.items() if (seconds > 0).any()}
    targ = np.array(list(report.truth.values()), dtype=bool).reshape(len(report.truth), len(report.tags))
    counts = targ.sum(axis=0)
    order = np.argsort(-counts, kind="stable") if len(targ) else np.array([], dtype=int)
    tags_per_clip, n_clips = np.unique(targ.sum(axis=1), return_counts=True)
    return {
        "parts": [_part_row(name, lengths[name], len(paths)) for name, paths in report.parts.items()],
        "figure": _length_figure(readable) if readable else "",
        "clips": len(targ),
        "tags": len(report.tags),
        "unreadable": report.broken[:MAX_ROWS],
        "n_unreadable": len(report.broken),
        "tags_per_clip": list(zip(tags_per_clip.tolist(), n_clips.tolist(), strict=True)),
        "most_common": [(report.tags[k], int(counts[k])) for k in order[:3]],
        "rarest": [(report.tags[k], int(counts[k])) for k in order[::-1][:3]],
    }


def _evenly_spaced(paths: Sequence[Path]) -> list[Path]:
    rows = np.linspace(0, len(paths) - 1, min(len(paths), _MAX_FILES)).astype(int)
    return [paths[i] for i in np.unique(rows)]


def _part_row(name: str, seconds: np.ndarray, n_files: int) -> dict[str, Any]:
    """Summarize lengths of files, shape (files,) in seconds, 0 where a file is unreadable."""
    known = seconds[seconds > 0]
    row = {"part": name, "files": n_files, "n_read": len(seconds), "unreadable": int((seconds == 0).sum())}
    if not len(known):
        return row
    hours = known.mean() * n_files / 3600
    return {**row, "shortest": known.min(), "median": np.median(known), "longest": known.max(), "hours": hours}


def clip_lengths(paths: Sequence[Path]) -> np.ndarray:
    """Read the length of each file in seconds, shape (files,); 0 where it cannot be read."""

    def seconds(path: Path) -> float:
        try:
            return audio_info(path).seconds
        except AudioError:
            return 0.0

    with ThreadPoolExecutor() as pool:
        return np.array(list(pool.map(seconds, paths, chunksize=64)), dtype=float)


def _length_figure(lengths: dict[str, np.ndarray]) -> Markup:
    every = np.concatenate(list(lengths.values()))
    edges = np.geomspace(every.min() * 0.99, every.max() * 1.01, 25)
    with new_figure(5.5, 2.8) as (figure, axis):
        for (name, seconds), color, style in zip(lengths.items(), COLORS, _LINE_STYLES, strict=False):
            counts = np.histogram(seconds, edges)[0]
            axis.stairs(counts, edges, label=f"{name} ({len(seconds)})", color=color, linestyle=style, linewidth=1.6)
        axis.set(xlabel="length in seconds", ylabel="files", xscale="log")
        axis.set_xticks([t for t in _TICKS_S if edges[0] <= t <= edges[-1]], minor=False)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.xaxis.set_minor_formatter(lambda value, _: "")
        axis.legend()
        return figure_svg(figure, "Lengths of the sound files of each part")


def fold_summary(report: ReportData) -> dict[str, Any]:
    """Count the clips of each tag in each fold, with the score of each fold."""
    if report.kind == "learner":
        raise SectionUnavailable("A learner holds out one part of its clips; it has no folds.")
    names = [name for name in report.folds if name in report.truth]
    if not names:
        raise SectionUnavailable("The folds of the clips (folds.csv) and their labels are not available.")
    folds = np.array([report.folds[name] for name in names])
    targ = np.array([report.truth[name] for name in names])
    table, absent = fold_table(folds, targ, report.tags), absent_tags(folds, targ, report.tags)
    numbers = [k for k in table.columns if k != "all"]
    scores = _fold_scores(report)
    rows = [(tag, [int(row[k]) for k in numbers], int(row["all"])) for tag, row in table.head(MAX_ROWS).iterrows()]
    return {
        "folds": [{"fold": k, "clips": int((folds == k).sum()), "score": scores.get(str(k))} for k in numbers],
        "metric": "average precision" if main_metric(len(report.tags)) == "map" else "lwlrap",
        "numbers": numbers,
        "n_tags": len(table),
        "max_clips": max(1, int(table["all"].max())),
        "rows": rows,
        "absent": {k: _join_some(tags) for k, tags in absent.validation.items()},
    }


def _join_some(names: Sequence[str], n: int = 10) -> str:
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


def _fold_scores(report: ReportData) -> dict[str, float]:
    scores = report.manifest.get(main_metric(len(report.tags)))
    folds = scores.get("folds") if isinstance(scores, dict) else None
    if not isinstance(folds, dict):
        return {}
    return {str(k): float(v) for k, v in folds.items() if isinstance(v, (int, float))}


def training_curves(report: ReportData) -> dict[str, Any]:
    """Draw losses and metric by epoch, fold by fold, and summarize the stages."""
    if not report.histories:
        raise SectionUnavailable("No fold has a record of its epochs (history.csv), so there are no curves.")
    return draw_histories(report.histories)


def draw_histories(histories: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Draw losses and metric by epoch of at most ten folds, and summarize their stages.

    Parameters
    ----------
    histories
        For each fold a table of its epochs, with the column `stage`; at least one.
    """
    tables = dict(islice(histories.items(), _MAX_FOLDS))
    metric = _metric_name(next(iter(tables.values())))
    return {
        "figure": _curve_figure(tables, metric),
        "metric": metric,
        "rows": list(islice(_stage_rows(tables), MAX_ROWS)),
        "n_folds": len(histories),
        "n_drawn": len(tables),
    }


def _curve_figure(tables: Mapping[str, pd.DataFrame], metric: str) -> Markup:
    with new_figure(7, 3.0, 1, 2 if metric else 1) as (figure, axes):
        axes = np.atleast_1d(axes)
        for table, color in zip(tables.values(), COLORS * 2, strict=False):
            _plot_curves(axes, table, metric, color)
        for axis in axes:
            _mark_stages(axis, next(iter(tables.values()))["stage"].to_numpy())
            axis.set_xlabel("epoch")
            axis.xaxis.get_major_locator().set_params(integer=True)
        axes[0].set_ylabel("loss")
        if metric:
            axes[1].set_ylabel(metric)
        _add_curve_legend(figure, list(tables))
        return figure_svg(figure, "Losses and metric by epoch")


def _plot_curves(axes: np.ndarray, table: pd.DataFrame, metric: str, color: str) -> None:
    rows = np.unique(np.linspace(0, len(table) - 1, min(len(table), _MAX_POINTS)).astype(int))
    marker = "." if len(rows) == 1 else ""  # a single epoch has no line
    for column, style in (("train_loss", ":"), ("valid_loss", "-")):
        if column in table:
            axes[0].plot(rows + 1, table[column].to_numpy()[rows], style, color=color, marker=marker)
    if metric and metric in table:
        axes[1].plot(rows + 1, table[metric].to_numpy()[rows], color=color, marker=marker)


def _mark_stages(axis: Axes, stages: np.ndarray) -> None:
    for epoch in np.flatnonzero(stages[1:] != stages[:-1])[:_MAX_STAGE_LINES]:
        axis.axvline(epoch + 1.5, color=_GRAY, linewidth=0.8, linestyle="--")


def _add_curve_legend(figure: Figure, folds: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    losses = [
        Line2D([], [], color=_GRAY, linestyle=":", label="training"), Line2D([], [], color=_GRAY, label="held out"),
    ]
    colors = zip(folds, COLORS * 2, strict=False)
    handles = losses + [Line2D([], [], color=color, label=_fold_title(name)) for name, color in colors]
    figure.legend(handles=handles, loc="outside upper left", ncols=6, fontsize=8)


def _metric_name(table: pd.DataFrame) -> str:
    """Return lwlrap if it was measured, else the first other metric, else ""."""
    others = [c for c in table.columns if c not in ("stage", "epoch", "train_loss", "valid_loss", "seconds")]
    return "lwlrap" if "lwlrap" in others else others[0] if others else ""


def _stage_rows(histories: Mapping[str, pd.DataFrame]) -> Iterator[dict[str, Any]]:
    """Summarize the epochs of each stage, fold by fold."""
    for name, table in histories.items():
        metric, number = _metric_name(table), (table["stage"] != table["stage"].shift()).cumsum()
        for _, part in table.groupby(number, sort=True):
            yield {"fold": _fold_title(name), **_stage_row(part, metric)}


def _stage_row(part: pd.DataFrame, metric: str) -> dict[str, Any]:
    last = part.iloc[-1]
    losses = [key for key in ("train_loss", "valid_loss") if key in part and np.isfinite(last[key])]
    row: dict[str, Any] = {"stage": last["stage"], "epochs": len(part), **{key: float(last[key]) for key in losses}}
    if metric and part[metric].notna().any():
        best_epoch = _best_epoch(part, metric)
        row |= {"last": float(last[metric]), "best": float(part[metric].max()), "best_epoch": best_epoch}
    if "seconds" in part and part["seconds"].notna().any():
        row |= {"epoch_s": float(part["seconds"].median()), "seconds": float(part["seconds"].sum())}
    return row


def _best_epoch(part: pd.DataFrame, metric: str) -> int:
    """Return the epoch of a stage, from 1, that `SaveBestModel` would choose: on ties by the loss, then the last."""
    order = part.assign(number=np.arange(1, len(part) + 1), loss=part.get("valid_loss", np.inf))
    return int(order.sort_values([metric, "loss", "number"], ascending=[False, True, False])["number"].iloc[0])


def clips_per_tag(report: ReportData) -> dict[str, Any]:
    """Draw the score of a frozen network against the clips per tag, with what twice the clips would bring."""
    noted = report.manifest.get("clips_per_tag")
    values = noted if isinstance(noted, dict) else {}
    counts, scores = (_numbers(values.get(key)) for key in ("counts", "scores"))
    twice = _numbers([values.get("twice")])
    if len(counts) < 2 or len(counts) != len(scores) or not twice or min(counts) <= 0:
        raise SectionUnavailable(
            "The score was not measured against the number of clips: that takes a run of recipe probe, or recipe "
            "default with published weights on the machine (fatai-submit weights get mn04_as), and all folds."
        )
    metric = "average precision" if main_metric(len(report.tags)) == "map" else "lwlrap"
    with new_figure(5.5, 2.8) as (figure, axis):
        axis.plot(counts, scores, marker=".", color=COLORS[0], label="held-out clips")
        axis.plot([counts[-1], 2 * counts[-1]], [scores[-1], twice[0]], ":", marker=".", color=_GRAY, label="expected")
        axis.set(xlabel="training clips of each tag", ylabel=metric, xscale="log")
        axis.set_xticks([*counts, 2 * counts[-1]], minor=False)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        axis.xaxis.set_minor_formatter(lambda value, _: "")
        axis.legend()
        drawing = figure_svg(figure, "Score by the number of training clips of each tag")
    is_baseline = isinstance(report.manifest.get("frozen_baseline"), dict)
    return {
        "figure": drawing, "metric": metric, "count": counts[-1], "score": scores[-1], "twice": twice[0],
        "is_baseline": is_baseline,
    }


def _numbers(values: Any) -> list[float]:
    """Return the finite numbers of a list in a manifest, which need not be trusted; at most 100."""
    given = values[:100] if isinstance(values, list) else []
    plain = [float(v) for v in given if isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e9]
    return plain if len(plain) == len(given) else []


def speed(report: ReportData) -> dict[str, Any]:
    """Collect the machine, the seconds of each stage, and the number of parameters."""
    machine = report.manifest.get("machine")
    facts = {str(key): str(value) for key, value in machine.items()} if isinstance(machine, dict) else {}
    seconds = report.manifest.get("seconds")
    if isinstance(seconds, (int, float)):
        facts["whole run"] = f"{seconds:.0f} s"
    if report.recipe is not None and report.tags:
        try:
            facts["parameters"] = f"{recipe_parameters(report.recipe, len(report.tags)):,}"
        except FataiError:
            pass
    rows = list(islice((row for row in _stage_rows(report.histories) if "seconds" in row), MAX_ROWS))
    if not facts and not rows:
        raise SectionUnavailable("The times were not recorded.")
    return {"facts": facts, "rows": rows}


def _fold_title(folder: str) -> str:
    """Return "fold 0" for fold_0."""
    return folder.replace("_", " ")
