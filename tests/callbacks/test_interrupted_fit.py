"""A fit that an exception ends in the middle of an epoch leaves the learner as it was before it."""

import importlib
import pkgutil

import pytest
import torch
import torch.distributed as dist
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.progress import ProgressCallback
from torch import nn

import fatai
from fatai.augment.base import Augmentation, AugmentBatch, BatchAugmentation, SpecAugmentation, TrainOnlyCallback
from fatai.augment.item import ItemAugmentations
from fatai.augment.mixup import LinearMixUp
from fatai.augment.spec_augment import SpecAugment
from fatai.augment.wave import Gain
from fatai.callbacks.augmentation import DisableAugmentation
from fatai.callbacks.averaging import WeightAverage
from fatai.callbacks.batch_norm import FreezeBatchNorm
from fatai.callbacks.checkpoint import BestOfStages, SaveBestModel, SaveSnapshots
from fatai.callbacks.csv_logger import EpochCSVLogger
from fatai.callbacks.failure import SplitBatchOnOOM, TerminateOnNaN
from fatai.callbacks.gradients import ClipGradValue
from fatai.callbacks.progress import PlainProgress
from fatai.callbacks.resume import ResumeTraining
from fatai.callbacks.sample_weights import SampleWeights
from fatai.callbacks.schedulers import LRSchedulerCallback, StopAtLR
from fatai.callbacks.trackers import LogTagScores, MLflowCallback
from fatai.data.blocks import FATDataLoaders
from fatai.distributed import ProcessGroup
from fatai.inference.learner import fat_learner
from fatai.training.data_parallel import DistributedCallback
from fatai.training.lr_finder import _BatchProgress
from fatai.training.precision import MixedOnCPU, MixedOnCUDA

CALLBACKS = {
    "DisableAugmentation": lambda path: [DisableAugmentation(1), SpecAugment(), ItemAugmentations(Gain(p=1.0))],
    "WeightAverage": lambda path: [WeightAverage()],
    "SpecAugment": lambda path: [SpecAugment()],
    "SpecAugment behind bn0": lambda path: [SpecAugment(domain="bn0")],
    "Gain": lambda path: [Gain(p=1.0)],
    "ItemAugmentations": lambda path: [ItemAugmentations(Gain(p=1.0))],
    "LinearMixUp": lambda path: [LinearMixUp()],
    "FreezeBatchNorm": lambda path: [FreezeBatchNorm()],
    "LogTagScores": lambda path: [LogTagScores(lambda scores, step: None)],
    "SampleWeights": lambda path: [SampleWeights(0.5)],
    "SampleWeights and LinearMixUp": lambda path: [SampleWeights(0.5), LinearMixUp()],
    "BestOfStages": lambda path: [BestOfStages(None, path / "best")],
    "SaveBestModel": lambda path: [SaveBestModel()],
    "SaveSnapshots": lambda path: [SaveSnapshots(1)],
    "EpochCSVLogger": lambda path: [EpochCSVLogger(path / "history.csv")],
    "SplitBatchOnOOM": lambda path: [SplitBatchOnOOM()],
    "TerminateOnNaN": lambda path: [TerminateOnNaN()],
    "ClipGradValue": lambda path: [ClipGradValue(1.0)],
    "PlainProgress": lambda path: [PlainProgress()],
    "ProgressCallback": lambda path: [ProgressCallback()],
    "ResumeTraining": lambda path: [ResumeTraining(path / "state.pt")],
    "LRSchedulerCallback": lambda path: [LRSchedulerCallback(lambda t: 0.01)],
    "StopAtLR": lambda path: [StopAtLR()],
    "MixedOnCPU": lambda path: [MixedOnCPU()],
    "MixedOnCUDA": lambda path: [MixedOnCUDA()],
    "_BatchProgress": lambda path: [_BatchProgress(100)],
    "DistributedCallback": lambda path: [DistributedCallback(ProcessGroup(), sync_bn=False)],
}


@pytest.fixture(scope="module")
def dls(few_clips, clip_cache):
    return FATDataLoaders.from_path(
        few_clips, crop_s=0.25, bs=4, seed=0, num_workers=0, check_files=False, cache="wave", cache_dir=clip_cache
    )


@pytest.fixture
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Net(nn.Module):
    def __init__(self, n_tags, in_channels):
        super().__init__()
        self.bn0, self.head = nn.BatchNorm2d(64), nn.Linear(64, n_tags)

    def forward(self, spec):
        return self.head(self.bn0(spec.transpose(1, 2)).mean((2, 3)))


class Stop(Callback):
    """Raise in the second training batch, before or after all other callbacks at that event."""

    def __init__(self, error, event, order):
        self.order = order
        setattr(self, event, self._stop)
        self.error = error

    def _stop(self):
        if self.learn.training and self.learn.iter == 1:
            raise self.error


def learner_state(learn):
    """All that callbacks of a fit change beside weights, the optimizer and their own counters."""
    loader, loss = learn.dls.train, learn.loss_func
    return {
        "loaders": [(id(dl), type(dl), id(dl.dataset)) for dl in learn.dls.loaders],
        "transforms": [
            [id(f) for f in getattr(loader, name).fs] for name in ("after_item", "before_batch", "after_batch")
        ],
        "own get_idxs": "get_idxs" in vars(loader) and callable(vars(loader)["get_idxs"]),
        "loss": (id(loss), loss.reduction, loss.sample_weight, loss.noisy),
        "recorded loss": type(vars(learn.recorder)["loss"]),
        "logger": learn.logger,
        "model": (id(learn.model), "forward" in vars(learn.model)),
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in learn.model.modules()],
        "active": [cb.active for cb in learn.cbs if isinstance(cb, Augmentation)],
        "run": [cb.run for cb in learn.cbs if not isinstance(cb, AugmentBatch)],
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")),
        "gradients": [p.grad is not None and bool(p.grad.any()) for p in learn.model.parameters()],
        "training": learn.training,
        "batch": (learn.xb, learn.yb, learn.pred),
    }


@pytest.mark.parametrize("within", ["fit", "learner"])
@pytest.mark.parametrize("name", CALLBACKS)
def test_an_interrupted_fit_leaves_the_learner_as_it_was(dls, tmp_path, name, within, request):
    if name == "DistributedCallback":
        request.getfixturevalue("process_group")
    cbs = CALLBACKS[name](tmp_path)
    learn = fat_learner(dls, Net, precision="fp32", path=tmp_path, cbs=cbs if within == "learner" else None)
    learn.remove_cbs([cb for cb in learn.cbs if isinstance(cb, ProgressCallback) and cb not in cbs])
    learn.logger = quiet
    learn._end_cleanup()
    before = learner_state(learn)
    for event, order in (("before_batch", -50), ("after_pred", -50), ("after_loss", 200), ("before_step", 200)):
        with pytest.raises(KeyboardInterrupt):
            learn.fit(1, 1e-3, cbs=[*(cbs if within == "fit" else ()), Stop(KeyboardInterrupt(), event, order)])
        assert learner_state(learn) == before, event
    assert all(getattr(cb, "active", True) for cb in cbs)


def quiet(row):
    """Log nothing."""


def test_a_cancelled_fit_leaves_the_learner_as_it_was(dls):
    """fastai calls `after_cancel_train` for a `CancelTrainException` alone."""
    learn = fat_learner(
        dls, Net, precision="fp32", cbs=[SampleWeights(0.5), ItemAugmentations(Gain(p=1.0)), LinearMixUp()]
    )
    learn.logger = quiet
    learn._end_cleanup()
    before = learner_state(learn)
    with learn.no_bar():
        learn.fit(1, 1e-3, cbs=Stop(CancelFitException(), "after_loss", 200))
    after = learner_state(learn)
    for what in ("loaders", "transforms", "loss", "hooks"):
        assert after[what] == before[what], what


def test_the_gradient_of_an_interrupted_batch_is_not_in_the_next_step(dls):
    learn = fat_learner(dls, Net, precision="fp32")
    with learn.no_bar(), learn.no_logging(), pytest.raises(KeyboardInterrupt):
        learn.fit(1, 1e-3, cbs=Stop(KeyboardInterrupt(), "before_step", 200))
    assert not any(p.grad is not None and p.grad.any() for p in learn.model.parameters())


def test_the_error_that_ended_the_fit_is_raised_though_a_callback_cannot_undo_its_changes(dls):
    class Broken(Callback):
        def after_cancel_fit(self):
            raise ValueError("broken")

    weights = SampleWeights(0.5)
    learn = fat_learner(dls, Net, precision="fp32", cbs=weights)
    dataset = learn.dls.train.dataset
    with learn.no_bar(), learn.no_logging(), pytest.warns(UserWarning, match="Broken could not undo"):
        with pytest.raises(KeyboardInterrupt):
            learn.fit(1, 1e-3, cbs=[Broken(), Stop(KeyboardInterrupt(), "after_loss", 200)])
    assert learn.dls.train.dataset is dataset


def test_autocast_of_a_gpu_ends_with_an_interrupted_batch():
    events = []

    class Autocast:
        def __enter__(self):
            events.append("enter")

        def __exit__(self, *error):
            events.append("exit")

    mixed = MixedOnCUDA()
    mixed.autocast = Autocast()
    mixed.before_batch()
    mixed.after_cancel_batch()
    mixed.before_batch()
    mixed.after_loss()
    mixed.after_cancel_batch()
    assert events == ["enter", "exit", "enter", "exit"]
    assert isinstance(mixed, MixedPrecision) and mixed.name == "mixed_precision"


def callback_classes():
    """All public callbacks of the package; of augmentations, only the classes that act on the learner itself."""
    for module in pkgutil.walk_packages(fatai.__path__, "fatai."):
        if module.name.split(".")[1] in ("augment", "callbacks", "training"):
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, type) and issubclass(value, Callback) and value.__module__ == module.name:
                    yield value


def test_every_callback_is_interrupted_here(tmp_path):
    tested = {type(cb) for build in CALLBACKS.values() for cb in build(tmp_path)}
    bases = {AugmentBatch, Augmentation, BatchAugmentation, SpecAugmentation, TrainOnlyCallback}
    bases.add(MLflowCallback)  # it needs MLflow: test_trackers.py
    hooks = {f"{when}_{what}" for when in ("before", "after") for what in ("fit", "epoch", "train", "batch")}
    missing = {
        cls.__name__ for cls in callback_classes()
        if hooks & set(vars(cls)) and not any(issubclass(t, cls) for t in tested | bases)
    }
    assert not missing
