"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

__all__ = [
    "Arch",
    "BatchSize",
    "Budget",
    "Corrections",
    "CropS",
    "Data",
    "DryRun",
    "Epochs",
    "FoldCount",
    "LearningRate",
    "ListFile",
    "MaybeData",
    "Only",
    "Out",
    "Precision",
    "Processes",
    "RecipeName",
    "Resume",
    "Reuse",
    "Scale",
    "Seed",
    "Shard",
    "Views",
    "Width",
    "Workers",
]

_DATA = ("A CSV of your sounds (columns file and tags; the sounds beside it or in folders below), "
         "or a folder with train_curated.csv, train_curated/, and maybe train_noisy, test and sample_submission.csv.")
Data = Annotated[Path, typer.Argument(metavar="DATA", help=_DATA)]
MaybeData = Annotated[Optional[Path], typer.Argument(metavar="DATA", help=_DATA)]
RecipeName = Annotated[
    str, typer.Option("--recipe", help="Name of a recipe (see: fatai-submit recipes), or a .toml file of yours.")
]
Out = Annotated[
    Path, typer.Option("--out", help="Folder of the run: new or empty, unless --resume goes on with what is in it.")
]
FoldCount = Annotated[Optional[int], typer.Option("--folds", help="Number of folds instead of the recipe's.")]
Only = Annotated[
    Optional[list[int]], typer.Option("--only-fold", help="Train this fold alone, counted from 0; may be repeated.")
]
Epochs = Annotated[Optional[int], typer.Option(help="Epochs of every stage instead of the recipe's.")]
BatchSize = Annotated[Optional[int], typer.Option("--bs", help="Clips in a batch instead of the recipe's.")]
LearningRate = Annotated[
    Optional[float], typer.Option("--lr", help="Highest learning rate of every stage instead of the recipe's.")
]
Arch = Annotated[Optional[str], typer.Option(help="Model instead of the recipe's; fatai-submit models lists them.")]
Width = Annotated[Optional[float], typer.Option(
    help="Factor of the model's channels instead of the recipe's: 0.5 is half as wide as published.",
)]
CropS = Annotated[Optional[float], typer.Option("--crop-s", help="Seconds of a crop instead of the recipe's.")]
Views = Annotated[
    Optional[int],
    typer.Option(
        "--views",
        help="Views of each clip that are averaged; by default as many as the recipe, or another kind of views, says.",
    ),
]
Seed = Annotated[Optional[int], typer.Option(help="Seed instead of the recipe's; fold k starts from it + k.")]
Precision = Annotated[
    Optional[str], typer.Option(help="Arithmetic instead of the recipe's: auto (what is fastest here), fp32 or bf16.")
]
Workers = Annotated[Optional[int], typer.Option(
    "--workers", help="Processes that read sound; 0 reads in the main one, which is the default without a GPU.",
)]
ListFile = Annotated[
    Optional[Path], typer.Option("--list", help="Text file with the path of a sound in each line, any number of them.")
]
Shard = Annotated[
    Optional[str],
    typer.Option(
        "--shard",
        help="Do one part of the sounds, into a file beside --out: 2/8 is the second of eight. fatai-submit merge joins the parts.",
    ),
]
Processes = Annotated[
    Optional[int],
    typer.Option(
        "--processes",
        help="Train in so many processes on this machine: each takes folds of its own, or with fewer folds a part of a batch.",
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run that was begun in --out: same options, same data.")
]
Corrections = Annotated[Optional[Path], typer.Option(
    "--corrections", help="CSV of fname and labels (or the word remove) that correct curated and noisy clips.",
)]
Scale = Annotated[
    str,
    typer.Option(
        "--scale",
        help="full (as the recipe says), small or tiny: fewer channels, epochs and views, by one rule for all recipes.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Train nothing; tell stages, steps, parameters, and from a short measurement the time and memory to expect.",
    ),
]
Budget = Annotated[Optional[str], typer.Option(
    "--budget", help="As --dry-run, and tell whether it fits into this time, such as 9h, 90m or 600s.",
)]
Reuse = Annotated[
    Optional[list[Path]],
    typer.Option(
        "--reuse",
        help="For ensembles: a finished run that takes the place of a member with the same recipe; may be repeated.",
    ),
]
