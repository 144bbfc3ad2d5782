"""Every kind of recipe stage in two processes gives what one process gives."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from helpers.processes import in_processes

from fatai.data.datasets.fat2019 import fat_sample, load_dataset
from fatai.experiment.recipe import Recipe
from fatai.experiment.run import run_recipe
from fatai.inference.predictions import Predictions

pytestmark = pytest.mark.slow

# Plain gradient descent: Adam divides by gradients that are rounding errors in the first steps.
FIT = {"name": "fit", "epochs": 2, "bs": 6, "lr": 0.05, "optimizer": "sgd", "wd": 0.0}
NOISY = {**FIT, "name": "noisy", "epochs": 1}
M1, MN04 = {"arch": "m1", "width": 0.05}, {"arch": "mn04"}

KINDS = {
    "fit": (M1, [FIT]),
    "accumulated gradients and averaged weights": (M1, [{**FIT, "grad_accum": 2, "ema_decay": 0.5}]),
    # Few draws: with every step the differences by rounding grow.
    "shuffled clips, drawn anew": (M1, [{**FIT, "sampling_options": {"n": 6}}]),
    "balanced sampling": (M1, [{**FIT, "sampling": "balanced", "sampling_options": {"n": 6}}]),
    "all noisy clips, with a weight": (
        M1, [{**FIT, "noisy_labels": {"method": "as_given"}, "noisy_sample_weight": 0.5}]
    ),
    "drawn from curated and noisy clips": (
        M1,
        [{
            **FIT, "noisy_labels": {"method": "as_given"}, "sampling": "mixture",
            "sampling_options": {"n": 6, "weights": {"curated": 0.5, "noisy": 0.5}},
        }],
    ),
    "noisy clips of low loss": (M1, [FIT, {**NOISY, "noisy_labels": {"method": "ninth_place_low_loss"}}]),
    "pseudo-labels": (M1, [FIT, {**NOISY, "reinit": True, "noisy_labels": {"method": "relabelall"}}]),
    "distillation": (M1, [{**FIT, "teacher": "TEACHER", "teacher_clips": "noisy"}]),
    "fine-tuning in groups of layers": (MN04, [{**FIT, "epochs": 1, "lr_min": 0.005, "freeze_bn": True}]),
    "fine-tuning with layer decay": (MN04, [{**FIT, "epochs": 1, "layer_decay": 0.7}]),
    "linear probe": (MN04, [{"name": "probe", "epochs": 1, "bs": 6, "linear_probe": {"C": 0.01, "max_iter": 1000}}]),
}


def recipe(kind, teacher=None):
    """Return a recipe of one kind of stage whose crops are longer than every clip, so that they are not random."""
    model, stages = KINDS[kind]
    stages = [{**stage, **({"teacher": str(teacher)} if "teacher" in stage else {})} for stage in stages]
    return Recipe(
        name="kind", precision="fp32", clips={"crop_s": 4.0, "pad_mode": "constant_right"},
        folds={"n": 2, "splitter": "kfold"}, model=model, stages=stages, tta={"views": "even", "n": 1},
    )


def run(kind, out, run_folds, teacher):
    """Run a recipe of a kind on a few clips without dropout, whose random numbers each process draws for itself."""
    from torch.nn import functional

    data = load_dataset(fat_sample())
    few = replace(
        data, curated=data.curated.iloc[::6].reset_index(drop=True), test=data.test.iloc[:0],
        noisy=data.noisy.iloc[::8].reset_index(drop=True),
    )
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(functional, "dropout", lambda x, *args, **kwargs: x)
        result = run_recipe(few, recipe(kind, teacher), out, run_folds=run_folds, num_workers=0, log=lambda line: None)
    return result.oof_score


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    out = tmp_path_factory.mktemp("teacher") / "run"
    run("fit", out, None, None)
    return out


@pytest.mark.parametrize("run_folds", [None, [0]], ids=["folds of their own", "shared batches"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_give_what_one_gives(kind, run_folds, teacher, tmp_path):
    score = run(kind, tmp_path / "one", run_folds, teacher)
    scores = in_processes(2, run, kind, tmp_path / "two", run_folds, teacher, timeout_s=600)
    assert scores[0] == scores[1]
    one, two = (Predictions.from_csv(tmp_path / name / "oof.csv") for name in ("one", "two"))
    assert two.fnames == one.fnames
    if run_folds is None:
        assert scores[0] == score
        np.testing.assert_array_equal(two.probs, one.probs)
    else:
        np.testing.assert_allclose(two.probs, one.probs, atol=1e-3)
