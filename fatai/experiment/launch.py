"""A run in several processes: how they are started, what each does, and what is told when one of them ends too early."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fatai.errors import FataiError, OptionError
from fatai.distributed import SINGLE_PROCESS, ProcessGroup, init, destroy, was_started_by_torchrun

__all__ = ["WorkerDiedError", "Sharing", "in_process_group", "share_out", "start_processes", "start_shards"]

_LOST = (75, -15)  # how processes end because another one did: by themselves, or by torchrun
_TOLD = "FATAI_PARENT_TELLS"  # set for processes whose starter says what became of them
_BROKEN = re.compile(r"gloo|NCCL|Connection (closed|reset)|Broken pipe|process group|Socket", re.IGNORECASE)


class WorkerDiedError(FataiError, ChildProcessError):
    """One of several processes ended before its work was done."""


@dataclass(frozen=True)
class Sharing:
    """Who shares what: the folds, or every batch; and what takes a line about a fold."""

    of_folds: ProcessGroup
    of_batches: ProcessGroup
    say: Callable[[str], None]


def share_out(group: ProcessGroup, n_folds: int, say: Callable[[str], None]) -> Sharing:
    """Folds of its own for each process where there are enough of them, else every batch shared by all."""
    if group.world_size == 1:
        return Sharing(SINGLE_PROCESS, SINGLE_PROCESS, say)
    if n_folds >= group.world_size:
        if group.is_main:
            say(f"{group.world_size} processes share {n_folds} folds")
        return Sharing(group, SINGLE_PROCESS, lambda line: say(f"process {group.rank}: {line}"))
    if group.is_main:
        say(f"{group.world_size} processes share every batch")
    return Sharing(SINGLE_PROCESS, group, say if group.is_main else lambda line: None)


def start_processes(n: int, arguments: Sequence[str], what: str = "the run") -> None:
    """Start `n` processes of `fatai-submit` with `arguments` by torchrun on this machine, and wait for their end.

    Raises
    ------
    WorkerDiedError
        If one of them was killed or failed; the message says which one, how, and what to do.
    SystemExit
        With code 2 if one of them has told an error.
    """
    threads = _threads_of_each(n)
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # Its own report is a page of which we need a line.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    os.environ[_TOLD] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", threads)
    args = torchrun.parse_args(["--standalone", "--nproc-per-node", str(n), "-m", "fatai.cli", *arguments])
    try:
        torchrun.run(args)
    except ChildFailedError as e:
        # Of those that ended, the one that did not end because of another.
        rank, failure = min(
            e.failures.items(), key=lambda item: (item[1].exitcode in _LOST, item[1].exitcode > 0, item[1].timestamp)
        )
        if failure.exitcode in (2, 130):
            raise SystemExit(failure.exitcode) from None
        raise WorkerDiedError(
            f"process {rank} of {n} {_how(failure.exitcode)}, so {what} has stopped; what was finished is kept: "
            "give the same command with --resume"
        ) from None
    except SignalException:
        raise SystemExit(130) from None


def start_shards(n: int, arguments: Sequence[str], what: str) -> None:
    """As `start_processes`, but each process has a `--shard` of its own in place of `--processes`, and needs none of the others."""
    env = {"OMP_NUM_THREADS": _threads_of_each(n), **os.environ}
    # The option stands as two words or as one; a process that kept it would start others without end.
    kept = [arg for before, arg in zip(("", *arguments), arguments)
            if "--processes" not in (before, arg) and not arg.startswith("--processes=")]
    started = [
        subprocess.Popen([sys.executable, "-m", "fatai.cli", *kept, "--shard", f"{k}/{n}"], env=env)
        for k in range(1, n + 1)
    ]
    try:
        codes = [process.wait() for process in started]
    except KeyboardInterrupt:
        for process in started:
            process.terminate()
        raise
    # The others have done their parts to the end: they need nobody.
    for k, code in enumerate(codes, 1):
        if code in (2, 130):
            raise SystemExit(code)
        if code:
            raise WorkerDiedError(
                f"the process of shard {k}/{n} {_how(code)}, so {what} is not whole; the same command does what is lacking"
            )


def _threads_of_each(n: int) -> str:
    """Threads for each of `n` processes on this machine; raises `OptionError` if there is to be none."""
    if n < 1:
        raise OptionError(f"processes is {n}; expected at least 1")
    return str(max(1, (os.cpu_count() or 1) // n))


def _how(exitcode: int) -> str:
    if exitcode == -9:
        return "was killed (signal 9; if nobody did it, the machine ran out of memory: take fewer processes, or a smaller --bs)"
    if exitcode < 0:
        return f"was ended by signal {-exitcode}"
    return f"failed with exit code {exitcode}; its error stands above"


@contextmanager
def in_process_group(processes: int | None = None) -> Iterator[ProcessGroup]:
    """The other processes that torchrun started with this one, until the block ends.

    Parameters
    ----------
    processes
        How many there should be, if that was said.

    Raises
    ------
    OptionError
        If there are others than said.
    SystemExit
        If another process ended, so that this one cannot go on.
    """
    if not was_started_by_torchrun():
        yield SINGLE_PROCESS
        return
    group = init()
    if processes is not None and processes != group.world_size and int(os.environ.get("GROUP_WORLD_SIZE", 1)) == 1:
        raise OptionError(
            f"processes is {processes}, but torchrun started {group.world_size}; leave --processes to one of the two"
        )
    if not group.is_main:
        # All would tell the same.
        warnings.showwarning = _broadcast_from_main
    try:
        yield group
    except RuntimeError as e:
        if isinstance(e, FataiError) or not _BROKEN.search(str(e)):
            raise
        if _TOLD not in os.environ:
            print(f"fatai-submit: process {group.rank} of {group.world_size} lost another one, so the run stops; "
                  "what was finished is kept: give the same command with --resume", file=sys.stderr, flush=True)
        # At once: to take leave of those that are gone may take forever.
        os._exit(_LOST[0])
    destroy()


def _broadcast_from_main(*args: Any, **kwargs: Any) -> None:
    pass
