"""Cost and score of each kind of view: test lwlrap and clips per second of one trained run.

    python -m benchmarks.inference [RUN] [DATA] [--rounds 3] [--out benchmarks/results/inference.md]

RUN is the folder of a finished run (by default that of `make demo`), DATA the data it was trained on, with
truth/test.csv, which is used only for scores. Rounds of all kinds alternate and the median counts; files are read,
trimmed and predicted again each time, by all folds one after another.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import write_report
from fatai.data.datasets.fat2019 import fat_sample, load_dataset
from fatai.experiment.run_folder import FinishedRun, predict_with_run

KINDS: list[tuple[str, str, dict[str, Any]]] = [
    ("25 random crops", "random", {"n": 25}),
    ("5 random crops", "random", {"n": 5}),
    ("8 even crops", "even", {"n": 8}),
    ("5 even crops", "even", {"n": 5}),
    ("5 crops, short clips from varied starts", "varied", {"n": 5}),
    ("as many as the length needs", "adaptive", {}),
    ("tiles with a step of 64 frames", "tiles", {"step_frames": 64}),
    ("tiles with a step of 128 frames", "tiles", {"step_frames": 128}),
    ("whole clips", "whole", {}),
    ("whole clips, padded by 8 and by 64 frames", "padded", {}),
]
MANY, WHOLE = KINDS[0][0], "whole clips"


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and write its report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/demo"))
    parser.add_argument("data", type=Path, nargs="?", default=fat_sample())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "inference.md")
    args = parser.parse_args(argv)
    data, opened = load_dataset(args.data), FinishedRun.open(args.run)
    scores: dict[str, float] = {}
    seconds: dict[str, list[float]] = {name: [] for name, *_ in KINDS}
    for _ in range(args.rounds):
        for name, views, options in KINDS:
            start = time.perf_counter()
            predicted = predict_with_run(args.run, data.test, views=views, **options)
            seconds[name].append(time.perf_counter() - start)
            scores[name] = predicted.score(data.path / "truth" / "test.csv")
    rates = {name: len(data.test) / statistics.median(took) for name, took in seconds.items()}
    recipe = opened.recipe
    lines = [
        f"{len(data.test)} test clips of {data.path.name}; {recipe.model.arch} at width {recipe.model.width or 1:g}, "
        f"crops of {recipe.clips.crop_s:g} s, {len(opened.weights)} folds; {torch.get_num_threads()} threads, median "
        f"of {args.rounds} alternating rounds. A clip that is no longer than a crop has one view, whatever number is "
        "requested.",
        "",
        "| views | test lwlrap | clips per second | against 25 random crops |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {scores[name]:.4f} | {rates[name]:.1f} | {rates[name] / rates[MANY]:.2f}x |" for name, *_ in KINDS
    ]
    lines += [
        "",
        f"Whole clips: {rates[WHOLE] / rates[MANY]:.1f} times the clips per second of 25 random crops, lwlrap "
        f"{scores[WHOLE] - scores[MANY]:+.4f}.",
    ]
    command = f"python -m benchmarks.inference {args.run.name} {data.path.name}"
    write_report("Views", command, "\n".join(lines), args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
