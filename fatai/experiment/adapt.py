"""Decide the settings that a recipe leaves to the data, by the rules of `fatai.training.defaults`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from fatai.data.copies import sound_groups
from fatai.data.datasets.fat2019 import FATDataset
from fatai.data.labels import multi_hot
from fatai.experiment.recipe import Recipe, validated
from fatai.training import defaults
from fatai.training.defaults import Decision

__all__ = ["DataFacts", "adapt_recipe", "decision_lines"]

_FOLD_COLUMN = "fold"

class DataFacts:
    """What the rules look at, each read when a rule needs it."""

    def __init__(self, data: FATDataset):
        self.table, self.tags, self.has_noisy = data.curated, data.tags, data.noisy is not None

    @cached_property
    def targ(self) -> np.ndarray:
        """Multi-hot labels of the curated clips, shape (clips, tags)."""
        return multi_hot(self.table["labels"], self.tags)

    @cached_property
    def facts(self) -> defaults.ClipFacts:
        """Durations and rates of the curated clips."""
        return defaults.clip_facts([str(path) for path in self.table["path"]])

    @cached_property
    def n_copies(self) -> int:
        """Number of clips that are copies of earlier ones."""
        groups = sound_groups([str(path) for path in self.table["path"]])
        return len(groups) - len(set(groups))

    def n_training(self, n_folds: int) -> int:
        """Return the number of clips that a fold trains on."""
        return round(len(self.table) * (1 - 1 / n_folds))


def adapt_recipe(recipe: Recipe, data: FATDataset, known: DataFacts | None = None) -> Recipe:
    """Return a recipe with the settings of its `auto` decided from the data, and the reasons in `decided`.

    A recipe without `auto` is returned as it is. Settings that `Recipe.override` replaced are kept, and the other rules
    take them into account. `known` saves reading the facts again where several recipes are adapted to the same data.

    Raises
    ------
    DataError
        If no curated clip can be read.
    """
    if recipe.auto is None:
        return recipe
    plain = recipe.model_dump()
    known = DataFacts(data) if known is None else known
    decided = {key: reason for name in recipe.auto for key, reason in _RULES[name](plain, known)}
    if known.has_noisy and all(stage.noisy_labels is None for stage in recipe.stages):
        decided["train_noisy"] = "not used: this recipe trains on curated clips alone"
        if recipe.noisy_decision:
            decided["train_noisy"] = "used if one fold gets better with it, after all folds are trained without it"
    return validated({**plain, "auto": None, "decided": decided}, f"{recipe.name} for these data")


def decision_lines(recipe: Recipe) -> list[str]:
    """Return a line for each decided setting, such as "folds.n = 3: the rarest tag has 34 clips"."""
    return [f"{key}: {reason}" for key, reason in (recipe.decided or {}).items()]


def _front_end(plain: dict[str, Any], data: DataFacts) -> Iterator[tuple[str, str]]:
    if plain["front_end"] != {"name": "ninth"}:  # that of a network with published weights
        return
    decision = defaults.front_end_settings(data.facts.rates)
    plain["front_end"] = {**plain["front_end"], **decision.value}
    yield f"front_end.sr = {decision.value.get('sr', 44_100)}", decision.reason


def _crop_s(plain: dict[str, Any], data: DataFacts) -> Iterator[tuple[str, str]]:
    yield _set(plain["clips"], "crop_s", defaults.crop_seconds(data.facts.seconds), "clips.crop_s")


def _splitter(plain: dict[str, Any], data: DataFacts) -> Iterator[tuple[str, str]]:
    n_given = _given_folds(data.table)
    if n_given:
        is_other = "folds" not in plain["auto"] and plain["folds"]["n"] != n_given
        other = f", which win over folds.n = {plain['folds']['n']}" if is_other else ""
        plain["folds"].update(splitter="predefined", group_col=_FOLD_COLUMN, n=n_given)
        yield 'folds.splitter = "predefined"', f"the table has a column {_FOLD_COLUMN} with {n_given} values{other}"
        return
    decision = defaults.split_method(data.targ, data.n_copies)
    plain["folds"]["group_col"] = "sound" if decision.value == "group" else None
    yield _set(plain["folds"], "splitter", decision, "folds.splitter")


def _given_folds(table: pd.DataFrame) -> int:
    """Return the number of folds that a column of the table gives; 0 if it gives none."""
    if _FOLD_COLUMN not in table.columns or table[_FOLD_COLUMN].isna().any():
        return 0
    n = table[_FOLD_COLUMN].nunique()
    return n if 2 <= n <= 10 else 0


def _folds(plain: dict[str, Any], data: DataFacts) -> Iterator[tuple[str, str]]:
    if plain["folds"]["splitter"] != "predefined":
        yield _set(plain["folds"], "n", defaults.fold_count(data.targ), "folds.n")


def _width(plain: dict[str, Any], data: DataFacts) -> Iterator[tuple[str, str]]:
    n_training = data.n_training(plain["folds"]["n"])
    yield _set(plain["model"], "width", defaults.network_width(n_training), "model.width")


def _bs(plain: dict[str, Any], data: DataFacts) -> Iterator[tuple[str, str]]:
    decision = defaults.batch_size(data.n_training(plain["folds"]["n"]))
    for stage in plain["stages"]:
        yield _set(stage, "bs", decision, "stages.bs")


def _epochs(plain: dict[str, Any], data: DataFacts) -> Iterator[tuple[str, str]]:
    n_training = data.n_training(plain["folds"]["n"])
    factor = plain["steps_factor"] or 1.0
    for stage in plain["stages"]:
        if stage["sampling"] == "shuffle" and not stage["sampling_options"]:
            drawn = defaults.epoch_clips(n_training, stage["bs"])
            if drawn.value is not None:
                yield _set(stage["sampling_options"], "n", drawn, "stages.sampling_options.n")
        epochs = defaults.fit_epochs(n_training, stage["bs"], stage["sampling_options"].get("n"))
        if factor != 1:
            value = max(1, round(factor * epochs.value))
            epochs = Decision(value, f"{factor:g} times {epochs.value:,}, which are {epochs.reason}")
        yield _set(stage, "epochs", epochs, "stages.epochs")


def _no_aug_epochs(plain: dict[str, Any], data: DataFacts) -> Iterator[tuple[str, str]]:
    for stage in plain["stages"]:
        yield _set(stage, "no_aug_epochs", defaults.no_aug_epochs(stage["epochs"]), "stages.no_aug_epochs")


_RULES = {
    "front_end": _front_end, "crop_s": _crop_s, "splitter": _splitter, "folds": _folds, "width": _width, "bs": _bs,
    "epochs": _epochs, "no_aug_epochs": _no_aug_epochs,
}


def _set(section: dict[str, Any], key: str, decision: Decision, name: str) -> tuple[str, str]:
    section[key] = decision.value
    return f"{name} = {json.dumps(decision.value)}", decision.reason
