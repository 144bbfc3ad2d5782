"""Commands of the label loop: index sounds, find windows of them, convert and merge labels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fatai.cli.options import Channel, Device, InputList, ModelFold, StepS, Strict, Threads, exit_if_unreadable

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from fatai.inference.search.index import SoundIndex

__all__ = ["app", "example_features"]

app = typer.Typer()

Index = Annotated[Path, typer.Argument(metavar="INDEX", help="Folder that fatai-submit index wrote.")]


@app.command(rich_help_panel="Labels")
def index(
    network: Annotated[
        str,
        typer.Argument(
            metavar="NETWORK",
            help="A run folder, an exported model, or published weights by name, such as mn04 (list: fatai-submit "
            "weights).",
        ),
    ],
    sounds: Annotated[
        list[Path] | None, typer.Argument(metavar="SOUND", help="Sound files of any length, or folders of them.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", file_okay=False, help="Folder of the index: new, or one to add sounds to.")
    ] = Path("index"),
    weights: Annotated[
        Path | None, typer.Option("--weights", help="File of the published weights, if it is not in the cache.")
    ] = None,
    fold: ModelFold = 0,
    window_s: Annotated[
        float | None,
        typer.Option("--window-s", help="Seconds of a window; by default the crop of the run, or 5 with weights."),
    ] = None,
    step_s: StepS = None,
    channel: Channel = None,
    input_list: InputList = None,
    threads: Threads = None,
    device: Device = None,
    strict: Strict = False,
) -> None:
    """Index recordings of any length, for fatai-submit find and review.

    The features of their windows by a frozen network go into a folder. If the command is stopped, the same command
    continues; with other sounds it adds them.

    Example: fatai-submit index mn04 recordings/ --out index
    """
    from fatai.cli.paths import check_one_input, read_sound_list, sound_files
    from fatai.experiment.encoder import load_encoder
    from fatai.inference.search.index import SoundIndex, index_sounds
    from fatai.inference.search.ranking import APPROXIMATE_WINDOWS
    from fatai.models.base import count_parameters
    from fatai.threads import network_threads

    sounds = sounds or []
    check_one_input(sounds, input_list)
    named = read_sound_list(input_list) if input_list is not None else sound_files(sounds)
    encoder, source = load_encoder(network, weights=weights, fold=fold, window_s=window_s, channel=channel)
    with network_threads(count_parameters(encoder.model)):
        result = index_sounds(out, encoder, [path for _, path in named], source=source, step_s=step_s)
    built = SoundIndex(out)
    known = f", {result.skipped} were there already" if result.skipped else ""
    silent = f", {result.silent} silent windows left out" if result.silent else ""
    typer.echo(
        f"{out}: {result.windows} windows of {result.sounds} sounds added{known}{silent}; it has {len(built)} windows "
        f"of {built.settings.window_s:g} s"
    )
    if len(built) >= APPROXIMATE_WINDOWS:
        _build_vectors(built)
    exit_if_unreadable(strict and len(result.errors))


def _build_vectors(index: SoundIndex) -> None:
    """Write the approximate index, or name the package that it needs."""
    from fatai.errors import MissingDependencyError
    from fatai.inference.search.ranking import build_vectors

    try:
        build_vectors(index)
    except MissingDependencyError as e:
        typer.echo(str(e), err=True)


@app.command(rich_help_panel="Labels")
def find(
    index: Index,
    example: Annotated[
        Path | None, typer.Argument(metavar="EXAMPLE", help="A sound file: the most similar windows are listed.")
    ] = None,
    tag: Annotated[
        str | None,
        typer.Option(
            "--tag",
            help="List the windows that most likely have this tag: by the answers in --labels, or else by the network.",
        ),
    ] = None,
    uncertain: Annotated[
        bool,
        typer.Option("--uncertain", help="List the windows whose probability (of --tag, or of any tag) is near 0.5."),
    ] = False,
    labels: Annotated[
        Path | None, typer.Option("--labels", help="Labels of windows; by default INDEX/labels.csv, if it exists.")
    ] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Number of windows.")] = 20,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", dir_okay=False,
            help="File to write: .csv, .json, or .html, a page with players and spectrograms.",
        ),
    ] = None,
    overlapping: Annotated[
        bool, typer.Option("--overlapping", help="List also windows that overlap a better one.")
    ] = False,
    with_example: Annotated[
        bool, typer.Option("--with-example", help="List also windows of EXAMPLE itself, where the index has it.")
    ] = False,
) -> None:
    """Find the windows of an index that are most similar to a sound, most likely of a tag, or most uncertain.

    Where the index has that sound, or a copy of it, their windows are left out.

    Example: fatai-submit find index rooster.wav --out found.html
    """
    from fatai.errors import OptionError
    from fatai.inference.search.index import SoundIndex

    opened = SoundIndex(index)
    if example is not None and (tag is not None or uncertain) or example is None and tag is None and not uncertain:
        raise OptionError("expected either a sound to search for, or --tag, or --uncertain (with or without --tag)")
    if example is not None:
        if labels is not None:
            raise OptionError("--labels is for --tag and --uncertain; expected no labels in a search by a sound")
        table = _similar(opened, example, n, overlapping, with_example)
        title = f"Windows similar to {example.name}"
        score = "highest cosine similarity with a window of that sound, -1 to 1"
    else:
        if with_example:
            raise OptionError("--with-example is for a search by a sound; give the EXAMPLE, or leave the option out")
        table, source = _ranked(opened, tag, uncertain, labels, n, overlapping)
        title = f"Windows uncertain for {tag or 'any tag'}" if uncertain else f"Windows likely to be {tag}"
        score = "uncertainty, 1 at a probability of 0.5 and 0 at 0 and 1," if uncertain else f"probability of {tag}"
        score = f"{score} by {source}"
    _write_windows(table, title, f"The score is the {score}.", index, out)


def example_features(index: SoundIndex, example: Path) -> np.ndarray:
    """Return the features (windows, features) of a sound by the network of an index.

    Raises
    ------
    DataError
        If the network has changed since the index was made.
    """
    from fatai.errors import DataError
    from fatai.experiment.encoder import load_encoder

    source = index.settings.source
    if not source:
        raise DataError(f"{index.folder} does not name its network, so sounds cannot be compared with it")
    encoder, _ = load_encoder(**source)
    if encoder.digest() != index.settings.network:
        raise DataError(
            f"the network {source['network']} has changed since {index.folder} was made; make a new index"
        )
    return encoder.encode_sound(example).features


def _similar(index: SoundIndex, example: Path, n: int, overlapping: bool, with_example: bool) -> pd.DataFrame:
    from fatai.inference.search.ranking import similar_windows

    features = example_features(index, example)
    exclude = [] if with_example else _own_windows(index, example)
    if exclude:
        windows = f"{len(exclude)} window{'s' * (len(exclude) > 1)}"
        typer.echo(f"{windows} of the example itself left out; --with-example lists them", err=True)
    ranked = similar_windows(index, features, n, exclude=exclude, overlapping=overlapping)
    return index.table(ranked.rows).assign(score=ranked.scores)


def _own_windows(index: SoundIndex, example: Path) -> list[int]:
    """Return the rows of the windows of an example and of its copies, byte for byte."""
    import numpy as np

    from fatai.data.copies import sound_groups

    path, size = os.path.abspath(example), example.stat().st_size
    # Only files of its size are read.
    found = [k for k, other in enumerate(index.paths) if other == path or index.sounds[other].n_bytes == size]
    group, *groups = sound_groups([path, *(index.paths[k] for k in found)])
    own = [k for k, other in zip(found, groups, strict=True) if other == group]
    rows: list[int] = np.flatnonzero(np.isin(index.file, own)).tolist()
    return rows


def _ranked(
    index: SoundIndex, tag: str | None, uncertain: bool, labels: Path | None, n: int, overlapping: bool
) -> tuple[pd.DataFrame, str]:
    """Return the likely or uncertain windows by a probe on the labels, or else by the network, and by which.

    `labels` None is the index's own labels.csv, if there is one.
    """
    from fatai.errors import DataError, OptionError
    from fatai.inference.search.labels import label_windows, read_window_labels
    from fatai.inference.search.questions import fit_probe
    from fatai.inference.search.ranking import likely_windows, rank_windows, uncertain_windows, uncertainty

    options: dict[str, Any] = {"overlapping": overlapping}
    file = labels or index.folder / "labels.csv"
    labeled = label_windows(index, read_window_labels(file)) if labels is not None or file.is_file() else None
    probe = None if labeled is None else fit_probe(index, labeled, tags=None if tag is None else [tag], holdout=0)
    if probe is not None:
        def score(features: np.ndarray) -> np.ndarray:
            probs = probe.probe.probs(features)
            return (uncertainty(probs) if uncertain else probs).max(axis=1)

        ranked = rank_windows(index, score, n, **options)
    elif tag is not None and not uncertain:
        if tag not in index.tags and labeled is not None and tag in labeled.tags:
            raise DataError(f"{file} has no windows both with and without the tag {tag}; expected at least one each")
        ranked = likely_windows(index, tag, n, **options)
    elif tag is None:
        ranked = uncertain_windows(index, n, **options)
    elif tag in index.tags:
        column = index.tags.index(tag)
        ranked = rank_windows(index, lambda probs: uncertainty(probs[:, column]), n, name="probs", **options)
    else:
        raise OptionError(f"neither the network of {index.folder} nor {file} has the tag {tag!r}")
    source = "the network of the index" if probe is None else f"a logistic regression on the labels in {file}"
    return index.table(ranked.rows).assign(score=ranked.scores), source


def _write_windows(table: pd.DataFrame, title: str, score: str, index: Path, out: Path | None) -> None:
    """Write windows as .csv, .json or .html, or print them."""
    from fatai.errors import OptionError
    from fatai.io.atomic import write_text

    table = table.assign(score=table["score"].round(4))
    if out is None:
        typer.echo(f"{title}. {score}", err=True)
        for row in table.itertuples():
            typer.echo(f"{row.score:.3f}  {row.start:.2f} to {row.end:.2f} s  {row.file}")
        return
    if out.suffix == ".csv":
        write_text(out, table.to_csv(index=False, lineterminator="\n"))
    elif out.suffix == ".json":
        write_text(out, table.to_json(orient="records", indent=1, force_ascii=False) + "\n")
    elif out.suffix == ".html":
        from fatai.report.window_page import write_window_page

        write_window_page(out, title, table, [f"{len(table)} windows of {index}, the best first. {score}"])
    else:
        raise OptionError(f"--out is {out}; expected a name that ends in .csv, .json or .html")
    typer.echo(f"{out}: {len(table)} windows. {score}")


@app.command(rich_help_panel="Labels")
def labels(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE",
            help="Labels of windows: labels.csv of review, selection tables of Raven, label tracks of Audacity, JSON "
            "of Label Studio, one-hot clips of OpenSoundscape, or a table of sounds.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="File to write; for raven and audacity a folder.")
    ] = Path("labels.csv"),
    format_: Annotated[
        str, typer.Option("--format", help="csv, raven, audacity, label-studio or opensoundscape.")
    ] = "csv",
    conflicts: Annotated[
        Path | None,
        typer.Option("--conflicts", dir_okay=False, help="CSV to write of the windows that users do not agree on."),
    ] = None,
) -> None:
    """Merge the labels of several users, and convert them from and to other programs.

    A tag that one user found present and another absent in the same window is left out of it, and listed.

    Example: fatai-submit labels anna.csv ben.csv --out labels.csv --conflicts conflicts.csv
    """
    from fatai.inference.search.label_formats import read_label_file, write_label_files
    from fatai.inference.search.labels import merge_labels
    from fatai.io.atomic import write_text

    tables = []
    for file in files:
        table = read_label_file(file)
        tables.append(table.assign(user=[user or file.stem for user in table["user"]]))
    merged = merge_labels(tables)
    write_label_files(merged.table, out, format_)
    typer.echo(f"{out}: {len(merged.table)} windows with labels of {len(files)} file{'s' if len(files) > 1 else ''}")
    if conflicts is not None:
        write_text(conflicts, merged.conflicts.to_csv(index=False, lineterminator="\n"))
    if len(merged.conflicts):
        listed = f"listed in {conflicts}" if conflicts is not None else "list them with --conflicts"
        typer.echo(f"{len(merged.conflicts)} tags of windows are left out, since users do not agree: {listed}")
