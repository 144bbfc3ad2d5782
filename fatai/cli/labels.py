"""Commands on labels that may be wrong: review label issues, select and relabel noisy clips."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fatai.cli.options import Data, Host, Port, Predictions, RunData
from fatai.cli.serve import warn_if_public

__all__ = ["app"]

app = typer.Typer()


@app.command(rich_help_panel="Labels")
def review(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a finished run, or an index that fatai-submit index wrote.")
    ],
    data: RunData = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", dir_okay=False,
            help="HTML page to write, or a .csv for a table of the label issues; by default RUN/review.html.",
        ),
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve the page and save every decision at once, instead of writing a file.")
    ] = False,
    corrections: Annotated[
        Path | None,
        typer.Option(
            "--corrections", dir_okay=False,
            help="Corrections to continue with, and with --serve to write; by default RUN/corrections.csv.",
        ),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option(
            "-n",
            min=1,
            help="Maximum number of clips, the most suspect first; by default 100 in a page, else all. For an index: "
            "windows to ask about at a time, by default 20.",
        ),
    ] = None,
    max_seconds: Annotated[
        float, typer.Option("--max-seconds", min=0.1, help="Seconds of each clip that are embedded in a page.")
    ] = 10.0,
    predictions: Predictions = None,
    tag: Annotated[str | None, typer.Option("--tag", help="For an index: the tag to ask about.")] = None,
    example: Annotated[
        Path | None, typer.Option("--example", help="For an index: a sound that has the tag, to begin with.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels", dir_okay=False,
            help="For an index: labels to continue and with --serve to write; by default INDEX/labels.csv.",
        ),
    ] = None,
    user: Annotated[str, typer.Option("--user", help="For an index: your name, written to each label.")] = "",
    holdout: Annotated[
        float,
        typer.Option(
            "--holdout",
            min=0,
            max=0.9,
            help="For an index: fraction of sounds, and of questions, that are for the score alone.",
        ),
    ] = 0.2,
    host: Host = "127.0.0.1",
    port: Port = 8000,
) -> None:
    """Review clips whose labels look wrong or missing, or windows of an index that may have a tag.

    For a run, keep, relabel or remove clips: fatai-submit run DATA --corrections corrections.csv trains with the
    result. With --out issues.csv, write the label issues as a table instead, the most suspect first.

    For an index, answer whether windows have --tag, and train on the answers from the page. The result is labels.csv:
    fatai-submit run labels.csv trains on it, too.

    Example: fatai-submit review runs/demo --serve

    Example: fatai-submit review index --tag Rooster --example rooster.wav --serve
    """
    from fatai.errors import OptionError
    from fatai.inference.search.index import is_sound_index

    if is_sound_index(run):
        _refuse(
            {"--data": data, "--corrections": corrections, "--predictions": predictions},
            f"is for a run, and {run} is an index; expected --tag, and maybe --example and --labels",
        )
        if out is not None and out.suffix == ".csv":
            raise OptionError(f"--out is {out}; expected an .html page for an index, whose answers go to --labels")
        _review_windows(run, tag, example, labels or run / "labels.csv", user, holdout, n or 20, out, serve, host, port)
        return
    _refuse(
        {"--tag": tag, "--example": example, "--labels": labels},
        f"is for an index, and {run} is none; make one with fatai-submit index",
    )
    corrections = corrections or run / "corrections.csv"
    if serve:
        _serve_review(run, data, corrections, n, predictions, host, port)
    elif out is not None and out.suffix == ".csv":
        _write_issues(run, data, out, n, predictions)
    else:
        _write_page(run, data, out or run / "review.html", corrections, n or 100, max_seconds, predictions)


def _refuse(options: dict[str, object], why: str) -> None:
    """Raise `OptionError` if one of some options is given."""
    from fatai.errors import OptionError

    for option, value in options.items():
        if value is not None:
            raise OptionError(f"{option} {why}")


def _review_windows(
    folder: Path, tag: str | None, example: Path | None, labels: Path, user: str, holdout: float, n: int,
    out: Path | None, serve: bool, host: str, port: int,
) -> None:
    from fatai.cli.index import example_features
    from fatai.errors import OptionError
    from fatai.inference.search.index import SoundIndex
    from fatai.inference.search.label_loop import LabelLoop
    from fatai.report.window_review import WindowReview, write_window_review
    from fatai.web.label_loop_app import label_loop_app
    from fatai.web.server import serve as serve_app

    if tag is None:
        raise OptionError(f"{folder} is an index; expected the tag to ask about, such as --tag Rooster")
    index = SoundIndex(folder)
    features = None if example is None else example_features(index, example)
    loop = LabelLoop(index, tag, labels, examples=features, holdout=holdout, user=user)
    review = WindowReview(loop, n)
    if serve:
        warn_if_public(host)
        serve_app(
            label_loop_app(review), host, port, log=lambda address: typer.echo(f"answers to {labels}: {address}")
        )
        return
    page = out or folder / "review.html"
    write_window_review(review, page)
    typer.echo(f"{page}: {len(review.questions)} windows, {page.stat().st_size / 1e6:.1f} MB")


def _serve_review(
    run: Path, data: Path | None, corrections: Path, n: int | None, predictions: Path | None, host: str, port: int
) -> None:
    from fatai.report.label_review import load_review
    from fatai.web.review_app import review_app
    from fatai.web.server import serve as serve_app

    found = load_review(run, data, predictions=predictions, n=n)
    review = review_app(found, corrections)
    warn_if_public(host)
    serve_app(
        review, host, port, log=lambda address: typer.echo(f"{len(found.clips)} clips to {corrections}: {address}")
    )


def _write_issues(run: Path, data: Path | None, out: Path, n: int | None, predictions: Path | None) -> None:
    from fatai.io.atomic import write_text
    from fatai.report.label_review import label_issues_of_run

    found = label_issues_of_run(run, data, predictions=predictions, n=n)
    write_text(out, found.issues.to_csv(index=False, lineterminator="\n"))
    typer.echo(f"{out}: {len(found.issues)} label issues in {found.n_clips} clips")


def _write_page(
    run: Path, data: Path | None, out: Path, corrections: Path, n: int, max_seconds: float, predictions: Path | None
) -> None:
    from fatai.report.label_review import write_review

    written = write_review(run, out, data, corrections=corrections, n=n, max_s=max_seconds, predictions=predictions)
    megabytes = out.stat().st_size / 1e6
    typer.echo(f"{out}: {len(written.clips)} clips, {len(written.issues)} label issues, {megabytes:.1f} MB")


@app.command(rich_help_panel="Labels")
def relabel(
    data: Data,
    predictions: Annotated[
        Path, typer.Option("--predictions", help="CSV of predictions for the noisy clips: fname, a column per tag.")
    ],
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="Method, such as fullmatch, scoring_1000 (keep 1,000 clips) or relabelall_1.2 (1.2 tags a clip).",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", dir_okay=False, help="CSV of fname and labels to write.")],
    corrections: Annotated[
        bool, typer.Option("--corrections", help="Write only what differs, for run --corrections.")
    ] = False,
    out_of_fold: Annotated[
        bool, typer.Option("--out-of-fold", help="Declare that no model predicted a noisy clip that it was trained on.")
    ] = False,
) -> None:
    """Select and relabel noisy clips by the predictions of a model.

    The model must not have been trained on them: train on the curated part, then predict DATA/train_noisy. The methods
    are the registry NOISY of the documentation; a number at the end is their parameter.

    Example: fatai-submit relabel DATA --predictions noisy.csv --method scoring_1000 --out train_noisy_relabelled.csv
    """
    from fatai.data.datasets.fat2019 import load_dataset, noisy_clip_names
    from fatai.errors import DataError
    from fatai.inference.predictions import Predictions
    from fatai.noisy_labels.io import write_corrections, write_labels
    from fatai.noisy_labels.methods import select_noisy_labels

    dataset = load_dataset(data)
    if dataset.noisy is None:
        raise DataError(f"{data} has no noisy part; expected train_noisy.csv and train_noisy/")
    predicted = Predictions.from_csv(predictions)
    predicted = predicted.select(predicted.fnames, dataset.tags)
    selected = select_noisy_labels(
        dataset.noisy.assign(fname=noisy_clip_names(dataset)) if corrections else dataset.noisy,
        dataset.tags,
        method,
        probs=predicted.probs,
        fnames=predicted.fnames,
        trained_on=dataset.curated["path"],
        out_of_fold=out_of_fold,
    )
    (write_corrections if corrections else write_labels)(selected, out)
    typer.echo(f"{out}: {selected}")
