"""The 36th place's MobileNetV3."""

import math

import pytest
import torch
from torch import nn

from fatai.models import count_parameters, create_model
from fatai.models.mobilenetv3 import LARGE, SMALL, InvertedResidual, Row, SqueezeExcite


@pytest.fixture(scope="module")
def large():
    torch.manual_seed(0)
    return create_model("mobilenetv3_large", 80)


def test_maps_shrink_to_a_thirty_second_and_become_1280_features(large):
    spec = torch.randn(1, 1, 128, 197)
    with torch.no_grad():
        assert large.eval().body(spec).shape == (1, 960, 4, 7)
        assert large.embed(spec).shape == (1, 1280)


def test_unused_parameters_are_kept_but_frozen(large):
    assert count_parameters(large) - count_parameters(large, trainable=True) == 88_912


def test_every_trainable_parameter_gets_a_gradient():
    model = create_model("mobilenetv3_small", 4)
    model(torch.randn(2, 1, 64, 96)).square().sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_start_values(large):
    stem = large.body[0]
    assert stem.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 16)), rel=0.15)
    assert (
        large.widen[0].weight.std().item() == pytest.approx(math.sqrt(2 / 1280), rel=0.01)
        and large.widen[0].bias is None
    )
    assert torch.allclose(large.head[1].bias, torch.tensor(-math.log(79)))


def test_activations_are_relu6_first_and_hswish_later(large):
    blocks = [m for m in large.body if isinstance(m, InvertedResidual)]
    assert [type(b.depthwise[2]) for b in blocks] == [nn.ReLU6] * 6 + [nn.Hardswish] * 9
    assert [b.squeezes for b in blocks] == [False] * 3 + [True] * 3 + [False] * 4 + [True] * 5
    assert [b.depthwise[0].stride[0] for b in blocks] == [1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1]
    assert [b.expands for b in blocks] == [False] + [True] * 14


def test_only_the_small_one_squeezes_after_its_last_wide_convolution(large):
    small = create_model("mobilenetv3_small", 4)
    assert any(isinstance(m, SqueezeExcite) for m in small.body) and not any(
        isinstance(m, SqueezeExcite) for m in large.body
    )
    assert (len(LARGE), len(SMALL)) == (15, 11)


def test_squeeze_weighs_channels_by_a_hard_sigmoid():
    squeeze = SqueezeExcite(8)
    with torch.no_grad():
        for p in squeeze.parameters():
            p.zero_()
        squeeze.gate[2].bias.copy_(torch.tensor([-9.0, -3.0, -1.5, 0.0, 1.5, 3.0, 9.0, 0.6]))
        x = torch.rand(2, 8, 3, 4)
        expected = torch.tensor([0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 0.6])
        torch.testing.assert_close(squeeze(x), x * expected[None, :, None, None])


def test_block_adds_its_input_only_where_the_shape_is_unchanged():
    same, wider = (
        InvertedResidual(16, Row(3, 64, 16, True, False, 1)),
        InvertedResidual(16, Row(3, 64, 24, True, False, 1)),
    )
    x = torch.randn(2, 16, 8, 8)
    for block in (same, wider):
        nn.init.zeros_(block.project[1].weight)
    assert torch.equal(same(x), x) and not wider(x).any()
