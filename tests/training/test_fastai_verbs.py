"""fastai's verbs on our learners: layer groups, summary, losses per clip, predict, tta, interpretation."""

import fastai.callback.schedule  # noqa: F401 - gives learners fine_tune
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.data.all import ColReader, DataBlock, MultiCategoryBlock
from fastai.interpret import ClassificationInterpretation
from torch import nn

from fatai.audio.front_ends import front_end
from fatai.audio.waveform import resample
from fatai.data.blocks import AudioBlock, FATDataLoaders, SpectrogramBlock
from fatai.data.config import ClipConfig
from fatai.data.labels import multi_hot
from fatai.data.tensors import TensorWave
from fatai.errors import OptionError, ShapeError
from fatai.inference.clips import clip_at
from fatai.inference.learner import fat_learner
from fatai.training.network import named_model


@pytest.fixture(scope="module")
def dls(sample):
    return FATDataLoaders.from_path(sample, crop_s=0.25, bs=4, seed=0, num_workers=0, check_files=False)


@pytest.fixture
def learn(dls):
    learn = fat_learner(dls, "m1", width=0.125, precision="fp32")
    learn.logger = lambda row: None
    with learn.no_bar():
        yield learn


class TwoBatches(Callback):
    """End the fit after two batches."""

    def after_batch(self):
        if self.learn.iter == 1:
            raise CancelFitException


def weights(learn):
    return [[p.detach().clone() for p in group] for group in learn.model.layer_groups()]


def changed(before, after):
    groups = zip(before, after, strict=True)
    return [any(not torch.equal(a, b) for a, b in zip(*group, strict=True)) for group in groups]


def test_a_frozen_learner_trains_its_head_alone_and_an_unfrozen_one_all(learn):
    learn.train_bn = False
    learn.freeze()
    before = weights(learn)
    learn.fit(1, 1e-3, cbs=TwoBatches())
    assert changed(before, weights(learn)) == [False, True]
    learn.unfreeze()
    before = weights(learn)
    learn.fit(1, 1e-3, cbs=TwoBatches())
    assert changed(before, weights(learn)) == [True, True]


def test_a_slice_of_rates_gives_the_body_the_first_and_the_head_the_last(learn):
    learn.fit(1, slice(1e-5, 1e-3), cbs=TwoBatches())
    assert [h["lr"] for h in learn.opt.hypers] == pytest.approx([1e-5, 1e-3])


def test_fine_tune_trains_the_head_and_then_all_with_smaller_rates_below(learn):
    seen = []

    class Record(TwoBatches):
        def before_batch(self):
            seen.append((self.learn.opt.frozen_idx, len({h["lr"] for h in self.learn.opt.hypers})))

    learn.fine_tune(1, 1e-3, cbs=Record())
    assert [frozen for frozen, _ in seen] == [1, 1, 0, 0] and seen[-1][1] == 2


class Rates(TwoBatches):
    """Keep the learning rates of the groups at every step."""

    def __init__(self):
        self.rates = []

    def after_step(self):
        self.rates.append([h["lr"] for h in self.learn.opt.hypers])


@pytest.mark.parametrize("verb", ["fit", "fit_one_cycle", "fine_tune"])
def test_layer_decay_divides_the_rate_from_layer_to_layer_under_every_schedule(dls, verb):
    learn = fat_learner(dls, "timm:mobilenetv3_small_050", precision="fp32", layer_decay=0.5)
    learn.logger, seen = lambda row: None, Rates()
    with learn.no_bar():
        getattr(learn, verb)(1, 1e-3, cbs=seen)
    assert len(seen.rates) == (4 if verb == "fine_tune" else 2) and len(seen.rates[0]) > 10
    for rates in seen.rates:
        assert rates == pytest.approx([rates[-1] * 0.5 ** k for k in reversed(range(len(rates)))])
    assert verb != "fit" or seen.rates[0][-1] == 1e-3


def test_layer_decay_of_a_network_without_layers_is_refused(dls):
    learn = fat_learner(dls, nn.Sequential(nn.Flatten(), nn.LazyLinear(2)), layer_decay=0.5)
    with pytest.raises(OptionError, match="Sequential has no layers; leave it out, or add a method layers"):
        learn.create_opt()
    with pytest.raises(OptionError, match="layer_decay is 1.5; expected a number above 0 and at most 1"):
        fat_learner(dls, "m1", width=0.125, layer_decay=1.5)


def test_a_network_of_timm_is_frozen_up_to_its_head_and_built_for_the_crop(dls):
    learn = fat_learner(dls, "timm:test_vit", precision="fp32", train_bn=False)
    mels, frames = dls.clip_config.spec_size
    assert learn.model.fixed_size == (mels, -(-frames // 16) * 16) and mels == 64
    learn.freeze()
    trained = [p for p in learn.model.parameters() if p.requires_grad]
    assert {id(p) for p in learn.model.head.parameters()} == {id(p) for p in trained}
    learn.fit(1, slice(1e-5, 1e-3), cbs=TwoBatches())
    rates = [h["lr"] for h in learn.opt.hypers]
    assert len(rates) > 3 and rates == sorted(rates) and rates[-1] == pytest.approx(1e-3)


def test_channels_of_imagenet_are_noted_by_networks_of_timm(sample):
    config = ClipConfig(front_end("fastai_kernel"), crop_s=0.25)
    assert config.channels_name == "imagenet"
    model = named_model("timm:test_vit", 3, 3, config)
    assert model.built_as.options == {"spec_size": config.spec_size, "imagenet_input": True}
    assert model.scale == pytest.approx((0.458, 0.448, 0.45))  # 0.229 / 0.5, ...


def test_a_module_without_layer_groups_is_one_group(dls):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(64, len(dls.tags))

        def forward(self, spec):
            return self.head(spec.mean((1, 3)))

    learn = fat_learner(dls, Net(), precision="fp32")
    learn.create_opt()
    assert len(learn.opt.param_lists) == 1


@pytest.mark.parametrize("make", [AudioBlock, SpectrogramBlock])
def test_a_data_block_can_be_summarized(dls, capsys, make):
    config = ClipConfig(crop_s=0.25)
    block = DataBlock(
        blocks=(make(config), MultiCategoryBlock(vocab=list(dls.tags))), get_x=ColReader("path"),
        get_y=ColReader("labels"),
    )
    block.summary(dls.files(0).head(12), bs=4)
    text = capsys.readouterr().out
    assert "Collating items in a batch" in text and "Error" not in text


@pytest.mark.parametrize("bs", [4, 16])
@pytest.mark.parametrize("make", [nn.BCEWithLogitsLoss, "bce"])
def test_the_loss_of_an_epoch_is_that_of_a_clip_though_the_batches_add_theirs_up(sample, bs, make):
    """All logits are 0: each of the 10 tags has log 2; torch and fatai add up tags and clips."""
    dls = FATDataLoaders.from_path(
        sample, crop_s=0.1, bs=bs, valid_pct=0.25, seed=0, num_workers=0, check_files=False
    )

    class Zero(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(len(dls.tags)))

        def forward(self, spec):
            return self.bias.expand(len(spec), -1)

    options = {"loss_func": "bce", "loss_options": {"reduction": "sum"}}
    loss = options if make == "bce" else {"loss_func": make(reduction="sum")}
    learn = fat_learner(dls, Zero(), precision="fp32", **loss)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 0.0, wd=0.0)
    assert len(dls.valid_ds) % bs, "the last batch is smaller"
    train, valid = learn.recorder.values[-1][:2]
    assert [train, valid] == pytest.approx([10 * np.log(2)] * 2, rel=1e-4)


def test_a_path_samples_and_rate_and_tensors_are_predicted_alike(learn):
    path = learn.dls.files(1)["path"].iloc[0]
    wave = learn.clip_config.read(path)
    expected = dict(learn.predict(path))
    for item in (wave, wave.numpy(), wave[None], TensorWave(wave, sr=44100), (wave.numpy(), 44100)):
        assert dict(learn.predict(item)) == pytest.approx(expected, abs=1e-5)
    halved = resample(wave, 44100, 22050)
    by_tuple, by_keyword = learn.predict((halved.numpy(), 22050)), learn.predict(halved, 22050)
    assert by_tuple == by_keyword == learn.predict(TensorWave(halved, sr=22050))
    assert dict(by_tuple) != pytest.approx(dict(learn.predict(halved)), abs=1e-6), "read at the wrong rate"


def test_samples_become_floats_at_the_rate_asked_for():
    assert clip_at(torch.tensor([0, 16384, -32768], dtype=torch.int16), 8000, 8000).tolist() == [0.0, 0.5, -1.0]
    assert clip_at(np.zeros(100), 22050, 44100).shape == (200,)
    assert clip_at((torch.zeros(1, 100), 44100), None, 22050).shape == (50,)
    assert clip_at("a.wav", None, 44100) == "a.wav"


@pytest.mark.parametrize("item, sr, error, message", [
    (np.zeros((2, 100)), None, ShapeError, r"\(2, 100\); expected \(samples,\)"),
    (np.zeros(100), 0, OptionError, "sr is 0"),
    ("a.wav", 44100, OptionError, "leave it out"),
    (np.zeros(100, dtype=np.uint8), None, OptionError, "torch.uint8; expected floats"),
])
def test_samples_that_are_no_clip_are_refused(item, sr, error, message):
    with pytest.raises(error, match=message):
        clip_at(item, sr, 44100)


def test_predictions_of_tta_come_with_targets_as_from_fastai(learn):
    preds, targs = learn.get_tta_preds(n=2)
    np.testing.assert_allclose(preds.numpy(), learn.tta(n=2).probs, atol=1e-6)
    np.testing.assert_array_equal(targs.numpy(), multi_hot(learn.dls.files(1)["labels"], learn.dls.tags))
    assert preds.dtype == targs.dtype == torch.float32
    assert len(learn.get_tta_preds(dl=learn.dls.valid, n=1)[0]) == len(learn.dls.valid_ds)
    train = learn.dls.files(0).head(3)
    preds, targs = learn.get_tta_preds(items=train, n=1)
    np.testing.assert_array_equal(targs.numpy(), multi_hot(train["labels"], learn.dls.tags))


@pytest.mark.parametrize(
    "method", ["confusion_matrix", "most_confused", "plot_confusion_matrix", "print_classification_report"]
)
def test_the_confusion_matrix_of_one_class_a_clip_is_refused(learn, method):
    interp = ClassificationInterpretation.from_learner(learn)
    with pytest.raises(OptionError, match="may have several tags; take confusions"):
        getattr(interp, method)()
