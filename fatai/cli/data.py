"""Commands on a data set and on this machine, before training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fatai.cli.options import Data, FileCol, MaybeData, RecipeName, TagsCol, TagSep

__all__ = ["app"]

app = typer.Typer()


@app.command(rich_help_panel="Data")
def scan(
    data: Data,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, for programs.")] = False,
    front_end: Annotated[
        str, typer.Option("--front-end", help="Front end for which cache and epoch are estimated.")
    ] = "ninth",
    folds: Annotated[int, typer.Option("--folds", help="Number of folds in which each tag is counted.")] = 5,
    max_findings: Annotated[
        int, typer.Option("--max-findings", help="Findings of a kind that are listed before the rest is counted.")
    ] = 20,
    file_col: FileCol = None,
    tags_col: TagsCol = None,
    tag_sep: TagSep = None,
) -> None:
    """Read every sound of a data set and report problems.

    Broken, silent, clipped and duplicate files, label typos; lengths and costs.

    Example: fatai-submit scan my_sounds/labels.csv

    For programs: fatai-submit scan DATA --json > scan.json
    """
    from fatai.data.audit.dataset import check_dataset
    from fatai.data.table_columns import TableColumns

    columns = TableColumns(file_col, tuple(tags_col) if tags_col else None, tag_sep)
    report = check_dataset(data, front_end=front_end, n_folds=folds, columns=columns)
    typer.echo(report.to_json() if as_json else report.to_text(max_per_kind=max_findings))


@app.command(rich_help_panel="Data")
def background(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder to write, such as my_sounds/background: new or empty.")
    ],
    seconds: Annotated[float, typer.Option("--seconds", min=1, max=3600, help="Seconds of each sound.")] = 30.0,
    n: Annotated[int, typer.Option("-n", min=1, help="Number of sounds of each kind.")] = 4,
    sr: Annotated[int, typer.Option("--sr", min=8000, max=192_000, help="Sampling rate in Hz.")] = 32000,
    kinds: Annotated[
        list[str] | None,
        typer.Option(
            "--kind", help="hum, hiss, rain, speech_shaped or silence; may be repeated; by default all of them."
        ),
    ] = None,
) -> None:
    """Write generated sounds without events: hum, hiss, rain, speech-shaped noise, silence.

    A run on data with a folder background/ trains with them as clips without tags, and reports false alarms per hour of
    each tag. Add recordings of your place without the sounds that you look for: they are nearer to what will be tagged.

    Example: fatai-submit background my_sounds/background
    """
    from fatai.audio.background import BACKGROUNDS
    from fatai.data.background import write_background
    from fatai.errors import DataError

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and is not empty; choose another folder")
    paths = write_background(out, seconds=seconds, sr=sr, n=n, kinds=kinds or tuple(BACKGROUNDS))
    typer.echo(f"{out}: {len(paths)} sounds of {seconds:g} s")


@app.command(rich_help_panel="Data")
def download(
    name: Annotated[str, typer.Argument(metavar="NAME", help="fsdkaggle2019 (the competition's sounds) or esc50.")],
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="Folder to write; an interrupted download continues.")],
    noisy: Annotated[
        bool, typer.Option("--noisy/--no-noisy", help="With the noisy part, which is most of fsdkaggle2019.")
    ] = True,
    keep_archives: Annotated[
        bool, typer.Option("--keep-archives", help="Keep the archives beside the extracted files.")
    ] = False,
) -> None:
    """Download a data set in the layout that all commands read.

    Checksums are verified; an interrupted download continues.

    Example: fatai-submit download fsdkaggle2019 DATA
    """
    from fatai.data.datasets.download import download as download_dataset

    folder = download_dataset(name, dest, noisy=noisy, keep_archives=keep_archives)
    typer.echo(f"{folder} is complete; check it with: fatai-submit scan {dest}")


@app.command(rich_help_panel="Data")
def stats(
    data: Data,
    front_end: Annotated[
        str | None, typer.Option("--front-end", help="Front end to measure; by default the recipe's.")
    ] = None,
    recipe: RecipeName = "default",
    normalize: Annotated[
        str, typer.Option("--normalize", help="global: one mean and standard deviation; bin: one of each row.")
    ] = "global",
    parts: Annotated[
        str, typer.Option("--parts", help="Parts of the data set, comma separated.")
    ] = "curated,noisy",
    out: Annotated[
        Path | None,
        typer.Option("--out", dir_okay=False, help="Write the recipe with the measured values to this .toml file."),
    ] = None,
) -> None:
    """Measure the mean and standard deviation of a data set's spectrograms.

    The front end of a recipe normalizes by them. What the recipe leaves to the data, such as the rate of the front end,
    is decided from them.

    Example: fatai-submit stats DATA --out my.toml
    """
    from fatai.data.datasets.fat2019 import load_dataset
    from fatai.data.stats import data_stats
    from fatai.experiment.adapt import adapt_recipe
    from fatai.experiment.recipe import load_recipe
    from fatai.io.atomic import write_text

    loaded = load_recipe(recipe)
    if front_end is not None:
        loaded = loaded.with_front_end(name=front_end)
    dataset = load_dataset(data)
    loaded = adapt_recipe(loaded, dataset)
    settings = loaded.settings()
    measured = data_stats(
        dataset, settings.front_end, parts=[p.strip() for p in parts.split(",")], trim_db=settings.trim_db
    )
    values = measured.settings(normalize)
    if out is not None:
        write_text(out, loaded.with_front_end(**values).resolved())
        typer.echo(f"{out}: {loaded.name} with the statistics of {measured.frames} frames")
        return
    import tomli_w

    typer.echo(f"# of {measured.frames} frames; for the section [front_end] of a recipe")
    typer.echo(tomli_w.dumps({k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}), nl=False)


@app.command(rich_help_panel="Train")
def doctor(data: MaybeData = None, recipe: RecipeName = "default") -> None:
    """Print versions, device, decoders and workers of this machine, and problems. With DATA, profile an epoch.

    Example: fatai-submit doctor

    Times of an epoch, and advice to shorten it: fatai-submit doctor DATA
    """
    if data is not None:
        from fatai.diagnostics.profile import profile_step

        typer.echo(profile_step(data, recipe).to_text())
        return
    from fatai.diagnostics.environment import check_environment

    report = check_environment()
    typer.echo(report.to_text())
    if report.problems:
        raise typer.Exit(2)
