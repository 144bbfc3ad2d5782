"""What processes tell each other."""

import os

import pytest
import torch
from helpers.processes import in_processes

from fatai.errors import OptionError
from fatai.distributed import SINGLE_PROCESS, ProcessGroup, init, destroy, fastai_env, was_started_by_torchrun


def exchanged():
    """Run in every process: all that a process group does."""
    from fastai.torch_core import num_distrib, rank_distrib

    group = init()
    seen = [(num_distrib(), rank_distrib())]
    with fastai_env(group):
        seen.append((num_distrib(), rank_distrib()))
    seen.append((num_distrib(), rank_distrib()))
    sizes = [2, 0, 1]
    # A process without rows of its own has one loaded all the same, as loaders have.
    mine = [torch.tensor([[1.5, -0.0], [float("nan"), 2.0]]), torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])][group.rank]
    told = {
        "again": init() == group, "seen": seen,
        "told": group.broadcast(f"from {group.rank}"), "gathered": group.all_gather(group.rank * 10),
        "summed": group.all_reduce(torch.tensor([1.0, group.rank])).tolist(),
        "rows": group.gather_rows(mine, sizes).numpy(), "bools": group.gather_rows(mine > 1, sizes).numpy(),
        "halves": group.gather_rows(mine[:, 0].bfloat16(), sizes).float().numpy(),
    }
    order = []
    with group.main_process_first():
        order.append(group.rank)
    told["first"] = group.all_gather(order)
    destroy()
    return told


def test_three_processes_tell_each_other_everything_in_order():
    for rank, told in enumerate(in_processes(3, exchanged)):
        assert told["again"] and told["told"] == "from 0" and told["gathered"] == [0, 10, 20]
        assert told["summed"] == [3.0, 3.0] and told["first"] == [[0], [1], [2]]
        assert told["seen"] == [(0, 0), (3, rank), (0, 0)], (
            "fastai takes a process for one of several only where it is told to"
        )
        rows = told["rows"]
        assert rows.shape == (3, 2) and rows[0, 0] == 1.5 and str(rows[0, 1]) == "-0.0" and rows[1, 0] != rows[1, 0]
        assert rows[2].tolist() == [3.0, 4.0] and told["bools"].tolist() == [[True, False], [False, True], [True, True]]
        assert told["halves"].tolist()[::2] == [1.5, 3.0]


def test_alone_everything_stays_as_it_is(monkeypatch):
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


@pytest.mark.parametrize(("n", "size"), [(0, 2), (1, 2), (8, 3), (9, 3), (7, 5)])
def test_shares_are_equal_and_full_batches_are_never_smaller_than_others(n, size):
    shares = ProcessGroup(0, size).split_counts(n)
    assert sum(shares) == n and max(shares) - min(shares) <= 1
    more = ProcessGroup(0, size).split_counts(n + 1)
    assert all(a <= b for a, b in zip(shares, more)), "a loader cuts by the share of a full batch"


def test_a_launcher_that_says_half_of_it_is_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(OptionError, match="WORLD_SIZE is 2, but RANK, LOCAL_RANK.*start the processes with torchrun"):
        init()
