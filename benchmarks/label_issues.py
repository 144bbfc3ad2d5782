"""Precision of label issues: among noisy clips, and among curated ones with corrupted labels.

    python -m benchmarks.label_issues DATA [--seeds 0 1 2] [--steps 500] [--fraction 0.1] [--out FILE]

DATA is a folder in the competition's layout with truth/train_noisy.csv. Noisy clips are predicted by models of the
curated part; then a fraction of the curated clips gets another tag, models are trained with it, and each clip is
predicted by the model that was not trained on it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import warnings
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np

from benchmarks.noisy import BS, CROP_S, FOLDS, WIDTH, recipe_of
from benchmarks.timing import write_report
from fatai.data.datasets.fat2019 import FATDataset, fat_sample, load_dataset
from fatai.data.labels import multi_hot, read_labels
from fatai.experiment.run import run_recipe
from fatai.experiment.run_folder import predict_with_run
from fatai.noisy_labels.label_issues import find_label_issues


def among_noisy(data: FATDataset, seed: int, steps: int, work: Path) -> tuple[int, int, float]:
    """Find issues of noisy clips.

    Returns
    -------
    The number of mislabeled clips among the first issues, the number of these, and the fraction of mislabeled noisy
    clips.
    """
    run = run_recipe(
        data, recipe_of([], seed, steps, len(data.curated) // FOLDS), work / "clean", predict_test=False, num_workers=0
    )
    preds = predict_with_run(run.out, data.noisy)
    table = data.noisy[~data.noisy["fname"].isin(preds.unreadable)]
    probs = preds.select(list(table["fname"])).probs
    truth = read_labels(data.path / "truth" / "train_noisy.csv").set_index("fname")["labels"]
    labels = zip(table["fname"], table["labels"], strict=True)
    wrong = {name for name, given in labels if set(given) != set(truth[name])}
    first = find_label_issues(
        probs, multi_hot(table["labels"], data.tags), data.tags, list(table["fname"]), per_clip=True, n=100
    )
    return len(wrong.intersection(first["fname"])), len(first), len(wrong) / len(table)


def among_corrupted(data: FATDataset, seed: int, steps: int, fraction: float, work: Path) -> tuple[float, float]:
    """Return the fraction of corrupted clips among as many first issues as were corrupted, and among all clips."""
    rng = np.random.default_rng(seed)
    corrupted = data.curated.copy()
    rows = rng.choice(len(corrupted), round(fraction * len(corrupted)), replace=False)
    for row in rows:
        column = corrupted.columns.get_loc("labels")
        given = corrupted.iat[row, column]
        corrupted.iat[row, column] = [str(rng.choice([tag for tag in data.tags if tag not in given])), *given[1:]]
    run = run_recipe(
        replace(data, curated=corrupted),
        recipe_of([], seed, steps, len(corrupted) // FOLDS),
        work / "corrupted",
        predict_test=False,
        num_workers=0,
    )
    table = corrupted.set_index("fname").loc[list(run.oof.fnames)]
    names = list(run.oof.fnames)
    first = find_label_issues(
        run.oof.probs,
        multi_hot(table["labels"], data.tags),
        data.tags,
        names,
        per_clip=True,
        n=round(fraction * len(names)),
        min_score=-np.inf,
        trained_on=names,
        out_of_fold=True,
    )
    wrong = set(corrupted["fname"].iloc[rows]).intersection(names)
    return len(wrong.intersection(first["fname"])) / len(first), len(wrong) / len(names)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and write its report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=fat_sample())
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--fraction", type=float, default=0.1)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "label_issues.md")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    data = load_dataset(args.data)
    lines = [
        f"{data.path.name}, m3 at width {WIDTH}, crops of {CROP_S:g} s, batches of {BS}, {FOLDS} folds, about "
        f"{args.steps} steps.",
        "",
        "| seed | mislabeled among the first noisy issues | among all noisy clips | corrupted among the first "
        f"{args.fraction:.0%} of curated issues | times their fraction |",
        "|---|---|---|---|---|",
    ]
    times, fractions = [], []
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as work, redirect_stdout(StringIO()):
            found, shown, base = among_noisy(data, seed, args.steps, Path(work))
            precision, rate = among_corrupted(data, seed, args.steps, args.fraction, Path(work))
        times.append(precision / rate)
        fractions.append(found / shown)
        lines.append(f"| {seed} | {found} of {shown} | {base:.0%} | {precision:.0%} | {precision / rate:.1f} |")
        print(lines[-1], flush=True)
    lines += [
        "",
        f"In the mean {statistics.mean(fractions):.0%} of the first noisy issues are mislabeled, and corrupted labels "
        f"are {statistics.mean(times):.1f} times as frequent among the first {args.fraction:.0%} of curated issues as "
        "in all.",
    ]
    command = (
        f"python -m benchmarks.label_issues {data.path.name} --seeds {' '.join(map(str, args.seeds))} --steps "
        f"{args.steps}"
    )
    write_report("Label issues", command, "\n".join(lines), args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
