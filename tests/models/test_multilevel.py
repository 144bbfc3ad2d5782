"""The 3rd place's multi-level networks."""

import pytest
import torch
from torch import nn

from fatai.errors import OptionError, ShapeError
from fatai.models import create_model
from fatai.models.layers import GRUPool
from fatai.models.multilevel import GlobalMax, ResidualUnit, level_block


def depths(model):
    return [block[1].out_channels for block in model.blocks]


@pytest.mark.parametrize(("options", "expected"), [
    ({"n_blocks": 6}, [100, 150, 225, 337, 506, 759]),
    ({"base_depth": 50}, [50, 75, 112, 168, 253]),
    ({"base_depth": 8, "growth": 2.0, "n_blocks": 3}, [8, 16, 32]),
])
@pytest.mark.parametrize("name", ["cnn2d_multilevel", "cnn1d_multilevel"])
def test_depths_grow_and_are_cut_to_whole_numbers(name, options, expected):
    with torch.device("meta"):
        assert depths(create_model(name, 80, **options)) == expected


@pytest.mark.parametrize(("options", "features"), [
    ({}, 150 + 225 + 337 + 506), ({"n_blocks": 6}, 1_977), ({"first_pooled": 0}, 1_318), ({"first_pooled": 4}, 506),
    ({"aggregation": "gru"}, 4 * 256), ({"n_blocks": 6, "aggregation": "gru"}, 5 * 256),
])
@pytest.mark.parametrize("name", ["cnn2d_multilevel", "cnn1d_multilevel"])
def test_features_are_the_pooled_levels_from_the_first_on(name, options, features):
    with torch.device("meta"):
        model = create_model(name, 80, **options).eval()
        assert model.embed(torch.randn(2, 1, 128, 64)).shape == (2, features)
        assert model.head[1].weight.shape == (features, features)


def test_features_are_the_maxima_of_each_level():
    model = create_model("cnn2d_multilevel", 4, width=0.1, n_blocks=3).eval()
    spec = torch.randn(2, 1, 16, 24)
    with torch.no_grad():
        first = model.blocks[0](spec)
        second = model.blocks[1](first)
        third = model.blocks[2](second)
        expected = torch.cat([second.amax((2, 3)), third.amax((2, 3))], 1)
        assert torch.equal(model.embed(spec), expected)
    assert third.shape[2:] == (2, 3)


@pytest.mark.parametrize("ndim", [1, 2])
def test_block_is_norm_convolution_pooling_norm_and_prelu(ndim):
    kinds = [type(m).__name__ for m in level_block(3, 8, ndim)]
    assert kinds == [
        f"BatchNorm{ndim}d",
        f"Conv{ndim}d",
        f"MaxPool{ndim}d",
        f"BatchNorm{ndim}d",
        "ChannelPReLU",
        "ResidualUnit",
    ]
    unit = [type(m).__name__ for m in ResidualUnit(8, ndim).inner]
    assert unit == [f"Conv{ndim}d", f"BatchNorm{ndim}d", "ChannelPReLU"] * 2 + [f"Conv{ndim}d", f"BatchNorm{ndim}d"]


def test_residual_unit_is_a_prelu_where_its_inner_part_is_zero():
    unit = ResidualUnit(2, 2).eval()
    nn.init.zeros_(unit.inner[-1].weight)
    with torch.no_grad():
        unit.activation.weight.copy_(torch.tensor([0.5, 0.1]))
        x = torch.tensor([[[[-2.0, 3.0]], [[-2.0, 3.0]]]])
        assert torch.allclose(unit(x), torch.tensor([[[[-1.0, 3.0]], [[-0.2, 3.0]]]]))


def test_gru_pool_is_a_gru_of_each_direction_by_hand():
    pool = GRUPool(5, hidden=3).eval()
    maps = torch.randn(2, 5, 4, 7)
    gru = pool.gru

    def last_state(frames, suffix):
        w_in, w_state, b_in, b_state = (
            getattr(gru, f"{kind}_l0{suffix}") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        state = torch.zeros(2, 3)
        for frame in frames:
            from_in, from_state = (frame @ w_in.T + b_in).chunk(3, 1), (state @ w_state.T + b_state).chunk(3, 1)
            reset, keep = (torch.sigmoid(from_in[k] + from_state[k]) for k in (0, 1))
            state = (1 - keep) * torch.tanh(from_in[2] + reset * from_state[2]) + keep * state
        return state

    with torch.no_grad():
        mels_averaged = maps.mean(2)
        centred = mels_averaged - mels_averaged.mean(1, keepdim=True)
        normed = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        frames = list(normed.permute(2, 0, 1))
        expected = torch.cat([last_state(frames, ""), last_state(frames[::-1], "_reverse")], 1)
        torch.testing.assert_close(pool(maps), expected)
        torch.testing.assert_close(pool(mels_averaged), expected)


def test_global_max_accepts_maps_of_one_and_two_dimensions():
    x = torch.tensor([[[1.0, 5.0, 2.0], [-3.0, -1.0, -2.0]]])
    assert GlobalMax()(x).tolist() == GlobalMax()(x[..., None]).tolist() == [[5.0, -1.0]]


def test_1d_network_uses_bins_as_channels():
    model = create_model("cnn1d_multilevel", 4, 2, n_mels=20, width=0.1).eval()
    assert model.blocks[0][1].in_channels == 40
    spec = torch.randn(1, 2, 20, 50)
    with torch.no_grad():
        assert not torch.allclose(model(spec), model(spec.flip(2)))
        # Fewer bins are continued by the highest one.
        torch.testing.assert_close(
            model(spec[:, :, :15]), model(torch.cat([spec[:, :, :15], spec[:, :, 14:15].expand(-1, -1, 5, -1)], 2))
        )
    with pytest.raises(ShapeError, match="21 mel bins.*n_mels=20"):
        model(torch.randn(1, 2, 21, 50))


@pytest.mark.parametrize("backbone", ["resnet18", "resnet34"])
def test_backbone_variant_norms_three_channels_and_takes_the_global_maximum(backbone):
    model = create_model("cnn2d_multilevel", 4, backbone=backbone, width=0.125).eval()
    spec = torch.randn(2, 1, 64, 96)
    with torch.no_grad():
        maps = model.body[:-1](spec.repeat(1, 3, 1, 1))
        torch.testing.assert_close(model.embed(spec), maps.amax((2, 3)))
        assert model(spec).shape == (2, 4)
    assert isinstance(model.body[0], nn.BatchNorm2d) and maps.shape == (2, 64, 2, 3)
    model.train()(spec).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_backbone_variant_has_the_parameters_of_its_parts():
    with torch.device("meta"):
        model = create_model("cnn2d_multilevel", 80, 3, backbone="resnet18")
    resnet18_without_last_layer, d = 11_689_512 - 513_000, 512
    head = 2 * d + (d * d + d) + 2 * d + d + (80 * d + 80)
    assert sum(p.numel() for p in model.parameters()) == 2 * 3 + resnet18_without_last_layer + head


@pytest.mark.parametrize(("options", "message"), [
    ({"first_pooled": 5}, r"first_pooled=5.*0 to 4"),
    ({"first_pooled": -1}, r"first_pooled=-1"),
    ({"aggregation": "mean"}, r"aggregation='mean'.*'max' or 'gru'"),
    ({"backbone": "vgg"}, r"backbone='vgg'.*resnet18"),
    ({"backbone": "resnet18", "in_channels": 2}, r"in_channels=2.*1 \(repeated three times\) or 3"),
])
def test_wrong_options_are_named(options, message):
    with pytest.raises(OptionError, match=message):
        create_model("cnn2d_multilevel", 4, **options)
