"""lwlrap after equal training in float32 and in what `precision="auto"` chooses, with the seconds that each took.

    python -m benchmarks.precision [--seeds 3] [--epochs 40] [--out benchmarks/results/precision.md]

Trains the recipe `quick` on the bundled sample once for each seed and arithmetic, in turn, and scores the test part against its truth.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import warnings
from pathlib import Path

import torch

from fatai.atomic import write_text_atomic
from fatai.data.fat2019 import fat_sample
from fatai.recipes.recipe import load_recipe
from fatai.recipes.run import run_recipe
from fatai.train.precision import best_dtype

WAYS = ("fp32", "auto")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/precision.md"))
    args = parser.parse_args()
    sample = fat_sample()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lines = [
        "# lwlrap after equal training", "", f"    python -m benchmarks.precision --seeds {args.seeds} --epochs {args.epochs}", "",
        f"Recipe quick on the bundled sample, 2 folds, {args.epochs} epochs; auto is {best_dtype(device)} on {device}.",
        "", "| seed | arithmetic | out of fold | test | seconds |", "|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    found: dict[str, list[tuple[float, float, float]]] = {way: [] for way in WAYS}
    for seed in range(args.seeds):
        for way in WAYS:
            with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                recipe = load_recipe("quick").changed(precision=way, seed=seed, epochs=args.epochs)
                result = run_recipe(sample, recipe, Path(folder) / "run", say=lambda line: None)
                assert result.test is not None
                found[way].append((result.oof_score, result.test.score(sample / "truth" / "test.csv"), result.seconds))
            oof, test, seconds = found[way][-1]
            lines.append(f"| {seed} | {way} | {oof:.4f} | {test:.4f} | {seconds:.0f} |")
            print(lines[-1], flush=True)
    for way in WAYS:
        oof, test, seconds = (statistics.mean(column) for column in zip(*found[way]))
        lines.append(f"| mean | {way} | {oof:.4f} | {test:.4f} | {seconds:.0f} |")
        print(lines[-1])
    write_text_atomic(args.out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
