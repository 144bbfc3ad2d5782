"""LSEP of a batch: fatai's product of two sums against the formula as it is written, over all pairs of tags.

Both compute the loss of the same logits and its gradient; values and gradients must agree. Then rounds of one way and the other alternate,
and the median round counts. Memory is the most that the tensors which operations return, forward and back, hold at once; the batch itself
and what an operation needs inside are not in it.

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

from benchmarks.rounds import alternate, report
from fatai.registry import LOSSES

BATCHES = ((64, 80), (128, 80), (64, 527))


def plain_way(logits: Tensor, targ: Tensor) -> Tensor:
    """log(1 + sum of exp(s_j - s_i) over present i and absent j), mean over clips, with all pairs at once."""
    pairs = (targ[:, :, None] > 0.5) & (targ[:, None, :] < 0.5)
    differences = (logits[:, None, :] - logits[:, :, None]).masked_fill(~pairs, -torch.inf)
    return torch.log1p(differences.exp().sum((1, 2))).mean()


def with_gradient(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, targ: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient for the logits."""
    logits = logits.clone().requires_grad_()
    value = loss(logits, targ)
    return value.detach(), torch.autograd.grad(value, logits)[0]


class LiveBytes(TorchDispatchMode):
    """Watches each operation: `live` bytes of the storages that returned tensors keep alive, and their `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # A view or an operation in place returns what the caller holds already.
        held = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        returned = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(returned):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in self.known | held:
                self.known.add(storage._cdata)
                self.live += storage.nbytes()
                finalize(storage, self.freed, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return returned

    def freed(self, storage: int, n_bytes: int) -> None:
        self.known.discard(storage)
        self.live -= n_bytes


def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes of tensors that `work` makes and that live at once."""
    with LiveBytes() as found:
        work()
    return found.peak


def row(clips: int, tags: int, rounds: int) -> str:
    """One line of the table."""
    logits, targ = 3 * torch.randn(clips, tags), (torch.rand(clips, tags) < 2 / tags).float()
    ours = LOSSES.build("lsep")
    ways = [lambda loss=loss: with_gradient(loss, logits, targ) for loss in (plain_way, ours)]
    for theirs, mine in zip(*(way() for way in ways), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)
    plain_s, ours_s = alternate(rounds, *ways)
    plain_mb, ours_mb = (peak_bytes(way) / 1e6 for way in ways)
    return (
        f"| {clips} x {tags} | {1e3 * plain_s:.2f} | {1e3 * ours_s:.2f} | {plain_s / ours_s:.1f} | {plain_mb:.2f} | {ours_mb:.2f} | "
        f"{plain_mb / ours_mb:.0f} |"
    )


def main(argv: list[str] | None = None) -> str:
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
            f"Loss and gradient of a batch; median of {args.rounds} alternating rounds, one thread of {platform.machine()}; "
            f"torch {torch.__version__}. Values and gradients agree.",
            "",
            "| clips x tags | all pairs, ms | fatai, ms | times as fast | all pairs, MB | fatai, MB | times as small |",
            "|---|---|---|---|---|---|---|",
            *(row(clips, tags, args.rounds) for clips, tags in BATCHES),
        ]
    )
    return report("LSEP of a batch", "python -m benchmarks.lsep", table, args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
