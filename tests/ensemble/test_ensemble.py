"""Each fixed average against values by hand; rows and columns matched by name; mismatches named in errors."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fatai.ensemble.averaging import Averager
from fatai.ensemble.ensemble import ensemble
from fatai.errors import OptionError, SubmissionError, UnknownNameError
from fatai.inference.predictions import Predictions
from fatai.metrics.ranking import lwlrap
from fatai.registry import ENSEMBLES

FIXED = [how for how in ENSEMBLES.names() if isinstance(ENSEMBLES.build(how), Averager)]
CLIPS, TAGS = ["a", "b"], ["Bark", "Meow", "Oboe"]
ONE = Predictions(CLIPS, TAGS, [[0.8, 0.2, 0.4], [0.1, 0.5, 0.5]])
TWO = Predictions(CLIPS, TAGS, [[0.2, 0.8, 0.0], [0.4, 0.5, 0.7]])

BY_HAND = {
    "mean": [[0.5, 0.5, 0.2], [0.25, 0.5, 0.6]],
    "weighted": [[0.5, 0.5, 0.2], [0.25, 0.5, 0.6]],
    # Square roots of 0.16, 0.16, 0.4 x 2^-126; of 0.04, 0.25, 0.35.
    "gmean": [[0.4, 0.4, math.sqrt(0.4) * 2.0**-63], [0.2, 0.5, math.sqrt(0.35)]],
    # Ranks within a clip: one (1, 0, 1/2), (0, 3/4, 3/4); two (1/2, 1, 0), (0, 1/2, 1).
    "rank_clip": [[0.75, 0.5, 0.25], [0, 0.625, 0.875]],
    # Ranks within a tag: one (1, 0, 0), (0, 1, 1); two (0, 1, 0), (1, 0, 1).
    "rank_tag": [[0.5, 0.5, 0], [0.5, 0.5, 1]],
    # Scaled within a tag, which for two clips is the same, but Meow of two is 0.8 and 0.5.
    "minmax_tag": [[0.5, 0.5, 0], [0.5, 0.5, 1]],
}


@pytest.mark.parametrize("how", FIXED)
def test_each_average_by_hand(how):
    combined = ensemble([ONE, TWO], how=how, weights=[1, 1])
    assert (combined.fnames, combined.tags) == (tuple(CLIPS), tuple(TAGS))
    np.testing.assert_allclose(combined.probs, BY_HAND[how], rtol=1e-12, atol=1e-15)


def test_weights_count_by_their_ratio():
    expected = 0.75 * ONE.probs + 0.25 * TWO.probs
    for weights in ([3, 1], [0.75, 0.25], np.array([3e-9, 1e-9])):
        np.testing.assert_allclose(ensemble([ONE, TWO], weights=weights).probs, expected, rtol=1e-12)
    geometric = ensemble([ONE, TWO], how="gmean", weights=[3, 1]).probs[1]
    np.testing.assert_allclose(geometric, [0.1**0.75 * 0.4**0.25, 0.5, 0.5**0.75 * 0.7**0.25], rtol=1e-12)
    assert ensemble([ONE, TWO], how="weighted", weights=[1, 0]) == ONE


def test_one_zero_does_not_decide_a_geometric_mean_alone():
    floored = ensemble([ONE, TWO], how="gmean", floor=1e-7).probs[0]
    assert floored[2] == pytest.approx(math.sqrt(0.4 * 1e-7))


def test_minmax_scales_each_tag_of_each_model_and_keeps_constant_tags():
    preds = Predictions(["a", "b", "c"], ["Bark", "Meow"], [[0.2, 0.3], [0.3, 0.3], [0.6, 0.3]])
    np.testing.assert_allclose(ensemble([preds], how="minmax_tag").probs, [[0, 0.3], [0.25, 0.3], [1, 0.3]], atol=1e-15)


def test_a_single_clip_or_tag_has_no_rank():
    row = Predictions(["a"], TAGS, [[0.8, 0.2, 0.4]])
    assert ensemble([row], how="rank_tag") == row
    assert ensemble([row], how="rank_clip").probs.tolist() == [[1, 0, 0.5]]
    column = Predictions(CLIPS, ["Bark"], [[0.8], [0.2]])
    assert ensemble([column], how="rank_clip") == column


@pytest.mark.parametrize("how", FIXED)
def test_the_order_of_rows_and_columns_does_not_matter(how):
    moved = TWO.select(["b", "a"], ["Oboe", "Bark", "Meow"])
    assert ensemble([ONE, moved], how=how, weights=[2, 1]) == ensemble([ONE, TWO], how=how, weights=[2, 1])


@settings(deadline=None, max_examples=40)
@given(hnp.arrays(np.float64, (3, 4, 3), elements=st.floats(0, 1)), st.sampled_from(FIXED))
def test_an_average_stays_in_0_and_1_and_one_model_thrice_is_itself(probs, how):
    names = list("abcd")
    combined = ensemble([Predictions(names, TAGS, each) for each in probs], how=how, weights=[1, 1, 5])
    assert ((combined.probs >= 0) & (combined.probs <= 1)).all()
    single = Predictions(names, TAGS, probs[0])
    thrice = ensemble([single] * 3, how=how, weights=[1, 1, 5]).probs
    np.testing.assert_allclose(thrice, ensemble([single], how=how, weights=[1]).probs, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(hnp.arrays(np.float64, (4, 5), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0])))
def test_mean_gmean_and_rank_clip_of_one_model_keep_its_score(probs):
    preds = Predictions(list("abcd"), list("vwxyz"), probs)
    targ = np.eye(4, 5)
    for how in ("mean", "gmean", "rank_clip"):
        assert lwlrap(ensemble([preds], how=how).probs, targ) == pytest.approx(lwlrap(probs, targ))


def test_clips_unreadable_in_any_member_are_unreadable():
    flagged = Predictions(CLIPS, TAGS, TWO.probs, unreadable=["b"])
    assert ensemble([ONE, flagged, flagged]).unreadable == ("b",)


def test_csv_files_are_accepted(tmp_path):
    ONE.to_csv(tmp_path / "one.csv")
    TWO.to_csv(tmp_path / "two.csv")
    assert ensemble([tmp_path / "one.csv", str(tmp_path / "two.csv")]) == ensemble([ONE, TWO])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            Predictions(["a", "c"], TAGS, ONE.probs),
            "predictions 2 do not match the first: they lack the clips 'b' and have the extra clips 'c'",
        ),
        (Predictions(["a"], TAGS, ONE.probs[:1]), "lack the clips 'b'$"),
        (Predictions(["a", "b", "c"], TAGS, np.zeros((3, 3))), "have the extra clips 'c'$"),
        (
            Predictions(CLIPS, ["Bark", "Meow", "Purr"], ONE.probs),
            "lack the tags 'Oboe' and have the extra tags 'Purr'$",
        ),
    ],
)
def test_mismatches_are_named(other, message):
    with pytest.raises(SubmissionError, match=message):
        ensemble([ONE, other])


# Weights from out-of-fold predictions.


def test_weights_in_proportion_to_the_score():
    truth = pd.DataFrame({"fname": ["x", "y"], "labels": ["Bark", "Meow"]})
    best = Predictions(["x", "y"], TAGS, [[0.9, 0.1, 0.2], [0.1, 0.9, 0.2]])  # lwlrap 1
    worst = Predictions(
        ["y", "x", "z"], TAGS, [[0.9, 0.1, 0.2], [0.1, 0.9, 0.2], [0, 0, 0]]
    )  # both third of three: 1/3
    expected = 0.75 * ONE.probs + 0.25 * TWO.probs
    for options in ({"how": "weighted", "weights": "lwlrap"}, {"how": "lwlrap_weights"}, {"weights": "lwlrap"}):
        np.testing.assert_allclose(
            ensemble([ONE, TWO], oof=[best, worst], truth=truth, **options).probs, expected, rtol=1e-12
        )


def test_predictions_are_weighted_by_their_stored_score():
    first, second = dataclasses.replace(ONE, oof_score=0.9), dataclasses.replace(TWO, oof_score=0.3)
    combined = ensemble([first, second], how="rank_clip", weights="lwlrap")
    np.testing.assert_allclose(
        combined.probs, np.array([[1, 0, 0.5], [0, 0.75, 0.75]]) * 0.75 + np.array([[0.5, 1, 0], [0, 0.5, 1]]) * 0.25
    )
    assert combined.oof_score is None, "the result has no score of its own"
    with pytest.raises(OptionError, match="predictions 2 has none"):
        ensemble([first, TWO], weights="lwlrap")


@pytest.mark.parametrize(("options", "message"), [
    ({"weights": [1]}, r"weights has shape \(1,\); expected one number for each of the 2"),
    ({"weights": [1, -1]}, "expected finite numbers >= 0, not all 0"),
    ({"weights": [0, 0]}, "expected finite numbers >= 0, not all 0"),
    ({"weights": [1, math.nan]}, "expected finite numbers"),
    ({"how": "weighted"}, "how='weighted' needs weights"),
    ({"weights": "lwlrop"}, r"weights is 'lwlrop', not a list of numbers; did you mean lwlrap\?$"),
    ({"weights": "lwlrap"}, "pass oof="),
    ({"weights": "lwlrap", "oof": [ONE], "truth": "truth.csv"}, "oof holds 1 predictions; expected 2"),
    ({"weights": "lwlrap", "oof": ONE, "truth": "truth.csv"}, "oof is a single Predictions; expected a list"),
    ({"weights": "lwlrap", "oof": [ONE, TWO]}, "oof is given without truth"),
    ({"truth": "truth.csv"}, r"predictions 1 has no out-of-fold predictions to compare with the truth \(2 in all\)"),
    ({"how": "cobyla"}, "how='cobyla' is fitted on out-of-fold predictions"),
    ({"how": "forward", "weights": [1, 2]}, "how='forward' finds the weights itself"),
    ({"how": "cobyla", "average": "mlp"}, "average is 'mlp', which is itself fitted"),
    ({"how": "cobyla", "maxiter": 0}, "maxiter 0; expected"),
    ({"how": "forward", "rounds": 0}, "rounds is 0; expected at least one"),
    ({"how": "logreg", "C": 0}, "C is 0"),
    ({"how": "mlp", "samples_per_epoch": 0}, "samples_per_epoch is 0; expected a whole number above 0"),
    ({"how": "mlp", "patience": -1}, "patience is -1"),
    ({"how": "mlp", "dropout": 1.0}, "dropout is 1.0"),
    ({"how": "gmean", "floor": 0}, "floor is 0; expected a number between 0 and 1"),
    ({"how": "mean", "floor": 0.1}, "floor"),
])
def test_options_that_do_not_fit_are_named(options, message):
    with pytest.raises(OptionError, match=message):
        ensemble([ONE, TWO], **options)


def test_an_argument_that_is_no_list_is_named():
    with pytest.raises(OptionError, match="predictions is a single str; expected a list"):
        ensemble("one.csv")
    with pytest.raises(OptionError, match="predictions is empty"):
        ensemble([])
    with pytest.raises(UnknownNameError, match="did you mean mean"):
        ensemble([ONE], how="maen")
