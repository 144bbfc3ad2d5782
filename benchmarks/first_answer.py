"""Seconds of whole commands from their start to their answer, of this checkout and of another one.

    python -m benchmarks.first_answer OTHER [--clips 160] [--minutes 60] [--rounds 3] [--out FILE]

OTHER is a checkout of an earlier version, such as one of `git worktree add`. The other version trains one epoch of
recipe `default` on the bundled sample; then both predict one clip and many clips with that run, and tag a recording.
Every command is a process of its own, and the two versions take turns, so that other load slows down both alike. The
first row is the limit: importing torch.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile as sf

from benchmarks.timing import write_report

HERE = Path(__file__).parents[1]


class Cost(NamedTuple):
    """Seconds of the wall clock and of the CPU, and the peak of the memory in MB."""

    wall_s: float
    cpu_s: float
    mb: float


def measure(checkout: Path, arguments: list[str]) -> Cost:
    """Run Python with a checkout of fatai on its path."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", *arguments], env={**os.environ, "PYTHONPATH": str(checkout)},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=tempfile.gettempdir(),
    )
    assert process.stderr is not None
    errors = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{checkout}: {shlex.join(arguments[:8])} failed:\n{errors}")
    return Cost(time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def write_recording(path: Path, clips: list[Path], minutes: float) -> None:
    """Write a recording of mono clips, one after another, at the rate of the first."""
    rate = sf.info(clips[0]).samplerate
    same_rate = [clip for clip in clips if sf.info(clip).samplerate == rate]
    waves = [sf.read(clip, dtype="int16", always_2d=True)[0][:, 0] for clip in same_rate]
    n = round(minutes * 60 * rate)
    sf.write(path, np.resize(np.concatenate(waves), n), rate, subtype="PCM_16")


def main() -> None:
    """Time the commands and write the table, again after every round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("--clips", type=int, default=160)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/first_answer.md"))
    options = parser.parse_args()
    sample = HERE / "fatai" / "data" / "datasets" / "sample"
    clips = sorted([*(sample / "train_curated").iterdir(), *(sample / "test").iterdir()])
    clips = (clips * (1 + options.clips // len(clips)))[:options.clips]
    with tempfile.TemporaryDirectory() as folder:
        run, sounds = f"{folder}/run", Path(folder, "sounds")
        sounds.mkdir()
        for k, clip in enumerate(clips):
            (sounds / f"{k:04}{clip.suffix}").symlink_to(clip)
        recording = Path(folder, "recording.wav")
        write_recording(recording, clips, options.minutes)
        command = ["-m", "fatai.cli"]
        measure(options.other, [
            *command, "run", str(sample), "--recipe", "default", "--fold", "0", "--no-predict", "--epochs", "1",
            "--out", run,
        ])
        jobs = {
            "`import torch`": ["-c", "import torch"],
            "`from fatai.all import *`": ["-c", "from fatai.all import *"],
            "`predict`, one clip": [*command, "predict", run, str(clips[0])],
            f"`predict`, {len(clips)} clips": [*command, "predict", run, str(sounds)],
            f"`tag`, {options.minutes:g} minutes": [*command, "tag", run, str(recording)],
        }
        costs: dict[str, list[tuple[Cost, Cost]]] = {job: [] for job in jobs}
        for number in range(options.rounds):
            for job, arguments in jobs.items():
                pair = measure(options.other, arguments), measure(HERE, arguments)
                costs[job].append(pair)
                print(job, *(f"{cost.cpu_s:.2f} s of CPU" for cost in pair), flush=True)
            text = f"{table(costs)}\n\n{notes(number + 1)}"
            words = shlex.join(["python", "-m", "benchmarks.first_answer", "OTHER", *sys.argv[2:]])
            write_report("From the start of a command to its answer", words, text, options.out)


def table(costs: dict[str, list[tuple[Cost, Cost]]]) -> str:
    """Return medians of both versions, and of the ratios within a round."""
    lines = [
        "| command | CPU, other, s | CPU, now, s | now / other | wall, other, s | wall, now, s | now / other | "
        "memory, other, MB | now, MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for job, pairs in costs.items():
        cells = [job]
        for name, digits in (("cpu_s", 2), ("wall_s", 2), ("mb", 0)):
            other, now = ([getattr(cost, name) for cost in side] for side in zip(*pairs, strict=True))
            cells += [f"{statistics.median(side):.{digits}f}" for side in (other, now)]
            if name != "mb":
                cells.append(f"{statistics.median(b / a for a, b in zip(other, now, strict=True)):.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def notes(rounds: int) -> str:
    """Return a paragraph about the machine."""
    return (
        f"Whole processes, from the start of Python; medians of {rounds} rounds, and of the ratios within a round. "
        f"{os.cpu_count()} cores of {platform.machine()}. Load average of the machine at the end: "
        f"{os.getloadavg()[0]:.1f}; above 1, other work ran beside the benchmark, and the CPU columns count."
    )


if __name__ == "__main__":
    main()
