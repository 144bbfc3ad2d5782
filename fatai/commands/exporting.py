"""Commands that hand a model, or what it makes of sounds, to other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer()


@app.command()
def export(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that run, train or demo made, or a model folder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="model.onnx for one ONNX graph; another name for a model folder.")],
    fold: Annotated[int, typer.Option(min=0, help="Which fold of the run.")] = 0,
    tolerance: Annotated[float, typer.Option(min=0, help="ONNX: how far its probabilities may be from torch's.")] = 1e-4,
) -> None:
    """Write one trained network as an ONNX file or as a model folder; both are checked before they are handed out.

    Example: fatai-submit export runs/ninth model.onnx --fold 0
    """
    from fatai.recipes.finished import trained_model

    model = trained_model(run_folder, fold)
    if out.suffix != ".onnx":
        typer.echo(f"{model.save(out)}: {len(model.tags)} tags; load_pretrained reads it, predict and tag take it as a run")
        return
    from fatai.infer.onnx_export import export_onnx

    difference = export_onnx(model, out, tolerance=tolerance)
    typer.echo(f"{out}: wave (batch, {model.settings.crop_samples}) at {model.settings.sr} Hz to probs (batch, {len(model.tags)}); "
               f"onnxruntime differs from torch by at most {difference:.1e}")
