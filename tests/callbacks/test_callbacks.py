"""Gradient clipping, NaN losses, augmentation switch and progress lines, on models small enough to check by hand."""

import io
import sys

import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.progress import ProgressCallback
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.optimizer import SGD
from torch import nn

from fatai.augment.base import Augmentation
from fatai.augment.item import ItemAugmentations
from fatai.augment.mixup import LinearMixUp
from fatai.augment.spec_augment import SpecAugment
from fatai.augment.wave import Gain
from fatai.callbacks.augmentation import DisableAugmentation
from fatai.callbacks.failure import NonFiniteError, TerminateOnNaN
from fatai.callbacks.gradients import ClipGradValue
from fatai.callbacks.progress import PlainProgress, quiet_unless_terminal
from fatai.data.blocks import FATDataLoaders
from fatai.errors import OptionError
from fatai.inference.learner import fat_learner
from fatai.losses import BCE


def learner(data, bs, model, loss=None, **options):
    loaders = DataLoaders(DataLoader(data, bs=bs), DataLoader(data, bs=bs))
    learn = Learner(loaders, model, loss_func=loss or nn.MSELoss(), opt_func=options.pop("opt_func", SGD), **options)
    learn.remove_cbs([cb for cb in learn.cbs if isinstance(cb, ProgressCallback)])
    learn.logger = lambda row: None
    return learn


class Sum(nn.Module):
    """w1 x1 + w2 x2 + w3 x3, from zero weights; with the loss below the gradient is x."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return x @ self.w


def mean_of_outputs(pred, targ):
    return pred.mean()


X = torch.tensor([3.0, -5.0, 0.5])


# Gradients

def test_gradients_are_clipped_element_by_element_and_keep_their_signs():
    learn = learner([(X, torch.zeros(()))], 1, Sum(), mean_of_outputs)
    learn.fit(1, 1.0, wd=0.0, cbs=ClipGradValue(1.0))
    assert learn.model.w.tolist() == [-1.0, 1.0, -0.5], "clipping by norm would have kept the ratios"


def test_fastais_clipping_by_norm_keeps_the_direction():
    learn = learner([(X, torch.zeros(()))], 1, Sum(), mean_of_outputs)
    learn.fit(1, 1.0, wd=0.0, cbs=GradientClip(1.0))
    torch.testing.assert_close(learn.model.w.detach(), -X / X.norm(), rtol=1e-5, atol=1e-5)


def test_the_accumulated_gradient_is_clipped():
    """3 and -5, each divided by the 2 accumulated clips, make -1, which is not clipped; each alone would make 1 - 1."""
    data = [(torch.tensor([3.0, 0, 0]), torch.zeros(())), (torch.tensor([-5.0, 0, 0]), torch.zeros(()))]
    learn = learner(data, 1, Sum(), mean_of_outputs)
    learn.fit(1, 1.0, wd=0.0, cbs=[ClipGradValue(2.0), GradientAccumulation(n_acc=2)])
    assert learn.model.w.tolist() == [1.0, 0.0, 0.0]


def test_gradients_are_clipped_after_mixed_precision_has_unscaled_them():
    assert ClipGradValue.order > MixedPrecision.order


@pytest.mark.parametrize("limit", [0, -1, float("nan")])
def test_a_limit_of_zero_or_less_is_refused(limit):
    with pytest.raises(OptionError, match="limit is"):
        ClipGradValue(limit)


@pytest.mark.parametrize("loss", [BCE(), BCE(reduction="sum")])
def test_four_accumulated_batches_are_one_large_batch(loss):
    """A sum over the batch is divided by the number of accumulated clips, which needs four times the rate."""
    data = [(torch.randn(5), (torch.rand(3) > 0.5).float()) for _ in range(16)]
    weights = {}
    for bs, n_acc in ((16, None), (4, 16)):
        torch.manual_seed(1)
        learn = learner(data, bs, nn.Linear(5, 3), loss)
        lr = 0.5 if loss.reduction == "mean" or n_acc is None else 0.5 * 4
        learn.fit(2, lr, wd=0.0, cbs=[] if n_acc is None else [GradientAccumulation(n_acc=n_acc)])
        weights[bs] = learn.model.weight.detach()
    torch.testing.assert_close(weights[4], weights[16], rtol=1e-5, atol=1e-6)


# Stopping

@pytest.mark.parametrize("value, word", [(float("nan"), "nan"), (float("inf"), "inf")])
def test_a_nan_loss_stops_the_fit_and_names_the_batch(value, word):
    data = [(torch.full((3,), value if i == 5 else 1.0), torch.zeros(())) for i in range(8)]
    learn = learner(data, 1, Sum(), mean_of_outputs)
    nn.init.ones_(learn.model.w)
    with pytest.raises(
        NonFiniteError, match=rf"became {word} in epoch 0, batch 5; the weights are those before it: lower"
    ):
        learn.fit(1, 0.0, cbs=TerminateOnNaN())


def test_the_validation_loss_may_be_nan():
    learn = learner([(torch.ones(3), torch.zeros(()))], 1, Sum(), mean_of_outputs)
    learn.dls.loaders[1] = DataLoader([(torch.full((3,), float("nan")), torch.zeros(()))], bs=1)
    learn.fit(2, 0.1, cbs=TerminateOnNaN())
    assert len(learn.recorder.values) == 2


# Augmentation off in the last epochs

class RecordActive(Callback):
    """Record which augmentations are active while each epoch trains."""

    def __init__(self):
        self.active = []

    def before_train(self):
        self.active.append(tuple(cb.active for cb in self.learn.cbs if isinstance(cb, Augmentation)))


def audio_learner(dls, *cbs):
    class Net(nn.Module):
        def __init__(self, n_tags, in_channels):
            super().__init__()
            self.head = nn.Linear(64, n_tags)

        def forward(self, spec):
            return self.head(spec.mean((1, 3)))

    learn = fat_learner(dls, Net, precision="fp32", cbs=list(cbs))
    learn.remove_cbs([cb for cb in learn.cbs if isinstance(cb, ProgressCallback)])
    learn.logger = lambda row: None
    return learn


def test_augmentation_and_mixing_are_off_in_the_last_epochs_and_on_again_after(small_dls):
    masks, mix, gain, recorded = SpecAugment(), LinearMixUp(), ItemAugmentations(Gain(p=1.0)), RecordActive()
    learn = audio_learner(small_dls, masks, mix, gain)
    learn.fit(4, cbs=[DisableAugmentation(2), recorded])
    assert recorded.active == [(True,) * 3] * 2 + [(False,) * 3] * 2
    assert masks.active and mix.active and gain.active


def test_mixing_alone_or_earlier_than_augmentation_is_off_in_the_last_epochs(small_dls):
    for last, last_mixup, expected in [(1, 2, [(True, True), (True, False), (False, False)]),
                                       (None, 1, [(True, True), (True, True), (True, False)]),
                                       (2, 1, [(True, True), (False, True), (False, False)])]:
        masks, mix, recorded = SpecAugment(), LinearMixUp(), RecordActive()
        learn = audio_learner(small_dls, masks, mix)
        learn.fit(3, cbs=[DisableAugmentation(last, last_mixup=last_mixup), recorded])
        assert recorded.active == expected
        assert masks.active and mix.active


def test_an_augmentation_that_was_off_before_is_off_after(small_dls):
    masks, mix = SpecAugment(), LinearMixUp()
    masks.active = False
    audio_learner(small_dls, masks, mix).fit(1, cbs=DisableAugmentation(1))
    assert not masks.active and mix.active


def test_a_stopped_fit_leaves_no_augmentation_switched_off(small_dls):
    class Stop(Callback):
        def __init__(self, error):
            self.error = error

        def before_train(self):
            raise self.error

    masks, off = SpecAugment(), DisableAugmentation(1)
    learn = audio_learner(small_dls, masks)
    learn.fit(1, cbs=[off, Stop(CancelFitException())])
    assert masks.active
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1, cbs=[off, Stop(KeyboardInterrupt())])
    assert masks.active
    recorded = RecordActive()
    learn.fit(2, cbs=[off, recorded])
    assert recorded.active == [(True,), (False,)] and masks.active


@pytest.mark.parametrize(
    "workers", [{"num_workers": 0}, {"num_workers": 2, "persistent_workers": True}], ids=["none", "persistent"]
)
def test_item_augmentation_is_off_in_workers_even_persistent_ones(few_clips, workers):
    """The waves of every batch with a gain of 60 dB have large peaks."""
    dls = FATDataLoaders.from_path(few_clips, crop_s=0.25, bs=8, valid_pct=0.25, seed=0, check_files=False, **workers)
    peaks = []

    class Peaks(Callback):
        order = -9

        def before_batch(self):
            if self.training:
                peaks.append((self.epoch, float(self.x.wave.abs().amax())))

    audio_learner(dls, ItemAugmentations(Gain(gain_db=(60.0, 60.0), p=1.0)), Peaks()).fit(3, cbs=DisableAugmentation(1))
    for epoch in range(3):
        loud = [peak > 2 for e, peak in peaks if e == epoch]
        assert len(loud) == len(dls.train) and all(loud) == any(loud) == (epoch < 2)


def test_a_number_of_epochs_below_one_is_refused():
    with pytest.raises(OptionError, match="last is 0"):
        DisableAugmentation(0)
    with pytest.raises(OptionError, match="last_mixup is 0"):
        DisableAugmentation(1, last_mixup=0)
    with pytest.raises(OptionError, match="at least one of them"):
        DisableAugmentation(None)


# Lines

def test_the_line_of_an_epoch_has_the_values_of_the_recorder():
    out = io.StringIO()
    learn = learner([(torch.ones(3), torch.ones(()))] * 2, 2, Sum(), cbs=PlainProgress(out))
    logger = learn.logger
    learn.fit(2, 0.0)
    # The loss is always (0 - 1)^2.
    words = "train_loss 1.0000  valid_loss 1.0000  0 s"
    assert out.getvalue().splitlines() == [f"epoch 0  {words}", f"epoch 1  {words}"]
    assert learn.logger is logger


def test_predictions_and_lr_find_print_no_line(tmp_path):
    import fastai.callback.schedule  # noqa: F401 - gives learners lr_find

    out = io.StringIO()
    data = [(torch.randn(3), torch.randn(())) for _ in range(8)]
    learn = learner(data, 2, Sum(), cbs=PlainProgress(out), path=tmp_path)
    learn.get_preds()
    learn.lr_find(num_it=60, show_plot=False)
    assert out.getvalue() == ""


def test_a_cancelled_fit_restores_the_logger():
    class Stop(Callback):
        def before_train(self):
            raise CancelFitException

    learn = learner([(X, torch.zeros(()))], 1, Sum(), mean_of_outputs, cbs=PlainProgress(io.StringIO()))
    logger = learn.logger
    learn.fit(1, cbs=Stop())
    assert learn.logger is logger


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_are_shown_on_terminals_only(monkeypatch, terminal):
    learn = Learner(DataLoaders(DataLoader([(X, X)], bs=1)), Sum(), loss_func=mean_of_outputs)
    learn.add_cb(ProgressCallback()) if not hasattr(learn, "progress") else None
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    for _ in range(2):
        assert quiet_unless_terminal(learn) is learn
        kinds = [type(cb) for cb in learn.cbs]
        assert kinds.count(ProgressCallback) == int(terminal) and kinds.count(PlainProgress) == int(not terminal)
