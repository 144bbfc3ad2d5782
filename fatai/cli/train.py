"""Commands that train and predict."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from fatai.experiment.overrides import Overrides
from fatai.cli.options import (
    Arch,
    BatchSize,
    Budget,
    Corrections,
    CropS,
    Data,
    DryRun,
    Epochs,
    FoldCount,
    LearningRate,
    ListFile,
    Only,
    Out,
    Precision,
    Processes,
    RecipeName,
    Resume,
    Reuse,
    Scale,
    Seed,
    Shard,
    Views,
    Width,
    Workers,
)

__all__ = ["app"]

app = typer.Typer()


def _run(
    data: Any, recipe: str, out: Path, only: list[int] | None, predict_test: bool, resume: bool, workers: int | None,
    changes: dict[str, Any], corrections: Path | None = None, scale: str = "full",
) -> Any:
    from fatai.experiment.run import run_recipe

    read, chosen = _chosen(data, recipe, changes, corrections, scale)
    return run_recipe(
        read,
        chosen,
        out,
        only=only or None,
        predict_test=predict_test,
        resume=resume,
        num_workers=workers,
        corrections=corrections,
        command=shlex.join(["fatai-submit", *sys.argv[1:]]),
    )


def _chosen(data: Any, recipe: str, changes: dict[str, Any], corrections: Path | None, scale: str) -> tuple[Any, Any]:
    """The data as a recipe reads it, and the recipe in the size and with the settings that are asked for."""
    from fatai.data.datasets.fat2019 import load_dataset
    from fatai.experiment.recipe import load_recipe
    from fatai.experiment.scaling import scaled

    loaded = load_recipe(recipe)
    loaded.override(**changes)  # what is wrong with them is told before anything is read
    read = load_dataset(data, corrections, corrupted=loaded.clips.corrupted)
    return read, scaled(loaded, scale, None if read.noisy is None else len(read.noisy), len(read.curated)).override(
        **changes
    )


@app.command()
def run(
    data: Data,
    recipe: RecipeName = "ninth",
    out: Out = Path("runs/run"),
    folds: FoldCount = None,
    only_fold: Only = None,
    epochs: Epochs = None,
    bs: BatchSize = None,
    lr: LearningRate = None,
    arch: Arch = None,
    width: Width = None,
    crop_s: CropS = None,
    views: Views = None,
    seed: Seed = None,
    precision: Precision = None,
    workers: Workers = None,
    resume: Resume = False,
    corrections: Corrections = None,
    scale: Scale = "full",
    dry_run: DryRun = False,
    budget: Budget = None,
    reuse: Reuse = None,
    processes: Processes = None,
) -> None:
    """Train the folds of a recipe, predict, and write a report. Where there is a test part, also a checked submission.

    With an ensemble as --recipe, such as ensembles/third_place, train all its runs and blend them; that needs a test part.

    Your own sounds: fatai-submit run my_sounds/labels.csv --recipe quick --out runs/mine

    Example: fatai-submit run DATA --recipe ninth --folds 2 --epochs 40 --bs 16 --out runs/ninth
    """
    changes = {
        "n_folds": folds,
        "epochs": epochs,
        "bs": bs,
        "lr": lr,
        "arch": arch,
        "width": width,
        "crop_s": crop_s,
        "n_views": views,
        "seed": seed,
        "precision": precision,
    }
    from fatai.experiment.ensemble_recipe import is_ensemble

    listed = is_ensemble(recipe)
    if dry_run or budget is not None:
        _tell_forecast(data, recipe, changes, corrections, scale, only_fold, workers, budget, listed)
        return
    with _processes(processes, out) as here:
        if here and listed:
            _run_ensemble(data, recipe, out, changes, only_fold, scale, reuse, resume, corrections, workers)
        elif here:
            _run(data, recipe, out, only_fold, True, resume, workers, changes, corrections, scale)


@contextmanager
def _processes(n: int | None, out: Path) -> Iterator[bool]:
    """Whether this process is to do the work; else `n` others have been started, which have done it."""
    from fatai.experiment.launch import in_process_group, start_processes
    from fatai.distributed import was_started_by_torchrun

    if n is not None and n != 1 and not was_started_by_torchrun():
        start_processes(n, sys.argv[1:], f"the run in {out}")
        yield False
        return
    with in_process_group(n):
        yield True


def _run_ensemble(
    data: Path,
    recipe: str,
    out: Path,
    changes: dict[str, Any],
    only: list[int] | None,
    scale: str,
    reuse: list[Path] | None,
    resume: bool,
    corrections: Path | None,
    workers: int | None,
) -> None:
    from fatai.experiment.ensemble_run import run_ensemble

    run_ensemble(
        data,
        recipe,
        out,
        scale=scale,
        overrides=Overrides(**changes, run_folds=tuple(only) if only else None),
        reuse=reuse or (),
        resume=resume,
        corrections=corrections,
        num_workers=workers,
        command=shlex.join(["fatai-submit", *sys.argv[1:]]),
    )


def _tell_forecast(
    data: Path,
    recipe: str,
    changes: dict[str, Any],
    corrections: Path | None,
    scale: str,
    only: list[int] | None,
    workers: int | None,
    budget: str | None,
    listed: bool,
) -> None:
    from fatai.experiment.estimate import estimate_run, seconds_of, fits_budget

    budget_s = None if budget is None else seconds_of(budget)
    changes = {**changes, "run_folds": tuple(only) if only else None}
    seconds = 0.0
    for read, chosen in _all_chosen(data, recipe, changes, corrections, scale) if listed else [
        _chosen(data, recipe, changes, corrections, scale)
    ]:
        told = estimate_run(read, chosen, num_workers=workers)
        typer.echo(str(told))
        seconds += told.seconds
    if budget_s is not None:
        typer.echo(fits_budget(seconds, budget_s))


def _all_chosen(data: Path, recipe: str, changes: dict[str, Any], corrections: Path | None, scale: str) -> Any:
    """As `_chosen`, for every member of an ensemble."""
    from fatai.data.datasets.fat2019 import load_dataset
    from fatai.experiment.ensemble_recipe import load_ensemble
    from fatai.experiment.ensemble_run import member_recipes

    noisy = load_dataset(data, corrections).noisy
    members = member_recipes(
        load_ensemble(recipe), scale=scale, overrides=Overrides(**changes), n_noisy=None if noisy is None else len(noisy)
    )
    return ((load_dataset(data, corrections, corrupted=chosen.clips.corrupted), chosen) for chosen in members.values())


@app.command()
def train(
    data: Data,
    recipe: RecipeName = "ninth",
    out: Out = Path("runs/run"),
    folds: FoldCount = None,
    only_fold: Only = None,
    epochs: Epochs = None,
    bs: BatchSize = None,
    lr: LearningRate = None,
    arch: Arch = None,
    width: Width = None,
    crop_s: CropS = None,
    views: Views = None,
    seed: Seed = None,
    precision: Precision = None,
    workers: Workers = None,
    resume: Resume = False,
    corrections: Corrections = None,
    scale: Scale = "full",
    processes: Processes = None,
) -> None:
    """Train the folds of a recipe and predict what they hold out. The test part is left for predict.

    Example: fatai-submit train DATA --recipe ninth --only-fold 0 --out runs/fold0
    """
    changes = {
        "n_folds": folds,
        "epochs": epochs,
        "bs": bs,
        "lr": lr,
        "arch": arch,
        "width": width,
        "crop_s": crop_s,
        "n_views": views,
        "seed": seed,
        "precision": precision,
    }
    with _processes(processes, out) as here:
        if here:
            _run(data, recipe, out, only_fold, False, resume, workers, changes, corrections, scale)


@app.command()
def predict(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that run, train, demo or export made.")],
    sounds: Annotated[
        Optional[list[Path]],
        typer.Argument(
            metavar="SOUND",
            help="A data folder (its test part is predicted), a CSV of sounds, folders of sounds, or sound files.",
        ),
    ] = None,
    out: Annotated[
        Optional[Path], typer.Option("--out", help="CSV to write; without it the best tags of each clip are printed.")
    ] = None,
    top: Annotated[int, typer.Option(help="Tags printed for each clip.")] = 3,
    tta: Annotated[
        Optional[str], typer.Option(help="Kind of views instead of the run's: even, random, tiles, whole, padded, ...")
    ] = None,
    views: Views = None,
    mean: Annotated[Optional[str], typer.Option(help="What is averaged over a clip's views: probs or logits.")] = None,
    keep_views: Annotated[
        Optional[Path], typer.Option("--keep-views", help="Folder for the answers of every single view.")
    ] = None,
    calibrated: Annotated[bool, typer.Option("--calibrated", help="Apply what fatai-submit calibrate found.")] = False,
    labels: Annotated[
        Optional[Path],
        typer.Option(
            "--labels",
            help="CSV for fname and labels: the tags that reach the thresholds of fatai-submit calibrate --thresholds.",
        ),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", help="Processes that read sound; 0 reads in the main one.")] = 0,
    list_: ListFile = None,
    shard: Shard = None,
    processes: Annotated[
        Optional[int],
        typer.Option("--processes", help="So many parts of the sounds at once on this machine, then joined."),
    ] = None,
) -> None:
    """Tag sounds with every fold of a run, averaged.

    With --out, any number of sounds take little memory, and the same command goes on where a stopped one was.

    Example: fatai-submit predict runs/ninth my_sounds/ --out tags.csv
    """
    from fatai.io.atomic import write_text
    from fatai.errors import OptionError
    from fatai.experiment.run_folder import predict_with_run, thresholds_of_run

    thresholds = None if labels is None else thresholds_of_run(run_folder)
    table = _sound_table(sounds or [], list_)
    if out is not None and labels is None and keep_views is None:
        options = {"how": tta, "n": views, "mean": mean, "calibrated": calibrated, "num_workers": workers}
        _predict_list(run_folder, table, out, options, shard, processes)
        return
    if shard is not None or processes is not None:
        raise OptionError(
            "--shard and --processes are for one table of predictions: give --out, without --labels and --keep-views"
        )
    predictions = predict_with_run(
        run_folder, table, how=tta, n=views, mean=mean, keep_views=keep_views,
        calibrated=calibrated or thresholds is not None, num_workers=workers,
    )
    if labels is not None and thresholds is not None:
        write_text(labels, predictions.decide(thresholds).to_csv(index=False, lineterminator="\n"))
        typer.echo(f"{labels}: labels of {len(predictions)} clips")
    if out is not None:
        predictions.to_csv(out)
        typer.echo(f"{out}: {len(predictions.fnames)} clips, {len(predictions.tags)} tags")
    if out is not None or labels is not None:
        return
    for fname, best in predictions.top(top).groupby("fname", sort=False):
        typer.echo(f"{fname}: " + ", ".join(f"{tag} {prob:.2f}" for tag, prob in zip(best["tag"], best["prob"])))


def _predict_list(
    run: Path, table: Any, out: Path, options: dict[str, Any], shard: str | None, processes: int | None
) -> None:
    """A table of predictions, or a part of it, or all of its parts at once."""
    from fatai.errors import OptionError
    from fatai.experiment.bulk_predict import merge_parts, part_of, predict_list
    from fatai.experiment.launch import start_shards

    if shard is not None and processes is not None:
        raise OptionError("--shard is one part and --processes are all of them; give one of the two")
    if processes is not None:
        start_shards(processes, sys.argv[1:], f"the prediction of {out}")
        typer.echo(f"{out}: {merge_parts(out)} clips")
        return
    if shard is not None:
        part = part_of(shard)
        table, out = table[part.rows(len(table))], part.file(out)
    typer.echo(f"{out}: {predict_list(run, table, out, keep_journal=shard is not None, **options)} clips")


@app.command()
def merge(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="What was given as --out to all parts.")],
) -> None:
    """Join the parts that --shard made, in the sounds' order. Those of predict or of tag; then they are removed.

    Example: fatai-submit merge tags.csv
    """
    from fatai.experiment.bulk_predict import merge_parts

    typer.echo(f"{out}: {merge_parts(out)} rows")


def _sound_table(sounds: list[Path], listed: Path | None) -> Any:
    """Names and paths: of a data folder's test part, a CSV's sounds, the sounds below a folder, files, or the sounds in a list."""
    import pandas as pd

    from fatai.cli.paths import listed_sounds, sound_files
    from fatai.data.datasets.fat2019 import load_dataset
    from fatai.data.own_table import is_own_table
    from fatai.errors import OptionError

    if (listed is None) == (not sounds):
        raise OptionError("expected sounds, or a --list of them: one of the two")
    if listed is not None:
        return pd.DataFrame(listed_sounds(listed), columns=["fname", "path"])

    if len(sounds) == 1 and (sounds[0] / "train_curated.csv").is_file():
        return load_dataset(sounds[0]).test
    if len(sounds) == 1 and is_own_table(sounds[0]):
        return load_dataset(sounds[0]).curated[["fname", "path"]]
    return pd.DataFrame(sound_files(sounds), columns=["fname", "path"])


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option("--out", help="Folder of the run; a run of an earlier demo there is replaced.")
    ] = Path("runs/demo"),
    epochs: Epochs = None,
) -> None:
    """Train on the bundled sounds, and score on their test part. Two folds, a few minutes on a laptop.

    Example: fatai-submit demo --out runs/demo
    """
    import shutil

    from fatai.data.datasets.fat2019 import fat_sample
    from fatai.errors import DataError

    if (out / "recipe.toml").is_file():
        shutil.rmtree(out)
    elif out.exists() and any(out.iterdir()):
        raise DataError(f"{out} holds something that is no run; choose another --out")
    data = fat_sample()
    result = _run(data, "quick", out, None, True, False, None, {"epochs": epochs})
    for fold, value in result.fold_scores.items():
        typer.echo(f"fold {fold} lwlrap {value:.4f}")
    typer.echo(f"out-of-fold lwlrap {result.oof_score:.4f}")
    typer.echo(f"test lwlrap {result.test.score(data / 'truth' / 'test.csv'):.4f}")
