"""Sample weights in every order of the clips, mixed or not, and only in training."""

import fastai.callback.schedule  # noqa: F401 - gives learners lr_find
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.losses import BCEWithLogitsLossFlat
from torch import nn

from fatai.augment.mixup import LinearMixUp
from fatai.callbacks.sample_weights import SampleWeights
from fatai.data.blocks import FATDataLoaders
from fatai.data.datasets.fat2019 import load_dataset
from fatai.data.labels import multi_hot
from fatai.errors import DataError, OptionError, ShapeError
from fatai.inference.learner import fat_learner
from fatai.registry import LOSSES


class Net(nn.Module):
    def __init__(self, n_tags=10, in_channels=1):
        super().__init__()
        self.head = nn.Linear(64, n_tags)

    def forward(self, spec):
        return self.head(spec.mean((1, 3)))


class RecordLoss(Callback):
    """Record targets, weights, flags, loss and logits of each batch."""

    order = 45

    def __init__(self):
        self.trained, self.validated = [], []

    def after_pred(self):
        loss = self.learn.loss_func
        if not self.training:
            self.validated.append((loss.sample_weight, loss.noisy, len(self.learn.yb)))
        else:
            self.trained.append((self.learn.y.clone(), loss.sample_weight, loss.noisy))

    def after_loss(self):
        if self.training:
            self.trained[-1] += (float(self.learn.loss.detach()), self.learn.pred.detach())


def loaders(few_clips, clip_cache, **options):
    options = {
        "crop_s": 0.25,
        "bs": 16,
        "valid_pct": 0.25,
        "seed": 0,
        "num_workers": 0,
        "check_files": False,
        "noisy": True,
        "cache": "wave",
        "cache_dir": clip_cache,
        **options,
    }
    return FATDataLoaders.from_path(few_clips, **options)


@pytest.fixture(scope="module")
def dls(few_clips, clip_cache):
    return loaders(few_clips, clip_cache)


def learner(dls, cbs, **options):
    learn = fat_learner(dls, Net, precision="fp32", cbs=cbs, **options)
    learn.remove_cbs([cb for cb in learn.cbs if type(cb).__name__ == "ProgressCallback"])
    learn.logger = lambda row: None
    return learn


def different_weights(dls):
    """Return a different weight for each training clip."""
    names = dls.files(0)["fname"]
    return {name: 1 + i / 1000 for i, name in enumerate(names)}


def labels_by_weight(dls):
    files = dls.files(0)
    return {
        round(1000 * (w - 1)): row
        for w, row in zip(different_weights(dls).values(), multi_hot(files["labels"], dls.tags), strict=True)
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_each_clip_gets_its_weight_whatever_the_order(few_clips, clip_cache, workers):
    dls, record = loaders(few_clips, clip_cache, num_workers=workers), RecordLoss()
    learner(dls, [SampleWeights(different_weights(dls)), record]).fit(1)
    labels, noisy = labels_by_weight(dls), dls.train.dataset.items["noisy"].to_numpy(dtype=float)
    drawn = []
    for targ, w, flags, *_ in record.trained:
        for row, weight, flag in zip(targ, w, flags, strict=True):
            clip = round(1000 * (float(weight) - 1))
            drawn.append(clip)
            assert row.tolist() == labels[clip].tolist() and float(flag) == noisy[clip]
    assert len(set(drawn)) == len(drawn) == 48 and drawn != sorted(drawn)


@pytest.mark.parametrize("per_tag", [False, True])
def test_the_loss_is_the_weighted_mean(dls, per_tag):
    rng, record = np.random.default_rng(0), RecordLoss()
    weights = {name: rng.random(10) if per_tag else rng.random() for name in dls.files(0)["fname"]}
    learner(dls, [SampleWeights(weights), record]).fit(1)
    for targ, w, _, loss, logits in record.trained:
        assert w.shape == ((16, 10) if per_tag else (16,))
        each = F.binary_cross_entropy_with_logits(logits, targ, reduction="none")
        assert loss == pytest.approx(float((each * w).mean() if per_tag else (each.mean(1) * w).mean()), rel=1e-5)


def test_clips_of_weight_zero_have_no_effect(dls):
    """Clips of weight 0 have wrong labels in one of the two fits."""
    names = set(dls.files(0)["fname"][::2])

    class WrongLabels(Callback):
        order = -3

        def before_batch(self):
            if self.training:
                self.learn.yb = (torch.where(self.learn.loss_func.sample_weight[:, None] > 0, self.y, 1 - self.y),)

    weights = {}
    for wrong in (False, True):
        torch.manual_seed(0)
        dls.train.rng.seed(0)
        learn = learner(dls, [SampleWeights(dict.fromkeys(names, 0.0)), *([WrongLabels()] if wrong else [])])
        learn.fit(1, 1e-2)
        weights[wrong] = learn.model.head.weight
    torch.testing.assert_close(weights[False], weights[True], rtol=0, atol=0)


@pytest.mark.parametrize("loss", LOSSES.names())
def test_every_registered_loss_uses_the_weights(dls, loss):
    whole, half = RecordLoss(), RecordLoss()
    for record, weights in ((whole, None), (half, dict.fromkeys(dls.files(0)["fname"], 0.5))):
        torch.manual_seed(0)
        dls.train.rng.seed(0)
        learn = learner(dls, [record, SampleWeights(weights)], loss_func=loss)
        learn.fit(1, 0.0)
    assert [x[3] / 2 for x in whole.trained] == pytest.approx([x[3] for x in half.trained], rel=1e-5)


@pytest.mark.parametrize("partner", ["batch", "dataset"])
def test_weights_and_flags_are_mixed_with_the_labels(dls, partner):
    """Weights and flags are linear in the labels here, so mixed ones are the same functions of mixed labels."""
    files = dls.files(0)
    targ = multi_hot(files["labels"], dls.tags)
    slope = np.linspace(0.1, 1, 10)
    flagged = targ[:, 3] > 0
    cbs = SampleWeights(
        dict(zip(files["fname"], targ @ slope, strict=True)), noisy=set(files["fname"][flagged])
    )
    record = RecordLoss()
    learner(dls, [cbs, LinearMixUp(per="clip", partner=partner), record]).fit(1)
    for y, w, noisy, *_ in record.trained:
        np.testing.assert_allclose(w.numpy(), y.numpy() @ slope, rtol=1e-5)
        np.testing.assert_allclose(noisy.numpy(), y[:, 3].numpy(), atol=1e-6)
        assert ((y > 0) & (y < 1)).any()


def test_one_number_is_the_weight_of_noisy_clips_and_can_be_changed(dls):
    record = RecordLoss()
    noisy = SampleWeights(0.5)

    class Later(Callback):
        def before_epoch(self):
            self.learn.sample_weights.weights = 0.5 if self.epoch == 0 else 0.75

    learner(dls, [noisy, Later(), record]).fit(2)
    for i, (_, w, flags, *_) in enumerate(record.trained):
        weight = 0.5 if i < len(record.trained) // 2 else 0.75
        torch.testing.assert_close(w, torch.where(flags > 0, weight, 1.0))
    assert 0 < sum(float(x[2].sum()) for x in record.trained) < 16 * len(record.trained)


def test_the_columns_of_a_table_are_the_default(few_clips):
    data = load_dataset(few_clips)
    n = len(data.curated)
    table = data.curated.assign(weight=[str(0.25 * (i % 4)) for i in range(n)], noisy=["yes", "no"] * (n // 2))
    dls = FATDataLoaders.from_df(
        table,
        vocab=data.tags,
        fn_col="fname",
        path_col="path",
        label_col="labels",
        valid_pct=0.25,
        seed=0,
        crop_s=0.25,
        bs=8,
        num_workers=0,
        check_files=False,
    )
    learn = learner(dls, SampleWeights())
    w, noisy = learn.sample_weights.values()
    wanted = table.set_index("fname").loc[dls.files(0)["fname"]]
    assert w.tolist() == [float(x) for x in wanted["weight"]] and noisy.tolist() == [
        x == "yes" for x in wanted["noisy"]
    ]
    learn.fit(1)
    with pytest.raises(DataError, match="row 1: the column 'weight' is .*expected sample weights from 0 up"):
        FATDataLoaders.from_df(table.assign(weight="much"), fn_col="fname", path_col="path", label_col="labels")
    with pytest.raises(DataError, match="column 'noisy' holds 'rather'"):
        FATDataLoaders.from_df(table.assign(noisy="rather"), fn_col="fname", path_col="path", label_col="labels")


def test_curated_clips_have_weight_one_and_are_not_noisy(small_dls):
    record = RecordLoss()
    learner(small_dls, [SampleWeights(), record]).fit(1)
    assert all((w == 1).all() and (noisy == 0).all() for _, w, noisy, *_ in record.trained)


def test_validation_and_predictions_use_no_weights(dls, tmp_path):
    record = RecordLoss()
    learn = learner(dls, [SampleWeights(different_weights(dls)), record], path=tmp_path)
    learn.fit(1)
    assert record.validated and all(w is None and noisy is None and n == 1 for w, noisy, n in record.validated)
    assert learn.loss_func.sample_weight is None and learn.loss_func.noisy is None
    clips = dls.train.dataset
    for ds_idx in (0, 1):
        probs, targ = learn.get_preds(ds_idx=ds_idx)
        assert probs.shape == targ.shape == (len(dls.files(ds_idx)), 10)
        assert targ.tolist() == multi_hot(dls.files(ds_idx)["labels"], dls.tags).tolist()
    *_, losses = learn.get_preds(with_loss=True)
    assert losses.shape == (len(dls.valid_ds),)
    assert {score.tag for score in learn.predict(dls.files(1)["path"][0])} == set(dls.tags)
    assert learn.tta(n=1) is not None
    learn.lr_find(num_it=60, show_plot=False)
    learn.validate()
    learn.show_results(max_n=2)
    dls.show_batch(max_n=2)
    plt.close("all")
    assert dls.train.dataset is clips and len(dls.one_batch()) == 2


def test_a_learner_with_weights_is_exported(dls, tmp_path):
    learn = learner(dls, SampleWeights(0.5), path=tmp_path)
    learn.fit(1)
    learn.export("learner.pkl")
    assert (tmp_path / "learner.pkl").stat().st_size > 0
    learn.fit(1)


def test_after_an_error_in_training_predictions_are_as_before(dls):
    class Fails(Callback):
        def after_loss(self):
            if self.training and self.learn.model.training:
                raise RuntimeError("broken")

    learn, fails, clips = learner(dls, SampleWeights(different_weights(dls))), Fails(), dls.train.dataset
    with pytest.raises(RuntimeError, match="broken"):
        learn.fit(1, cbs=fails)
    assert learn.get_preds()[0].shape == (len(dls.valid_ds), 10)
    assert dls.train.dataset is clips and learn.loss_func.sample_weight is None


@pytest.mark.parametrize("weights, options, error, words", [
    ({"nobody.wav": 2.0}, {}, OptionError, "none of the 1 names with weights is a training clip"),
    (None, {"noisy": ["nobody.wav"]}, OptionError, "none of the 1 noisy names is a training clip"),
    (-0.5, {}, OptionError, r"is -0.5; expected numbers from 0 up"),
    ("nan", {}, OptionError, "is nan; expected numbers from 0 up"),
    ("three", {}, ShapeError, r"has shape \(3,\); expected one number, or one for each of the 10 tags"),
    ("rows", {}, OptionError, "expected numbers from 0 up"),
])
def test_invalid_weights_are_refused(dls, weights, options, error, words):
    name = dls.files(0)["fname"][0]
    weights = {
        "nan": {name: float("nan")},
        "three": {name: [1, 2, 3]},
        "rows": pd.Series({name: [1.0] * 9 + [-1.0]}),
    }.get(weights if isinstance(weights, str) else "", weights)
    with pytest.raises(error, match=words):
        learner(dls, SampleWeights(weights, **options)).fit(1)


def test_a_loss_that_accepts_no_weights_is_refused(dls):
    with pytest.raises(OptionError, match="BCEWithLogitsLossFlat accepts no weights; take one of LOSSES"):
        learner(dls, SampleWeights(), loss_func=BCEWithLogitsLossFlat()).fit(1)
