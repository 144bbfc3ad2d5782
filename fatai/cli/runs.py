"""The command that makes a run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from fatai.cli.options import MaybeData

__all__ = ["app"]

app = typer.Typer()


@app.command()
def repeat(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    data: MaybeData = None,
    out: Annotated[Optional[Path], typer.Option("--out", help="Folder of the new run; by default RUN-repeat.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a repetition that was begun in --out.")] = False,
) -> None:
    """Make a run again, and tell whether it came out the same. The same bytes, or else what differs.

    It is made from its manifest and recipe; DATA is asked for only if the data aren't where they were. Ends with 0 if all files are the
    same bytes, with 1 if not.

    Example: fatai-submit repeat runs/ninth
    """
    from fatai.experiment.reproduce import reproduce_run

    repeated = reproduce_run(run_folder, data, out, resume=resume, say=typer.echo)
    typer.echo(f"\n{repeated}")
    if not repeated.same:
        raise typer.Exit(1)
