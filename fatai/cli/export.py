"""Commands that hand a model, or what it makes of sounds, to other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fatai.cli.options import Data, Views

__all__ = ["app"]

app = typer.Typer()


@app.command()
def export(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that run, train, demo or export made.")],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="model.onnx for one ONNX graph; another name for a model folder.")
    ],
    fold: Annotated[int, typer.Option(min=0, help="Which fold of the run, counted from 0.")] = 0,
    tolerance: Annotated[
        float, typer.Option(min=0, help="ONNX: how far its probabilities may be from torch's, at most.")
    ] = 1e-4,
) -> None:
    """Write one trained network as an ONNX file or a model folder. Both are checked before they are handed out.

    Example: fatai-submit export runs/ninth model.onnx --fold 0
    """
    from fatai.experiment.run_folder import trained_model

    model = trained_model(run_folder, fold)
    if out.suffix != ".onnx":
        typer.echo(
            f"{model.save(out)}: {len(model.tags)} tags; load_pretrained reads it, predict and tag take it as a run"
        )
        return
    from fatai.export.onnx import export_onnx

    difference = export_onnx(model, out, tolerance=tolerance)
    typer.echo(
        f"{out}: wave (batch, {model.settings.crop_samples}) at {model.settings.sr} Hz to probs (batch, {len(model.tags)}); "
        f"onnxruntime differs from torch by at most {difference:.1e}"
    )


@app.command()
def embed(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that run, train, demo or export made.")],
    sounds: Annotated[list[Path], typer.Argument(metavar="SOUND", help="Sound files, or folders of them.")],
    out: Annotated[
        Path, typer.Option("--out", help="embeddings.npy: float32 (clips, features); names go beside it as .csv.")
    ],
    fold: Annotated[int, typer.Option(min=0, help="Which fold of the run, counted from 0.")] = 0,
    tta: Annotated[
        str, typer.Option(help="Kind of views that are averaged: even, random, tiles, whole, padded, ...")
    ] = "even",
    views: Views = None,
    workers: Annotated[int, typer.Option("--workers", help="Processes that read sound; 0 reads in the main one.")] = 0,
) -> None:
    """Write a row of features for each sound. They are what the network's head sees: for search, clusters, other tags.

    Example: fatai-submit embed runs/ninth my_sounds/ --out embeddings.npy
    """
    import pandas as pd

    from fatai.cli.paths import sound_files
    from fatai.errors import OptionError
    from fatai.experiment.run_folder import trained_model

    if out.suffix != ".npy":
        raise OptionError(f"--out is {out}; expected a name that ends in .npy")
    items = pd.DataFrame(sound_files(sounds), columns=["fname", "path"])
    embeddings = trained_model(run_folder, fold).embed(items, how=tta, n=views, num_workers=workers)
    embeddings.save(out)
    typer.echo(
        f"{out}: {embeddings.values.shape[0]} clips, {embeddings.values.shape[1]} features; names in {out.with_suffix('.csv')}"
    )


@app.command("panns-logreg")
def panns_logreg(
    data: Data,
    weights: Annotated[
        Path, typer.Option("--weights", help="Published weights of PANNs, such as Cnn14_mAP=0.431.pth.")
    ],
    out: Annotated[
        Path,
        typer.Option("--out", help="Folder for embeddings, out-of-fold and test predictions, tagger and submission."),
    ],
    arch: Annotated[str, typer.Option(help="The network that the weights belong to.")] = "cnn14",
    folds: Annotated[int, typer.Option(min=2, help="Number of folds.")] = 5,
    workers: Annotated[int, typer.Option("--workers", help="Processes that read sound; 0 reads in the main one.")] = 0,
) -> None:
    """Tag with a frozen network of PANNs and logistic regressions. One for each tag, scored out of fold.

    What it writes is for ensemble and for Python. For a run that predict, tag and serve take, run the recipe panns_logreg.

    Example: fatai-submit panns-logreg DATA --weights Cnn14_mAP=0.431.pth --out runs/panns
    """
    from fatai.experiment import panns_logreg as recipe

    recipe.panns_logreg(
        data, recipe.panns_network(weights, arch), out, n_folds=folds, num_workers=workers, say=typer.echo
    )
