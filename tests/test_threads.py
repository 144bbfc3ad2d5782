"""Threads: how they wait, how many there are, and that nobody's own settings are changed."""

import os
import subprocess
import sys

import pytest
import torch

from fatai import threads
from fatai.errors import OptionError
from fatai.models import count_parameters, create_model
from fatai.threads import available_cores, may_read_ahead, network_threads, set_threads, threads_for


@pytest.fixture
def unset(monkeypatch):
    """No settings of threads in the environment, and the number of torch restored."""
    before = torch.get_num_threads()
    for name in (*threads.WAIT_VARIABLES, *threads.COUNT_VARIABLES):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield monkeypatch
    torch.set_num_threads(before)


def in_python(code, **environment):
    """Return what a new interpreter prints, with the given settings of threads and no others."""
    names = (*threads.WAIT_VARIABLES, *threads.COUNT_VARIABLES)
    plain = {k: v for k, v in os.environ.items() if k not in names}
    run = subprocess.run(
        [sys.executable, "-c", code], env={**plain, **environment}, capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


SHOW = "import os; print([os.environ.get(k) for k in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'KMP_BLOCKTIME')])"


@pytest.mark.parametrize("module", ["fatai", "fatai.cli"])
def test_importing_fatai_lets_threads_sleep_and_imports_no_torch(module):
    assert in_python(f"import {module}, sys; assert 'torch' not in sys.modules; {SHOW}") == "['PASSIVE', None, '0']"


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("OMP_WAIT_POLICY", "ACTIVE", "['ACTIVE', None, None]"),
        ("GOMP_SPINCOUNT", "1000", "[None, '1000', None]"),
        ("KMP_BLOCKTIME", "200", "[None, None, '200']"),
    ],
)
def test_the_policy_of_the_user_is_kept(name, value, shown):
    assert in_python(f"import fatai; {SHOW}", **{name: value}) == shown


@pytest.mark.skipif(sys.platform != "linux", reason="reads GNU's OpenMP")
def test_torch_s_openmp_has_read_the_policy():
    """GNU's OpenMP prints its settings when it is loaded, which is when torch is imported."""
    run = subprocess.run(
        [sys.executable, "-c", "import fatai, torch; torch.ones(1)"], capture_output=True, text=True, check=True,
        env={**{k: v for k, v in os.environ.items() if k not in threads.WAIT_VARIABLES}, "OMP_DISPLAY_ENV": "TRUE"},
    )
    if "OMP_WAIT_POLICY" not in run.stderr:
        pytest.skip("this torch has another OpenMP")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in run.stderr


def test_the_report_says_how_threads_wait(unset):
    from fatai.diagnostics.environment import check_environment

    threads.wait_passively()
    assert dict(check_environment().findings)["waiting threads"].startswith("OMP_WAIT_POLICY=PASSIVE, KMP_BLOCKTIME=0")
    code = (
        "import torch, fatai; from fatai.diagnostics.environment import _threads; print(_threads()[0][1])"
    )
    assert "torch was imported before fatai" in in_python(code)
    assert "before" not in in_python(code.replace("torch, fatai", "fatai, torch"))
    assert "before" not in in_python(code, OMP_WAIT_POLICY="ACTIVE")


@pytest.mark.parametrize(
    ("quota", "cores"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 8), ("broken", 8), (None, 8)]
)
def test_cores_are_those_of_the_process_within_the_quota_of_its_container(quota, cores, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    assert available_cores(tmp_path) == cores


def test_small_networks_have_one_thread_and_large_ones_a_thread_per_core():
    quick, ninth = (count_parameters(create_model("m3", 80, width=width)) for width in (0.25, 1.0))
    assert threads_for(quick, cores=8) == 1 and threads_for(ninth, cores=8) == 8
    assert threads_for(ninth) == available_cores()


def test_the_number_is_that_of_the_network_within_the_context_and_restored(unset):
    torch.set_num_threads(3)
    unset.setattr(threads, "available_cores", lambda: 2)
    with network_threads(10_000):
        assert torch.get_num_threads() == 1
        with network_threads(50_000_000):
            assert torch.get_num_threads() == 1, "it is never raised"
    with network_threads(50_000_000):
        assert torch.get_num_threads() == 2, "the quota of the container"
    with pytest.raises(KeyError), network_threads(10_000):
        raise KeyError
    assert torch.get_num_threads() == 3


def test_a_number_of_the_user_is_kept(unset):
    torch.set_num_threads(2)
    unset.setenv("OMP_NUM_THREADS", "2")
    with network_threads(10_000):
        assert torch.get_num_threads() == 2
    unset.delenv("OMP_NUM_THREADS")
    set_threads(3)
    assert torch.get_num_threads() == 3 and os.environ["OMP_NUM_THREADS"] == "3"
    with network_threads(10_000):
        assert torch.get_num_threads() == 3
    with pytest.raises(OptionError, match="threads is 0; expected at least 1"):
        set_threads(0)


@pytest.mark.parametrize("given", [(), ("--threads", 2)])
def test_a_command_computes_with_the_number_of_its_option(given, unset, tiny_run, sample, main_with):
    seen = []
    forward = torch.nn.Conv2d.forward
    unset.setattr(torch.nn.Conv2d, "forward", lambda *args: (seen.append(torch.get_num_threads()), forward(*args))[1])
    torch.set_num_threads(2)
    clip = next((sample / "test").iterdir())
    ended = main_with("predict", tiny_run.out, clip, "--n-views", 1, *given)
    assert ended.returncode == 0 and set(seen) == {2 if given else 1}
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("command", ["predict", "tag", "serve", "run"])
def test_the_number_of_threads_is_an_option_of_commands_and_checked(command, unset, main_with):
    ended = main_with(command, "x", "--threads", 0)
    assert ended.returncode == 2 and "--threads" in ended.stderr


def test_workers_that_read_clips_have_one_thread_each():
    from torch.utils.data import DataLoader

    class Threads(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, i):
            return torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert [int(n) for n in DataLoader(Threads(), batch_size=None, num_workers=1)] == [1, 1]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("cores", "variables", "expected"),
    [(1, {}, False), (2, {}, True), (2, {"OMP_NUM_THREADS": "1"}, False), (8, {"OMP_NUM_THREADS": "4"}, True)],
)
def test_sound_is_decoded_ahead_where_a_core_is_free(unset, cores, variables, expected):
    unset.setattr(threads, "available_cores", lambda: cores)
    for name, value in variables.items():
        unset.setenv(name, value)
    assert may_read_ahead() is expected
