"""`FatLearner`: its methods are its own, and are there without `fatai.all`."""

import numpy as np
import pytest
import torch
from fastai.learner import load_learner

from fatai.ensemble.ensemble import ensemble
from fatai.errors import DataError, OptionError
from fatai.export.onnx import export_onnx
from fatai.inference.learner import FatLearner, fat_learner
from fatai.models import create_model
from fatai.registry import EXPORTS, REPORTS
from fatai.training.learner import TagLearner

METHODS = (
    "embed", "get_tta_preds", "plot_filters", "plot_lwlrap", "plot_top_losses", "predict", "report", "save_pretrained",
    "show_cam", "tta",
)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_documented(name):
    assert vars(FatLearner)[name].__doc__ and name not in vars(TagLearner)


def test_model_folders_and_reports_come_from_their_registries(small_dls, tmp_path):
    learn = fat_learner(small_dls, "m1", width=0.125, precision="fp32")
    assert "folder" in EXPORTS and "learner" in REPORTS
    assert learn.save_pretrained(tmp_path / "model") == tmp_path / "model"
    with pytest.raises(OptionError, match="average is 'mean'"):
        learn.predict(small_dls.files(1)["path"][0], average="mean")
    assert learn.activation == learn.loss_func.activation and learn.clip_config is small_dls.clip_config


@pytest.mark.parametrize("arch, options, message", [
    (create_model("m1", 3, width=0.125), {}, "has 3 tags and the loaders 10; make loaders with the"),
    (create_model("m1", 10, width=0.125), {"width": 0.5}, "width is 0.5 with a network of your own"),
    (create_model("m1", 10, width=0.125), {"arch_options": {"width": 2}}, "which is built: leave them out"),
    (3, {}, "arch is of type int; expected a name, a module, or a function"),
], ids=["tags", "width", "options", "number"])
def test_a_network_that_does_not_suit_the_loaders_is_refused_before_the_fit(arch, options, message, small_dls):
    with pytest.raises(OptionError, match=message):
        fat_learner(small_dls, arch, **options)


@pytest.fixture(scope="module")
def learn(small_dls):
    """A learner of a tiny network without training."""
    return fat_learner(small_dls, "m1", width=0.125, precision="fp32")


@pytest.mark.parametrize("item, message", [
    (np.full(8000, np.nan), "the samples hold NaN or infinity"), (torch.full((8000,), torch.inf), "NaN or infinity"),
    (["a.wav", "b.wav"], r"the item is of type list; .* tta\(items=\[...\]\) predicts several"),
    (None, "the item is of type NoneType; expected the path of a sound"), (b"RIFF", "the item is of type bytes"),
], ids=["nan", "infinity", "list", "none", "bytes"])
def test_what_is_neither_a_path_nor_samples_is_named(item, message, learn):
    with pytest.raises(OptionError, match=message):
        learn.predict(item)


def test_a_folder_of_clips_is_predicted(learn, few_clips, tmp_path):
    preds = learn.tta(items=few_clips / "test", n=1)
    assert len(preds.fnames) == 20 and not preds.unreadable
    with pytest.raises(DataError, match="there are no sound files below"):
        learn.tta(items=tmp_path)


def test_predictions_of_a_loaded_learner_need_clips(learn, tmp_path):
    learn.export(tmp_path / "learn.pkl")
    with pytest.raises(DataError, match="the loaders have no clips, as those of a learner that was exported"):
        load_learner(tmp_path / "learn.pkl").tta()


def test_a_learner_in_place_of_predictions_or_of_a_model_is_named(learn, tmp_path):
    with pytest.raises(OptionError, match=r"predictions 1 are of type FatLearner; expected Predictions, as learn.tta"):
        ensemble([learn, learn])
    with pytest.raises(OptionError, match=r"the model is of type FatLearner; .*load_pretrained\(learn.save_pretrained"):
        export_onnx(learn, tmp_path / "model.onnx")
