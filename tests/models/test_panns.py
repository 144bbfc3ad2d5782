"""PANNs: sizes, keys and outputs as published, heads over time, channels, arithmetic."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from fatai.errors import OptionError, ShapeError
from fatai.models import count_parameters, create_model
from fatai.models.layers import AttentionPool, TagAttentionPool
from fatai.models.panns import HEADS
from fatai.models.panns_resnet import ResidualBlock

# Parameters at 80 and at 527 tags of the published networks, their frozen front end not counted.
PUBLISHED = {
    "cnn6": (4_608_144, 4_837_455),
    "cnn10": (4_989_968, 5_219_279),
    "cnn14": (79_837_712, 80_753_615),
    "resnet22": (62_759_184, 63_675_087),
    "resnet38": (72_867_344, 73_783_247),
    "resnet54": (103_402_256, 104_318_159),
    "mobilenetv1": (4_338_128, 4_796_303),
    "mobilenetv2": (3_617_168, 4_075_343),
}
WIDTH = 0.125


def clips(n, *, channels=1, mels=64, frames=64):
    """Return random spectrograms that differ in more than their noise."""
    return torch.randn(n, channels, mels, frames) + 2 * torch.randn(n, channels, mels, 1)


def small(name, **options):
    """Return a network with an eighth of its channels and batch norms as after training; every layer matters."""
    model = create_model(name, n_tags=4, **({"width": WIDTH} | options))
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for m in norms:
            m.weight.uniform_(0.5, 1.5)
            m.bias.normal_(0, 0.1)
            m.momentum = 1.0
        model(clips(8, channels=model.in_channels, mels=model.n_mels))
    for m in norms:
        m.momentum = 0.1
    return model.eval()


def error(found, expected):
    """Return the root mean square difference, divided by the spread of the expected logits among clips."""
    return float(((found - expected).square().mean() / expected.var(dim=0).mean()).sqrt())


class Published:
    """The networks as published, computed from a state with the published keys."""

    def __init__(self, state):
        self.state, self.used = state, {key for key in state if key.endswith("num_batches_tracked")}

    def __getitem__(self, key):
        self.used.add(key)
        return self.state[key]

    def norm(self, x, key):
        return F.batch_norm(x, *(self[f"{key}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))

    def conv(self, x, key, groups=1):
        weight = self[f"{key}.weight"]
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=groups)

    def conv_block(self, x, key, kernel=3, pool=2):
        for k in (1, 2) if kernel == 3 else (1,):
            x = F.relu(self.norm(self.conv(x, f"{key}.conv{k}"), f"{key}.bn{k}"))
        return F.avg_pool2d(x, pool)

    def cnn(self, x, kernel=3, pools=(2, 2, 2, 2)):
        for k, pool in enumerate(pools, 1):
            x = self.conv_block(x, f"conv_block{k}", kernel, pool)
        return x

    def resnet(self, x, depths, n_convs):
        x = self.conv_block(x, "conv_block1")
        for layer, depth in enumerate(depths, 1):
            for block in range(depth):
                key = f"resnet.layer{layer}.{block}"
                halve = layer > 1 and block == 0
                y = F.avg_pool2d(x, 2) if halve else x
                for k in range(1, n_convs + 1):
                    y = self.norm(self.conv(y, f"{key}.conv{k}"), f"{key}.bn{k}")
                    y = F.relu(y) if k < n_convs else y
                if halve:
                    x = self.norm(self.conv(F.avg_pool2d(x, 2), f"{key}.downsample.1"), f"{key}.downsample.2")
                elif f"{key}.downsample.0.weight" in self.state:
                    x = self.norm(self.conv(x, f"{key}.downsample.0"), f"{key}.downsample.1")
                x = F.relu(x + y)
        return self.conv_block(F.avg_pool2d(x, 2), "conv_block_after1", pool=1)

    def mobilenetv1(self, x):
        x = F.relu(self.norm(F.avg_pool2d(self.conv(x, "features.0.0"), 2), "features.0.2"))
        for k, stride in enumerate([1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1], 1):
            x = F.avg_pool2d(self.conv(x, f"features.{k}.0", groups=x.shape[1]), stride)
            x = F.relu(self.norm(x, f"features.{k}.2"))
            x = F.relu(self.norm(self.conv(x, f"features.{k}.4"), f"features.{k}.5"))
        return x

    def mobilenetv2(self, x):
        x = F.relu6(self.norm(F.avg_pool2d(self.conv(x, "features.0.0"), 2), "features.0.2"))
        strides = [1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 2, 1, 1, 1, 1, 1, 1]
        for k, stride in enumerate(strides, 1):
            key, y = f"features.{k}.conv", x
            at = 0 if k == 1 else 3                 # the first block does not widen
            if k > 1:
                y = F.relu6(self.norm(self.conv(y, f"{key}.0"), f"{key}.1"))
            y = F.avg_pool2d(self.conv(y, f"{key}.{at}", groups=y.shape[1]), stride)
            y = F.relu6(self.norm(y, f"{key}.{at + 2}"))
            y = self.norm(self.conv(y, f"{key}.{at + 4}"), f"{key}.{at + 5}")
            x = x + y if k in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16) else y          # all but the first of each group
        return F.relu6(self.norm(self.conv(x, "features.18.0"), "features.18.1"))

    def rows(self, name, spec):
        """Return the maps of the body, averaged over frequency: (batch, features, frames)."""
        x = self.norm(spec.permute(0, 2, 3, 1), "bn0").permute(
            0, 3, 2, 1
        )  # batch norm over mels; then (batch, 1, frames, mels)
        maps = {
            "cnn6": lambda: self.cnn(x, kernel=5),
            "cnn10": lambda: self.cnn(x),
            "cnn14": lambda: self.cnn(x, pools=(2, 2, 2, 2, 2, 1)),
            "resnet22": lambda: self.resnet(x, (2, 2, 2, 2), 2),
            "resnet38": lambda: self.resnet(x, (3, 4, 6, 3), 2),
            "resnet54": lambda: self.resnet(x, (3, 4, 6, 3), 3),
            "mobilenetv1": lambda: self.mobilenetv1(x),
            "mobilenetv2": lambda: self.mobilenetv2(x),
        }[name]()
        return maps.mean(dim=3)

    def logits(self, name, spec):
        x = self.rows(name, spec)
        embedding = F.relu(F.linear(x.max(dim=2).values + x.mean(dim=2), self["fc1.weight"], self["fc1.bias"]))
        return F.linear(embedding, self["fc_audioset.weight"], self["fc_audioset.bias"]), embedding


@pytest.mark.parametrize(("n_tags", "which"), [(80, 0), (527, 1)])
@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_published(name, n_tags, which):
    with torch.device("meta"):
        assert count_parameters(create_model(name, n_tags)) == PUBLISHED[name][which]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_keys_give_the_published_output(name):
    # Narrow groups of a mobilenetv2 would have equally many channels and add inputs that the published ones do not.
    model = small(name, width=1.0 if name == "mobilenetv2" else WIDTH).double()
    spec = clips(3, frames=97).double()
    published = Published(model.state_dict())
    logits, embedding = published.logits(name, spec)
    assert published.used == set(model.state_dict())
    assert logits.std(dim=0).min() > 0.01
    with torch.no_grad():
        torch.testing.assert_close(model(spec), logits, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(model.embed(spec), embedding, atol=1e-9, rtol=1e-9)


def test_tag_attention_gives_the_output_of_the_published_decision_level_network():
    model, spec = small("cnn14", head="tag_attention").double(), clips(3, frames=160).double()
    published = Published(model.state_dict())
    x = published.rows("cnn14", spec)
    x = F.max_pool1d(x, 3, stride=1, padding=1) + F.avg_pool1d(x, 3, stride=1, padding=1)
    x = F.relu(F.linear(x.transpose(1, 2), published["fc1.weight"], published["fc1.bias"])).transpose(1, 2)
    att, cla = (
        F.conv1d(x, published[f"att_block.{k}.weight"], published[f"att_block.{k}.bias"]) for k in ("att", "cla")
    )
    probs = (torch.softmax(torch.clamp(att, -10, 10), dim=2) * torch.sigmoid(cla)).sum(dim=2)
    assert published.used == set(model.state_dict()) and x.shape == (3, 256, 5)
    with torch.no_grad():
        torch.testing.assert_close(model(spec).sigmoid(), probs, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(model.embed(spec), x.mean(dim=2), atol=1e-9, rtol=1e-9)


def test_attention_head_pools_the_frames_and_needs_no_fc1():
    model, spec = small("cnn14", head="attention").double(), clips(3, frames=160).double()
    rows = Published(model.state_dict()).rows("cnn14", spec)
    with torch.no_grad():
        torch.testing.assert_close(model(spec), model.fc_audioset(model.attention_pool(rows)), atol=1e-9, rtol=1e-9)
    assert not any(key.startswith("fc1") for key in model.state_dict())


@pytest.mark.parametrize(("name", "options", "shares"), [
    ("cnn6", {}, [0.2] * 4 + [0.5]),
    ("cnn14", {}, [0.2] * 6 + [0.5]),
    ("resnet22", {}, [0.2] + [0.1] * 8 + [0.2] * 2 + [0.5]),
    ("resnet54", {}, [0.2] + [0.1] * 16 + [0.2] * 2 + [0.5]),
    ("mobilenetv1", {}, [0.5]),
    ("mobilenetv2", {}, []),
    # Not published for these two: the gold plan's dropout before the last linear map; the decision-level networks' two.
    ("cnn6", {"head": "attention"}, [0.2] * 4 + [0.5]),
    ("cnn6", {"head": "tag_attention"}, [0.2] * 4 + [0.5] * 2),
])
def test_dropout_is_where_it_was_published(name, options, shares, monkeypatch):
    model, found = small(name, **options).train(), []

    def dropout(x, p=0.5, training=True):
        found.append(p if training else 0)
        return x

    monkeypatch.setattr(F, "dropout", dropout)
    model(torch.randn(2, 1, 64, 64))
    assert [p for p in found if p] == shares
    found.clear()
    model.eval()(torch.randn(2, 1, 64, 64))
    assert not any(found)


@pytest.mark.parametrize("name", PUBLISHED)
def test_new_networks_start_as_published(name):
    model = create_model(name, n_tags=4, width=WIDTH)
    for key, value in model.state_dict().items():
        if value.ndim > 1:                                              # Xavier, uniform
            fan = (value.shape[0] + value.shape[1]) * value[0, 0].numel()
            bound = (6 / fan) ** 0.5
            assert value.abs().max() <= bound and (value.numel() < 100 or value.abs().max() > 0.9 * bound), key
        elif key.endswith(("bias", "running_mean")):
            assert not value.any(), key
    for block in model.modules():
        if isinstance(block, ResidualBlock):
            assert not block.get_submodule(f"bn{block.n_convs}").weight.any()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["cnn6", "resnet54", "mobilenetv1"])
def test_every_head_learns(name, head):
    model = small(name, head=head).train()
    logits = model(torch.randn(2, 1, 64, 70))
    assert logits.shape == (2, 4)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    body, of_head = model.layer_groups()
    assert len(body) + len(of_head) == len(list(model.parameters())) and of_head
    assert model.eval().embed(torch.randn(3, 1, 64, 70)).ndim == 2


def test_gold_plan_heads_have_as_many_parameters_as_a_hand_count():
    conv_part = PUBLISHED["cnn14"][0] - (2048 * 2048 + 2048) - (2048 * 80 + 80)
    with torch.device("meta"):
        attention, by_tag = (create_model("cnn14", 80, head=head) for head in ("attention", "tag_attention"))
    assert count_parameters(attention) == conv_part + (2048 * 2048 + 2048) + (2048 + 1) + (2048 * 80 + 80)
    assert count_parameters(by_tag) == conv_part + (2048 * 2048 + 2048) + 2 * (2048 * 80 + 80)


def test_attention_pool_is_its_formula_clip_by_clip():
    pool = AttentionPool(3).double()
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    rows = pool(x)
    for clip, row in zip(x, rows, strict=True):
        frames = [clip[:, t] for t in range(5)]
        raw = torch.stack([(pool.attention.weight[0] * f).sum() + pool.attention.bias[0] for f in frames])
        weights = raw.exp() / raw.exp().sum()
        gated = [f / (1 + (-(pool.gate.weight @ f + pool.gate.bias)).exp()) for f in frames]
        expected = sum(w * g for w, g in zip(weights, gated, strict=True))
        torch.testing.assert_close(row, expected, atol=1e-9, rtol=1e-9)


def test_attention_pool_of_one_frame_is_that_frame_gated_or_not():
    x = torch.tensor([[[2.0], [-4.0]]])
    pool, plain = AttentionPool(2), AttentionPool(2, gated=False)
    torch.nn.init.zeros_(pool.gate.weight)
    torch.nn.init.zeros_(pool.gate.bias)
    assert pool(x).tolist() == [[1.0, -2.0]]
    assert plain(x).tolist() == [[2.0, -4.0]]


def test_tag_attention_gives_the_weighted_mean_of_probabilities():
    pool = TagAttentionPool(6, 3)
    torch.nn.init.normal_(pool.att.weight, std=3.0)
    x = 3 * torch.randn(4, 6, 7)
    assert (pool.att(x).abs() > 10).any()                               # so the cut matters
    weights = torch.softmax(torch.clamp(pool.att(x), -10, 10), dim=2)
    probs = (weights * torch.sigmoid(pool.cla(x))).sum(dim=2)
    torch.testing.assert_close(pool(x).sigmoid(), probs, atol=1e-6, rtol=1e-5)


def test_tag_attention_stays_finite_for_extreme_frames():
    pool = TagAttentionPool(2, 3)
    x = torch.tensor([[[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]]], requires_grad=True)
    logits = pool(x)
    logits.sum().backward()
    assert logits.isfinite().all() and x.grad.isfinite().all()


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("in_channels", [2, 4])
def test_several_channels_have_their_own_statistics(name, in_channels):
    model = small(name, in_channels=in_channels)
    assert model.bn0.num_features == 64 * in_channels
    spec = clips(2, channels=in_channels)
    with torch.no_grad():
        first = model(spec)
        model.bn0.running_mean[64:128] += 3.0                          # the second channel's, channels being outermost
        shifted = spec.clone()
        shifted[:, 1] += 3.0
        torch.testing.assert_close(model(shifted), first, atol=1e-4, rtol=1e-4)
        assert error(model(spec), first) > 0.01


def test_short_input_is_continued_by_its_last_frame():
    model = small("cnn14")
    spec = torch.randn(2, 1, 64, 20)
    padded = torch.cat([spec, spec[..., -1:].expand(-1, -1, -1, 12)], dim=3)
    with torch.no_grad():
        assert torch.equal(model(spec), model(padded))


@pytest.mark.parametrize("head", HEADS)
def test_clips_of_a_batch_are_independent(head):
    model = small("cnn10", head=head)
    spec = torch.randn(3, 1, 64, 50)
    other = spec.clone()
    other[1:] = 100 * torch.randn(2, 1, 64, 50)
    with torch.no_grad():
        torch.testing.assert_close(model(spec)[0], model(other)[0], atol=1e-6, rtol=1e-6)


def test_another_number_of_mels_is_refused_with_the_remedy():
    for mels in (40, 128):
        with pytest.raises(ShapeError, match=rf"{mels} mel bins.*n_mels=64.*build it with the n_mels"):
            small("cnn14")(torch.randn(1, 1, mels, 64))
    with torch.no_grad():
        assert small("cnn14", n_mels=128)(torch.randn(1, 1, 128, 64)).shape == (1, 4)
    with pytest.raises(OptionError, match=r"n_mels=16.*at least 32"):
        small("cnn14", n_mels=16)


def test_one_clip_that_shrinks_to_a_number_is_refused_in_training_only():
    model = small("cnn14", n_mels=32)
    spec = torch.randn(1, 1, 32, 40)
    assert model(spec).isfinite().all()
    with pytest.raises(ShapeError, match=r"one clip.*take more clips and a bs above 1"):
        model.train()(spec)
    assert model(torch.randn(1, 1, 32, 64)).isfinite().all()


def test_an_unknown_head_suggests_the_nearest():
    with pytest.raises(OptionError, match="did you mean attention"):
        small("cnn6", head="atention")


@pytest.mark.parametrize("name", ["mobilenetv1", "mobilenetv2"])
def test_mobilenets_keep_the_published_keys_through_copies(name):
    model = small(name)
    keys = list(model.state_dict())
    assert "features.0.0.weight" in keys and not any(key.startswith("body") for key in keys)
    wrapped = torch.nn.Sequential(small(name))
    wrapped.load_state_dict({f"0.{key}": value for key, value in model.state_dict().items()})
    spec = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        expected = model(spec)
        for copied in (wrapped, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(copied(spec), expected)
    assert list(copy.deepcopy(model).state_dict()) == keys


@pytest.mark.parametrize("name", PUBLISHED)
def test_channels_last_gives_the_same_logits(name):
    model, spec = small(name), clips(4, frames=96)
    with torch.no_grad():
        expected = model(spec)
        last = model.to(memory_format=torch.channels_last)(spec.contiguous(memory_format=torch.channels_last))
    assert error(last, expected) < 1e-4


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_bf16_error_is_that_of_rounding_the_weights(name, head):
    model, spec = small(name, head=head), clips(16, frames=96)
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for p in rounded.parameters():
            p.copy_(p.bfloat16())
        expected = model(spec)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(spec)
        unavoidable = error(rounded(spec), expected)
    assert logits.dtype == torch.float32
    # Beside the weights, the outputs of every layer are rounded: about as much again.
    assert error(logits, expected) < 2.5 * unavoidable


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_compiled_heads_give_the_same_logits(head):
    model, spec = small("cnn6", head=head), clips(4, frames=96)
    with torch.no_grad():
        assert error(torch.compile(model)(spec), model(spec)) < 1e-4
