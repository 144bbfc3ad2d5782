"""What the options of `run` and `demo` describe: data, a recipe or an ensemble, and the processes that train it."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from fatai.data.datasets.fat2019 import FATDataset
    from fatai.experiment.ensemble_recipe import EnsembleRecipe
    from fatai.experiment.overrides import Overrides
    from fatai.experiment.recipe import Recipe
    from fatai.experiment.run_result import RunResult

__all__ = ["Training", "has_plan", "in_processes"]

_PLAN = "FATAI_PLANNED_RECIPE"  # path of the recipe or ensemble that the command planned, for the processes it starts


def has_plan() -> bool:
    """Return True in a process of a command that has planned the run within a budget."""
    return _PLAN in os.environ


@dataclass(frozen=True)
class Training:
    """What to train: data, recipe or ensemble, and how they are changed."""

    data: Path
    recipe: str
    out: Path
    overrides: Overrides
    run_folds: tuple[int, ...] | None = None
    corrections: Path | None = None
    scale: str = "full"
    num_workers: int | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    budget: str | None = None
    resume: bool = False
    tracker: str | None = None
    nproc: int | None = None

    @property
    def is_ensemble(self) -> bool:
        """Whether the recipe is an ensemble."""
        from fatai.experiment.ensemble_recipe import is_ensemble

        return is_ensemble(self.recipe)

    @property
    def is_probe(self) -> bool:
        """Whether the recipe trains nothing but linear probes."""
        from fatai.experiment.recipe import load_recipe

        return not self.is_ensemble and all(s.linear_probe is not None for s in load_recipe(self.recipe).stages)

    @cached_property
    def loaded(self) -> tuple[FATDataset, Recipe]:
        """The data and the recipe, overridden, adapted to them, scaled and within the budget."""
        from fatai.experiment.adapt import adapt_recipe
        from fatai.experiment.recipe import load_recipe
        from fatai.experiment.scaling import scale_recipe

        recipe = load_recipe(self.recipe)
        recipe.override(self.overrides)  # raises before any file is read
        data = self._load_data(recipe.clips.corrupted_files)
        if self.budget is not None:
            return data, self._within_budget(data, recipe.override(self.overrides))
        n_noisy = None if data.noisy is None else len(data.noisy)
        if recipe.auto is not None:
            recipe = adapt_recipe(recipe.override(self.overrides), data)
        return data, scale_recipe(recipe, self.scale, n_noisy, len(data.curated)).override(self.overrides)

    @cached_property
    def may_start_processes(self) -> bool:
        """Whether this command may train folds side by side: the user set neither that nor the threads."""
        from fatai.device import training_device
        from fatai.threads import COUNT_VARIABLES

        if self.nproc is not None or not _is_typed() or any(name in os.environ for name in COUNT_VARIABLES):
            return False
        return training_device().type == "cpu"

    def n_processes(self) -> int:
        """Return the number of processes that train folds side by side."""
        from fatai.experiment.launch import processes_for_all

        if not self.may_start_processes:
            return 1 if self.nproc is None else self.nproc
        return processes_for_all([recipe for _, recipe in self.members], len(self.members[0][0].tags))

    def _load_data(self, corrupted_files: str = "keep") -> FATDataset:
        from fatai.data.datasets.fat2019 import load_dataset
        from fatai.data.table_columns import TableColumns

        return load_dataset(
            self.data, self.corrections, corrupted_files=corrupted_files, columns=TableColumns.from_dict(self.columns)
        )

    def _within_budget(self, data: FATDataset, recipe: Recipe) -> Recipe:
        """Return a recipe at the size that fits the budget; that of the run in `out` if it is continued."""
        from fatai.experiment.budget import plan_recipe
        from fatai.experiment.estimate import seconds_of
        from fatai.experiment.recipe import load_recipe

        if planned := self._planned("recipe.toml"):
            self._check_name(load_recipe(planned).name, recipe.name)
            return load_recipe(planned).override(self.overrides)  # which a run refuses to continue if it differs
        assert self.budget is not None
        sized, plan = plan_recipe(data, recipe, seconds_of(self.budget), side_by_side=self.may_start_processes)
        typer.echo(f"{recipe.name}: {plan}")
        return sized

    @cached_property
    def ensemble(self) -> EnsembleRecipe:
        """The ensemble, with pretrained weights as one more member, within the budget."""
        from fatai.experiment.ensemble_recipe import load_ensemble, with_probe

        recipe = load_ensemble(self.recipe)
        if planned := self._planned("ensemble.toml"):
            self._check_name(load_ensemble(planned).name, recipe.name)
            recipe = load_ensemble(planned)
        weights = self.overrides.weights
        is_whole = weights is None or not self.adds_probe or any(m.recipe == "probe" for m in recipe.members)
        larger = recipe if is_whole else with_probe(recipe, str(weights))
        return larger if self.budget is None or planned else self._ensemble_within_budget(recipe, larger)

    def _ensemble_within_budget(self, recipe: EnsembleRecipe, larger: EnsembleRecipe) -> EnsembleRecipe:
        """Return an ensemble at the size that fits the budget beside the further members of a larger one."""
        from fatai.experiment.budget import plan_ensemble
        from fatai.experiment.ensemble_run import member_recipes
        from fatai.experiment.estimate import seconds_of

        assert self.budget is not None
        members = member_recipes(larger, overrides=self.ensemble_overrides())
        sized, plan = plan_ensemble(
            self._load_data(), larger, members, seconds_of(self.budget), n_sized=len(recipe.members),
            side_by_side=self.may_start_processes,
        )
        typer.echo(f"{recipe.name}: {plan}")
        return sized

    def _planned(self, name: str) -> str | None:
        """Return the file of what was planned within the budget, by the parent process or by the run to continue."""
        if self.budget is None:
            return None
        kept = self.out / name
        if _PLAN in os.environ or not (self.resume and kept.is_file()):
            return os.environ.get(_PLAN)
        typer.echo(f"{self.out} goes on at the size that it began with: --budget {self.budget} is not planned again")
        return str(kept)

    def _check_name(self, kept: str, given: str) -> None:
        """Raise `CheckpointError` if a run within a budget is continued with another recipe."""
        from fatai.errors import CheckpointError

        if kept != given:
            raise CheckpointError(
                f"{self.out} holds a run of recipe {kept}, not of {given}; give --recipe {kept}, or another --out"
            )

    def write_plan(self, folder: str | Path) -> Path:
        """Write what was planned within the budget into a folder, for the processes that train it; return the file."""
        from fatai.experiment.ensemble_recipe import ensemble_toml
        from fatai.io.atomic import write_text

        path = Path(folder) / ("ensemble.toml" if self.is_ensemble else "recipe.toml")
        write_text(path, ensemble_toml(self.ensemble) if self.is_ensemble else self.loaded[1].resolved())
        return path

    @property
    def adds_probe(self) -> bool:
        """True if pretrained weights are one more member, and not those of each."""
        return self.is_ensemble and self.recipe.removeprefix("ensembles/") == "best"

    @cached_property
    def members(self) -> list[tuple[FATDataset, Recipe]]:
        """The data and the recipe of every member of an ensemble, decided for the data; else those of the recipe."""
        from fatai.experiment.adapt import adapt_recipe
        from fatai.experiment.ensemble_run import member_recipes

        if not self.is_ensemble:
            data, recipe = self.loaded
            return [(data, recipe.override(run_folds=self.run_folds))]
        data = self._load_data()
        recipes = member_recipes(
            self.ensemble,
            scale=self.scale,
            overrides=self.ensemble_overrides(),
            n_noisy=None if data.noisy is None else len(data.noisy),
            n_curated=len(data.curated),
        )
        loaded = [(self._load_data(recipe.clips.corrupted_files), recipe) for recipe in recipes.values()]
        return [(data, adapt_recipe(recipe, data)) for data, recipe in loaded]

    def ensemble_overrides(self) -> Overrides:
        """Return the overrides of each member, with the folds to train."""
        weights = None if self.adds_probe else self.overrides.weights
        return replace(self.overrides, run_folds=self.run_folds, weights=weights)

    def run(self, *, predict: bool = True, resume: bool = False, baseline: bool = True) -> RunResult:
        """Train one recipe."""
        from fatai.experiment.run import run_recipe
        from fatai.report.history import run_history
        from fatai.report.html import run_report

        data, recipe = self.loaded
        return run_recipe(
            data,
            recipe,
            self.out,
            run_folds=self.run_folds,
            predict_test=predict,
            resume=resume,
            num_workers=self.num_workers,
            corrections=self.corrections,
            command=_command_line(),
            report=run_report,
            history=run_history,
            tracker=self.tracker,
            baseline=baseline,
        )

    def run_ensemble(self, *, reuse: list[Path] | None = None, resume: bool = False) -> None:
        """Train the members of an ensemble and average them."""
        from fatai.experiment.ensemble_run import run_ensemble
        from fatai.report.history import run_history
        from fatai.report.html import run_report

        # A table with columns of other names is loaded here; else each member loads the data as its recipe says.
        run_ensemble(
            self._load_data() if any(self.columns.values()) else self.data,
            self.ensemble,
            self.out,
            scale=self.scale,
            overrides=self.ensemble_overrides(),
            reuse=reuse or (),
            resume=resume,
            corrections=self.corrections,
            num_workers=self.num_workers,
            command=_command_line(),
            report=run_report,
            history=run_history,
        )

    def print_estimate(self, time_limit: str | None, *, predict: bool = True) -> None:
        """Print steps, time and memory of a run, and whether it fits `time_limit`."""
        from fatai.experiment.adapt import decision_lines
        from fatai.experiment.estimate import clock, estimate_run, fits_budget, seconds_of

        limit_s = None if time_limit is None else seconds_of(time_limit)
        seconds, n_processes = 0.0, self.n_processes() if self.may_start_processes else 1
        for data, recipe in self.members:
            for line in decision_lines(recipe):
                typer.echo(line)
            estimate = estimate_run(data, recipe, predict_test=predict, num_workers=self.num_workers)
            typer.echo(str(estimate))
            took = estimate.seconds_with(n_processes)
            if n_processes > 1:
                typer.echo(
                    f"{n_processes} folds side by side: at most {clock(took)}, and {n_processes} times the memory"
                )
            seconds += took
        if limit_s is not None:
            typer.echo(fits_budget(seconds, limit_s))


@contextmanager
def in_processes(training: Training) -> Iterator[bool]:
    """Yield True in a process that does the work; else start such processes, wait for them, and yield False.

    Where the user sets neither their number nor that of threads, there are several if every core can train a fold.
    """
    from fatai.distributed import was_started_by_torchrun
    from fatai.experiment.launch import PROCESS_MEMORY, in_process_group, start_processes

    if not was_started_by_torchrun():
        n, is_ours = training.n_processes(), training.nproc is None
        if is_ours and n > 1:
            typer.echo(
                f"{n} folds are trained side by side, each in a process with one thread and up to "
                f"{PROCESS_MEMORY / 2**30:.1f} GiB of memory; --nproc 1 trains one after another"
            )
        if n != 1:
            with _plan_for_processes(training):
                start_processes(n, sys.argv[1:], f"the run in {training.out}", threads=1 if is_ours else None)
            yield False
            return
    with in_process_group(training.nproc):
        yield True


@contextmanager
def _plan_for_processes(training: Training) -> Iterator[None]:
    """Hand what was planned within a budget to the processes that are started in the block."""
    if training.budget is None:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ[_PLAN] = str(training.write_plan(folder))
        try:
            yield
        finally:
            del os.environ[_PLAN]


def _is_typed() -> bool:
    """Return True if this process is a command, whose arguments other processes can take."""
    return Path(sys.argv[0]).stem == "fatai-submit" or sys.argv[0] == str(Path(__file__).parent / "__main__.py")


def _command_line() -> str:
    return shlex.join(["fatai-submit", *sys.argv[1:]])
