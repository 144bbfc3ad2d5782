"""The command that predicts tags of sounds with a run."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fatai.cli.options import Average, Calibrate, FileCol, InputList, Merge, Nproc, NumWorkers, NViews, Run, Shard, Tta

if TYPE_CHECKING:
    import pandas as pd

    from fatai.inference.predictions import Predictions

__all__ = ["app"]

app = typer.Typer()


@app.command(rich_help_panel="Predict")
def predict(
    run: Run,
    sounds: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="SOUND",
            help="A data folder (its test part is predicted), a CSV of sounds, folders of sounds, or sound files.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="CSV to write; without it the best tags of each clip are printed.")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Tags printed for each clip.")] = 3,
    tta: Tta = None,
    n_views: NViews = None,
    average: Average = None,
    save_views: Annotated[
        Path | None, typer.Option("--save-views", help="Folder for the probabilities of every single view.")
    ] = None,
    calibrate: Calibrate = False,
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            help="CSV to write of fname and labels: the tags at or above the thresholds of calibrate --thresholds.",
        ),
    ] = None,
    num_workers: NumWorkers = None,
    input_list: InputList = None,
    shard: Shard = None,
    nproc: Nproc = None,
    merge: Merge = None,
    file_col: FileCol = None,
) -> None:
    """Predict tags of sounds with every fold of a run, averaged.

    With --out, memory does not grow with the number of sounds, and the same command continues a stopped one.

    Example: fatai-submit predict runs/ninth my_sounds/ --out tags.csv
    """
    from fatai.cli.paths import sound_table
    from fatai.errors import OptionError
    from fatai.experiment.run_folder import predict_with_run, thresholds_of_run
    from fatai.io.lock import lock_output

    thresholds = None if labels is None else thresholds_of_run(run)
    table = sound_table(sounds or [], input_list, file_col)
    options: dict[str, Any] = {"views": tta, "n": n_views, "average": average, "num_workers": num_workers or 0}
    if out is not None and labels is None and save_views is None:
        _predict_to_table(run, table, out, {**options, "calibrated": calibrate}, shard, nproc)
        return
    if shard is not None or nproc is not None:
        raise OptionError(
            "--shard and --nproc write one table of predictions: give --out, without --labels and --save-views"
        )
    with ExitStack() as locks:
        for path in (out, labels, save_views):
            if path is not None:
                locks.enter_context(lock_output(path))
        predictions = predict_with_run(
            run, table, save_views=save_views, calibrated=calibrate or thresholds is not None, **options
        )
        if labels is not None and thresholds is not None:
            _write_labels(predictions.decide(thresholds), labels)
        if out is not None:
            predictions.to_csv(out)
            typer.echo(f"{out}: {len(predictions.fnames)} clips, {len(predictions.tags)} tags")
    if out is None and labels is None:
        _print_top(predictions, top)


def _predict_to_table(
    run: Path, table: pd.DataFrame, out: Path, options: dict[str, Any], shard: str | None, nproc: int | None
) -> None:
    """Write all predictions to a CSV, or one shard of them, or all shards in `nproc` processes."""
    from fatai.errors import OptionError
    from fatai.experiment.bulk_predict import merge_shards, parse_shard, predict_to_csv
    from fatai.experiment.launch import start_shards

    if shard is not None and nproc is not None:
        raise OptionError("--shard processes one part and --nproc all of them; give one of the two")
    if nproc is not None:
        start_shards(nproc, sys.argv[1:], f"the prediction of {out}")
        typer.echo(f"{out}: {merge_shards(out)} clips")
        return
    if shard is not None:
        part = parse_shard(shard)
        table, out = table[part.rows(len(table))], part.file(out)
    typer.echo(f"{out}: {predict_to_csv(run, table, out, keep_journal=shard is not None, **options)} clips")


def _write_labels(table: pd.DataFrame, out: Path) -> None:
    from fatai.io.atomic import write_text

    write_text(out, table.to_csv(index=False, lineterminator="\n"))
    typer.echo(f"{out}: labels of {len(table)} clips")


def _print_top(predictions: Predictions, n: int) -> None:
    for fname, best in predictions.top(n).groupby("fname", sort=False):
        tags = ", ".join(f"{tag} {prob:.2f}" for tag, prob in zip(best["tag"], best["prob"], strict=True))
        typer.echo(f"{fname}: {tags}")
