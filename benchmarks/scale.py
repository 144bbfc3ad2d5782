"""Time and memory of everything that touches every row of a dataset, from 320 clips to 250,000.

Clips are hard links of the bundled sample's, made in a temporary folder for each size; every size is measured in a
separate process. Rows have 80 tags, as the competition's. "Memory" is the growth of the peak over the start; the time
per clip is the processor time of a step divided by the clips, so that other work on the machine is not counted. Fixed
costs dominate at 320 clips, so times are compared from 3,200 on.

    python -m benchmarks.scale [--clips 320 3200 25000 250000] [--out benchmarks/results/scale.md]
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fatai.data.datasets.fat2019 import fat_sample
from fatai.io.atomic import write_text

SIZES = (320, 3200, 25000, 250000)
N_TAGS = 80
_CHILD = "import sys; from benchmarks.scale import child; child(sys.argv[1])"


def make_data(folder: Path, n: int) -> None:
    """Write a dataset of `n` curated clips in the competition's layout: links of the sample's, with tags in turn."""
    clips = sorted((fat_sample() / "train_curated").iterdir())
    sounds = folder / "train_curated"
    sounds.mkdir(parents=True)
    # Some file systems allow at most 65,000 links to a file, so there are several copies of each clip.
    real = []
    for k in range(1 + n // (60_000 * len(clips))):
        for clip in clips:
            copy = folder / f"real_{k}_{clip.name}"
            copy.write_bytes(clip.read_bytes())
            real.append(copy)
    with (folder / "train_curated.csv").open("w", newline="") as f:
        rows = csv.writer(f)
        rows.writerow(("fname", "labels"))
        for i in range(n):
            name = f"{i:07d}{clips[0].suffix}"
            os.link(real[i % len(real)], sounds / name)
            rows.writerow((name, f"Tag_{i % N_TAGS:02d}" + (f",Tag_{(i * 7 + 1) % N_TAGS:02d}" if i % 5 == 0 else "")))


def memory_mb() -> tuple[float, float]:
    """Return the memory of this process now, and its peak."""
    status = Path("/proc/self/status").read_text()
    now, peak = (int(status.split(f"{word}:")[1].split()[0]) / 1024 for word in ("VmRSS", "VmHWM"))
    return now, peak


def child(folder: str) -> None:
    """Measure every step on the data in `folder`, and print seconds and the growth of the peak in MB as JSON."""
    import warnings

    import torch

    warnings.filterwarnings("ignore")
    from fatai.data.blocks import FATDataLoaders
    from fatai.data.datasets.fat2019 import load_dataset
    from fatai.data.folds import make_folds
    from fatai.data.labels import multi_hot
    from fatai.data.tables import check_readable
    from fatai.ensemble.streaming import average_files
    from fatai.experiment.manifest import data_digest
    from fatai.inference.predictions import Predictions

    torch.set_num_threads(1)
    root = Path(folder)
    measured: dict[str, tuple[float, float]] = {}
    FATDataLoaders.from_path(fat_sample(), bs=8, num_workers=0).one_batch()  # loads and compiles what is needed once
    before, _ = memory_mb()

    def step(name: str, function: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = function()
        seconds = time.process_time() - start
        measured[name] = (seconds, memory_mb()[1] - before)
        return result

    data = step("read the tables", lambda: load_dataset(root))
    step("digest of the data", lambda: data_digest(data))
    step("folds", lambda: make_folds(multi_hot(data.curated["labels"], data.tags), splitter="kfold", n=5))
    step("open every file", lambda: check_readable([Path(p) for p in data.curated["path"]]))
    table = data.curated.assign(is_valid=np.arange(len(data.curated)) % 5 == 0)
    dls = step(
        "make the loaders",
        lambda: FATDataLoaders.from_df(
            table,
            vocab=data.tags,
            fn_col="fname",
            path_col="path",
            label_col="labels",
            valid_col="is_valid",
            bs=8,
            num_workers=0,
            check_files=False,
        ),
    )
    step("first batch of an epoch", lambda: next(iter(dls.train)))
    step("labels of all clips", lambda: multi_hot(dls.files(0)["labels"], dls.tags))
    names = list(data.curated["fname"])
    rng = np.random.default_rng(0)
    files = [root / f"model_{k}.csv" for k in range(3)]

    def write() -> None:
        for file in files:
            Predictions(tuple(names), data.tags, rng.random((len(names), N_TAGS)).round(6)).to_csv(file)

    step("write three predictions", write)
    step("read a prediction", lambda: len(Predictions.from_csv(files[0])))
    step("average the three files", lambda: average_files(files, root / "average.csv"))
    print(json.dumps(measured))


def measure(n: int) -> dict[str, tuple[float, float]]:
    """Return seconds and MB of every step with `n` clips, measured in a separate process."""
    with tempfile.TemporaryDirectory() as name:
        make_data(Path(name), n)
        out = subprocess.run([sys.executable, "-c", _CHILD, name], check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.strip().splitlines()[-1])


def table_of(results: dict[int, dict[str, tuple[float, float]]]) -> str:
    """Return the table as Markdown."""
    sizes = list(results)
    lines = [
        "| step, µs per clip | " + " | ".join(f"{n:,} clips" for n in sizes) + " |",
        "|---|" + "---:|" * len(sizes),
    ]
    for step in results[sizes[0]]:
        lines.append(f"| {step} | " + " | ".join(f"{results[n][step][0] / n * 1e6:,.0f}" for n in sizes) + " |")
    totals = {n: sum(seconds for seconds, _ in results[n].values()) for n in sizes}
    lines.append("| **all** | " + " | ".join(f"**{totals[n] / n * 1e6:,.0f}**" for n in sizes) + " |")
    lines += ["", "| peak after the step, MB above the start | " + " | ".join(f"{n:,} clips" for n in sizes) + " |"]
    lines.append("|---|" + "---:|" * len(sizes))
    for step in results[sizes[0]]:
        lines.append(f"| {step} | " + " | ".join(f"{results[n][step][1]:.0f}" for n in sizes) + " |")
    peaks = {n: max(mb for _, mb in results[n].values()) for n in sizes}
    sentences = []
    if {320, 25000} <= set(sizes):
        sentences.append(f"Memory grows by {peaks[25000] - peaks[320]:.0f} MB from 320 clips to 25,000 (150 are "
                         "allowed).")
    large = [n for n in sizes if n >= 3200]
    if len(large) > 1:
        per_clip = [totals[n] / n for n in large]
        sentences.append(
            f"From {large[0]:,} clips to {large[-1]:,} a clip's time changes by "
            f"{max(per_clip) / min(per_clip) - 1:.0%} at most."
        )
    return "\n".join([*lines, "", *sentences])


def main(argv: list[str] | None = None) -> str:
    """Run the benchmark, write its report and return the table."""
    parser = argparse.ArgumentParser(description="Time and memory against the number of clips.")
    parser.add_argument("--clips", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "scale.md")
    args = parser.parse_args(argv)
    results = {}
    for n in args.clips:
        results[n] = measure(n)
        print(f"{n:,} clips: {sum(s for s, _ in results[n].values()):.1f} s", file=sys.stderr, flush=True)
    table = table_of(results)
    print(table)
    text = (
        "Every size in a separate process; rows of 80 tags; hard links of the bundled clips; processor time."
    )
    write_text(args.out, f"# Cost per clip\n\n    python -m benchmarks.scale\n\n{text}\n\n{table}\n")
    return table


if __name__ == "__main__":
    main(sys.argv[1:])
