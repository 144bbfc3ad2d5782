"""Commands that make one prediction of several, check it, score it and calibrate its run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

__all__ = ["app"]

app = typer.Typer()


@app.command()
def ensemble(
    predictions: Annotated[
        list[Path],
        typer.Argument(metavar="PREDICTIONS", help="CSVs of predictions, or run folders (their test.csv is taken)."),
    ],
    out: Annotated[Path, typer.Option("--out", help="CSV to write.")],
    how: Annotated[
        str,
        typer.Option(
            help="How they become one: mean, gmean, rank_clip, rank_tag, minmax_tag; learnt with --truth: cobyla, forward, lwlrap_weights, "
            "rank_temperature, logreg, mlp."
        ),
    ] = "mean",
    weights: Annotated[
        Optional[str],
        typer.Option(help="A weight for each, comma separated: 2,1,1. Or lwlrap: by the runs' out-of-fold score."),
    ] = None,
    truth: Annotated[
        Optional[Path],
        typer.Option(
            "--truth",
            help="Labels of the training clips: judges the runs' oof.csv and the blend, and is what learnt blends learn from.",
        ),
    ] = None,
    of: Annotated[
        Optional[str],
        typer.Option(
            "--of",
            help="For cobyla, forward and lwlrap_weights: the blend whose weights are found, such as gmean or rank_clip.",
        ),
    ] = None,
    sample: Annotated[
        Optional[Path], typer.Option(help="Sample submission; the result has exactly its rows and columns.")
    ] = None,
) -> None:
    """Make one prediction of several. With --truth tell how good it is: lwlrap out of fold, of each member and of the blend.

    The blend's is nested: what it learnt from some folds is scored on another.

    Example: fatai-submit ensemble runs/* --how forward --truth DATA/train_curated.csv --out blend.csv
    """
    from fatai.errors import OptionError
    from fatai.ensemble.ensemble import ensemble_report
    from fatai.ensemble.weight_search import WEIGHT_RULES

    shares: list[float] | str | None
    try:
        shares = [float(w) for w in weights.split(",")] if weights and weights not in WEIGHT_RULES else weights
    except ValueError:
        raise OptionError(
            f"--weights is {weights!r}; expected numbers like 2,1,1: one for each of the inputs; or {', '.join(WEIGHT_RULES)}"
        ) from None
    if truth is None and of is None and sample is None and not isinstance(shares, str):
        n = _row_by_row(predictions, out, how, shares)
        if n is not None:
            typer.echo(f"{out}: {how} of {len(predictions)}, {n} clips")
            return
    blended = ensemble_report(predictions, how, shares, truth=truth, **({} if of is None else {"average": of}))
    if sample is None:
        blended.predictions.to_csv(out)
    else:
        blended.predictions.to_submission(out, sample=sample)
    if truth is not None:
        typer.echo(str(blended))
    typer.echo(f"{out}: {how} of {len(predictions)}, {len(blended.predictions.fnames)} clips")


def _row_by_row(predictions: list[Path], out: Path, how: str, weights: list[float] | None) -> int | None:
    """Averager in the memory of some rows, however many there are; None if that can't be, because rows or columns are in other orders."""
    from fatai.errors import SubmissionError
    from fatai.ensemble.streaming import ROWWISE_AVERAGES, average_files

    if how not in ROWWISE_AVERAGES:
        return None
    try:
        return average_files([_part(path, "test.csv") for path in predictions], out, how, weights)
    except SubmissionError:
        return None


@app.command()
def check(
    submission: Annotated[
        Path, typer.Argument(metavar="SUBMISSION", help="CSV to check: fname and one column per tag.")
    ],
    sample: Annotated[Path, typer.Option("--sample", help="Sample submission that it must fit.")],
    oof: Annotated[
        Optional[Path],
        typer.Option(
            "--oof",
            help="Out-of-fold predictions of the same model, or its run folder: are the test scores distributed like them?",
        ),
    ] = None,
    truth: Annotated[
        Optional[Path], typer.Option("--truth", help="Labels of the clips of --oof: estimates the lwlrap.")
    ] = None,
) -> None:
    """Check that a submission fits the sample. Rows, columns, their order, finite values in [0, 1]; and warn of what looks wrong.

    Constant tags, many ties, and with --oof test scores unlike the out-of-fold ones are warnings: the submission may be sent all the same.

    Example: fatai-submit check runs/ninth/submission.csv --sample DATA/sample_submission.csv
    """
    import warnings

    from fatai.errors import OptionError
    from fatai.inference.sanity_checks import sanity_warnings
    from fatai.inference.predictions import Predictions, check_submission

    if truth is not None and oof is None:
        raise OptionError(
            "--truth is given without --oof; pass the out-of-fold predictions that it belongs to, such as --oof runs/ninth"
        )
    check_submission(submission, sample)
    typer.echo(f"{submission} is fine: it fits {sample}")
    oof_score = None if oof is None else Predictions.from_csv(_part(oof, "oof.csv"))
    for sentence in sanity_warnings(Predictions.from_csv(submission), oof_score):
        warnings.warn(sentence, stacklevel=1)
    if oof_score is not None and truth is not None:
        typer.echo(f"lwlrap out of fold, an estimate for the test clips: {oof_score.interval(truth, partial=True)}")


@app.command()
def score(
    predictions: Annotated[
        Path, typer.Argument(metavar="PREDICTIONS", help="CSV of predictions: fname and one column per tag.")
    ],
    truth: Annotated[
        Path, typer.Argument(metavar="TRUTH", help="CSV of fname and labels, or of fname and one 0/1 column per tag.")
    ],
    per_tag: Annotated[
        bool, typer.Option("--per-tag", help="Also print every tag's lwlrap and its number of clips, worst first.")
    ] = False,
) -> None:
    """Score predictions against the truth: lwlrap. It says how well the right tags of each clip are ranked; 1 is perfect.

    Example: fatai-submit score runs/ninth/oof.csv DATA/train_curated.csv --per-tag
    """
    from fatai.inference.predictions import Predictions

    predicted = Predictions.from_csv(predictions)
    typer.echo(f"lwlrap {predicted.score(truth):.4f}")
    if per_tag:
        for row in predicted.per_tag(truth).itertuples():
            typer.echo(f"{row.lwlrap:7.4f}  {int(row.clips):5d}  {row.tag}")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of finished runs.")],
    truth: Annotated[
        Path, typer.Option("--truth", help="Labels of the clips: DATA/train_curated.csv, or those of the test part.")
    ],
    part: Annotated[str, typer.Option(help="What is scored: oof (the clips held out in training) or test.")] = "oof",
) -> None:
    """Rank runs by lwlrap on the same clips. With intervals, paired differences from the best, time and parameters.

    Example: fatai-submit compare runs/* --truth DATA/train_curated.csv
    """
    from fatai.experiment.compare import compare_runs

    typer.echo(str(compare_runs(runs, truth, part=part)))


@app.command()
def calibrate(
    run_folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a finished run; its oof.csv is fitted on.")
    ],
    truth: Annotated[
        Path, typer.Option("--truth", help="Labels of the training clips, such as DATA/train_curated.csv.")
    ],
    how: Annotated[
        str, typer.Option(help="platt (slope and shift of each tag's logit) or temperature (slope alone).")
    ] = "platt",
    thresholds: Annotated[
        Optional[str],
        typer.Option(
            help="Also find, for each tag, the probability from which it is there: f1 (the best F1), or a precision such as 0.9."
        ),
    ] = None,
    plot: Annotated[
        Optional[Path], typer.Option("--plot", help="Picture of what was said and what happened, before and after.")
    ] = None,
) -> None:
    """Make a run's probabilities mean what they say. Each tag is fitted to what was seen out of fold; calibration.json keeps that.

    The errors told, of calibration, are cross-fitted: each fold is calibrated by the others. predict, tag and serve apply the result with
    --calibrated.

    Example: fatai-submit calibrate runs/ninth --truth DATA/train_curated.csv --plot reliability.png
    """
    from fatai.experiment.calibrate import calibrate_run

    found = calibrate_run(run_folder, truth, how=how, thresholds=thresholds)
    for name, (before, after) in {"calibration error": found.errors, "lwlrap": found.scores}.items():
        typer.echo(f"{name} out of fold, {found.clips} clips: {before:.4f} before, {after:.4f} after")
    if plot is not None:
        found.draw(plot)
    typer.echo(f"{found.path}: {how}, {len(found.calibration.tags)} tags")


def _part(path: Path, name: str) -> Path:
    """A file, or that of a run folder."""
    return path / name if path.is_dir() else path
