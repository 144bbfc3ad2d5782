"""Commands with threads that spin and threads that sleep while they wait, alone and beside a busy process.

    python -m benchmarks.threads [--clips 160] [--epochs 2] [--rounds 3] [--out benchmarks/results/threads.md]

Whole commands in processes of their own, on the bundled sample with the recipe `quick`: `predict` of some clips, and
`run` of one fold. The ways take turns within each round, so that other load slows down all of them alike. "spinning"
is what torch does without fatai's policy: one thread per core, OpenMP's default way to wait. "sleeping" has as many
threads, which wait passively. "fatai" is the command without any setting. The neighbor is a process that computes
without end.
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.timing import write_report
from fatai.data.datasets.fat2019 import fat_sample
from fatai.threads import COUNT_VARIABLES, WAIT_VARIABLES, available_cores

CORES = str(available_cores())
WAYS = {
    # The default of GNU's OpenMP, as a number: without a setting, fatai would set its own.
    "spinning": {"OMP_NUM_THREADS": CORES, "GOMP_SPINCOUNT": "300000"},
    "sleeping": {"OMP_NUM_THREADS": CORES, "OMP_WAIT_POLICY": "PASSIVE"},
    "fatai": {},
}


def environment(settings: dict[str, str]) -> dict[str, str]:
    """Return the environment of a command, with no other settings of threads."""
    plain = {k: v for k, v in os.environ.items() if k not in (*WAIT_VARIABLES, *COUNT_VARIABLES)}
    return {**plain, **settings}


def seconds(arguments: list[str], settings: dict[str, str]) -> float:
    """Run a command and return its seconds of wall clock."""
    command = [sys.executable, "-m", "fatai.cli", *arguments]
    started = time.perf_counter()
    subprocess.run(command, env=environment(settings), check=True, capture_output=True)
    return time.perf_counter() - started


@contextmanager
def neighbor(busy: bool) -> Iterator[None]:
    """Compute in another process within the context, if `busy`."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def main() -> None:
    """Time the commands and write the table, again after every round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/threads.md"))
    options = parser.parse_args()
    data = fat_sample()
    clips = sorted([*(data / "train_curated").iterdir(), *(data / "test").iterdir()])[:options.clips]
    with tempfile.TemporaryDirectory() as folder:
        train = ["run", str(data), "--recipe", "quick", "--fold", "0", "--no-predict", "--epochs", str(options.epochs)]
        seconds([*train, "--out", f"{folder}/run"], WAYS["fatai"])
        times: dict[tuple[str, bool, str], list[float]] = {}
        for number in range(options.rounds):
            for busy in (False, True):
                for way, settings in WAYS.items():
                    name = f"{way}_{busy}_{number}"
                    commands = {
                        f"predict, {len(clips)} clips": ["predict", f"{folder}/run", *map(str, clips)],
                        f"run quick, {options.epochs} epochs": [*train, "--out", f"{folder}/{name}"],
                    }
                    for command, arguments in commands.items():
                        with neighbor(busy):
                            took = seconds(arguments, settings)
                        times.setdefault((command, busy, way), []).append(took)
                        print(f"{command}, {'busy' if busy else 'alone'}, {way}: {took:.1f} s", flush=True)
            text = f"{table(times)}\n\n{notes(number + 1, os.getloadavg()[0])}"
            command = shlex.join(["python", "-m", "benchmarks.threads", *sys.argv[1:]])
            write_report("Threads that spin and threads that sleep", command, text, options.out)


def table(times: dict[tuple[str, bool, str], list[float]]) -> str:
    """Return the medians of the seconds, and those of the ratios within a round."""
    lines = ["| command | neighbor | spinning, s | sleeping, s | fatai, s | spinning / sleeping | spinning / fatai |"]
    lines.append("|---|---|---|---|---|---|---|")
    for command, busy in dict.fromkeys((command, busy) for command, busy, _ in times):
        of_way = {way: times[command, busy, way] for way in WAYS}
        ratios = [
            statistics.median(a / b for a, b in zip(of_way["spinning"], of_way[way], strict=True))
            for way in ("sleeping", "fatai")
        ]
        cells = [f"{statistics.median(of_way[way]):.1f}" for way in WAYS] + [f"{ratio:.2f}" for ratio in ratios]
        lines.append(f"| {command} | {'one busy process' if busy else 'none'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def notes(rounds: int, load: float) -> str:
    """Return a paragraph about the machine."""
    return (
        f"Wall clock of whole commands, with the start of Python and torch; medians of {rounds} rounds, and of the "
        f"ratios within a round. {CORES} cores of {platform.machine()}, torch {torch.__version__}. Load average of the "
        f"machine at the end: {load:.1f}; above 1 without a neighbor, other work ran beside the benchmark."
    )


if __name__ == "__main__":
    main()
