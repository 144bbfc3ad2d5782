"""Commands that train: run and demo."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fatai.cli.options import (
    Arch,
    BatchSize,
    Budget,
    Channel,
    Corrections,
    CropS,
    Data,
    Device,
    DryRun,
    Epochs,
    FileCol,
    FoldCount,
    Folds,
    LearningRate,
    Nproc,
    NumWorkers,
    NViews,
    Out,
    Precision,
    RecipeName,
    Resume,
    ReuseRun,
    Scale,
    Seed,
    Settings,
    TagsCol,
    TagSep,
    Threads,
    TimeLimit,
    Weights,
    Width,
    check_device,
)

if TYPE_CHECKING:
    from fatai.data.datasets.fat2019 import FATDataset
    from fatai.experiment.ensemble_recipe import EnsembleRecipe
    from fatai.experiment.overrides import Overrides
    from fatai.experiment.recipe import Recipe
    from fatai.experiment.run_result import RunResult

__all__ = ["app"]

app = typer.Typer()


@dataclass(frozen=True)
class _Training:
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

    @property
    def is_ensemble(self) -> bool:
        from fatai.experiment.ensemble_recipe import is_ensemble

        return is_ensemble(self.recipe)

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

    def n_processes(self) -> int:
        """Return how many processes train folds side by side where the user sets neither that nor the threads."""
        from fatai.device import training_device
        from fatai.experiment.build import recipe_parameters
        from fatai.experiment.launch import processes_for
        from fatai.threads import COUNT_VARIABLES

        if self.is_ensemble or not _is_typed() or any(name in os.environ for name in COUNT_VARIABLES):
            return 1
        if self.budget is not None:  # each process would measure and plan by itself
            return 1
        if training_device().type != "cpu":
            return 1
        data, recipe = self.loaded
        if all(stage.linear_probe is not None for stage in recipe.stages):  # takes seconds
            return 1
        run_folds = self.run_folds or recipe.folds.run_folds or range(recipe.folds.n)
        return processes_for(recipe_parameters(recipe, len(data.tags)), len(set(run_folds)))

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

        assert self.budget is not None
        if self.resume and (self.out / "recipe.toml").is_file():
            return load_recipe(self.out / "recipe.toml")
        sized, plan = plan_recipe(data, recipe, seconds_of(self.budget))
        typer.echo(f"{recipe.name}: {plan}")
        return sized

    def load_ensemble(self) -> EnsembleRecipe:
        """Load the ensemble, with pretrained weights as one more member, within the budget."""
        from fatai.experiment.budget import plan_ensemble
        from fatai.experiment.ensemble_recipe import load_ensemble, with_probe
        from fatai.experiment.ensemble_run import member_recipes
        from fatai.experiment.estimate import seconds_of

        if self.resume and self.budget is not None and (self.out / "ensemble.toml").is_file():
            return load_ensemble(self.out / "ensemble.toml")
        recipe = load_ensemble(self.recipe)
        if self.budget is not None:
            recipes = member_recipes(recipe, overrides=self.ensemble_overrides())
            recipe, plan = plan_ensemble(self._load_data(), recipe, recipes, seconds_of(self.budget))
            typer.echo(f"{recipe.name}: {plan}")
        weights = self.overrides.weights
        return with_probe(recipe, str(weights)) if weights is not None and self.adds_probe else recipe

    @property
    def adds_probe(self) -> bool:
        """True if pretrained weights are one more member, and not those of each."""
        return self.is_ensemble and self.recipe.removeprefix("ensembles/") == "best"

    def load_members(self) -> Iterator[tuple[FATDataset, Recipe]]:
        """Load the data and recipe of every member of an ensemble, one after another."""
        from fatai.experiment.ensemble_run import member_recipes

        data = self._load_data()
        recipes = member_recipes(
            self.load_ensemble(),
            scale=self.scale,
            overrides=self.ensemble_overrides(),
            n_noisy=None if data.noisy is None else len(data.noisy),
            n_curated=len(data.curated),
        )
        for recipe in recipes.values():
            yield self._load_data(recipe.clips.corrupted_files), recipe

    def ensemble_overrides(self) -> Overrides:
        """Return the overrides of each member, with the folds to train."""
        from dataclasses import replace

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
            self.load_ensemble(),
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

    def print_estimate(self, time_limit: str | None, nproc: int | None, *, predict: bool = True) -> None:
        """Print steps, time and memory of a run, and whether it fits `time_limit`."""
        from dataclasses import replace

        from fatai.experiment.adapt import decision_lines
        from fatai.experiment.estimate import clock, estimate_run, fits_budget, seconds_of

        limit_s = None if time_limit is None else seconds_of(time_limit)
        alone = replace(self, overrides=self.ensemble_overrides())
        seconds, n_processes = 0.0, alone.n_processes() if nproc is None else 1
        for data, recipe in self.load_members() if self.is_ensemble else [alone.loaded]:
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


@app.command(rich_help_panel="Train")
def run(
    data: Data,
    recipe: RecipeName = "default",
    out: Out = Path("runs/run"),
    folds: FoldCount = None,
    fold: Folds = None,
    epochs: Epochs = None,
    bs: BatchSize = None,
    lr: LearningRate = None,
    arch: Arch = None,
    width: Width = None,
    weights: Weights = None,
    crop_s: CropS = None,
    channel: Channel = None,
    n_views: NViews = None,
    seed: Seed = None,
    precision: Precision = None,
    settings: Settings = None,
    num_workers: NumWorkers = None,
    threads: Threads = None,
    device: Device = None,
    resume: Resume = False,
    predict: Annotated[
        bool,
        typer.Option("--predict/--no-predict", help="Predict the test part, if there is one, and write a submission."),
    ] = True,
    baseline: Annotated[
        bool,
        typer.Option(
            "--baseline/--no-baseline",
            help="With recipe default, also score a frozen pretrained network, if its weights are on this machine.",
        ),
    ] = True,
    corrections: Corrections = None,
    scale: Scale = "full",
    dry_run: DryRun = False,
    time_limit: TimeLimit = None,
    budget: Budget = None,
    reuse_run: ReuseRun = None,
    nproc: Nproc = None,
    file_col: FileCol = None,
    tags_col: TagsCol = None,
    tag_sep: TagSep = None,
    tracker: Annotated[
        str | None,
        typer.Option(
            "--tracker",
            help="Log every fit also to tensorboard (in OUT/tensorboard), wandb or mlflow: losses, metrics, lwlrap of "
            "each tag, and but for mlflow samples.",
        ),
    ] = None,
    watch: Annotated[
        int | None,
        typer.Option(
            "--watch", min=0, max=65535, metavar="PORT",
            help="Serve the page of the training at this port of this machine until the run ends; 0 takes any free "
            "one. Without it, the same page is OUT/history.html.",
        ),
    ] = None,
) -> None:
    """Train the folds of a recipe, predict, and write a report.

    If there is a test part, also write a checked submission. With an ensemble as --recipe, such as best or
    ensembles/third_place, train all its runs and average them.

    Your own sounds: fatai-submit run my_sounds/labels.csv --out runs/mine

    Without --recipe, it takes recipe default, whose settings are decided from the clips. With --recipe best --budget
    8h, it takes the networks and folds that fit into a night.

    Example: fatai-submit run DATA --recipe ninth --folds 2 --epochs 40 --bs 16 --out runs/ninth
    """
    from fatai.distributed import was_started_by_torchrun
    from fatai.errors import OptionError
    from fatai.experiment.overrides import Overrides, parse_settings

    overrides = Overrides(
        n_folds=folds,
        epochs=epochs,
        bs=bs,
        lr=lr,
        arch=arch,
        width=width,
        weights=weights,
        crop_s=crop_s,
        channel=channel,
        n_views=n_views,
        seed=seed,
        precision=precision,
        values=parse_settings(settings or ()),
    )
    check_device(device, nproc)
    columns = {"fn_col": file_col, "label_col": tags_col, "label_delim": tag_sep}
    run_folds = tuple(fold) if fold else None
    training = _Training(
        data, recipe, out, overrides, run_folds, corrections, scale, num_workers, columns, budget, resume,
        tracker,
    )
    if budget is not None and (scale != "full" or folds is not None or epochs is not None):
        raise OptionError("--budget chooses folds and epochs: leave out --folds, --epochs and --scale")
    if budget is not None and (nproc not in (None, 1) or was_started_by_torchrun()):
        raise OptionError("--budget measures and plans in one process: leave out --nproc and torchrun")
    if tracker is not None and training.is_ensemble:
        raise OptionError(f"--tracker is given with the ensemble {recipe}; give it to the runs of its members")
    if not predict and training.is_ensemble:
        raise OptionError(
            f"--no-predict is given with the ensemble {recipe}, which averages predictions of its runs: leave it out"
        )
    if dry_run or time_limit is not None:
        training.print_estimate(time_limit, nproc, predict=predict)
        return
    with _watched(out, watch), _processes(nproc, training) as is_worker:
        if is_worker and training.is_ensemble:
            training.run_ensemble(reuse=reuse_run, resume=resume)
        elif is_worker:
            training.run(predict=predict, resume=resume, baseline=baseline)


@contextmanager
def _watched(out: Path, port: int | None) -> Iterator[None]:
    """Serve the page of a run during the block; not in processes that another one has started, which does."""
    from fatai.distributed import was_started_by_torchrun
    from fatai.experiment.launch import reports_to_parent

    if port is None or reports_to_parent() or (was_started_by_torchrun() and os.environ.get("RANK") != "0"):
        yield
        return
    from fatai.web.watch import watching

    with watching(out, port) as address:
        typer.echo(f"watch the training at {address} until it ends; its page stays in {out / 'history.html'}")
        yield


@contextmanager
def _processes(n: int | None, training: _Training) -> Iterator[bool]:
    """Yield True in a process that does the work; else start such processes, wait for them, and yield False.

    `n` is their number; None takes several where every core can train a fold of its own.
    """
    from fatai.distributed import was_started_by_torchrun
    from fatai.experiment.launch import PROCESS_MEMORY, in_process_group, start_processes

    if not was_started_by_torchrun():
        threads = None if n is not None else 1
        n_processes = training.n_processes() if n is None else n
        if n is None and n_processes > 1:
            typer.echo(
                f"{n_processes} folds are trained side by side, each in a process with one thread and up to "
                f"{PROCESS_MEMORY / 2**30:.1f} GiB of memory; --nproc 1 trains one after another"
            )
        if n_processes != 1:
            start_processes(n_processes, sys.argv[1:], f"the run in {training.out}", threads=threads)
            yield False
            return
    with in_process_group(n):
        yield True


def _is_typed() -> bool:
    """Return True if this process is a command, whose arguments other processes can take."""
    return Path(sys.argv[0]).stem == "fatai-submit" or sys.argv[0] == str(Path(__file__).parent / "__main__.py")


def _command_line() -> str:
    return shlex.join(["fatai-submit", *sys.argv[1:]])


@app.command(rich_help_panel="Train")
def demo(
    out: Annotated[
        Path, typer.Option("--out", help="Folder of the run; replaced if it holds nothing but an earlier demo.")
    ] = Path("runs/demo"),
    epochs: Epochs = None,
) -> None:
    """Train on the bundled sounds and score on their test part. Four folds, a few minutes on a laptop.

    Example: fatai-submit demo --out runs/demo
    """
    from fatai.data.datasets.fat2019 import fat_sample
    from fatai.distributed import was_started_by_torchrun
    from fatai.experiment.overrides import Overrides
    from fatai.io.lock import lock_output

    if not was_started_by_torchrun():
        with lock_output(out):
            _remove_earlier_demo(out)
    data = fat_sample()
    small: dict[str, Any] = {"stages.epochs": _DEMO_EPOCHS if epochs is None else epochs}
    small |= {"stages.sampling_options": {"n": _DEMO_CLIPS}, "noisy_decision": False}  # which takes another fold
    training = _Training(data, "default", out, Overrides(values=small))
    with _processes(None, training) as is_worker:
        if is_worker:
            _print_scores(training.run(), data)


def _print_scores(result: RunResult, data: Path) -> None:
    """Print the scores of a demo, in one of its processes."""
    from fatai.distributed import init

    if not init().is_main:
        return
    for fold, value in result.fold_scores.items():
        typer.echo(f"fold {fold} lwlrap {value:.4f}")
    typer.echo(f"out-of-fold lwlrap {result.oof_score:.4f}")
    if result.test is not None:
        typer.echo(f"test lwlrap {result.test.score(data / 'truth' / 'test.csv'):.4f}")


# 20 epochs of 25 steps for each of four networks: fewer than `default` takes, to end within three minutes on two cores.
_DEMO_EPOCHS, _DEMO_CLIPS = 20, 400


# Everything that a run of the demo writes, by its path in the folder; a folder with anything else is left alone.
_DEMO_FILES = re.compile(
    r"(calibration\.json|folds\.csv|history\.html|manifest\.json|oof\.csv|recipe\.toml|report\.html|submission\.csv"
    r"|test\.csv"
    r"|fold_\d+(/(fold\.json|history\.csv|model\.safetensors|oof\.csv|test\.csv|state_\d+\.pt|models))?"
    r"|reference(/(\d\d\.flac|probs\.csv))?"
    r"|(fold_\d+/|reference/)?\.[^/]*\.part[^/]*)"  # of a demo that was stopped
)


def _remove_earlier_demo(out: Path) -> None:
    """Remove a folder that only a demo wrote; raise `DataError` if it holds anything else."""
    import shutil

    from fatai.errors import DataError

    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir() or out.is_symlink() or not _is_demo(out):
        raise DataError(f"{out} was not made by a demo and is left as it is; choose another --out")
    names = (path.relative_to(out).as_posix() for path in out.rglob("*"))
    other = sorted(name for name in names if not _DEMO_FILES.fullmatch(name))
    if other:
        raise DataError(f"{out} holds {other[0]}, which no demo made; move it, or choose another --out")
    shutil.rmtree(out)


def _is_demo(out: Path) -> bool:
    from fatai.errors import FataiError
    from fatai.experiment.manifest import read_manifest

    try:
        command = (read_manifest(out) or {}).get("command")
    except FataiError:
        return False
    return isinstance(command, str) and command.split()[:2] == ["fatai-submit", "demo"]
