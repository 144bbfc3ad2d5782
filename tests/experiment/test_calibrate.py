"""Calibrated learners and runs, and the out-of-fold score that validation predictions carry."""

import math
import shutil

import numpy as np
import pandas as pd
import pytest

from fatai.data.labels import multi_hot, read_labels
from fatai.ensemble.ensemble import ensemble
from fatai.errors import DataError
from fatai.experiment.run_folder import Tagger
from fatai.inference.learner import fat_learner
from fatai.inference.predictions import Predictions
from fatai.metrics.calibration import Calibration
from fatai.metrics.ranking import lwlrap
from fatai.metrics.thresholds import Thresholds

PREDS = Predictions(["a", "b"], ["Bark", "Meow"], [[0.9, 0.5], [0.25, 0.5]], unreadable=["b"], oof_score=0.75)


@pytest.fixture
def learn(small_dls):
    return fat_learner(small_dls, "m1", width=0.125, precision="fp32")


@pytest.fixture
def halved(learn):
    """Temperatures of 2, the tags in another order than the learner's."""
    tags = learn.tags[::-1]
    return Calibration(tags, slope=(0.5,) * len(tags), shift=tuple(float(i) for i in range(len(tags))))


def test_a_learner_with_a_calibration_predicts_calibrated(learn, halved, sample):
    clip = sorted((sample / "test").iterdir())[0]
    plain, before = learn.tta(items=[clip], n=2), dict(learn.predict(clip, n=2))
    learn.calibration = halved
    expected = halved.apply(plain.probs[:, ::-1])[:, ::-1]
    np.testing.assert_allclose(learn.tta(items=[clip], n=2).probs, expected, atol=1e-6)
    again = learn.predict(clip, n=2)
    assert dict(again) == pytest.approx(dict(zip(learn.tags, expected[0], strict=True)), abs=1e-5)
    assert [t.prob for t in again] == sorted((t.prob for t in again), reverse=True) and dict(again) != before


def test_predictions_of_the_validation_part_carry_their_score_and_others_do_not(learn, sample):
    preds = learn.tta(n=2)
    assert preds.oof_score == lwlrap(preds.probs, multi_hot(learn.dls.files(1)["labels"], learn.tags))
    assert learn.tta(items=sorted((sample / "test").iterdir())[:2], n=2).oof_score is None
    assert learn.tta(0, n=1).oof_score is None, "no out-of-fold score for training clips"


def test_an_ensemble_of_two_learners_is_weighted_by_lwlrap(learn, small_dls):
    preds, other = learn.tta(n=2), fat_learner(small_dls, "m1", width=0.125, precision="fp32").tta(n=2)
    combined = ensemble([preds, other], how="rank_clip", weights="lwlrap")
    assert combined == ensemble([preds, other], how="rank_clip", weights=[preds.oof_score, other.oof_score])


def test_calibrated_predictions_match_tags_by_name_and_leave_guesses_alone():
    calibration = Calibration(("Meow", "Bark", "Purr"), slope=(1.0, 0.5, 9.0), shift=(1.0, 0.0, 0.0))
    done = PREDS.calibrated(calibration)
    # logit 0.9 = ln 9, halved is 3 : 1; logit 0.5 = 0, shifted by 1.
    np.testing.assert_allclose(done.probs, [[0.75, 1 / (1 + np.exp(-1))], [0.25, 0.5]])
    assert done.unreadable == ("b",) and done.oof_score is None
    with pytest.raises(DataError, match="the calibration has no tag 'Bark'"):
        PREDS.calibrated(calibration.select(["Meow"]))


def test_tags_are_decided_by_their_thresholds():
    table = PREDS.decide(Thresholds(("Meow", "Bark"), (0.5, 0.95)))
    expected = pd.DataFrame({"fname": ["a", "b"], "labels": ["Meow", "Meow"]})
    pd.testing.assert_frame_equal(table, expected, check_dtype=False)  # names are objects: some are not text
    both = PREDS.decide(Thresholds(("Bark", "Meow"), (0.25, 0.5)))
    assert both["labels"].tolist() == ["Bark,Meow"] * 2
    with pytest.raises(DataError, match="no threshold for the tags 'Meow'"):
        PREDS.decide(Thresholds(("Bark",), (0.5,)))


@pytest.fixture
def run(tiny_run, tmp_path):
    """A run with a calibration: temperatures of 2; all tags but the first two have thresholds of infinity."""
    folder, tags = tmp_path / "run", tiny_run.oof.tags
    shutil.copytree(tiny_run.out, folder)
    thresholds = Thresholds(tags, (0.0, 0.3, *[math.inf] * (len(tags) - 2)))
    Calibration(tags, (0.5,) * len(tags), (0.0,) * len(tags), thresholds=thresholds).to_json(
        folder / "calibration.json"
    )
    return folder


def test_a_tagger_calibrates_sound_and_leaves_silence_at_zero(run):
    wave = np.zeros(4 * 44100, dtype=np.float32)
    wave[:44100] = np.random.default_rng(0).normal(0, 0.1, 44100)
    plain, calibrated = (
        [step.probs for step in Tagger(run, calibrate=c, step_s=0.5).frame_probs(wave)] for c in (False, True)
    )
    np.testing.assert_allclose(
        calibrated[0], Calibration.from_json(run / "calibration.json").apply(plain[0][None])[0], atol=1e-6
    )
    assert (calibrated[-1] == 0).all() and (plain[-1] == 0).all()


def test_commands_apply_the_thresholds_of_a_run(run, main_with, sample, tmp_path):
    clip = sorted((sample / "test").iterdir())[0]
    tags = Calibration.from_json(run / "calibration.json").tags
    events = main_with("tag", run, clip, "--calibrate").stdout
    assert tags[0] in events and not any(tag in events for tag in tags[2:])
    done = main_with("predict", run, clip, "--labels", tmp_path / "labels.csv", "--out", tmp_path / "probs.csv")
    assert done.returncode == 0, done.stderr
    probs = Predictions.from_csv(tmp_path / "probs.csv").probs[0]
    assert tuple(read_labels(tmp_path / "labels.csv")["labels"][0]) == (tags[:2] if probs[1] >= 0.3 else tags[:1])
    assert main_with("predict", run, clip, "--calibrate", "--out", tmp_path / "again.csv").returncode == 0
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "probs.csv").read_bytes()
    Calibration(tags, (1.0,) * len(tags), (0.0,) * len(tags)).to_json(run / "calibration.json")
    refused = main_with("predict", run, clip, "--labels", tmp_path / "more.csv")
    assert refused.returncode == 2 and "has no thresholds; find them with fatai-submit calibrate" in refused.stderr
