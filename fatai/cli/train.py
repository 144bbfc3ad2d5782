"""The command run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

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
from fatai.cli.training import Training, has_plan, in_processes

__all__ = ["app"]

app = typer.Typer()


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
    training = Training(
        data, recipe, out, overrides, run_folds, corrections, scale, num_workers, columns, budget, resume, tracker,
        nproc,
    )
    if budget is not None:
        from fatai.experiment.estimate import seconds_of

        seconds_of(budget)  # raises before the data are read
    if budget is not None and (scale != "full" or folds is not None or epochs is not None):
        raise OptionError("--budget chooses folds and epochs: leave out --folds, --epochs and --scale")
    if budget is not None and (nproc not in (None, 1) or was_started_by_torchrun()) and not has_plan():
        raise OptionError("--budget measures and plans in one process: leave out --nproc and torchrun")
    if tracker is not None and training.is_ensemble:
        raise OptionError(f"--tracker is given with the ensemble {recipe}; give it to the runs of its members")
    if not predict and training.is_ensemble:
        raise OptionError(
            f"--no-predict is given with the ensemble {recipe}, which averages predictions of its runs: leave it out"
        )
    if reuse_run and not training.is_ensemble:
        raise OptionError(
            f"--reuse-run is given with recipe {recipe}, and is for members of an ensemble, such as --recipe best; to "
            "continue a run, give it as --out with --resume"
        )
    if training.is_probe and (epochs is not None or lr is not None):
        raise OptionError(
            f"recipe {recipe} fits logistic regressions, which have no epochs and no learning rate: leave out --epochs "
            "and --lr"
        )
    if dry_run or time_limit is not None:
        training.print_estimate(time_limit, predict=predict)
        return
    with _watched(out, watch), in_processes(training) as is_worker:
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
