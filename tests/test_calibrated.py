"""What a learner says with a calibration, and what its validation predictions carry."""

import numpy as np
import pandas as pd
import pytest

from fatai.data.labels import multi_hot
from fatai.errors import DataError
from fatai.infer.ensemble import ensemble
from fatai.infer.predictions import Predictions
from fatai.infer.tta import predict_clips  # noqa: F401 - gives learners tta and predict
from fatai.score.calibration import Calibration
from fatai.score.ranking import lwlrap
from fatai.score.thresholds import Thresholds
from fatai.train.learner import fat_learner

PREDS = Predictions(["a", "b"], ["Bark", "Meow"], [[0.9, 0.5], [0.25, 0.5]], unreadable=["b"], held_out=0.75)


@pytest.fixture
def learn(small_dls):
    return fat_learner(small_dls, "m1", width=0.125, precision="fp32")


@pytest.fixture
def halved(learn):
    """Temperatures of 2, the tags in another order than the learner's."""
    tags = learn.tags[::-1]
    return Calibration(tags, slope=(0.5,) * len(tags), shift=tuple(float(i) for i in range(len(tags))))


def test_a_learner_with_a_calibration_answers_calibrated(learn, halved, sample):
    clip = sorted((sample / "test").iterdir())[0]
    plain, told = learn.tta(items=[clip], n=2), dict(learn.predict(clip, n=2))
    learn.calibration = halved
    expected = halved.apply(plain.probs[:, ::-1])[:, ::-1]
    np.testing.assert_allclose(learn.tta(items=[clip], n=2).probs, expected, atol=1e-6)
    again = learn.predict(clip, n=2)
    assert dict(again) == pytest.approx(dict(zip(learn.tags, expected[0])), abs=1e-5)
    assert [t.prob for t in again] == sorted((t.prob for t in again), reverse=True) and dict(again) != told


def test_predictions_of_the_validation_part_carry_their_score_and_others_do_not(learn, sample):
    preds = learn.tta(n=2)
    assert preds.held_out == lwlrap(preds.probs, multi_hot(learn.dls.files(1)["labels"], learn.tags))
    assert learn.tta(items=sorted((sample / "test").iterdir())[:2], n=2).held_out is None
    assert learn.tta(0, n=1).held_out is None, "training clips say nothing of a model that saw them"


def test_the_designs_blend_of_two_learners_weighs_them_by_lwlrap(learn, small_dls):
    preds, other = learn.tta(n=2), fat_learner(small_dls, "m1", width=0.125, precision="fp32").tta(n=2)
    blend = ensemble([preds, other], how="rank_clip", weights="lwlrap")
    assert blend == ensemble([preds, other], how="rank_clip", weights=[preds.held_out, other.held_out])


def test_calibrated_predictions_match_tags_by_name_and_leave_guesses_alone():
    held = Calibration(("Meow", "Bark", "Purr"), slope=(1.0, 0.5, 9.0), shift=(1.0, 0.0, 0.0))
    done = PREDS.calibrated(held)
    # logit 0.9 = ln 9, halved is 3 : 1; logit 0.5 = 0, shifted by 1.
    np.testing.assert_allclose(done.probs, [[0.75, 1 / (1 + np.exp(-1))], [0.25, 0.5]])
    assert done.unreadable == ("b",) and done.held_out is None
    with pytest.raises(DataError, match="the calibration lacks the tag 'Bark'"):
        PREDS.calibrated(held.select(["Meow"]))


def test_tags_are_decided_by_their_thresholds():
    table = PREDS.decide(Thresholds(("Meow", "Bark"), (0.5, 0.95)))
    pd.testing.assert_frame_equal(table, pd.DataFrame({"fname": ["a", "b"], "labels": ["Meow", "Meow"]}))
    both = PREDS.decide(Thresholds(("Bark", "Meow"), (0.25, 0.5)))
    assert both["labels"].tolist() == ["Bark,Meow"] * 2
    with pytest.raises(DataError, match="no threshold for the tags 'Meow'"):
        PREDS.decide(Thresholds(("Bark",), (0.5,)))
