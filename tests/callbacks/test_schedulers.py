"""Learning rates, point by point, against published closed forms, torch's schedulers and fastai's fit."""

import math

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.tracker import ReduceLROnPlateau
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from helpers.fake_learner import ScriptedMetric
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts
from torch.optim.lr_scheduler import ReduceLROnPlateau as TorchPlateau

from fatai.callbacks.schedulers import (
    LRSchedulerCallback,
    StopAtLR,
    constant,
    cosine_restarts,
    cycle_ends,
    linear_one_cycle,
    plateau,
    schedule_callback,
    step_decay,
    warmup_cosine,
    warmup_multistep,
    warmup_smooth_cosine,
)
from fatai.errors import OptionError, UnknownNameError
from fatai.registry import SCHEDULES

CALLBACKS = ("one_cycle", "plateau")


def points(at, epochs, per_epoch):
    """Return the rate of every iteration."""
    return np.array([at(i / per_epoch) for i in range(epochs * per_epoch)])


def test_warmup_cosine_is_the_ninth_places_run_epoch_by_epoch():
    at = warmup_cosine(65, 1e-3)
    for epoch in range(65):
        if epoch <= 6:
            wanted = 5e-5 + 0.001 * epoch / 6.5
        else:
            wanted = 1e-7 + (1e-3 - 1e-7) * (1 + math.cos(math.pi * (epoch - 7) / 65)) / 2
        assert at(epoch) == pytest.approx(wanted, rel=1e-12)
    assert f"{at(64):.1e}" == "3.7e-05", "the log ends at 3.7e-5, not at 1e-7"


@given(epoch=st.integers(0, 64), fraction=st.floats(0, 0.999))
def test_warmup_cosine_changes_once_an_epoch(epoch, fraction):
    at = warmup_cosine(65, 1e-3)
    assert at(epoch + fraction) == at(epoch)


def test_warmup_multistep_over_40_000_iterations():
    got = points(warmup_multistep(40, 0.1), 40, 1000)
    step = np.arange(40_000)
    wanted = np.where(
        step < 2000,
        0.01 + 0.09 * step / 2000,
        0.1 * 0.1 ** np.searchsorted([12_000, 24_000, 36_000], step, side="right"),
    )
    np.testing.assert_allclose(got, wanted, rtol=1e-9)
    assert [got[i] for i in (0, 1000, 2000, 11_999, 12_000, 36_000)] == pytest.approx(
        [0.01, 0.055, 0.1, 0.1, 0.01, 0.0001]
    )


def test_linear_one_cycle_of_the_third_place_in_every_iteration():
    got = points(linear_one_cycle(100), 100, 37)
    np.testing.assert_allclose(got, np.interp(np.arange(3700) / 3700, [0, 0.3, 1], [1e-4, 5e-3, 1e-7]), rtol=1e-9)
    assert linear_one_cycle(100)(100) == pytest.approx(1e-7)


@pytest.mark.parametrize("cycle, mult, lr, final", [(64, 1, 1e-3, 1e-6), (10, 2, 3e-4, 1e-5)])
def test_cosine_restarts_are_torchs_in_every_iteration(cycle, mult, lr, final):
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    theirs = CosineAnnealingWarmRestarts(optimizer, T_0=cycle, T_mult=mult, eta_min=final)
    at = cosine_restarts(150, lr, cycle=cycle, mult=mult, final_lr=final)
    for i in range(150 * 8):
        theirs.step(i / 8)
        assert at(i / 8) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), i
    assert at(cycle - 1e-9) == pytest.approx(final) and at(cycle) == lr


@pytest.mark.parametrize(
    "epochs, cycle, mult, ends",
    [
        (512, 64, 1, [64, 128, 192, 256, 320, 384, 448, 512]),
        (150, 10, 2, [10, 30, 70, 150]),
        (20, 8, 1, [8, 16]),
        (5, 8, 1, []),
    ],
)
def test_cycles_end_where_they_should(epochs, cycle, mult, ends):
    assert cycle_ends(epochs, cycle, mult) == ends


def test_step_decay_falls_every_so_many_epochs():
    got = points(step_decay(100, 3e-3), 100, 10)
    np.testing.assert_allclose(got, 3e-3 * 0.94 ** (np.arange(1000) // 25), rtol=1e-9)


def test_warmup_smooth_cosine_rises_one_epoch_and_falls_to_the_end():
    got = points(warmup_smooth_cosine(20, 2e-4), 20, 50)
    np.testing.assert_allclose(got[:50], 2e-4 * np.arange(50) / 50, rtol=1e-9)
    rest = np.arange(950) / 950
    np.testing.assert_allclose(got[50:], 1e-4 * (1 + np.cos(np.pi * rest)), rtol=1e-9)
    assert warmup_smooth_cosine(20, 2e-4, final_lr=1e-6)(20) == pytest.approx(1e-6)


def test_constant_is_constant():
    assert set(points(constant(3, 0.1), 3, 5)) == {0.1}


@pytest.mark.parametrize("name", sorted(set(SCHEDULES.names()) - set(CALLBACKS)))
def test_every_closed_form_is_between_zero_and_its_peak(name):
    got = points(SCHEDULES.build(name, 10, 1e-2), 10, 7)
    assert (got >= 0).all() and (got[1:] > 0).all() and got.max() <= 1e-2 * (1 + 1e-12)


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_every_schedule_has_a_source_and_refuses_invalid_options(name):
    assert SCHEDULES.source(name) and SCHEDULES.describe(name)
    for epochs, lr, words in ((0, 1e-2, "epochs is 0"), (10, 0, "lr is 0"), (10, -1, "lr is -1")):
        with pytest.raises(OptionError, match=words):
            SCHEDULES.build(name, epochs, lr)


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda: cosine_restarts(9, 1e-3, cycle=0), "cycle is 0"),
        (lambda: cosine_restarts(9, 1e-3, mult=0), "mult 0"),
        (lambda: step_decay(9, 1e-3, every=0), "every is 0"),
        (lambda: warmup_smooth_cosine(9, 1e-3, warmup_epochs=9), "warmup_epochs is 9"),
        (lambda: plateau(9, 1e-3, factor=10), "factor is 10"),
        (lambda: plateau(9, 1e-3, patience=-1), "patience -1"),
        (lambda: StopAtLR(0), "min_lr is 0"),
    ],
)
def test_options_out_of_range_are_named(build, words):
    with pytest.raises(OptionError, match=words):
        build()


# In a fit

class RecordRates(Callback):
    """Record the rates of every batch, of all groups, and the momentum."""

    order = 70

    def __init__(self):
        self.lrs, self.moms = [], []

    def before_batch(self):
        if self.training:
            self.lrs.append([h["lr"] for h in self.opt.hypers])
            self.moms.append(self.opt.hypers[-1].get("mom"))


def learner(*, score=None, valid_loss=None, **options):
    data = [(torch.zeros(2), torch.zeros(1))] * 8
    train = torch.utils.data.DataLoader(data, batch_size=2)
    valid = torch.utils.data.DataLoader(data, batch_size=8)
    learn = Learner(DataLoaders(train, valid), nn.Linear(2, 1), loss_func=nn.MSELoss(), **options)
    learn.remove_cbs([cb for cb in learn.cbs if type(cb).__name__ == "ProgressCallback"])
    learn.logger = lambda row: None
    if score is not None:
        learn.metrics = [ScriptedMetric(score, "score")]
    if valid_loss is not None:
        learn.recorder.loss = ScriptedMetric(valid_loss)
    return learn


@pytest.mark.parametrize("name", sorted(set(SCHEDULES.names()) - set(CALLBACKS)))
def test_a_fit_follows_the_closed_form_in_every_batch(name):
    learn, rates = learner(), RecordRates()
    learn.fit(10, 1e-2, cbs=[schedule_callback(name, 10, 1e-2), rates])
    at = SCHEDULES.build(name, 10, 1e-2)
    assert [lr for lr, in rates.lrs] == pytest.approx([at(i / 4) for i in range(40)], rel=1e-12, abs=0)
    assert learn.recorder.lrs == [lr for lr, in rates.lrs]


def test_groups_keep_the_ratio_that_the_fit_gave_them():
    learn, rates = learner(splitter=lambda m: [[m.weight], [m.bias]]), RecordRates()
    learn.fit(2, slice(1e-4, 1e-2), cbs=[LRSchedulerCallback(lambda t: 1e-2 / (1 + t)), rates])
    np.testing.assert_allclose(rates.lrs, [[1e-4 / (1 + i / 4), 1e-2 / (1 + i / 4)] for i in range(8)], rtol=1e-9)


@pytest.mark.parametrize("options", [{}, {"div": 10.0, "div_final": 1e3, "pct_start": 0.4, "moms": (0.9, 0.8, 0.95)}])
def test_one_cycle_is_fastais(options):
    ours, theirs = learner(), learner()
    recorded = RecordRates(), RecordRates()
    theirs.fit_one_cycle(5, 1e-2, cbs=recorded[0], **options)
    ours.fit(5, 1e-2, cbs=[schedule_callback("one_cycle", 5, 1e-2, **options), recorded[1]])
    np.testing.assert_allclose(recorded[1].lrs, recorded[0].lrs, rtol=1e-9)
    np.testing.assert_allclose(recorded[1].moms, recorded[0].moms, rtol=1e-9)


def torchs_plateau(values, lr, mode, patience, factor, min_lr):
    """Return the rate of each epoch."""
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    theirs = TorchPlateau(optimizer, mode=mode, patience=patience, factor=factor, threshold=0, min_lr=min_lr, eps=0)
    rates = []
    for value in values:
        rates.append(optimizer.param_groups[0]["lr"])
        theirs.step(value)
    return rates


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "monitor, mode, patience, factor, min_lr", [("valid_loss", "min", 3, 0.1, 0.0), ("score", "max", 6, 0.6, 1e-8)]
)
def test_plateau_falls_when_torchs_does(seed, monitor, mode, patience, factor, min_lr, capsys):
    values = [round(x, 3) for x in np.random.default_rng(seed).random(60).tolist()]
    learn = learner(score=values) if monitor == "score" else learner(valid_loss=values)
    rates, callback = (
        RecordRates(),
        schedule_callback("plateau", 60, 1e-3, monitor=monitor, patience=patience, factor=factor, min_lr=min_lr),
    )
    assert isinstance(callback, ReduceLROnPlateau)
    learn.fit(60, 1e-3, cbs=[callback, rates])
    wanted = torchs_plateau(values, 1e-3, mode, patience, factor, min_lr)
    np.testing.assert_allclose([lr for lr, in rates.lrs[::4]], wanted, rtol=1e-6)
    assert len(set(wanted)) > 5


def test_the_ninth_places_refit_stops_when_its_rate_has_fallen_three_times(capsys):
    """The loss never improves on the first: the rate falls after four epochs, three times."""
    learn, rates = learner(valid_loss=[1.0] * 65), RecordRates()
    learn.fit(65, 1e-4, cbs=[schedule_callback("plateau", 65, 1e-4), StopAtLR(1e-7), rates])
    np.testing.assert_allclose([lr for lr, in rates.lrs[::4]], [1e-4] * 5 + [1e-5] * 4 + [1e-6] * 4, rtol=1e-6)
    assert len(learn.recorder.values) == 13


def test_an_unknown_schedule_is_named():
    with pytest.raises(UnknownNameError, match="did you mean warmup_cosine"):
        schedule_callback("warmup_cosin", 3, 1e-3)
    with pytest.raises(OptionError, match="no option 'cycles'"):
        schedule_callback("cosine_restarts", 3, 1e-3, cycles=2)
