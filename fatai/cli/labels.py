"""Commands on labels that may be wrong: review label issues, select and relabel noisy clips."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fatai.cli.options import Data, FinishedRun, Host, Port, Predictions, RunData
from fatai.cli.serve import warn_if_public

__all__ = ["app"]

app = typer.Typer()


@app.command(rich_help_panel="Labels")
def review(
    run: FinishedRun,
    data: RunData = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="HTML page to write, or a .csv for a table of the label issues; by default RUN/review.html."
        ),
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve the page and save every decision at once, instead of writing a file.")
    ] = False,
    corrections: Annotated[
        Path | None,
        typer.Option(
            "--corrections",
            help="Corrections to continue with, and with --serve to write; by default RUN/corrections.csv.",
        ),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option(
            "-n", min=1, help="Maximum number of clips, the most doubtful first; by default 100 in a page, else all."
        ),
    ] = None,
    max_seconds: Annotated[
        float, typer.Option("--max-seconds", min=0.1, help="Seconds of each clip that are embedded in a page.")
    ] = 10.0,
    predictions: Predictions = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
) -> None:
    """Review clips whose labels look wrong or missing, and keep, relabel or remove them.

    The result is corrections.csv: fatai-submit run DATA --corrections corrections.csv trains with it. With --out
    issues.csv, write the label issues as a table instead, the most doubtful first.

    Example: fatai-submit review runs/demo --serve
    """
    corrections = corrections or run / "corrections.csv"
    if serve:
        _serve_review(run, data, corrections, n, predictions, host, port)
    elif out is not None and out.suffix == ".csv":
        _write_issues(run, data, out, n, predictions)
    else:
        _write_page(run, data, out or run / "review.html", corrections, n or 100, max_seconds, predictions)


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
    out: Annotated[Path, typer.Option("--out", help="CSV of fname and labels to write.")],
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
