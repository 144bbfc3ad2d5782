"""Stages: the callbacks and optimizers that their settings give a learner."""

import pandas as pd
import pytest
import torch
from fastai.callback.tracker import EarlyStoppingCallback
from fastai.callback.training import GradientAccumulation, GradientClip
from pydantic import ValidationError

from fatai.callbacks.augmentation import DisableAugmentation
from fatai.callbacks.averaging import WeightAverage
from fatai.callbacks.batch_norm import FreezeBatchNorm
from fatai.callbacks.gradients import ClipGradValue
from fatai.callbacks.layer_decay import LayerDecay
from fatai.callbacks.schedulers import StopAtLR
from fatai.experiment.schema import Stage
from fatai.experiment.stage import fit_stage, prepare_stage
from fatai.inference.learner import fat_learner
from fatai.losses import class_weights


@pytest.fixture
def learn(own_dls, tmp_path):
    return fat_learner(own_dls, "m1", width=0.05, path=tmp_path)


def single(cbs, kind):
    found = [cb for cb in cbs if isinstance(cb, kind)]
    assert len(found) == 1
    return found[0]


def test_every_setting_becomes_its_callback(learn):
    stage = Stage(
        clip_grad_value=0.5, clip_grad_norm=5.0, grad_accum=3, bs=8, early_stopping_patience=4, min_lr_stop=1e-7,
        no_aug_epochs=2, no_mixup_epochs=3, ema_decay=0.99, freeze_bn=True,
        mixup={"name": "mixup"}, augment=({"name": "spec_augment"},),
    )
    cbs = prepare_stage(learn, stage)
    assert [type(cb).__name__ for cb in cbs[:2]] == ["SpecAugment", "LinearMixUp"]
    assert (
        single(cbs, DisableAugmentation).last == 2
        and single(cbs, DisableAugmentation).last_mixup == 3
        and single(cbs, ClipGradValue).limit == 0.5
        and single(cbs, GradientClip).max_norm == 5.0
    )
    assert single(cbs, WeightAverage).decay == 0.99 and single(cbs, FreezeBatchNorm)
    assert single(cbs, GradientAccumulation).n_acc == 24, "fastai counts clips"
    assert single(cbs, EarlyStoppingCallback).patience == 4 and single(cbs, StopAtLR).min_lr == 1e-7
    assert learn.dls.train.bs == 8 and prepare_stage(learn, Stage()) == []


def test_layer_decay_makes_a_group_of_every_layer(own_dls, tmp_path):
    learn = fat_learner(own_dls, "timm:test_resnet", path=tmp_path)
    cbs = prepare_stage(learn, Stage(layer_decay=0.6))
    assert single(cbs, LayerDecay).decay == 0.6
    assert [len(group) for group in learn.splitter(learn.model)] == [len(group) for group in learn.model.layers()]


@pytest.mark.parametrize("settings", [{"layer_decay": 0}, {"layer_decay": 1.5}, {"layer_decay": 0.5, "lr_min": 1e-5}])
def test_layer_decay_is_checked(settings):
    with pytest.raises(ValidationError, match="layer_decay"):
        Stage(**settings)


def test_an_epoch_of_several_passes_has_every_clip_equally_often(learn):
    n_clips, before = len(learn.dls.train_ds), learn.dls.train
    prepare_stage(learn, Stage(bs=8, sampling_options={"n": 3 * n_clips}))
    drawn = learn.dls.train.get_idxs()
    assert sorted(drawn) == sorted(3 * list(range(n_clips))) and drawn != learn.dls.train.get_idxs()
    assert sorted(drawn[:n_clips]) == list(range(n_clips)), "pass by pass"
    prepare_stage(learn, Stage(bs=8))
    assert type(learn.dls.train) is type(before) and len(learn.dls.train) == n_clips // 8


@pytest.mark.parametrize("options", [{"n": 0}, {"n": "many"}, {"n": True}, {"max_repeats": 3}])
def test_shuffling_has_no_option_but_the_number_of_clips(options):
    with pytest.raises(ValidationError, match='expected for sampling "shuffle" nothing but n'):
        Stage(sampling_options=options)


def test_counts_of_a_weighted_loss_are_of_curated_clips_alone(learn, monkeypatch):
    tags = learn.dls.tags
    table = pd.DataFrame({
        "fname": list("abcde"), "noisy": [False, False, True, True, True],
        "labels": [(tags[0],), (tags[0], tags[1]), (tags[1],), (tags[1],), (tags[2],)],
    })
    monkeypatch.setattr(learn.dls, "files", lambda part: table)
    prepare_stage(learn, Stage(loss="bce_class"))
    expected = class_weights([2, 1, *[0] * (len(tags) - 2)])  # with the noisy clips: 2, 3 and 1
    torch.testing.assert_close(learn.loss_func.weight, expected)
    monkeypatch.setattr(learn.dls, "files", lambda part: table.drop(columns="noisy"))
    prepare_stage(learn, Stage(loss="bce_class"))
    torch.testing.assert_close(learn.loss_func.weight, class_weights([2, 3, 1, *[0] * (len(tags) - 3)]))


@pytest.mark.parametrize("optimizer, reference", [
    ("adam", lambda p: torch.optim.Adam([p], lr=0.1, weight_decay=0.2)),
    ("adamw", lambda p: torch.optim.AdamW([p], lr=0.1, weight_decay=0.2)),
    ("amsgrad", lambda p: torch.optim.Adam([p], lr=0.1, weight_decay=0.2, amsgrad=True)),
    ("sgd", lambda p: torch.optim.SGD([p], lr=0.1, weight_decay=0.2, momentum=0.7)),
])
def test_optimizers_step_as_torch_does(learn, optimizer, reference):
    prepare_stage(learn, Stage(optimizer=optimizer, wd=0.2, no_weight_decay="none", momentum=0.7))
    ours, theirs = (torch.nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    opt, torchs = learn.opt_func([ours], lr=0.1), reference(theirs)
    opt.set_hypers(wd=0.2)
    for grad in ([1.0, 2.0], [-3.0, 0.1], [0.2, 0.2]):
        ours.grad, theirs.grad = torch.tensor(grad), torch.tensor(grad)
        opt.step()
        torchs.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["amsgrad", "sgd"])
def test_a_stage_trains_with_the_optimizer(learn, optimizer):
    before = [p.detach().clone() for p in learn.model.parameters()]
    fit_stage(
        learn,
        Stage(optimizer=optimizer, wd=0, epochs=1, bs=16, schedule="linear_one_cycle", checkpoint="last", lr=1e-3),
    )
    assert any(not torch.equal(a, b) for a, b in zip(before, learn.model.parameters(), strict=True))
    assert (learn.path / "history.csv").exists()


def test_amsgrad_refuses_parameters_without_weight_decay():
    with pytest.raises(ValueError, match="amsgrad applies weight decay to all parameters"):
        Stage(optimizer="amsgrad", wd=0.1)
