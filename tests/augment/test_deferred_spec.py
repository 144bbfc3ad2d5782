"""Spectrograms of a training batch are computed once, behind the augmentations of its waves."""

import pytest
import torch
from fastai.callback.core import Callback, CancelFitException

from fatai.augment.mixup import MixUpOr
from fatai.augment.spec_augment import SpecAugment
from fatai.augment.wave import AddNoise, Gain
from fatai.data.tensors import TensorSpec
from fatai.inference.learner import fat_learner


class Inputs(Callback):
    """Records the network's input of every training batch."""

    order = 8  # behind all augmentations, before fastai's cast to plain tensors

    def __init__(self):
        self.specs = []

    def before_batch(self):
        if self.training:
            self.specs.append(self.xb[0])


def count_renderings(monkeypatch, dls):
    """Return a list with the clips of each batch whose spectrograms are computed."""
    counts, module = [], dls.to_spec.module[0]
    forward = module.forward
    monkeypatch.setattr(module, "forward", lambda wave: counts.append(len(wave)) or forward(wave))
    return counts


@pytest.mark.parametrize("augmentations", [[Gain(p=1)], [Gain(p=0), AddNoise(p=0.5)], [SpecAugment()], []])
def test_each_clip_is_rendered_once(own_dls, monkeypatch, augmentations):
    inputs = Inputs()
    learn = fat_learner(own_dls, arch="m1", width=0.125, cbs=[inputs, *augmentations])
    counts = count_renderings(monkeypatch, own_dls)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
    assert sum(counts) == len(own_dls.train) * own_dls.train.bs + len(own_dls.valid_ds)
    assert len(inputs.specs) == len(own_dls.train) and not own_dls.to_spec.deferred
    for spec in inputs.specs:
        assert isinstance(spec, TensorSpec) and spec.front_end == own_dls.clip_config.front_end
        if spec.wave is not None:
            expected = own_dls.to_spec.spec(spec.wave.as_subclass(torch.Tensor))
            assert torch.equal(spec.as_subclass(torch.Tensor), expected)


def test_partners_from_the_whole_set_are_waves_too(own_dls, monkeypatch):
    mixer = MixUpOr(p=1, domain="wave", partner="dataset")
    learn = fat_learner(own_dls, arch="m1", width=0.125, cbs=mixer)
    counts = count_renderings(monkeypatch, own_dls)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
    assert sum(counts) == len(own_dls.train) * own_dls.train.bs + len(own_dls.valid_ds)


def test_batches_are_spectrograms_again_after_an_interruption(own_dls):
    class Stop(Callback):
        def after_batch(self):
            raise CancelFitException

    learn = fat_learner(own_dls, arch="m1", width=0.125, cbs=[Gain(), Stop()])
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
    assert not own_dls.to_spec.deferred and isinstance(own_dls.one_batch()[0], TensorSpec)
