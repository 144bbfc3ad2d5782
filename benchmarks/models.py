"""Every model: parameters, GFLOP, and milliseconds per clip of the plain way and of fatai's, in one run.

The plain way is float32 in torch's default layout; fatai's is the choice of `precision="auto"` for the device
(channels_last, bfloat16 where the device computes with it). Rounds of the two alternate; the median round counts. A
training step is forward, loss and backward.

    python -m benchmarks.models [NAMES] [--rounds 5] [--bs 16] [--mels 64] [--frames 256] [--out FILE]

Ratios depend on the processor: bfloat16 by AMX tiles is several times as fast as float32, by AVX-512 alone at most
twice. The head of the table names the instructions.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fatai.io.atomic import write_text
from fatai.models import count_parameters, create_model
from fatai.models.summary import PUBLISHED_CHANNELS
from fatai.registry import MODELS
from fatai.training.autocast import autocast_for, best_dtype, fast_layout
from fatai.training.learner import named_loss

N_TAGS = 80
NO_TILES = (
    "This CPU computes bfloat16 by AVX-512, at most twice as many products a cycle as float32, and has no AMX tiles, "
    "which make several times as many. Ratios above 2 come from layout and memory; 3 in training is out of reach."
)


@dataclass(frozen=True)
class Measured:
    """Measurements of one model; times are milliseconds per clip of the plain way and of fatai's."""

    name: str
    parameters: int
    gflop: float
    train: tuple[float, float]
    infer: tuple[float, float]

    def row(self) -> str:
        """Return a row of the table."""
        ratios = [f"{plain:.1f} | {fast:.1f} | {plain / fast:.2f}x" for plain, fast in (self.train, self.infer)]
        return f"| {self.name} | {self.parameters:,} | {self.gflop:.2f} | {' | '.join(ratios)} |"


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def gflop(name: str, spec: Tensor, in_channels: int, **options: Any) -> float:
    """Return the GFLOP of one clip forward, counted without computing."""
    with torch.device("meta"):
        model = create_model(name, N_TAGS, in_channels, **options).eval()
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            model(torch.empty(1, *spec.shape[1:]))
    return counter.get_total_flops() / 1e9


def steps(name: str, spec: Tensor, width: float | None = None) -> dict[tuple[str, str], Callable[[], None]]:
    """Return functions that train ("train") and predict ("infer") one batch, each "fp32" and "auto".

    Parameters
    ----------
    name, width
        The model; None is the published width.
    spec
        Shape (batch, channels, mels, frames).
    """
    device, options = spec.device, {} if width is None else {"width": width}
    targ = torch.zeros(len(spec), N_TAGS, device=device)
    torch.manual_seed(0)
    plain = create_model(name, N_TAGS, spec.shape[1], **options).to(device)
    fast = create_model(name, N_TAGS, spec.shape[1], **options).to(device)
    fast.load_state_dict(plain.state_dict())
    fast_layout(fast, device)

    def train(model: nn.Module, precision: str) -> None:
        model.train()
        with autocast_for(device, precision):
            logits = model(spec)
        named_loss("bce", model)(logits, targ).backward()

    def infer(model: nn.Module, precision: str) -> None:
        model.eval()
        with torch.inference_mode(), autocast_for(device, precision):
            model(spec)

    return {
        (mode, precision): partial(run, model, precision)
        for model, precision in ((plain, "fp32"), (fast, "auto"))
        for mode, run in (("train", train), ("infer", infer))
    }


def measure(name: str, bs: int, mels: int, frames: int, rounds: int, device: torch.device) -> Measured:
    """Measure one model."""
    in_channels = PUBLISHED_CHANNELS.get(name, 1)
    spec = torch.randn(bs, in_channels, mels, frames, device=device)
    ways = steps(name, spec)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in ways}
    for k in range(rounds + 1):
        for key, run in ways.items():
            took = seconds(run, device)
            if k:  # the first round warms up
                times[key].append(took)
    ms = {key: 1000 * statistics.median(values) / bs for key, values in times.items()}
    return Measured(
        name, count_parameters(create_model(name, N_TAGS, in_channels)), gflop(name, spec, in_channels),
        (ms["train", "fp32"], ms["train", "auto"]), (ms["infer", "fp32"], ms["infer", "auto"]),
    )


def capabilities() -> dict[str, Any]:
    """Return the capabilities of the CPU that torch detects."""
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}


def head(args: argparse.Namespace, device: torch.device) -> list[str]:
    """Return the head of the report."""
    has = capabilities()
    units = ", ".join(u for u in ("amx_bf16", "avx512_bf16", "avx512_f", "avx2") if has.get(u)) or "unknown"
    where = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{has.get('cpu_name') or platform.machine()} ({units})"
    )
    return [
        "# Models: the plain way and fatai's", "",
        f"    python -m benchmarks.models {' '.join(args.names)} --rounds {args.rounds} --bs {args.bs}", "",
        f"{where}, {torch.get_num_threads()} threads, torch {torch.__version__}; auto is {best_dtype(device)}; "
        f"{args.bs} clips of {args.mels} x {args.frames}, median of {args.rounds} alternating rounds, ms per clip.", "",
        "| model | parameters | GFLOP | train, plain | train, fatai | ratio | infer, plain | infer, fatai | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]


def main() -> None:
    """Run the benchmark and write its report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="models; all registered ones without any")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bs", type=int, default=16)
    parser.add_argument("--mels", type=int, default=64)
    parser.add_argument("--frames", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/models.md"))
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lines = head(args, device)
    print("\n".join(lines))
    for name in args.names or MODELS.names():
        lines.append(measure(name, args.bs, args.mels, args.frames, args.rounds, device).row())
        print(lines[-1], flush=True)
    if device.type == "cpu" and best_dtype(device) is torch.bfloat16 and not capabilities().get("amx_bf16"):
        lines += ["", NO_TILES]
    write_text(args.out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
