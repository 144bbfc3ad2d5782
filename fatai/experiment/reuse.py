"""Find a finished run with the settings and data of a member of an ensemble, or say what differs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fatai.data.datasets.fat2019 import FATDataset
from fatai.experiment.adapt import adapt_recipe
from fatai.experiment.background import readable_background
from fatai.experiment.build import pin_network
from fatai.experiment.manifest import data_digest, read_manifest
from fatai.experiment.recipe import Recipe, load_recipe

__all__ = ["FoundRun", "find_run"]

# Keys of a recipe that do not change what is trained.
_DESCRIPTIVE = ("name", "summary", "source", "reference_score", "decided")
_SHOWN = 3


class FoundRun(NamedTuple):
    """The run to reuse; without one, why the most similar run cannot be."""

    run: Path | None
    reason: str = ""


def find_run(runs: Sequence[str | Path], recipe: Recipe, data: FATDataset) -> FoundRun:
    """Return the first finished run with the same settings, those that are decided by the data included, and data.

    Parameters
    ----------
    runs
        Run folders, at least one.
    recipe
        The recipe to train, as `fatai.experiment.run.run_recipe` takes it.
    data
        The data to train on.

    Raises
    ------
    CheckpointError, RecipeError
        If the manifest or the recipe of a run cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # training gives the same warnings
        data = readable_background(data)
        recipe = adapt_recipe(pin_network(recipe), data)
    digest, nearest = data_digest(data), ""
    fewest = float("inf")
    for run in map(Path, runs):
        if not _is_finished(run):
            nearest = nearest or f"{run} is not a finished run"
        elif (read_manifest(run) or {})["data"].get("digest") != digest:
            nearest = nearest or f"{run} was trained on other data"
        elif not (differences := _differences(recipe, run)):
            return FoundRun(run)
        elif len(differences) < fewest:
            fewest, nearest = len(differences), f"{run} has other settings: {_some(differences)}"
    return FoundRun(None, nearest)


def _is_finished(run: Path) -> bool:
    return (run / "recipe.toml").is_file() and bool((read_manifest(run) or {}).get("finished"))


def _differences(recipe: Recipe, run: Path) -> list[str]:
    """Return the differences from the recipe of a run that change what is trained."""
    lines = recipe.differences(load_recipe(run / "recipe.toml"))
    return [line for line in lines if line.split(" ", 1)[0].split(".")[0] not in _DESCRIPTIVE]


def _some(differences: Sequence[str]) -> str:
    more = f" and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
    return "; ".join(differences[:_SHOWN]) + more
