"""The 1st place's skip attention networks."""

import pytest
import torch
from torch import nn

from fatai.errors import OptionError
from fatai.models import create_model

AUX = ["aux_skip_attention", "rnn_aux_skip_attention"]


def narrow(name, **options):
    return create_model(name, 5, 3, **({"width": 0.125} | options))


@pytest.mark.parametrize("name", AUX)
def test_training_gives_the_main_output_and_one_for_each_skip_evaluation_the_main_one(name):
    model, spec = narrow(name, dropout=0.0), torch.randn(3, 3, 32, 48)
    outputs = model(spec)
    assert isinstance(outputs, tuple) and [o.shape for o in outputs] == [(3, 5)] * 4
    assert len({o.sum().item() for o in outputs}) == 4
    assert isinstance(model.eval()(spec), torch.Tensor)
    assert model.aux_weights == (1.0, 0.4, 0.2, 0.1)


@pytest.mark.parametrize(("output", "skips"), [(1, [2]), (2, [1]), (3, [0])])
def test_auxiliary_outputs_come_last_skip_first(output, skips):
    model = narrow("aux_skip_attention", dropout=0.0)
    model(torch.randn(3, 3, 32, 48))[output].sum().backward()
    assert [k for k, head in enumerate(model.aux_heads) if head[1].weight.grad is not None] == skips
    assert [k for k, skip in enumerate(model.skips) if skip[1].weight.grad is not None] == skips
    assert all(p.grad is None for p in model.head.parameters())


def test_main_output_does_not_depend_on_the_auxiliary_heads():
    model, spec = narrow("aux_skip_attention").eval(), torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        before = model(spec)
        for p in model.aux_heads.parameters():
            p.zero_()
        assert torch.equal(model(spec), before)
    assert torch.equal(model.classify(model.embed(spec)), before)


def test_skip_attention_has_one_output_in_training():
    model = narrow("skip_attention")
    assert model(torch.randn(2, 3, 32, 48)).shape == (2, 5)
    assert model.aux_weights is None and not len(model.aux_heads)


def test_skips_and_last_stage_meet_at_a_sixteenth_for_every_length():
    model = narrow("aux_skip_attention").eval()
    with torch.no_grad():
        for frames in (16, 31, 47, 256, 257):
            x, sizes = torch.randn(1, 3, 128, frames), set()
            for k, stage in enumerate(model.stages):
                x = stage(x)
                if k < 3:
                    sizes.add(model.skips[k](x).shape[2:])
            assert sizes == {x.shape[2:]} == {(8, frames // 16)}


def test_channels_and_start_values_are_as_published():
    model = create_model("aux_skip_attention", 80, 3)
    assert [(s[0].in_channels, s[3].out_channels) for s in model.stages] == [(3, 64), (64, 128), (128, 256), (256, 512)]
    assert [(s[0].kernel_size, s[1].out_channels) for s in model.skips] == [(8, 512), (4, 512), (2, 512)]
    assert not any(m.bias is not None for m in model.modules() if isinstance(m, nn.Conv2d))
    stage_conv, skip_conv = model.stages[3][3], model.skips[2][1]
    fan_in = 512 * 9
    assert stage_conv.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.01)
    # The library's default, uniform within 1 / sqrt(fan_in).
    assert skip_conv.weight.abs().max().item() == pytest.approx((256 * 9) ** -0.5, rel=0.001)
    assert [getattr(m, "p", None) for m in model.head] == [0.4, None, None, None, 0.2, None]
    assert (model.head[1].out_features, model.head[2].num_parameters) == (256, 1)


def test_recurrent_features_average_the_states_of_both_directions():
    model = narrow("rnn_aux_skip_attention").eval()
    spec = torch.randn(2, 3, 32, 80)
    seen = {}
    model.merge.register_forward_hook(lambda module, args, out: seen.update(merged=out))
    with torch.no_grad():
        features = model.embed(spec)
        frames = seen["merged"].mean(2).permute(2, 0, 1)                   # (frames, batch, channels)
        states = []
        for direction, order in (("", range(5)), ("_reverse", range(4, -1, -1))):
            weights = [
                getattr(model.lstm, f"{kind}_l0{direction}")
                for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            ]
            h = c = torch.zeros(2, 64)
            by_frame = {}
            for t in order:
                into, forget, cell, out = (frames[t] @ weights[0].T + weights[2] + h @ weights[1].T + weights[3]).chunk(
                    4, 1
                )
                c = forget.sigmoid() * c + into.sigmoid() * cell.tanh()
                h = out.sigmoid() * c.tanh()
                by_frame[t] = h
            states.append(torch.stack([by_frame[t] for t in range(5)]))
        expected = model.embedding(torch.cat(states, 2)).mean(0)
    torch.testing.assert_close(features, expected)


@pytest.mark.parametrize("name", AUX)
def test_outputs_are_float32_within_autocast_in_training_too(name):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = narrow(name)(torch.randn(2, 3, 32, 48))
    assert [o.dtype for o in outputs] == [torch.float32] * 4


def test_auxiliary_weights_are_one_for_each_output():
    assert narrow("aux_skip_attention", aux_weights=(1, 0.5, 0.5, 0.5)).aux_weights == (1.0, 0.5, 0.5, 0.5)
    with pytest.raises(OptionError, match=r"aux_weights=\(1, 0.5\).*4 numbers"):
        narrow("aux_skip_attention", aux_weights=(1, 0.5))
    with pytest.raises(OptionError, match="kernel_size=4"):
        narrow("skip_attention", kernel_size=4)


def test_learner_trains_it_on_all_outputs_and_predicts_with_the_main_one(small_dls):
    from fatai.inference.learner import fat_learner

    learn = fat_learner(small_dls, arch="aux_skip_attention", width=0.125)
    assert learn.loss_func.weights == (1.0, 0.4, 0.2, 0.1)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
        probs, targs = learn.get_preds()
    assert probs.shape == targs.shape and probs.isfinite().all() and 0 < probs.min() and probs.max() < 1
