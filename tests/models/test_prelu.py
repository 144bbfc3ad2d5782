"""PReLU per channel: torch's outputs and gradients, in every precision and memory layout."""

import pytest
import torch
from torch import nn

from fatai.models import prelu
from fatai.models.prelu import ChannelPReLU


def outputs_and_gradients(layer, x, grad, *, autocast):
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = layer(x)
    out.backward(grad.to(out.dtype))
    return out.detach(), x.grad, layer.weight.grad


@pytest.mark.parametrize("block", [1 << 16, 100, 1], ids=["one block", "blocks", "a row each"])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_and_gradients_are_torchs(dtype, layout, autocast, block, monkeypatch):
    monkeypatch.setattr(prelu, "_BLOCK", block)
    if dtype is torch.bfloat16 and not autocast:
        pytest.skip("weights are float32")
    x = torch.randn(2, 5, 8, 6).to(dtype=dtype, memory_format=layout)
    x[0, 0, 0, :3] = torch.tensor([0.0, -0.0, float("inf")])
    grad = torch.randn(2, 5, 8, 6).to(memory_format=layout)
    own, torchs = ChannelPReLU(5), nn.PReLU(5)
    slopes = torch.linspace(-0.5, 1.5, 5)
    for layer in (own, torchs):
        layer.load_state_dict({"weight": slopes})
    got, expected = (outputs_and_gradients(layer, x, grad, autocast=autocast) for layer in (own, torchs))
    low = autocast or dtype is torch.bfloat16
    assert got[0].dtype == expected[0].dtype and torch.equal(got[0], expected[0])
    assert got[1].stride() == expected[1].stride()
    torch.testing.assert_close(got[1], expected[1], atol=1e-2 if low else 1e-6, rtol=1e-2 if low else 1e-6)
    torch.testing.assert_close(got[2], expected[2], atol=0.1 if low else 1e-5, rtol=1e-2 if low else 1e-5)


def test_a_layer_may_be_used_twice():
    x, own, torchs = torch.randn(3, 4, 5, 6), ChannelPReLU(4), nn.PReLU(4)
    for layer in (own, torchs):
        layer(layer(x) - 0.5).square().sum().backward()
    torch.testing.assert_close(own.weight.grad, torchs.weight.grad)


@pytest.mark.parametrize("shape", [(0, 4, 5, 6), (0, 4, 5), (0, 4), (3, 4, 0)])
def test_no_values_have_no_gradients(shape):
    layer, x = ChannelPReLU(4), torch.zeros(shape, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.shape == shape and layer.weight.grad.tolist() == [0.0] * 4


def test_a_gradient_that_is_one_number_repeated_is_taken():
    x, own, torchs = torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last), ChannelPReLU(4), nn.PReLU(4)
    for layer in (own, torchs):
        layer(x).mean().backward()
    torch.testing.assert_close(own.weight.grad, torchs.weight.grad)


def test_maps_over_time_have_gradients_too():
    x = torch.randn(3, 4, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ChannelPReLU(4).double(), (x,))


def test_gradients_of_the_slopes_are_by_hand():
    layer = ChannelPReLU(2)
    layer(torch.tensor([[-1.0, 2.0], [-3.0, -4.0]])).sum().backward()
    assert layer.weight.grad.tolist() == [-4.0, -4.0]
