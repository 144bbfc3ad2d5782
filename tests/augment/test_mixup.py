"""Mixers: mixtures worked by hand, labels, weights, and mixing of training batches."""

import math
import warnings

import fastai.callback.all  # noqa: F401 - lr_find and no_bar are patched into the learner
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.learner import Learner
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fatai.augment.functional_mixup import (
    between_class,
    concat_sigmoid,
    content,
    level_db,
    mix_labels,
    mix_linear,
    mix_or,
)
from fatai.augment.mixup import BetweenClass, LinearMixUp, MixUpOr, OneOfMixers, SigmoidConcat
from fatai.augment.mixup_base import Mixer
from fatai.augment.spec_augment import SpecAugment
from fatai.data.blocks import FATDataLoaders
from fatai.data.datasets.fat2019 import load_dataset
from fatai.data.tensors import TensorSpec
from fatai.errors import OptionError, ShapeError
from fatai.registry import LOSSES, MIXERS

SHAPES = {"wave": (8, 400), "power": (8, 6, 20), "log": (8, 2, 6, 20), "bn0": (8, 2, 6, 20)}
ANYWHERE = [n for n in MIXERS.names() if n not in ("mixup_panns",)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch_of(domain, n=8, seed=0):
    """Values of a domain, and random labels."""
    x = torch.randn(n, *SHAPES[domain][1:], generator=generator(seed))
    return x.square() if domain == "power" else x, torch.rand(n, 5, generator=generator(seed + 1)).round()


def built(name, domain="log", **options):
    return MIXERS.build(name, domain=domain, **{"partner": "batch", **options})


# Worked by hand


def test_linear_mixing_by_hand():
    x, targ = torch.tensor([[1.0, 0.0], [0.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    mixed = mix_linear(x, x.flip(0), torch.tensor([0.75, 0.25]))
    assert mixed.tolist() == [[0.75, 1.0], [0.75, 1.0]]
    assert mix_labels(targ, targ.flip(0), torch.tensor([0.75, 0.25])).tolist() == [[0.75, 0.25], [0.75, 0.25]]


def test_or_labels_are_the_sum_up_to_one():
    got = mix_labels(torch.tensor([[1.0, 0.3, 0.0]]), torch.tensor([[1.0, 0.4, 0.0]]), torch.tensor([0.9]), "or")
    torch.testing.assert_close(got, torch.tensor([[1.0, 0.7, 0.0]]))


def test_clips_of_the_same_length_are_averaged():
    x, other = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[3.0, -2.0, 1.0]])
    mixed, lam = mix_or(x, other, torch.tensor([0.6]), torch.tensor([0.3]))
    assert mixed.tolist() == [[2.0, 0.0, 2.0]] and lam.tolist() == [0.5]
    assert torch.equal(mix_or(x, other, torch.tensor([0.6]), torch.tensor([0.3]), overwrite=True)[0], mixed)


# A clip of two samples in a batch of six, in a clip of four: 0.6 of the longer, 0.4 of the shorter, whose position is
# among 0, 1 and 2.
LONG, SHORT = torch.tensor([[0.0, 10.0, 10.0, 10.0, 10.0, 0.0]]), torch.tensor([[0.0, 0.0, 5.0, 5.0, 0.0, 0.0]])


@pytest.mark.parametrize(("position", "mixed"), [
    (0.0, [0, 8, 8, 6, 6, 0]), (0.34, [0, 6, 8, 8, 6, 0]), (0.99, [0, 6, 6, 8, 8, 0]),
])
def test_the_shorter_clip_lies_anywhere_in_the_longer(position, mixed):
    for x, other, expected_lam in ((LONG, SHORT, 0.6), (SHORT, LONG, 0.4)):
        got, lam = mix_or(x, other, torch.tensor([0.6]), torch.tensor([position]))
        torch.testing.assert_close(got, torch.tensor([mixed]).float())
        assert lam.item() == pytest.approx(expected_lam)


def test_overwrite_leaves_out_the_longer_clip():
    got = mix_or(LONG, SHORT, torch.tensor([0.6]), torch.tensor([0.34]), overwrite=True)[0]
    torch.testing.assert_close(got, torch.tensor([[0.0, 6, 2, 2, 6, 0]]))


def test_or_mixing_on_log_spectrograms_finds_the_silence_at_the_clips_floor():
    # Floors of -80 and -60: a silent frame contributes its floor, as the shorter clip's padding did.
    x = torch.tensor([[[[-10.0, -20.0, -30.0, -80.0]]]])
    other = torch.tensor([[[[-60.0, -40.0, -60.0, -60.0]]]])
    got, lam = mix_or(x, other, torch.tensor([0.5]), torch.tensor([0.99]), domain="log")
    assert got.flatten().tolist() == [-35, -40, -35, -70] and lam.item() == 0.5


def test_content_lies_between_the_silence():
    found = content(torch.tensor([[0.0, 1.0, 0.0, 2.0, 0.0], [0.0] * 5, [1.0] * 5]), "wave")
    assert found.start.tolist() == [1, 0, 0] and found.stop.tolist() == [4, 5, 5]


def test_sigmoid_concat_hands_over_in_the_middle():
    got = concat_sigmoid(torch.ones(2, 1, 3, 256), torch.zeros(2, 1, 3, 256), torch.tensor([3, 12]))
    # By hand: sigmoid(-3) at the first frame, sigmoid(0) at the 128th, sigmoid(3 - 6 / 256) at the last.
    for row, r in enumerate((3, 12)):
        for frame, at in ((0, -r), (128, 0.0), (255, r - 2 * r / 256)):
            torch.testing.assert_close(got[row, 0, :, frame], torch.full((3,), 1 / (1 + math.exp(-at))))


def test_between_class_mixes_loudness_by_lam():
    # Ten times the amplitude, so the louder one's weight is 1 / 11 at lam 1/2, and both sound alike.
    x, other = torch.full((1, 4096), 1.0), torch.full((1, 4096), 0.1)
    levels = level_db(x, "wave"), level_db(other, "wave")
    assert (levels[0] - levels[1]).item() == pytest.approx(20)
    norm = math.hypot(1, 10) / 11
    got = between_class(x, other, torch.tensor([0.5]), *levels)
    torch.testing.assert_close(got[0, 0].item(), (1 / 11 + 10 / 11 * 0.1) / norm, rtol=1e-5, atol=0)
    power = between_class(x.view(1, 1, -1), other.view(1, 1, -1), torch.tensor([0.5]), *levels, domain="power")
    torch.testing.assert_close(power[0, 0, 0].item(), (1 / 121 + 100 / 121 * 0.1) / norm ** 2, rtol=1e-5, atol=0)


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_between_class_at_its_ends_is_one_of_the_clips(lam):
    x, other = torch.randn(1, 50), torch.randn(1, 50)
    got = between_class(x, other, torch.tensor([lam]), torch.tensor([3.0]), torch.tensor([-9.0]))
    torch.testing.assert_close(got, x if lam else other)


def test_levels_are_the_loudest_windows():
    wave = torch.zeros(1, 44100)
    wave[0, 20480:24576] = 0.5  # exactly one window of 4096, half a window being 2048
    assert level_db(wave, "wave").item() == pytest.approx(20 * math.log10(0.5))
    assert level_db(torch.zeros(1, 10), "wave").item() == pytest.approx(-100)
    assert level_db(torch.tensor([[[1.0, 0.0], [9.0, 2.0]]]), "power").item() == pytest.approx(10)


# All mixers


@pytest.mark.parametrize("domain", ["wave", "power", "log"])
@pytest.mark.parametrize("name", ANYWHERE)
def test_shape_dtype_labels_and_input(name, domain):
    x, targ = batch_of(domain)
    before = x.clone(), targ.clone()
    done = built(name, domain, p=1.0).augment(x, targ, generator=generator(4))
    assert (
        done.x.shape == x.shape
        and done.x.dtype == x.dtype
        and done.targ.shape == targ.shape
        and done.targ.dtype == targ.dtype
    )
    assert done.x.isfinite().all() and (done.targ >= 0).all() and (done.targ <= 1).all()
    assert torch.equal(x, before[0]) and torch.equal(targ, before[1])
    assert (done.lam >= 0).all() and (done.lam <= 1).all()


@pytest.mark.parametrize("name", ANYWHERE)
def test_mixed_values_stay_between_those_of_the_two_clips(name):
    # Of log spectrograms every mixture is a weighted mean; of waves between-class mixing is not, since it keeps the
    # energy.
    x, targ = batch_of("log")
    done = built(name, p=1.0).augment(x, targ, generator=generator(4))
    assert done.x.amax() <= x.amax() + 1e-5 and done.x.amin() >= x.amin() - 1e-5


@pytest.mark.parametrize("name", MIXERS.names())
def test_a_seed_repeats_and_another_differs(name):
    mixer = MIXERS.build(name, partner="batch")
    x, targ = batch_of(mixer.domain)
    first, again, other = (mixer.augment(x, targ, generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.x, again.x) and torch.equal(first.targ, again.targ)
    assert not torch.equal(first.x, other.x)


@pytest.mark.parametrize("name", MIXERS.names())
def test_the_global_generator_decides_where_none_is_given(name):
    mixer = MIXERS.build(name, partner="batch")
    x, targ = batch_of(mixer.domain)
    torch.manual_seed(5)
    first = mixer.augment(x, targ)
    torch.manual_seed(5)
    assert torch.equal(mixer.augment(x, targ).x, first.x)


@pytest.mark.parametrize("name", MIXERS.names())
def test_a_batch_of_one_is_unchanged(name):
    x, targ = batch_of("log", 1)
    done = MIXERS.build(name, partner="batch").augment(x, targ)
    assert torch.equal(done.x, x) and torch.equal(done.targ, targ) and done.lam.tolist() == [1.0]


@pytest.mark.parametrize("name", ANYWHERE)
def test_clips_that_are_not_drawn_stay_with_their_labels(name):
    x, targ = batch_of("log", 8)
    mixer = built(name, p=0.5)
    for seed in range(5):
        done = mixer.augment(x, targ, generator=generator(seed))
        stays = ~done.pairs.mixed
        assert (
            torch.equal(done.x[stays], x[stays])
            and torch.equal(done.targ[stays], targ[stays])
            and (done.lam[stays] == 1).all()
        )
    assert built(name, p=0.0).augment(x, targ).x is x


@pytest.mark.parametrize(
    "name", ["mixup", "mixup_kaggle_fat", "mixup_first_place", "mixup_fourth_place", "between_class"]
)
@given(seed=st.integers(0, 10000))
@settings(max_examples=20, deadline=None)
def test_linear_labels_are_weighted_by_lam(name, seed):
    x, targ = batch_of("log")
    done = built(name, p=1.0).augment(x, targ, generator=generator(seed))
    lam = done.lam[:, None].float()
    torch.testing.assert_close(done.targ, lam * targ[done.pairs.rows] + (1 - lam) * targ[done.pairs.partners])


@pytest.mark.parametrize("name", ["mixup_or", "mixup_or_third_place", "sigmoid_concat"])
@given(seed=st.integers(0, 10000))
@settings(max_examples=20, deadline=None)
def test_or_labels_are_those_of_either(name, seed):
    x, targ = batch_of("log")
    done = built(name, p=1.0).augment(x, targ, generator=generator(seed))
    assert torch.equal(done.targ, torch.maximum(targ, targ[done.pairs.partners]))


@given(seed=st.integers(0, 10000))
@settings(max_examples=20, deadline=None)
def test_between_class_keeps_the_energy_of_unlike_waves(seed):
    x = torch.randn(2, 40000, generator=generator(seed))
    done = BetweenClass().augment(x, torch.eye(2), generator=generator(seed))
    torch.testing.assert_close(done.x.square().mean(1), torch.ones(2), atol=0.05, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ANYWHERE)
def test_other_precisions_pass(name, dtype):
    x, targ = batch_of("log")
    done = built(name, p=1.0).augment(x.to(dtype), targ)
    assert done.x.dtype == dtype and done.x.isfinite().all()


# Draws


def draw_lam(mixer, n=20000):
    return mixer.draw(n, generator()).lam


def test_beta_has_its_moments():
    drawn = draw_lam(LinearMixUp(per="clip", lam=0.4))
    # Beta(a, a): mean 1/2, variance 1 / (4 (2a + 1)).
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(drawn.var()) == pytest.approx(1 / (4 * 1.8), abs=0.003)


def test_larger_gives_lam_of_at_least_one_half():
    assert float(draw_lam(LinearMixUp(per="clip", larger=True)).min()) >= 0.5


def test_per_batch_draws_one_lam_and_one_decision():
    assert len(draw_lam(LinearMixUp()).unique()) == 1
    for seed in range(6):
        mixed = LinearMixUp(p=0.5).draw_pairs(50, generator(seed))
        moved = mixed.rows != mixed.partners
        assert torch.equal(mixed.mixed, moved) or not mixed.mixed.any()


def test_uniform_lam():
    drawn = draw_lam(MIXERS.build("mixup_first_place"))
    assert 0.5 <= float(drawn.min()) < 0.51 and 0.99 < float(drawn.max()) <= 1
    drawn = draw_lam(MixUpOr())
    assert 0.4 <= float(drawn.min()) < 0.401 and 0.599 < float(drawn.max()) <= 0.6


def test_steepness_is_a_whole_number_from_3_to_12():
    assert set(SigmoidConcat().draw(2000, generator()).steepness.tolist()) == set(range(3, 13))


def test_pairs_of_neighbors_halve_the_batch():
    x, targ = batch_of("log", 5)
    done = LinearMixUp(per="pair", lam=1.0).augment(x, targ)
    assert done.x.shape[0] == done.targ.shape[0] == 3
    lam = done.lam[:, None, None, None].float()
    torch.testing.assert_close(done.x[:2], lam[:2] * x[[0, 2]] + (1 - lam[:2]) * x[[1, 3]])
    assert torch.equal(done.x[2], x[4]) and torch.equal(done.targ[2], targ[4])


def test_the_first_place_mixer_concatenates_three_of_five():
    drawn = MIXERS.build("mixer_first_place").draw(20000, generator())
    assert float((drawn.choice == 0).double().mean()) == pytest.approx(0.6, abs=0.02)


def test_one_of_several_is_each_where_it_was_drawn():
    x, targ = batch_of("log", 40)
    mixer = OneOfMixers(["sigmoid_concat", "mixup_first_place"], p=1.0)
    done = mixer.augment(x, targ, generator=generator(3))
    g = generator(3)
    pairs = mixer.draw_pairs(40, g)
    drawn = mixer.draw(40, g)
    rows = (drawn.choice == 0) & pairs.mixed
    expected = concat_sigmoid(x, x[pairs.partners], drawn.drawn[0].steepness)
    assert rows.sum() > 5 and torch.equal(done.x[rows], expected[rows])
    assert torch.equal(done.targ[rows], torch.maximum(targ, targ[pairs.partners])[rows])
    rows = (drawn.choice == 1) & pairs.mixed
    assert torch.equal(done.x[rows], mix_linear(x, x[pairs.partners], drawn.drawn[1].lam)[rows])


# Errors


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LinearMixUp(lam=0), r"lam is 0; expected a > 0 for Beta\(a, a\)"),
        (
            lambda: LinearMixUp(lam=(0.5, 1.5)),
            r"lam is \(0.5, 1.5\); expected two numbers in rising order within \[0, 1\]",
        ),
        (lambda: LinearMixUp(per="clips"), "per is 'clips'; did you mean clip?"),
        (lambda: LinearMixUp(per="pair", p=0.5), "expected p=1 and partner='batch', not p=0.5"),
        (lambda: LinearMixUp(labels="and"), "labels is 'and'"),
        (lambda: LinearMixUp(partner="datasets"), "partner is 'datasets'; did you mean dataset?"),
        (lambda: LinearMixUp(partner="dataset", domain="bn0"), "partner='dataset' needs clips from outside"),
        (lambda: LinearMixUp(domain="waves"), "domain is 'waves'; did you mean wave?"),
        (lambda: SigmoidConcat(steepness=(12, 3)), r"steepness is \(12, 3\)"),
        (lambda: OneOfMixers([]), r"weights is \[\] for 0 mixers"),
        (
            lambda: OneOfMixers([MixUpOr(domain="wave")]),
            "MixUpOr acts on the wave; expected mixers of one domain, here 'log'",
        ),
        (lambda: MIXERS.build("mixup_or", overwrites=True), "has no option 'overwrites'; did you mean overwrite?"),
    ],
)
def test_wrong_options_raise(build, message):
    with pytest.raises(OptionError, match=message):
        build()


@pytest.mark.parametrize("targ", [torch.zeros(8).long(), torch.zeros(8, 3).long(), torch.zeros(7, 3)])
def test_labels_that_cannot_be_mixed_raise(targ):
    with pytest.raises(ShapeError, match=r"mixing needs multi-hot floats of shape \(8, tags\)"):
        LinearMixUp().augment(torch.zeros(8, 1, 2, 2), targ)


# In training


class Log(Callback):
    """Records inputs and labels after augmentation, in training and in validation."""

    order = 8

    def __init__(self):
        self.train, self.valid = [], []

    def before_batch(self):
        wave = getattr(self.xb[0], "wave", None)
        values = self.xb[0].as_subclass(Tensor).clone(), self.yb[0].as_subclass(Tensor).clone()
        (self.train if self.training else self.valid).append(
            (*values, None if wave is None else wave.as_subclass(Tensor))
        )


class Stem(nn.Module):
    """Pools the picture and maps it to tags."""

    def __init__(self, channels, tags=10):
        super().__init__()
        self.bn0 = nn.BatchNorm2d(64)
        self.out = nn.Linear(64 * channels, tags)

    def forward(self, x):
        x = self.bn0(x.transpose(1, 2)).transpose(1, 2)
        return self.out(x.mean(-1).flatten(1))


def loaders(sample, clips, bs, **options):
    data = load_dataset(sample)
    return FATDataLoaders.from_df(
        data.curated.head(clips),
        path_col="path",
        label_col="labels",
        vocab=data.tags,
        valid_pct=0.25,
        seed=0,
        crop_s=0.3,
        bs=bs,
        num_workers=0,
        **{"channels": "mono", **options},
    )


@pytest.fixture(scope="module")
def dls(sample):
    """Two training batches of twelve clips, and eight held out."""
    return loaders(sample, 32, 12)


@pytest.fixture(scope="module")
def plain_log(dls):
    """What `fit` records of the loaders without a mixer."""
    return fit(dls)[1]


def fit(dls, *cbs, loss="bce"):
    torch.manual_seed(0)
    dls.train.rng.seed(0)  # decides the order of the clips
    log = Log()
    learn = Learner(dls, Stem(dls.to_spec.n_channels), loss_func=LOSSES.build(loss), cbs=[*cbs, log])
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learn.fit(1, 1e-3)
    return learn, log


@pytest.mark.parametrize("name", MIXERS.names())
def test_every_mixer_trains_and_validation_stays_plain(dls, plain_log, name):
    learn, log = fit(dls, MIXERS.build(name))
    assert all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(log.valid, plain_log.valid, strict=True)
    )
    if name != "mixup_panns":  # inside the model
        assert any(not torch.equal(a[1], b[1]) for a, b in zip(log.train, plain_log.train, strict=True))
    assert np.isfinite(learn.recorder.values[-1]).all()


@pytest.mark.parametrize("loss", LOSSES.names())
def test_every_loss_takes_mixed_labels(dls, loss):
    learn, _ = fit(dls, LinearMixUp(), loss=loss)
    assert np.isfinite(learn.recorder.values[-1]).all()


def test_waves_are_mixed_before_their_spectrogram(dls):
    mixer = BetweenClass(p=1.0)
    _, log = fit(dls, mixer)
    spec, _, wave = log.train[0]
    torch.testing.assert_close(spec, dls.to_spec.spec(wave))


def test_power_mixing_lies_between_wave_and_log(dls, plain_log):
    class Quarter(LinearMixUp):
        def draw(self, n, generator=None):
            drawn = super().draw(n, generator)
            return drawn._replace(lam=torch.full_like(drawn.lam, 0.25))

        def draw_pairs(self, n, generator=None):
            pairs = super().draw_pairs(n, generator)
            return pairs._replace(partners=pairs.rows.flip(0), mixed=torch.ones(n, dtype=torch.bool))

    _, log = fit(dls, Quarter(domain="power"))
    # The same clips in the same order: the draws of mixing come after those of the batch.
    module = dls.to_spec.module[0]
    linear = module.settings.replace(log="none", normalize="none").build()(plain_log.train[0][2])
    decibels = 10 * torch.lerp(linear.flip(0), linear, 0.25).clamp(min=1e-10).log10()
    decibels = decibels.maximum(decibels.amax((1, 2), keepdim=True) - 80)
    torch.testing.assert_close(log.train[0][0][:, 0], (decibels + 35.7) / 21.6, atol=1e-4, rtol=1e-4)
    assert log.train[0][2] is None


def test_masks_after_mixing_and_mixing_after_masks(dls):
    before, after = SpecAugment(freq=None, time=0.9), SpecAugment(freq=None, time=0.9, before_mixing=False)
    mixer = LinearMixUp()
    assert before.order < mixer.order < after.order
    _, log = fit(dls, mixer, after)
    masked = (log.train[0][0] == 0).all(2).flatten(1).any(1)
    assert masked.float().mean() > 0.7


def test_partners_come_from_the_whole_training_set(dls):
    seen = []

    class Spy(LinearMixUp):
        def mix(self, x, other, drawn, levels):
            seen.append(other.clone())
            return super().mix(x, other, drawn, levels)

    fit(dls, Spy(partner="dataset", per="clip"))
    learn, log = fit(dls)
    clips = torch.cat([x for x, _, _ in log.train])
    partners = torch.cat(seen)
    assert partners.shape == clips.shape
    # Of 24 clips drawn with replacement some come twice, and none is the crop of the clip itself.
    assert not any(torch.equal(a, b) for a, b in zip(partners, clips, strict=True))


def test_partners_from_the_set_repeat_with_the_seed(dls):
    _, first = fit(dls, MixUpOr(partner="dataset", p=1.0))
    _, again = fit(dls, MixUpOr(partner="dataset", p=1.0))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first.train, again.train, strict=True))


class GiveWeights(Callback):
    """Gives the loss sample weights and noisy flags, as SampleWeights does."""

    order = -8

    def before_batch(self):
        if self.training:
            n = len(self.yb[0])
            self.loss_func.sample_weight = torch.arange(1.0, n + 1)
            self.loss_func.noisy = torch.arange(n) % 2 == 0

    def after_batch(self):
        self.loss_func.set_batch()


class ReadWeights(Callback):
    order = 8

    def before_batch(self):
        if self.training:
            self.w, self.noisy = self.loss_func.sample_weight, self.loss_func.noisy


class Reversed(LinearMixUp):
    """Mixes each clip with the one at the mirrored position, with lam 1/4."""

    def draw_pairs(self, n, generator=None):
        return (
            super()
            .draw_pairs(n, generator)
            ._replace(partners=torch.arange(n).flip(0), mixed=torch.ones(n, dtype=torch.bool))
        )

    def draw(self, n, generator=None):
        drawn = super().draw(n, generator)
        return drawn._replace(lam=torch.full_like(drawn.lam, 0.25))


def test_sample_weights_and_noisy_flags_are_mixed_by_lam(dls):
    peek = ReadWeights()
    fit(dls, GiveWeights(), Reversed(), peek, loss="split")
    w = torch.arange(1.0, 13)
    torch.testing.assert_close(peek.w, 0.25 * w + 0.75 * w.flip(0))
    torch.testing.assert_close(peek.noisy, torch.tensor([0.25, 0.75] * 6))


def test_halving_a_batch_halves_its_weights(dls):
    peek = ReadWeights()
    fit(dls, GiveWeights(), LinearMixUp(per="pair", lam=(0.5, 0.5)), peek, loss="split")
    torch.testing.assert_close(peek.w, torch.arange(1.5, 12, 2))


def test_other_numbers_of_a_clip_are_mixed_too(dls):
    class More(Callback):
        order = -8

        def before_batch(self):
            if self.training:
                self.learn.yb = (*self.yb, torch.arange(12.0))

    class Less(Callback):
        order = 8

        def before_batch(self):
            if self.training:
                self.more = self.yb[1]
                self.learn.yb = self.yb[:1]

    less = Less()
    fit(dls, More(), Reversed(), less)
    torch.testing.assert_close(less.more, 0.25 * torch.arange(12.0) + 0.75 * torch.arange(12.0).flip(0))


def test_a_batch_of_one_trains(sample):
    one = loaders(sample, 4, 1)
    for name in MIXERS.names():
        torch.manual_seed(0)
        model = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, 10))
        model.bn0 = nn.Identity()
        learn = Learner(one, model, loss_func=LOSSES.build("bce"), cbs=MIXERS.build(name))
        with learn.no_bar(), learn.no_logging():
            learn.fit(1) if name != "mixup_panns" else None
        assert name == "mixup_panns" or np.isfinite(learn.recorder.values[-1][0])


def test_lr_find_and_bfloat16_pass(dls):
    class Bf16(Callback):
        order = 10

        def before_batch(self):
            self.cast = torch.autocast("cpu", dtype=torch.bfloat16)
            self.cast.__enter__()

        def after_loss(self):
            self.cast.__exit__(None, None, None)

    learn, _ = fit(dls, MixUpOr(p=1.0), LinearMixUp(domain="bn0"), SpecAugment(domain="bn0"), Bf16())
    with learn.no_bar():
        found = learn.lr_find(num_it=25, show_plot=False)
    assert found.valley > 0


def test_mixing_behind_bn0_acts_on_the_output_of_the_norm(dls):
    seen = []

    class Spy(LinearMixUp):
        def mix(self, x, other, drawn, levels):
            seen.append((x.detach(), x.requires_grad))
            return super().mix(x, other, drawn, levels)

    learn, log = fit(dls, Spy(domain="bn0", per="pair", lam=1.0))
    assert seen[0][0].shape == (6, 1, *log.train[0][0].shape[2:]) and seen[0][1]
    # Half of the clips, of a batch that the norm standardised in each row.
    assert abs(float(seen[0][0].mean())) < 0.5
    assert not any(module._forward_hooks for module in learn.model.modules())


def test_missing_waves_and_bn0_raise(dls):
    class Drop(Callback):
        order = -9

        def before_batch(self):
            self.learn.xb = (TensorSpec(torch.zeros(len(self.xb[0]), 1, 64, 20)),)

    with pytest.raises(
        OptionError, match="don't carry their waves: read waves instead of stored features, or take domain='log'"
    ):
        fit(dls, Drop(), MixUpOr())
    learn = Learner(dls, nn.Linear(1, 1), loss_func=LOSSES.build("bce"), cbs=LinearMixUp(domain="bn0"))
    with learn.no_bar(), pytest.raises(OptionError, match="acts behind bn0, which Linear doesn't have"):
        learn.fit(1)


def test_derived_channels_are_derived_from_the_mixture(sample):
    _, log = fit(loaders(sample, 16, 12, channels="coord"), MixUpOr(domain="log", p=1.0))
    torch.testing.assert_close(log.train[0][0][0, 1, :, 0], torch.linspace(-1, 1, 64))


def test_mixers_do_not_shadow_fastai():
    from fastai.callback.mixup import MixUp

    assert "MixUp" not in __import__("fatai.augment.mixup", fromlist=["__all__"]).__all__ and not issubclass(
        LinearMixUp, MixUp
    )
    assert all(issubclass(type(MIXERS.build(name)), Mixer) for name in MIXERS.names())
