"""Whether clips that look mislabelled are: among noisy clips, and among curated ones with corrupted labels.

    python -m benchmarks.suspects DATA [--seeds 0 1 2] [--steps 500] [--share 0.1] [--out benchmarks/results/suspects.md]

DATA is a folder in the competition's layout with truth/train_noisy.csv. Noisy clips are judged by models of the curated part; then a share
of the curated clips gets another tag, models are trained with it, and each clip is judged by the fold that held it out.
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
from benchmarks.rounds import report
from fatai.data.datasets.fat2019 import FATDataset, fat_sample, load_dataset
from fatai.data.labels import multi_hot, read_labels
from fatai.experiment.run_folder import predict_with_run
from fatai.experiment.run import run_recipe
from fatai.noisy_labels.label_issues import find_label_issues


def among_noisy(data: FATDataset, seed: int, steps: int, work: Path) -> tuple[int, int, float]:
    """How many of the first clips are mislabelled, how many these are, and which share of all noisy clips is."""
    run = run_recipe(
        data, recipe_of([], seed, steps, len(data.curated) // FOLDS), work / "clean", predict_test=False, num_workers=0
    )
    judged = predict_with_run(run.out, data.noisy)
    table = data.noisy[~data.noisy["fname"].isin(judged.unreadable)]
    probs = judged.select(list(table["fname"])).probs
    truth = read_labels(data.path / "truth" / "train_noisy.csv").set_index("fname")["labels"]
    wrong = {name for name, given in zip(table["fname"], table["labels"]) if set(given) != set(truth[name])}
    first = find_label_issues(
        probs, multi_hot(table["labels"], data.tags), data.tags, list(table["fname"]), per_clip=True, n=100
    )
    return len(wrong.intersection(first["fname"])), len(first), len(wrong) / len(table)


def among_corrupted(data: FATDataset, seed: int, steps: int, share: float, work: Path) -> tuple[float, float]:
    """The share of corrupted clips among as many first suspects as were corrupted, and in all."""
    rng = np.random.default_rng(seed)
    corrupted = data.curated.copy()
    rows = rng.choice(len(corrupted), round(share * len(corrupted)), replace=False)
    for row in rows:
        at = corrupted.columns.get_loc("labels")
        given = corrupted.iat[row, at]
        corrupted.iat[row, at] = [str(rng.choice([tag for tag in data.tags if tag not in given])), *given[1:]]
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
        n=round(share * len(names)),
        least=-np.inf,
        trained_on=names,
        out_of_fold=True,
    )
    odd = set(corrupted["fname"].iloc[rows]).intersection(names)
    return len(odd.intersection(first["fname"])) / len(first), len(odd) / len(names)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=fat_sample())
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "suspects.md")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    data = load_dataset(args.data)
    lines = [
        f"{data.path.name}, m3 at width {WIDTH}, crops of {CROP_S:g} s, batches of {BS}, {FOLDS} folds, about {args.steps} steps.",
        "",
        "| seed | mislabelled among the first noisy suspects | among all noisy clips | corrupted among the first "
        f"{args.share:.0%} of curated suspects | times their share |",
        "|---|---|---|---|---|",
    ]
    times, shares = [], []
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as work, redirect_stdout(StringIO()):
            found, shown, base = among_noisy(data, seed, args.steps, Path(work))
            precision, rate = among_corrupted(data, seed, args.steps, args.share, Path(work))
        times.append(precision / rate)
        shares.append(found / shown)
        lines.append(f"| {seed} | {found} of {shown} | {base:.0%} | {precision:.0%} | {precision / rate:.1f} |")
        print(lines[-1], flush=True)
    lines += [
        "",
        f"In the mean {statistics.mean(shares):.0%} of the first noisy suspects are mislabelled, and corrupted labels are "
        f"{statistics.mean(times):.1f} times as frequent among the first {args.share:.0%} of curated suspects as in all.",
    ]
    command = (
        f"python -m benchmarks.suspects {data.path.name} --seeds {' '.join(map(str, args.seeds))} --steps {args.steps}"
    )
    report("Suspects", command, "\n".join(lines), args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
