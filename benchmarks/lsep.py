"""LSEP of a batch: fatai's product of two sums against the formula as written, over all pairs of tags.

Both compute the loss of the same logits and its gradient; values and gradients must agree. Then rounds of the two
alternate, and the median round counts. Memory is the peak of the tensors that operations return, forward and backward;
the batch itself and temporary buffers inside an operation are not counted.

    python -m benchmarks.lsep [--rounds 9] [--out benchmarks/results/lsep.md]

80 tags are the competition's, 527 AudioSet's.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from weakref import finalize

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.timing import alternate, write_report
from fatai.registry import LOSSES

BATCHES = ((64, 80), (128, 80), (64, 527))


def plain_way(logits: Tensor, targ: Tensor) -> Tensor:
    """Compute the mean over clips of log(1 + sum of exp(s_j - s_i) over present i and absent j), all pairs at once."""
    pairs = (targ[:, :, None] > 0.5) & (targ[:, None, :] < 0.5)
    differences = (logits[:, None, :] - logits[:, :, None]).masked_fill(~pairs, -torch.inf)
    return torch.log1p(differences.exp().sum((1, 2))).mean()


def with_gradient(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, targ: Tensor) -> tuple[Tensor, Tensor]:
    """Return the value and the gradient with respect to the logits, shape (clips, tags)."""
    logits = logits.clone().requires_grad_()
    value = loss(logits, targ)
    return value.detach(), torch.autograd.grad(value, logits)[0]


class LiveBytes(TorchDispatchMode):
    """Dispatch mode that counts the `live` bytes of storages that returned tensors keep alive, and their `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # A view or an in-place operation returns a storage of its arguments.
        arguments = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        returned = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(returned):
            if not isinstance(tensor, Tensor):
                continue
            if (storage := tensor.untyped_storage())._cdata not in self.known | arguments:
                self.known.add(storage._cdata)
                self.live += storage.nbytes()
                finalize(storage, self.freed, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return returned

    def freed(self, storage: int, n_bytes: int) -> None:
        """Subtract a storage that was released."""
        self.known.discard(storage)
        self.live -= n_bytes


def peak_bytes(function: Callable[[], object]) -> int:
    """Return the peak bytes of the tensors that a function creates."""
    with LiveBytes() as counter:
        function()
    return counter.peak


def row(clips: int, tags: int, rounds: int) -> str:
    """Return one line of the table."""
    logits, targ = 3 * torch.randn(clips, tags), (torch.rand(clips, tags) < 2 / tags).float()
    ours = LOSSES.build("lsep")
    ways = [lambda loss=loss: with_gradient(loss, logits, targ) for loss in (plain_way, ours)]
    for expected, value in zip(*(way() for way in ways), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-7)
    plain_s, ours_s = alternate(rounds, *ways)
    plain_mb, ours_mb = (peak_bytes(way) / 1e6 for way in ways)
    return (
        f"| {clips} x {tags} | {1e3 * plain_s:.2f} | {1e3 * ours_s:.2f} | {plain_s / ours_s:.1f} | {plain_mb:.2f} | "
        f"{ours_mb:.2f} | "
        f"{plain_mb / ours_mb:.0f} |"
    )


def main(argv: list[str] | None = None) -> str:
    """Run the benchmark, write its report and return the table."""
    parser = argparse.ArgumentParser(
        description="Time and memory of LSEP with its gradient, against the form over all pairs."
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "lsep.md")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(2019)
    table = "\n".join(
        [
            f"Loss and gradient of a batch; median of {args.rounds} alternating rounds, one thread of "
            f"{platform.machine()}; torch {torch.__version__}. Values and gradients agree.",
            "",
            "| clips x tags | all pairs, ms | fatai, ms | times as fast | all pairs, MB | fatai, MB | times smaller |",
            "|---|---|---|---|---|---|---|",
            *(row(clips, tags, args.rounds) for clips, tags in BATCHES),
        ]
    )
    return write_report("LSEP of a batch", "python -m benchmarks.lsep", table, args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
