"""The best weights of several stages, compared across fits, learners and processes."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from safetensors.torch import load_file

from fatai.callbacks.checkpoint import BestOfStages
from fatai.errors import CheckpointError
from fatai.experiment.recipe import load_recipe
from fatai.experiment.run import run_recipe
from fatai.inference.learner import fat_learner
from fatai.models.checkpoint import read_metadata, save_weights

pytestmark = pytest.mark.usefixtures("no_reference")


class Scores(Callback):
    """Replaces training: the weights equal the number of the epoch, and the scores are given."""

    order = 51  # after the recorder, before the checkpoint callback

    def __init__(self, scores, offset):
        self.scores, self.offset = scores, offset

    def before_batch(self):
        self.learn.xb = (self.xb[0][:2],)
        self.learn.yb = (self.yb[0][:2],)

    def after_epoch(self):
        with torch.no_grad():
            next(self.learn.model.parameters()).fill_(self.offset + self.epoch)
        self.learn.recorder.values[-1][self.recorder.metric_names[1:].index("lwlrap")] = self.scores[self.epoch]


@pytest.fixture
def fit(small_dls, tmp_path):
    learn = fat_learner(small_dls, "m1", width=0.05, path=tmp_path)

    def fit_it(k, scores, *, load, before=True, after=True):
        """Fit stage k with these scores; return the value of the weights afterwards."""
        best = BestOfStages(
            tmp_path / f"until_{k - 1}.safetensors" if before else None,
            tmp_path / f"until_{k}.safetensors" if after else None,
            load=load,
            fname=f"stage_{k}",
        )
        with learn.no_bar(), learn.no_logging():
            learn.fit(len(scores), 1e-9, cbs=[Scores(scores, 10 * k), best])
        return float(next(learn.model.parameters()).flatten()[0].detach())

    return fit_it


def first_weight(path):
    return float(
        next(v for k, v in sorted(load_file(path).items()) if v.unique().numel() == 1 and v.ndim == 4).flatten()[0]
    )


def test_the_best_weights_of_all_stages_are_loaded_and_the_last_weights_continue(fit, tmp_path):
    assert fit(0, [0.3, 0.7, 0.5], load=False, before=False) == 2, "the last epoch's, though the second was best"
    assert read_metadata(tmp_path / "until_0.safetensors") == {"best": "0.7"}
    assert fit(1, [0.6, 0.65], load=True) == 1, "no epoch was better than the second of the first stage"
    assert fit(2, [0.6, 0.8], load=True, after=False) == 21
    assert not (tmp_path / "until_2.safetensors").exists()


def test_a_file_without_a_score_is_refused(fit, small_dls, tmp_path):
    save_weights(tmp_path / "until_0.safetensors", torch.nn.Linear(1, 1), {})
    with pytest.raises(CheckpointError, match="holds no score of its weights"):
        fit(1, [0.5], load=True)


def test_stages_whose_best_weights_are_tracked():
    ninth = load_recipe("ninth_full")
    assert [ninth.tracks_best(k) for k in range(4)] == [False, True, True, False]
    assert not any(load_recipe("fastai_kernel").tracks_best(k) for k in range(6))


@pytest.fixture
def recipe(tiny_recipe):
    """A fit that ends with its last weights, and two refits with the best weights overall, in a round of their own."""
    plain = tiny_recipe.override(epochs=2).model_dump()
    stage = {**plain["stages"][0], "augment": (), "bs": 8}
    stages = (
        {**stage, "name": "fit", "checkpoint": "last", "noisy_labels": {"method": "as_given"}},
        {**stage, "name": "refit 1", "checkpoint": "best_overall", "lr": 1e-5},
        {**stage, "name": "refit 2", "checkpoint": "best_overall", "lr": 1e-5},
    )
    return type(tiny_recipe).model_validate({**plain, "stages": stages})


def test_a_killed_run_ends_with_the_same_best_weights(recipe, few_clips, tmp_path, monkeypatch):
    def run(out, **options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return run_recipe(
                few_clips,
                recipe,
                tmp_path / out,
                run_folds=[0],
                predict_test=False,
                num_workers=0,
                log=lambda line: None,
                **options,
            )

    run("whole")
    history = pd.read_csv(tmp_path / "whole" / "fold_0" / "history.csv")
    assert list(history["stage"]) == ["fit"] * 2 + ["refit 1"] * 2 + ["refit 2"] * 2

    class KilledError(Exception):
        pass

    from fatai.experiment import stage as stage_module

    built, fits = stage_module.EpochCSVLogger, []

    class Breaking(built):
        """Raises in the first fit of each process, one epoch later each time."""

        def after_epoch(self):
            super().after_epoch()
            if len(fits) < 3:
                fits.append(self.stage)
                raise KilledError(self.stage)

    monkeypatch.setattr(stage_module, "EpochCSVLogger", Breaking)
    for _ in range(3):
        with pytest.raises(KilledError):
            run("broken", resume=True)
    run("broken", resume=True)
    for name in ("fold_0/model.safetensors", "oof.csv", "fold_0/history.csv"):
        whole, broken = ((tmp_path / out / name) for out in ("whole", "broken"))
        if name.endswith("history.csv"):
            read = [pd.read_csv(p).drop(columns="seconds") for p in (whole, broken)]
            pd.testing.assert_frame_equal(*read)
        else:
            assert whole.read_bytes() == broken.read_bytes(), name
    assert {f.name for f in (tmp_path / "broken" / "fold_0").iterdir()} == {
        "model.safetensors",
        "history.csv",
        "oof.csv",
        "fold.json",
    }
    kept = load_file(tmp_path / "whole" / "fold_0" / "model.safetensors")
    assert all(np.isfinite(v.numpy()).all() for v in kept.values())
