"""What callbacks and random changes of the 9th place's fit cost, beside the step of its network.

    python -m benchmarks.overhead [--batches 6] [--bs 16] [--width 1] [--out benchmarks/results/overhead.md]

A fit of M3 on the bundled sample with everything that the recipe gives it: mixup, SpecAugment, weights of noisy clips, clamped gradients,
the schedule, the best epoch kept (here every epoch is one), history.csv, the state to resume from, and fastai's own callbacks. Whatever a
callback does is timed where the learner calls it, so nothing is a difference of two noisy numbers: what remains of a batch is the network's
own step, forward, loss, backward and optimiser. Seconds within a batch are those of the thread; those at an epoch's end, which write files,
are of the wall.
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

from benchmarks.rounds import report  # noqa: E402
from fatai.augment.spec_augment import SpecAugment  # noqa: E402
from fatai.augment.mixup import LinearMixUp  # noqa: E402
from fatai.data.blocks import FATDataLoaders  # noqa: E402
from fatai.data.datasets.fat2019 import fat_sample  # noqa: E402
from fatai.models import count_parameters  # noqa: E402
from fatai.callbacks.callbacks import ClipGradValue, TerminateOnNaN, schedule_callback  # noqa: E402
from fatai.callbacks.history import EpochCSVLogger  # noqa: E402
from fatai.callbacks.checkpoint import SaveBestModel  # noqa: E402
from fatai.training.learner import FatLearner, fat_learner  # noqa: E402
from fatai.training.precision import best_dtype  # noqa: E402
from fatai.callbacks.resume import ResumeTraining  # noqa: E402
from fatai.callbacks.sample_weights import SampleWeights  # noqa: E402

# Of a fold of the competition's curated clips, without the six corrupted ones.
CLIPS = 4964 * 4 // 5


class Clock:
    """Seconds of a learner's callbacks and batches in its second epoch; the first warms up.

    `in_batch`, `at_epoch`: seconds by callback; `batch_s`: of whole training batches, callbacks included; `batches`: their number.
    """

    def __init__(self, learn: FatLearner):
        self.learn, self.one_batch = learn, learn.one_batch
        self.in_batch: dict[str, float] = defaultdict(float)
        self.at_epoch: dict[str, float] = defaultdict(float)
        self.batch_s, self.batches, self.inside = 0.0, 0, False
        learn._call_one, learn.one_batch = self.call, self.batch

    def counts(self) -> bool:
        return getattr(self.learn, "epoch", 0) == 1

    def call(self, event: str) -> None:
        """What `Learner._call_one` does; choosing and ordering the callbacks counts as well."""
        seconds, now = (self.in_batch, time.thread_time) if self.inside else (self.at_epoch, time.perf_counter)
        took: dict[str, float] = {}
        begun = now()
        for cb in self.learn.cbs.sorted("order"):
            started = now()
            cb(event)
            took[type(cb).__name__] = now() - started
        took["fastai's dispatch"] = now() - begun - sum(took.values())
        if self.counts() and not event.endswith("_fit"):
            for name, s in took.items():
                seconds[name] += s

    def batch(self, i: int, b: Any) -> None:
        self.inside = self.learn.training
        started = time.thread_time()
        self.one_batch(i, b)
        if self.inside and self.counts():
            self.batch_s += time.thread_time() - started
            self.batches += 1
        self.inside = False


def timed_fit(batches: int, bs: int, width: float, folder: Path) -> tuple[Clock, int]:
    """Two epochs of `batches` batches as the 9th place fits; also the number of parameters."""
    dls = FATDataLoaders.from_path(
        fat_sample(), crop_s=4, bs=bs, valid_pct=0.2, seed=0, noisy=True, num_workers=0, device=torch.device("cpu"),
    )
    dls.train.n = batches * bs
    # Weights as the method "ninth" gives them: of noisy clips, beside 1 for the others.
    learn = fat_learner(
        dls, "m3", width=width, loss_options={"reduction": "sum"}, mixup=LinearMixUp(), spec_augment=SpecAugment(),
        cbs=[SampleWeights(0.5), ClipGradValue(1.0)], no_decay="bias", path=folder,
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
                ResumeTraining(folder / "state.safetensors"),
            ],
        )
    return clock, count_parameters(learn.model)


def table(clock: Clock, parameters: int, args: argparse.Namespace) -> str:
    of_batch = {name: 1e3 * s / clock.batches for name, s in clock.in_batch.items()}
    at_epoch = {name: 1e3 * s for name, s in clock.at_epoch.items()}
    own = 1e3 * clock.batch_s / clock.batches - sum(of_batch.values())
    n = CLIPS // args.bs
    share = (sum(of_batch.values()) * n + sum(at_epoch.values())) / (own * n)
    names = sorted({*of_batch, *at_epoch}, key=lambda name: -(of_batch.get(name, 0) * n + at_epoch.get(name, 0)))
    rows = [
        f"| {name} | {of_batch.get(name, 0):.2f} | {at_epoch.get(name, 0):.1f} | "
        f"{(of_batch.get(name, 0) * n + at_epoch.get(name, 0)) / (own * n):.2%} |"
        for name in names
    ]
    reached = "within" if share <= 0.1 else "above"
    return "\n".join(
        [
            f"M3 ({parameters:,} parameters), crops of 4 s, batches of {args.bs}, {clock.batches} of them; one thread of {platform.machine()}, "
            f"torch {torch.__version__}, {best_dtype('cpu')}. The network's own step takes {own:.0f} ms a batch; the last column is for an "
            f"epoch of {n} batches ({CLIPS:,} clips), against the network's own time.",
            "",
            "| | ms a batch | ms an epoch beside | share of an epoch |",
            "|---|---|---|---|",
            *rows,
            f"| all | {sum(of_batch.values()):.2f} | {sum(at_epoch.values()):.1f} | {share:.2%} |",
            "",
            f"All together cost {share:.1%} of the network's own time, {reached} the 10 % allowed.",
        ]
    )


def main(argv: list[str] | None = None) -> None:
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
    report("Callbacks and random changes beside the network", command, table(clock, parameters, args), args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
