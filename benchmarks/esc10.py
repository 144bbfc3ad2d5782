"""ESC-10 by its published five folds: accuracy and lwlrap of clips that were held out, with intervals.

    python -m benchmarks.esc10 DATA [--recipe esc10] [--work FOLDER] [--only-fold 0 ...] [--out benchmarks/results/esc10.md]

DATA is the repository of ESC-50 (meta/esc50.csv, audio/), of which ten classes are taken, or a folder with esc10.csv (filename, fold,
label) and audio/. The clips are linked, not copied, into FOLDER/data in the competition's layout; a run in FOLDER that was stopped is gone
on with, and processes with folds of their own may share it: a last one without --only-fold then scores them all.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.rounds import report
from fatai.io.atomic import write_text
from fatai.ensemble.members import align_out_of_fold
from fatai.inference.predictions import Predictions
from fatai.experiment.build import recipe_parameters
from fatai.experiment.recipe import Recipe, load_recipe
from fatai.experiment.run import run_recipe
from fatai.metrics.bootstrap import Interval, score_interval

_LISTS = {"esc10.csv": "label", "meta/esc50.csv": "category"}


def read_list(data: Path) -> pd.DataFrame:
    """Columns fname, labels and fold of the clips of ESC-10."""
    for name, label in _LISTS.items():
        if (data / name).is_file():
            listed = pd.read_csv(data / name)
            if "esc10" in listed.columns:
                listed = listed[listed["esc10"].astype(str) == "True"]
            return listed.rename(columns={"filename": "fname", label: "labels"})[["fname", "labels", "fold"]]
    raise SystemExit(
        f"{data} has neither {' nor '.join(_LISTS)}; expected the repository of ESC-50, or esc10.csv and audio/"
    )


def lay_out(data: Path, folder: Path) -> Path:
    """The clips in the competition's layout, linked."""
    listed = read_list(data)
    (folder / "train_curated").mkdir(parents=True, exist_ok=True)
    for fname in listed["fname"]:
        link = folder / "train_curated" / fname
        if not link.exists():
            os.symlink((data / "audio" / fname).resolve(), link)
    write_text(folder / "train_curated.csv", listed.to_csv(index=False, lineterminator="\n"))
    return folder


def accuracy(probs: np.ndarray, targ: np.ndarray) -> float:
    """Share of clips whose likeliest tag is the given one."""
    return float((probs.argmax(1) == targ.argmax(1)).mean())


def scores(oof: Predictions, labels: Path) -> tuple[Interval, Interval]:
    """Accuracy and lwlrap of clips that were held out."""
    known = align_out_of_fold([oof], labels, oof.tags)
    return score_interval(known.probs[0], known.targ, score=accuracy), score_interval(known.probs[0], known.targ)


def written(run: Path, recipe: Recipe, labels: Path, seconds: float) -> str:
    oof = Predictions.from_csv(run / "oof.csv")
    right, ordered = scores(oof, labels)
    folds = pd.read_csv(run / "folds.csv").set_index("fname").loc[list(oof.fnames), "fold"].to_numpy()
    known = align_out_of_fold([oof], labels, oof.tags)
    lines = [
        f"Recipe {recipe.name}: {recipe.model.arch}, {recipe_parameters(recipe, len(oof.tags)):,} parameters, {recipe.stages[0].epochs} "
        f"epochs from scratch, {recipe.folds.n} published folds, the last epoch of each. {len(oof.fnames)} clips, {seconds / 60:.0f} "
        f"minutes of processes with {torch.get_num_threads()} thread(s) each.",
        "",
        f"accuracy {right}; lwlrap {ordered}",
        "",
        "| fold | clips | accuracy |",
        "|---|---|---|",
    ]
    for fold in sorted(set(folds)):
        own = folds == fold
        lines.append(f"| {fold + 1} | {own.sum()} | {accuracy(known.probs[0][own], known.targ[own]):.3f} |")
    wrong = known.probs[0].argmax(1) != known.targ.argmax(1)
    mistaken = pd.Series([
        f"{oof.tags[given]} taken for {oof.tags[said]}"
        for given, said in zip(known.targ[wrong].argmax(1), known.probs[0][wrong].argmax(1), strict=True)
    ], dtype=object).value_counts()
    people = "reaches" if right.value >= 0.957 else "lies below"
    lines += ["", f"This {people} the 0.957 of people. Taken for another, twice or more: "
              + ("; ".join(f"{what} {n} times" for what, n in mistaken.items() if n > 1) or "none") + "."]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--recipe", default="esc10")
    parser.add_argument("--only-fold", type=int, nargs="+")
    parser.add_argument("--work", type=Path, default=Path("runs") / "esc10")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "esc10.md")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    data, recipe = lay_out(args.data, args.work / "data"), load_recipe(args.recipe)
    started = time.monotonic()
    result = run_recipe(
        data, recipe, args.work / "run", only=args.only_fold, resume=True, num_workers=0, cache_dir=args.work / "cache"
    )
    # A run that was gone on with took longer than its last part; its file keeps the sum.
    spent = args.work / "seconds.txt"
    seconds = time.monotonic() - started + (float(spent.read_text()) if spent.exists() else 0.0)
    write_text(spent, f"{seconds:.1f}\n")
    told = written(result.out, recipe, data / "train_curated.csv", seconds)
    report("ESC-10", f"python -m benchmarks.esc10 {args.data.name}", told, args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
