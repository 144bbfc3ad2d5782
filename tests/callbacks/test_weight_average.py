"""Averaged weights: their values, and that validation, checkpoints and predictions use them."""

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation
from torch import nn

from fatai.callbacks.averaging import WeightAverage
from fatai.callbacks.checkpoint import SaveBestModel
from fatai.errors import OptionError
from fatai.inference.learner import fat_learner
from fatai.models.checkpoint import load_weights


class Net(nn.Module):
    """A small network with a batch norm."""

    def __init__(self, n_tags=10, in_channels=1):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_channels, 4, 5, stride=4), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, n_tags)

    def forward(self, spec):
        return self.head(self.body(spec).mean((2, 3)))

    def layer_groups(self):
        return [list(self.body.parameters()), list(self.head.parameters())]


class Watch(Callback):
    """Record the weights in training after every batch, and those in validation."""

    order = 70

    def __init__(self):
        self.trained, self.validated = [], []

    def after_batch(self):
        (self.trained if self.training else self.validated).append(weights(self.learn))


def weights(learn):
    return {name: value.detach().clone().numpy() for name, value in learn.model.state_dict().items()}


@pytest.fixture
def new_learner(own_dls, tmp_path):
    def new(**options):
        torch.manual_seed(3)
        learn = fat_learner(own_dls, Net(len(own_dls.tags), own_dls.to_spec.n_channels), path=tmp_path,
                            **{"precision": "fp32", **options})
        learn.remove_cbs([cb for cb in learn.cbs if type(cb).__name__ == "ProgressCallback"])
        learn.logger = lambda row: None
        return learn

    return new


def averaged(steps, decay):
    """Average recorded weights in float64; the decay of step t is 1 - t^(-2/3), at most `decay`, as timm documents."""
    mean = {name: value.astype(float) for name, value in steps[0].items()}
    for t, step in enumerate(steps[1:], 1):
        kept = min(decay, 1 - (1 + t) ** (-2 / 3))
        for name in mean:
            mean[name] = kept * mean[name] + (1 - kept) * step[name]
    return mean


def check_average(learn, steps, decay):
    for name, value in averaged(steps, decay).items():
        got = weights(learn)[name]
        if np.issubdtype(got.dtype, np.floating):
            np.testing.assert_allclose(got, value, rtol=1e-4, atol=1e-6, err_msg=name)
        else:
            assert got == steps[-1][name], "counts are copied"


@pytest.mark.parametrize("decay", [0.999, 0.6])
def test_a_fit_ends_with_the_moving_average_of_weights_and_running_statistics(new_learner, decay):
    learn, watch = new_learner(), Watch()
    learn.fit(3, 0.05, cbs=[WeightAverage(decay), watch])
    assert len(watch.trained) > 6
    check_average(learn, watch.trained, decay)


def test_training_itself_is_not_changed(new_learner):
    plain, with_average = Watch(), Watch()
    for watch, cbs in ((plain, []), (with_average, [WeightAverage()])):
        torch.manual_seed(5)
        learn = new_learner()
        learn.dls.train.rng.seed(1)
        learn.fit(3, 0.05, cbs=[*cbs, watch])
    for one, other in zip(plain.trained, with_average.trained, strict=True):
        for name, value in one.items():
            np.testing.assert_array_equal(other[name], value)


def test_metrics_and_validation_use_the_average(new_learner):
    learn, watch = new_learner(), Watch()
    learn.fit(2, 0.05, cbs=[WeightAverage(), watch])
    for name, value in weights(learn).items():
        np.testing.assert_array_equal(watch.validated[-1][name], value)
    recorded = list(learn.recorder.values[-1][1:])
    assert list(learn.validate()) == pytest.approx(recorded, abs=1e-6)


def test_the_best_epoch_is_saved_with_averaged_weights(new_learner):
    learn, watch, best = new_learner(), Watch(), SaveBestModel("train_loss")
    learn.fit(2, 0.05, cbs=[WeightAverage(), watch, best])
    n_valid = len(watch.validated) // 2
    of_best = watch.validated[n_valid * best.number - 1]
    load_weights(best.path_of_best, learn.model)
    for name, value in weights(learn).items():
        np.testing.assert_array_equal(value, of_best[name])


def test_frozen_weights_stay_what_they_are(new_learner):
    learn = new_learner()
    learn.freeze()
    before = weights(learn)
    learn.fit(2, 0.05, cbs=WeightAverage())
    after = weights(learn)
    np.testing.assert_array_equal(after["body.0.weight"], before["body.0.weight"])
    assert (after["head.weight"] != before["head.weight"]).any()


def test_batches_without_a_step_are_not_averaged(new_learner):
    learn, watch = new_learner(), Watch()
    learn.fit(1, 0.05, cbs=[WeightAverage(), GradientAccumulation(10**6), watch])
    before, after = watch.trained[0], weights(learn)
    np.testing.assert_array_equal(after["head.weight"], before["head.weight"])


def test_as_a_callback_of_the_learner_it_acts_in_fits_alone(new_learner):
    learn = new_learner(cbs=WeightAverage(0.5))
    learn.fit(1, 0.05)
    before = weights(learn)
    learn.validate()
    learn.get_preds()
    learn.lr_find(num_it=4, show_plot=False, suggest_funcs=None)
    for name, value in weights(learn).items():
        np.testing.assert_array_equal(before[name], value)
    watch = Watch()
    learn.fit(1, 0.05, cbs=watch)
    check_average(learn, watch.trained, 0.5)


def test_an_interrupted_fit_leaves_the_average(new_learner):
    class Interrupt(Callback):
        def before_batch(self):
            if self.training and self.epoch == 1:
                raise KeyboardInterrupt

    learn, watch = new_learner(), Watch()
    with pytest.raises(KeyboardInterrupt):
        learn.fit(2, 0.05, cbs=[WeightAverage(), watch, Interrupt()])
    check_average(learn, watch.trained, 0.999)


def test_bfloat16_averages_float32_weights(new_learner):
    learn, watch = new_learner(precision="bf16"), Watch()
    learn.fit(2, 0.05, cbs=[WeightAverage(0.9), watch])
    assert learn.model.head.weight.dtype == torch.float32
    check_average(learn, watch.trained, 0.9)


def test_shared_weights_are_averaged(new_learner):
    class Tied(Net):
        def __init__(self, n_tags, in_channels):
            super().__init__(n_tags, in_channels)
            self.second = nn.Linear(4, n_tags)
            self.second.weight = self.head.weight

        def forward(self, spec):
            features = self.body(spec).mean((2, 3))
            return self.head(features) + self.second(features)

    learn, watch = new_learner(), Watch()
    learn.model = Tied(len(learn.tags), learn.dls.to_spec.n_channels)
    learn.fit(1, 0.05, cbs=[WeightAverage(0.5), watch])
    assert (weights(learn)["head.weight"] != watch.trained[-1]["head.weight"]).any()


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(OptionError, match="decay is .*below 1"):
        WeightAverage(decay)
