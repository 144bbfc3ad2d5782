"""Collectives of a process group, in three processes and in one."""

import os

import pytest
import torch
from helpers.processes import in_processes

from fatai.distributed import SINGLE_PROCESS, ProcessGroup, destroy, fastai_env, init, was_started_by_torchrun
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
