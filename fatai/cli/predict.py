"""The command that predicts tags of sounds with a run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fatai.cli.options import (
    Average,
    Backend,
    Calibrate,
    Channel,
    Device,
    Engine,
    FileCol,
    InputList,
    Merge,
    Nproc,
    NumWorkers,
    NViews,
    Run,
    Shard,
    Strict,
    Threads,
    Tta,
    check_device,
    check_suffix,
    exit_if_unreadable,
)

if TYPE_CHECKING:
    from fatai.inference.predictions import Predictions
    from fatai.metrics.thresholds import Thresholds

__all__ = ["app"]

app = typer.Typer()


@app.command(rich_help_panel="Predict")
def predict(
    run: Run,
    sounds: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOUND",
            help="A data folder (its test part is predicted), a CSV of sounds, folders of sounds, or sound files or "
            "their URLs.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", dir_okay=False,
            help="CSV or .parquet to write; without it the best tags of each clip are printed.",
        ),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Tags printed for each clip.")] = 3,
    tta: Tta = None,
    n_views: NViews = None,
    average: Average = None,
    save_views: Annotated[
        Path | None,
        typer.Option("--save-views", file_okay=False, help="Folder for the probabilities of every single view."),
    ] = None,
    calibrate: Calibrate = None,
    channel: Channel = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels", dir_okay=False,
            help="CSV to write of fname and labels: the tags at or above the thresholds of the run.",
        ),
    ] = None,
    num_workers: NumWorkers = None,
    threads: Threads = None,
    device: Device = None,
    input_list: InputList = None,
    shard: Shard = None,
    nproc: Nproc = None,
    engine: Engine = None,
    backend: Backend = "torch",
    merge: Merge = None,
    file_col: FileCol = None,
    strict: Strict = False,
) -> None:
    """Predict tags of sounds with every fold of a run, averaged.

    Probabilities are calibrated if the run has a calibration; --no-calibrate gives those of its test.csv. With --out,
    memory does not grow with the number of sounds, and the same command continues a stopped one. If sounds cannot be
    read or are silent, a column status marks their rows, which are the prior.

    If none of them can be read, it ends with an error and writes no table.

    Example: fatai-submit predict runs/ninth my_sounds/ --out tags.csv
    """
    from fatai.cli.paths import sounds_by_name
    from fatai.errors import OptionError
    from fatai.experiment.bulk_predict import count_unreadable, none_readable
    from fatai.experiment.run_folder import predict_with_run, thresholds_of_run
    from fatai.io.fetch import is_url
    from fatai.io.lock import lock_output

    check_device(device, nproc)
    check_suffix(out, ("", ".csv", ".parquet"))
    thresholds = None if labels is None else thresholds_of_run(run)
    named = sounds_by_name(sounds or [], input_list, file_col)
    if labels is not None and calibrate is False:
        raise OptionError("--labels are those of thresholds of calibrated probabilities: leave out --no-calibrate")
    options: dict[str, Any] = {
        "views": tta, "n": n_views, "average": average, "num_workers": num_workers or 0, "calibrate": calibrate,
    }
    if channel is not None:
        options["channel"] = channel
    if backend != "torch":
        options["backend"] = backend
    if engine is not None or out is not None and out.suffix == ".parquet" or any(is_url(path) for _, path in named):
        if out is None or labels is not None or save_views is not None or shard is not None:
            raise OptionError(
                "--engine, a .parquet and URLs of sounds need --out, without --labels, --save-views and --shard"
            )
        n_unreadable = _predict_in_parts(run, named, out, engine or "local", nproc, options)
        exit_if_unreadable(strict and n_unreadable)
        return
    if out is not None and labels is None and save_views is None:
        written = _predict_to_table(run, named, out, options, shard, nproc)
        exit_if_unreadable(strict and count_unreadable(written))
        return
    if shard is not None or nproc is not None:
        raise OptionError(
            "--shard and --nproc write one table of predictions: give --out, without --labels and --save-views"
        )
    with ExitStack() as locks:
        for path in (out, labels, save_views):
            if path is not None:
                locks.enter_context(lock_output(path))
        predictions = predict_with_run(run, named, save_views=save_views, **options)
        if named and len(predictions.unreadable) == len(named):
            raise none_readable(named, options.get("channel"))
        if labels is not None and thresholds is not None:
            _write_labels(predictions, thresholds, labels)
        if out is not None:
            predictions.to_csv(out)
            typer.echo(f"{out}: {len(predictions.fnames)} clips, {len(predictions.tags)} tags")
    if out is None and labels is None:
        _print_top(predictions, top)
    exit_if_unreadable(strict and len(predictions.unreadable))


def _predict_in_parts(
    run: Path, named: Sequence[tuple[str, str | Path]], out: Path, engine: str, nproc: int | None,
    options: dict[str, Any],
) -> int:
    """Write all predictions in parts and join them; return the number of unreadable clips."""
    import pandas as pd

    from fatai.experiment.parts import predict_in_parts
    from fatai.io.lock import lock_output

    options = {name: value for name, value in options.items() if name != "num_workers"}
    # As objects: Arrow's strings, which pandas takes where it finds pyarrow, cannot hold a name that is not text.
    table = pd.DataFrame(named, columns=["fname", "path"], dtype=object)
    with lock_output(out):
        written = predict_in_parts(run, table, out, engine=engine, n_workers=nproc, **options)
    typer.echo(f"{out}: {written.rows} clips")
    return written.unreadable


def _predict_to_table(
    run: Path, named: Sequence[tuple[str, str | Path]], out: Path, options: dict[str, Any], shard: str | None,
    nproc: int | None,
) -> Path:
    """Write all predictions to a CSV, or one shard of them, or all shards in `nproc` processes; return the CSV."""
    from fatai.errors import OptionError
    from fatai.experiment.bulk_predict import (
        count_unreadable,
        merge_shards,
        none_readable,
        parse_shard,
        predict_to_csv,
    )
    from fatai.experiment.launch import start_shards

    if shard is not None and nproc is not None:
        raise OptionError("--shard processes one part and --nproc all of them; give one of the two")
    if nproc is not None:
        start_shards(nproc, [word for word in sys.argv[1:] if word != "--strict"], f"the prediction of {out}")
        n_clips = merge_shards(out)
        if 0 < n_clips == count_unreadable(out):
            out.unlink()
            raise none_readable(named, options.get("channel"))
        typer.echo(f"{out}: {n_clips} clips")
        return out
    if shard is not None:
        part = parse_shard(shard)
        named, out = named[part.rows(len(named))], part.file(out)
    typer.echo(f"{out}: {predict_to_csv(run, named, out, keep_journal=shard is not None, **options)} clips")
    return out


def _write_labels(predictions: Predictions, thresholds: Thresholds, out: Path) -> None:
    """Write the tags of each clip, and the times of segments.

    Clips that cannot be read or are silent have no tags, and are marked in a column status.
    """
    from fatai.audio.segments import segment_times
    from fatai.io.atomic import write_text

    table = predictions.decide(thresholds)
    statuses = predictions.statuses
    if statuses:
        status = table["fname"].map(lambda name: statuses.get(name, "ok"))
        table = table.assign(labels=table["labels"].mask(status != "ok", ""), status=status)
    times = [segment_times(name) or ("", "") for name in table["fname"]]
    if any(start != "" for start, _ in times):
        table.insert(1, "start_s", [start for start, _ in times])
        table.insert(2, "end_s", [end for _, end in times])
    write_text(out, table.to_csv(index=False, lineterminator="\n"))
    typer.echo(f"{out}: labels of {len(table)} clips")


def _print_top(predictions: Predictions, n: int) -> None:
    unreadable = set(predictions.unreadable)
    silent = set(predictions.silent)
    for fname, probs, best in zip(predictions.fnames, predictions.probs, predictions.top_columns(n), strict=True):
        if fname in unreadable:
            typer.echo(f"{fname}: cannot be read")
            continue
        tags = ", ".join(f"{predictions.tags[i]} {probs[i]:.2f}" for i in best)
        typer.echo(f"{fname}{' (silent)' if fname in silent else ''}: {tags}")
