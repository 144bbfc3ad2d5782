"""The command `fatai-submit`.

Commands translate their options into calls of the library. They import torch and fastai inside their functions, so that
`--help` is quick. An error that the user can fix ends with one sentence on standard error and exit code 2; Ctrl-C ends
with 130.
"""

from __future__ import annotations

import io
import sys
import warnings
from typing import Annotated, Any

import typer

from fatai import __version__
from fatai.cli import (
    data,
    demo,
    evaluate,
    export,
    index,
    labels,
    predict,
    preview,
    runs,
    serve,
    tag,
    train,
    tune,
    weights,
)
from fatai.cli import list as listing
from fatai.cli.options import CommandPanels
from fatai.errors import FataiError

__all__ = ["app", "main"]

_INTERRUPTED = 130  # the shell's code for a command that Ctrl-C ended

app = typer.Typer(
    cls=CommandPanels,
    name="fatai-submit",
    help="Tag sounds: from a folder of clips to a model, a report and a checked submission.\n\n"
    "Example: fatai-submit demo\n\n"
    "Your own sounds: fatai-submit run my_sounds/labels.csv --out runs/mine",
    epilog="Options with their units and defaults, and an example: fatai-submit COMMAND --help",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (
    train, demo, tune, predict, tag, serve, export, evaluate, preview, data, labels, index, runs, listing, weights,
):
    app.add_typer(module.app)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"fatai {__version__}")
        raise typer.Exit()


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; end with one sentence and exit code 2 on an error that the user can fix."""
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
    warnings.showwarning = _print_warning
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be text
    try:
        app()
    except FataiError as e:
        _exit(str(e), 2)
    except OSError as e:
        # From files that a command itself opens, such as a log on a full disk.
        _exit(f"{e.filename or 'a file'} cannot be read or written ({e.strerror or e})", 2)
    except (KeyboardInterrupt, SystemExit) as e:
        # Typer turns Ctrl-C into an exit of its own.
        if isinstance(e, SystemExit) and e.code != _INTERRUPTED:
            raise
        _exit("stopped", _INTERRUPTED)


def _exit(message: str, code: int) -> None:
    print(f"fatai-submit: {message}", file=sys.stderr)
    raise SystemExit(code) from None


def _print_warning(
    message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: str | None = None
) -> None:
    print(f"warning: {message}", file=sys.stderr)
