"""The command tune: search the settings of a recipe within a time."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from fatai.cli.options import (
    Arch,
    BatchSize,
    Corrections,
    Data,
    Epochs,
    FileCol,
    NumWorkers,
    RecipeName,
    Settings,
    TagsCol,
    TagSep,
    Weights,
)

__all__ = ["app"]

app = typer.Typer()

_TERMINATED = 143  # the shell's code for a command that SIGTERM ended


@app.command(rich_help_panel="Train")
def tune(
    data: Data,
    recipe: RecipeName = "default",
    out: Annotated[
        Path, typer.Option("--out", file_okay=False, help="Folder of the search: new, or one to continue or to join.")
    ] = Path("runs/tune"),
    budget: Annotated[
        str, typer.Option("--budget", help="Time for the search and the final score, such as 2h, 90m or 600s.")
    ] = "2h",
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, help="End after this number of trials, if the time allows it.")
    ] = None,
    space: Annotated[
        Path | None,
        typer.Option("--space", help="TOML file of what is searched; every search writes its own as OUT/space.toml."),
    ] = None,
    inner_folds: Annotated[
        int, typer.Option("--inner-folds", min=2, help="Number of folds in which each trial is trained and scored.")
    ] = 3,
    search_seed: Annotated[int, typer.Option("--search-seed", min=0, help="Seed of the search.")] = 0,
    epochs: Epochs = None,
    bs: BatchSize = None,
    arch: Arch = None,
    weights: Weights = None,
    settings: Settings = None,
    num_workers: NumWorkers = None,
    corrections: Corrections = None,
    file_col: FileCol = None,
    tags_col: TagsCol = None,
    tag_sep: TagSep = None,
) -> None:
    """Search the settings of a recipe within a time, and write the best as OUT/tuned.toml.

    Learning rate, width, crop, weight decay, loss, mixing and augmentation are searched, or what --space lists. Trials
    are trained on inner folds; the result is scored on clips that no trial used. Ctrl-C keeps what was found. The same
    command continues a search, and joins one that is running in another process. Needs Optuna: pip install
    'fatai[tune]'.

    Example: fatai-submit tune DATA --budget 2h --out runs/tune
    """
    from fatai.data.datasets.fat2019 import load_dataset
    from fatai.data.table_columns import TableColumns
    from fatai.experiment.estimate import seconds_of
    from fatai.experiment.overrides import Overrides, parse_settings
    from fatai.experiment.recipe import load_recipe
    from fatai.experiment.tune import tune_recipe
    from fatai.report.tuning import tune_report

    changed = load_recipe(recipe).override(
        Overrides(epochs=epochs, bs=bs, arch=arch, weights=weights, values=parse_settings(settings or ()))
    )
    columns = TableColumns.from_dict({"fn_col": file_col, "label_col": tags_col, "label_delim": tag_sep})
    loaded = load_dataset(data, corrections, corrupted_files=changed.clips.corrupted_files, columns=columns)
    with _exit_on_sigterm():
        tune_recipe(
            loaded,
            changed,
            out,
            budget_s=seconds_of(budget),
            n_trials=trials,
            space=space,
            n_inner=inner_folds,
            seed=search_seed,
            num_workers=num_workers,
            log=typer.echo,
            report=tune_report,
        )


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM, which schedulers send when the time is up, into an exception, so that results are written."""

    def stop(number: int, frame: Any) -> None:
        raise SystemExit(_TERMINATED)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
