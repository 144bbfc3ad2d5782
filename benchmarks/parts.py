"""Rows of a large prediction in parts: what they cost beyond the network, and what kills leave.

    python -m benchmarks.parts [--rows 100000] [--part 1000] [--kills 10] [--out benchmarks/results/parts.md]

The sounds are hard links to a short file, and the network is replaced by a constant, so that what is measured is the
work around it: names, identity, files of parts, joining. A process that predicts is killed `--kills` times at random
moments and started again; the result must have each row once, in its order. Peaks are those of the process (VmHWM).
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.timing import write_report
from fatai.experiment import parts
from fatai.experiment.parts import predict_in_parts

TAGS = tuple(f"tag_{k:02}" for k in range(80))


class ConstantBatch:
    """Columns of a fixed probability for each sound that exists, in place of a network."""

    def __init__(self, run: str, **options: Any):
        self.tags = TAGS

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return the columns that `TagBatch` returns."""
        n = len(batch["path"])
        is_there = np.array([os.path.exists(path) for path in batch["path"]])
        return {
            "path": np.asarray(batch["path"]), **{tag: np.full(n, k / 100) for k, tag in enumerate(TAGS)},
            "status": np.where(is_there, "ok", "unreadable").astype(object), "reason": np.full(n, "", dtype=object),
        }


def predict(folder: Path, rows: int, part: int) -> None:
    """Predict all rows below a folder, and print seconds and the peak of memory in MB."""
    parts.TagBatch = ConstantBatch  # type: ignore[misc, assignment]
    paths = [str(folder / "sounds" / f"{k // 1000:03}" / f"{k:06}.wav") for k in range(rows)]
    items = pd.DataFrame({"fname": [Path(path).name for path in paths], "path": paths})
    (folder / "run").mkdir(exist_ok=True)
    start = time.perf_counter()
    predict_in_parts(folder / "run", items, folder / "tags.parquet", rows=part)
    seconds = time.perf_counter() - start
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    print(f"{seconds:.2f} s, peak {int(peak[1]) // 1024 if peak else 0} MB")


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--part", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/parts.md"))
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        predict(args.worker, args.rows, args.part)
        return
    lines = ["| rows | kills | microseconds a row | peak MB |", "|---|---|---|---|"]
    for rows, kills in ((args.rows // 10, 0), (args.rows, 0), (args.rows, args.kills)):
        seconds, peak = measure(rows, args.part, kills)
        lines.append(f"| {rows:,} | {kills} | {'' if kills else f'{1e6 * seconds / rows:.0f}'} | {peak} |")
    about = __doc__.split("\n\n")[2].replace("\n", " ")
    write_report("Predictions in parts", "python -m benchmarks.parts", about + "\n\n" + "\n".join(lines), args.out)


def measure(rows: int, part: int, kills: int) -> tuple[float, int]:
    """Return seconds and peak MB of the last process, after `kills` that were killed; check the rows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for k in range(rows):
            path = folder / "sounds" / f"{k // 1000:03}" / f"{k:06}.wav"
            if k % 1000 == 0:  # file systems limit the links to one file
                path.parent.mkdir(parents=True)
                path.write_bytes(b"RIFF")
                first = path
            else:
                os.link(first, path)
        command = [sys.executable, "-m", "benchmarks.parts", "--worker", name, "--rows", str(rows), "--part", str(part)]
        draw = random.Random(0)
        for _ in range(kills):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            store, n_before = folder / "tags.parquet.parts", len(list((folder / "tags.parquet.parts").glob("part-*")))
            while process.poll() is None and len(list(store.glob("part-*"))) <= n_before + draw.randrange(3):
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = pd.read_parquet(folder / "tags.parquet", columns=["fname", "status"])
        assert list(found["fname"]) == [f"{k:06}.wav" for k in range(rows)], "a row is missing, doubled or misplaced"
        assert set(found["status"]) == {"ok"}
    seconds, peak = re.search(r"([\d.]+) s, peak (\d+) MB", printed).groups()  # type: ignore[union-attr]
    return float(seconds), int(peak)


if __name__ == "__main__":
    main()
