"""Steps of the fused Adam are those of fastai's, whatever is frozen, decayed, laid out or resumed."""

import copy
from functools import partial

import pytest
import torch
from fastai.optimizer import Adam
from torch import nn

from fatai.training.optimizer import FusedAdam


def network():
    torch.manual_seed(0)
    # Without a bias before the norm: its gradient is nothing but rounding, which Adam would blow up.
    body = nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.PReLU(5)
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2))


def groups(model):
    return [list(model[:3].parameters()), list(model[5].parameters())]


def train(model, opt, steps=4, seed=1, before=lambda step, model, opt: None):
    torch.manual_seed(seed)
    for step in range(steps):
        before(step, model, opt)
        model(torch.randn(6, 3, 8, 8)).square().sum().backward()
        opt.step()
        opt.zero_grad()
    return [p.detach().clone() for p in model.parameters()]


def assert_same_steps(options, **kwargs):
    results = []
    for make in (Adam, FusedAdam):
        model = network()
        opt = make(groups(model), lr=0.01, **options)
        opt.set_hyper("lr", slice(1e-3, 1e-2))
        opt.state[model[1].weight]["do_wd"] = False
        results.append(train(model, opt, **kwargs))
    assert not torch.allclose(results[0][0], next(network().parameters()))
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decouple_wd", [True, False])
@pytest.mark.parametrize("options", [{}, {"wd": 0.3, "sqr_mom": 0.999, "eps": 1e-8}, {"mom": 0.5, "wd": 0.0}])
def test_steps_are_fastais(options, decouple_wd):
    assert_same_steps({**options, "decouple_wd": decouple_wd})


def test_a_body_that_is_thawed_later_has_steps_of_its_own():
    def before(step, model, opt):
        if step == 0:
            opt.freeze_to(1)
        if step == 2:
            opt.unfreeze()
            opt.set_hyper("mom", 0.7)

    assert_same_steps({}, before=before)


def test_a_network_that_changes_its_memory_layout_keeps_its_averages():
    def before(step, model, opt):
        if step == 2:
            model.to(memory_format=torch.channels_last)

    assert_same_steps({}, before=before)


@pytest.mark.parametrize("first", [Adam, FusedAdam])
def test_a_saved_state_continues(first):
    model = network()
    whole = train(model, FusedAdam(groups(model), lr=0.01), steps=6)
    model = network()
    opt = first(groups(model), lr=0.01)
    torch.manual_seed(1)
    train(model, opt, steps=3)
    drawn = torch.get_rng_state()
    resumed = FusedAdam(groups(model), lr=0.01)
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    torch.set_rng_state(drawn)
    for _ in range(3):
        model(torch.randn(6, 3, 8, 8)).square().sum().backward()
        resumed.step()
        resumed.zero_grad()
    for expected, got in zip(whole, model.parameters(), strict=True):
        torch.testing.assert_close(got.detach(), expected, rtol=1e-5, atol=1e-6)


def test_closures_and_odd_parameters_are_left_to_fastai():
    p = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    p.grad = torch.ones(3, dtype=torch.complex64)
    FusedAdam([p], lr=0.1, wd=0).step()
    assert (p != 0).all()
    with pytest.raises(NotImplementedError, match="closure"):
        partial(FusedAdam, lr=0.1)([p]).step(lambda: None)
