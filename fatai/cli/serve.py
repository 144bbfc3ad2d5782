"""Commands that show a run in a browser: the web tagger, the review of suspect labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

__all__ = ["app"]

app = typer.Typer()

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder that run, train, demo or export made.")]
Host = Annotated[str, typer.Option("--host", help="Address to listen at; by default only this machine can connect.")]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen at; 0 is any free one.")]


@app.command()
def serve(
    run: Run,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    most_mb: Annotated[float, typer.Option("--max-mb", help="Megabytes of one upload.")] = 32.0,
    most_s: Annotated[float, typer.Option("--max-seconds", help="Seconds of one sound.")] = 600.0,
    most_files: Annotated[int, typer.Option("--max-files", help="Sounds in one upload.")] = 8,
    step_s: Annotated[
        Optional[float], typer.Option("--step-s", help="Seconds between windows; by default half a window.")
    ] = None,
    calibrated: Annotated[bool, typer.Option("--calibrated", help="Apply what fatai-submit calibrate found.")] = False,
) -> None:
    """Serve a page that tags sounds dropped or recorded on it.

    Open the address that it prints; Ctrl-C ends it. Sounds go to this server and nowhere else, and are forgotten when they are answered.

    Example: fatai-submit serve runs/demo
    """
    from fatai.experiment.tagger import Tagger
    from fatai.web.server import serve as serve_app
    from fatai.web.tagger_app import named, tagger_app
    from fatai.web.uploads import Limits

    limits = Limits(upload_mb=most_mb, sound_s=most_s, files=most_files)
    tagger = Tagger(run, step_s=step_s, calibrated=calibrated)
    _warn_of_others(host)
    serve_app(tagger_app(tagger, named(run), limits), host, port, say=lambda address: typer.echo(f"{run}: {address}"))


@app.command()
def review(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a finished run; its out-of-fold predictions judge.")
    ],
    data: Annotated[
        Optional[Path],
        typer.Option("--data", help="The run's data; by default where its manifest says that they were."),
    ] = None,
    out: Annotated[
        Optional[Path], typer.Option("--out", help="HTML file to write; RUN/review.html if not given.")
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve the page, saving every decision at once, instead of writing it.")
    ] = False,
    corrections: Annotated[
        Optional[Path],
        typer.Option(
            "--corrections",
            help="Corrections to go on with, and with --serve to write; RUN/corrections.csv if not given.",
        ),
    ] = None,
    n: Annotated[
        Optional[int],
        typer.Option(
            "-n", min=1, help="At most so many clips, the most suspect; by default 100 in a file, all with --serve."
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.1, help="Seconds of each clip that are put into a file.")
    ] = 10.0,
    predictions: Annotated[
        Optional[Path], typer.Option("--predictions", help="Judge by this CSV instead of RUN/oof.csv.")
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
) -> None:
    """Go through clips whose labels look wrong or missing. See, hear, keep, relabel or remove them, by key or mouse.

    What comes out is corrections.csv: fatai-submit run DATA --corrections corrections.csv trains with it.

    Example: fatai-submit review runs/demo --serve
    """
    from fatai.report.label_review import review_of_run, write_review

    corrections = corrections or run / "corrections.csv"
    if not serve:
        out = out or run / "review.html"
        written = write_review(
            run, out, data, corrections=corrections, n=n or 100, most_s=seconds, predictions=predictions,
        )
        typer.echo(
            f"{out}: {len(written.clips)} clips, {len(written.suspects)} suspects, {out.stat().st_size / 1e6:.1f} MB"
        )
        return
    from fatai.web.server import serve as serve_app
    from fatai.web.review_app import review_app

    found = review_of_run(run, data, predictions=predictions, n=n)
    app_of = review_app(found, corrections)
    _warn_of_others(host)
    serve_app(
        app_of, host, port, say=lambda address: typer.echo(f"{len(found.clips)} clips to {corrections}: {address}")
    )


def _warn_of_others(host: str) -> None:
    from fatai.web.security import is_loopback

    if not is_loopback(host):
        typer.echo("everybody who can reach this machine can now use it: there is no password", err=True)
