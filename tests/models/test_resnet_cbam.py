"""Attention by channel and position, and the 36th place's residual network."""

import math

import pytest
import torch
from torch import nn

from fatai.errors import OptionError
from fatai.models import create_model
from fatai.models.layers import CBAM, prior_linear
from fatai.models.resnet_cbam import AttentionBlock


def by_hand(cbam, x, order):
    """Compute CBAM clip by clip with the numbers of its layers; `order` orders the maps of the spatial gate."""
    first, activation, second = cbam.channel_gate
    out = []
    for clip in x:
        gate = sum(
            second(activation(first(row)))
            for row in (torch.stack([c.mean() for c in clip]), torch.stack([c.max() for c in clip]))
        )
        weighted = clip / (1 + torch.exp(-gate))[:, None, None]
        pair = torch.stack([order[k](weighted) for k in (0, 1)])
        out.append(weighted * torch.sigmoid(cbam.spatial_gate(pair[None]))[0])
    return torch.stack(out)


def mean(clip):
    return sum(clip) / len(clip)


def maximum(clip):
    return clip.max(dim=0).values


@pytest.mark.parametrize(("form", "order"), [("plain", (mean, maximum)), ("normed", (maximum, mean))])
def test_cbam_is_the_formula_clip_by_clip(form, order):
    cbam = CBAM(32, form=form).eval()
    if form == "normed":
        nn.init.constant_(cbam.spatial_gate[1].weight, 0.7)
    x = torch.randn(3, 32, 5, 6)
    with torch.no_grad():
        torch.testing.assert_close(cbam(x), by_hand(cbam, x, order), atol=1e-6, rtol=1e-5)
        assert not torch.allclose(cbam(x), by_hand(cbam, x, order[::-1]), atol=1e-4)


def test_forms_differ_in_biases_activation_and_norm():
    plain, normed = CBAM(32, form="plain", kernel_size=3), CBAM(32, form="normed")
    assert [n for n, _ in plain.named_parameters()] == [
        "channel_gate.0.weight",
        "channel_gate.2.weight",
        "spatial_gate.0.weight",
    ]
    assert sum(p.numel() for p in plain.parameters()) == 2 * 32 * 2 + 2 * 9
    assert sum(p.numel() for p in normed.parameters()) == 2 * 32 * 2 + 2 + 32 + 2 * 49 + 2
    assert isinstance(normed.channel_gate[1], nn.ReLU6) and isinstance(plain.channel_gate[1], nn.ReLU)
    assert normed.spatial_gate[1].momentum == 0.01 and normed.spatial_gate[1].weight.item() == 0


def test_wrong_options_of_cbam_are_named():
    with pytest.raises(OptionError, match="form='both'.*plain"):
        CBAM(32, form="both")
    with pytest.raises(OptionError, match="kernel_size=4.*odd"):
        CBAM(32, kernel_size=4)


def test_prior_linear_starts_at_one_tag_in_all():
    linear = prior_linear(64, 80)
    assert torch.allclose(linear.bias, torch.tensor(-4.3694), atol=1e-4)
    assert torch.allclose(torch.sigmoid(linear.bias), torch.tensor(1 / 80), atol=1e-7)
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert prior_linear(64, 1).bias.item() == 0


@pytest.fixture(scope="module")
def published():
    torch.manual_seed(0)
    return create_model("resnet18_cbam", 80)


def test_stem_has_three_convolutions_and_maps_shrink_to_a_thirty_second(published):
    stem = [m for m in published.body[:9] if isinstance(m, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.stride[0]) for c in stem] == [(1, 32, 2), (32, 32, 1), (32, 64, 1)]
    assert sum(isinstance(m, nn.ReLU6) for m in published.body[:9]) == 3
    blocks = [m for m in published.body if isinstance(m, AttentionBlock)]
    assert [(b.conv1.out_channels, b.conv1.stride[0]) for b in blocks] == [
        (64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1),
    ]
    with torch.no_grad():
        assert published.eval().body(torch.randn(1, 1, 128, 197)).shape == (1, 512, 4, 7)


def test_convolutions_start_kaiming_normal_by_outputs(published):
    conv = published.body[-1].conv1
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (512 * 9)), rel=0.02)
    perceptron = published.body[-1].attention.channel_gate
    assert perceptron[0].weight.std().item() == pytest.approx(0.01, rel=0.05) and not perceptron[0].bias.any()


def test_attention_starts_as_half_at_every_position_and_without_it_blocks_as_shortcuts(published):
    assert all(m.spatial_gate[1].weight.item() == 0 for m in published.modules() if isinstance(m, CBAM))
    block = AttentionBlock(8, 8, stride=1, attention=True).eval()
    x = torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        for p in block.attention.channel_gate.parameters():
            p.zero_()
        nn.init.zeros_(block.attention.spatial_gate[1].weight)
        inner = block.bn2(block.conv2(block.bn1(block.conv1(x)).clamp(0, 6)))
        # Both gates are sigmoid(0).
        torch.testing.assert_close(block(x), (inner / 4 + x).clamp(0, 6))
    plain = create_model("resnet18_cbam", 4, width=0.125, attention=False)
    assert all(not m.bn2.weight.any() for m in plain.modules() if isinstance(m, AttentionBlock))
