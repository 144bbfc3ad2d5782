"""`fat_learner(dls)` and `learn.fit_default()`: the parts of recipe `default` in two lines."""

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.torch_core import set_seed

from fatai.audio.channels import DEFAULT_CHANNELS
from fatai.augment.base import augmentation_callbacks
from fatai.augment.wave import Gain
from fatai.callbacks.averaging import WeightAverage
from fatai.data.blocks import FATDataLoaders, SpectrogramBlock
from fatai.data.config import ClipConfig
from fatai.data.transforms import WaveToSpec
from fatai.experiment.recipe import load_recipe
from fatai.experiment.schema import Stage
from fatai.experiment.stage import stage_augmentations
from fatai.inference.learner import fat_learner
from fatai.models import count_parameters
from fatai.training import defaults


class Watch(Callback):
    """Record what a fit trains with."""

    def __init__(self):
        self.rows, self.sizes, self.kinds = [], [], []

    def before_fit(self):
        self.kinds = [type(cb).__name__ for cb in self.learn.cbs]

    def before_train(self):
        self.rows.append([cb.active for cb in augmentation_callbacks(self.learn)])

    def before_batch(self):
        if self.training:
            self.sizes.append(len(self.x))


@pytest.fixture
def learn(own_dls, tmp_path):
    learn = fat_learner(own_dls, "m1", width=0.05, path=tmp_path)
    learn.logger = lambda row: None
    return learn


def parts(pairs):
    """Return the kind and the settings of augmentations, without what belongs to a learner."""
    plain = (bool, int, float, str, tuple)
    return [(type(cb), {k: v for k, v in vars(cb).items() if isinstance(v, plain)}) for cb in pairs]


def test_a_learner_and_the_recipe_have_the_same_parts():
    stage: Stage = load_recipe("default").stages[0]
    assert parts(cb for _, cb in stage_augmentations(stage)) == parts(defaults.default_augmentations())
    assert (stage.lr, stage.wd, stage.ema_decay, stage.schedule) == (
        defaults.LR, defaults.WD, defaults.EMA_DECAY, "one_cycle")
    assert load_recipe("default").model.arch == defaults.ARCH
    assert load_recipe("default").clips.channels == DEFAULT_CHANNELS


def test_a_fit_augments_mixes_averages_and_ends_without_augmentation(learn):
    watch, bs = Watch(), learn.dls.bs
    with learn.no_bar():
        learn.fit_default(4, bs=8, cbs=watch)
    for kind in ("Gain", "Shift", "AddNoise", "SpecAugment", "MixUpOr", "WeightAverage"):
        assert kind in watch.kinds
    assert watch.rows == [[True] * 5] * 3 + [[False] * 5]
    assert set(watch.sizes) == {8} and learn.dls.bs == bs and learn.dls.valid.bs == bs
    assert not augmentation_callbacks(learn) and not any(isinstance(cb, WeightAverage) for cb in learn.cbs)
    assert max(learn.recorder.lrs) == pytest.approx(defaults.LR, rel=0.01)


def test_augmentations_of_the_learner_take_the_place_of_the_default_ones(learn):
    watch = Watch()
    with learn.no_bar():
        learn.fit_default(1, cbs=[watch, Gain()])
    assert watch.rows == [[True]], "an only epoch is augmented"


def test_the_number_of_epochs_follows_from_the_clips(learn, monkeypatch):
    called = {}

    def fit(self, n, lr, **options):
        called.update(n=n, lr=lr, steps=len(self.dls.train), drawn=self.dls.train.get_idxs())

    monkeypatch.setattr(type(learn), "fit_one_cycle", fit)
    before = list(learn.dls.loaders)
    learn.fit_default()
    n_clips = len(learn.dls.train_ds)
    assert 64 <= n_clips <= 1600 and called["n"] == 20 and called["steps"] == 100 and called["lr"] == 3e-3
    assert sorted(called["drawn"][:n_clips]) == list(range(n_clips)) and len(called["drawn"]) == 1600
    assert learn.dls.loaders == before


def test_without_a_name_the_network_is_narrow(own_dls):
    learn = fat_learner(own_dls)
    narrow = fat_learner(own_dls, "m3", width=0.25)
    assert count_parameters(learn.model) == count_parameters(narrow.model) < 2e6
    assert count_parameters(fat_learner(own_dls, width=0.1).model) < count_parameters(narrow.model)


def test_three_channels_where_nothing_is_said(sample):
    options = {"crop_s": 0.5, "bs": 4, "check_files": False, "num_workers": 0}
    spec = FATDataLoaders.from_path(sample, **options).one_batch()[0].as_subclass(torch.Tensor).cpu()
    assert spec.shape[1] == 3
    torch.testing.assert_close(spec, spec[:, :1].expand(-1, 3, -1, -1))
    for given, n in (({"channels": "mono"}, 1), ({"front_end": "ninth"}, 1), ({"front_end": "third_2d"}, 2),
                     ({"clip_config": ClipConfig()}, 1), ({"channels": "coord"}, 2)):
        assert FATDataLoaders.from_path(sample, **options, **given).to_spec.n_channels == n, given
    to_spec = [tfm for tfm in SpectrogramBlock().batch_tfms if isinstance(tfm, WaveToSpec)]
    assert to_spec[0].n_channels == 3


@pytest.mark.slow
def test_a_fit_of_a_few_hundred_steps_learns_the_sample(sample, tmp_path):
    set_seed(1)
    dls = FATDataLoaders.from_path(sample, bs=16, valid_pct=0.3, seed=0, cache="wave", cache_dir=tmp_path)
    learn = fat_learner(dls, path=tmp_path)
    learn.fit_default(40, bs=16)
    targ = np.stack([dls.valid_ds[k][1] for k in range(len(dls.valid_ds))])
    assert learn.tta(views="tiles").oof_score > 0.6, f"by chance about 0.29, of {len(targ)} clips"
