"""`FatLearner`: its methods are its own, and are there without `fatai.all`."""

import subprocess
import sys

import pytest

from fatai.errors import OptionError
from fatai.inference.learner import FatLearner, fat_learner
from fatai.registry import EXPORTS, REPORTS
from fatai.training.learner import TagLearner

METHODS = (
    "embed", "get_tta_preds", "plot_filters", "plot_lwlrap", "plot_top_losses", "predict", "report", "save_pretrained",
    "show_cam", "tta",
)


def test_the_top_name_loads_the_methods_but_not_all():
    code = (
        "import sys; from fatai import fat_learner; from fatai.inference.learner import FatLearner; "
        f"assert 'fatai.all' not in sys.modules; assert all(name in vars(FatLearner) for name in {METHODS})"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


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
