"""Rank, world size and collectives of the current process group (torch.distributed).

torchrun starts the processes and sets their environment variables. fastai reads `RANK` and `WORLD_SIZE` at every call,
so work that one rank does by itself (a fold, a prediction after training) would wait for the other ranks or mix their
rows into its own. Therefore `init` removes both variables, and `fastai_env` sets them while the ranks train on the same
batches.

A process that dies closes its connections, and the others fail in their next collective. A machine that loses power or
its network closes nothing, and the others would wait for days; so where a group spans several machines, its processes
exchange `Heartbeats`.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fatai.errors import OptionError

__all__ = ["SINGLE_PROCESS", "Heartbeats", "ProcessGroup", "init", "destroy", "fastai_env", "was_started_by_torchrun"]

_FASTAI_VARIABLES = ("RANK", "WORLD_SIZE")
# A rank that has finished its folds waits for the others, which may take days. A dead rank is noticed by its closed
# connection, a dead machine by its heartbeats.
_TIMEOUT = timedelta(days=30)
EXIT_PEER_LOST = 75
"""Exit code of a process that ends because it lost another one."""
BEAT_S, SILENT_S = 3.0, 25.0
"""Seconds between two heartbeats, and without any after which a process counts as lost."""
_FINISHED = 1 << 40  # added to the number of beats at a regular end


@dataclass(frozen=True)
class ProcessGroup:
    """Rank of this process, and the collectives of its group; with one process each collective returns its argument.

    Parameters
    ----------
    rank
        Index of this process, 0 to `world_size` - 1.
    world_size
        Number of processes.
    local_rank
        Index of this process on its machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """True on rank 0, the only rank that writes files and logs."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until all ranks have called this."""
        if self.world_size > 1:
            self.all_gather(None)

    def broadcast(self, value: Any) -> Any:
        """Return the `value` of rank 0 on all ranks; anything that can be pickled."""
        if self.world_size == 1:
            return value
        values = [value if self.is_main else None]
        dist.broadcast_object_list(values, 0, device=torch.device("cpu"))
        return values[0]

    def all_gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in the order of the ranks; anything that can be pickled."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def all_reduce(self, values: Tensor) -> Tensor:
        """Sum a tensor of the same shape over all ranks, in place, and return it."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def gather_rows(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Concatenate the first rows of each rank's tensor, bit by bit as they are.

        Parameters
        ----------
        rows
            Shape (n, ...), any dtype, n at least `counts[rank]`; the other dimensions are the same on all ranks.
        counts
            Number of rows that each rank contributes, one entry per rank; 0 is allowed.

        Returns
        -------
        Shape (sum(counts), ...), on the CPU if there is more than one rank; the rows of rank 0 come first.
        """
        first = rows[:counts[self.rank]]
        if self.world_size == 1:
            return first
        # As pickled objects: gloo's all_gather of tensors needs equal shapes and rejects some dtypes. The copy keeps
        # the rest of the storage out of the pickle.
        return torch.cat(self.all_gather(first.detach().as_subclass(Tensor).cpu().clone()))

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Run the block on rank 0, then on the other ranks: a cache is built once."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def split_counts(self, n: int) -> list[int]:
        """Split `n` items among the ranks as evenly as possible and return the number for each rank.

        Examples
        --------
        >>> ProcessGroup(rank=0, world_size=3).split_counts(8)
        [3, 3, 2]
        """
        return [n // self.world_size + (rank < n % self.world_size) for rank in range(self.world_size)]


SINGLE_PROCESS = ProcessGroup()
"""The group of a process that runs alone."""


class Heartbeats:
    """Signs of life that the processes of a group exchange through a store, in two threads.

    Parameters
    ----------
    group
        The group of this process.
    store
        A store of torch.distributed that all processes reach, of which only `add` is called.
    on_lost
        Called once with the rank of the first process without a sign of life for `silent_s` seconds; with -1 if the
        store does not answer for so long. By default this process ends.
    beat_s, silent_s
        Seconds between two signs, and until a process counts as lost.
    """

    def __init__(
        self, group: ProcessGroup, store: Any, on_lost: Callable[[int], None] | None = None, *, beat_s: float = BEAT_S,
        silent_s: float = SILENT_S,
    ):
        self._group, self._store, self._beat_s, self._silent_s = group, store, beat_s, silent_s
        self._on_lost = self._end_process if on_lost is None else on_lost
        self._stopped = threading.Event()
        self._beats = [-1] * group.world_size
        self._changed = [time.monotonic()] * group.world_size
        self._answered = time.monotonic()
        # Two threads, because a call of a store whose machine has gone may not return.
        for work in (self._exchange, self._watch):
            threading.Thread(target=work, daemon=True).start()

    def stop(self) -> None:
        """End regularly: the others do not miss this process."""
        self._stopped.set()
        with suppress(RuntimeError):
            self._store.add(_beat_key(self._group.rank), _FINISHED)

    def _exchange(self) -> None:
        while not self._stopped.is_set():
            with suppress(RuntimeError):  # the store has gone, which the other thread notices
                ranks = range(self._group.world_size)
                beats = [self._store.add(_beat_key(rank), int(rank == self._group.rank)) for rank in ranks]
                self._answered = time.monotonic()
                for rank in ranks:
                    if beats[rank] != self._beats[rank]:
                        self._beats[rank], self._changed[rank] = beats[rank], self._answered
            self._stopped.wait(self._beat_s)

    def _watch(self) -> None:
        while not self._stopped.wait(self._beat_s / 3):
            lost = self._find_lost(time.monotonic() - self._silent_s)
            if lost is not None:
                self._stopped.set()
                self._on_lost(lost)

    def _find_lost(self, since: float) -> int | None:
        if self._answered < since:
            return -1
        ranks = range(self._group.world_size)
        return next((k for k in ranks if self._changed[k] < since and self._beats[k] < _FINISHED), None)

    def _end_process(self, rank: int) -> None:
        lost = "the machine of process 0" if rank < 0 else f"process {rank} of {self._group.world_size}"
        print(
            f"fatai-submit: process {self._group.rank} has had no answer from {lost} for {self._silent_s:g} s, so the "
            "run has stopped; finished epochs are kept: start the command again with --resume, if need be on fewer "
            "machines",
            file=sys.stderr, flush=True,
        )
        # Without cleaning up: destroying a group with dead members may block forever.
        os._exit(EXIT_PEER_LOST)


def _beat_key(rank: int) -> str:
    return f"fatai/heartbeat/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{rank}"


def was_started_by_torchrun() -> bool:
    """Return True if this process is one of several, before and after `init`."""
    return dist.is_initialized() or int(os.environ.get("WORLD_SIZE", 1)) > 1


def init() -> ProcessGroup:
    """Join the process group of torchrun and return it; `SINGLE_PROCESS` without torchrun. May be called repeatedly.

    CPU tensors go through gloo. On a machine with GPUs each rank gets one of them, and their tensors go through NCCL.

    Raises
    ------
    OptionError
        If torchrun's environment variables are incomplete.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if dist.is_initialized():
        return ProcessGroup(dist.get_rank(), dist.get_world_size(), local_rank)
    if not was_started_by_torchrun():
        return SINGLE_PROCESS
    _check_environment()
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(local_rank % gpus)
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=_TIMEOUT)
    for name in _FASTAI_VARIABLES:
        os.environ.pop(name, None)
    group = ProcessGroup(dist.get_rank(), dist.get_world_size(), local_rank)
    if _n_machines(group.world_size) > 1:
        _heartbeats.append(Heartbeats(group, _connect_to_store()))
    return group


_heartbeats: list[Heartbeats] = []  # of the group that was joined, if it spans several machines


def _n_machines(world_size: int) -> int:
    """Return the number of machines, which torchrun and other launchers set."""
    n_local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    return int(os.environ.get("GROUP_WORLD_SIZE", world_size // n_local))


def _connect_to_store() -> dist.TCPStore:
    """Return a connection of its own to the store of the group, which other calls do not block."""
    return dist.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False,
        timeout=timedelta(seconds=SILENT_S),
    )


def _check_environment() -> None:
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise OptionError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set; start the processes with "
            "torchrun (accelerate launch --cpu starts a single one)"
        )


def destroy() -> None:
    """Leave the process group that `init` joined; does nothing without one."""
    while _heartbeats:
        _heartbeats.pop().stop()
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def fastai_env(group: ProcessGroup) -> Iterator[None]:
    """Set the environment variables by which fastai finds the rank and the world size, within the block only."""
    if group.world_size == 1:
        yield
        return
    before = {name: os.environ.get(name) for name in _FASTAI_VARIABLES}
    os.environ.update({"RANK": str(group.rank), "WORLD_SIZE": str(group.world_size)})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
