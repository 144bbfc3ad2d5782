"""ESC-10 by its published five folds: accuracy and lwlrap of the validation clips, with intervals.

    python -m benchmarks.esc10 DATA [--recipe esc10] [--work FOLDER] [--fold 0 ...] [--out benchmarks/results/esc10.md]
    python -m benchmarks.esc10 DATA --recipe finetune --weights mn04_as --work runs/esc10_finetune --out FILE

DATA is the repository of ESC-50 (meta/esc50.csv, audio/), of which ten classes are used, or a folder with esc10.csv
(filename, fold, label) and audio/. The clips are linked, not copied, into FOLDER/data in the competition's layout. An
interrupted run in FOLDER is continued, and processes with different folds may share it: a last one without --fold then
scores them all. Any recipe is given the published folds; --set changes other settings, as in fatai-submit run.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.timing import write_report
from fatai.ensemble.members import align_out_of_fold
from fatai.experiment.build import recipe_parameters
from fatai.experiment.overrides import Overrides, parse_settings
from fatai.experiment.recipe import Recipe, load_recipe
from fatai.experiment.run import run_recipe
from fatai.inference.predictions import Predictions
from fatai.io.atomic import write_text
from fatai.metrics.bootstrap import Interval, score_interval

_LISTS = {"esc10.csv": "label", "meta/esc50.csv": "category"}


def read_list(data: Path) -> pd.DataFrame:
    """Return the columns fname, labels and fold of the clips of ESC-10."""
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
    """Link the clips in the competition's layout and return the folder."""
    listed = read_list(data)
    (folder / "train_curated").mkdir(parents=True, exist_ok=True)
    for fname in listed["fname"]:
        link = folder / "train_curated" / fname
        if not link.exists():
            os.symlink((data / "audio" / fname).resolve(), link)
    write_text(folder / "train_curated.csv", listed.to_csv(index=False, lineterminator="\n"))
    return folder


def accuracy(probs: np.ndarray, targ: np.ndarray) -> float:
    """Return the fraction of clips whose most probable tag is the given one; both arrays are (clips, tags)."""
    return float((probs.argmax(1) == targ.argmax(1)).mean())


def scores(oof: Predictions, labels: Path) -> tuple[Interval, Interval]:
    """Return accuracy and lwlrap of the validation clips."""
    known = align_out_of_fold([oof], labels, oof.tags)
    return score_interval(known.probs[0], known.targ, score=accuracy), score_interval(known.probs[0], known.targ)


def markdown(run: Path, recipe: Recipe, labels: Path, seconds: float) -> str:
    """Return the report as Markdown."""
    oof = Predictions.from_csv(run / "oof.csv")
    right, lwlrap = scores(oof, labels)
    folds = pd.read_csv(run / "folds.csv").set_index("fname").loc[list(oof.fnames), "fold"].to_numpy()
    known = align_out_of_fold([oof], labels, oof.tags)
    lines = [
        f"Recipe {recipe.name}: {recipe.model.arch}, {recipe_parameters(recipe, len(oof.tags)):,} parameters, "
        f"{_training(recipe)}, {recipe.folds.n} published folds, the last epoch of each. {len(oof.fnames)} clips, "
        f"{seconds:.0f} CPU seconds in processes with {torch.get_num_threads()} thread(s) each.",
        "",
        f"accuracy {right}; lwlrap {lwlrap}",
        "",
        "| fold | clips | accuracy |",
        "|---|---|---|",
    ]
    for fold in sorted(set(folds)):
        in_fold = folds == fold
        score = accuracy(known.probs[0][in_fold], known.targ[in_fold])
        lines.append(f"| {fold + 1} | {in_fold.sum()} | {score:.3f} |")
    wrong = known.probs[0].argmax(1) != known.targ.argmax(1)
    mistakes = pd.Series([
        f"{oof.tags[given]} predicted as {oof.tags[predicted]}"
        for given, predicted in zip(known.targ[wrong].argmax(1), known.probs[0][wrong].argmax(1), strict=True)
    ], dtype=object).value_counts()
    compared = "reaches" if right.value >= 0.957 else "is below"
    lines += ["", f"This {compared} the 0.957 of human listeners. Predicted as another class, twice or more: "
              + ("; ".join(f"{pair} {n} times" for pair, n in mistakes.items() if n > 1) or "none") + "."]
    return "\n".join(lines)


def _training(recipe: Recipe) -> str:
    """Return how the network of a recipe is trained."""
    if recipe.stages[0].linear_probe is not None:
        return "frozen, with a logistic regression"
    start = "from published weights" if recipe.model.options.get("pretrained") else "from scratch"
    return f"{recipe.stages[0].epochs} epochs {start}"


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and write its report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--recipe", default="esc10")
    parser.add_argument("--weights")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--fold", type=int, nargs="+")
    parser.add_argument("--work", type=Path, default=Path("runs") / "esc10")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "esc10.md")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    settings = {"folds.splitter": "predefined", "folds.group_col": "fold", "folds.n": 5, **parse_settings(args.set)}
    recipe = load_recipe(args.recipe).override(Overrides(weights=args.weights, values=settings))
    data, start = lay_out(args.data, args.work / "data"), time.process_time()
    result = run_recipe(
        data,
        recipe,
        args.work / "run",
        run_folds=args.fold,
        resume=True,
        num_workers=0,
        cache_dir=args.work / "cache",
    )
    # A continued run took longer than its last part; the file keeps the sum.
    total = args.work / "seconds.txt"
    seconds = time.process_time() - start + (float(total.read_text()) if total.exists() else 0.0)
    write_text(total, f"{seconds:.1f}\n")
    decided = load_recipe(result.out / "recipe.toml")  # also what a recipe leaves to the data
    text = markdown(result.out, decided, data / "train_curated.csv", seconds)
    options = [f"--weights {args.weights}"] if args.weights else []
    options += [f"--set {shlex.quote(setting)}" for setting in args.set]
    command = " ".join([f"python -m benchmarks.esc10 {args.data.name} --recipe {args.recipe}", *options])
    write_report("ESC-10", command, text, args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
