"""Noisy clips are used in a run only where they help: both decisions, what stays in the folder, resuming."""

import dataclasses
import json
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest

from fatai.data.labels import multi_hot
from fatai.errors import CheckpointError, RecipeError
from fatai.experiment import noisy_decision
from fatai.experiment.noisy_decision import NoisyDecision, replace_folds, with_clips
from fatai.experiment.overrides import Overrides
from fatai.experiment.recipe import load_recipe
from fatai.experiment.run import run_recipe
from fatai.inference.predictions import Predictions
from fatai.metrics.bootstrap import Difference
from fatai.metrics.ranking import lwlrap
from fatai.report.data import load_report_data
from fatai.report.sections.metrics import overall

pytestmark = pytest.mark.usefixtures("no_reference")

ON = Overrides(values={"noisy_decision": True})


@pytest.fixture
def recipe(tiny_recipe):
    return tiny_recipe.override(ON)


@pytest.fixture
def out(tiny_run, recipe, tmp_path):
    """The folder of a run whose folds were trained on curated clips, before it decided."""
    shutil.copytree(tiny_run.out, tmp_path / "run")
    (tmp_path / "run" / "recipe.toml").write_text(recipe.resolved())
    return tmp_path / "run"


@pytest.fixture
def decide(monkeypatch, recipe, sample):
    """Continue the run in a folder, with a network that is sure of little and a difference as given."""
    monkeypatch.setattr(noisy_decision, "_KEEP", 0.1)

    def run(out, low, **options):
        monkeypatch.setattr(
            noisy_decision, "score_difference", lambda *args, **kwargs: Difference(low + 0.01, low, low + 0.02, 0.9)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return run_recipe(
                sample, recipe, out, resume=True, num_workers=0, **{"log": lambda line: None, **options}
            )

    return run


def contents(out):
    return {path.relative_to(out): path.read_bytes() for path in out.glob("fold_*/*")}


def test_folds_stay_where_noisy_clips_do_not_help(decide, out, tiny_run):
    before, lines = contents(out), []
    result = decide(out, -0.001, log=lines.append)
    assert contents(out) == before and not (out / "with_noisy").exists()
    assert result.oof_score == tiny_run.oof_score
    decision = NoisyDecision.load(out)
    assert not decision.used and decision.without == pytest.approx(tiny_run.fold_scores[0])
    assert 2 <= decision.selected <= decision.noisy == 72 and decision.with_noisy != decision.without
    notes = json.loads((out / "manifest.json").read_text())["noisy_decision"]
    assert notes["used"] is False and notes["in_words"] == str(decision) in lines
    assert overall(load_report_data(out))["noisy_decision"] == str(decision)


@pytest.mark.slow
def test_all_folds_are_trained_again_where_they_help_and_a_resumed_run_decides_nothing_again(
    decide, out, tiny_run, sample
):
    before = contents(out)
    result = decide(out, 0.001)
    after, decision = contents(out), NoisyDecision.load(out)
    assert decision.used and decision.finished and not (out / "with_noisy").exists()
    assert set(after) == set(before) and all(
        after[path] != before[path] for path in before if path.name == "model.safetensors"
    )
    table = pd.read_csv(sample / "train_curated.csv", dtype=str)
    oof = Predictions.from_csv(out / "fold_0" / "oof.csv")
    labels = table.set_index("fname")["labels"][list(oof.fnames)].str.split(",")
    assert decision.with_noisy == pytest.approx(lwlrap(oof.probs, multi_hot(labels, oof.tags)))
    assert result.fold_scores[0] == pytest.approx(decision.with_noisy)
    np.testing.assert_allclose(
        result.test.probs, np.mean([Predictions.from_csv(out / f"fold_{k}/test.csv").probs for k in (0, 1)], 0)
    )
    again = decide(out, -1.0)
    assert contents(out) == after and again.oof_score == result.oof_score and NoisyDecision.load(out) == decision


def test_a_run_that_was_stopped_while_it_moved_the_folds_moves_the_others(out):
    shutil.copytree(out / "fold_1", out / "with_noisy" / "fold_1")
    (out / "with_noisy" / "fold_1" / "history.csv").write_text("new")
    decision = NoisyDecision(0, 9, 3, 0.5, 0.6, 0.01, 0.2, used=True, finished=False)
    decision.save(out)
    replace_folds(out)
    assert (out / "with_noisy").is_dir(), "not before all folds are trained"
    dataclasses.replace(decision, finished=True).save(out)
    replace_folds(out)
    assert not (out / "with_noisy").exists() and (out / "fold_1" / "history.csv").read_text() == "new"
    assert (out / "fold_0" / "model.safetensors").is_file()


def test_a_run_with_noisy_clips_is_not_continued_with_further_folds(decide, out):
    NoisyDecision(0, 9, 3, 0.5, 0.6, 0.01, 0.2, used=True, folds=(0,)).save(out)
    before = contents(out)
    with pytest.raises(CheckpointError, match="noisy clips in fold 0, and fold 1 would be without them"):
        decide(out, 0.001)
    assert contents(out) == before
    noisy_decision.check_decided_folds(out, [0])


def test_noisy_clips_that_are_copies_of_curated_ones_are_left_out(tmp_path):
    for name, content in (("a", b"1"), ("b", b"2"), ("copy", b"1"), ("other", b"3")):
        (tmp_path / name).write_bytes(content)
    curated = pd.DataFrame({"path": [str(tmp_path / name) for name in ("a", "b")]})
    noisy = pd.DataFrame({"path": [str(tmp_path / name) for name in ("copy", "other")]})
    assert noisy_decision._sample(noisy, curated, 0)["path"].tolist() == [str(tmp_path / "other")]


def test_a_network_that_confirms_nothing_decides_without_training(out, recipe, sample, monkeypatch):
    monkeypatch.setattr(noisy_decision, "_KEEP", 0.9999)
    monkeypatch.setattr(noisy_decision, "train_fold", None)  # would raise
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_recipe(sample, recipe, out, resume=True, num_workers=0, log=lambda line: None)
    decision = NoisyDecision.load(out)
    assert (decision.used, decision.selected, decision.with_noisy) == (False, 0, None)
    assert str(decision) == "noisy clips not used: the network of fold 0 confirms 0 of 72"


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "noisy_decision.json").write_text("{}")
    with pytest.raises(CheckpointError, match="noisy_decision.json cannot be read .* delete it to decide again"):
        NoisyDecision.load(tmp_path)


def test_more_clips_take_as_many_steps():
    recipe = load_recipe("quick").override(Overrides(epochs=150, values={"stages.no_aug_epochs": 10}))
    more = with_clips(recipe, 160, 480)
    assert more.stages[0].epochs == 50 and more.stages[0].no_aug_epochs == 3
    assert with_clips(recipe, 160, 160) == recipe
    drawn = load_recipe("default").override(Overrides(values={"stages.sampling_options": {"n": 1600}}))
    assert with_clips(drawn, 160, 480) == drawn, "its epochs have a number of draws"


def test_default_decides_and_others_do_not_and_it_can_be_switched_off():
    assert load_recipe("default").noisy_decision and not load_recipe("quick").noisy_decision
    off = load_recipe("default").override(Overrides(values={"noisy_decision": False}))
    assert off.noisy_decision is None and "noisy_decision" not in off.resolved()
    with pytest.raises(RecipeError, match="noisy_decision adds noisy clips to a recipe of curated clips alone"):
        load_recipe("third_place_noisy").override(ON)
