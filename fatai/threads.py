"""Threads that torch computes with: how they wait for each other, and how many there are.

OpenMP's threads spin while they wait. Where another process needs a core, that takes it from the thread that still
computes, and a command can take several times as long. `import fatai` lets them sleep instead, which has to be set
before torch is imported. Small networks compute with one thread.

The number depends on the network and on the machine alone, never on its load, since it decides about the last digits
of results: a run that is repeated or resumed has the same.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fatai.errors import OptionError

__all__ = [
    "available_cores", "describe_waiting", "may_read_ahead", "network_threads", "set_threads", "threads_for",
    "wait_passively",
]

# Of GNU's and LLVM's OpenMP; whoever sets one of them has a policy of their own.
WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
COUNT_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
# The network of recipe `quick` has 1.6 million; benchmarks/threads.py compares one thread with one per core for it.
SMALL_NETWORK = 2_000_000


def wait_passively() -> None:
    """Let the threads of OpenMP, in this process and those it starts, sleep while they wait, unless it is set already.

    Without effect on a process that has imported torch.
    """
    if not any(name in os.environ for name in WAIT_VARIABLES):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ["KMP_BLOCKTIME"] = "0"  # LLVM's and Intel's wait actively for 200 ms even if they are passive


def describe_waiting() -> str:
    """Return how the threads of OpenMP wait, for the report of the environment."""
    found = [f"{name}={os.environ[name]}" for name in WAIT_VARIABLES if name in os.environ]
    return ", ".join(found) or "actively: OMP_WAIT_POLICY is not set"


def torch_came_first() -> bool:
    """Return True if torch was imported before fatai, so that its threads wait as torch was started with."""
    return _TORCH_CAME_FIRST


_TORCH_CAME_FIRST = "torch" in sys.modules and not any(name in os.environ for name in WAIT_VARIABLES)


def available_cores(cgroup: str | os.PathLike[str] = "/sys/fs/cgroup") -> int:
    """Return the number of cores that this process may use: its affinity, within the quota of its container.

    Parameters
    ----------
    cgroup
        Folder of the control group; systems without one have no quota.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (Path(cgroup) / "cpu.max").read_text().split()
        return max(1, min(cores, -(-int(quota) // int(period))))
    except (OSError, ValueError):  # no control group, or a quota of "max"
        return cores


def threads_for(n_parameters: int, cores: int | None = None) -> int:
    """Return the number of threads for a network: one if it is small, else one per core.

    Parameters
    ----------
    n_parameters
        Number of parameters of the network.
    cores
        Cores to use; None takes `available_cores`.

    Examples
    --------
    >>> threads_for(400_000, cores=8), threads_for(26_000_000, cores=8)
    (1, 8)
    """
    return 1 if n_parameters < SMALL_NETWORK else cores or available_cores()


def may_read_ahead() -> bool:
    """Return True if a thread may decode sound beside those of the network: there are two cores or more.

    A user who set the number of threads to 1 has no other.
    """
    counts = [os.environ[name] for name in COUNT_VARIABLES if name in os.environ]
    return available_cores() > 1 and "1" not in counts


def set_threads(n: int) -> None:
    """Compute with `n` threads, in this process and those that it starts; `network_threads` then changes nothing.

    Raises
    ------
    OptionError
        If `n` is less than 1.
    """
    if n < 1:
        raise OptionError(f"the number of threads is {n}; expected at least 1")
    for name in COUNT_VARIABLES:
        os.environ[name] = str(n)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(n)


@contextmanager
def network_threads(n_parameters: int) -> Iterator[None]:
    """Compute with as many threads as suit a network, within the context.

    Nothing changes where the user set the number, by `set_threads` or OMP_NUM_THREADS; and torch.set_num_threads is an
    upper limit.

    Parameters
    ----------
    n_parameters
        Number of parameters of the network.
    """
    import torch

    before = torch.get_num_threads()
    if any(name in os.environ for name in COUNT_VARIABLES):
        yield
        return
    torch.set_num_threads(min(before, threads_for(n_parameters)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
