"""Clips in the memory of the device: milliseconds a clip of the loader, and training epochs beside those from disk.

The first table has the loader alone, crops of 4 s: gathering a batch, and with the front end. The second has epochs of
recipe `default`'s fit (gain, shift, noise, masks, mixing of waves, averaged weights), of mixup and masks on
spectrograms, and of no augmentation, for M3 and for networks of less than a million parameters: with files that are
decoded in every epoch (cache "none", the default of `FATDataLoaders`), with caches on disk, and from memory. All times
are those of the computing thread, in alternating rounds; ratios are medians of those of the rounds. The last column is
the part of a step from memory that the forward and backward pass take, which every cache has in common.

    python -m benchmarks.loader [DATA] [--rounds 5] [--networks "narrow m1" ...] [--augmentations "as default" ...]
        [--out benchmarks/results/loader.md]
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from fastai.callback.core import Callback, CancelTrainException

from benchmarks.timing import alternate, write_report
from fatai.augment.mixup import LinearMixUp
from fatai.augment.spec_augment import SpecAugment
from fatai.callbacks.averaging import WeightAverage
from fatai.data.blocks import FATDataLoaders
from fatai.data.datasets.fat2019 import fat_sample
from fatai.inference.learner import FatLearner, fat_learner
from fatai.models import count_parameters
from fatai.training.autocast import best_dtype
from fatai.training.defaults import EMA_DECAY, default_augmentations

BS = 16

NETWORKS = {
    "m3": ("m3", 1.0, 4.0, 1), "m3 of recipe default": ("m3", 0.25, 2.0, 4), "narrow m3": ("m3", 0.125, 2.0, 6),
    "narrow m1": ("m1", 0.125, 2.0, 6), "mn04": ("mn04", None, 2.0, 6),
}
"""Networks: architecture, width, seconds of a crop, and batches of a measured epoch."""

AUGMENTATIONS = {
    "as default": lambda: [*default_augmentations(), WeightAverage(EMA_DECAY)],
    "mixup and masks": lambda: [LinearMixUp(), SpecAugment()],
    "none": lambda: [],
}
"""Callbacks of a fit."""

WAVES, FEATURES = ("none", "wave", "device"), ("features", "device_features")


def loaders(data: Path, cache: str, folder: Path, crop_s: float) -> FATDataLoaders:
    """Return loaders of all curated clips for training."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files that are damaged
        return FATDataLoaders.from_path(
            data, front_end="ninth", channels="repeat3", crop_s=crop_s, bs=BS, valid_pct=0.1, seed=0, cache=cache,
            cache_dir=folder, num_workers=0,
        )


def read_all(dls: FATDataLoaders, *, front_end: bool) -> None:
    """Read one epoch, with or without the front end."""
    dls.to_spec.deferred = not front_end
    for _ in dls.train:
        dls.to_spec.deferred = not front_end
    dls.to_spec.deferred = False


def loader_table(data: Path, folder: Path, rounds: int) -> list[str]:
    """Compare the loaders of all caches."""
    lines = ["| cache | a batch's crops, ms a clip | with the front end, ms a clip |", "|---|---|---|"]
    caches = ("wave", "device", "features", "device_features")
    made = {cache: loaders(data, cache, folder, 4.0) for cache in caches}
    ways = [lambda d=d, f=f: read_all(d, front_end=f) for d in made.values() for f in (False, True)]
    times = alternate(rounds, *ways)
    for k, cache in enumerate(caches):
        n = len(made[cache].train) * BS
        lines.append(f"| {cache} | {times[2 * k] / n * 1e3:.3f} | {times[2 * k + 1] / n * 1e3:.3f} |")
    return lines


class _Stop(Callback):
    """Ends an epoch after some batches."""

    run_valid = False

    def __init__(self, n: int):
        self.n = n

    def after_batch(self) -> None:
        if self.iter + 1 == self.n:
            raise CancelTrainException


class Passes(Callback):
    """Measures the forward and backward passes of an epoch."""

    run_valid = False
    order = 100  # after the augmentations

    def before_train(self) -> None:
        """Start a new epoch."""
        self.seconds = 0.0

    def before_batch(self) -> None:
        """Start the clock behind the augmentations."""
        self.since = time.thread_time()

    def after_backward(self) -> None:
        """Stop it before the optimizer's step."""
        self.seconds += time.thread_time() - self.since


def epoch_table(
    data: Path, folder: Path, rounds: int, networks: Sequence[str], augmentations: Sequence[str]
) -> list[str]:
    """Compare training epochs."""
    lines = [
        "| network | parameters | augmentation | decoded | disk | memory | decoded / memory | disk / memory | passes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in networks:
        for augmentation in augmentations:
            learners = {cache: _learner(data, cache, folder, name, augmentation)
                        for cache in (*WAVES, *(() if augmentation == "as default" else FEATURES))}
            seconds, passes = _epochs(learners, NETWORKS[name][-1], rounds)
            about = f"{name}, crops of {NETWORKS[name][2]:g} s | {count_parameters(learners['none'].model):,}"
            lines.append(f"| {about} | {augmentation} | {_row(seconds, passes, *WAVES)}")
            if "features" in learners:
                lines.append(f"| {about} | {augmentation}, features | {_row(seconds, passes, 'none', *FEATURES)}")
            print(*lines[-2:], sep="\n", flush=True)
    return lines


def _epochs(learners: dict, batches: int, rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return the milliseconds a clip of epochs, and of their forward and backward passes, by cache."""
    seconds: dict[str, list[float]] = {cache: [] for cache in learners}
    passes: dict[str, list[float]] = {cache: [] for cache in learners}
    for _ in range(rounds + 1):  # the first warms up
        for cache, learn in learners.items():
            with learn.no_bar(), learn.no_logging():
                start = time.thread_time()
                learn.fit(1, 1e-3)
                seconds[cache].append((time.thread_time() - start) / batches / BS * 1e3)
                passes[cache].append(learn.passes.seconds / batches / BS * 1e3)
    return {cache: ms[1:] for cache, ms in seconds.items()}, {cache: ms[1:] for cache, ms in passes.items()}


def _row(seconds: dict, passes: dict, decoded: str, disk: str, memory: str) -> str:
    """Return times, ratios and the part of the passes as cells."""
    times = " | ".join(f"{statistics.median(seconds[cache]):.2f}" for cache in (decoded, disk, memory))
    ratios = " | ".join(f"{_ratio(seconds[cache], seconds[memory]):.2f}" for cache in (decoded, disk))
    return f"{times} | {ratios} | {_ratio(passes[memory], seconds[memory]):.0%} |"


def _ratio(ms: Sequence[float], to: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(ms, to, strict=True))


def _learner(data: Path, cache: str, folder: Path, network: str, augmentation: str) -> FatLearner:
    torch.manual_seed(0)
    arch, width, crop_s, batches = NETWORKS[network]
    learn = fat_learner(loaders(data, cache, folder, crop_s), arch, width=width, cbs=[
        _Stop(batches), Passes(), *AUGMENTATIONS[augmentation]()])
    learn.dls.loaders[1] = learn.dls.valid.new(n=0)
    return learn


def main(argv: list[str] | None = None) -> str:
    """Run the benchmark, write its report and return the table."""
    parser = argparse.ArgumentParser(description="Clips in memory, beside clips on disk.")
    parser.add_argument("data", type=Path, nargs="?", default=fat_sample())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--augmentations", nargs="+", choices=list(AUGMENTATIONS), default=list(AUGMENTATIONS))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "loader.md")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        loader_lines = loader_table(args.data, Path(folder), args.rounds)
        epoch_lines = epoch_table(args.data, Path(folder), args.rounds, args.networks, args.augmentations)
    about = (
        f"Medians of {args.rounds} rounds, front end ninth, batches of {BS}, one thread on {os.cpu_count()} cores of "
        f"{platform.machine()}, torch {torch.__version__}, {best_dtype('cpu')}; milliseconds a clip."
    )
    table = "\n".join([about, "", *loader_lines, "", *epoch_lines])
    return write_report("The loader", "python -m benchmarks.loader DATA", table, args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
