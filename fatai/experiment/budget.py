"""Choose the size of a run by the time that there is: networks, folds and steps, from a measured step.

A *rung* of the ladder is a size; the last one that fits is taken. First come the steps of one network, then its folds,
since a network that is trained on most of the clips is better than two that are trained on half of them, then further
networks, which are averaged, and more steps last. The time of a rung is computed from the numbers of
its steps and of the clips that it predicts, and from the time of each, which `fatai.experiment.estimate.measure_costs`
measures with the real network on the real data. Other programs on the machine, and the first reading of the sounds, may
make it longer: a budget is a plan, not a guarantee. Where other programs computed during the measurement, a line has
the load.
"""

from __future__ import annotations

import math
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
from fatai.experiment.launch import processes_for_all
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
    Rung(1, 2, 1 / 8), Rung(1, 2, 1 / 4), Rung(1, 2, 1 / 2), Rung(1, 2, 1), Rung(1, 3, 1), Rung(1, 4, 1), Rung(1, 5, 1),
    Rung(2, 3, 1), Rung(2, 5, 1), Rung(3, 5, 1), Rung(3, 5, 1.5), Rung(3, 5, 3),
)
"""Sizes of recipe `best`, the smallest first; a single recipe takes those of one network."""

_SAFETY = 0.9  # part of the budget that is planned
_BESIDE = 1.1  # how much longer a step takes beside those of other folds: they share the memory's bandwidth


def _slowed(side_by_side: int) -> float:
    return _BESIDE if side_by_side > 1 else 1.0


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
    side_by_side
        Folds that are trained at the same time.
    noisy_decision
        Whether the run decides if noisy clips help, which takes as much time again; None without noisy clips.
    """

    rung: Rung
    seconds: float
    budget_s: float
    steps: tuple[int, ...]
    folds: int
    side_by_side: int = 1
    noisy_decision: bool | None = None

    def __str__(self) -> str:
        members = f"{self.rung.members} member{'s' * (self.rung.members > 1)}"
        steps = f"{min(self.steps):,}" if len(set(self.steps)) == 1 else f"{min(self.steps):,} to {max(self.steps):,}"
        noisy = {
            None: "", True: ", half of the time for noisy clips",
            False: "; no time to try whether noisy clips help",
        }[self.noisy_decision]
        beside = f", {self.side_by_side} folds side by side" if self.side_by_side > 1 else ""
        return (
            f"about {clock(self.seconds)} of {clock(self.budget_s)}: {members} x {self.folds} folds x {steps} "
            f"steps{beside}{noisy}"
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
        log: Callable[[str], None], n_sized: int, side_by_side: bool,
    ):
        self.data, self.recipes, self._measure, self._log = data, recipes, measure, log
        self._n_sized, self._side_by_side = n_sized, side_by_side
        self._known = DataFacts(data)
        self._adapted: dict[tuple[int, int, float], Recipe] = {}
        self._costs: dict[str, Costs] = {}

    def sized(self, member: int, rung: Rung) -> Recipe:
        """Return the recipe of a network at a rung, decided for the data."""
        key = (member, rung.folds, rung.steps)
        if key not in self._adapted:
            self._adapted[key] = adapt_recipe(resize(self.recipes[member], rung), self.data, self._known)
        return self._adapted[key]

    def members(self, rung: Rung) -> list[int]:
        """Return the members of a rung, and those that every rung has."""
        return [*range(min(rung.members, self._n_sized)), *range(self._n_sized, len(self.recipes))]

    def side_by_side(self, rung: Rung) -> int:
        """Return the number of folds that are trained at the same time."""
        if not self._side_by_side:
            return 1
        return processes_for_all([self.sized(k, rung) for k in self.members(rung)], len(self.data.tags))

    def seconds(self, rung: Rung) -> float:
        """Return the seconds of all members."""
        n = self.side_by_side(rung)
        return _slowed(n) * sum(self._member_seconds(member, rung, n) for member in self.members(rung))

    def seconds_with_noisy(self, rung: Rung) -> float:
        """Return the seconds of the first network if it decides on noisy clips, and then uses them.

        All folds are trained twice, and predict noisy clips to decide on them. Folds side by side wait for the one that
        is tried.
        """
        recipe, n = self.sized(0, rung), self.side_by_side(rung)
        costs, rounds, alone = self._costs_of(recipe), math.ceil(recipe.n_run_folds / n), int(n > 1)
        decide_s = max_tried(_n_noisy(self.data), len(self.data.curated)) * costs.clip_s
        fold_s = fold_seconds(recipe, self.data, costs)
        return _slowed(n) * ((2 * rounds + alone) * fold_s + (rounds + alone) * decide_s)

    def steps(self, rung: Rung) -> tuple[int, ...]:
        return tuple(
            sum(stage.epochs * n for stage, n in zip(recipe.stages, _stage_steps(recipe, self.data), strict=True))
            for recipe in (self.sized(member, rung) for member in range(rung.members))
        )

    def _member_seconds(self, member: int, rung: Rung, side_by_side: int) -> float:
        recipe = self.sized(member, rung)
        return run_seconds(recipe, self.data, self._costs_of(recipe), side_by_side)

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
            steps = ", ".join(f"{seconds:.2g} s" for seconds in dict.fromkeys(costs.step_s) if seconds)
            each_step = f"{steps} a step, " if steps else ""  # linear probes have none
            self._log(f"{recipe.name}: {each_step}{costs.clip_s:.2g} s to predict a clip")
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


def run_seconds(recipe: Recipe, data: FATDataset, costs: Costs, side_by_side: int = 1) -> float:
    """Return the seconds of all folds, so many at a time; those of linear probes share the features of each clip."""
    if shares_features(recipe):
        return (len(data.curated) + len(data.test)) * costs.clip_s
    return math.ceil(recipe.n_run_folds / side_by_side) * fold_seconds(recipe, data, costs)


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
    side_by_side: bool = False,
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
    side_by_side
        Whether as many folds are trained at the same time as `fatai.experiment.launch.processes_for` returns.
    """
    cost = _Cost(data, [recipe], measure, log, 1, side_by_side)
    rung, seconds = choose_rung([rung for rung in LADDER if rung.members == 1], cost.seconds, budget_s)
    sized, decides = cost.sized(0, rung), None
    if sized.noisy_decision and data.noisy is not None:
        with_noisy = cost.seconds_with_noisy(rung)
        decides = with_noisy <= _SAFETY * budget_s
        seconds = with_noisy if decides else seconds
        sized = sized if decides else sized.model_copy(update={"noisy_decision": None})
    n = cost.side_by_side(rung)
    return sized, Plan(rung, seconds, budget_s, cost.steps(rung), sized.n_run_folds, n, decides)


def plan_ensemble(
    data: FATDataset, recipe: EnsembleRecipe, recipes: Mapping[str, Recipe], budget_s: float, *,
    measure: Callable[[FATDataset, Recipe], Costs] = measure_costs, log: Callable[[str], None] = print,
    n_sized: int | None = None, side_by_side: bool = False,
) -> tuple[EnsembleRecipe, Plan]:
    """Return an ensemble with the members, folds and steps that fit a budget, and the plan.

    Parameters
    ----------
    recipes
        The recipe of each member, as from `fatai.experiment.ensemble_run.member_recipes`.
    n_sized
        Number of members that the budget decides about, the first ones; those after them, such as a probe, are trained
        in any case. None takes all.
    budget_s, measure, log, side_by_side
        As in `plan_recipe`.
    """
    n_sized = len(recipes) if n_sized is None else n_sized
    cost = _Cost(data, list(recipes.values()), measure, log, n_sized, side_by_side)
    rungs = [rung for rung in LADDER if rung.members <= n_sized]
    rung, seconds = choose_rung(rungs, cost.seconds, budget_s)
    members = [
        member.model_copy(update={"overrides": _resized(member.overrides, rung)})
        for member in recipe.members[:rung.members]
    ]
    fixed = [
        member.model_copy(update={"overrides": {**member.overrides, "folds": _folds(member.overrides, rung)}})
        for member in recipe.members[n_sized:]
    ]
    n_folds, n = cost.sized(0, rung).n_run_folds, cost.side_by_side(rung)
    plan = Plan(rung, seconds, budget_s, cost.steps(rung), n_folds, n)
    return recipe.model_copy(update={"members": (*members, *fixed)}), plan


def _resized(overrides: dict[str, Any], rung: Rung) -> dict[str, Any]:
    return {**overrides, "steps_factor": rung.steps, "folds": _folds(overrides, rung)}


def _folds(overrides: dict[str, Any], rung: Rung) -> dict[str, Any]:
    return {**overrides.get("folds", {}), "n": rung.folds}
