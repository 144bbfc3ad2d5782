"""Several processes that do one job: which of them this one is, and what they tell each other.

torchrun starts them and says in the environment who they are. fastai reads `RANK` and `WORLD_SIZE` there at every call, so that what a
process does on its own (a fold, a prediction after training) would wait for the others or mix their rows into its own. So `init` takes both
out of the environment, and `fastai_env` puts them back while the processes work on the same batches.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fatai.errors import OptionError

__all__ = ["SINGLE_PROCESS", "ProcessGroup", "init", "destroy", "fastai_env", "was_started_by_torchrun"]

_OWN = ("RANK", "WORLD_SIZE")  # what fastai looks at
# Whoever is done with its folds waits for the others, which may take days; that one of them died is seen by its connection, not by a clock.
_PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those of its job: its number, how many there are, its number on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.size > 1:
            self.all_gather(None)

    def broadcast(self, value: Any) -> Any:
        """What the first process passes, in all of them."""
        if self.size == 1:
            return value
        held = [value if self.is_main else None]
        dist.broadcast_object_list(held, 0, device=torch.device("cpu"))
        return held[0]

    def all_gather(self, value: Any) -> list[Any]:
        """What every process passes, by their numbers."""
        if self.size == 1:
            return [value]
        held: list[Any] = [None] * self.size
        dist.all_gather_object(held, value)
        return held

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum over all processes of a tensor of the same shape in each, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def rows(self, own: Tensor, sizes: list[int]) -> Tensor:
        """The rows of all processes, those of the first in front; process k gives `sizes[k]` of its own, bit by bit as they are."""
        if self.size == 1:
            return own[:sizes[0]]
        n, shape = sizes[self.rank], own.shape[1:]
        # A copy: one row that is a column of something else passes for contiguous, and cannot be seen as bytes.
        flat = (
            own[:n]
            .detach()
            .as_subclass(Tensor)
            .cpu()
            .reshape(n, math.prod(shape))
            .clone(memory_format=torch.contiguous_format)
        )
        mine = torch.zeros(max(sizes), flat.shape[1] * flat.element_size(), dtype=torch.uint8)
        mine[:n] = flat.view(torch.uint8)
        parts = [torch.empty_like(mine) for _ in sizes]
        dist.all_gather(parts, mine)
        return torch.cat([part[:k] for part, k in zip(parts, sizes)]).view(own.dtype).reshape(sum(sizes), *shape)

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """The first process does what the block does, then the others: a cache is built once."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()

    def split_counts(self, n: int) -> list[int]:
        """How many of `n` things each process gets: as equal as can be, the first ones one more.

        Examples
        --------
        >>> ProcessGroup(0, 3).share_of(8)
        [3, 3, 2]
        """
        return [n // self.size + (k < n % self.size) for k in range(self.size)]


SINGLE_PROCESS = ProcessGroup()
"""A process on its own."""


def was_started_by_torchrun() -> bool:
    """Whether this process is one of several, and whether or not it has joined them."""
    return dist.is_initialized() or int(os.environ.get("WORLD_SIZE", 1)) > 1


def init() -> ProcessGroup:
    """The company that torchrun started this process in; `SINGLE_PROCESS` where it is the only one. May be called again.

    Processes on CPUs talk through gloo; beside GPUs, each gets one of its own, and tensors on them go through NCCL.

    Raises
    ------
    OptionError
        If the environment contradicts itself.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if dist.is_initialized():
        return ProcessGroup(dist.get_rank(), dist.get_world_size(), local_rank)
    if not was_started_by_torchrun():
        return SINGLE_PROCESS
    lacking = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if lacking:
        raise OptionError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(lacking)} is not set; start the processes with "
            "torchrun (accelerate launch --cpu starts a single one)"
        )
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(local_rank % gpus)
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=_PATIENCE)
    group = ProcessGroup(dist.get_rank(), dist.get_world_size(), local_rank)
    for name in _OWN:
        os.environ.pop(name, None)
    return group


def destroy() -> None:
    """End what `init` began."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def fastai_env(group: ProcessGroup) -> Iterator[None]:
    """Let fastai know of the other processes within the block, and only there."""
    if group.size == 1:
        yield
        return
    before = {name: os.environ.get(name) for name in _OWN}
    os.environ.update({"RANK": str(group.rank), "WORLD_SIZE": str(group.size)})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
