"""Commands to run before training: preview augmentations, and find a learning rate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fatai.cli.options import (
    PICTURES,
    Arch,
    BatchSize,
    CropS,
    Data,
    ModelFold,
    NumWorkers,
    RecipeName,
    Width,
    check_suffix,
)

if TYPE_CHECKING:
    from fatai.experiment.recipe import Recipe

__all__ = ["app"]

app = typer.Typer()


@app.command("show-augs", rich_help_panel="Train")
def show_augs(
    data: Data,
    recipe: RecipeName = "default",
    augment: Annotated[
        list[str] | None, typer.Option("--augment", help="Another augmentation to show; may be repeated.")
    ] = None,
    mixup: Annotated[
        list[str] | None, typer.Option("--mixup", help="Another mixer to show; may be repeated.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", dir_okay=False, help="Picture to write: .png, .svg or .pdf.")
    ] = Path("augs.png"),
    fold: ModelFold = 0,
    n: Annotated[int, typer.Option("-n", min=1, help="Number of clips.")] = 4,
    crop_s: CropS = None,
) -> None:
    """Draw training clips before and after every augmentation of a recipe.

    Example: fatai-submit show-augs DATA --augment pitch --out augs.png
    """
    import matplotlib

    from fatai.augment.show import show_each
    from fatai.errors import OptionError
    from fatai.experiment.recipe import load_recipe
    from fatai.experiment.run import preview_learner
    from fatai.io.atomic import write_file
    from fatai.registry import AUGMENTATIONS, MIXERS

    check_suffix(out, PICTURES)
    matplotlib.use("Agg")
    loaded = load_recipe(recipe).override(crop_s=crop_s)
    # A cache of features holds spectrograms without their waves, which some augmentations need.
    loaded = loaded.model_copy(update={"clips": loaded.clips.model_copy(update={"cache": "none"})})
    shown = _augmentations(loaded)
    shown.update({name: [AUGMENTATIONS.build(name)] for name in augment or ()})
    shown.update({name: [MIXERS.build(name)] for name in mixup or ()})
    if not shown:
        raise OptionError(f"the recipe {loaded.name} has no augmentation; name one with --augment or --mixup")
    axes = show_each(preview_learner(data, loaded, fold, num_workers=0).dls, shown, n, seed=loaded.seed)
    with write_file(out) as temporary:
        axes[0, 0].figure.savefig(temporary, dpi=120)
    typer.echo(f"{out}: {n} clips before and after {', '.join(shown)}")


def _augmentations(recipe: Recipe) -> dict[str, list[Any]]:
    """Return each augmentation of a recipe by its name, and those of a stage that has several."""
    from fatai.experiment.stage import stage_augmentations

    shown: dict[str, list[Any]] = {}
    for stage in recipe.stages:
        augmentations = stage_augmentations(stage)
        shown.update({name: [augmentation] for name, augmentation in augmentations})
        if len(augmentations) > 1:
            shown[f"stage {stage.name}"] = [augmentation for _, augmentation in augmentations]
    return shown


@app.command("lr-find", rich_help_panel="Train")
def lr_find(
    data: Data,
    recipe: RecipeName = "default",
    out: Annotated[
        Path | None, typer.Option("--out", dir_okay=False, help="Picture to write: .png, .svg or .pdf.")
    ] = None,
    fold: ModelFold = 0,
    steps: Annotated[
        int, typer.Option("--steps", min=20, help="Number of batches, each with a larger learning rate.")
    ] = 100,
    bs: BatchSize = None,
    arch: Arch = None,
    width: Width = None,
    crop_s: CropS = None,
    num_workers: NumWorkers = None,
) -> None:
    """Suggest a learning rate for the first stage of a recipe. The rate grows batch by batch until the loss diverges.

    Example: fatai-submit lr-find DATA --out lr.png
    """
    import matplotlib

    from fatai.errors import OptionError
    from fatai.experiment.recipe import load_recipe
    from fatai.experiment.run import preview_learner
    from fatai.training.lr_finder import find_lr

    check_suffix(out, PICTURES)
    matplotlib.use("Agg")
    loaded = load_recipe(recipe).override(bs=bs, arch=arch, width=width, crop_s=crop_s)
    if loaded.stages[0].linear_probe is not None:
        raise OptionError(
            f"recipe {loaded.name} fits a logistic regression, which has no learning rate; take one that trains, such "
            "as default or finetune"
        )
    found = find_lr(preview_learner(data, loaded, fold, num_workers=num_workers), steps=steps, show_progress=True)
    for name, lr in found.suggestions.items():
        typer.echo(f"{name} {lr:.2e}")
    if out is not None:
        found.draw(out, title=f"{loaded.name}, fold {fold}, stage {loaded.stages[0].name}")
        typer.echo(f"{out}: losses of {len(found.lrs)} batches")
