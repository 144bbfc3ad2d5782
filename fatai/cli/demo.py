"""The command demo: a small form of recipe `default` on the bundled sounds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fatai.cli.options import Epochs
from fatai.cli.training import Training, in_processes

if TYPE_CHECKING:
    from fatai.experiment.run_result import RunResult

__all__ = ["app"]

app = typer.Typer()


@app.command(rich_help_panel="Train")
def demo(
    out: Annotated[
        Path, typer.Option("--out", help="Folder of the run; replaced if it holds nothing but an earlier demo.")
    ] = Path("runs/demo"),
    epochs: Epochs = None,
) -> None:
    """Train on the bundled sounds and score on their test part. Four folds, a few minutes on a laptop.

    Example: fatai-submit demo --out runs/demo
    """
    from fatai.data.datasets.fat2019 import fat_sample
    from fatai.distributed import was_started_by_torchrun
    from fatai.experiment.overrides import Overrides
    from fatai.io.lock import lock_output

    if not was_started_by_torchrun():
        with lock_output(out):
            _remove_earlier_demo(out)
    data = fat_sample()
    small: dict[str, Any] = {"stages.epochs": _DEMO_EPOCHS if epochs is None else epochs}
    small |= {"stages.sampling_options": {"n": _DEMO_CLIPS}, "noisy_decision": False}  # which takes another fold
    training = Training(data, "default", out, Overrides(values=small))
    with in_processes(training) as is_worker:
        if is_worker:
            _print_scores(training.run(), data)


def _print_scores(result: RunResult, data: Path) -> None:
    """Print the scores of a demo, in one of its processes."""
    from fatai.distributed import init

    if not init().is_main:
        return
    for fold, value in result.fold_scores.items():
        typer.echo(f"fold {fold} lwlrap {value:.4f}")
    typer.echo(f"out-of-fold lwlrap {result.oof_score:.4f}")
    if result.test is not None:
        typer.echo(f"test lwlrap {result.test.score(data / 'truth' / 'test.csv'):.4f}")


# 20 epochs of 25 steps for each of four networks: fewer than `default` takes, to end within three minutes on two cores.
_DEMO_EPOCHS, _DEMO_CLIPS = 20, 400


# Everything that a run of the demo writes, by its path in the folder; a folder with anything else is left alone.
_DEMO_FILES = re.compile(
    r"(calibration\.json|folds\.csv|history\.html|manifest\.json|oof\.csv|recipe\.toml|report\.html|submission\.csv"
    r"|test\.csv"
    r"|fold_\d+(/(fold\.json|history\.csv|model\.safetensors|oof\.csv|test\.csv|state_\d+\.pt|models))?"
    r"|reference(/(\d\d\.flac|probs\.csv))?"
    r"|(fold_\d+/|reference/)?\.[^/]*\.part[^/]*)"  # of a demo that was stopped
)


def _remove_earlier_demo(out: Path) -> None:
    """Remove a folder that only a demo wrote; raise `DataError` if it holds anything else."""
    import shutil

    from fatai.errors import DataError

    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir() or out.is_symlink() or not _is_demo(out):
        raise DataError(f"{out} was not made by a demo and is left as it is; choose another --out")
    names = (path.relative_to(out).as_posix() for path in out.rglob("*"))
    other = sorted(name for name in names if not _DEMO_FILES.fullmatch(name))
    if other:
        raise DataError(f"{out} holds {other[0]}, which no demo made; move it, or choose another --out")
    shutil.rmtree(out)


def _is_demo(out: Path) -> bool:
    from fatai.errors import FataiError
    from fatai.experiment.manifest import read_manifest

    try:
        command = (read_manifest(out) or {}).get("command")
    except FataiError:
        return False
    return isinstance(command, str) and command.split()[:2] == ["fatai-submit", "demo"]
