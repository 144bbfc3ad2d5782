"""The page of a run while it trains: progress, curves of losses and metric, and the last epoch of each fold and stage.

The file refreshes itself in the browser while the run goes on; it needs no network, as the report. That of an ensemble
lists its members.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from fatai.errors import FataiError
from fatai.experiment.ensemble_recipe import EnsembleRecipe, load_ensemble
from fatai.experiment.estimate import clock
from fatai.experiment.manifest import read_manifest
from fatai.experiment.recipe import Recipe, load_recipe
from fatai.io.atomic import write_text
from fatai.report.data import load_histories
from fatai.report.html import REPORT, page_environment
from fatai.report.sections.training import MAX_ROWS, draw_histories

__all__ = ["HISTORY", "Progress", "run_history", "run_progress"]

HISTORY = "history.html"
"""Name of the file in a run folder."""

_ENSEMBLE = "ensemble.toml"

_WITH_NOISY = "with_noisy"  # folder of folds that are trained again with noisy clips
_DONE = "done"


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
    """Write history.html into the folder of a run or an ensemble that trains or has ended, and return its path.

    The file is replaced at once, so a browser never reads half of it. Of an ensemble it is a list of the members, which
    is written again with the page of each member.

    Raises
    ------
    CheckpointError, RecipeError
        If the folder has no manifest or no recipe of a run.
    """
    run = Path(run)
    if (run / _ENSEMBLE).is_file():
        return _ensemble_history(run)
    manifest, recipe = read_manifest(run) or {}, load_recipe(run / "recipe.toml")
    tables = {**load_histories(run), **_again(run)}
    progress = run_progress(tables, recipe, manifest)
    curves = draw_histories(tables) if tables else None
    rows = [] if curves is None else curves["rows"]
    path = _write(
        run, "history.html", recipe, manifest,
        kind="recipe", done=progress.epochs, planned=progress.planned,
        state=f"{progress.epochs} of {progress.planned} epochs",
        curves=curves, metric=None if curves is None else curves["metric"],
        rows=rows if manifest.get("finished") else _with_stages_to_come(rows, recipe, manifest),
        stage_epochs={stage.name: stage.epochs for stage in recipe.stages},
        left=None if progress.seconds_left is None else clock(progress.seconds_left),
    )
    if _is_ensemble_member(run):
        _ensemble_history(run.resolve().parent)
    return path


def _write(
    run: Path, template: str, recipe: Recipe | EnsembleRecipe, manifest: Mapping[str, Any], **values: Any
) -> Path:
    """Write the page of a run or an ensemble."""
    page = page_environment().get_template(template).render(
        name=run.resolve().name, recipe=recipe, finished=manifest.get("finished"),
        report=REPORT if (run / REPORT).is_file() else "", updated=time.time(),
        updated_text=time.strftime("%Y-%m-%d %H:%M:%S"), **values,
    )
    write_text(run / HISTORY, page)
    return run / HISTORY


def _with_stages_to_come(
    rows: Sequence[dict[str, Any]], recipe: Recipe, manifest: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return the rows of a table of stages, and one for each stage of a fold that has no epoch yet."""
    titles = [f"fold {k}" for k in _run_folds(recipe, manifest)]
    with_epochs = {(row["fold"], row["stage"]) for row in rows}
    to_come = [
        {"fold": title, "stage": stage.name, "epochs": 0}
        for title in titles for stage in recipe.stages if (title, stage.name) not in with_epochs
    ]
    place = {title: k for k, title in enumerate(titles)}  # folds that are trained again come last
    return sorted([*rows, *to_come], key=lambda row: place.get(row["fold"], len(place)))[:MAX_ROWS]


def _is_ensemble_member(run: Path) -> bool:
    """Return True if the folder above a run is that of an ensemble which has it as a member."""
    above = run.resolve().parent
    if not (above / _ENSEMBLE).is_file():
        return False
    try:
        return run.resolve().name in [member.name for member in load_ensemble(above / _ENSEMBLE).members]
    except FataiError:
        return False


def _ensemble_history(out: Path) -> Path:
    """Write the list of members of an ensemble, with how far each is."""
    recipe, manifest = load_ensemble(out / _ENSEMBLE), read_manifest(out) or {}
    absent = "a run in another folder" if manifest.get("finished") else "to come"
    members = [_member_state(out / member.name, absent) for member in recipe.members]
    done = sum(member["state"] == _DONE for member in members)
    return _write(
        out, "ensemble_history.html", recipe, manifest,
        kind="ensemble", done=done, planned=len(members), state=f"{done} of {len(members)} members", members=members,
    )


def _member_state(run: Path, absent: str) -> dict[str, Any]:
    """Return name, page and progress of the run of a member; `absent` is the state of one without a folder."""
    member: dict[str, Any] = {"name": run.name, "page": "", "progress": None, "state": absent}
    if (manifest := read_manifest(run)) is None:
        return member
    progress = run_progress({**load_histories(run), **_again(run)}, load_recipe(run / "recipe.toml"), manifest)
    page = f"{run.name}/{HISTORY}" if (run / HISTORY).is_file() else ""
    left = "trains" if progress.seconds_left is None else f"about {clock(progress.seconds_left)}, and predictions"
    return {**member, "page": page, "progress": progress, "state": _DONE if manifest.get("finished") else left}


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
    n_folds, n_processes = len(_run_folds(recipe, manifest)), _run_options(manifest).get("nproc")
    planned = n_folds * sum(stage.epochs for stage in recipe.stages)
    epochs = sum(map(len, tables.values()))
    seconds = sum(float(table["seconds"].sum()) for table in tables.values() if "seconds" in table)
    at_once = min(n_folds, n_processes) if isinstance(n_processes, int) and n_processes > 0 else 1
    is_known = 0 < epochs <= planned and seconds > 0
    left = (planned - epochs) * seconds / epochs / max(1, at_once) if is_known else None
    return Progress(epochs, planned, seconds, left)


def _run_folds(recipe: Recipe, manifest: Mapping[str, Any]) -> Sequence[int]:
    """Return the folds that a run trains."""
    chosen = _run_options(manifest).get("run_folds")
    return chosen if isinstance(chosen, list) else recipe.folds.run_folds or range(recipe.folds.n)


def _run_options(manifest: Mapping[str, Any]) -> dict[str, Any]:
    options = manifest.get("run_options")
    return options if isinstance(options, dict) else {}
