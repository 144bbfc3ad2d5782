"""Clips in the memory of the device: milliseconds a clip of the loader, and a training epoch beside that from disk.

The first table has the loader alone, crops of 4 s: gathering a batch, and with the front end. The second has epochs of
recipe `default`'s fit (gain, shift, noise, masks, mixing of waves) and of a fit without augmentation, for M3 and for
networks of less than a million parameters, with clips read from disk and the spectrograms of every batch computed by
the loader, and from memory. All times are those of the computing thread, in alternating rounds.

    python -m benchmarks.loader [DATA] [--rounds 5] [--out benchmarks/results/loader.md]
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from fastai.callback.core import Callback, CancelTrainException

from benchmarks.timing import alternate, write_report
from fatai.augment.base import AugmentBatch
from fatai.data.blocks import FATDataLoaders
from fatai.data.datasets.fat2019 import fat_sample
from fatai.inference.learner import fat_learner
from fatai.models import count_parameters
from fatai.training.defaults import default_augmentations

NETWORKS = {
    "m3": ("m3", 1.0, 4.0, 1), "m3 of recipe default": ("m3", 0.25, 2.0, 4), "narrow m3": ("m3", 0.125, 2.0, 6),
    "narrow m1": ("m1", 0.125, 2.0, 6),
}
"""Networks: architecture, width, seconds of a crop, and batches of a measured epoch."""


def loaders(data: Path, cache: str, folder: Path, crop_s: float) -> FATDataLoaders:
    """Return loaders of all curated clips for training."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files that are damaged
        return FATDataLoaders.from_path(
            data, front_end="ninth", channels="repeat3", crop_s=crop_s, bs=16, valid_pct=0.1, seed=0, cache=cache,
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
        n = len(made[cache].train) * 16
        lines.append(f"| {cache} | {times[2 * k] / n * 1e3:.3f} | {times[2 * k + 1] / n * 1e3:.3f} |")
    return lines


class _Stop(Callback):
    """Ends an epoch after some batches, and measures how long the loop waits for data."""

    run_valid = False
    order = -100  # before the augmentations, which are not counted as waiting

    def __init__(self, n: int):
        self.n, self.waited, self.since = n, 0.0, 0.0

    def before_train(self) -> None:
        self.waited, self.since = 0.0, time.thread_time()

    def before_batch(self) -> None:
        if self.iter < self.n:
            self.waited += time.thread_time() - self.since

    def after_batch(self) -> None:
        self.since = time.thread_time()
        if self.iter + 1 == self.n:
            raise CancelTrainException


@contextmanager
def rendered_by_the_loader(on: bool) -> Iterator[None]:
    """Compute the spectrograms of every batch before its augmentation as well, as they were before."""
    attach = AugmentBatch.attach
    if on:
        AugmentBatch.attach = lambda self: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        AugmentBatch.attach = attach  # type: ignore[method-assign]


def epoch_table(data: Path, folder: Path, rounds: int) -> list[str]:
    """Compare training epochs."""
    lines = [
        "| network | parameters | augmentation | from disk, ms a clip | from memory, ms a clip | ratio | waiting |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (arch, width, crop_s, batches) in NETWORKS.items():
        for augmented in (True, False):
            kinds = ("wave", "device") if augmented else ("wave", "device", "device_features")
            learners = {cache: _learner(data, cache, folder, arch, width, crop_s, augmented, batches)
                        for cache in kinds}
            times: dict[str, list[float]] = {cache: [] for cache in kinds}
            for _ in range(rounds + 1):
                for cache, (learn, _) in learners.items():
                    with rendered_by_the_loader(cache == "wave"), learn.no_bar(), learn.no_logging():
                        start = time.thread_time()
                        learn.fit(1, 1e-3)
                        times[cache].append((time.thread_time() - start) / batches / 16 * 1e3)
            disk = statistics.median(times["wave"][1:])
            for cache in kinds[1:]:
                ms, (learn, stop) = statistics.median(times[cache][1:]), learners[cache]
                label = ("as default" if augmented else "none") + (", features" if cache == "device_features" else "")
                lines.append(
                    f"| {name}, crops of {crop_s:g} s | {count_parameters(learn.model):,} | {label} | {disk:.2f} | "
                    f"{ms:.2f} | {disk / ms:.2f} | {stop.waited / batches / 16 * 1e3 / ms:.1%} |"
                )
    return lines


def _learner(data, cache, folder, arch, width, crop_s, augmented, batches):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    dls, stop = loaders(data, cache, folder, crop_s), _Stop(batches)
    learn = fat_learner(dls, arch, width=width, cbs=[stop, *(default_augmentations() if augmented else [])])
    learn.dls.loaders[1] = learn.dls.valid.new(n=0)
    return learn, stop


def main(argv: list[str] | None = None) -> str:
    """Run the benchmark, write its report and return the table."""
    parser = argparse.ArgumentParser(description="Clips in memory, beside clips on disk.")
    parser.add_argument("data", type=Path, nargs="?", default=fat_sample())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "loader.md")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        loader_lines = loader_table(args.data, Path(folder), args.rounds)
        epoch_lines = epoch_table(args.data, Path(folder), args.rounds)
    about = (
        f"Medians of {args.rounds} rounds, front end ninth, batches of 16, one thread on {os.cpu_count()} cores of "
        f"{platform.machine()}, torch {torch.__version__}. \"Waiting\" is the part of the time in which the loop waits "
        "for a batch from memory."
    )
    table = "\n".join([about, "", *loader_lines, "", *epoch_lines])
    return write_report("The loader", "python -m benchmarks.loader DATA", table, args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
