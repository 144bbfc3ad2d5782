"""Collectives of a process group, in three processes and in one."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
import torch
from helpers.processes import in_processes

from fatai.distributed import (
    EXIT_PEER_LOST,
    SINGLE_PROCESS,
    Heartbeats,
    ProcessGroup,
    destroy,
    fastai_env,
    init,
    was_started_by_torchrun,
)
from fatai.errors import OptionError


def collectives():
    """Call every method of a process group; runs in each process."""
    from fastai.torch_core import num_distrib, rank_distrib

    group = init()
    seen_by_fastai = [(num_distrib(), rank_distrib())]
    with fastai_env(group):
        seen_by_fastai.append((num_distrib(), rank_distrib()))
    seen_by_fastai.append((num_distrib(), rank_distrib()))
    counts = [2, 0, 1]
    # A rank without rows passes a tensor that has one all the same, as loaders do.
    rows = [torch.tensor([[1.5, -0.0], [float("nan"), 2.0]]), torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])][group.rank]
    results = {
        "again": init() == group,
        "seen_by_fastai": seen_by_fastai,
        "broadcast": group.broadcast(f"from {group.rank}"),
        "all_gather": group.all_gather(group.rank * 10),
        "all_reduce": group.all_reduce(torch.tensor([1.0, group.rank])).tolist(),
        "rows": group.gather_rows(rows, counts).numpy(),
        "bools": group.gather_rows(rows > 1, counts).numpy(),
        "halves": group.gather_rows(rows[:, 0].bfloat16(), counts).float().numpy(),
    }
    order = []
    with group.main_process_first():
        order.append(group.rank)
    results["order"] = group.all_gather(order)
    group.barrier()
    destroy()
    return results


def test_collectives_of_three_processes():
    for rank, results in enumerate(in_processes(3, collectives)):
        assert results["again"] and results["broadcast"] == "from 0" and results["all_gather"] == [0, 10, 20]
        assert results["all_reduce"] == [3.0, 3.0] and results["order"] == [[0], [1], [2]]
        assert results["seen_by_fastai"] == [(0, 0), (3, rank), (0, 0)], "only within fastai_env"
        rows, bools = results["rows"], results["bools"]
        assert rows.shape == (3, 2) and rows[0, 0] == 1.5 and str(rows[0, 1]) == "-0.0" and rows[1, 0] != rows[1, 0]
        assert rows[2].tolist() == [3.0, 4.0] and bools.tolist() == [[True, False], [False, True], [True, True]]
        assert results["halves"].tolist()[::2] == [1.5, 3.0]


def test_collectives_of_a_single_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert init() is SINGLE_PROCESS and not was_started_by_torchrun() and SINGLE_PROCESS.is_main
    assert (
        SINGLE_PROCESS.broadcast(3) == 3
        and SINGLE_PROCESS.all_gather(4) == [4]
        and SINGLE_PROCESS.all_reduce(torch.ones(1)).item() == 1
    )
    assert SINGLE_PROCESS.gather_rows(torch.arange(3), [2]).tolist() == [0, 1]
    with SINGLE_PROCESS.main_process_first(), fastai_env(SINGLE_PROCESS):
        assert "WORLD_SIZE" not in os.environ


@pytest.mark.parametrize(("n", "world_size"), [(0, 2), (1, 2), (8, 3), (9, 3), (7, 5)])
def test_counts_are_even_and_full_batches_have_the_largest(n, world_size):
    counts = ProcessGroup(0, world_size).split_counts(n)
    assert sum(counts) == n and max(counts) - min(counts) <= 1
    larger = ProcessGroup(0, world_size).split_counts(n + 1)
    assert all(a <= b for a, b in zip(counts, larger, strict=True)), "a loader cuts by the counts of a full batch"


def test_an_incomplete_environment_is_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(OptionError, match="WORLD_SIZE is 2, but RANK, LOCAL_RANK.*start the processes with torchrun"):
        init()


class Store:
    """A store of torch.distributed in this process; it may go."""

    def __init__(self):
        self.values, self.lock, self.has_gone = Counter(), threading.Lock(), False

    def add(self, key, n):
        if self.has_gone:
            raise RuntimeError("Connection reset by peer")
        with self.lock:
            self.values[key] += n
            return self.values[key]


def beating(store, rank, found):
    return Heartbeats(ProcessGroup(rank, 3), store, found.append, beat_s=0.02, silent_s=1.0)


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_process_without_a_sign_of_life_is_lost_and_one_that_has_finished_is_not():
    store, lost = Store(), [[], [], []]
    beats = [beating(store, rank, lost[rank]) for rank in range(3)]
    beats[1].stop()
    beats[2]._stopped.set()  # its machine goes, without a word
    wait_until(lambda: lost[0])
    assert lost == [[2], [], []]
    beats[0].stop()


def test_a_store_that_does_not_answer_is_a_lost_machine():
    store, lost = Store(), []
    heartbeats = Heartbeats(ProcessGroup(0, 1), store, lost.append, beat_s=0.02, silent_s=0.3)
    wait_until(lambda: store.values)
    store.has_gone = True
    wait_until(lambda: lost)
    assert lost == [-1]
    heartbeats.stop()  # raises nothing


WAITING = """
import os, sys, fatai.distributed as d
d.Heartbeats.__init__.__kwdefaults__.update(beat_s=0.2, silent_s=2.0)
group = d.init()
print("joined", flush=True)
if group.is_main:
    group.barrier()
else:
    sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="stops a process by a signal")
def test_a_machine_that_stops_without_closing_its_connections_is_noticed():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_RANK": "0",
              "LOCAL_WORLD_SIZE": "1", "GROUP_WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WAITING], env={**os.environ, **shared, "RANK": str(rank)}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]
    try:
        assert [process.stdout.readline() for process in processes] == ["joined\n"] * 2
        os.kill(processes[1].pid, signal.SIGSTOP)
        _, stderr = processes[0].communicate(timeout=30)
        assert processes[0].returncode == EXIT_PEER_LOST
        assert "process 0 has had no answer from process 1 of 2 for 2 s" in stderr and "--resume" in stderr
    finally:
        for process in processes:
            process.kill()
            process.communicate()
