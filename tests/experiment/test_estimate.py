"""Estimates of a run before it starts."""

import dataclasses
import warnings

import pytest
import torch

from fatai.data.background import find_background, write_background
from fatai.data.datasets.fat2019 import load_dataset
from fatai.errors import OptionError
from fatai.experiment import estimate as estimate_module
from fatai.experiment.ensemble_recipe import load_ensemble
from fatai.experiment.ensemble_run import member_recipes
from fatai.experiment.estimate import (
    RunEstimate,
    StageEstimate,
    estimate_run,
    fits_budget,
    load_note,
    measure_costs,
    seconds_of,
)
from fatai.experiment.recipe import load_recipe
from fatai.experiment.scaling import scale_recipe
from fatai.models import count_parameters, create_model


@pytest.fixture(scope="module")
def estimate(sample):
    recipe = scale_recipe(load_recipe("ninth_full"), "tiny", n_noisy=72).override(epochs=3, bs=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return estimate_run(load_dataset(sample), recipe, num_workers=0, steps=1)


def test_steps_and_clips_are_counted_by_hand(estimate):
    # 120 curated clips in two folds; 5,000 of 19,815 noisy ones are 18 of 72.
    assert [(s.name, s.epochs, s.clips, s.steps, s.bs) for s in estimate.stages] == [
        ("curated", 3, 60, 7, 8), ("fit", 3, 78, 9, 8), ("refit 1", 3, 60, 7, 8), ("refit 2", 3, 60, 7, 8)]
    assert estimate.parameters == count_parameters(create_model("m3", 10, 1, width=1 / 16))
    assert estimate.folds == 2 and estimate.device in ("cpu", "cuda:0")


def test_time_and_memory_are_measured(estimate):
    curated, fit, refit, refit2 = (stage.seconds for stage in estimate.stages)
    assert 0 < curated < 60 and refit == refit2
    # The same kind of step, measured once: 9 steps and 7, with a third of a step for each of 60 / 8 batches that are
    # validated.
    assert fit / curated == pytest.approx((9 + 2.5) / (7 + 2.5))
    assert estimate.predict_s > 0 and estimate.memory > 2**26
    assert estimate.seconds == pytest.approx(2 * (curated + fit + 2 * refit + estimate.predict_s))


def test_the_table_and_the_sentence_about_the_budget():
    estimate = RunEstimate(
        "x", 26_129_489, 5, (StageEstimate("fit", 65, 62, 3971, 64, 3000.0),), 240.0, 3 * 2**30, "cuda:0"
    )
    assert str(estimate).splitlines() == [
        "x: 26,129,489 parameters, 5 folds, on cuda:0",
        "stage       epochs  steps  clips   bs   time of a fold",
        "fit             65     62   3971   64          0:50:00",
        "predicting                                    0:04:00",
        "all folds: at most 4:30:00, 3.0 GiB of memory",
    ]
    assert fits_budget(estimate.seconds, 9 * 3600) == "fits the budget of 9:00:00: 50% of it"
    assert fits_budget(estimate.seconds, 3 * 3600) == "does not fit the budget of 3:00:00: 150% of it"


def test_a_decision_on_noisy_clips_takes_all_folds_twice_and_the_deciding_one_alone():
    stage = StageEstimate("fit", 30, 100, 1600, 16, 20.0)
    estimate = RunEstimate("x", 1_600_000, 3, (stage,), 10.0, 2**30, "cpu", decides_on_noisy=True, decide_s=4.0)
    assert estimate.seconds == 2 * 3 * 30 + 3 * 4
    # Three folds at once, the first with noisy clips, then the two others.
    assert estimate.seconds_with(3) == 3 * 30 + 2 * 4


@pytest.mark.parametrize("text", ["", "9", "h", "9 h", "-1h", "0s", "1x"])
def test_an_invalid_time_limit_is_refused(text):
    with pytest.raises(OptionError, match="such as 9h, 90m or 1h30m"):
        seconds_of(text)


def test_a_dry_run_writes_nothing(main_with, sample, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = main_with(
        "run", sample, "--recipe", "first_place", "--scale", "tiny", "--dry-run", "--time-limit", "9h", "--fold", 1
    )
    assert ended.returncode == 0, ended.stderr
    assert (
        "1 folds" in ended.stdout
        and "fits the budget of 9:00:00" in ended.stdout
        and "epoch" in ended.stdout.splitlines()[1]
    )
    assert not list(tmp_path.iterdir())


@pytest.fixture
def probe(tmp_path):
    """The recipe probe with a narrow pretrained network in three folds."""
    path = tmp_path / "Cnn6.pth"
    torch.save({"model": create_model("cnn6", 527, 1, width=0.125).state_dict()}, path)
    plain = load_recipe("panns_logreg").override(arch="cnn6", width=0.125, n_folds=3, crop_s=1.0).model_dump()
    plain["model"]["options"] = {"pretrained": str(path)}
    return type(load_recipe("panns_logreg")).model_validate(plain)


@pytest.mark.parametrize("has_weights", [True, False], ids=["weights", "random"])
@pytest.mark.parametrize("predict_test", [True, False], ids=["test", "no_test"])
def test_a_frozen_network_embeds_each_clip_once_for_all_folds(
    probe, few_clips, monkeypatch, has_weights, predict_test
):
    monkeypatch.setattr(estimate_module, "_tta_seconds", lambda fold: 1.0)
    if not has_weights:
        probe = probe.override(values={"model.options": {}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = estimate_run(load_dataset(few_clips), probe, predict_test=predict_test, num_workers=0)
    n_test = 20 * predict_test
    assert found.folds == 3
    if has_weights:
        assert found.seconds == found.embed_s == 40 + n_test and "embedding" in str(found)
    else:  # each fold has another network, which embeds its 26 or 27 training clips, and predicts the others
        assert found.seconds == 3 * (40 + n_test) and not found.embed_s


def test_background_that_a_fold_trains_on_is_counted_and_unreadable_one_left_out(few_clips, tiny_recipe, tmp_path):
    write_background(tmp_path / "background", seconds=1, sr=8000, n=2, kinds=["hiss", "rain"])
    (tmp_path / "background" / "broken.wav").write_bytes(b"RIFF")
    data = dataclasses.replace(load_dataset(few_clips), background=find_background(tmp_path))
    with pytest.warns(UserWarning, match="1 sounds of background cannot be read"):
        found = estimate_run(data, tiny_recipe, predict_test=False, num_workers=0, steps=1)
    assert [stage.clips for stage in found.stages] == [20 + 2]


def test_the_load_is_noted_beside_what_was_measured(few_clips, tiny_recipe, monkeypatch):
    monkeypatch.setattr(estimate_module, "load_average", lambda: 3.0)
    monkeypatch.setattr(estimate_module, "available_cores", lambda: 2)
    costs = measure_costs(load_dataset(few_clips), tiny_recipe, num_workers=0, steps=1)
    assert costs.load == 3.0
    assert load_note(3.0) == (
        "measured at a load of 3.0 on 2 cores: other programs made it slower, and without them it takes less"
    )
    estimate = RunEstimate("x", 1, 2, (StageEstimate("fit", 1, 1, 1, 1, 1.0),), 1.0, 2**30, "cpu", load=3.0)
    assert load_note(3.0) in str(estimate) and load_note(0.4) == ""


def test_a_dry_run_estimates_what_is_trained_of_the_test_and_of_a_scaled_ensemble(main_with, sample, monkeypatch):
    estimated = []

    def estimate(data, recipe, **options):
        estimated.append((recipe, options["predict_test"]))
        return RunEstimate(recipe.name, 1, 1, (StageEstimate("fit", 1, 1, 1, 1, 1.0),), 1.0, 1, "cpu")

    monkeypatch.setattr("fatai.experiment.estimate.estimate_run", estimate)
    ended = main_with("run", sample, "--recipe", "quick", "--dry-run", "--no-predict")
    assert ended.returncode == 0 and [predicts for _, predicts in estimated] == [False], ended.stderr
    estimated.clear()
    name = "ensembles/third_place"
    ended = main_with("run", sample, "--recipe", name, "--scale", "small", "--dry-run")
    assert ended.returncode == 0, ended.stderr
    data = load_dataset(sample)
    trained = member_recipes(
        load_ensemble(name), scale="small", n_noisy=len(data.noisy), n_curated=len(data.curated)
    )
    assert [recipe for recipe, _ in estimated] == list(trained.values())
