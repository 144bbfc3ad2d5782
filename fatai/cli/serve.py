"""The command that serves the web tagger."""

from __future__ import annotations

import webbrowser
from typing import Annotated

import typer

from fatai.cli.options import Backend, Calibrate, Channel, Device, Host, Port, Run, StepS, Threads

__all__ = ["app", "warn_if_public"]

app = typer.Typer()


@app.command(rich_help_panel="Predict")
def serve(
    run: Run,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    max_mb: Annotated[float, typer.Option("--max-mb", help="Maximum megabytes of one upload.")] = 32.0,
    max_seconds: Annotated[float, typer.Option("--max-seconds", help="Maximum seconds of one sound.")] = 600.0,
    max_files: Annotated[int, typer.Option("--max-files", help="Maximum number of sounds in one upload.")] = 8,
    step_s: StepS = None,
    calibrate: Calibrate = None,
    channel: Channel = None,
    backend: Backend = "torch",
    threads: Threads = None,
    device: Device = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser of this machine.")] = False,
) -> None:
    """Serve a page that tags sounds dropped or recorded on it.

    Open the address that it prints; Ctrl-C ends it. Sounds are sent to this server only; uploads are not stored.

    Example: fatai-submit serve runs/demo
    """
    from fatai.experiment.run_folder import Tagger
    from fatai.web.server import serve as serve_app
    from fatai.web.tagger_app import page_title, tagger_app
    from fatai.web.uploads import Limits

    limits = Limits(upload_mb=max_mb, sound_s=max_seconds, files=max_files)
    tagger = Tagger(run, step_s=step_s, calibrate=calibrate, channel=channel, backend=backend)
    warn_if_public(host)

    def announce(address: str) -> None:
        typer.echo(f"{run}: {address}")
        if open_browser:
            webbrowser.open(address.split()[0])

    serve_app(tagger_app(tagger, page_title(run), limits), host, port, log=announce)


def warn_if_public(host: str) -> None:
    """Warn on standard error if `host` can be reached from other machines."""
    from fatai.web.security import is_loopback

    if not is_loopback(host):
        typer.echo("warning: anyone who can reach this machine can use this server; it has no password", err=True)
