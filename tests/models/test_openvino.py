"""Networks that OpenVINO runs: the outputs of torch, and torch where OpenVINO cannot follow."""

import copy
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from fatai.errors import OptionError
from fatai.experiment.run_folder import Tagger, predict_with_run
from fatai.experiment.tag_batch import TagBatch
from fatai.inference.predictions import Predictions
from fatai.models import MODELS
from fatai.models.batch_norm import fold_batch_norm
from fatai.models.openvino import OpenVINOModel, with_backend

pytest.importorskip("openvino", reason="openvino is not installed")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return MODELS.build("m3", n_tags=7, in_channels=3, width=0.05).eval()


def spec(clips, frames, seed=0):
    return torch.randn(clips, 3, 64, frames, generator=torch.Generator().manual_seed(seed))


class Counted(nn.Module):
    """Count the calls of a network by torch."""

    def __init__(self, model):
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, x):
        self.calls += not torch.jit.is_tracing()
        return self.model(x)


@pytest.mark.parametrize("clips", [1, 3, 8])
def test_logits_are_those_of_torch_for_any_number_and_length_of_clips(network, clips):
    counted = Counted(network).eval()
    model = OpenVINOModel(counted).eval()
    with torch.inference_mode():
        for frames in (100, 128):
            model(spec(2, frames))
            n_before = counted.calls
            x = spec(clips, frames, seed=1)
            torch.testing.assert_close(model(x), network(x), rtol=1e-4, atol=1e-4)
            assert counted.calls == n_before
    assert counted.calls == 2  # to compare the first batch of each length


def test_outputs_of_one_call_are_not_changed_by_the_next(network):
    model = OpenVINOModel(network).eval()
    with torch.inference_mode():
        first = model(spec(2, 64))
        kept = first.clone()
        model(spec(2, 64, seed=1))
    assert torch.equal(first, kept)


def test_torch_trains_and_takes_gradients(network):
    model = OpenVINOModel(copy.deepcopy(network))
    model.eval()(spec(2, 64)).sum().backward()
    assert all(p.grad is not None for p in model.model.parameters())
    assert model._graphs == {} and model.train()(spec(2, 64)).shape == (2, 7)


class Differs(nn.Module):
    """A network of one parameter whose output depends on whether it is traced."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.scale * x.mean((1, 2, 3))[:, None] + (3.0 if torch.jit.is_tracing() else 0.0)


class Inconvertible(nn.Module):
    def forward(self, x):
        if torch.jit.is_tracing():
            raise RuntimeError("no such operation")
        return x.mean((1, 2, 3))[:, None]


@pytest.mark.parametrize(("model", "problem"), [
    (Differs(), "differ from torch's by 0.4"), (Inconvertible(), "cannot be converted .*no such"),
])
def test_torch_runs_what_openvino_computes_otherwise_or_not_at_all_with_one_warning(model, problem):
    runs = OpenVINOModel(model).eval()
    with torch.inference_mode():
        with pytest.warns(UserWarning, match=problem):
            first = runs(spec(2, 64))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            second = runs(spec(2, 64))
        assert torch.equal(first, model(spec(2, 64))) and torch.equal(first, second)


def test_a_graph_is_compiled_for_each_of_the_first_lengths(network, monkeypatch):
    monkeypatch.setattr("fatai.models.openvino._MAX_LENGTHS", 2)
    model = OpenVINOModel(network).eval()
    with torch.inference_mode(), pytest.warns(UserWarning, match="more than 2 lengths") as caught:
        for frames in (64, 80, 96, 64, 112):
            torch.testing.assert_close(model(spec(1, frames)), network(spec(1, frames)), rtol=1e-4, atol=1e-4)
    assert [graph is not None for graph in model._graphs.values()] == [True, True, False, False]
    assert sum("lengths" in str(w.message) for w in caught) == 1


def test_batch_norms_are_left_to_openvino(network):
    model = nn.Sequential(OpenVINOModel(network)).eval()
    assert fold_batch_norm(model, spec(1, 64)) is model


def test_an_unknown_backend_is_an_error(network):
    assert with_backend(network, "torch") is network
    with pytest.raises(OptionError, match="openvino"):
        with_backend(network, "opnvino")


def test_without_the_package_the_extra_is_named(network, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(ImportError, match=r"pip install 'fatai\[openvino\]'"):
        with_backend(network, "openvino")


def test_predictions_of_a_run_are_those_of_torch(tiny_run, sample):
    clips = [str(path) for path in sorted((sample / "test").iterdir())[:4]]
    expected = predict_with_run(tiny_run.out, clips)
    found = predict_with_run(tiny_run.out, clips, backend="openvino")
    assert found.fnames == expected.fnames
    np.testing.assert_allclose(found.probs, expected.probs, atol=0.02)  # bfloat16 where the processor has it
    batch = TagBatch(tiny_run.out, backend="openvino")({"path": clips})
    np.testing.assert_allclose(np.stack([batch[tag] for tag in found.tags], 1), found.probs, atol=1e-6)
    steps = zip(Tagger(tiny_run.out, backend="openvino").frame_probs(clips[0]),
                Tagger(tiny_run.out).frame_probs(clips[0]), strict=True)
    assert all(np.abs(a.probs - b.probs).max() < 0.02 for a, b in steps)


def test_the_command_takes_a_backend(tiny_run, sample, main_with, tmp_path):
    clip = min((sample / "test").iterdir())
    found = main_with("predict", tiny_run.out, clip, "--backend", "openvino", "--out", tmp_path / "a.csv")
    assert found.returncode == 0 and Predictions.from_csv(tmp_path / "a.csv").fnames == (clip.name,)
    refused = main_with("predict", tiny_run.out, clip, "--backend", "onnx", "--out", tmp_path / "b.csv")
    assert refused.returncode == 2 and "backend is 'onnx'" in refused.stderr


COMPILE_AND_SIGNAL = """
import os, signal
import torch
from torch import nn
from fatai.models.openvino import OpenVINOModel

signal.signal(signal.SIGUSR1, lambda *args: print("handled"))
networks = [nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval() for _ in range(2)]
models = [OpenVINOModel(network).eval() for network in networks]
with torch.inference_mode():
    for model in models:
        model(torch.zeros(1, 1, 8, 8))
while models:
    del model
    model = models.pop(0)
del model
os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.mark.skipif(os.name == "nt", reason="there are no such signals")
def test_signals_are_handled_after_several_networks_have_gone():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", COMPILE_AND_SIGNAL], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
