"""Learners that start from published weights: the option, the front end that belongs to them, tags of one's own."""

import warnings
from types import SimpleNamespace

import fastai.callback.schedule  # noqa: F401 - gives learners fine_tune
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from helpers.weights import published_mn04

from fatai.callbacks.batch_norm import FreezeBatchNorm
from fatai.data.blocks import FATDataLoaders
from fatai.errors import OptionError
from fatai.inference.learner import fat_learner
from fatai.models import create_model
from fatai.models.checkpoint import save_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a file that has the name of the published one of mn04, and random weights."""
    folder = tmp_path_factory.mktemp("weights")
    save_checkpoint(folder / "mn04_as_mAP_432.pt", create_model("mn04", 527).state_dict())
    return folder


def loaders(sample, front_end):
    return FATDataLoaders.from_path(
        sample, front_end=front_end, crop_s=1, bs=16, valid_pct=0.25, seed=0, num_workers=0, check_files=False
    )


def messages(dls, *args, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learn = fat_learner(dls, *args, **options)
    return learn, [str(w.message) for w in caught if "trained on the front end" in str(w.message)]


def test_the_body_is_that_of_the_file_and_the_last_layer_new(sample, folder):
    file = folder / "mn04_as_mAP_432.pt"
    learn, warned = messages(loaders(sample, "efficientat"), "mn04", pretrained=file)
    published = torch.load(file, weights_only=True)
    state = learn.model.state_dict()
    assert all(torch.equal(published[k], state[k].cpu()) for k in published if not k.startswith("classifier.5."))
    assert state["classifier.5.weight"].shape == (len(learn.tags), 512) and not warned


def test_loaders_of_another_front_end_bring_a_warning_that_names_both(sample, folder, small_dls):
    file = folder / "mn04_as_mAP_432.pt"
    _, warned = messages(small_dls, "mn04", pretrained=file)
    assert len(warned) == 1
    assert "mn04_as were trained on the front end efficientat (32000 Hz, 128 rows, 10 ms per frame)" in warned[0]
    assert 'spectrograms are of ninth (44100 Hz, 64 rows' in warned[0] and 'front_end="efficientat"' in warned[0]
    assert not messages(small_dls, "mn04")[1], "without weights any front end is right"


def test_a_file_that_is_not_a_published_one_belongs_to_no_front_end(small_dls, folder, tmp_path):
    (tmp_path / "mine.pt").write_bytes((folder / "mn04_as_mAP_432.pt").read_bytes())
    assert not messages(small_dls, "mn04", pretrained=tmp_path / "mine.pt")[1]


def test_networks_without_published_weights_are_named(small_dls):
    with pytest.raises(OptionError, match="pretrained=True with m1, .* are no .*: mn04, mn05, .*timm:NAME"):
        fat_learner(small_dls, "m1", pretrained=True)
    with pytest.raises(OptionError, match="with a network of your own"):
        fat_learner(small_dls, create_model("m1", 80, width=0.125), pretrained=True)


def test_a_learner_starts_from_the_published_file(sample, monkeypatch):
    monkeypatch.setenv("FATAI_WEIGHTS", str(published_mn04()))
    learn, warned = messages(loaders(sample, "efficientat"), "mn04", pretrained=True)
    assert not warned and learn.model.pretrained.initialized == ("classifier.5.weight", "classifier.5.bias")


def batch_norms(model):
    return [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]


class NoteModes(Callback):
    """Note a batch's modes of batch norms and which layer groups have gradients, then end the fit."""

    def __init__(self):
        self.seen = []

    def after_backward(self):
        groups = self.model.layer_groups()
        trained = [any(p.grad is not None and bool(p.grad.any()) for p in group) for group in groups]
        self.seen.append(({m.training for m in batch_norms(self.model)}, trained))

    def after_batch(self):
        raise CancelFitException


@pytest.mark.parametrize("train_bn", [False, True])
def test_fine_tune_keeps_the_batch_norms_of_published_weights_unless_they_shall_be_trained(sample, folder, train_bn):
    options = {"train_bn": True} if train_bn else {}
    learn, _ = messages(loaders(sample, "efficientat"), "mn04", pretrained=folder / "mn04_as_mAP_432.pt", **options)
    learn.logger = lambda row: None
    stored, batch = [m.running_mean.clone() for m in batch_norms(learn.model)], NoteModes()
    with learn.no_bar():
        learn.fine_tune(1, cbs=batch)
    # First with the body frozen, then all of it; fastai never freezes batch norms with train_bn.
    assert batch.seen == [({train_bn}, [train_bn, True]), ({train_bn}, [True, True])]
    same = [torch.equal(a, m.running_mean) for a, m in zip(stored, batch_norms(learn.model), strict=True)]
    assert all(same) is not train_bn


def test_the_batch_norms_of_a_new_head_are_trained():
    body, head = (torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)) for _ in range(2))
    callback = FreezeBatchNorm()
    callback.learn = SimpleNamespace(
        model=torch.nn.Sequential(body, head).train(),
        opt=SimpleNamespace(param_lists=[list(body.parameters()), list(head.parameters())]),
    )
    callback.before_train()
    assert not body[1].training and head[1].training and body[0].training


def test_published_weights_are_of_the_published_width(sample, folder):
    with pytest.raises(OptionError, match="the width is 0.5, and the published weights mn04_as are of width 1"):
        fat_learner(loaders(sample, "efficientat"), "mn04", pretrained=folder / "mn04_as_mAP_432.pt", width=0.5)
