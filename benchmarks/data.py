"""Loading of data: how long a training step waits for a batch, and how memory grows with the number of cached clips.

The waiting time is that of `next()` on the loader in the second epoch, compared with the time of one M3 step on the
same batches; the loader has its default number of workers, which is none on a CPU. Memory is the peak of a fresh
process that builds a feature cache and then cuts a crop from every clip; many clips are hard links of few real files,
so each is read, transformed and stored separately.

    python -m benchmarks.data [--steps 3] [--clips 320 25000] [--out benchmarks/results/data.md]
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from fatai.audio.io import load_audio, save_audio
from fatai.data.blocks import FATDataLoaders
from fatai.data.cache import ClipCache
from fatai.data.config import ClipConfig
from fatai.data.datasets.fat2019 import fat_sample
from fatai.io.atomic import write_text
from fatai.models import create_model

_CHILD = "import sys; from benchmarks.data import cache_and_read; cache_and_read(sys.argv[1], sys.argv[2])"


def waiting(cache: str, folder: Path, steps: int) -> tuple[float, float]:
    """Return the median milliseconds of waiting for a batch in the second epoch, and of a step of M3 on it."""
    dls = FATDataLoaders.from_path(
        fat_sample(), crop_s=4, bs=32, valid_pct=0, noisy=True, cache=cache, cache_dir=folder
    )
    model = create_model("m3", len(dls.tags), dls.to_spec.n_channels).to(dls.device)
    optimizer = torch.optim.Adam(model.parameters())
    for _ in dls.train:
        pass
    waits, busy = [], []
    batches = iter(dls.train)
    for _ in range(min(steps, len(dls.train))):
        start = time.perf_counter()
        spec, targ = next(batches)
        fetched = time.perf_counter()
        logits = model(spec.as_subclass(torch.Tensor))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, targ.as_subclass(torch.Tensor))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # waits for the device
        waits.append(fetched - start)
        busy.append(time.perf_counter() - fetched)
    return statistics.median(waits) * 1e3, statistics.median(busy) * 1e3


def peak_mb() -> float:
    """Return the peak resident memory of this process, not counting the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def cache_and_read(clips: str, folder: str) -> None:
    """Build the cache of all files in `clips`, read a crop of each, and print the peaks of memory."""
    files = sorted(e.path for e in os.scandir(clips))
    settings = ClipConfig(crop_s=2)
    before = peak_mb()
    cache = ClipCache.open_or_build(files, settings, kind="features", folder=folder)
    built = peak_mb()
    for i in range(len(cache)):
        cache.crop(i, 0, settings.crop_frames)
    print(before, built, peak_mb(), cache.nbytes / 2**20)


def memory(n: int, real: list[Path], folder: Path) -> tuple[float, float, float, float, float]:
    """Return the peaks in MB before, after building and after reading a cache of `n` clips; its size in MB; seconds."""
    clips = folder / f"clips_{n}"
    clips.mkdir()
    for k in range(n):
        os.link(real[k % len(real)], clips / f"{k:06d}.wav")
    start = time.perf_counter()
    command = [sys.executable, "-c", _CHILD, str(clips), str(folder / f"cache_{n}")]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    before, built, read, size = map(float, out.split())
    return before, built, read, size, time.perf_counter() - start


def main(argv: list[str] | None = None) -> str:
    """Run the benchmark, write its report and return the table."""
    parser = argparse.ArgumentParser(description="Waiting for data, and memory of a cache.")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--clips", type=int, nargs="*", default=[320, 25000])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "data.md")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = ["| cache | waiting for a batch of 32, ms | M3 step, ms | waiting / step |", "|---|---|---|---|"]
        for cache in ("none", "wave", "features"):
            wait, step = waiting(cache, folder, args.steps)
            lines.append(f"| {cache} | {wait:.1f} | {step:.0f} | {wait / step:.2%} |")
        files = sorted((fat_sample() / "train_curated").iterdir())
        real = [save_audio(folder / f"{f.stem}.wav", load_audio(f, 44100), 44100) for f in files]
        lines += [
            "",
            "| clips | cache, MB | peak before, MB | when built, MB | when read, MB | seconds |",
            "|---|---|---|---|---|---|",
        ]
        peaks = []
        for n in args.clips:
            before, built, read, size, took = memory(n, real, folder)
            peaks.append(read)
            lines.append(f"| {n:,} | {size:.0f} | {before:.0f} | {built:.0f} | {read:.0f} | {took:.0f} |")
        if len(peaks) > 1:
            lines += ["", f"The peaks differ by {max(peaks) - min(peaks):.0f} MB."]
    device = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores of {platform.machine()}"
    )
    about = f"Median of {args.steps} steps, crops of 4 s, front end ninth, on {device}, torch {torch.__version__}."
    table = "\n".join([about, "", *lines])
    print(table)
    write_text(args.out, f"# The data path\n\n    python -m benchmarks.data\n\n{table}\n")
    return table


if __name__ == "__main__":
    main(sys.argv[1:])
