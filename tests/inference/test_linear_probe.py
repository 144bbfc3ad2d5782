"""Logistic regressions on embeddings, against scikit-learn's own pipeline."""


import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fatai.errors import CheckpointError, DataError, OptionError, ShapeError
from fatai.inference.embeddings import Embeddings
from fatai.inference.linear_probe import LinearProbe, choose_penalty, fit_linear_probe
from fatai.metrics.ranking import lwlrap

TAGS = ("Bark", "Meow", "Rain")


@pytest.fixture
def known(rng):
    """Return embeddings of 60 clips whose tags depend on some of their features, the flags, and the truth."""
    values = (3 + 5 * rng.standard_normal((60, 8))).astype(np.float32)
    values[:, 7] = 2.5  # a unit that never fires
    targ = (values[:, :3] + rng.standard_normal((60, 3)) > 5).astype(int)
    targ[targ.sum(1) == 0, 0] = 1
    fnames = tuple(f"{i}.wav" for i in range(60))
    truth = pd.DataFrame(
        {"fname": fnames, "labels": [",".join(t for t, flag in zip(TAGS, row, strict=True) if flag) for row in targ]}
    )
    return Embeddings(fnames, values), targ, truth


def pipeline(**options):
    return OneVsRestClassifier(
        make_pipeline(StandardScaler(), LogisticRegression(**{"C": 2.0, "max_iter": 1000, **options}))
    )


def test_a_probe_is_scikit_learns_pipeline(known):
    embeddings, targ, _ = known
    ours = LinearProbe.fit(embeddings.values, targ, TAGS).predict(embeddings)
    theirs = (
        pipeline().fit(embeddings.values.astype(np.float64), targ).predict_proba(embeddings.values.astype(np.float64))
    )
    np.testing.assert_allclose(ours.probs, theirs, atol=1e-6)
    assert ours.tags == TAGS and ours.fnames == embeddings.fnames
    weak = LinearProbe.fit(embeddings.values, targ, TAGS, C=0.01).predict(embeddings)
    np.testing.assert_allclose(
        weak.probs, pipeline(C=0.01).fit(embeddings.values, targ).predict_proba(embeddings.values), atol=1e-4
    )


def test_out_of_fold_each_clip_is_predicted_by_a_probe_that_was_not_fitted_on_it(known):
    embeddings, targ, truth = known
    folds = {name: i % 3 for i, name in enumerate(embeddings.fnames)}
    shuffled = truth.sample(frac=1, random_state=1)
    fit = fit_linear_probe(embeddings, shuffled, TAGS, folds=folds)
    number = np.arange(60) % 3
    expected = np.empty((60, 3))
    for k in range(3):
        fitted = pipeline().fit(embeddings.values[number != k].astype(np.float64), targ[number != k])
        expected[number == k] = fitted.predict_proba(embeddings.values[number == k].astype(np.float64))
        assert fit.scores[k] == pytest.approx(lwlrap(expected[number == k], targ[number == k]), abs=1e-9)
    np.testing.assert_allclose(fit.oof.probs, expected, atol=1e-6)
    assert (
        fit.oof.oof_score == pytest.approx(lwlrap(expected, targ), abs=1e-9) and fit.folds.tolist() == number.tolist()
    )
    again = (
        pipeline().fit(embeddings.values.astype(np.float64), targ).predict_proba(embeddings.values.astype(np.float64))
    )
    refitted = fit.predict(embeddings)
    np.testing.assert_allclose(refitted.probs, again, atol=1e-6)
    assert refitted.oof_score == fit.oof.oof_score


def test_a_number_of_folds_is_split(known):
    embeddings, _, truth = known
    fit = fit_linear_probe(embeddings, truth, TAGS, folds=4)
    assert sorted(fit.scores) == [0, 1, 2, 3] and np.bincount(fit.folds).min() >= 12
    assert fit_linear_probe(embeddings, truth, TAGS, folds=4).folds.tolist() == fit.folds.tolist()


def test_a_tag_without_clips_keeps_its_fraction_and_others_learn(known):
    embeddings, targ, _ = known
    targ = np.column_stack([targ[:, 0], np.zeros(60), np.ones(60)])
    probs = LinearProbe.fit(embeddings.values, targ, TAGS).predict(embeddings).probs
    np.testing.assert_allclose(probs[:, 1], 1e-7, rtol=1e-6)
    np.testing.assert_allclose(probs[:, 2], 1, atol=2e-7)
    assert lwlrap(probs[:, :1], targ[:, :1]) == 1 and np.ptp(probs[:, 0]) > 0.5


def test_unreadable_clips_are_left_out_and_get_the_prior(known):
    embeddings, targ, truth = known
    values = embeddings.values.copy()
    values[5] = np.nan
    fit = fit_linear_probe(Embeddings(embeddings.fnames, values), truth, TAGS, folds=3)
    assert "5.wav" not in fit.oof.fnames and len(fit.oof) == 59
    predicted = fit.predict(Embeddings(embeddings.fnames, values))
    assert predicted.unreadable == ("5.wav",)
    np.testing.assert_allclose(predicted.probs[5], np.delete(targ, 5, axis=0).mean(0))


def test_save_and_load(known, tmp_path):
    embeddings, targ, _ = known
    probe = LinearProbe.fit(embeddings.values, targ, TAGS)
    probe.save(tmp_path / "t.safetensors")
    assert LinearProbe.load(tmp_path / "t.safetensors").predict(embeddings) == probe.predict(embeddings)


def test_files_that_are_not_probes_are_an_error(known, tmp_path):
    embeddings, targ, _ = known
    file = tmp_path / "t.safetensors"
    with pytest.raises(CheckpointError, match="t.safetensors"):
        LinearProbe.load(file)
    arrays = {
        "prior": np.zeros(2),
        "mean": np.zeros(4),
        "scale": np.ones(4),
        "coef": np.zeros((2, 4)),
        "intercept": np.zeros(2),
    }
    good = {"format": "fatai linear probe 1", "tags": '["a", "b"]'}
    save_file(arrays, file, good)
    assert LinearProbe.load(file).tags == ("a", "b")
    for change, notes, message in (
        ({}, {}, "is not a linear probe"),
        ({}, {**good, "tags": '["a"]'}, "prior has shape"),
        ({}, {**good, "tags": '["a", "a"]'}, "duplicate tags"),
        ({}, {**good, "tags": '"ab"'}, "not a list of names"),
        ({}, {**good, "tags": "[" * 100_000}, "cannot be read"),
        ({"more": np.zeros(1)}, good, "is not a linear probe"),
        ({"coef": np.zeros((2, 3))}, good, "coef has shape"),
        ({"mean": np.full(4, np.nan)}, good, "mean has shape"),
        ({"scale": np.zeros(4)}, good, "a scale not above 0"),
        ({"prior": np.full(2, 7.0)}, good, "a prior outside"),
    ):
        save_file({**arrays, **change}, file, notes)
        with pytest.raises(CheckpointError, match=message):
            LinearProbe.load(file)
    file.write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match="cannot be read"):
        LinearProbe.load(file)


def test_invalid_arguments_are_errors(known):
    embeddings, targ, truth = known
    probe = LinearProbe.fit(embeddings.values, targ, TAGS)
    with pytest.raises(ShapeError, match="have 5 features; expected 8"):
        probe.predict(Embeddings(("a",), np.zeros((1, 5))))
    with pytest.raises(ShapeError, match=r"values has shape \(60, 8\) and targ \(60, 2\)"):
        LinearProbe.fit(embeddings.values, targ[:, :2], TAGS)
    with pytest.raises(OptionError, match="C is 0"):
        LinearProbe.fit(embeddings.values, targ, TAGS, C=0)
    with pytest.raises(DataError, match="no clip is in both"):
        fit_linear_probe(embeddings, pd.DataFrame({"fname": ["x"], "labels": ["Bark"]}), TAGS)
    with pytest.raises(DataError, match="there is no fold for '1.wav' .59 such clips."):
        fit_linear_probe(embeddings, truth, TAGS, folds={"0.wav": 0})
    with pytest.raises(DataError, match="all clips are in one fold"):
        fit_linear_probe(embeddings, truth, TAGS, folds=dict.fromkeys(embeddings.fnames, 0))


def test_the_penalty_is_chosen_by_the_log_loss_of_inner_folds(rng):
    values, targ = rng.standard_normal((60, 40)), np.zeros((60, 2), dtype=bool)
    targ[:, 0] = rng.random(60) < 0.5  # independent of the features: the strongest penalty predicts best
    targ[:, 1] = rng.random(60) < 0.5
    assert choose_penalty(values, targ, [1.0, 0.001, 0.1]) == 0.001
    known = values[:, :1] * [[1, -1]] > 0  # a feature decides: the weakest penalty predicts best
    assert choose_penalty(np.hstack([values[:, :2]]), known, [0.001, 10.0]) == 10.0
    same = LinearProbe.fit(values, targ, ("Bark", "Meow"), C=[1.0, 0.001, 0.1])
    np.testing.assert_array_equal(same.coef, LinearProbe.fit(values, targ, ("Bark", "Meow"), C=0.001).coef)


def test_with_a_clip_of_each_tag_the_middle_penalty_is_taken(rng):
    assert choose_penalty(rng.standard_normal((3, 5)), np.eye(3, dtype=bool), [0.1, 0.01, 0.001]) == 0.01
    assert choose_penalty(rng.standard_normal((9, 5)), np.arange(9)[:, None] < 4, [0.1, 0.001]) in (0.1, 0.001)
    with pytest.raises(OptionError, match=r"C is \[0.1, 0\]; expected one or more numbers above 0"):
        choose_penalty(rng.standard_normal((9, 5)), np.eye(9, dtype=bool), [0.1, 0])
