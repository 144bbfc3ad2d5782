"""Learning curves of linear probes: more clips per tag, better scores, and never a held-out clip in the training."""

import numpy as np
import pytest

from fatai.errors import DataError
from fatai.inference import learning_curve
from fatai.inference.learning_curve import LearningCurve, few_shot_curve
from fatai.inference.linear_probe import LinearProbe


def clips(rng, n_per_tag=24):
    targ = np.repeat(np.eye(3, dtype=bool), n_per_tag, axis=0)
    values = 1.2 * targ @ rng.standard_normal((3, 8)) + rng.standard_normal((len(targ), 8))
    return values.astype(np.float32), targ, np.arange(len(targ)) % 4


def test_the_score_rises_with_the_clips_per_tag(rng):
    values, targ, folds = clips(rng)
    curve = few_shot_curve(values, targ, folds, C=1.0)
    assert curve.counts == (1, 2, 4, 8, 18), "a fold's 24 * 3 / 4 training clips of a tag are the last"
    assert curve.scores[-1] > curve.scores[0] and curve.scores[-1] < curve.at_twice() < 1
    assert curve == few_shot_curve(values, targ, folds, C=1.0), "the same seed draws the same clips"


def test_probes_see_n_training_clips_of_each_tag_and_no_held_out_clip(rng, monkeypatch):
    values, targ, folds = clips(rng)
    values[:, 0] = np.arange(len(values))  # names each clip
    fitted, fit = [], LinearProbe.fit

    def recording(x, *args, **options):
        fitted.append(x[:, 0].astype(int))
        return fit(x, *args, **options)

    monkeypatch.setattr(learning_curve.LinearProbe, "fit", recording)
    few_shot_curve(values, targ, folds, counts=[2], n_draws=1)
    assert [len(rows) for rows in fitted] == [6] * 4 + [54] * 4
    for k, rows in enumerate(fitted):
        assert not (folds[rows] == k % 4).any() and len(set(targ[rows].sum(axis=0))) == 1


def test_twice_the_clips_follow_the_power_law_of_the_error():
    assert LearningCurve((1, 2, 4, 8), (0.2, 0.6, 0.8, 0.9)).at_twice() == pytest.approx(0.95)
    assert LearningCurve((1, 2), (1.0, 1.0)).at_twice() == 1.0
    assert LearningCurve((1, 2), (0.8, 0.6)).at_twice() == 0.6, "a curve that falls promises nothing"


def test_one_fold_is_refused(rng):
    with pytest.raises(DataError, match="all clips are in one fold"):
        few_shot_curve(rng.standard_normal((4, 2)), np.eye(4), np.zeros(4, dtype=int))
