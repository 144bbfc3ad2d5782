"""What the run was made from and how it went: sounds, tags, folds, epochs, time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fatai.data.folds import absent_tags, fold_table
from fatai.errors import AudioError, FataiError
from fatai.experiment.build import recipe_parameters
from fatai.report.data import ReportData, SectionUnavailable
from fatai.report.media import COLORS, figure_svg, new_figure
from fatai.audio.io import audio_info

__all__ = ["MOST_ROWS", "clip_lengths", "data_audit", "fold_audit", "speed", "training_curves"]

MOST_ROWS = 200
"""Rows of a table; of more the report shows the first and says how many there are."""

_MOST_FILES = 5000  # whose length is read, of each part, evenly spaced
_MOST_POINTS = 300  # of a curve
_MOST_FOLDS = 10  # whose curves are drawn
_TICKS_S = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)
_DASHES = ("-", "--", ":", "-.")


def data_audit(material: ReportData) -> dict[str, Any]:
    """Files and their lengths by part, tags of a clip, what is broken."""
    parts, lengths = [], {}
    for name, paths in material.parts.items():
        looked_at = [
            paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, min(len(paths), _MOST_FILES)).astype(int))
        ]
        seconds = clip_lengths(looked_at)
        heard = seconds[seconds > 0]
        row: dict[str, Any] = {
            "part": name,
            "files": len(paths),
            "looked_at": len(looked_at),
            "unreadable": int((seconds == 0).sum()),
        }
        if len(heard):
            lengths[name] = heard
            row |= {
                "least": heard.min(),
                "median": np.median(heard),
                "most": heard.max(),
                "hours": heard.mean() * len(paths) / 3600,
            }
        parts.append(row)
    targ = np.array(list(material.truth.values()), dtype=bool).reshape(len(material.truth), len(material.tags))
    counts = targ.sum(axis=0)
    order = np.argsort(-counts, kind="stable")
    return {
        "parts": parts,
        "figure": _lengths_figure(lengths) if lengths else "",
        "clips": len(targ),
        "tags": len(material.tags),
        "unreadable": material.broken[:MOST_ROWS],
        "n_unreadable": len(material.broken),
        "tags_of_a_clip": [(int(n), int(clips)) for n, clips in zip(*np.unique(targ.sum(axis=1), return_counts=True))],
        "commonest": [(material.tags[k], int(counts[k])) for k in order[:3]] if len(targ) else [],
        "rarest": [(material.tags[k], int(counts[k])) for k in order[::-1][:3]] if len(targ) else [],
    }


def clip_lengths(paths: Sequence[Path]) -> np.ndarray:
    """Seconds of each file, 0 where it cannot be read."""

    def seconds(path: Path) -> float:
        try:
            return audio_info(path).seconds
        except AudioError:
            return 0.0

    with ThreadPoolExecutor() as pool:
        return np.array(list(pool.map(seconds, paths, chunksize=64)), dtype=float)


def _lengths_figure(lengths: dict[str, np.ndarray]) -> str:
    every = np.concatenate(list(lengths.values()))
    edges = np.geomspace(every.min() * 0.99, every.max() * 1.01, 25)
    with new_figure(5.5, 2.8) as (figure, axis):
        for (name, seconds), colour, dashes in zip(lengths.items(), COLORS, _DASHES):
            counts = np.histogram(seconds, edges)[0]
            axis.stairs(counts, edges, label=f"{name} ({len(seconds)})", color=colour, linestyle=dashes, linewidth=1.6)
        axis.set(xlabel="length in seconds", ylabel="files", xscale="log")
        axis.set_xticks([t for t in _TICKS_S if edges[0] <= t <= edges[-1]], minor=False)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.xaxis.set_minor_formatter(lambda value, _: "")
        axis.legend()
        return figure_svg(figure, "Lengths of the sound files of each part")


def fold_audit(material: ReportData) -> dict[str, Any]:
    """Clips of each tag that each fold holds out, and the score of each fold."""
    if material.kind == "learner":
        raise SectionUnavailable("A learner holds out one part of its clips; it has no folds.")
    names = [name for name in material.folds if name in material.truth]
    if not names:
        raise SectionUnavailable("Which fold holds out which clip (folds.csv) and with which labels is not at hand.")
    folds = np.array([material.folds[name] for name in names])
    targ = np.array([material.truth[name] for name in names])
    table, absent = fold_table(folds, targ, material.tags), absent_tags(folds, targ, material.tags)
    numbers = [k for k in table.columns if k != "all"]
    scores = _fold_scores(material)
    return {
        "folds": [{"fold": k, "clips": int((folds == k).sum()), "score": scores.get(str(k))} for k in numbers],
        "numbers": numbers,
        "n_tags": len(table),
        "most": max(1, int(table["all"].max())),
        "rows": [
            (tag, [int(row[k]) for k in numbers], int(row["all"])) for tag, row in table.head(MOST_ROWS).iterrows()
        ],
        "absent": {k: _few(tags) for k, tags in absent.validation.items()},
    }


def _few(names: Sequence[str], shown: int = 10) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def _fold_scores(material: ReportData) -> dict[str, float]:
    noted = material.manifest.get("lwlrap")
    folds = noted.get("folds") if isinstance(noted, dict) else None
    return (
        {str(k): float(v) for k, v in folds.items() if isinstance(v, (int, float))} if isinstance(folds, dict) else {}
    )


def training_curves(material: ReportData) -> dict[str, Any]:
    """Losses and the metric of every epoch, fold by fold, with the stages' bounds; and where each stage ended."""
    if not material.histories:
        raise SectionUnavailable("No fold noted its epochs (history.csv), so there are no curves.")
    tables = dict(list(material.histories.items())[:_MOST_FOLDS])
    from matplotlib.lines import Line2D

    first = next(iter(tables.values()))
    metric = _metric(first)
    with new_figure(7, 3.0, 1, 2 if metric else 1) as (figure, axes):
        axes = np.atleast_1d(axes)
        for (name, table), colour in zip(tables.items(), COLORS * 2):
            drawn = np.unique(np.linspace(0, len(table) - 1, min(len(table), _MOST_POINTS)).astype(int))
            marker = "." if len(drawn) == 1 else ""  # a single epoch has no line
            for column, dashes in (("train_loss", ":"), ("valid_loss", "-")):
                if column in table:
                    axes[0].plot(drawn + 1, table[column].to_numpy()[drawn], dashes, color=colour, marker=marker)
            if metric and metric in table:
                axes[1].plot(drawn + 1, table[metric].to_numpy()[drawn], color=colour, marker=marker)
        for axis in axes:
            for at in np.flatnonzero(first["stage"].to_numpy()[1:] != first["stage"].to_numpy()[:-1])[:50]:
                axis.axvline(at + 1.5, color="#888888", linewidth=0.8, linestyle="--")
            axis.set_xlabel("epoch")
            axis.xaxis.get_major_locator().set_params(integer=True)
        axes[0].set_ylabel("loss")
        if metric:
            axes[1].set_ylabel(metric)
        lines = [
            Line2D([], [], color="#888888", linestyle=":", label="training"),
            Line2D([], [], color="#888888", label="held out"),
        ]
        folds = [Line2D([], [], color=colour, label=_words(name)) for name, colour in zip(tables, COLORS * 2)]
        figure.legend(handles=[*lines, *folds], loc="outside upper left", ncols=6, fontsize=8)
        drawing = figure_svg(figure, "Losses and metric by epoch")
    return {
        "figure": drawing,
        "metric": metric,
        "rows": list(islice(_stages(tables), MOST_ROWS)),
        "n_folds": len(material.histories),
        "n_drawn": len(tables),
    }


def _metric(table: pd.DataFrame) -> str:
    """The measure that is drawn: lwlrap where it was measured."""
    others = [c for c in table.columns if c not in ("stage", "epoch", "train_loss", "valid_loss", "seconds")]
    return "lwlrap" if "lwlrap" in others else others[0] if others else ""


def _stages(histories: Mapping[str, pd.DataFrame]) -> Iterator[dict[str, Any]]:
    """What the epochs of each stage came to, fold by fold, in their order."""
    for name, table in histories.items():
        metric, number = _metric(table), (table["stage"] != table["stage"].shift()).cumsum()
        for _, part in table.groupby(number, sort=True):
            last = part.iloc[-1]
            row = {"fold": _words(name), "stage": last["stage"], "epochs": len(part)}
            row |= {
                key: float(last[key]) for key in ("train_loss", "valid_loss") if key in part and np.isfinite(last[key])
            }
            if metric and part[metric].notna().any():
                row |= {
                    "last": float(last[metric]),
                    "best": float(part[metric].max()),
                    "best_epoch": int(part[metric].argmax()) + 1,
                }
            if "seconds" in part and part["seconds"].notna().any():
                row |= {"epoch_s": float(part["seconds"].median()), "seconds": float(part["seconds"].sum())}
            yield row


def speed(material: ReportData) -> dict[str, Any]:
    """How long it took, on what, and how large the network is."""
    machine = material.manifest.get("machine")
    facts = {f"{key}": str(value) for key, value in machine.items()} if isinstance(machine, dict) else {}
    seconds = material.manifest.get("seconds")
    if isinstance(seconds, (int, float)):
        facts["whole run"] = f"{seconds:.0f} s"
    if material.recipe is not None and material.tags:
        try:
            facts["parameters"] = f"{recipe_parameters(material.recipe, len(material.tags)):,}"
        except FataiError:
            pass
    rows = list(islice((row for row in _stages(material.histories) if "seconds" in row), MOST_ROWS))
    if not facts and not rows:
        raise SectionUnavailable("How long it took was not noted.")
    return {"facts": facts, "rows": rows}


def _words(folder: str) -> str:
    """ "fold 0" of fold_0."""
    return folder.replace("_", " ")
