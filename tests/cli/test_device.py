"""`--device`: what this machine lacks is one sentence, and what it has is taken by training and predictions."""

import pytest
import torch

from fatai.device import DEVICE_VARIABLE, inference_device, set_device, training_device
from fatai.errors import OptionError


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Without a chosen device; the variables are as before at the end."""
    for name in (DEVICE_VARIABLE, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")


@pytest.fixture
def gpus(monkeypatch):
    """Function that gives the machine a number of GPUs, and returns the list of those that are chosen."""
    chosen = []

    def give(n):
        monkeypatch.setattr("torch.cuda.is_available", lambda: n > 0)
        monkeypatch.setattr("torch.cuda.device_count", lambda: n)
        monkeypatch.setattr("torch.cuda.set_device", chosen.append)
        return chosen

    return give


@pytest.mark.parametrize(("name", "n", "message"), [
    ("cuda", 0, "the device is cuda, but torch finds no GPU here"),
    ("cuda:0", 0, "torch finds no GPU here"),
    ("cuda:2", 2, "the device is cuda:2, but torch finds 2 of them, counted from cuda:0"),
    ("gpu", 1, "the device is 'gpu'; expected auto, cpu, cuda, cuda:1"),
    ("cuda:-1", 1, "the device is 'cuda:-1'"), ("CPU", 1, "the device is 'CPU'"),
])
def test_a_device_that_is_not_there_is_an_error(gpus, name, n, message):
    gpus(n)
    with pytest.raises(OptionError, match=message):
        set_device(name)


def test_mps_needs_a_machine_that_has_it(monkeypatch):
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(OptionError, match="the device is mps, which torch does not find here"):
        set_device("mps")
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    set_device("mps")
    assert inference_device() == training_device() == torch.device("mps")


def test_a_gpu_is_taken_by_its_number(gpus):
    chosen = gpus(2)
    assert inference_device() == torch.device("cuda")
    set_device("cuda:1")
    assert chosen == [1] and inference_device() == training_device() == torch.device("cuda:1")
    set_device("cuda")
    assert chosen == [1] and inference_device() == torch.device("cuda")


def test_the_cpu_is_taken_although_there_is_a_gpu(gpus, monkeypatch):
    import os

    gpus(1)
    monkeypatch.setattr("fastai.torch_core.default_device", lambda: torch.device("cuda", 0))
    assert training_device().type == "cuda"
    set_device("cpu")
    assert inference_device() == training_device() == torch.device("cpu")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "", "processes that are started see no GPU"
    set_device("auto")
    assert training_device().type == "cuda"


@pytest.mark.parametrize("command", [
    ("run", "data"), ("predict", "nowhere", "a.wav"), ("tag", "nowhere", "a.wav"), ("serve", "nowhere"),
])
def test_commands_end_with_one_sentence(gpus, main_with, command):
    gpus(0)
    ended = main_with(*command, "--device", "cuda")
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("fatai-submit: the device is cuda, but torch finds no GPU here")


@pytest.mark.parametrize("command", [("run", "data"), ("predict", "nowhere", "a.wav")])
def test_one_gpu_for_several_processes_is_refused(gpus, main_with, command):
    gpus(2)
    ended = main_with(*command, "--device", "cuda:1", "--nproc", "2")
    assert ended.returncode == 2 and "--device cuda:1 is one GPU, and --nproc 2" in ended.stderr


def test_predictions_on_a_chosen_device_are_those_of_any(tiny_run, sample, main_with, tmp_path):
    clip = sorted((sample / "test").iterdir())[0]
    first, second = (main_with("predict", tiny_run.out, clip, *args) for args in ((), ("--device", "cpu")))
    assert second.returncode == 0 and first.stdout == second.stdout
