"""Scaled recipes: one rule for all, and all of them run from CSV to submission."""

import json
import warnings

import pytest

from fatai.errors import OptionError
from fatai.experiment.recipe import load_recipe, recipe_names
from fatai.experiment.run import run_recipe
from fatai.experiment.scaling import scale_recipe
from fatai.inference.predictions import check_submission

pytestmark = pytest.mark.usefixtures("no_reference")

QUICKEST = ("ninth", "kaggle_fat_36th")


@pytest.mark.parametrize("name", recipe_names())
def test_full_is_the_recipe_itself_and_the_others_follow_the_rule(name):
    recipe = load_recipe(name)
    assert scale_recipe(recipe, "full") is recipe
    for size, width, views in [("small", 1 / 4, 4), ("tiny", 1 / 16, 2)]:
        smaller = scale_recipe(recipe, size)
        is_pretrained = "pretrained" in recipe.model.options
        assert smaller.model.width == (None if is_pretrained else (recipe.model.width or 1) * width)
        predefined = recipe.folds.splitter == "predefined"
        assert (smaller.folds.n, smaller.folds.run_folds) == (5, (0, 1)) if predefined else smaller.folds.n == 2
        assert all(
            stage.bs <= 16 and 1 <= stage.epochs <= before.epochs
            for stage, before in zip(smaller.stages, recipe.stages, strict=True)
        )
        assert smaller.tta.n is None or smaller.tta.n <= views
        total = sum(stage.epochs for stage in smaller.stages)
        # Epochs are rounded for each stage, and none has less than one.
        assert (
            total == len(recipe.stages)
            if size == "tiny"
            else abs(total - min(40, sum(s.epochs for s in recipe.stages))) <= 4
        )
        assert [s.loss for s in smaller.stages] == [s.loss for s in recipe.stages]
        assert [s.augment for s in smaller.stages] == [s.augment for s in recipe.stages]


def test_epochs_are_divided_among_stages_and_lengths_shrink_with_them():
    ninth = scale_recipe(load_recipe("ninth_full"), "small", n_noisy=1982)
    assert [stage.epochs for stage in ninth.stages] == [10, 10, 10, 10]
    assert ninth.stages[1].noisy_labels == {"method": "ninth_place_low_loss", "n": 500, "per_tag": 50}, (
        "a tenth of the noisy clips, a tenth of the best 5,000"
    )
    assert ninth.stages[0].lr == pytest.approx(1e-3 / 2), "a quarter of the batch, half the rate"
    gold = scale_recipe(load_recipe("gold_plan"), "small")
    assert [stage.epochs for stage in gold.stages] == [20, 4, 8], "32 epochs are fewer than 40"
    assert gold.stages[0].schedule_options == {"warmup_epochs": 1.0} and gold.stages[0].lr_min == pytest.approx(
        1e-4 * 0.5**0.5
    )
    assert scale_recipe(load_recipe("gold_plan"), "tiny").stages[0].schedule_options == {"warmup_epochs": 0.05}
    third = scale_recipe(load_recipe("third_place_2d"), "small").stages[0]
    assert (third.epochs, third.no_aug_epochs) == (40, 4) and third.schedule_options["start_lr"] == pytest.approx(
        1e-4 * 0.8**0.5
    )
    first = scale_recipe(load_recipe("first_place"), "small")
    assert first.stages[0].sampling_options == {} and first.tta.options == {"step_s": 4.0}
    assert scale_recipe(load_recipe("fastai_kernel"), "tiny").folds.run_folds == (0,)
    with pytest.raises(OptionError, match="scale is 'smal'; did you mean small"):
        scale_recipe(load_recipe("ninth"), "smal")


def test_recipes_train_on_as_many_clips_whatever_their_stages_are():
    # 320 curated clips in two folds: 160 to train on, 40 times. Of 640 noisy ones the 36th place takes all, the 9th 161
    # of 5,000.
    sizes = {"n_noisy": 640, "n_curated": 320}
    assert [s.epochs for s in scale_recipe(load_recipe("ninth"), "small", **sizes).stages] == [40]
    assert [s.epochs for s in scale_recipe(load_recipe("kaggle_fat_36th"), "small", **sizes).stages] == [8], (
        "8 times 800 clips"
    )
    ninth = scale_recipe(load_recipe("ninth_full"), "small", **sizes)
    assert ninth.stages[1].noisy_labels["n"] == 161 and [s.epochs for s in ninth.stages] == [8, 8, 8, 8], (
        "8 * (160 + 321 + 160 + 160)"
    )
    gold = scale_recipe(load_recipe("gold_plan"), "small", **sizes)
    assert [s.epochs for s in gold.stages] == [10, 2, 4], (
        "10 * 160 + 6 * 800 clips, to each other as 20, 4 and 8 epochs"
    )


def runs_to_a_submission(name, few_clips, out):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = run_recipe(
            few_clips, scale_recipe(load_recipe(name), "tiny", 24, 40), out, num_workers=0, log=lambda line: None
        )
    check_submission(out / "submission.csv", few_clips / "sample_submission.csv")
    assert 0.1 < result.oof_score <= 1 and result.test.probs.shape == (20, 10)
    assert json.loads((out / "manifest.json").read_text())["finished"]


@pytest.mark.parametrize("name", QUICKEST)
def test_two_recipes_run_from_csv_to_submission(name, few_clips, tmp_path):
    runs_to_a_submission(name, few_clips, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [name for name in recipe_names() if name not in (*QUICKEST, "default", "finetune", "probe", "quick", "esc10")],
)
def test_every_recipe_runs_from_csv_to_submission(name, few_clips, tmp_path):
    runs_to_a_submission(name, few_clips, tmp_path / "run")


def test_the_command_takes_a_scale(main_with, few_clips, tmp_path):
    ended = main_with(
        "run", few_clips, "--no-predict", "--recipe", "ninth", "--scale", "tiny", "--fold", 0, "--out", tmp_path / "run"
    )
    assert ended.returncode == 0, ended.stderr
    recipe = load_recipe(tmp_path / "run" / "recipe.toml")
    assert (recipe.model.width, recipe.stages[0].epochs, recipe.folds.n) == (1 / 16, 1, 2)
    ended = main_with("run", few_clips, "--no-predict", "--scale", "tinny", "--out", tmp_path / "other")
    assert ended.returncode == 2 and "did you mean tiny" in ended.stderr
