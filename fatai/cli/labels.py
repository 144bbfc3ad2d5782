"""Commands on labels that may be wrong: choose and relabel noisy clips, list suspects."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from fatai.cli.options import Data

__all__ = ["app"]

app = typer.Typer()


@app.command()
def relabel(
    data: Data,
    predictions: Annotated[
        Path, typer.Option("--predictions", help="CSV of predictions for the noisy clips: fname, a column per tag.")
    ],
    mode: Annotated[
        str,
        typer.Option(
            help="Method, such as ninth, gold, fullmatch, scoring_1000 (keep 1,000 clips) or relabelall_1.2 (1.2 tags a clip)."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="CSV of fname and labels to write.")],
    corrections: Annotated[
        bool, typer.Option("--corrections", help="Write only what differs, for run --corrections.")
    ] = False,
    out_of_fold: Annotated[
        bool, typer.Option("--out-of-fold", help="Say that no model predicted a noisy clip it trained on.")
    ] = False,
) -> None:
    """Choose and relabel noisy clips by a model's opinion.

    The model must not have trained on them: train on the curated part, then predict DATA/train_noisy. The methods are those of NOISY in
    the documentation; a number behind one is yours.

    Example: fatai-submit relabel DATA --predictions noisy.csv --mode scoring_1000 --out train_noisy_relabelled.csv
    """
    from fatai.data.datasets.fat2019 import load_dataset
    from fatai.errors import DataError
    from fatai.inference.predictions import Predictions
    from fatai.noisy_labels.io import write_corrections, write_labels
    from fatai.noisy_labels.methods import select_noisy_labels

    layout = load_dataset(data)
    if layout.noisy is None:
        raise DataError(f"{data} has no noisy part; expected train_noisy.csv and train_noisy/")
    predicted = Predictions.from_csv(predictions)
    predicted = predicted.select(predicted.fnames, layout.tags)
    chosen = select_noisy_labels(
        layout.noisy,
        layout.tags,
        mode,
        probs=predicted.probs,
        fnames=predicted.fnames,
        trained_on=layout.curated["fname"],
        out_of_fold=out_of_fold,
    )
    (write_corrections if corrections else write_labels)(chosen, out)
    typer.echo(f"{out}: {chosen}")


@app.command()
def suspects(
    run_folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a finished run; its out-of-fold predictions judge.")
    ],
    labels: Annotated[
        Path, typer.Option("--labels", help="The CSV of labels in doubt, such as DATA/train_curated.csv.")
    ],
    out: Annotated[
        Optional[Path], typer.Option("--out", help="CSV to write; without it the first ones are printed.")
    ] = None,
    per_clip: Annotated[bool, typer.Option("--per-clip", help="Name each clip once.")] = False,
    n: Annotated[int, typer.Option("-n", help="How many are printed.")] = 30,
    predictions: Annotated[
        Optional[Path], typer.Option("--predictions", help="Judge by this CSV instead of RUN/oof.csv.")
    ] = None,
) -> None:
    """List clips whose labels look wrong or missing. The most suspect come first.

    Example: fatai-submit suspects runs/ninth --labels DATA/train_curated.csv --out suspects.csv
    """
    from fatai.io.atomic import write_text
    from fatai.inference.predictions import Predictions
    from fatai.inference.ground_truth import read_truth
    from fatai.noisy_labels.label_issues import find_label_issues as find

    judge = Predictions.from_csv(predictions or run_folder / "oof.csv")
    both = judge.align_with(labels, partial=True)
    known = read_truth(labels, judge.tags)
    fnames = [fname for fname in judge.fnames if fname in known]
    found = find(both.probs, both.targ, judge.tags, fnames, per_clip=per_clip, trained_on=fnames, out_of_fold=True)
    if out is not None:
        write_text(out, found.to_csv(index=False, lineterminator="\n"))
        typer.echo(f"{out}: {len(found)} suspects among {len(fnames)} clips")
        return
    for row in found.head(n).itertuples():
        instead = f", rather {row.instead}" if row.instead else ""
        typer.echo(f"{row.fname}  {row.kind:7s} {row.tag} ({row.prob:.2f}{instead})  given: {row.labels}")
