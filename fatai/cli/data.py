"""Commands that look at a data set and at this machine before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from fatai.cli.options import Data, MaybeData, RecipeName

__all__ = ["app"]

app = typer.Typer()


@app.command()
def scan(
    data: Data,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, for programs.")] = False,
    front_end: Annotated[
        str, typer.Option("--front-end", help="Front end whose cache and epoch are estimated.")
    ] = "ninth",
    folds: Annotated[int, typer.Option(help="Folds in which each tag is counted.")] = 5,
    most: Annotated[int, typer.Option(help="Findings of a kind that are listed before the rest is counted.")] = 20,
) -> None:
    """Read every sound of a data set and report what is odd. Broken, silent, clipped and doubled files, label typos; lengths and costs.

    Example: fatai-submit scan my_sounds/labels.csv

    For programs: fatai-submit scan DATA --json > scan.json
    """
    from fatai.data.audit.dataset import check_dataset as scan_data

    report = scan_data(data, front_end=front_end, n_folds=folds)
    typer.echo(report.to_json() if as_json else report.to_text(most=most))


@app.command()
def download(
    name: Annotated[str, typer.Argument(metavar="NAME", help="fsdkaggle2019 (the competition's sounds) or esc50.")],
    dest: Annotated[
        Path, typer.Argument(metavar="DEST", help="Folder to put it in; an interrupted download goes on there.")
    ],
    noisy: Annotated[bool, typer.Option(help="With the noisy part, which is most of fsdkaggle2019.")] = True,
    keep_archives: Annotated[
        bool, typer.Option("--keep-archives", help="Leave the archives beside what was in them.")
    ] = False,
) -> None:
    """Get a data set in the layout that all commands read. Files are checked; an interrupted download goes on.

    Example: fatai-submit download fsdkaggle2019 DATA
    """
    from fatai.data.datasets.download import download as get

    typer.echo(f"{get(name, dest, noisy=noisy, keep_archives=keep_archives)} is ready: fatai-submit scan {dest}")


@app.command()
def stats(
    data: Data,
    front_end: Annotated[
        Optional[str], typer.Option("--front-end", help="Front end to measure; without it the recipe's.")
    ] = None,
    recipe: RecipeName = "ninth",
    normalize: Annotated[str, typer.Option(help="global: one mean and deviation; bin: those of each row.")] = "global",
    parts: Annotated[str, typer.Option(help="Parts of the data set, comma separated.")] = "curated,noisy",
    out: Annotated[
        Optional[Path], typer.Option("--out", help="Write the recipe with these numbers in it to a .toml file.")
    ] = None,
) -> None:
    """Measure the mean and deviation of a data set's spectrograms. For a recipe's front end, whose last step they are.

    Example: fatai-submit stats DATA --recipe ninth --out my.toml
    """
    from fatai.io.atomic import write_text
    from fatai.data.stats import data_stats
    from fatai.experiment.recipe import load_recipe

    loaded = load_recipe(recipe)
    if front_end is not None:
        loaded = loaded.with_front_end(name=front_end)
    settings = loaded.settings()
    measured = data_stats(
        data, settings.front_end, parts=[p.strip() for p in parts.split(",")], trim_db=settings.trim_db
    )
    numbers = measured.settings(normalize)
    if out is not None:
        write_text(out, loaded.with_front_end(**numbers).resolved())
        typer.echo(f"{out}: {loaded.name} with the statistics of {measured.frames} frames")
        return
    import tomli_w

    typer.echo(f"# of {measured.frames} frames; for the section [front_end] of a recipe")
    typer.echo(tomli_w.dumps({k: list(v) if isinstance(v, tuple) else v for k, v in numbers.items()}), nl=False)


@app.command()
def doctor(
    data: MaybeData = None, recipe: RecipeName = "ninth",
) -> None:
    """Print what this machine has, and what is wrong with it. Versions, device, decoders, workers; with DATA where an epoch's time goes.

    Example: fatai-submit doctor

    Times of an epoch, and what would shorten it: fatai-submit doctor DATA --recipe ninth
    """
    if data is not None:
        from fatai.diagnostics.profile import profile_step

        typer.echo(profile_step(data, recipe).to_text())
        return
    from fatai.diagnostics.environment import check_environment

    report = check_environment()
    typer.echo(report.to_text())
    if report.faults:
        raise typer.Exit(2)
