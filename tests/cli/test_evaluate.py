"""The commands ensemble, check, score and calibrate, on run folders with known scores."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from fatai.ensemble.ensemble import ensemble_report
from fatai.errors import DataError, OptionError
from fatai.experiment.calibrate import calibrate_run
from fatai.inference.predictions import Predictions
from fatai.metrics.bootstrap import score_interval
from fatai.metrics.calibration import Calibration, cross_calibrate
from fatai.metrics.calibration_curve import expected_calibration_error
from fatai.metrics.ranking import lwlrap
from fatai.metrics.thresholds import f1_thresholds, mean_f1

TAGS = ("Bark", "Meow", "Oboe")
NAMES = [f"{i:03d}.wav" for i in range(300)]


@pytest.fixture
def data(tmp_path):
    """Two overconfident runs, the second better; the truth of their training clips; a sample submission."""
    rng = np.random.default_rng(5)
    targ = np.eye(3, dtype=bool)[rng.integers(3, size=300)]
    pd.DataFrame({"fname": NAMES, "labels": np.array(TAGS)[targ.argmax(1)]}).to_csv(tmp_path / "truth.csv", index=False)
    for k, strength in enumerate((1.0, 2.0)):
        run = tmp_path / f"run{k}"
        run.mkdir()
        z = strength * targ + rng.normal(size=(300, 3)) - 1
        Predictions(NAMES, TAGS, expit(4 * z)).to_csv(run / "oof.csv")
        Predictions(["x.wav", "y.wav"], TAGS, expit(4 * rng.normal(size=(2, 3)))).to_csv(run / "test.csv")
        pd.DataFrame({"fname": NAMES, "fold": np.arange(300) % 3}).to_csv(run / "folds.csv", index=False)
    Predictions(["y.wav", "x.wav"], TAGS, np.zeros((2, 3))).to_csv(tmp_path / "sample.csv")
    return tmp_path


def truth_of(data):
    return pd.read_csv(data / "truth.csv")


def oof_score(data, run):
    return Predictions.from_csv(data / run / "oof.csv").align_with(data / "truth.csv")


def test_an_ensemble_prints_the_score_of_each_member_and_its_own_nested(data, main_with):
    runs = [data / "run0", data / "run1"]
    ended = main_with(
        "ensemble",
        *runs,
        "--method",
        "forward",
        "--average",
        "rank_clip",
        "--truth",
        data / "truth.csv",
        "--out",
        data / "b.csv",
        "--sample",
        data / "sample.csv",
    )
    assert ended.returncode == 0, ended.stderr
    by_hand = ensemble_report(runs, "forward", truth=data / "truth.csv", average="rank_clip")
    rows = [line.split() for line in ended.stdout.splitlines()]
    assert rows[2] == [str(runs[1]), f"{by_hand.weights[1]:.3f}", f"{lwlrap(*oof_score(data, 'run1')):.4f}"]
    assert rows[3] == ["ensemble,", "nested", f"{by_hand.predictions.oof_score:.4f}"]
    assert Predictions.from_csv(data / "b.csv").fnames == ("y.wav", "x.wav")
    assert (
        main_with(
            "ensemble", *runs, "--weights", "lwlrap", "--truth", data / "truth.csv", "--out", data / "b.csv"
        ).returncode
        == 0
    )
    expected = np.average([Predictions.from_csv(r / "test.csv").probs for r in runs], axis=0,
                          weights=[lwlrap(*oof_score(data, r.name)) for r in runs])
    np.testing.assert_allclose(Predictions.from_csv(data / "b.csv").probs, expected)


@pytest.mark.parametrize("turned", [False, True])
def test_an_ensemble_of_tables_needs_them_whole_only_where_their_orders_differ(data, main_with, monkeypatch, turned):
    runs, whole = [data / "run0", data / "run1"], []

    def counted(*args, **options):
        whole.append(args)
        return ensemble_report(*args, **options)

    monkeypatch.setattr("fatai.ensemble.ensemble.ensemble_report", counted)
    if turned:
        preds = Predictions.from_csv(runs[1] / "test.csv")
        preds.select(preds.fnames[::-1], preds.tags[::-1]).to_csv(runs[1] / "test.csv")
    ended = main_with(
        "ensemble", runs[0], runs[1] / "test.csv", "--method", "gmean", "--weights", "2,1", "--out", data / "b.csv"
    )
    assert ended.returncode == 0, ended.stderr
    assert bool(whole) == turned
    ensemble_report(runs, "gmean", [2, 1]).predictions.to_csv(data / "whole.csv")
    assert (data / "b.csv").read_bytes() == (data / "whole.csv").read_bytes()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            ["ensemble", "{d}/run0", "--method", "forward", "--out", "{d}/b.csv"],
            "how='forward' is fitted on out-of-fold",
        ),
        (["ensemble", "{d}/run0", "--average", "gmean", "--out", "{d}/b.csv"], "'mean' has no option 'average'"),
        (
            ["ensemble", "{d}/run0", "--weights", "lwlrip", "--out", "{d}/b.csv"],
            "expected numbers like 2,1,1.* or lwlrap",
        ),
        (["ensemble", "{d}/run0", "--weights", "lwlrap", "--out", "{d}/b.csv"], "run0 has none"),
        (["score", "{d}/run0", "{d}/run1", "--truth", "{d}/truth.csv", "--per-tag"], "--per-tag is given with 2 runs"),
        (["score", "{d}/run0", "--truth", "{d}/truth.csv", "--part", "train"], "expected oof or test"),
        (["calibrate", "{d}", "--truth", "{d}/truth.csv"], "has no oof.csv; a run writes it at its end"),
        (["calibrate", "{d}/run0", "--truth", "{d}/truth.csv", "--method", "plat"], "did you mean platt"),
        (["calibrate", "{d}/run0", "--truth", "{d}/truth.csv", "--thresholds", "f2"], "expected best, half,"),
        (["calibrate", "{d}/run0", "--truth", "{d}/truth.csv", "--plot", "{d}/plot.wav"], "plot.wav cannot be drawn"),
    ],
)
def test_an_error_that_the_user_can_fix_is_one_sentence(args, words, data, main_with):
    ended = main_with(*(a.format(d=data) for a in args))
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert pd.Series([ended.stderr]).str.contains(words, regex=True).all(), ended.stderr


def test_check_warns_and_still_accepts_the_submission(data, main_with):
    asked = ["--sample", data / "sample.csv", "--oof", data / "run1"]
    good = main_with("check", data / "run0" / "test.csv", *asked)
    assert good.returncode == 0 and "is valid" in good.stdout and good.stderr == ""
    assert "lwlrap" not in good.stdout
    Predictions(["x.wav", "y.wav"], TAGS, [[0.5, 0.5, 0.1], [0.5, 0.4, 0.2]]).to_csv(data / "odd.csv")
    odd = main_with("check", data / "odd.csv", "--sample", data / "sample.csv")
    assert odd.returncode == 0 and "is valid" in odd.stdout and "lwlrap" not in odd.stdout
    assert odd.stderr.splitlines() == [
        "warning: 1 of 3 tags are the same in every clip: 'Bark'; were they trained on?",
        "warning: in 50% of the clips several tags share the first place; ties lower the score",
    ]


def test_score_prints_the_lwlrap_of_a_file_or_a_run_with_its_interval(data, main_with):
    pairs = oof_score(data, "run1")
    interval = score_interval(*pairs)
    expected = f"lwlrap {lwlrap(*pairs):.4f}, 95 % interval {interval.low:.3f} to {interval.high:.3f}"
    for predictions in (data / "run1", data / "run1" / "oof.csv"):
        assert main_with("score", predictions, "--truth", data / "truth.csv").stdout.splitlines() == [expected]


def test_score_of_a_run_allows_folds_that_were_not_trained_and_of_a_file_does_not(data, main_with):
    Predictions.from_csv(data / "run0" / "oof.csv").select(NAMES[::3]).to_csv(data / "run0" / "oof.csv")
    assert main_with("score", data / "run0", "--truth", data / "truth.csv").returncode == 0
    ended = main_with("score", data / "run0" / "oof.csv", "--truth", data / "truth.csv")
    assert ended.returncode == 2 and "the predictions lack" in ended.stderr


@pytest.mark.parametrize("how", ["platt", "temperature"])
def test_calibrate_writes_a_calibration_into_the_run_and_prints_the_cross_fitted_error(how, data, main_with):
    asked = ["--truth", data / "truth.csv", "--method", how, "--thresholds", "f1", "--plot", data / "r.png"]
    ended = main_with("calibrate", data / "run1", *asked)
    assert ended.returncode == 0, ended.stderr
    probs, targ = oof_score(data, "run1")
    crossed = cross_calibrate(probs, targ, np.arange(300) % 3, method=how)
    before, after = (expected_calibration_error(p, targ) for p in (probs, crossed))
    assert after < before
    assert f"calibration error out of fold, 300 clips: {before:.4f} before, {after:.4f} after" in ended.stdout
    assert (
        f"lwlrap out of fold, 300 clips: {lwlrap(probs, targ):.4f} before, {lwlrap(crossed, targ):.4f} after"
        in ended.stdout
    )
    kept = Calibration.from_json(data / "run1" / "calibration.json")
    fitted = Calibration.fit(probs, targ, TAGS, method=how)
    assert (kept.slope, kept.shift) == (fitted.slope, fitted.shift) and kept.thresholds == f1_thresholds(
        crossed, targ, TAGS
    )
    assert (data / "r.png").read_bytes()[:4] == b"\x89PNG"


def test_thresholds_of_a_precision_hold_it_out_of_fold(data):
    found = calibrate_run(data / "run1", truth_of(data), thresholds="0.9")
    probs, targ = oof_score(data, "run1")
    said = found.calibration.thresholds.apply(cross_calibrate(probs, targ, np.arange(300) % 3))
    assert ((said & targ).sum(0) >= 0.9 * said.sum(0)).all() and said.any()
    assert found.clips == 300 and json.loads(found.path.read_text())["thresholds"] == list(
        found.calibration.thresholds.values
    )
    with pytest.raises(OptionError, match="precision is 2"):
        calibrate_run(data / "run1", truth_of(data), thresholds="2")


@pytest.mark.parametrize(
    ("n", "spread", "noise", "expected"),
    [(3000, 2.0, 1.5, {"f1_shrunk"}), (60, 0.0, 1.5, {"f1_shared", "f1_shrunk"}), (60, 0.0, 0.0, {"half"})],
)
def test_the_best_rule_for_thresholds_is_chosen_across_folds(n, spread, noise, expected, tmp_path):
    """Tags with levels of their own need thresholds of their own; of rules that decide alike the simplest is taken."""
    rng = np.random.default_rng(7)
    targ = rng.random((n, 3)) < 0.15
    targ[~targ.any(axis=1), 0] = True
    level = spread * np.array([-1.0, 0.0, 1.0]) - (5 if noise else 2)
    probs = expit(4.0 * targ + rng.normal(0, noise, (n, 3)) + level)
    names = [f"{i}.wav" for i in range(n)]
    labels = [",".join(np.array(TAGS)[row]) for row in targ]
    Predictions(names, TAGS, probs).to_csv(tmp_path / "oof.csv")
    table = pd.DataFrame({"fname": names, "fold": np.arange(n) % 4, "labels": labels})
    table.to_csv(tmp_path / "folds.csv", index=False)
    found = calibrate_run(tmp_path, table[["fname", "labels"]], method="shared", thresholds="best")
    assert found.criterion in expected and found.f1_of[found.criterion] == max(found.f1_of.values())
    assert found.f1.before == found.f1_of["half"] and found.f1.after <= found.f1_of[found.criterion]
    if found.criterion == "half":
        assert found.f1.after == 1.0
        np.testing.assert_allclose(found.calibration.thresholds.values, found.calibration.apply([[0.5] * 3])[0])
    else:
        assert found.f1.after > found.f1.before


def test_one_trained_fold_is_calibrated_across_parts_of_its_clips(data):
    Predictions.from_csv(data / "run0" / "oof.csv").select(NAMES[::3]).to_csv(data / "run0" / "oof.csv")
    found = calibrate_run(data / "run0", truth_of(data), method="shared", thresholds="f1")
    assert found.clips == 100 and found.errors.after < found.errors.before
    probs = Predictions.from_csv(data / "run0" / "oof.csv").probs
    targ = pd.get_dummies(truth_of(data)["labels"])[list(TAGS)].to_numpy()[::3]
    own = mean_f1(found.calibration.thresholds.apply(found.calibration.apply(probs)), targ)
    assert found.f1.after < own, "thresholds of the clips that they were found on score higher"


def test_one_clip_is_not_enough(data):
    Predictions.from_csv(data / "run0" / "oof.csv").select(NAMES[:1]).to_csv(data / "run0" / "oof.csv")
    with pytest.raises(DataError, match="predictions of 1 clip; expected at least two"):
        calibrate_run(data / "run0", truth_of(data))
    assert not (data / "run0" / "calibration.json").exists()
