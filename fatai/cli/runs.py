"""Commands on a finished run: its report, its reproduction, and its drift."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fatai.cli.options import FinishedRun, MaybeData, RunData

__all__ = ["app"]

app = typer.Typer()


@app.command(rich_help_panel="Evaluate")
def report(
    run: FinishedRun,
    data: RunData = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", dir_okay=False, help="HTML file to write; by default RUN/report.html."),
    ] = None,
) -> None:
    """Write one HTML file with the results of a run.

    Scores, costliest tags, confusions, clips with players, curves, data. Every run writes it at its end. The file is
    self-contained and opens without a network.

    Example: fatai-submit report runs/ninth --data DATA --out ninth.html
    """
    from fatai.experiment.manifest import noted_data
    from fatai.report.html import run_report

    path = run_report(run, noted_data(run) if data is None else data, out)
    typer.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


@app.command(rich_help_panel="Train")
def reproduce(
    run: FinishedRun,
    data: MaybeData = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", file_okay=False, help="Folder of the new run; by default RUN-reproduced."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a reproduction that was begun in --out.")] = False,
) -> None:
    """Train a run again from its manifest and recipe, and compare the files.

    Print whether they are the same bytes, or what differs. DATA is needed only if the data have moved. The exit code is
    0 if all files are the same bytes, else 1.

    Example: fatai-submit reproduce runs/ninth
    """
    from fatai.experiment.reproduce import reproduce_run
    from fatai.report.html import run_report

    result = reproduce_run(run, data, out, resume=resume, log=typer.echo, report=run_report)
    typer.echo(f"\n{result}")
    if not result.same:
        raise typer.Exit(1)


@app.command(rich_help_panel="Evaluate")
def drift(
    run: FinishedRun,
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0, help="Largest difference of a probability that is accepted.")
    ] = 1e-4,
    out: Annotated[
        Path | None,
        typer.Option("--out", dir_okay=False, help="CSV of the differences of every clip and tag."),
    ] = None,
) -> None:
    """Predict stored clips of a run again, and compare with the predictions at its end.

    Every run stores the middle of up to 16 held-out clips and their predictions. This shows what other versions of
    packages, another machine or changed files do to them: signed differences by tag and by clip. The exit code is 0 if
    all are within the tolerance, else 1. Of an ensemble, all its runs are compared.

    Example: fatai-submit drift runs/ninth --tolerance 1e-3
    """
    import pandas as pd

    from fatai.experiment.drift import measure_drift
    from fatai.experiment.ensemble_folder import EnsembleFolder, is_ensemble_folder
    from fatai.io.atomic import write_text

    runs = EnsembleFolder.open(run).runs if is_ensemble_folder(run) else [run]
    results = [measure_drift(folder) for folder in runs]
    for result in results:
        typer.echo(str(result))
    if out is not None:
        table = pd.concat([result.table() for result in results])
        write_text(out, table.to_csv(index=False, lineterminator="\n"))
    if any(result.largest > tolerance for result in results):
        typer.echo(f"above the tolerance of {tolerance:g}")
        raise typer.Exit(1)
