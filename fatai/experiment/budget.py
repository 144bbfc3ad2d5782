"""Choose the size of a run by the time that there is: networks, folds and steps, from a measured step.

A *rung* of the ladder is a size; the last one that fits is taken. First come the steps of one network, then folds and
further networks, which are averaged, and more steps last. The time of a rung is computed from the numbers of
its steps and of the clips that it predicts, and from the time of each, which `fatai.experiment.estimate.measure_costs`
measures with the real network on the real data. Other programs on the machine, and the first reading of the sounds, may
make it longer: a budget is a plan, not a guarantee. Where other programs computed during the measurement, a line has
the load.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fatai.data.datasets.fat2019 import FATDataset
from fatai.experiment.adapt import DataFacts, adapt_recipe
from fatai.experiment.ensemble_recipe import EnsembleRecipe
from fatai.experiment.epochs import with_epochs
from fatai.experiment.estimate import (
    VALIDATION,
    Costs,
    clips_and_steps,
    clock,
    load_note,
    measure_costs,
    predicted_clips,
)
from fatai.experiment.frozen_features import shares_features
from fatai.experiment.noisy_decision import max_tried
from fatai.experiment.overrides import Overrides
from fatai.experiment.recipe import Recipe, validated

__all__ = ["LADDER", "Plan", "Rung", "choose_rung", "plan_ensemble", "plan_recipe"]


class Rung(NamedTuple):
    """A size of a run: networks, folds, and the factor of the steps that the rules of recipe `default` decide."""

    members: int
    folds: int
    steps: float


LADDER = (
    Rung(1, 2, 1 / 8), Rung(1, 2, 1 / 4), Rung(1, 2, 1 / 2), Rung(1, 2, 1), Rung(1, 3, 1), Rung(2, 2, 1), Rung(1, 5, 1),
    Rung(2, 3, 1), Rung(2, 5, 1), Rung(3, 5, 1), Rung(3, 5, 1.5), Rung(3, 5, 3),
)
"""Sizes of recipe `best`, the smallest first; a single recipe takes those of one network."""

_SAFETY = 0.9  # part of the budget that is planned


@dataclass(frozen=True)
class Plan:
    """What is run within a budget.

    Attributes
    ----------
    rung
        The size.
    seconds, budget_s
        Expected duration and budget.
    steps
        Steps of a fold of each network.
    folds
        Folds that are trained; more than those of the rung where a column of the table gives them.
    noisy_decision
        Whether the run decides if noisy clips help, which takes as much time again; None without noisy clips.
    """

    rung: Rung
    seconds: float
    budget_s: float
    steps: tuple[int, ...]
    folds: int
    noisy_decision: bool | None = None

    def __str__(self) -> str:
        members = f"{self.rung.members} member{'s' * (self.rung.members > 1)}"
        steps = f"{min(self.steps):,}" if len(set(self.steps)) == 1 else f"{min(self.steps):,} to {max(self.steps):,}"
        noisy = {
            None: "", True: ", half of the time for noisy clips",
            False: "; no time to try whether noisy clips help",
        }[self.noisy_decision]
        return (
            f"about {clock(self.seconds)} of {clock(self.budget_s)}: {members} x {self.folds} folds x {steps} "
            f"steps{noisy}"
        )


def choose_rung(rungs: Sequence[Rung], seconds: Callable[[Rung], float], budget_s: float) -> tuple[Rung, float]:
    """Choose the last rung whose seconds are within nine tenths of the budget, else the first, with a warning.

    Examples
    --------
    >>> choose_rung(LADDER, lambda rung: 100 * rung.members * rung.folds * rung.steps, 700)
    (Rung(members=2, folds=3, steps=1), 600)
    """
    fitting = [rung for rung in rungs if seconds(rung) <= _SAFETY * budget_s]
    chosen = fitting[-1] if fitting else rungs[0]
    if not fitting:
        warnings.warn(
            f"the smallest run takes about {clock(seconds(chosen))}, more than the budget of {clock(budget_s)}; it is "
            "run all the same; --recipe probe, on published weights, takes less",
            stacklevel=2,
        )
    return chosen, seconds(chosen)


class _Cost:
    """Seconds and steps of the networks of a run at each rung; adapted recipes and measurements are kept."""

    def __init__(
        self, data: FATDataset, recipes: Sequence[Recipe], measure: Callable[[FATDataset, Recipe], Costs],
        log: Callable[[str], None],
    ):
        self.data, self.recipes, self._measure, self._log = data, recipes, measure, log
        self._known = DataFacts(data)
        self._adapted: dict[tuple[int, int, float], Recipe] = {}
        self._costs: dict[str, Costs] = {}

    def sized(self, member: int, rung: Rung) -> Recipe:
        """Return the recipe of a network at a rung, decided for the data."""
        key = (member, rung.folds, rung.steps)
        if key not in self._adapted:
            self._adapted[key] = adapt_recipe(resize(self.recipes[member], rung), self.data, self._known)
        return self._adapted[key]

    def seconds(self, rung: Rung) -> float:
        return sum(self._member_seconds(member, rung) for member in range(rung.members))

    def steps(self, rung: Rung) -> tuple[int, ...]:
        return tuple(
            sum(stage.epochs * n for stage, n in zip(recipe.stages, _stage_steps(recipe, self.data), strict=True))
            for recipe in (self.sized(member, rung) for member in range(rung.members))
        )

    def decide_seconds(self, rung: Rung) -> float:
        """Return the seconds in which the folds of the first network predict noisy clips, to decide on them."""
        recipe = self.sized(0, rung)
        n_clips = max_tried(_n_noisy(self.data), len(self.data.curated))
        return n_run_folds(recipe) * n_clips * self._costs_of(recipe).clip_s

    def _member_seconds(self, member: int, rung: Rung) -> float:
        recipe = self.sized(member, rung)
        return run_seconds(recipe, self.data, self._costs_of(recipe))

    def _costs_of(self, recipe: Recipe) -> Costs:
        """Measure the steps of a recipe; networks that differ in their seed alone are measured once."""
        stages = [
            stage.model_copy(update={"epochs": 1, "no_aug_epochs": None, "no_mixup_epochs": None}).model_dump()
            for stage in recipe.stages
        ]
        key = repr((recipe.front_end, recipe.clips, recipe.model, stages, recipe.tta))
        if key not in self._costs:
            self._log(f"{recipe.name}: measuring a few steps of {recipe.model.arch}")
            costs = self._costs[key] = self._measure(self.data, recipe)
            steps = ", ".join(f"{seconds:.2g} s" for seconds in dict.fromkeys(costs.step_s))
            self._log(f"{recipe.name}: {steps} a step, {costs.clip_s:.2g} s to predict a clip")
            if note := load_note(costs.load):
                self._log(f"{recipe.name}: {note}")
        return self._costs[key]


def resize(recipe: Recipe, rung: Rung) -> Recipe:
    """Return a recipe with the folds and steps of a rung; without a rule for its epochs, those are multiplied."""
    plain: dict[str, Any] = recipe.override(Overrides(n_folds=rung.folds)).model_dump()
    if recipe.auto is not None and "epochs" in recipe.auto:
        plain["steps_factor"] = rung.steps
    elif rung.steps != 1:
        plain["stages"] = [
            with_epochs(stage, max(1, round(rung.steps * stage["epochs"]))) for stage in plain["stages"]
        ]
    return validated(plain, f"{recipe.name} within a budget")


def n_run_folds(recipe: Recipe) -> int:
    """Return the number of folds that a recipe trains."""
    return recipe.folds.n if recipe.folds.run_folds is None else len(recipe.folds.run_folds)


def run_seconds(recipe: Recipe, data: FATDataset, costs: Costs) -> float:
    """Return the seconds of all folds; those of linear probes share the features of each clip."""
    if shares_features(recipe):
        return (len(data.curated) + len(data.test)) * costs.clip_s
    return n_run_folds(recipe) * fold_seconds(recipe, data, costs)


def fold_seconds(recipe: Recipe, data: FATDataset, costs: Costs) -> float:
    """Return the seconds of a fold: its steps, its validations, and its predictions."""
    n_valid = round(len(data.curated) / recipe.folds.n)
    seconds = predicted_clips(recipe, n_valid, _n_noisy(data), len(data.test)) * costs.clip_s
    for stage, n_steps, step_s in zip(recipe.stages, _stage_steps(recipe, data), costs.step_s, strict=True):
        if stage.linear_probe is not None:
            seconds += (len(data.curated) - n_valid) * costs.clip_s
        else:
            seconds += stage.epochs * step_s * (n_steps + VALIDATION * n_valid / stage.bs)
    return seconds


def _stage_steps(recipe: Recipe, data: FATDataset) -> list[int]:
    """Return the steps of an epoch of each stage."""
    n_train = round(len(data.curated) * (1 - 1 / recipe.folds.n))
    return [clips_and_steps(stage, n_train, _n_noisy(data), recipe.folds.n)[1] for stage in recipe.stages]


def _n_noisy(data: FATDataset) -> int:
    return 0 if data.noisy is None else len(data.noisy)


def plan_recipe(
    data: FATDataset, recipe: Recipe, budget_s: float, *,
    measure: Callable[[FATDataset, Recipe], Costs] = measure_costs, log: Callable[[str], None] = print,
) -> tuple[Recipe, Plan]:
    """Return a recipe at the size that fits a budget, and the plan.

    Parameters
    ----------
    budget_s
        Seconds.
    measure
        Measures a step and the prediction of a clip.
    log
        Called with a line before and after each measurement.
    """
    cost = _Cost(data, [recipe], measure, log)
    rung, seconds = choose_rung([rung for rung in LADDER if rung.members == 1], cost.seconds, budget_s)
    sized, decides = cost.sized(0, rung), None
    if sized.noisy_decision and data.noisy is not None:
        with_noisy = 2 * seconds + cost.decide_seconds(rung)
        decides = with_noisy <= _SAFETY * budget_s
        seconds = with_noisy if decides else seconds
        sized = sized if decides else sized.model_copy(update={"noisy_decision": None})
    return sized, Plan(rung, seconds, budget_s, cost.steps(rung), n_run_folds(sized), decides)


def plan_ensemble(
    data: FATDataset, recipe: EnsembleRecipe, recipes: Mapping[str, Recipe], budget_s: float, *,
    measure: Callable[[FATDataset, Recipe], Costs] = measure_costs, log: Callable[[str], None] = print,
) -> tuple[EnsembleRecipe, Plan]:
    """Return an ensemble with the members, folds and steps that fit a budget, and the plan.

    Parameters
    ----------
    recipes
        The recipe of each member, as from `fatai.experiment.ensemble_run.member_recipes`.
    budget_s, measure, log
        As in `plan_recipe`.
    """
    cost = _Cost(data, list(recipes.values()), measure, log)
    rungs = [rung for rung in LADDER if rung.members <= len(recipes)]
    rung, seconds = choose_rung(rungs, cost.seconds, budget_s)
    members = [
        member.model_copy(update={"overrides": _resized(member.overrides, rung)})
        for member in recipe.members[:rung.members]
    ]
    plan = Plan(rung, seconds, budget_s, cost.steps(rung), n_run_folds(cost.sized(0, rung)))
    return recipe.model_copy(update={"members": tuple(members)}), plan


def _resized(overrides: dict[str, Any], rung: Rung) -> dict[str, Any]:
    return {**overrides, "steps_factor": rung.steps, "folds": {**overrides.get("folds", {}), "n": rung.folds}}
