"""Base classes: draws, augmentation of batches and items in training, the switch; and show_augs."""

import copy
import pickle
import random
import warnings

import fastai.callback.all  # noqa: F401 - no_bar is patched into the learner
import matplotlib.pyplot as plt
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.learner import Learner
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fatai.augment.base import (
    AugmentBatch,
    BatchAugmentation,
    SpecAugmentation,
    augmentation_callbacks,
    set_augmentation,
)
from fatai.augment.batch_input import BatchInput
from fatai.augment.draws import draw_bernoulli, draw_integers, draw_uniform
from fatai.augment.item import ItemAugmentations
from fatai.augment.mixup import LinearMixUp, MixUpOr
from fatai.augment.show import augmented, show_augs
from fatai.augment.spec import TimeReverse
from fatai.augment.spec_augment import SpecAugment
from fatai.augment.wave import ChunkShuffle, Gain, SpeedPerturb
from fatai.data.blocks import FATDataLoaders
from fatai.data.datasets.fat2019 import load_dataset
from fatai.data.tensors import TensorWave
from fatai.errors import DataError, OptionError
from fatai.inference.learner import fat_learner
from fatai.registry import AUGMENTATIONS, FRONT_ENDS, LOSSES, MIXERS


def loaders(sample, **options):
    data = load_dataset(sample)
    options = {"crop_s": 0.3, "num_workers": 0, "bs": 12, **options}
    options = {"path_col": "path", "label_col": "labels", "vocab": data.tags, "channels": "mono", **options}
    return FATDataLoaders.from_df(data.curated.head(32), valid_pct=0.25, seed=0, **options)


@pytest.fixture(scope="module")
def dls(sample):
    return loaders(sample)


@pytest.fixture(scope="module")
def plain(dls):
    """What `seen` records of the loaders without augmentation."""
    return seen(dls)


class Log(Callback):
    """Records the network's input after augmentation."""

    order = 8

    def __init__(self):
        self.train, self.valid, self.waves = [], [], []

    def before_batch(self):
        (self.train if self.training else self.valid).append(self.xb[0].as_subclass(Tensor).clone())
        self.waves.append(getattr(self.xb[0], "wave", None))


def learner(dls, *cbs):
    torch.manual_seed(0)
    dls.train.rng = random.Random(0)  # decides the order of the clips
    model = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * dls.to_spec.n_channels, 10))
    return Learner(dls, model, loss_func=LOSSES.build("bce"), cbs=cbs)


def fit(learn, epochs=1):
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learn.fit(epochs, 1e-3)
    return learn


def seen(dls, *cbs):
    log = Log()
    fit(learner(dls, *cbs, log))
    return log


# Draws


@given(st.integers(-5, 5), st.integers(0, 6), st.integers(0, 1000))
def test_whole_numbers_include_both_ends(low, span, seed):
    drawn = draw_integers(400, low, low + span, torch.Generator().manual_seed(seed))
    assert set(drawn.tolist()) == set(range(low, low + span + 1))


def test_uniform_and_bernoulli_draws():
    drawn = draw_uniform((1000, 3), -2, 5)
    assert drawn.shape == (1000, 3) and drawn.min() >= -2 and drawn.max() < 5
    assert not draw_bernoulli(100, 0.0).any() and draw_bernoulli(100, 1.0).all()


# Batches


# What PANNs mask lies inside their network, and batches cut to their longest clip are tested beside loops.
@pytest.mark.parametrize(
    "name", [n for n in AUGMENTATIONS.names() if n not in ("spec_augment_panns", "trim_to_longest")]
)
def test_every_augmentation_changes_training_and_leaves_validation(dls, plain, sample, name):
    if name == "repeat_pad":
        dls = loaders(sample, crop_s=3)  # only there is silence to fill
        plain = seen(dls)
    options = {"crop_lengths": {"seconds": (0.2,), "weights": None}, "chunk_shuffle": {"chunk_s": 0.1, "p": 1.0}}.get(
        name, {"p": 1.0}
    )
    augmentation = AUGMENTATIONS.build(name, **options)
    log = seen(dls, augmentation)
    assert all(torch.equal(a, b) for a, b in zip(log.valid, plain.valid, strict=True))
    assert not torch.equal(log.train[0], plain.train[0])


def test_spectrograms_belong_to_their_waves(dls):
    log = seen(dls, Gain(p=1.0), MixUpOr(p=1.0), ChunkShuffle(p=1.0, chunk_s=0.1, before_mixing=False))
    for spec, wave in zip(log.train, log.waves, strict=False):  # the last waves are those of validation
        torch.testing.assert_close(spec, dls.to_spec.spec(wave.as_subclass(Tensor)))
        assert wave.sr == 44100


def test_the_spectrogram_is_rendered_once(dls, monkeypatch):
    calls = []
    to_spec = dls.to_spec
    real = to_spec.module.forward
    monkeypatch.setattr(to_spec.module, "forward", lambda wave: calls.append(1) or real(wave))
    seen(dls, Gain(p=1.0), MixUpOr(p=1.0), SpeedPerturb(p=1.0, before_mixing=False))
    # Two training batches, each after all augmentations; one of validation.
    assert len(calls) == 2 + 1


def test_power_augmentations_follow_wave_augmentations(dls, plain):
    log = seen(
        dls, Gain(gain_db=(-20.0, -20.0), p=1.0), AUGMENTATIONS.build("spec_augment_fourth_place", p=1.0, freq=(30, 31))
    )
    # Only the first batches are of the same crops: the draws of the augmentations move on the generator that crops the
    # second.
    spec, before = log.train[0], plain.train[0]
    floor, floor_before = (x.amin((2, 3), keepdim=True) for x in (spec, before))
    assert (spec == floor).all(3).any(2).all()
    # 20 dB less on a scale of 21.6 dB, outside of masks and floors.
    both = (spec > floor + 0.1) & (before > floor_before + 1.1)
    assert both.any()
    torch.testing.assert_close(spec[both], before[both] - 20 / 21.6, atol=1e-3, rtol=0)


def test_derivatives_are_computed_from_the_masked_spectrogram(sample):
    dls = loaders(sample, channels="deltas")
    log = seen(dls, SpecAugment(time=None, freq=0.9))
    spec = log.train[0]
    hidden = (spec[:, 0] == 0).all(-1)
    assert hidden.any() and (spec[:, 1:].transpose(1, 2)[hidden] == 0).all()


def test_brightness_contrast_changes_the_pixels_of_image_front_ends(sample):
    dls = loaders(sample, front_end=FRONT_ENDS.build("ninth", normalize="image").settings, channels="imagenet")
    got, before = seen(dls, AUGMENTATIONS.build("brightness_contrast", p_lighting=1.0)).train[0], seen(dls).train[0]
    pixels, plain_pixels = (x[:, 0] * 0.229 + 0.485 for x in (got, before))
    # Black and white stay, and all three channels show the same picture: the light is on the pixels, not on each
    # channel's range.
    assert pixels.min() > -1e-5 and pixels.max() < 1 + 1e-5 and not torch.allclose(pixels, plain_pixels, atol=1e-3)
    torch.testing.assert_close(got[:, 2] * 0.225 + 0.406, pixels, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", ["frames", "channels"])
def test_stripes_behind_bn0_in_either_layout(dls, layout):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn0, self.out = nn.BatchNorm2d(64), nn.Linear(64, 10)

        def forward(self, x):
            x = x.transpose(1, 2) if layout == "channels" else x.permute(0, 2, 3, 1)
            x = self.bn0(x)
            self.seen = x if layout == "channels" else x.permute(0, 1, 3, 2)
            return self.out(self.seen.mean((2, 3)))

    net = Net()
    stripes = AUGMENTATIONS.build("spec_augment_panns", freq=0.9, time=None)
    fit(Learner(dls, net, loss_func=LOSSES.build("bce"), cbs=stripes))
    assert not (net.seen == 0).all(3).any(), "the last batch was validation's"
    fit(Learner(dls, net, loss_func=LOSSES.build("bce"), cbs=[stripes, StopEarly()]))
    assert (net.seen == 0).all(3).any()
    assert not net.bn0._forward_hooks


class StopEarly(Callback):
    def after_batch(self):
        raise CancelFitException


def test_set_augmentation_switches_all_augmentations(dls, plain):
    augmentations = SpecAugment(), MixUpOr(), LinearMixUp(), ItemAugmentations(SpeedPerturb(p=1.0))
    learn = learner(dls, *augmentations, Log())
    assert set(augmentation_callbacks(learn)) == set(augmentations)
    set_augmentation(learn, False)
    fit(learn)
    assert all(torch.equal(a, b) for a, b in zip(learn.log.train, plain.train, strict=True))
    set_augmentation(learn, True)
    assert all(c.active for c in augmentations)


def test_an_unknown_domain_raises():
    with pytest.raises(OptionError, match="domain is 'bn1'; did you mean bn0?"):
        BatchAugmentation("bn1", 0)


def test_every_entry_is_a_callback_and_survives_copies_and_pickles():
    for registry in (AUGMENTATIONS, MIXERS):
        for name in registry.names():
            augmentation = registry.build(name)
            for twin in (copy.deepcopy(augmentation), pickle.loads(pickle.dumps(augmentation))):
                assert isinstance(twin, Callback) and twin.order == augmentation.order


# The batch in its domains


def training_batch(dls):
    return BatchInput.from_tensor(dls.train.one_batch()[0], dls.to_spec)


def test_domains_are_computed_once_and_agree(dls):
    batch = training_batch(dls)
    spec, power = batch.at("log"), batch.at("power")
    assert batch.at("power") is power and batch.at("log") is spec and batch.rate == 44100
    again = batch.replace("power", power)
    torch.testing.assert_close(again.at("log"), spec, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(batch.replace("wave", batch.at("wave")).at("log"), spec)


def test_replacing_a_domain_drops_those_that_no_longer_fit(dls):
    batch = training_batch(dls)
    quiet = batch.replace("wave", 0.5 * batch.at("wave"))
    assert quiet.power is None and quiet.spec is None and batch.spec is not None
    torch.testing.assert_close(quiet.at("power"), 0.25 * batch.at("power"))
    assert batch.replace("power", batch.at("power")).wave is None
    assert batch.replace("log", batch.at("log")).wave is None


def test_the_output_keeps_type_and_metadata(dls):
    x = dls.train.one_batch()[0]
    batch = BatchInput.from_tensor(x, dls.to_spec)
    out = batch.replace("wave", batch.at("wave").flip(1)).to_tensor(x)
    assert type(out) is type(x) and out.front_end is x.front_end and type(out.wave) is type(x.wave)
    assert torch.equal(out.wave.as_subclass(Tensor), x.wave.as_subclass(Tensor).flip(1))
    assert batch.replace("log", batch.at("log") + 1).to_tensor(x).wave is None


def test_batches_of_waves_are_their_networks_input():
    wave = TensorWave(torch.randn(2, 30), sr=8000)
    batch = BatchInput.from_tensor(wave)
    assert torch.equal(batch.at("log"), batch.at("wave")) and batch.rate == 8000
    louder = batch.replace("wave", 2 * batch.at("wave")).to_tensor(wave)
    assert type(louder) is TensorWave and louder.sr == 8000
    with pytest.raises(OptionError, match="the batches of this learner are waves: take domain='wave'"):
        batch.at("power")


def test_waves_without_a_front_end_raise(dls):
    batch = BatchInput.from_tensor(dls.train.one_batch()[0])
    with pytest.raises(OptionError, match="no front end that could render the spectrograms again"):
        batch.at("wave")


def test_a_learner_gets_one_augment_batch(dls):
    learn = fit(learner(dls, Gain(), SpecAugment()))
    fit(learn)
    assert sum(isinstance(cb, AugmentBatch) for cb in learn.cbs) == 1
    set_augmentation(learn, False)
    assert learn.augment_batch.augmentations == []


# Items


def test_items_are_augmented_in_training_only(dls):
    learn = learner(dls, ItemAugmentations(Gain(gain_db=(-120.0, -120.0), p=1.0)), Log())
    fit(learn)
    assert all(w.abs().max() < 2e-6 for w in learn.log.waves[:2]) and learn.log.waves[2].abs().max() > 1e-3
    assert not any(type(f).__name__ == "_AugmentItem" for f in dls.train.after_item.fs)


def test_items_are_augmented_before_the_crop(dls):
    class Length(Gain):
        lengths: list = []

        def apply(self, wave, drawn, sr):
            self.lengths.append(len(wave))
            return wave

    fit(learner(dls, ItemAugmentations(Length(p=1.0))))
    assert len(Length.lengths) == 24 and max(Length.lengths) > 2 * 0.3 * 44100


def test_an_error_in_training_detaches_item_augmentations(dls):
    class Fail(Callback):
        def after_batch(self):
            raise ArithmeticError("stop")

    learn = learner(dls, ItemAugmentations(Gain(p=1.0)), Fail())
    with pytest.raises(ArithmeticError):
        fit(learn)
    learn.remove_cb(Fail)
    learn.validate()
    assert not any(type(f).__name__ == "_AugmentItem" for f in dls.train.after_item.fs)


@pytest.mark.slow
def test_items_are_augmented_in_workers_too(sample):
    dls = loaders(sample, num_workers=2)
    learn = learner(dls, ItemAugmentations(Gain(gain_db=(-120.0, -120.0), p=1.0)), Log())
    fit(learn)
    assert all(w.abs().max() < 2e-6 for w in learn.log.waves[:2])


def test_a_fat_learner_takes_them_as_callbacks(dls):
    learn = fat_learner(dls, "m1", width=0.125, cbs=[MixUpOr(), SpecAugment()])
    plain_learn = fat_learner(dls, "m1", width=0.125)
    plain_learn.model.load_state_dict(learn.model.state_dict())
    for got, expected in zip(learn.get_preds(), plain_learn.get_preds(), strict=True):
        assert torch.equal(got.as_subclass(Tensor), expected.as_subclass(Tensor))
    assert torch.isfinite(torch.tensor(fit(learn).recorder.values[-1])).all()


# To look at


def test_show_augs_draws_before_and_after_with_label_weights(dls):
    axes = show_augs(dls, [SpecAugment(), LinearMixUp(per="pair", lam=(0.25, 0.25))], n=4)
    assert axes.shape == (2, 4)
    (_, targ), _ = augmented(dls, [], n=4)
    mixed = {
        dls.vocab[k]: round(0.25 * float(a) + 0.75 * float(b), 2)
        for k, (a, b) in enumerate(zip(targ[0], targ[1], strict=True))
        if a or b
    }
    assert axes[0, 0].get_title() == "\n".join(dls.vocab[k] for k in range(10) if targ[0][k])
    assert axes[1, 0].get_title() == "\n".join(
        tag if weight == 1 else f"{weight:.2f} {tag}" for tag, weight in mixed.items()
    )
    assert [row[0].get_ylabel() for row in axes] == ["before\nHz", "after\nHz"]
    # Two pairs fill half of the row below.
    assert axes[1, 1].images and not axes[1, 2].images
    assert (axes[0, 0].images[0].get_array() != axes[1, 0].images[0].get_array()).any()
    plt.close("all")


def test_show_augs_of_a_learner_leaves_the_learner_unchanged(dls):
    augmentation, items = AUGMENTATIONS.build("spec_augment_panns", time=20), ItemAugmentations(SpeedPerturb(p=1.0))
    learn = fat_learner(dls, "m1", width=0.125, cbs=[augmentation, MixUpOr(), items])
    assert learn.show_augs(n=2).shape == (2, 2)
    assert (
        augmentation.learn is learn
        and items.learn is learn
        and not any(type(f).__name__ == "_AugmentItem" for f in dls.train.after_item.fs)
    )
    plt.close("all")


def test_augmented_keeps_the_clips_it_started_from(dls):
    before, same = augmented(dls, [], n=3)
    assert all(torch.equal(a.as_subclass(Tensor), b.as_subclass(Tensor)) for a, b in zip(before, same, strict=True))
    (x, _), (flipped, _) = augmented(dls, TimeReverse(p=1.0), n=3)
    assert torch.equal(flipped.as_subclass(Tensor), x.as_subclass(Tensor).flip(-1))


def test_too_few_clips_raise(dls):
    with pytest.raises(DataError, match="there are 24 training clips to show; expected at least n=99"):
        show_augs(dls, TimeReverse(), n=99)


def test_an_augmentation_without_draw_raises():
    with pytest.raises(NotImplementedError):
        SpecAugmentation().augment(torch.zeros(1, 1, 2, 2))


def test_linear_spectrograms_of_which_none_is_chosen_keep_their_waves():
    batch = BatchInput(wave=torch.zeros(2, 100), power=torch.rand(2, 8, 5))
    assert TimeReverse(p=0, domain="power").augment_input(batch) is batch
    assert TimeReverse(p=1, domain="power").augment_input(batch).wave is None
