"""Cost of callbacks and augmentations of the 9th place's fit, relative to the step of its network.

    python -m benchmarks.overhead [--batches 6] [--bs 16] [--width 1] [--out benchmarks/results/overhead.md]

A fit of M3 on the bundled sample with everything that the recipe uses: mixup, SpecAugment, weights of noisy clips,
clipped gradients, the schedule, the best epoch saved (here every epoch is one), history.csv, the state to resume from,
and fastai's own callbacks. Callbacks are timed where the learner calls them, so no result is a difference of two noisy
numbers: the rest of a batch is the network's own step, forward, loss, backward and optimizer. Seconds within a batch
are those of the thread; those at the end of an epoch, which write files, are of the wall clock.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"  # read when the libraries below are loaded

import torch  # noqa: E402

from benchmarks.timing import write_report  # noqa: E402
from fatai.augment.mixup import LinearMixUp  # noqa: E402
from fatai.augment.spec_augment import SpecAugment  # noqa: E402
from fatai.callbacks.checkpoint import SaveBestModel  # noqa: E402
from fatai.callbacks.csv_logger import EpochCSVLogger  # noqa: E402
from fatai.callbacks.failure import TerminateOnNaN  # noqa: E402
from fatai.callbacks.gradients import ClipGradValue  # noqa: E402
from fatai.callbacks.resume import ResumeTraining  # noqa: E402
from fatai.callbacks.sample_weights import SampleWeights  # noqa: E402
from fatai.callbacks.schedulers import schedule_callback  # noqa: E402
from fatai.data.blocks import FATDataLoaders  # noqa: E402
from fatai.data.datasets.fat2019 import fat_sample  # noqa: E402
from fatai.inference.learner import FatLearner, fat_learner  # noqa: E402
from fatai.models import count_parameters  # noqa: E402
from fatai.training.autocast import best_dtype  # noqa: E402

# Of a fold of the competition's curated clips, without the six corrupted ones.
CLIPS = 4964 * 4 // 5


class Clock:
    """Seconds of the callbacks and batches of a learner in its second epoch; the first warms up.

    Attributes
    ----------
    in_batch, at_epoch
        Seconds by callback.
    batch_s
        Seconds of whole training batches, callbacks included.
    batches
        Number of batches.
    """

    def __init__(self, learn: FatLearner):
        self.learn, self.one_batch = learn, learn.one_batch
        self.in_batch: dict[str, float] = defaultdict(float)
        self.at_epoch: dict[str, float] = defaultdict(float)
        self.batch_s, self.batches, self.inside = 0.0, 0, False
        learn._call_one, learn.one_batch = self.call, self.batch

    def counts(self) -> bool:
        """Return true in the epoch that is measured."""
        return getattr(self.learn, "epoch", 0) == 1

    def call(self, event: str) -> None:
        """Replace `Learner._call_one`; choosing and ordering the callbacks is timed too."""
        seconds, now = (self.in_batch, time.thread_time) if self.inside else (self.at_epoch, time.perf_counter)
        took: dict[str, float] = {}
        start_all = now()
        for cb in self.learn.cbs.sorted("order"):
            start = now()
            cb(event)
            took[type(cb).__name__] = now() - start
        took["fastai's dispatch"] = now() - start_all - sum(took.values())
        if self.counts() and not event.endswith("_fit"):
            for name, s in took.items():
                seconds[name] += s

    def batch(self, i: int, b: Any) -> None:
        """Replace `Learner.one_batch`."""
        self.inside = self.learn.training
        start = time.thread_time()
        self.one_batch(i, b)
        if self.inside and self.counts():
            self.batch_s += time.thread_time() - start
            self.batches += 1
        self.inside = False


def timed_fit(batches: int, bs: int, width: float, folder: Path) -> tuple[Clock, int]:
    """Fit two epochs of `batches` batches as the 9th place; also return the number of parameters."""
    dls = FATDataLoaders.from_path(
        fat_sample(), crop_s=4, bs=bs, valid_pct=0.2, seed=0, noisy=True, num_workers=0, device=torch.device("cpu"),
    )
    dls.train.n = batches * bs
    # Weights as the method "ninth_place_low_loss" sets them: of noisy clips, and 1 for the others.
    learn = fat_learner(
        dls, "m3", width=width, loss_options={"reduction": "sum"}, mixup=LinearMixUp(), spec_augment=SpecAugment(),
        cbs=[SampleWeights(0.5), ClipGradValue(1.0)], no_weight_decay="bias", path=folder,
    )
    clock = Clock(learn)
    with learn.no_logging(), learn.no_bar():
        learn.fit(
            2,
            1e-3,
            cbs=[
                TerminateOnNaN(),
                schedule_callback("warmup_cosine", 2, 1e-3),
                SaveBestModel(min_delta=-1.0),
                EpochCSVLogger(folder / "history.csv"),
                ResumeTraining(folder / "state.pt"),
            ],
        )
    return clock, count_parameters(learn.model)


def table(clock: Clock, parameters: int, args: argparse.Namespace) -> str:
    """Return the table as Markdown."""
    per_batch = {name: 1e3 * s / clock.batches for name, s in clock.in_batch.items()}
    at_epoch = {name: 1e3 * s for name, s in clock.at_epoch.items()}
    step = 1e3 * clock.batch_s / clock.batches - sum(per_batch.values())
    n = CLIPS // args.bs
    fraction = (sum(per_batch.values()) * n + sum(at_epoch.values())) / (step * n)
    names = sorted({*per_batch, *at_epoch}, key=lambda name: -(per_batch.get(name, 0) * n + at_epoch.get(name, 0)))
    rows = [
        f"| {name} | {per_batch.get(name, 0):.2f} | {at_epoch.get(name, 0):.1f} | "
        f"{(per_batch.get(name, 0) * n + at_epoch.get(name, 0)) / (step * n):.2%} |"
        for name in names
    ]
    compared = "within" if fraction <= 0.1 else "above"
    return "\n".join(
        [
            f"M3 ({parameters:,} parameters), crops of 4 s, batches of {args.bs}, {clock.batches} of them; one thread "
            f"of {platform.machine()}, torch {torch.__version__}, {best_dtype('cpu')}. The network's own step takes "
            f"{step:.0f} ms a batch; the last column is for an epoch of {n} batches ({CLIPS:,} clips), relative "
            "to the network's own time.",
            "",
            "| | ms a batch | further ms an epoch | fraction of an epoch |",
            "|---|---|---|---|",
            *rows,
            f"| all | {sum(per_batch.values()):.2f} | {sum(at_epoch.values()):.1f} | {fraction:.2%} |",
            "",
            f"All together cost {fraction:.1%} of the network's own time, {compared} the 10 % allowed.",
        ]
    )


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and write its report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--bs", type=int, default=16)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "overhead.md")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        clock, parameters = timed_fit(args.batches, args.bs, args.width, Path(folder))
    command = f"python -m benchmarks.overhead --batches {args.batches} --bs {args.bs}" + f" --width {args.width:g}" * (
        args.width != 1
    )
    write_report("Callbacks and augmentations relative to the "
                 "network", command, table(clock, parameters, args), args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
