"""Commands that make one prediction of several, check it and score it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

__all__ = ["app"]

app = typer.Typer()


@app.command()
def ensemble(
    predictions: Annotated[list[Path], typer.Argument(help="Prediction CSVs, or run folders (their test.csv is taken).")],
    out: Annotated[Path, typer.Option("--out", help="CSV to write.")],
    how: Annotated[str, typer.Option(help="How they become one: mean, gmean, rank_clip, rank_tag, minmax_tag.")] = "mean",
    weights: Annotated[Optional[str], typer.Option(help="A weight for each, comma separated: 2,1,1.")] = None,
    sample: Annotated[Optional[Path], typer.Option(help="Sample submission; the result has exactly its rows and columns.")] = None,
) -> None:
    """Make one prediction of several.

    Example: fatai-submit ensemble runs/* --how mean --sample DATA/sample_submission.csv --out submission.csv
    """
    from fatai.errors import OptionError
    from fatai.infer.ensemble import ensemble as blend

    try:
        shares = [float(w) for w in weights.split(",")] if weights else None
    except ValueError:
        raise OptionError(f"--weights is {weights!r}; expected numbers like 2,1,1: one for each of the inputs") from None
    blended = blend([p / "test.csv" if p.is_dir() else p for p in predictions], how=how, weights=shares)
    if sample is None:
        blended.to_csv(out)
    else:
        blended.to_submission(out, sample=sample)
    typer.echo(f"{out}: {how} of {len(predictions)}, {len(blended.fnames)} clips, {len(blended.tags)} tags")


@app.command()
def check(
    submission: Annotated[Path, typer.Argument(help="Submission CSV.")],
    sample: Annotated[Path, typer.Option("--sample", help="Sample submission that it must fit.")],
) -> None:
    """Check a submission against the sample: rows, columns, their order, finite values in [0, 1].

    Example: fatai-submit check runs/ninth/submission.csv --sample DATA/sample_submission.csv
    """
    from fatai.infer.predictions import check_submission

    check_submission(submission, sample)
    typer.echo(f"{submission} is fine: it fits {sample}")


@app.command()
def score(
    predictions: Annotated[Path, typer.Argument(help="Prediction CSV: fname and one column per tag.")],
    truth: Annotated[Path, typer.Argument(help="CSV of fname and labels, or of fname and one 0/1 column per tag.")],
    per_tag: Annotated[bool, typer.Option("--per-tag", help="Also print every tag's lwlrap and its number of clips, worst first.")] = False,
) -> None:
    """Score predictions against the truth: lwlrap.

    Example: fatai-submit score runs/ninth/oof.csv DATA/train_curated.csv --per-tag
    """
    from fatai.infer.predictions import Predictions

    predicted = Predictions.from_csv(predictions)
    typer.echo(f"lwlrap {predicted.score(truth):.4f}")
    if per_tag:
        for row in predicted.per_tag(truth).itertuples():
            typer.echo(f"{row.lwlrap:7.4f}  {int(row.clips):5d}  {row.tag}")
