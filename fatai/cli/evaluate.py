"""Commands that score and calibrate predictions, average them, and check a submission."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fatai.cli.options import FinishedRun

__all__ = ["app"]

app = typer.Typer()


@app.command(rich_help_panel="Evaluate")
def score(
    predictions: Annotated[
        list[Path],
        typer.Argument(metavar="PREDICTIONS", help="A CSV of predictions or a run folder; or several run folders."),
    ],
    truth: Annotated[
        Path, typer.Option("--truth", help="CSV of fname and labels, or a column of 0 and 1 per tag; or data folder.")
    ],
    part: Annotated[
        str, typer.Option("--part", help="Part of a run that is scored: oof (out-of-fold predictions) or test.")
    ] = "oof",
    per_tag: Annotated[
        bool,
        typer.Option("--per-tag", help="Also print the lwlrap and the number of clips of every tag, lowest first."),
    ] = False,
) -> None:
    """Score predictions by lwlrap, or rank several runs on the same clips.

    1 is perfect; the interval is that of a bootstrap over clips. Several runs are printed as a table: lwlrap with
    intervals, paired differences from the best, time and parameters.

    Example: fatai-submit score runs/ninth --truth DATA/train_curated.csv --per-tag

    Several: fatai-submit score runs/* --truth DATA/train_curated.csv
    """
    from fatai.errors import OptionError

    if len(predictions) == 1:
        _score_one(predictions[0], truth, part, per_tag)
        return
    if per_tag:
        raise OptionError(f"--per-tag is given with {len(predictions)} runs; score one of them")
    from fatai.experiment.compare import compare_runs

    typer.echo(str(compare_runs(predictions, truth, part=part)))


def _score_one(path: Path, truth: Path, part: str, per_tag: bool) -> None:
    from fatai.cli.paths import part_path
    from fatai.errors import OptionError
    from fatai.inference.predictions import Predictions
    from fatai.metrics.classification import main_metric

    if part not in ("oof", "test"):
        raise OptionError(f"part is {part!r}; expected oof or test")
    # A run may have predicted some of the folds only.
    is_run = path.is_dir()
    predicted = Predictions.from_csv(part_path(path, f"{part}.csv"))
    metric = main_metric(len(predicted.tags))
    score = predicted.interval(truth, metric, partial=is_run)
    name = "lwlrap" if metric == "lwlrap" else "average precision (lwlrap is not applicable to one tag)"
    typer.echo(
        f"{name} {score.value:.4f}, {100 * score.confidence_level:g} % interval {score.low:.3f} to {score.high:.3f}"
    )
    if per_tag:
        for row in predicted.per_tag(truth, partial=is_run).itertuples():
            typer.echo(f"{row.lwlrap if metric == 'lwlrap' else row.ap:7.4f}  {int(row.clips):5d}  {row.tag}")


@app.command(rich_help_panel="Evaluate")
def calibrate(
    run: FinishedRun,
    truth: Annotated[
        Path, typer.Option("--truth", help="Labels of the training clips, such as DATA or DATA/train_curated.csv.")
    ],
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="platt (slope and shift of each tag's logit), temperature (slope alone), or shared (one slope and "
            "shift for all tags, as every run has it; lwlrap does not change).",
        ),
    ] = "platt",
    thresholds: Annotated[
        str | None,
        typer.Option(
            "--thresholds",
            help="Also find thresholds: half (0.5 before calibration), f1_shared (one for all tags, of the highest "
            "F1), f1_shrunk (one for each tag, near that of all where a tag has few clips), best (of these three the "
            "one with the highest F1 across folds, as every run has it), f1 (one for each tag), or a minimum precision "
            "such as 0.9.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", dir_okay=False, help="Picture of the calibration curves before and after."),
    ] = None,
) -> None:
    """Calibrate the probabilities of a run on its out-of-fold predictions.

    The result is written to RUN/calibration.json, in place of the one that the run ended with. The printed errors are
    cross-fitted: each fold is calibrated on the others. predict, tag and serve apply the calibration.

    Example: fatai-submit calibrate runs/ninth --truth DATA/train_curated.csv --plot reliability.png
    """
    from fatai.experiment.calibrate import calibrate_run

    result = calibrate_run(run, truth, method=method, thresholds=thresholds)
    for name, (before, after) in {"calibration error": result.errors, "lwlrap": result.scores}.items():
        typer.echo(f"{name} out of fold, {result.clips} clips: {before:.4f} before, {after:.4f} after")
    if result.f1 is not None:
        typer.echo(f"mean F1 out of fold: {result.f1.before:.4f} at 0.5, {result.f1.after:.4f} at the thresholds")
        if result.f1_of:
            typer.echo(f"thresholds: {result.criterion}; " + ", ".join(f"{k} {v:.4f}" for k, v in result.f1_of.items()))
    if plot is not None:
        result.draw(plot)
    typer.echo(f"{result.path}: {method}, {len(result.calibration.tags)} tags")


@app.command(rich_help_panel="Competition")
def ensemble(
    predictions: Annotated[
        list[Path],
        typer.Argument(metavar="PREDICTIONS", help="CSVs of predictions, or run folders, of which test.csv is read."),
    ],
    out: Annotated[Path, typer.Option("--out", dir_okay=False, help="CSV to write.")],
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="mean, gmean, rank_clip, rank_tag or minmax_tag; fitted to --truth: cobyla, forward, lwlrap_weights, "
            "rank_temperature, logreg or mlp.",
        ),
    ] = "mean",
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            help="One weight per input, comma separated: 2,1,1. Or lwlrap: the out-of-fold scores of the runs.",
        ),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(
            "--truth",
            help="Labels of the training clips: fitted methods need them and the runs' oof.csv; prints the scores.",
        ),
    ] = None,
    average: Annotated[
        str | None,
        typer.Option(
            "--average", help="Average that cobyla, forward and lwlrap_weights weight, such as gmean or rank_clip."
        ),
    ] = None,
    sample: Annotated[
        Path | None, typer.Option("--sample", help="Sample submission; the result has exactly its rows and columns.")
    ] = None,
) -> None:
    """Average predictions, or combine them by a fitted method.

    With --truth, print the out-of-fold lwlrap of each member and of the ensemble. The latter is nested: what is fitted
    to some folds is scored on another.

    Example: fatai-submit ensemble runs/* --method forward --truth DATA/train_curated.csv --out ensemble.csv
    """
    from fatai.io.lock import lock_output

    with lock_output(out):
        _write_ensemble(predictions, out, method, _parse_weights(weights), truth, average, sample)


def _write_ensemble(
    predictions: list[Path], out: Path, method: str, weights: list[float] | str | None, truth: Path | None,
    average: str | None, sample: Path | None,
) -> None:
    from fatai.ensemble.ensemble import ensemble_report

    if truth is None and average is None and sample is None and not isinstance(weights, str):
        n = _average_row_by_row(predictions, out, method, weights)
        if n is not None:
            typer.echo(f"{out}: {method} of {len(predictions)}, {n} clips")
            return
    options = {} if average is None else {"average": average}
    result = ensemble_report(predictions, method, weights, truth=truth, **options)
    if sample is None:
        result.predictions.to_csv(out)
    else:
        result.predictions.to_submission(out, sample=sample)
    if truth is not None:
        typer.echo(str(result))
    typer.echo(f"{out}: {method} of {len(predictions)}, {len(result.predictions.fnames)} clips")


def _parse_weights(text: str | None) -> list[float] | str | None:
    """Parse "2,1,1"; return the name of a rule, or None, as it is."""
    from fatai.ensemble.weight_search import WEIGHT_RULES
    from fatai.errors import OptionError

    if not text or text in WEIGHT_RULES:
        return text
    try:
        return [float(w) for w in text.split(",")]
    except ValueError:
        raise OptionError(
            f"--weights is {text!r}; expected numbers like 2,1,1: one for each of the inputs; or "
            f"{', '.join(WEIGHT_RULES)}"
        ) from None


def _average_row_by_row(predictions: list[Path], out: Path, method: str, weights: list[float] | None) -> int | None:
    """Average CSVs in constant memory; return the number of rows, or None if method or order of rows forbid it."""
    from fatai.cli.paths import part_path
    from fatai.ensemble.streaming import ROWWISE_AVERAGES, average_files
    from fatai.errors import SubmissionError

    if method not in ROWWISE_AVERAGES:
        return None
    try:
        return average_files([part_path(path, "test.csv") for path in predictions], out, method, weights)
    except SubmissionError:
        return None


@app.command(rich_help_panel="Competition")
def check(
    submission: Annotated[
        Path, typer.Argument(metavar="SUBMISSION", help="CSV to check: fname and one column per tag.")
    ],
    sample: Annotated[Path, typer.Option("--sample", help="Sample submission that it must fit.")],
    oof: Annotated[
        Path | None,
        typer.Option(
            "--oof",
            help="Out-of-fold predictions of the same model, or its run folder: compares the distributions.",
        ),
    ] = None,
) -> None:
    """Check that a submission fits the sample. Rows, columns, their order, finite values in [0, 1].

    Constant tags, many ties and, with --oof, test scores unlike the out-of-fold ones are warnings: the submission is
    valid all the same. fatai-submit score RUN --truth TRUTH estimates its lwlrap.

    Example: fatai-submit check runs/ninth/submission.csv --sample DATA/sample_submission.csv
    """
    import warnings

    from fatai.cli.paths import part_path
    from fatai.inference.predictions import Predictions, check_submission
    from fatai.inference.sanity_checks import sanity_warnings

    check_submission(submission, sample)
    typer.echo(f"{submission} is valid: it fits {sample}")
    known = None if oof is None else Predictions.from_csv(part_path(oof, "oof.csv"))
    for sentence in sanity_warnings(Predictions.from_csv(submission), known):
        warnings.warn(sentence, stacklevel=1)
