"""`FatLearner`: its methods are its own, and are there without `fatai.all`."""

import pytest

from fatai.errors import OptionError
from fatai.inference.learner import FatLearner, fat_learner
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
