"""Commands that list and download published weights."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer()
weights_app = typer.Typer(
    help="List published weights, or download one file.\n\nExample: fatai-submit weights get mn04_as",
    rich_markup_mode=None,
)
app.add_typer(weights_app, name="weights", rich_help_panel="Models")


@weights_app.callback(invoke_without_command=True)
def weights(context: typer.Context) -> None:
    """List the published weights that networks can start from.

    Each with its network, data, mean average precision there, size, license, and whether its file is on this machine.

    Example: fatai-submit weights get mn04_as
    """
    if context.invoked_subcommand is not None:
        return
    from fatai.models.weights import WEIGHTS, weights_folder, weights_path

    for name, entry in WEIGHTS.items():
        here = "here" if weights_path(name).is_file() else "not here"
        typer.echo(
            f"{name:14s} {entry.arch:12s} {entry.trained_on}, mAP {entry.score:.3f}  {entry.size:>7s}  "
            f"{entry.license:9s}  {here}"
        )
    typer.echo(f"files: {weights_folder()}")


@weights_app.command("get")
def get(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name in the list of fatai-submit weights.")],
) -> None:
    """Download published weights into the user's cache, or into the folder of the variable FATAI_WEIGHTS.

    An interrupted download continues, and the checksum is verified.

    Example: fatai-submit weights get mn04_as
    """
    from fatai.models.weights import WEIGHTS, get_weights

    path = get_weights(name)
    entry = WEIGHTS[name]
    note = "" if entry.checksum else "; no checksum of it is published"
    typer.echo(f"{path}: {entry.arch} trained on {entry.trained_on}, license {entry.license}{note}")
    typer.echo(f"use it with: fatai-submit run DATA --recipe finetune --arch {entry.arch}")
