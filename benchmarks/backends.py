"""Predictions by OpenVINO against torch: CPU time for each clip, and once for each command, in both precisions.

    python -m benchmarks.backends RUN SOUNDS [--clips 80] [--rounds 3] [--out benchmarks/results/backends.md]

RUN is a finished run, SOUNDS a folder. The clips are predicted once and six times over, with both backends in turn: the
difference is the time of further clips, and what is left of the first call is that of the start, in which networks are
loaded and graphs compiled.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.timing import write_report
from fatai.audio.folders import find_sounds
from fatai.experiment.run_folder import FinishedRun, predict_with_run
from fatai.inference.predictions import Predictions
from fatai.models.openvino import BACKENDS
from fatai.training.autocast import best_dtype

REPEATS = 6


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and write its report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("sounds", type=Path)
    parser.add_argument("--clips", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "backends.md")
    args = parser.parse_args(argv)
    clips = find_sounds(args.sounds)[:args.clips]
    precisions = ["fp32", *(["bf16"] if best_dtype("cpu") == torch.bfloat16 else [])]
    recipe = FinishedRun.open(args.run).recipe
    lines = [
        f"{recipe.model.arch} at width {recipe.model.width or 1:g}, {len(FinishedRun.open(args.run).weights)} folds, "
        f"crops of {recipe.clips.crop_s:g} s, {len(clips)} clips; {torch.get_num_threads()} threads, medians of "
        f"{args.rounds} alternating rounds, CPU time of the process.",
        "",
        "| precision | torch, ms a clip | OpenVINO, ms a clip | ratio | start, torch | start, OpenVINO "
        "| largest difference of a probability | same first tag |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for precision in precisions:
        with tempfile.TemporaryDirectory() as folder:
            run = _with_precision(args.run, Path(folder) / "run", precision)
            lines.append(_row(run, clips, args.rounds, precision))
    write_report("Backends", f"python -m benchmarks.backends {args.run.name} SOUNDS", "\n".join(lines), args.out)


def _with_precision(run: Path, folder: Path, precision: str) -> Path:
    """Return a copy of a run, with links to its weights, that predicts in a precision."""
    opened = FinishedRun.open(run)
    folder.mkdir()
    for path in opened.weights:
        (folder / path.parent.name).symlink_to(path.parent.resolve())
    text = (run / "recipe.toml").read_text(encoding="utf-8")
    changed, n = re.subn(r'^precision = ".*"$', f'precision = "{precision}"', text, flags=re.MULTILINE)
    assert n == 1, f"{run}/recipe.toml has {n} lines of a precision"
    (folder / "recipe.toml").write_text(changed, encoding="utf-8")
    return folder


def _row(run: Path, clips: list[Path], rounds: int, precision: str) -> str:
    items = [(f"{k}_{i}", path) for k in range(REPEATS) for i, path in enumerate(clips)]
    once: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
    per_clip: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
    found: dict[str, Predictions] = {}
    for _ in range(rounds):
        for backend in BACKENDS:
            first, found[backend] = _seconds(run, items[:len(clips)], backend)
            whole, _ = _seconds(run, items, backend)
            rate = (whole - first) / (len(items) - len(clips))
            per_clip[backend].append(1000 * rate)
            once[backend].append(first - rate * len(clips))
    a, b = (found[backend].probs for backend in BACKENDS)
    ms, start = ([statistics.median(times[backend]) for backend in BACKENDS] for times in (per_clip, once))
    return (
        f"| {precision} | {ms[0]:.1f} | {ms[1]:.1f} | {ms[0] / ms[1]:.2f}x | {start[0]:.1f} s | {start[1]:.1f} s "
        f"| {np.abs(a - b).max():.1e} | {(a.argmax(1) == b.argmax(1)).mean():.0%} |"
    )


def _seconds(run: Path, items: list[tuple[str, Path]], backend: str) -> tuple[float, Predictions]:
    start = time.process_time()
    found = predict_with_run(run, items, backend=backend)
    return time.process_time() - start, found


if __name__ == "__main__":
    main(sys.argv[1:])
