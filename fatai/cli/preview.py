"""Commands that show what training will do before it is done: random changes, and which learning rate suits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from fatai.cli.options import Arch, BatchSize, CropS, Data, RecipeName, Width, Workers

__all__ = ["app"]

app = typer.Typer()

Fold = Annotated[int, typer.Option("--fold", help="Fold whose training clips are taken, counted from 0.")]


@app.command("show-augs")
def show_augs(
    data: Data,
    recipe: RecipeName = "ninth",
    augment: Annotated[
        Optional[list[str]], typer.Option("--augment", help="An augmentation to show as well; may be repeated.")
    ] = None,
    mixup: Annotated[
        Optional[list[str]], typer.Option("--mixup", help="A mixer to show as well; may be repeated.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Picture to write: .png, .svg or .pdf.")] = Path("augs.png"),
    fold: Fold = 0,
    n: Annotated[int, typer.Option("-n", help="How many clips are shown.")] = 4,
    crop_s: CropS = None,
) -> None:
    """Draw clips before and after every random change of a recipe.

    Example: fatai-submit show-augs DATA --recipe ninth --augment pitch --out augs.png
    """
    import matplotlib

    from fatai.io.atomic import write_file
    from fatai.augment.show import show_each
    from fatai.errors import OptionError
    from fatai.experiment.preview import preview_learner
    from fatai.experiment.recipe import load_recipe
    from fatai.experiment.stage import stage_changes
    from fatai.registry import AUGMENTATIONS, MIXERS

    matplotlib.use("Agg")
    loaded = load_recipe(recipe).override(crop_s=crop_s)
    # From a cache of features come spectrograms without waves, which not every change can work on.
    loaded = loaded.model_copy(update={"clips": loaded.clips.model_copy(update={"cache": "none"})})
    shown = {}
    for stage in loaded.stages:
        changes = stage_changes(stage)
        shown.update({name: [change] for name, change in changes})
        if len(changes) > 1:
            shown[f"stage {stage.name}"] = [change for _, change in changes]
    shown.update({name: [AUGMENTATIONS.build(name)] for name in augment or ()})
    shown.update({name: [MIXERS.build(name)] for name in mixup or ()})
    if not shown:
        raise OptionError(
            f"the recipe {loaded.name} changes nothing at random; name what to show with --augment or --mixup"
        )
    axes = show_each(preview_learner(data, loaded, fold, num_workers=0).dls, shown, n, seed=loaded.seed)
    with write_file(out) as beside:
        axes[0, 0].figure.savefig(beside, dpi=120)
    typer.echo(f"{out}: {n} clips before and after {', '.join(shown)}")


@app.command("lr-find")
def lr_find(
    data: Data, recipe: RecipeName = "ninth",
    out: Annotated[Optional[Path], typer.Option("--out", help="Picture to write: .png, .svg or .pdf.")] = None,
    fold: Fold = 0,
    steps: Annotated[int, typer.Option(help="Batches, each with a larger learning rate.")] = 100,
    bs: BatchSize = None, arch: Arch = None, width: Width = None, crop_s: CropS = None, workers: Workers = None,
) -> None:
    """Suggest a learning rate for the first stage of a recipe. The rate grows batch by batch until the loss breaks out.

    Example: fatai-submit lr-find DATA --recipe ninth --out lr.png
    """
    import matplotlib

    from fatai.experiment.preview import preview_learner
    from fatai.experiment.recipe import load_recipe
    from fatai.training.lr_finder import find_lr

    matplotlib.use("Agg")
    loaded = load_recipe(recipe).override(bs=bs, arch=arch, width=width, crop_s=crop_s)
    found = find_lr(preview_learner(data, loaded, fold, num_workers=workers), steps=steps)
    for how, lr in found.suggestions.items():
        typer.echo(f"{how} {lr:.2e}")
    if out is not None:
        found.draw(out, title=f"{loaded.name}, fold {fold}, stage {loaded.stages[0].name}")
        typer.echo(f"{out}: losses of {len(found.lrs)} batches")
