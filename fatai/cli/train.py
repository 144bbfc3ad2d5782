"""Commands that train: run and demo."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fatai.cli.options import (
    Arch,
    BatchSize,
    Corrections,
    CropS,
    Data,
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
    TagsCol,
    TagSep,
    TimeLimit,
    Weights,
    Width,
)

if TYPE_CHECKING:
    from fatai.data.datasets.fat2019 import FATDataset
    from fatai.experiment.overrides import Overrides
    from fatai.experiment.recipe import Recipe
    from fatai.experiment.run import RunResult

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

    @property
    def is_ensemble(self) -> bool:
        from fatai.experiment.ensemble_recipe import is_ensemble

        return is_ensemble(self.recipe)

    def load(self) -> tuple[FATDataset, Recipe]:
        """Load the recipe, overridden and scaled, and the data as it reads them."""
        from fatai.data.datasets.fat2019 import load_dataset
        from fatai.data.table_columns import TableColumns
        from fatai.experiment.recipe import load_recipe
        from fatai.experiment.scaling import scale_recipe

        recipe = load_recipe(self.recipe)
        recipe.override(self.overrides)  # raises before any file is read
        data = load_dataset(
            self.data,
            self.corrections,
            corrupted_files=recipe.clips.corrupted_files,
            columns=TableColumns.from_dict(self.columns),
        )
        n_noisy = None if data.noisy is None else len(data.noisy)
        return data, scale_recipe(recipe, self.scale, n_noisy, len(data.curated)).override(self.overrides)

    def load_members(self) -> Iterator[tuple[FATDataset, Recipe]]:
        """Load the data and recipe of every member of an ensemble, one after another."""
        from fatai.data.datasets.fat2019 import load_dataset
        from fatai.experiment.ensemble_recipe import load_ensemble
        from fatai.experiment.ensemble_run import member_recipes

        noisy = load_dataset(self.data, self.corrections).noisy
        recipes = member_recipes(
            load_ensemble(self.recipe),
            scale=self.scale,
            overrides=self.ensemble_overrides(),
            n_noisy=None if noisy is None else len(noisy),
        )
        for recipe in recipes.values():
            yield load_dataset(self.data, self.corrections, corrupted_files=recipe.clips.corrupted_files), recipe

    def ensemble_overrides(self) -> Overrides:
        """Return the overrides with the folds to train."""
        from dataclasses import replace

        return replace(self.overrides, run_folds=self.run_folds)

    def run(self, *, predict: bool = True, resume: bool = False) -> RunResult:
        """Train one recipe."""
        from fatai.experiment.run import run_recipe
        from fatai.report.html import run_report

        data, recipe = self.load()
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
        )

    def run_ensemble(self, *, reuse: list[Path] | None = None, resume: bool = False) -> None:
        """Train the members of an ensemble and average them."""
        from fatai.experiment.ensemble_run import run_ensemble
        from fatai.report.html import run_report

        run_ensemble(
            self.data,
            self.recipe,
            self.out,
            scale=self.scale,
            overrides=self.ensemble_overrides(),
            reuse=reuse or (),
            resume=resume,
            corrections=self.corrections,
            num_workers=self.num_workers,
            command=_command_line(),
            report=run_report,
        )

    def print_estimate(self, time_limit: str | None) -> None:
        """Print steps, time and memory of a run, and whether it fits `time_limit`."""
        from dataclasses import replace

        from fatai.experiment.estimate import estimate_run, fits_budget, seconds_of

        limit_s = None if time_limit is None else seconds_of(time_limit)
        alone = replace(self, overrides=self.ensemble_overrides())
        seconds = 0.0
        for data, recipe in self.load_members() if self.is_ensemble else [alone.load()]:
            estimate = estimate_run(data, recipe, num_workers=self.num_workers)
            typer.echo(str(estimate))
            seconds += estimate.seconds
        if limit_s is not None:
            typer.echo(fits_budget(seconds, limit_s))


@app.command(rich_help_panel="Train")
def run(
    data: Data,
    recipe: RecipeName = "ninth",
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
    n_views: NViews = None,
    seed: Seed = None,
    precision: Precision = None,
    num_workers: NumWorkers = None,
    resume: Resume = False,
    predict: Annotated[
        bool,
        typer.Option("--predict/--no-predict", help="Predict the test part, if there is one, and write a submission."),
    ] = True,
    corrections: Corrections = None,
    scale: Scale = "full",
    dry_run: DryRun = False,
    time_limit: TimeLimit = None,
    reuse_run: ReuseRun = None,
    nproc: Nproc = None,
    file_col: FileCol = None,
    tags_col: TagsCol = None,
    tag_sep: TagSep = None,
) -> None:
    """Train the folds of a recipe, predict, and write a report.

    If there is a test part, also write a checked submission. With an ensemble as --recipe, such as
    ensembles/third_place, train all its runs and average them; this needs a test part.

    Your own sounds: fatai-submit run my_sounds/labels.csv --recipe quick --out runs/mine

    Example: fatai-submit run DATA --recipe ninth --folds 2 --epochs 40 --bs 16 --out runs/ninth
    """
    from fatai.errors import OptionError
    from fatai.experiment.overrides import Overrides

    overrides = Overrides(
        n_folds=folds,
        epochs=epochs,
        bs=bs,
        lr=lr,
        arch=arch,
        width=width,
        weights=weights,
        crop_s=crop_s,
        n_views=n_views,
        seed=seed,
        precision=precision,
    )
    columns = {"fn_col": file_col, "label_col": tags_col, "label_delim": tag_sep}
    run_folds = tuple(fold) if fold else None
    training = _Training(data, recipe, out, overrides, run_folds, corrections, scale, num_workers, columns)
    if not predict and training.is_ensemble:
        raise OptionError(
            f"--no-predict is given with the ensemble {recipe}; an ensemble averages predictions of the test part"
        )
    if dry_run or time_limit is not None:
        training.print_estimate(time_limit)
        return
    with _processes(nproc, out) as is_worker:
        if is_worker and training.is_ensemble:
            training.run_ensemble(reuse=reuse_run, resume=resume)
        elif is_worker:
            training.run(predict=predict, resume=resume)


@contextmanager
def _processes(n: int | None, out: Path) -> Iterator[bool]:
    """Yield True in a process that does the work; else start `n` such processes, wait for them, and yield False."""
    from fatai.distributed import was_started_by_torchrun
    from fatai.experiment.launch import in_process_group, start_processes

    if n is not None and n != 1 and not was_started_by_torchrun():
        start_processes(n, sys.argv[1:], f"the run in {out}")
        yield False
        return
    with in_process_group(n):
        yield True


def _command_line() -> str:
    return shlex.join(["fatai-submit", *sys.argv[1:]])


@app.command(rich_help_panel="Train")
def demo(
    out: Annotated[
        Path, typer.Option("--out", help="Folder of the run; replaced if it holds nothing but an earlier demo.")
    ] = Path("runs/demo"),
    epochs: Epochs = None,
) -> None:
    """Train on the bundled sounds and score on their test part. Two folds, a few minutes on a laptop.

    Example: fatai-submit demo --out runs/demo
    """
    from fatai.data.datasets.fat2019 import fat_sample
    from fatai.experiment.overrides import Overrides
    from fatai.io.lock import lock_output

    with lock_output(out):
        _remove_earlier_demo(out)
    data = fat_sample()
    result = _Training(data, "quick", out, Overrides(epochs=epochs)).run()
    for fold, value in result.fold_scores.items():
        typer.echo(f"fold {fold} lwlrap {value:.4f}")
    typer.echo(f"out-of-fold lwlrap {result.oof_score:.4f}")
    if result.test is not None:
        typer.echo(f"test lwlrap {result.test.score(data / 'truth' / 'test.csv'):.4f}")


# Everything that a run of the demo writes, by its path in the folder; a folder with anything else is left alone.
_DEMO_FILES = re.compile(
    r"(calibration\.json|folds\.csv|manifest\.json|oof\.csv|recipe\.toml|report\.html|submission\.csv|test\.csv"
    r"|fold_\d+(/(fold\.json|history\.csv|model\.safetensors|oof\.csv|test\.csv|state_\d+\.pt|models))?"
    r"|(fold_\d+/)?\.[^/]*\.part[^/]*)"  # of a demo that was stopped
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
