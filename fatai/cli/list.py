"""Commands that list recipes and models."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer()
recipes_app = typer.Typer(
    help="List the recipes, or show one.\n\nExample: fatai-submit recipes show ninth", rich_markup_mode=None
)
# Where to start; the published systems follow.
_FIRST = ("default", "ensembles/best", "probe", "finetune", "ensembles/pretrained", "quick")
app.add_typer(recipes_app, name="recipes", rich_help_panel="Models")


@recipes_app.callback(invoke_without_command=True)
def recipes(context: typer.Context) -> None:
    """List the recipes and the ensembles of recipes.

    Example: fatai-submit recipes show ninth
    """
    if context.invoked_subcommand is not None:
        return
    from fatai.experiment.ensemble_recipe import ensemble_names, load_ensemble
    from fatai.experiment.recipe import load_recipe, recipe_names

    summaries = {name: load_recipe(name).summary for name in recipe_names()}
    summaries |= {name: load_ensemble(name).summary for name in ensemble_names()}
    for name in [*_FIRST, *(name for name in summaries if name not in _FIRST)]:
        typer.echo(f"{name:26s} {summaries[name]}")
    typer.echo("\nWith source and published score: fatai-submit recipes show NAME")


@recipes_app.command("show")
def show_recipe(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a recipe or an ensemble, or a .toml file.")],
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Include every default and every constant of the front end.")
    ] = False,
) -> None:
    """Print a recipe; save it, edit it, and run it with --recipe my.toml.

    Example: fatai-submit recipes show ninth > my.toml
    """
    from fatai.experiment.ensemble_recipe import ensemble_text, is_ensemble, load_ensemble
    from fatai.experiment.recipe import load_recipe, recipe_text

    if is_ensemble(name):
        load_ensemble(name)
        typer.echo(ensemble_text(name), nl=False)
        return
    recipe = load_recipe(name)
    typer.echo(recipe.resolved() if resolved else recipe_text(name), nl=False)


@app.command(rich_help_panel="Models")
def models(
    tags: Annotated[
        int, typer.Option("--tags", min=1, help="Number of tags for which the parameters are counted.")
    ] = 80,
) -> None:
    """List the models. Each with its parameters, minimum input (mel bins x frames) and source.

    Example: fatai-submit models --tags 80
    """
    from fatai.models.summary import model_table
    from fatai.registry import MODELS

    for row in model_table(tags):
        smallest = f"{row.n_mels or row.min_mels}x{row.min_frames}"
        typer.echo(f"{row.name:24s} {row.parameters:12,d}  {smallest:>8s}  {row.source}")
    typer.echo(f"{'timm:NAME':24s} {'any of timm':>12s}  {'':8s}  {MODELS.source('timm:NAME')}")
