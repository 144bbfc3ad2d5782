"""The page of a search: its course, the importance of each setting, and the scores over their values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from fatai.experiment.search_space import SearchDimension
from fatai.experiment.study import Trial
from fatai.experiment.tune import TuneResult
from fatai.io.atomic import write_text
from fatai.report.html import page_environment
from fatai.report.media import COLORS, figure_svg, new_figure

__all__ = ["tune_report"]

PAGE = "tune.html"
_GRAY = "#888888"
_MAX_ROWS = 500
_MAX_CHOICE = 24  # letters of a choice on an axis


def tune_report(result: TuneResult, out: str | Path | None = None) -> Path:
    """Write the page of a search, one self-contained HTML file, and return its path.

    Parameters
    ----------
    result
        Of `fatai.experiment.tune.tune_recipe`.
    out
        File to write; tune.html in the folder of the search if None.
    """
    path = result.out / PAGE if out is None else Path(out)
    template = page_environment().get_template("tune.html")
    write_text(path, template.render(result=result, rows=_rows(result), counts=_counts(result), **_figures(result)))
    return path


def _counts(result: TuneResult) -> str:
    states = [trial.state for trial in result.trials]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _rows(result: TuneResult) -> list[tuple[Trial, list[str]]]:
    """Return the trials with their values as text, the best first."""
    order = sorted(result.trials, key=lambda trial: (trial.score is None, -(trial.score or 0.0), trial.number))
    keys = [dimension.key for dimension in result.space.dimensions]
    return [(trial, [_short(trial.labels.get(key)) for key in keys]) for trial in order[:_MAX_ROWS]]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _figures(result: TuneResult) -> dict[str, Markup | str]:
    """Draw the figures; empty text where there are too few complete trials."""
    complete = [trial for trial in result.trials if trial.score is not None]
    return {
        "history": _history(result.trials, result.metric) if complete else "",
        "importances": _importances(result.importances) if result.importances else "",
        "slices": _slices(complete, result) if len(complete) > 1 else "",
        "parallel": _parallel(complete, result.space.dimensions) if len(complete) > 1 else "",
    }


def _history(trials: Sequence[Trial], metric: str) -> Markup:
    complete = [(trial.number, trial.score) for trial in trials if trial.score is not None]
    numbers, scores = np.array(complete, dtype=float).T
    pruned = [(t.number, list(t.course.values())[-1]) for t in trials if t.state == "pruned" and t.course]
    with new_figure(8, 3) as (figure, axes):
        axes.step(numbers, np.maximum.accumulate(scores), where="post", color=COLORS[0], label="best so far")
        axes.plot(numbers, scores, "o", color=COLORS[1], label="complete")
        if pruned:
            axes.plot(*zip(*pruned, strict=True), "x", color=_GRAY, label="pruned (its last score)")
        axes.set(xlabel="trial", ylabel=f"{metric} of the inner held-out clips")
        axes.legend(loc="lower right")
        return figure_svg(figure, "Scores of the trials in their order, and the best so far")


def _importances(importances: dict[str, float]) -> Markup:
    keys = list(importances)[::-1]
    with new_figure(8, 0.6 + 0.3 * len(keys)) as (figure, axes):
        axes.barh(keys, [importances[key] for key in keys], color=COLORS[0])
        axes.set(xlabel="share of the variance of the scores (fANOVA)", xlim=(0, 1))
        return figure_svg(figure, "Importance of the searched settings")


def _slices(complete: Sequence[Trial], result: TuneResult) -> Markup:
    """Draw the scores over the values of each setting."""
    dimensions, columns = result.space.dimensions, 3
    n_rows = -(-len(dimensions) // columns)
    with new_figure(9, 2.4 * n_rows, n_rows, columns, sharey=True, squeeze=False) as (figure, axes):
        for k, ax in enumerate(axes.flat):
            if k >= len(dimensions):
                ax.axis("off")
                continue
            _slice(ax, dimensions[k], complete)
        for row in axes:
            row[0].set_ylabel(result.metric)
        return figure_svg(figure, "Scores over the values of each setting")


def _slice(ax: Any, dimension: SearchDimension, complete: Sequence[Trial]) -> None:
    values = [trial.labels[dimension.key] for trial in complete]
    scores = [trial.score for trial in complete]
    if dimension.choices is not None:
        ax.plot([dimension.choices.index(value) for value in values], scores, "o", color=COLORS[0])
        ax.set_xticks(range(len(dimension.choices)), [str(c)[:_MAX_CHOICE] for c in dimension.choices])
    else:
        ax.plot(values, scores, "o", color=COLORS[0])
        ax.set_xscale("log" if dimension.log else "linear")
        ends = np.array([dimension.low, dimension.high], dtype=float)
        middle = np.sqrt(ends.prod()) if dimension.log else ends.mean()
        ticks = [ends[0], middle, ends[1]]
        ax.set_xticks([], minor=True)
        ax.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
    ax.set_xlabel(dimension.key)


def _parallel(complete: Sequence[Trial], dimensions: Sequence[SearchDimension]) -> Markup:
    """Draw a line for each trial through its values; those of the best tenth in color."""
    order = sorted(complete, key=lambda trial: trial.score or 0.0)
    n_best = max(1, len(order) // 10)
    with new_figure(9, 3.6) as (figure, axes):
        for k, trial in enumerate(order):
            is_best = k >= len(order) - n_best
            heights = [_position(dimension, trial.labels[dimension.key]) for dimension in dimensions]
            axes.plot(heights, "-o", ms=3, lw=2 if is_best else 0.7, color=COLORS[1] if is_best else _GRAY)
        axes.set_xticks(range(len(dimensions)), [d.key for d in dimensions], rotation=30, ha="right")
        axes.set_yticks([0, 1], ["lowest, first", "highest, last"])
        return figure_svg(figure, "Values of each trial; the best tenth in color")


def _position(dimension: SearchDimension, value: Any) -> float:
    """Return where a value lies in its range, from 0 to 1."""
    if dimension.choices is not None:
        return dimension.choices.index(value) / max(1, len(dimension.choices) - 1)
    low, high, at = (np.log(x) if dimension.log else x for x in (dimension.low, dimension.high, value))
    return float((at - low) / (high - low))
