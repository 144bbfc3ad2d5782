"""Commands that draw what a run came to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

__all__ = ["app"]

app = typer.Typer()


@app.command()
def report(
    run_folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a finished run, or of an ensemble of runs.")
    ],
    data: Annotated[
        Optional[Path],
        typer.Option(
            "--data",
            help="The run's data, for players and pictures of its clips; by default where its manifest says that they were.",
        ),
    ] = None,
    out: Annotated[
        Optional[Path], typer.Option("--out", help="HTML file to write; RUN/report.html if not given.")
    ] = None,
) -> None:
    """Write one HTML file that shows how a run went. Scores, costliest tags, confusions, clips to listen to, curves, data.

    Every run writes it at its end. The file holds all it shows and opens without a network.

    Example: fatai-submit report runs/ninth --data DATA --out ninth.html
    """
    from fatai.experiment.manifest import noted_data
    from fatai.report.html import run_report

    path = run_report(run_folder, noted_data(run_folder) if data is None else data, out)
    typer.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
