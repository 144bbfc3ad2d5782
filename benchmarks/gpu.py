"""Full settings on data of the competition's size: training `ninth`, and tagging the whole test part.

    python -m benchmarks.gpu [--epochs 2] [--whole] [--work FOLDER] [--out benchmarks/results/gpu.md]

Generated clips, 4,970 curated, 19,815 noisy and 3,361 test ones, 0.3 to 15 s long: noise in bands. A few hundred of
them are different, the others are links to these, so that disks and the file cache matter less than usual. `--whole`
trains the 5 x 65 epochs of `ninth` instead of extrapolating from a few epochs; `--clips N --scale tiny` makes
everything smaller, to try the command without a GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.timing import write_report
from fatai.audio.io import save_audio
from fatai.data.datasets.fat2019 import FATDataset, load_dataset
from fatai.experiment.recipe import load_recipe
from fatai.experiment.run import run_recipe
from fatai.experiment.run_folder import predict_with_run
from fatai.experiment.scaling import SCALES, scale_recipe

PARTS = {"train_curated": 4970, "train_noisy": 19_815, "test": 3361}
SR, N_TAGS, DIFFERENT = 44_100, 80, 300


def lay_out(folder: Path, fraction: float) -> FATDataset:
    """Generate the data, except what exists already."""
    rng = np.random.default_rng(2019)
    tags = [f"Tag_{k:02d}" for k in range(N_TAGS)]
    originals = folder / "originals"
    originals.mkdir(parents=True, exist_ok=True)
    n_different = max(2 * N_TAGS, round(DIFFERENT * fraction))
    for k in range(n_different):
        if not (originals / f"{k}.wav").exists():
            save_audio(originals / f"{k}.wav", _clip(rng, k % N_TAGS), SR)
    for part, n in PARTS.items():
        names = [f"{part}_{k:05d}.wav" for k in range(max(4 * N_TAGS, round(n * fraction)))]
        (folder / part).mkdir(exist_ok=True)
        for k, name in enumerate(names):
            if not (folder / part / name).exists():
                os.link(originals / f"{k % n_different}.wav", folder / part / name)
        if part == "test":
            pd.DataFrame(0, index=pd.Index(names, name="fname"), columns=tags).to_csv(folder / "sample_submission.csv")
        else:
            labels = [tags[k % n_different % N_TAGS] for k in range(len(names))]
            pd.DataFrame({"fname": names, "labels": labels}).to_csv(folder / f"{part}.csv", index=False)
    return load_dataset(folder)


def _clip(rng: np.random.Generator, tag: int) -> torch.Tensor:
    """Return noise that swells and fades, with a tone at the frequency of the tag."""
    n = int(SR * np.exp(rng.uniform(np.log(0.3), np.log(15))))
    seconds = np.arange(n) / SR
    tone = np.sin(2 * np.pi * 100 * 2 ** (tag / 12) * seconds + rng.normal())
    wave = (0.2 * tone + 0.1 * rng.standard_normal(n)) * (0.6 + 0.4 * np.sin(2 * np.pi * rng.uniform(0.2, 3) * seconds))
    return torch.from_numpy(wave.astype(np.float32))


def training(data: FATDataset, epochs: int, whole: bool, scale: str, work: Path) -> list[str]:
    """Return lines on training `ninth`."""
    recipe = scale_recipe(load_recipe("ninth"), scale)
    published, n = recipe.stages[0].epochs, recipe.folds.n

    out = work / f"ninth_{time.time_ns()}"
    start = time.perf_counter()
    run_recipe(
        data,
        recipe if whole else recipe.override(epochs=1 + epochs),
        out,
        run_folds=None if whole else [0],
        predict_test=False,
        log=lambda line: None,
    )
    seconds = time.perf_counter() - start
    if whole:
        return [
            f"`ninth`, {n} folds of {published} epochs with predictions of the validation clips: {seconds / 60:.1f} "
            "minutes (aim: 10)."
        ]
    # The first epoch warms up.
    took = pd.read_csv(out / "fold_0" / "history.csv")["seconds"]
    epoch, rest = float(took[1:].median()), seconds - float(took.sum())
    return [
        f"`ninth`: {epoch:.2f} s an epoch with its validation; {rest:.1f} s of a fold beside its epochs. Counted up, "
        f"{n} folds of {published} epochs take {n * (published * epoch + rest) / 60:.1f} minutes (aim: 10)."
    ]


def tagging(data: FATDataset, scale: str, work: Path) -> list[str]:
    """Return lines on predicting the test part by five folds of `third_place_2d`, trained for one epoch."""
    small = replace(data, curated=data.curated.head(4 * N_TAGS))
    out = work / f"third_{time.time_ns()}"
    recipe = scale_recipe(load_recipe("third_place_2d"), scale).override(epochs=1)
    run_recipe(small, recipe, out, predict_test=False, log=lambda line: None)
    predict_with_run(out, data.test.head(64))
    start = time.perf_counter()
    preds = predict_with_run(out, data.test, num_workers=min(8, os.cpu_count() or 1))
    seconds = time.perf_counter() - start
    result = f"{len(preds.fnames)} test clips whole, {recipe.folds.n} folds: {seconds:.1f} s (aim: 3)"
    return [f"`third_place_2d`, {result}."]


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and write its report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2, help="epochs that are measured")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--clips", type=int, default=sum(PARTS.values()))
    parser.add_argument("--scale", choices=list(SCALES), default="full")
    parser.add_argument("--work", type=Path, default=Path("runs") / "gpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "gpu.md")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    data = lay_out(args.work / "data", args.clips / sum(PARTS.values()))
    size = "full settings" if args.scale == "full" else f"settings scaled to {args.scale}"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU thread(s)"
    assert data.noisy is not None
    lines = [
        f"{device}; {len(data.curated):,} curated, {len(data.noisy):,} noisy and {len(data.test):,} test clips, "
        f"generated; {size}.",
        "",
        *training(data, args.epochs, args.whole, args.scale, args.work),
        "",
        *tagging(data, args.scale, args.work),
    ]
    write_report("Full size", f"python -m benchmarks.gpu{' --whole' if args.whole else ''}", "\n".join(lines), args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
