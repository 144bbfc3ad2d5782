"""Calibration against scikit-learn, values by hand and known probabilities; thresholds by hand and by curve."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import expit, logit
from sklearn.calibration import _sigmoid_calibration
from sklearn.metrics import f1_score, log_loss, precision_recall_curve

from fatai.errors import CheckpointError, DataError, OptionError, ShapeError
from fatai.metrics.calibration import Calibration, cross_calibrate, cross_decide
from fatai.metrics.calibration_curve import calibration_curve, expected_calibration_error, plot_calibration_curve
from fatai.metrics.ranking import lwlrap
from fatai.metrics.thresholds import Thresholds, f1_thresholds, mean_f1, precision_thresholds


@pytest.fixture(scope="module")
def overconfident():
    """Targets drawn from known logits, and overconfident probabilities: (probs, targ, true probs)."""
    rng = np.random.default_rng(2019)
    z = rng.normal(-1.5, 1.5, (3000, 4))
    return expit(3 * z + 1), rng.random(z.shape) < expit(z), expit(z)


# Calibration.


def test_platt_finds_the_slope_and_shift_that_were_applied(overconfident):
    probs, targ, true = overconfident
    fitted = Calibration.fit(probs, targ)
    np.testing.assert_allclose(
        fitted.slope, 1 / 3, rtol=0.1
    )  # z = (logit p - 1) / 3; 3,000 clips settle a slope to some per cent
    np.testing.assert_allclose(fitted.shift, -1 / 3, atol=0.12)
    assert np.abs(fitted.apply(probs) - true).max() < 0.05 < np.abs(probs - true).max()


def test_platt_is_that_of_scikit_learn(overconfident):
    probs, targ, _ = overconfident
    fitted = Calibration.fit(probs, targ)
    for tag in range(4):
        a, b = _sigmoid_calibration(
            logit(np.clip(probs[:, tag], 1e-7, 1 - 1e-7)), targ[:, tag]
        )  # their sign is the other
        assert (fitted.slope[tag], fitted.shift[tag]) == pytest.approx((-a, -b), abs=1e-3)


def test_temperature_has_the_least_log_loss_of_all_temperatures(overconfident):
    probs, targ, _ = overconfident
    fitted = Calibration.fit(probs, targ, method="temperature")
    z = logit(np.clip(probs, 1e-7, 1 - 1e-7))
    for tag in range(4):
        slopes = fitted.slope[tag] * np.array([1, 0.98, 1.02, 0.5, 2])
        losses = [log_loss(targ[:, tag], expit(s * z[:, tag])) for s in slopes]
        assert min(losses) == losses[0] and fitted.shift[tag] == 0


def test_a_temperature_worked_by_hand():
    # Of four clips at 0.9 three have the tag: the loss is least at an output of 3/4, so logit 2 ln 3 becomes ln 3.
    fitted = Calibration.fit([[0.9], [0.9], [0.9], [0.9]], [[1], [1], [1], [0]], method="temperature")
    assert fitted.slope[0] == pytest.approx(0.5, abs=1e-5) and fitted.apply([[0.9]])[0, 0] == pytest.approx(
        0.75, abs=1e-5
    )


@pytest.mark.parametrize("method", ["platt", "temperature"])
@pytest.mark.parametrize("average", ["micro", "macro"])
def test_calibration_lowers_the_error_on_held_out_folds(overconfident, method, average):
    probs, targ, _ = overconfident
    crossed = cross_calibrate(probs, targ, np.arange(len(probs)) % 5, method=method)
    before, after = (expected_calibration_error(p, targ, average=average) for p in (probs, crossed))
    assert after < before / 2 and (method == "temperature" or after < 0.03)


def test_a_fold_is_calibrated_by_the_others_alone(overconfident):
    probs, targ, _ = overconfident
    folds = np.arange(len(probs)) % 3
    crossed = cross_calibrate(probs, targ, folds)
    by_hand = Calibration.fit(probs[folds != 1], targ[folds != 1]).apply(probs[folds == 1])
    np.testing.assert_array_equal(crossed[folds == 1], by_hand)
    changed = targ.copy()
    changed[folds == 1] = ~changed[folds == 1]
    np.testing.assert_array_equal(cross_calibrate(probs, changed, folds)[folds == 1], by_hand)


@settings(deadline=None, max_examples=30)
@given(hnp.arrays(np.float64, (12, 3), elements=st.floats(0, 1)), hnp.arrays(bool, (12, 3)), st.booleans())
def test_the_order_within_a_tag_stays_and_probabilities_stay_within_0_and_1(probs, targ, stretch):
    for method in ("platt", "temperature"):
        fitted = Calibration.fit(probs, targ, method=method, stretch=stretch)
        output = fitted.apply(probs)
        assert ((output >= 0) & (output <= 1)).all()
        for tag in range(3):
            in_order = output[np.argsort(probs[:, tag], kind="stable"), tag]
            assert (np.diff(in_order) >= 0).all()


def test_the_order_within_a_clip_may_change():
    halved = Calibration(("Bark", "Meow"), slope=(1.0, 1.0), shift=(0.0, 5.0))
    probs, targ = [[0.6, 0.4]], [[0, 1]]
    assert lwlrap(probs, targ) == 0.5 and lwlrap(halved.apply(probs), targ) == 1


@pytest.mark.parametrize("targ", [np.zeros((4, 1)), np.ones((4, 1))])
@pytest.mark.parametrize("method", ["platt", "temperature"])
def test_a_tag_of_no_or_every_clip_is_not_changed(targ, method):
    probs = np.array([[0.1], [0.2], [0.7], [0.9]])
    np.testing.assert_allclose(Calibration.fit(probs, targ, method=method).apply(probs), probs, rtol=1e-12)


def test_stretching_uses_the_range_that_was_fitted():
    fitted = Calibration(("Bark",), slope=(1.0,), shift=(0.0,), low=(0.2,), high=(0.6,))
    np.testing.assert_allclose(fitted.apply([[0.3], [0.4], [0.1], [0.9]]), [[0.25], [0.5], [1e-7], [1 - 1e-7]])
    fitted = Calibration.fit(
        [[0.2, 0.5], [0.6, 0.5], [0.4, 0.5]], [[0, 1], [1, 0], [1, 0]], method="temperature", stretch=True
    )
    assert (fitted.low, fitted.high) == ((0.2, 0.0), (0.6, 1.0)), "a tag that is always the same cannot be stretched"


def test_to_and_from_json(tmp_path):
    calibration = Calibration(
        ("Bark", "Tick-tock"),
        (0.5, 1 / 3),
        (0.0, -1.25),
        (0.0, 0.1),
        (1.0, 0.7),
        Thresholds(("Bark", "Tick-tock"), (0.25, math.inf)),
    )
    calibration.to_json(tmp_path / "calibration.json")
    assert Calibration.from_json(tmp_path / "calibration.json") == calibration
    assert json.loads((tmp_path / "calibration.json").read_text())["thresholds"] == [0.25, None]
    assert calibration.select(["Tick-tock"]) == Calibration(
        ("Tick-tock",), (1 / 3,), (-1.25,), (0.1,), (0.7,), Thresholds(("Tick-tock",), (math.inf,)))
    with pytest.raises(DataError, match="has no tag 'Meow'"):
        calibration.select(["Meow"])


GOOD = {
    "format": "fatai calibration 1",
    "tags": ["Bark"],
    "slope": [1.0],
    "shift": [0.0],
    "low": [],
    "high": [],
    "thresholds": None,
}


@pytest.mark.parametrize(("change", "message"), [
    ({"format": "other"}, "expected an object with"),
    ({"more": 1}, "its keys are"),
    ({"tags": "Bark"}, "tags is not a list of names"),
    ({"tags": ["Bark", "Bark"]}, "each tag once"),
    ({"tags": []}, "has 0 tags"),
    ({"slope": [0]}, "slope is 0.0; expected numbers above 0"),
    ({"slope": [1, 2]}, "slope has 2 numbers"),
    ({"slope": [10**400]}, "too large"),
    ({"thresholds": [10**400]}, "too large"),
    ({"slope": [True]}, "slope is not a list of numbers"),
    ({"shift": [math.nan]}, "shift has a value that is not finite"),
    ({"shift": ["__import__('os')"]}, "shift is not a list of numbers"),
    ({"low": [0.5]}, "low and high do not fit each other"),
    ({"low": [0.5], "high": [0.5]}, "each low below its high"),
    ({"thresholds": [2]}, "a threshold is 2.0; expected numbers within"),
    ({"thresholds": [0.5, 0.5]}, "2 thresholds for 1 tags"),
    ({"thresholds": "0.5"}, "thresholds is not a list"),
])
def test_a_file_that_is_no_calibration_is_refused(tmp_path, change, message):
    (tmp_path / "c.json").write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(CheckpointError, match=f"c.json is not a calibration: .*{message}"):
        Calibration.from_json(tmp_path / "c.json")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]", '{"format"', "\x80\x04}"])
def test_a_file_that_is_no_object_is_refused(tmp_path, text):
    (tmp_path / "c.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match="c.json is not a calibration"):
        Calibration.from_json(tmp_path / "c.json")
    (tmp_path / "good.json").write_text(json.dumps(GOOD))
    assert Calibration.from_json(tmp_path / "good.json").apply([[0.3]])[0, 0] == pytest.approx(0.3)
    with pytest.raises(CheckpointError, match="no such file"):
        Calibration.from_json(tmp_path / "nowhere.json")


def test_invalid_arguments_are_named():
    with pytest.raises(OptionError, match="'plat'; did you mean platt"):
        Calibration.fit([[0.5]], [[1]], method="plat")
    with pytest.raises(DataError, match=r"probs exceeds \[0, 1\]"):
        Calibration.fit([[1.5]], [[1]])
    with pytest.raises(ShapeError, match=r"shape \(1, 2\); expected \(clips, 1\)"):
        Calibration(("Bark",), (1.0,), (0.0,)).apply([[0.5, 0.5]])
    with pytest.raises(ShapeError, match="two folds or more"):
        cross_calibrate([[0.5], [0.4]], [[1], [0]], [0, 0])


# Expected calibration error.


def test_the_error_worked_by_hand():
    # Bins of width 1/2: 0.1, 0.3, 0.5 (frequency 1/3, mean 0.3) and 0.9 (frequency 1): (3 * 1/30 + 1 * 0.1) / 4.
    probs, targ = [[0.1], [0.3], [0.5], [0.9]], [[0], [0], [1], [1]]
    assert expected_calibration_error(probs, targ, n_bins=2) == pytest.approx(0.05)
    # Two and two: |0.2 - 0| and |0.7 - 1|.
    curve = calibration_curve(probs, targ, n_bins=2, strategy="quantile")
    assert (curve.prob_pred.tolist(), curve.prob_true.tolist(), curve.counts.tolist()) == (
        pytest.approx([0.2, 0.7]),
        [0, 1],
        [2, 2],
    )
    assert curve.error == pytest.approx(0.25)


def test_the_error_of_tags_together_and_apart():
    # Both tags at 0.5, one always there and one never: right together, wrong by 0.5 apart.
    probs, targ = np.full((6, 2), 0.5), np.tile([0, 1], (6, 1))
    assert expected_calibration_error(probs, targ) == 0
    assert expected_calibration_error(probs, targ, average="macro") == 0.5


def test_certain_and_right_is_no_error_and_certain_and_wrong_the_greatest():
    targ = np.eye(3)
    assert expected_calibration_error(targ, targ) == 0 and expected_calibration_error(1 - targ, targ) == 1


@pytest.mark.parametrize("options", [{"n_bins": 0}, {"strategy": "size"}, {"average": "weighted"}])
def test_options_of_the_error_are_checked(options):
    with pytest.raises(OptionError, match="expected"):
        expected_calibration_error([[0.5]], [[1]], **options)
    with pytest.raises(DataError, match=r"exceeds \[0, 1\]"):
        expected_calibration_error([[-0.5]], [[1]])


def test_the_curves_of_a_plot_differ_without_color():
    curve = calibration_curve([[0.2], [0.9]], [[0], [1]])
    ax = plot_calibration_curve({"before": curve, "after": curve})
    diagonal, *lines = ax.get_lines()
    assert diagonal.get_xdata() == pytest.approx([0, 1]) and lines[0].get_xdata() == pytest.approx([0.2, 0.9])
    assert len({line.get_marker() for line in lines}) == len({line.get_linestyle() for line in lines}) == 2
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [
        "perfect",
        "before: error 0.1500",
        "after: error 0.1500",
    ]
    with pytest.raises(OptionError, match="5 curves; expected 1 to 4"):
        plot_calibration_curve({str(i): curve for i in range(5)})


# Thresholds.


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(np.float64, (9, 1), elements=st.sampled_from([0, 0.2, 0.4, 0.5, 0.8, 1])),
    hnp.arrays(bool, (9, 1)),
    st.floats(0.05, 1),
)
def test_thresholds_are_those_of_scikit_learns_curve(probs, targ, wanted):
    if not targ.any():
        assert f1_thresholds(probs, targ).values == precision_thresholds(probs, targ, wanted).values == (math.inf,)
        return
    precision, recall, values = precision_recall_curve(targ[:, 0], probs[:, 0])
    best, least = f1_thresholds(probs, targ).values[0], precision_thresholds(probs, targ, wanted).values[0]
    f1 = [f1_score(targ[:, 0], probs[:, 0] >= v) for v in values]
    assert f1_score(targ[:, 0], probs[:, 0] >= best) == pytest.approx(max(f1))
    reached = values[precision[:-1] >= wanted - 1e-12]
    assert least == (reached.min() if len(reached) else math.inf)


def test_of_equal_f1_the_highest_threshold_is_taken():
    # At 0.9: 1 of 1 right, 1 of 2 found: 2/3. At 0.2: 2 of 4 right, 2 of 2 found: 2/3.
    assert f1_thresholds([[0.9], [0.6], [0.4], [0.2]], [[1], [0], [0], [1]]).values == (0.9,)


def test_the_smallest_threshold_with_the_precision_lies_below_ones_that_lack_it():
    # Precision 1, 1/2, 2/3, 3/4 going down.
    probs, targ = [[0.9], [0.8], [0.7], [0.6]], [[1], [0], [1], [1]]
    assert precision_thresholds(probs, targ, 0.75).values == (0.6,)
    assert precision_thresholds(probs, targ, 0.76).values == (0.9,)
    assert precision_thresholds([[0.9], [0.8]], [[0], [1]], 0.6).values == (math.inf,)


def test_invalid_arguments_of_thresholds_are_named():
    with pytest.raises(OptionError, match="precision is 0"):
        precision_thresholds([[0.5]], [[1]], 0)
    with pytest.raises(ShapeError, match=r"expected \(clips, 1\)"):
        Thresholds(("Bark",), (0.5,)).apply([0.5])


def test_a_shared_calibration_preserves_the_order_within_clips_and_fits_as_one_platt(overconfident):
    probs, targ, true = overconfident
    fitted = Calibration.fit(probs, targ, method="shared")
    a, b = _sigmoid_calibration(logit(np.clip(probs, 1e-7, 1 - 1e-7)).ravel(), targ.ravel())
    assert set(fitted.slope) == {fitted.slope[0]} and set(fitted.shift) == {fitted.shift[0]}
    assert (fitted.slope[0], fitted.shift[0]) == pytest.approx((-a, -b), abs=1e-3)
    assert lwlrap(fitted.apply(probs), targ) == lwlrap(probs, targ)
    assert np.abs(fitted.apply(probs) - true).max() < 0.05 and fitted.method == "shared"
    faint = fitted.apply([[1e-30, 1e-9, 1e-12, 0.5]])
    assert np.argsort(faint[0]).tolist() == [0, 2, 1, 3], "the order of improbable tags stays"


def test_the_form_of_a_calibration_gives_its_method(overconfident):
    probs, targ, _ = overconfident
    assert [Calibration.fit(probs, targ, method=m).method for m in ("platt", "temperature", "shared")] == [
        "platt", "temperature", "shared",
    ]


def test_thresholds_across_folds_are_found_without_the_clip_itself(rng):
    targ = rng.random((60, 2)) < 0.3
    noise, folds = rng.random((60, 2)), np.arange(60) % 3
    crossed, own = cross_decide(noise, targ, folds), f1_thresholds(noise, targ).apply(noise)
    for fold in range(3):
        others = folds != fold
        expected = f1_thresholds(noise[others], targ[others]).apply(noise[~others])
        np.testing.assert_array_equal(crossed[~others], expected)
    assert mean_f1(crossed, targ) < mean_f1(own, targ)
    assert mean_f1(own, targ) == pytest.approx(f1_score(targ, own, average="macro"))
    assert math.isnan(mean_f1(own, np.zeros_like(targ)))


def test_thresholds_of_few_clips_are_shrunk_towards_the_best_one_for_all(rng):
    targ = np.zeros((400, 3), dtype=bool)
    targ[:200, 0] = targ[200:220, 1] = True  # the third tag has no clip
    probs = np.clip(0.3 * rng.random((400, 3)) + np.where(targ, [0.6, 0.3, 0.0], 0.0), 0, 1)
    own, shrunk, common = (np.array(f1_thresholds(probs, targ, shrink=n).values) for n in (0, 100, 1e12))
    assert common[0] == pytest.approx(common[1]) and math.isinf(common[2]) and math.isinf(shrunk[2])
    assert mean_f1(probs >= common[0], targ) >= max(mean_f1(probs >= t, targ) for t in (0.2, 0.3, 0.4, 0.5)) - 0.02
    weight = np.array([200 / 300, 20 / 120])
    np.testing.assert_allclose(logit(shrunk[:2]), weight * logit(own[:2]) + (1 - weight) * logit(common[:2]))
    with pytest.raises(OptionError, match="shrink is -1"):
        f1_thresholds(probs, targ, shrink=-1)


def test_decisions_across_folds_need_a_fold_for_each_clip_and_two_of_them():
    probs, targ = np.full((4, 1), 0.5), np.array([[1], [0], [1], [0]])
    for folds in (np.zeros(4), np.arange(3)):
        with pytest.raises(ShapeError, match="folds has shape"):
            cross_decide(probs, targ, folds)


def test_mean_f1_refuses_probabilities_and_tables_that_do_not_fit():
    targ = np.array([[1, 0], [0, 1]])
    with pytest.raises(DataError, match=r"decided has 0.7 at clip 0, tag 0; expected 0 or 1"):
        mean_f1([[0.7, 0.2], [0.1, 0.9]], targ)
    with pytest.raises(ShapeError, match="decided has shape"):
        mean_f1(targ, targ[0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_tensors_of_any_type_are_calibrated_and_decided(dtype):
    import torch

    probs = torch.linspace(0.1, 0.9, 12).reshape(4, 3).to(getattr(torch, dtype)).requires_grad_()
    targ, exact = torch.eye(4)[:, :3], probs.detach().double().numpy()
    assert np.array_equal(Calibration.fit(probs, targ).apply(probs), Calibration.fit(exact, targ.numpy()).apply(exact))
    found = f1_thresholds(probs, targ, shrink=1.0)
    assert found == f1_thresholds(exact, targ.numpy(), shrink=1.0)
    assert np.array_equal(found.apply(probs), found.apply(exact))
