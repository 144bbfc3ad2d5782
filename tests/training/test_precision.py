"""Precision of a network: chosen by the device, and always restored."""

import pytest
import torch
from fastai.callback.fp16 import MixedPrecision

from fatai.errors import OptionError
from fatai.experiment.build import pin_network
from fatai.experiment.recipe import load_recipe
from fatai.inference.learner import fat_learner
from fatai.models import create_model
from fatai.training.autocast import autocast_for, best_dtype, fast_layout
from fatai.training.precision import MixedOnCPU, learner_precision, precision_callbacks


@pytest.fixture
def learn(small_dls):
    return fat_learner(small_dls, "m1", width=0.125, precision="bf16")


def fit(learn):
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)


def inner_dtypes(learn):
    """Return the dtypes of the first convolution and of the loss during a fit."""
    convs, losses = [], []
    handles = [
        learn.model.blocks[0].conv1.register_forward_hook(lambda m, i, out: convs.append(out.dtype)),
        learn.loss_func.register_forward_hook(lambda m, i, out: losses.append(out.dtype)),
    ]
    fit(learn)
    for handle in handles:
        handle.remove()
    return set(convs), set(losses)


def test_bfloat16_of_a_cpu_follows_its_capabilities(monkeypatch):
    for has, dtype in (
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx2": True}, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: has, raising=False)
        assert best_dtype("cpu") == dtype


def test_in_bf16_convolutions_are_low_and_loss_and_logits_float32(learn):
    assert any(isinstance(cb, MixedOnCPU) for cb in learn.cbs)
    assert inner_dtypes(learn) == ({torch.bfloat16}, {torch.float32})
    with autocast_for(learn.dls.device, learner_precision(learn)):
        assert learn.model.eval()(torch.randn(1, 1, 64, 64)).dtype == torch.float32


def test_fp32_adds_no_callback(small_dls):
    learn = fat_learner(small_dls, "m1", width=0.125, precision="fp32")
    assert precision_callbacks("fp32", learn) == []
    assert inner_dtypes(learn) == ({torch.float32}, {torch.float32})
    with autocast_for(learn.dls.device, learner_precision(learn)):
        assert not torch.is_autocast_enabled("cpu")


def test_autocast_ends_when_the_network_raises(learn):
    def fail(module, inputs):
        raise RuntimeError("failed")

    handle = learn.model.blocks[0].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="failed"):
        fit(learn)
    assert not torch.is_autocast_enabled("cpu")
    handle.remove()
    fit(learn)
    assert (
        not torch.is_autocast_enabled("cpu") and not learn.model._forward_hooks and not learn.model._forward_pre_hooks
    )


def test_autocast_has_ended_before_the_loss(learn):
    calls = []

    def loss(logits, targ):
        calls.append((torch.is_autocast_enabled("cpu"), logits.dtype))
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, targ)

    learn.loss_func = loss
    fit(learn)
    assert set(calls) == {(False, torch.float32)}


def test_low_precision_is_close_to_float32():
    model = create_model("m1", 10, width=0.25).eval()
    spec = torch.randn(4, 1, 64, 96)
    with torch.no_grad():
        exact = torch.sigmoid(model(spec))
        with autocast_for("cpu", "bf16"):
            low = torch.sigmoid(fast_layout(model, "cpu", "bf16")(spec))
    torch.testing.assert_close(low, exact, atol=0.02, rtol=0)
    assert model.blocks[1].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_fast_layout_leaves_float32_networks_unchanged():
    model = create_model("m1", 10, width=0.25)
    fast_layout(model, "cpu", "fp32")
    assert model.blocks[1].conv1.weight.is_contiguous()


def test_unknown_precisions_are_errors(small_dls, learn):
    with pytest.raises(OptionError, match="'bf17'; expected one of auto, fp32, bf16, fp16"):
        fat_learner(small_dls, "m1", width=0.125, precision="bf17")
    with pytest.raises(OptionError, match="expected a CUDA device"):
        autocast_for("cpu", "fp16")


def test_on_a_gpu_the_callbacks_are_those_of_fastai(learn, monkeypatch):
    monkeypatch.setattr(learn.dls, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    mixed = next(cb for cb in precision_callbacks("auto", learn) if isinstance(cb, MixedPrecision))
    assert mixed.amp_mode.value == "fp16", "older GPUs"


@pytest.mark.parametrize("arch, precision", [("m1", "bf16"), ("mn04", "fp32")])
def test_auto_is_float32_for_networks_that_rounding_harms(arch, precision, small_dls, monkeypatch):
    monkeypatch.setattr("fatai.training.autocast.best_dtype", lambda device: torch.bfloat16)
    width = {"m1": 0.125, "mn04": None}[arch]
    assert learner_precision(fat_learner(small_dls, arch, width=width)) == precision
    assert learner_precision(fat_learner(small_dls, arch, width=width, precision="bf16")) == "bf16"


@pytest.mark.parametrize("name, given, recorded", [
    ("probe", None, "fp32"), ("finetune", None, "fp32"), ("probe", "bf16", "bf16"), ("default", None, "auto"),
])
def test_a_run_records_what_auto_is_for_its_network(name, given, recorded):
    recipe = load_recipe(name).override(precision=given)
    assert recipe.precision == (given or "auto") and pin_network(recipe).precision == recorded
