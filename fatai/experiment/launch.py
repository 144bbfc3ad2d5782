"""Start several processes for one run, split its work among them, and report how they ended."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fatai.distributed import EXIT_PEER_LOST, SINGLE_PROCESS, ProcessGroup, destroy, init, was_started_by_torchrun
from fatai.errors import FataiError, OptionError
from fatai.threads import available_cores, threads_for

if TYPE_CHECKING:
    from fatai.experiment.recipe import Recipe

__all__ = ["WorkerDiedError"]

PROCESS_MEMORY = 3 * 2**29  # bytes that a process with a small network takes at most, most of it torch itself
# Exit codes of processes that end because another one did, or that torchrun ends.
_CONSEQUENCES = (EXIT_PEER_LOST, -15)
_PARENT_REPORTS = "FATAI_PARENT_REPORTS"  # set in processes whose parent prints the error message
_CONNECTION_LOST = re.compile(r"gloo|NCCL|Connection (closed|reset)|Broken pipe|process group|Socket", re.IGNORECASE)


class WorkerDiedError(FataiError, ChildProcessError):
    """One of several processes ended before its work was done."""


@dataclass(frozen=True)
class WorkSplit:
    """How the work of a run is split among processes.

    Attributes
    ----------
    fold_group
        Processes that train different folds.
    batch_group
        Processes that train each fold together and share its batches.
    log
        Function for progress lines about a fold; silent where another process logs them.
    """

    fold_group: ProcessGroup
    batch_group: ProcessGroup
    log: Callable[[str], None]


def split_work(group: ProcessGroup, n_folds: int, log: Callable[[str], None]) -> WorkSplit:
    """Give each process folds of its own if there are enough of them; otherwise all share the batches of every fold."""
    if group.world_size == 1:
        return WorkSplit(SINGLE_PROCESS, SINGLE_PROCESS, log)
    if n_folds >= group.world_size:
        if group.is_main:
            log(f"{group.world_size} processes share {n_folds} folds")
        return WorkSplit(group, SINGLE_PROCESS, lambda line: log(f"process {group.rank}: {line}"))
    if group.is_main:
        log(f"{group.world_size} processes share every batch")
    return WorkSplit(SINGLE_PROCESS, group, log if group.is_main else no_log)


def no_log(line: str) -> None:
    """Leave out a line of progress, as a function for such lines."""


def processes_for(n_parameters: int, n_folds: int, cores: int | None = None, memory: int | None = None) -> int:
    """Return the number of processes that train the folds of a network side by side on a CPU.

    A small network computes with one thread, so that every core can train a fold of its own; a larger one uses all
    cores, one fold after another. The files are the same byte for byte.

    Parameters
    ----------
    n_parameters, n_folds
        Parameters of the network and number of folds to train.
    cores
        Cores to use; None takes `fatai.threads.available_cores`.
    memory
        Bytes of memory that are free; None takes those of the machine, within the limit of its container.

    Examples
    --------
    >>> [processes_for(1_600_000, n_folds=3, cores=cores, memory=8 * 2**30) for cores in (1, 2, 8)]
    [1, 2, 3]
    >>> processes_for(26_000_000, n_folds=5, cores=8, memory=8 * 2**30)
    1
    """
    cores = available_cores() if cores is None else cores
    if threads_for(n_parameters, cores) > 1 or cores == 1:
        return 1
    if memory is None:
        from fatai.data.resident import available_memory

        memory = available_memory()
    return max(1, min(cores, n_folds, memory // PROCESS_MEMORY))


def processes_for_all(recipes: Iterable[Recipe], n_tags: int) -> int:
    """Return the number of processes in which the folds of each of some recipes are trained side by side.

    It is that of the recipe with the fewest; linear probes, which take seconds, are not counted.

    Parameters
    ----------
    recipes
        Recipes that are decided for the data.
    n_tags
        Number of tags.
    """
    from fatai.experiment.build import recipe_parameters

    trained = [recipe for recipe in recipes if any(stage.linear_probe is None for stage in recipe.stages)]
    return min((processes_for(recipe_parameters(r, n_tags), r.n_run_folds) for r in trained), default=1)


def start_processes(
    n: int, arguments: Sequence[str], desc: str = "the run", *, threads: int | None = None
) -> None:
    """Start `n` processes of `fatai-submit` by torchrun on this machine and wait until they end.

    Parameters
    ----------
    n
        Number of processes, at least 1.
    arguments
        Command line arguments of each process.
    desc
        Name of the work in error messages.
    threads
        Threads of each process; None shares the cores among them.

    Raises
    ------
    OptionError
        If `n` is less than 1.
    WorkerDiedError
        If a process was killed or failed; the message names it, the cause and the remedy.
    SystemExit
        With code 2 or 130 if a process ended with it and has printed its message.
    """
    n_threads = _threads_per_process(n) if threads is None else str(threads)
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # torchrun logs a page of which one line is needed; it is part of the error below.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    os.environ[_PARENT_REPORTS] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", n_threads)
    args = torchrun.parse_args(["--standalone", "--nproc-per-node", str(n), "-m", "fatai.cli"])
    # Not through the parser, which would take --nproc for an abbreviation of its own options.
    args.training_script_args = list(arguments)
    try:
        torchrun.run(args)
    except ChildFailedError as e:
        rank, exitcode = _first_failure(e.failures)
        if exitcode in (2, 130):
            raise SystemExit(exitcode) from None
        raise WorkerDiedError(
            f"process {rank} of {n} {_cause(exitcode)}, so {desc} has stopped; finished epochs are kept: "
            "repeat the command with --resume"
        ) from None
    except SignalException:
        raise SystemExit(130) from None


def reports_to_parent() -> bool:
    """Return True if this process was started by `start_processes`, in which the command runs that was typed."""
    return was_started_by_torchrun() and _PARENT_REPORTS in os.environ


def _first_failure(failures: Mapping[int, Any]) -> tuple[int, int]:
    """Return rank and exit code of the process that failed first, not as a consequence of another one."""
    rank, failure = min(
        failures.items(), key=lambda item: (item[1].exitcode in _CONSEQUENCES, item[1].exitcode > 0, item[1].timestamp)
    )
    return rank, failure.exitcode


def start_shards(n: int, arguments: Sequence[str], desc: str) -> None:
    """Start `n` independent processes of `fatai-submit`, each with its own `--shard`, and wait until they end.

    Parameters
    ----------
    n, arguments, desc
        As in `start_processes`.

    Raises
    ------
    OptionError, WorkerDiedError, SystemExit
        As in `start_processes`; the other processes finish their shards first.
    """
    env = {"OMP_NUM_THREADS": _threads_per_process(n), **os.environ}
    # A process that kept --nproc (two words, or one with "=") would start further processes without end.
    shared = [
        arg for previous, arg in zip(("", *arguments), arguments, strict=False)
        if "--nproc" not in (previous, arg) and not arg.startswith("--nproc=")
    ]
    processes = [
        subprocess.Popen([sys.executable, "-m", "fatai.cli", *shared, "--shard", f"{k}/{n}"], env=env)
        for k in range(1, n + 1)
    ]
    try:
        exitcodes = [process.wait() for process in processes]
    except KeyboardInterrupt:
        for process in processes:
            process.terminate()
        raise
    for k, exitcode in enumerate(exitcodes, 1):
        if exitcode in (2, 130):
            raise SystemExit(exitcode)
        if exitcode:
            raise WorkerDiedError(
                f"the process of shard {k}/{n} {_cause(exitcode)}, so {desc} is incomplete; "
                "repeat the command to finish it"
            )


def _threads_per_process(n: int) -> str:
    """Return the number of threads for each of `n` processes; raises `OptionError` if `n` is less than 1."""
    if n < 1:
        raise OptionError(f"the number of processes is {n}; expected at least 1")
    return str(max(1, available_cores() // n))


def _cause(exitcode: int) -> str:
    if exitcode == -9:
        return (
            "was killed (signal 9; usually the machine ran out of memory: use fewer processes or a smaller --bs)"
        )
    if exitcode < 0:
        return f"was ended by signal {-exitcode}"
    return f"failed with exit code {exitcode} and the error above"


@contextmanager
def in_process_group(n: int | None = None) -> Iterator[ProcessGroup]:
    """Run the block in the process group that torchrun started, or in `SINGLE_PROCESS` without torchrun.

    Parameters
    ----------
    n
        The number of processes that the user asked for, if any.

    Raises
    ------
    OptionError
        If torchrun started another number than `n` on a single machine.
    SystemExit
        If another process ended, so that this one cannot go on.
    """
    if not was_started_by_torchrun():
        yield SINGLE_PROCESS
        return
    group = init()
    if n is not None and n != group.world_size and int(os.environ.get("GROUP_WORLD_SIZE", 1)) == 1:
        raise OptionError(
            f"--nproc is {n}, but torchrun started {group.world_size} processes; set the number in one place only"
        )
    if not group.is_main:
        # All processes would print the same warnings.
        warnings.showwarning = _ignore_warning
    try:
        yield group
    except RuntimeError as e:
        if isinstance(e, FataiError) or not _CONNECTION_LOST.search(str(e)):
            raise
        if not reports_to_parent():
            print(
                f"fatai-submit: process {group.rank} of {group.world_size} lost the connection to another one, so the "
                "run has stopped; finished epochs are kept: repeat the command with --resume",
                file=sys.stderr, flush=True,
            )
        # Without cleaning up: destroying a group with dead members may block forever.
        os._exit(EXIT_PEER_LOST)
    destroy()


def _ignore_warning(*args: Any, **kwargs: Any) -> None:
    pass
