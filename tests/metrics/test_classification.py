"""mAP, AUC and d-prime by hand, and against scikit-learn with tied scores, weighted clips and missing tags."""

import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score, roc_auc_score

from fatai.errors import DataError, OptionError, ShapeError
from fatai.metrics._validation import check_inputs
from fatai.metrics.classification import SortedScores, d_prime, mean_ap, roc_auc, tag_scores
from fatai.metrics.ranking import lwlrap_per_class

AVERAGES = ["macro", "micro"]


@st.composite
def tied_cases(draw):
    """Each tag is present in some clips and absent in others; few different scores."""
    shape = draw(st.tuples(st.integers(2, 9), st.integers(1, 6)))
    targ = draw(hnp.arrays(np.int64, shape, elements=st.integers(0, 1)))
    targ[0], targ[1] = 0, 1
    return draw(hnp.arrays(np.float64, shape, elements=st.integers(-2, 2).map(float))), targ


def test_worked_by_hand():
    # Falling scores of the only tag, present or not: +, -, +, +. Precisions 1/1, 2/3, 3/4; of 3 pairs (+, -) one is in
    # order.
    probs, targ = [[0.9], [0.8], [0.7], [0.6]], [[1], [0], [1], [1]]
    assert mean_ap(probs, targ) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert roc_auc(probs, targ) == pytest.approx(1 / 3)


def test_ties_worked_by_hand():
    # One clip with and three without the tag, all tied: precision 1/4; half of the pairs are in order.
    for row in range(4):
        targ = np.eye(4)[:, [row]]
        assert mean_ap(np.zeros((4, 1)), targ) == 0.25 and roc_auc(np.zeros((4, 1)), targ) == 0.5
    assert d_prime(np.zeros((4, 1)), targ) == 0


@pytest.mark.parametrize("average", AVERAGES)
@settings(deadline=None)
@given(case=tied_cases())
def test_equal_scikit_learn_also_where_scores_are_tied(average, case):
    probs, targ = case
    assert mean_ap(probs, targ, average=average) == pytest.approx(
        average_precision_score(targ, probs, average=average), abs=1e-12
    )
    assert roc_auc(probs, targ, average=average) == pytest.approx(
        roc_auc_score(targ, probs, average=average), abs=1e-12
    )


@pytest.mark.parametrize("average", AVERAGES)
def test_weights_of_clips_equal_those_of_scikit_learn(rng, average):
    probs, targ, weights = (
        rng.integers(0, 9, (200, 6)),
        rng.integers(0, 2, (200, 6)),
        rng.integers(0, 4, 200).astype(float),
    )
    in_order = SortedScores(check_inputs(probs, targ), average)
    options = {"average": average, "sample_weight": weights}
    assert in_order.average_precision(weights).mean() == pytest.approx(
        average_precision_score(targ, probs, **options), abs=1e-12
    )
    assert in_order.auc(weights).mean() == pytest.approx(roc_auc_score(targ, probs, **options), abs=1e-12)


def test_a_weight_is_a_number_of_copies(rng):
    probs, targ, weights = rng.integers(0, 9, (50, 4)), rng.integers(0, 2, (50, 4)), rng.integers(0, 4, 50)
    copies = SortedScores(check_inputs(probs.repeat(weights, axis=0), targ.repeat(weights, axis=0)))
    in_order = SortedScores(check_inputs(probs, targ))
    np.testing.assert_allclose(
        in_order.average_precision(weights.astype(float)), copies.average_precision(), atol=1e-12
    )
    np.testing.assert_allclose(in_order.auc(weights.astype(float)), copies.auc(), atol=1e-12)


def test_d_prime_is_the_normal_quantile_of_the_mean_auc(rng):
    probs, targ = rng.random((100, 5)), rng.integers(0, 2, (100, 5))
    for average in AVERAGES:
        expected = math.sqrt(2) * statistics.NormalDist().inv_cdf(roc_auc_score(targ, probs, average=average))
        assert d_prime(probs, targ, average=average) == pytest.approx(expected, abs=1e-9)


def test_d_prime_is_the_distance_of_two_normal_distributions(rng):
    probs = np.concatenate([rng.normal(1.5, 1, (50_000, 1)), rng.normal(0, 1, (50_000, 1))])
    assert d_prime(probs, np.repeat([[1], [0]], 50_000, axis=0)) == pytest.approx(1.5, abs=0.02)


def test_nothing_out_of_order_is_infinite():
    assert d_prime([[2.0], [1.0]], [[1], [0]]) == math.inf and d_prime([[1.0], [2.0]], [[1], [0]]) == -math.inf


def test_tags_without_a_value_are_left_out_of_the_mean(rng):
    probs, targ = rng.random((30, 4)), rng.integers(0, 2, (30, 4))
    targ[:, 1], targ[:, 2] = 0, 1  # in no clip, in every clip
    assert mean_ap(probs, targ) == pytest.approx(average_precision_score(targ[:, [0, 2, 3]], probs[:, [0, 2, 3]]))
    assert roc_auc(probs, targ) == pytest.approx(roc_auc_score(targ[:, [0, 3]], probs[:, [0, 3]]))
    assert mean_ap(probs, targ, average="micro") == pytest.approx(average_precision_score(targ, probs, average="micro"))


def test_without_any_tag_there_is_no_score():
    for score in (mean_ap, roc_auc, d_prime):
        for average in AVERAGES:
            assert math.isnan(score(np.zeros((3, 2)), np.zeros((3, 2)), average=average))
            assert math.isnan(score(np.zeros((0, 2)), np.zeros((0, 2)), average=average))


@settings(deadline=None)
@given(tied_cases(), st.randoms(use_true_random=False))
def test_neither_the_order_of_clips_nor_that_of_tags_matters(case, random):
    probs, targ = case
    rows, columns = list(range(len(probs))), list(range(probs.shape[1]))
    random.shuffle(rows)
    random.shuffle(columns)
    moved = np.ix_(rows, columns)
    for average in AVERAGES:
        for score in (mean_ap, roc_auc):
            assert score(probs[moved], targ[moved], average=average) == pytest.approx(
                score(probs, targ, average=average), abs=1e-12
            )


def test_only_the_order_within_a_tag_counts(rng):
    probs, targ = rng.random((50, 5)), rng.integers(0, 2, (50, 5))
    stretched = np.exp(probs * [1, 2, 3, 4, 5]) + [5, 4, 3, 2, 1]
    assert mean_ap(stretched, targ) == mean_ap(probs, targ) and roc_auc(stretched, targ) == roc_auc(probs, targ)
    assert mean_ap(stretched, targ, average="micro") != mean_ap(probs, targ, average="micro")


def test_infinite_scores_unsigned_bytes_and_tensors(rng):
    targ = rng.integers(0, 2, (20, 3))
    small = rng.integers(0, 256, (20, 3)).astype(np.uint8)
    assert mean_ap(small, targ) == mean_ap(small.astype(float), targ)
    assert roc_auc(torch.tensor(small).float().requires_grad_(), torch.tensor(targ)) == roc_auc(small, targ)
    logits = np.array([[-math.inf], [0.0], [math.inf], [math.inf]])
    assert roc_auc(logits, [[0], [1], [1], [0]]) == pytest.approx(roc_auc_score([0, 1, 1, 0], [-9, 0, 9, 9]))


def test_the_table_of_the_tags(rng):
    probs, targ = rng.random((40, 4)), rng.integers(0, 2, (40, 4))
    targ[:, 1], targ[:, 2] = 0, 1
    table = tag_scores(probs, targ, ["Bark", "Meow", "Oboe", "Purr"]).set_index("tag")
    assert list(table.columns) == ["clips", "lwlrap", "weight", "ap", "auc", "d_prime"]
    assert table["clips"].tolist() == targ.sum(axis=0).tolist() and table["weight"].sum() == pytest.approx(1)
    assert table.loc["Meow", ["lwlrap", "ap", "auc", "d_prime"]].isna().all()
    for i, tag in [(0, "Bark"), (3, "Purr")]:
        auc = roc_auc_score(targ[:, i], probs[:, i])
        expected = [lwlrap_per_class(probs, targ).scores[i], average_precision_score(targ[:, i], probs[:, i]), auc,
                    math.sqrt(2) * statistics.NormalDist().inv_cdf(auc)]
        np.testing.assert_allclose(
            table.loc[tag, ["lwlrap", "ap", "auc", "d_prime"]].astype(float), expected, atol=1e-9
        )
    assert (
        table.loc["Oboe", "ap"] == 1
        and math.isnan(table.loc["Oboe", "auc"])
        and math.isnan(table.loc["Oboe", "d_prime"])
    )


def test_tags_are_numbered_where_they_have_no_names():
    assert tag_scores(np.zeros((2, 3)), np.eye(3)[:2])["tag"].tolist() == [0, 1, 2]
    with pytest.raises(ShapeError, match="2 names of tags; probs has 3 columns"):
        tag_scores(np.zeros((2, 3)), np.eye(3)[:2], ["Bark", "Meow"])


def test_what_cannot_be_ranked_is_named():
    for score in (mean_ap, roc_auc, d_prime, tag_scores):
        with pytest.raises(DataError, match="NaN at clip 0, tag 1"):
            score([[0.5, math.nan]], [[1, 0]])
        with pytest.raises(ShapeError, match=r"\(1, 2\) and targ \(1, 1\)"):
            score([[0.5, 0.5]], [[1]])
    for score in (mean_ap, roc_auc, d_prime):
        with pytest.raises(OptionError, match="average is 'weighted'; expected 'macro'"):
            score([[0.5]], [[1]], average="weighted")
