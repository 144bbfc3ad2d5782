"""False alarms per hour in background, of a recipe trained with background as negative clips and without.

    python -m benchmarks.background DATA [--recipe probe] [--weights FILE] [--folds 2] [--work FOLDER]

DATA is a data set without background. Generated background (fatai.audio.background: 8 sounds of 30 s of each kind, one
of silence) is split by file among the folds; every network is slid over the files that its fold holds out, whether or
not it was trained on the others. Thresholds are those of the run. Interrupted runs in FOLDER are continued.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pandas as pd

from benchmarks.timing import write_report
from fatai.data.background import find_background, write_background
from fatai.data.datasets.fat2019 import load_dataset
from fatai.experiment.background import readable_background
from fatai.experiment.false_alarms import BackgroundProbs, measure_background
from fatai.experiment.recipe import load_recipe
from fatai.experiment.run import run_recipe


def silent_log(line: str) -> None:
    """Log nothing: the run has logged it."""


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and write its report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--recipe", default="probe")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--sounds", type=int, default=8, help="of each kind of background")
    parser.add_argument("--work", type=Path, default=Path("runs") / "background")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "background.md")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    recipe = load_recipe(args.recipe).override(weights=args.weights, n_folds=args.folds, epochs=args.epochs)
    plain = load_dataset(args.data, corrupted_files=recipe.clips.corrupted_files)
    if not (args.work / "background").is_dir():
        write_background(args.work / "background", n=args.sounds)
    background = readable_background(replace(plain, background=find_background(args.work)))
    lines, tables = [], {}
    for name, data in (("without", plain), ("with", background)):
        out = args.work / f"{args.recipe}_{name}"
        result = run_recipe(data, recipe, out, resume=True, num_workers=0, predict_test=False)
        measure_background(out, background, recipe.folds.n, silent_log)
        tables[name] = pd.read_csv(out / "background.csv").set_index("tag")
        limits = BackgroundProbs.load(out / "background.safetensors").thresholds(6)
        lines.append(
            f"| {name} | {result.oof_score:.3f} | {tables[name]['per_hour'].sum():.1f} | "
            f"{(tables[name]['events'] > 0).sum()} of {len(tables[name])} | "
            f"{sum(limit > tables[name]['threshold'][tag] for tag, limit in limits.items())} |"
        )
    hours = tables["with"]["hours"].iloc[0]
    both = pd.DataFrame({name: table["per_hour"] for name, table in tables.items()}).sort_values(
        "without", ascending=False
    )
    text = "\n".join([
        f"Recipe {args.recipe}, {args.folds} folds, {len(plain.curated)} clips, {len(plain.tags)} tags; "
        f"{60 * hours:.0f} minutes of generated background, of which no network saw what it is measured on, but "
        "those trained with background saw other sounds of the same kinds: this flatters them. Thresholds are those of "
        "each run. Rain-like noise counts as background, also where one of the tags is Rain.",
        "",
        "| trained | OOF lwlrap | false alarms per hour, all tags | tags with any | thresholds raised for 6 per hour |",
        "|---|---|---|---|---|",
        *lines,
        "",
        "| tag | per hour, trained without background | with |",
        "|---|---|---|",
        *(f"| {tag} | {row['without']:.1f} | {row['with']:.1f} |" for tag, row in both.iterrows()),
    ])
    write_report("False alarms in background", f"python -m benchmarks.background {args.data.name}", text, args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
