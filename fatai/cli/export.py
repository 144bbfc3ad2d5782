"""Commands that write a model, or its embeddings of sounds, for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fatai.cli.options import ModelFold, NumWorkers, NViews, Run, Tta

__all__ = ["app"]

app = typer.Typer()


@app.command(rich_help_panel="Models")
def export(
    run: Run,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="model.onnx for one ONNX graph; any other name for a model folder.")
    ],
    fold: Annotated[
        int | None,
        typer.Option(
            "--fold", min=0, help="Fold of the run, counted from 0; without it a model folder gets the first one."
        ),
    ] = None,
    folds: Annotated[
        str | None,
        typer.Option("--folds", help="all: the average of all folds as one ONNX graph; the default without --fold."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0, help="ONNX: maximum difference of its probabilities from torch's.")
    ] = 1e-4,
) -> None:
    """Write a run as an ONNX file, the average of its folds or one of them, or one fold as a model folder.

    Both are checked before they are written.

    Example: fatai-submit export runs/ninth model.onnx
    """
    from fatai.io.lock import lock_output

    if folds not in (None, "all"):
        raise typer.BadParameter(f"it is {folds!r}; expected all, or --fold K for a single fold", param_hint="--folds")
    if folds is not None and fold is not None:
        raise typer.BadParameter(f"all is given together with --fold {fold}; give one of the two", param_hint="--folds")
    with lock_output(out):
        if out.suffix == ".onnx":
            _export_graph(run, out, fold, tolerance)
        else:
            _export_folder(run, out, fold, folds)


def _export_graph(run: Path, out: Path, fold: int | None, tolerance: float) -> None:
    """Write one fold, or the average of all, as an ONNX file."""
    from fatai.experiment.run_folder import FinishedRun, trained_model
    from fatai.export.onnx import export_onnx

    numbers, average = _fold_numbers(run), "mean"
    chosen = numbers if fold is None else [fold]
    if len(chosen) > 1:
        average = FinishedRun.open(run).recipe.tta.fold_average
    models = [trained_model(run, number) for number in chosen or [0]]
    difference = export_onnx(models, out, average=average, tolerance=tolerance)
    if len(chosen) > 1:
        source = f"{average} of the folds {', '.join(map(str, chosen))}: "
    else:
        source = _name_fold(chosen, numbers)
    settings = models[0].settings
    typer.echo(
        f"{out}: {source}wave (batch, {settings.crop_samples}) at {settings.sr} Hz "
        f"to probs (batch, {len(models[0].tags)}); "
        f"onnxruntime differs from torch by at most {difference:.1e}"
    )


def _export_folder(run: Path, out: Path, fold: int | None, folds: str | None) -> None:
    """Write one fold as a model folder."""
    from fatai.errors import OptionError
    from fatai.experiment.run_folder import trained_model

    numbers = _fold_numbers(run)
    if folds is not None and len(numbers) > 1:
        raise OptionError(
            f"--folds all is given, but a model folder such as {out} holds one fold; give a name that ends in .onnx, "
            f"or --fold K for one of {', '.join(map(str, numbers))}"
        )
    chosen = numbers[:1] if fold is None else [fold]
    model = trained_model(run, *chosen)
    typer.echo(
        f"{model.save(out)}: {_name_fold(chosen, numbers)}{len(model.tags)} tags; load it with load_pretrained, or "
        "give it as RUN"
    )


def _fold_numbers(run: Path) -> list[int]:
    """Return the folds of a run; none of a model folder."""
    from fatai.experiment.run_folder import FinishedRun
    from fatai.export.pretrained import is_model_folder

    return [] if is_model_folder(run) else FinishedRun.open(run).fold_numbers


def _name_fold(chosen: list[int], numbers: list[int]) -> str:
    """Name the fold that is taken of a run with several; empty where there is no choice."""
    return f"fold {chosen[0]} alone of {len(numbers)} folds, " if len(numbers) > 1 else ""


@app.command(rich_help_panel="Predict")
def embed(
    run: Run,
    sounds: Annotated[list[Path], typer.Argument(metavar="SOUND", help="Sound files, or folders of them.")],
    out: Annotated[
        Path,
        typer.Option("--out", help="embeddings.npy: float32 (clips, features); the names go into a .csv beside it."),
    ],
    fold: ModelFold = 0,
    tta: Tta = None,
    n_views: NViews = None,
    num_workers: NumWorkers = None,
) -> None:
    """Write an embedding of each sound, the input of the network's last layer. For search, clustering and other tags.

    Example: fatai-submit embed runs/ninth my_sounds/ --out embeddings.npy
    """
    import pandas as pd

    from fatai.cli.paths import sound_files
    from fatai.errors import OptionError
    from fatai.experiment.run_folder import trained_model
    from fatai.io.lock import lock_output

    if out.suffix != ".npy":
        raise OptionError(f"--out is {out}; expected a name that ends in .npy")
    items = pd.DataFrame(sound_files(sounds), columns=["fname", "path"])
    with lock_output(out):
        embeddings = trained_model(run, fold).embed(items, views=tta or "even", n=n_views, num_workers=num_workers or 0)
        embeddings.save(out)
    n_clips, n_features = embeddings.values.shape
    source = _name_fold([fold], _fold_numbers(run))
    typer.echo(f"{out}: {source}{n_clips} clips, {n_features} features; names in {out.with_suffix('.csv')}")
