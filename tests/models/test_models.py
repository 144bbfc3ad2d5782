"""Every model of the registry: sizes, shapes, gradients, arithmetic."""

import copy
import functools

import pytest
import torch

from fatai.errors import OptionError, ShapeError, UnknownNameError
from fatai.models import MODELS, count_parameters, create_model
from fatai.models.convblock import ConvBlock
from fatai.models.layers import ConcatPool, MultiSampleDropout, match_layout, scale_channels

# Parameters at 80 tags and so many input channels, of the systems as published (their fact sheets), not of this code.
PUBLISHED = [
    ("m1", 1, {}, 6_380_753),
    ("m2", 1, {}, 6_720_593),
    ("m3", 1, {}, 26_129_489),
    ("m4", 1, {}, 25_667_153),
    ("resnet18", 3, {}, 11_744_832),
    ("resnet18_cbam", 1, {}, 11_326_088),
    ("resnet18_cbam", 1, {"attention": False}, 11_236_208),
    ("mobilenetv3_large", 1, {}, 4_390_022),
    ("mobilenetv3_small", 1, {}, 1_934_422),
    ("cnn2d_multilevel", 2, {"base_depth": 50}, 2_337_426),
    ("cnn2d_multilevel", 2, {}, 9_248_771),
    ("cnn2d_multilevel", 2, {"n_blocks": 6}, 21_545_583),
    ("cnn2d_multilevel", 2, {"n_blocks": 6, "aggregation": "gru"}, 21_237_002),
    ("cnn1d_multilevel", 1, {"base_depth": 50}, 1_237_746),
    ("cnn1d_multilevel", 1, {}, 4_798_661),
    ("cnn1d_multilevel", 1, {"n_blocks": 6}, 11_334_663),
    ("cnn1d_multilevel", 1, {"n_blocks": 6, "aggregation": "gru"}, 11_026_082),
    ("skip_attention", 3, {}, 16_793_587),
    ("skip_attention", 3, {"kernel_size": 3}, 16_793_507),
    ("aux_skip_attention", 3, {}, 17_326_950),
    ("rnn_aux_skip_attention", 3, {}, 22_054_246),
    ("cnn6", 1, {}, 4_608_144),
    ("cnn10", 1, {}, 4_989_968),
    ("cnn14", 1, {}, 79_837_712),
    ("resnet22", 1, {}, 62_759_184),
    ("resnet38", 1, {}, 72_867_344),
    ("resnet54", 1, {}, 103_402_256),
    ("mobilenetv1", 1, {}, 4_338_128),
    ("mobilenetv2", 1, {}, 3_617_168),
]
# Networks that differ from a tested one by their width alone.
WIDER = {"mn05", "mn10", "mn20", "mn30", "mn40"}
# Deep relatives of tested models, left to the longer run.
DEEP = {
    "resnet101",
    "resnet152",
    "xresnet101",
    "xresnet152",
    "xresnet34_deep",
    "xresnet34_deeper",
    "xresnet50_deep",
    "xresnet50_deeper",
}
NAMES = [name for name in MODELS.names() if name not in WIDER]
# One of each family, for which code is generated; of the others, which have the same layers, the graph alone is traced.
GENERATED = {
    "m3", "resnet18", "resnet18_cbam", "xresnet18", "mobilenetv3_small", "cnn2d_multilevel", "cnn1d_multilevel",
    "rnn_aux_skip_attention", "cnn6", "resnet22", "mobilenetv1", "mobilenetv2", "mn04",
}
EVERY = [pytest.param(name, marks=pytest.mark.slow) if name in DEEP else name for name in NAMES]
EVERY_NAME = pytest.mark.parametrize("name", EVERY)


def small(name, **options):
    """Return the model with few channels, where it can be scaled."""
    return create_model(name, n_tags=4, **({"width": 0.125} | options))


def sounds(n_clips=8, mels=64, frames=96):
    """Return spectrograms that differ from clip to clip: sums of three waves over mels and frames."""
    rates = torch.rand(n_clips, 3, 2)[..., None, None] / 2
    mel, frame = torch.arange(mels)[:, None], torch.arange(frames)
    waves = torch.sin(rates[:, :, 0] * mel + rates[:, :, 1] * frame)
    return (waves * (0.3 + torch.rand(n_clips, 3, 1, 1))).sum(dim=1, keepdim=True)


@functools.cache
def prepared_model(name):
    """Return a model in evaluation with trained batch norms, spectrograms, logits, and the error of bfloat16 rounding.

    The error of rounding weights and input is the scale for other arithmetic, since it grows with the sensitivity of
    the model.
    """
    model, spec = small(name), sounds()
    for m in model.modules():
        if isinstance(m, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            m.momentum = None
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        model(spec)
        logits = model.eval()(spec)
        rounded.load_state_dict(model.state_dict())
        for p in rounded.parameters():
            p.copy_(p.bfloat16())
        rounding_error = rms(rounded.eval()(spec.bfloat16().float()) - logits)
    assert rounding_error > 0
    return model, spec, logits, rounding_error


def rms(x):
    return x.square().mean().sqrt()


@pytest.mark.parametrize(("name", "in_channels", "options", "parameters"), PUBLISHED)
def test_parameters_are_those_published(name, in_channels, options, parameters):
    with torch.device("meta"):
        assert count_parameters(create_model(name, 80, in_channels, **options)) == parameters


def test_m3_has_its_parameters_where_they_belong():
    with torch.device("meta"):
        model = create_model("m3", n_tags=80)
    assert (count_parameters(model.blocks), count_parameters(model.head)) == (25_117_440, 1_012_049)


def test_m0_has_as_many_parameters_as_a_hand_count():
    convs = sum(9 * i * o + o + 9 * o * o + o + 4 * o for i, o in [(1, 64), (64, 128), (128, 256), (256, 512)])
    head = 2 * 512 + (512 * 128 + 128) + 1 + 2 * 128 + (128 * 80 + 80)
    with torch.device("meta"):
        assert count_parameters(create_model("m0", n_tags=80)) == convs + head


@EVERY_NAME
def test_model_maps_spectrograms_to_logits_and_learns(name):
    model = small(name)
    spec = torch.randn(2, 1, 64, 96)
    outputs = model(spec)
    # A model with auxiliary heads returns the logits of all in training.
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert all(logits.shape == (2, 4) and logits.isfinite().all() for logits in outputs)
    sum(logits.square().mean() for logits in outputs).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@EVERY_NAME
def test_model_is_deterministic_in_eval(name):
    model = small(name).eval()
    spec = torch.randn(2, 1, 64, 96)
    with torch.no_grad():
        first, again, one = model(spec), model(spec), model(spec[:1])
    assert torch.equal(first, again)
    torch.testing.assert_close(first[:1], one, atol=1e-4, rtol=1e-4)


@EVERY_NAME
def test_model_accepts_any_number_of_frames_and_few_mels_unless_it_requires_a_number(name):
    model = small(name).eval()
    with torch.no_grad():
        for size in [(64, 1), (64, 33), (64, 257), (model.n_mels or 1, 1)]:
            assert model(torch.randn(1, 1, *size)).shape == (1, 4)


@EVERY_NAME
def test_smallest_input_trains_or_a_single_clip_is_refused_with_the_remedy(name):
    model = small(name)
    model(torch.randn(2, 1, model.min_mels, model.min_frames))
    try:
        model(torch.randn(1, 1, model.min_mels, model.min_frames))
    except ShapeError as e:
        assert "at least 2 in training" in str(e)


@EVERY_NAME
def test_channels_last_gives_the_same_logits(name):
    """Within a hundredth of the error of rounding weights and input to bfloat16."""
    model, spec, logits, rounding_error = prepared_model(name)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    with torch.no_grad():
        again = last(spec.contiguous(memory_format=torch.channels_last))
    assert (again - logits).abs().max() < 0.01 * rounding_error


@EVERY_NAME
def test_bfloat16_autocast_gives_the_same_logits_in_float32(name):
    """Within four times the error of rounding weights and input: the output of every layer is rounded too."""
    model, spec, logits, rounding_error = prepared_model(name)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(spec)
    assert half.dtype == torch.float32 and 0 < rms(half - logits) < 4 * rounding_error


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in DEEP])
def test_compiled_model_gives_the_same_logits(name):
    """Within a hundredth of the error of bfloat16 rounding; in one graph, except the network with an LSTM."""
    model, spec, logits, rounding_error = prepared_model(name)
    torch.compiler.reset()      # after a few models the compiler would skip the others
    backend = "inductor" if name in GENERATED else "aot_eager"
    compiled = torch.compile(copy.deepcopy(model), fullgraph=not name.startswith("rnn"), backend=backend)
    with torch.no_grad():
        assert (compiled(spec) - logits).abs().max() < 0.01 * rounding_error


@EVERY_NAME
def test_embedding_is_one_row_per_clip(name):
    model = small(name).eval()
    with torch.no_grad():
        embedding = model.embed(torch.randn(3, 1, 64, 64))
    assert embedding.ndim == 2 and len(embedding) == 3


@EVERY_NAME
def test_wrong_channels_are_named(name):
    with pytest.raises(ShapeError, match=r"2 channels.*in_channels=3"):
        small(name, in_channels=3)(torch.randn(2, 2, 64, 96))


@EVERY_NAME
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
    with pytest.raises(UnknownNameError, match="m3"):
        create_model("m33", n_tags=4)
    with pytest.raises(OptionError, match="width"):
        create_model("m3", n_tags=4, widht=0.5)
    with pytest.raises(OptionError, match="n_tags=0"):
        create_model("m3", n_tags=0)


def test_second_convolution_of_a_block_gets_the_input():
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


def test_widths_are_multiples_of_eight():
    assert [scale_channels(c, 0.3) for c in (64, 128, 50)] == [16, 40, 16] and scale_channels(50, 1) == 50
    with pytest.raises(OptionError, match="width=0"):
        scale_channels(64, 0)


@pytest.mark.parametrize("channels", [1, 3])
def test_maps_concatenated_with_low_precision_ones_take_their_layout(channels):
    spec = torch.randn(2, channels, 4, 6)
    other = torch.randn(2, 5, 4, 6).bfloat16().to(memory_format=torch.channels_last)
    laid = match_layout(spec, other)
    joined = torch.cat([laid, other], 1)
    assert torch.equal(laid, spec.bfloat16()) and joined.is_contiguous(memory_format=torch.channels_last)
    assert match_layout(spec, torch.randn(2, 5, 4, 6)) is spec
