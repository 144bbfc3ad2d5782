"""Predictions by OpenVINO against torch, and ONNX graphs in 8 bits against float32: CPU time, size and score.

    python -m benchmarks.backends RUN SOUNDS [--clips 80] [--rounds 3] [--out benchmarks/results/backends.md]
    python -m benchmarks.backends RUN SOUNDS --int8 [RUN ...]

RUN is a finished run, SOUNDS a folder. The clips are predicted once and six times over, with both backends in turn: the
difference is the time of further clips, and what is left of the first call is that of the start, in which networks are
loaded and graphs compiled. With --int8, fold 0 of these runs is exported in both precisions, and only the table of them
is printed; the time is that of onnxruntime for a batch of 4 crops, and the score that of held-out clips.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.timing import alternate, write_report
from fatai.audio.folders import find_sounds
from fatai.experiment.quantize import choose_models, export_int8
from fatai.experiment.run_folder import FinishedRun, predict_with_run
from fatai.export.onnx import export_onnx
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
    parser.add_argument("--int8", type=Path, nargs="*", metavar="RUN", help="further runs; prints the table alone")
    args = parser.parse_args(argv)
    if args.int8 is not None:
        print(int8_table([args.run, *args.int8], args.rounds))
        return
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


def int8_table(runs: list[Path], rounds: int) -> str:
    """Compare ONNX graphs of fold 0 of runs in float32 and 8 bits."""
    lines = [
        "| network | layers in 8 bits | float32, MB | int8, MB | ratio | float32, ms a crop | int8, ms a crop | ratio "
        "| score, float32 | score, int8 | clips | largest difference |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        with tempfile.TemporaryDirectory() as folder:
            chosen, paths = choose_models(run, 0), [Path(folder, name) for name in ("float32.onnx", "int8.onnx")]
            export_onnx(chosen.models, paths[0])
            found = export_int8(chosen, paths[1])
            waves = 0.1 * torch.randn(4, chosen.models[0].settings.crop_samples)
            ways = [partial(_session(path).run, ["probs"], {"wave": waves.numpy()}) for path in paths]
            ms = [seconds * 1000 / len(waves) for seconds in alternate(rounds, *ways)]
        sizes = found.float_bytes / 1e6, found.bytes / 1e6
        recipe = FinishedRun.open(run).recipe
        lines.append(
            f"| {recipe.model.arch} of {recipe.name}, crops of {recipe.clips.crop_s:g} s "
            f"| {found.graph.quantized} of {found.graph.layers} | {sizes[0]:.1f} | {sizes[1]:.1f} "
            f"| {sizes[0] / sizes[1]:.2f}x | {ms[0]:.1f} | {ms[1]:.1f} | {ms[0] / ms[1]:.2f}x "
            f"| {found.float_score:.4f} | {found.score:.4f} | {found.n_scored} | {found.largest:.2g} |"
        )
    return "\n".join(lines)


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


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
