"""Recipe `default`: what is decided from the data, what the user's options keep, and where the reasons are shown."""

import json

import numpy as np
import pandas as pd
import pytest

from fatai.audio.io import save_audio
from fatai.data.datasets.fat2019 import load_dataset
from fatai.errors import CheckpointError
from fatai.experiment.adapt import adapt_recipe, decision_lines
from fatai.experiment.recipe import load_recipe
from fatai.experiment.run import preview_learner, run_recipe


@pytest.fixture
def bats(tmp_path):
    """Return 24 short clips at 96 kHz with one of two tags each."""
    rng = np.random.default_rng(0)
    rows = []
    for k in range(24):
        name = f"{k}.wav"
        save_audio(tmp_path / name, rng.uniform(-0.5, 0.5, 76_800).astype(np.float32), 96_000)
        rows.append({"fname": name, "labels": ["low", "high"][k % 2], "fold": k % 3})
    pd.DataFrame(rows).drop(columns="fold").to_csv(tmp_path / "bats.csv", index=False)
    pd.DataFrame(rows).to_csv(tmp_path / "folds.csv", index=False)
    return tmp_path


def test_every_setting_follows_from_the_clips(bats):
    recipe = adapt_recipe(load_recipe("default"), load_dataset(bats / "bats.csv"))
    assert recipe.auto is None and recipe.settings().sr == 96_000 and recipe.settings().front_end.max_hz == 48_000
    assert recipe.clips.crop_s == 0.8 and recipe.clips.channels == "repeat3"
    assert (recipe.folds.splitter, recipe.folds.n) == ("stratified", 4)
    stage = recipe.stages[0]
    assert (recipe.model.width, stage.bs, stage.epochs, stage.no_aug_epochs) == (0.25, 8, 20, 1)
    assert stage.sampling_options == {"n": 800}, "100 steps in an epoch"
    assert "folds.n = 4: the rarest tag has 12 clips" in decision_lines(recipe)
    assert adapt_recipe(recipe, load_dataset(bats / "bats.csv")) is recipe


def test_options_win_over_rules_and_other_rules_use_them(bats):
    recipe = load_recipe("default").override(bs=4, n_folds=3, crop_s=1.5, values={"front_end.n_mels": 32})
    adapted = adapt_recipe(recipe, load_dataset(bats / "bats.csv"))
    assert adapted.stages[0].bs == 4 and adapted.folds.n == 3 and adapted.clips.crop_s == 1.5
    assert adapted.settings().sr == 44_100, "a front end of the user is taken as it is"
    assert adapted.stages[0].epochs == 20 and adapted.stages[0].sampling_options == {"n": 400}
    assert not {"stages.bs", "folds.n", "clips.crop_s"} & {key.split(" = ")[0] for key in adapted.decided}
    once = adapt_recipe(load_recipe("default").override(epochs=1), load_dataset(bats / "bats.csv"))
    assert once.stages[0].epochs == 1 and once.stages[0].no_aug_epochs is None
    assert once.stages[0].sampling_options == {}, "an epoch of the user is one pass"
    balanced = {"stages.sampling": "balanced", "stages.sampling_options": {"n": 80}}
    other = adapt_recipe(load_recipe("default").override(values=balanced), load_dataset(bats / "bats.csv"))
    assert other.stages[0].sampling_options == {"n": 80} and other.stages[0].epochs == 200


def test_a_column_of_folds_is_used(bats):
    recipe = adapt_recipe(load_recipe("default"), load_dataset(bats / "folds.csv"))
    assert (recipe.folds.splitter, recipe.folds.n, recipe.folds.group_col) == ("predefined", 3, "fold")
    assert "the table has a column fold with 3 values" in recipe.decided.values()
    other = adapt_recipe(load_recipe("default").override(n_folds=5), load_dataset(bats / "folds.csv"))
    assert other.folds.n == 3
    assert "the table has a column fold with 3 values, which win over folds.n = 5" in other.decided.values()


def test_copies_stay_together(bats):
    (bats / "1.wav").write_bytes((bats / "3.wav").read_bytes())
    recipe = adapt_recipe(load_recipe("default"), load_dataset(bats / "bats.csv"))
    assert (recipe.folds.splitter, recipe.folds.group_col) == ("group", "sound")


def test_published_recipes_are_left_as_they_are(bats):
    recipe = load_recipe("ninth")
    assert adapt_recipe(recipe, load_dataset(bats / "bats.csv")) is recipe
    assert "\nauto = " not in recipe.resolved() and "decided" not in recipe.resolved()


def test_a_noisy_part_is_tried_or_left_out_with_a_line(sample):
    data, recipe = load_dataset(sample), load_recipe("default")
    off = recipe.override(values={"noisy_decision": False})
    lines, without = (decision_lines(adapt_recipe(each, data)) for each in (recipe, off))
    assert "train_noisy: used if one fold gets better with it, after all folds are trained without it" in lines
    assert "train_noisy: not used: this recipe trains on curated clips alone" in without


def test_a_preview_is_of_the_adapted_recipe(bats):
    learn = preview_learner(bats / "bats.csv", load_recipe("default"))
    assert learn.clip_config.sr == 96_000 and learn.dls.train.bs == 8 and learn.dls.to_spec.n_channels == 3


def test_a_run_notes_what_was_decided_and_resumes(bats, tmp_path):
    lines, recipe = [], load_recipe("default").override(epochs=1, width=0.05)
    run_recipe(bats / "bats.csv", recipe, tmp_path / "run", run_folds=[0], log=lines.append)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["decided"]["folds.n = 4"] == "the rarest tag has 12 clips"
    assert "  folds.n = 4: the rarest tag has 12 clips" in lines
    assert load_recipe(tmp_path / "run" / "recipe.toml").folds.n == 4
    run_recipe(bats / "bats.csv", recipe, tmp_path / "run", run_folds=[0], log=lines.append, resume=True)
    with pytest.raises(CheckpointError, match="stages.0.bs is 4 and was 8"):
        run_recipe(bats / "bats.csv", recipe.override(bs=4), tmp_path / "run", run_folds=[0], resume=True)
