"""Every model of the registry: sizes, shapes, gradients, arithmetic."""

import pytest
import torch

from fatai.errors import OptionError, ShapeError, UnknownName
from fatai.models import MODELS, count_parameters, create_model
from fatai.models.convblock import ConvBlock
from fatai.models.parts import ConcatPool, MultiSampleDropout, scaled

# Parameters at 80 tags, of the systems as published (their fact sheets), not of this code.
PUBLISHED = [
    ("m1", {}, 6_380_753),
    ("m2", {}, 6_720_593),
    ("m3", {}, 26_129_489),
    ("m4", {}, 25_667_153),
]


def small(name, **options):
    """The model `name` with few channels, where it can be scaled."""
    return create_model(name, n_tags=4, **({"width": 0.125} | options))


@pytest.mark.parametrize(("name", "options", "parameters"), PUBLISHED)
def test_parameters_are_those_published(name, options, parameters):
    with torch.device("meta"):
        assert count_parameters(create_model(name, n_tags=80, **options)) == parameters


def test_m3_has_its_parameters_where_they_belong():
    with torch.device("meta"):
        model = create_model("m3", n_tags=80)
    assert (count_parameters(model.blocks), count_parameters(model.head)) == (25_117_440, 1_012_049)


def test_m0_has_as_many_parameters_as_a_hand_count():
    convs = sum(9 * i * o + o + 9 * o * o + o + 4 * o for i, o in [(1, 64), (64, 128), (128, 256), (256, 512)])
    head = 2 * 512 + (512 * 128 + 128) + 1 + 2 * 128 + (128 * 80 + 80)
    with torch.device("meta"):
        assert count_parameters(create_model("m0", n_tags=80)) == convs + head


@pytest.mark.parametrize("name", MODELS.names())
def test_model_maps_spectrograms_to_logits_and_learns(name):
    model = small(name)
    spec = torch.randn(2, 1, 64, 96)
    outputs = model(spec)
    # A model with auxiliary heads returns the logits of all in training.
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert all(logits.shape == (2, 4) and logits.isfinite().all() for logits in outputs)
    sum(logits.square().mean() for logits in outputs).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", MODELS.names())
def test_model_repeats_itself_in_eval(name):
    model = small(name).eval()
    spec = torch.randn(2, 1, 64, 96)
    with torch.no_grad():
        first, again, one = model(spec), model(spec), model(spec[:1])
    assert torch.equal(first, again)
    torch.testing.assert_close(first[:1], one, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS.names())
@pytest.mark.parametrize("size", [(64, 1), (64, 33), (64, 257)])
def test_model_takes_any_number_of_frames(name, size):
    with torch.no_grad():
        assert small(name).eval()(torch.randn(1, 1, *size)).shape == (1, 4)


@pytest.mark.parametrize("name", MODELS.names())
def test_embedding_is_one_row_per_clip(name):
    model = small(name).eval()
    with torch.no_grad():
        embedding = model.embed(torch.randn(3, 1, 64, 64))
    assert embedding.ndim == 2 and len(embedding) == 3


@pytest.mark.parametrize("name", MODELS.names())
def test_wrong_channels_are_named(name):
    with pytest.raises(ShapeError, match=r"2 channels.*in_channels=3"):
        small(name, in_channels=3)(torch.randn(2, 2, 64, 96))


@pytest.mark.parametrize("name", MODELS.names())
def test_layer_groups_hold_every_parameter_once(name):
    model = small(name)
    grouped = [id(p) for group in model.layer_groups() for p in group]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters()) and all(model.layer_groups())


def test_a_single_training_clip_is_refused_with_the_remedy():
    with pytest.raises(ShapeError, match="at least 2 in training"):
        small("m1")(torch.randn(1, 1, 64, 64))


def test_input_without_four_dimensions_is_refused():
    with pytest.raises(ShapeError, match=r"\(1, 64, 64\).*\(batch, channels, mels, frames\)"):
        small("m1")(torch.randn(1, 64, 64))


def test_unknown_names_and_options_suggest_the_nearest():
    with pytest.raises(UnknownName, match="m3"):
        create_model("m33", n_tags=4)
    with pytest.raises(OptionError, match="width"):
        create_model("m3", n_tags=4, widht=0.5)
    with pytest.raises(OptionError, match="n_tags=0"):
        create_model("m3", n_tags=0)


def test_conv_block_shows_its_second_convolution_the_input():
    block = ConvBlock(1, 2, pool=False).eval()
    with torch.no_grad():
        for conv in (block.conv1, block.conv2):
            conv.weight.zero_()
            conv.bias.zero_()
        block.conv2.weight[1, 0, 1, 1] = 3.0        # second output: three times the block's own input
        x = torch.rand(1, 1, 4, 5)
        # A fresh batch norm divides by sqrt(1 + 1e-5).
        torch.testing.assert_close(block(x)[:, 1:], 3 * x, atol=1e-4, rtol=1e-4)


def test_concat_pool_has_both_orders():
    x = torch.tensor([[[[1.0, 3.0]], [[5.0, 9.0]]]])
    assert ConcatPool("avg_max")(x).tolist() == [[2.0, 7.0, 3.0, 9.0]]
    assert ConcatPool("max_avg")(x).tolist() == [[3.0, 9.0, 2.0, 7.0]]
    with pytest.raises(OptionError, match="avg_max"):
        ConcatPool("both")


def test_multi_sample_dropout_is_the_mean_over_masks_and_linear_in_eval():
    layer = MultiSampleDropout(50, 3, samples=2000, p=0.1)
    x = torch.randn(4, 50)
    expected = layer.linear(x)
    torch.testing.assert_close(layer(x), expected, atol=0.05, rtol=0.05)
    assert torch.equal(layer.eval()(x), expected)


def test_widths_are_whole_octets():
    assert [scaled(c, 0.3) for c in (64, 128, 50)] == [16, 40, 16] and scaled(50, 1) == 50
    with pytest.raises(OptionError, match="width=0"):
        scaled(64, 0)
