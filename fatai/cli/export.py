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
    fold: ModelFold = 0,
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0, help="ONNX: maximum difference of its probabilities from torch's.")
    ] = 1e-4,
) -> None:
    """Write one trained network as an ONNX file or a model folder. Both are checked before they are written.

    Example: fatai-submit export runs/ninth model.onnx --fold 0
    """
    from fatai.experiment.run_folder import trained_model

    model = trained_model(run, fold)
    if out.suffix != ".onnx":
        typer.echo(f"{model.save(out)}: {len(model.tags)} tags; load it with load_pretrained, or give it as RUN")
        return
    from fatai.export.onnx import export_onnx

    difference = export_onnx(model, out, tolerance=tolerance)
    typer.echo(
        f"{out}: wave (batch, {model.settings.crop_samples}) at {model.settings.sr} Hz "
        f"to probs (batch, {len(model.tags)}); "
        f"onnxruntime differs from torch by at most {difference:.1e}"
    )


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

    if out.suffix != ".npy":
        raise OptionError(f"--out is {out}; expected a name that ends in .npy")
    items = pd.DataFrame(sound_files(sounds), columns=["fname", "path"])
    embeddings = trained_model(run, fold).embed(items, views=tta or "even", n=n_views, num_workers=num_workers or 0)
    embeddings.save(out)
    n_clips, n_features = embeddings.values.shape
    typer.echo(f"{out}: {n_clips} clips, {n_features} features; names in {out.with_suffix('.csv')}")
