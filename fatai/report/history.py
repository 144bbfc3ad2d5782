"""The page of a run while it trains: progress, curves of losses and metric, and the last epoch of each fold and stage.

The file refreshes itself in the browser while the run goes on; it needs no network, as the report.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from fatai.experiment.estimate import clock
from fatai.experiment.manifest import read_manifest
from fatai.experiment.recipe import Recipe, load_recipe
from fatai.io.atomic import write_text
from fatai.report.data import load_histories
from fatai.report.html import REPORT, page_environment
from fatai.report.sections.training import draw_histories

__all__ = ["HISTORY", "Progress", "run_history", "run_progress"]

HISTORY = "history.html"
"""Name of the file in a run folder."""

_WITH_NOISY = "with_noisy"  # folder of folds that are trained again with noisy clips


class Progress(NamedTuple):
    """How far a run is.

    Attributes
    ----------
    epochs, planned
        Epochs that have ended, of all folds, and those of the recipe for these folds; early stopping may take fewer.
    seconds
        Sum of the seconds of the epochs that have ended, over all folds.
    seconds_left
        Estimate from these for the epochs to come, without predictions; None before the first epoch, and if folds are
        trained again, which `planned` does not count.
    """

    epochs: int
    planned: int
    seconds: float
    seconds_left: float | None


def run_history(run: str | Path) -> Path:
    """Write history.html into the folder of a run that trains or has ended, and return its path.

    The file is replaced at once, so a browser never reads half of it.

    Raises
    ------
    CheckpointError, RecipeError
        If the folder has no manifest or no recipe of a run.
    """
    run = Path(run)
    manifest, recipe = read_manifest(run) or {}, load_recipe(run / "recipe.toml")
    tables = {**load_histories(run), **_again(run)}
    progress = run_progress(tables, recipe, manifest)
    page = page_environment().get_template(HISTORY).render(
        name=run.resolve().name, recipe=recipe, progress=progress, curves=draw_histories(tables) if tables else None,
        planned={stage.name: stage.epochs for stage in recipe.stages}, finished=manifest.get("finished"),
        report=REPORT if (run / REPORT).is_file() else "", updated=time.time(),
        updated_text=time.strftime("%Y-%m-%d %H:%M:%S"),
        left=None if progress.seconds_left is None else clock(progress.seconds_left),
    )
    write_text(run / HISTORY, page)
    return run / HISTORY


def _again(run: Path) -> dict[str, pd.DataFrame]:
    """Return the epochs of folds that are trained again with noisy clips, by their titles."""
    return {f"{name} with noisy clips": table for name, table in load_histories(run / _WITH_NOISY).items()}


def run_progress(tables: Mapping[str, pd.DataFrame], recipe: Recipe, manifest: Mapping[str, Any]) -> Progress:
    """Count the epochs of a run that have ended, and estimate the seconds of the others.

    Parameters
    ----------
    tables
        Epochs of each fold, with the columns `stage` and `epoch`, and maybe `seconds`.
    recipe, manifest
        Of the run.
    """
    options = manifest.get("run_options")
    options = options if isinstance(options, dict) else {}
    chosen, n_processes = options.get("run_folds"), options.get("nproc")
    n_folds = len(chosen if isinstance(chosen, list) else recipe.folds.run_folds or range(recipe.folds.n))
    planned = n_folds * sum(stage.epochs for stage in recipe.stages)
    epochs = sum(map(len, tables.values()))
    seconds = sum(float(table["seconds"].sum()) for table in tables.values() if "seconds" in table)
    at_once = min(n_folds, n_processes) if isinstance(n_processes, int) and n_processes > 0 else 1
    is_known = 0 < epochs <= planned and seconds > 0
    left = (planned - epochs) * seconds / epochs / max(1, at_once) if is_known else None
    return Progress(epochs, planned, seconds, left)
