"""The command `fatai-submit`.

Commands only translate words into calls; torch and fastai are imported inside them, so that help answers at once. What a user can mend
ends with one sentence on standard error and exit code 2; Ctrl-C ends with 130.
"""

from __future__ import annotations

import io
import sys
import warnings
from typing import Annotated, Any

import typer

from fatai import __version__
from fatai.cli import data, evaluate, export, labels, preview, reporting, runs, serve, tag, train
from fatai.cli import list as list_
from fatai.errors import FataiError

__all__ = ["app", "main"]

_INTERRUPTED = 130  # the shell's code for a command that Ctrl-C ended

app = typer.Typer(
    name="fatai-submit",
    help="Tag sounds: from a folder of clips to a model, a report and a checked submission.\n\nExample: fatai-submit demo\n\n"
    "Your own sounds: fatai-submit run my_sounds/labels.csv --recipe quick --out runs/mine",
    epilog="Options with their units and defaults, and an example: fatai-submit COMMAND --help",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for commands in (train, tag, export, evaluate, preview, reporting, data, labels, serve, runs, list_):
    app.add_typer(commands.app)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"fatai {__version__}")
        raise typer.Exit()


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: errors that a user can mend become one sentence and exit code 2."""
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
    warnings.showwarning = _plain_warning
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    try:
        app()
    except FataiError as e:
        print(f"fatai-submit: {e}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as e:
        # Of the files that a command itself opens; e.g. a journal on a disk that is full.
        print(f"fatai-submit: {e.filename or 'a file'} cannot be read or written ({e.strerror or e})", file=sys.stderr)
        raise SystemExit(2) from None
    except (KeyboardInterrupt, SystemExit) as e:
        # Typer turns Ctrl-C into an exit of its own.
        if isinstance(e, SystemExit) and e.code != _INTERRUPTED:
            raise
        print("fatai-submit: stopped", file=sys.stderr)
        raise SystemExit(_INTERRUPTED) from None


def _plain_warning(
    message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: str | None = None
) -> None:
    print(f"warning: {message}", file=sys.stderr)
