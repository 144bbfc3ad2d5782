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
    run: Run, host: Host = "127.0.0.1", port: Port = 8000,
    most_mb: Annotated[float, typer.Option("--max-mb", help="Megabytes of one upload.")] = 32.0,
    most_s: Annotated[float, typer.Option("--max-seconds", help="Seconds of one sound.")] = 600.0,
    most_files: Annotated[int, typer.Option("--max-files", help="Sounds in one upload.")] = 8,
    step_s: Annotated[Optional[float], typer.Option("--step-s", help="Seconds between windows; by default half a window.")] = None,
    calibrated: Annotated[bool, typer.Option("--calibrated", help="Apply what fatai-submit calibrate found.")] = False,
) -> None:
    """Serve a page that tags sounds which are dropped on it or recorded there.

    Sounds go to this server and nowhere else, and are forgotten when they are answered.

    Example: fatai-submit serve runs/demo
    """
    from fatai.recipes.tagger import Tagger
    from fatai.web.guard import is_loopback
    from fatai.web.pages import serve as serve_app
    from fatai.web.tagger_app import named, tagger_app
    from fatai.web.uploads import Limits

    limits = Limits(upload_mb=most_mb, sound_s=most_s, files=most_files)
    tagger = Tagger(run, step_s=step_s, calibrated=calibrated)
    if not is_loopback(host):
        typer.echo("everybody who can reach this machine can now use it: there is no password", err=True)
    serve_app(tagger_app(tagger, named(run), limits), host, port, say=lambda address: typer.echo(f"{run}: {address}"))
