"""Intervals against a slow bootstrap of rows, against scipy's, by their coverage of the true score, and as text."""

import math

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from fatai.errors import DataError, OptionError, ShapeError
from fatai.metrics.bootstrap import Difference, Interval, score_difference, score_interval
from fatai.metrics.classification import d_prime, mean_ap, roc_auc
from fatai.metrics.ranking import lwlrap

NAMED = {
    "lwlrap": lwlrap,
    "map": lambda p, t: average_precision_score(t, p),
    "map_micro": lambda p, t: average_precision_score(t, p, average="micro"),
    "auc": lambda p, t: roc_auc_score(t, p),
    "auc_micro": lambda p, t: roc_auc_score(t, p, average="micro"),
    "d_prime": lambda p, t: math.sqrt(2) * norm.ppf(roc_auc_score(t, p)),
    "d_prime_micro": lambda p, t: math.sqrt(2) * norm.ppf(roc_auc_score(t, p, average="micro")),
}


@pytest.fixture
def case(rng):
    """Probabilities of two models, the first the better, and targets, (150 clips, 4 tags); some scores are tied."""
    targ = (rng.random((150, 4)) < 0.4).astype(int)
    first, second = ((targ + rng.normal(0, noise, targ.shape)).round(1) for noise in (0.8, 3.0))
    return first, second, targ


@pytest.mark.parametrize("name", NAMED)
def test_a_named_score_equals_that_of_scikit_learn_on_resampled_rows(case, name):
    first, second, targ = case
    score = NAMED[name]
    fast, slow = score_interval(first, targ, name, n_resamples=40), score_interval(first, targ, score, n_resamples=40)
    assert fast.value == pytest.approx(score(first, targ))
    np.testing.assert_allclose([fast.low, fast.high], [slow.low, slow.high], atol=1e-9)
    fast, slow = (
        score_difference(first, second, targ, name, n_resamples=40),
        score_difference(first, second, targ, score, n_resamples=40),
    )
    assert fast.value == pytest.approx(score(first, targ) - score(second, targ))
    np.testing.assert_allclose([fast.low, fast.high], [slow.low, slow.high], atol=1e-9)


def test_the_interval_is_scipy_s(case):
    first, second, targ = case

    def score(rows):
        return lwlrap(first[rows], targ[rows])

    def difference(rows):
        return score(rows) - lwlrap(second[rows], targ[rows])

    options = {"n_resamples": 2000, "method": "percentile", "vectorized": False, "rng": 1}
    found = score_interval(first, targ, n_resamples=2000)
    apart = score_difference(first, second, targ, n_resamples=2000)
    for ours, statistic in [(found, score), (apart, difference)]:
        theirs = scipy_bootstrap([np.arange(len(targ))], statistic, **options).confidence_interval
        width = theirs.high - theirs.low
        np.testing.assert_allclose([ours.low, ours.high], [theirs.low, theirs.high], atol=0.1 * width)


def test_clips_of_one_tag_found_or_not_follow_the_binomial():
    # lwlrap of such clips is 1 or 1/2, so the mean of n is 1/2 + (fraction found) / 2, of standard error sqrt(p (1 - p)
    # / n) / 2.
    n, p = 10_000, 0.3
    probs = np.tile([0.2, 0.8], (n, 1))
    probs[: int(p * n)] = [0.8, 0.2]
    found = score_interval(probs, np.tile([1, 0], (n, 1)), n_resamples=4000)
    half = norm.ppf(0.975) * math.sqrt(p * (1 - p) / n) / 2
    assert found.value == pytest.approx(0.65)
    np.testing.assert_allclose([found.low, found.high], [0.65 - half, 0.65 + half], atol=0.1 * half)


@pytest.mark.slow
def test_the_coverage_is_the_confidence_level(rng):
    covered, trials, n = 0, 400, 200
    for trial in range(trials):
        ranks = rng.integers(1, 5, n)  # of the only tag among four
        probs = np.tile([4.0, 3.0, 2.0, 1.0], (n, 1))
        targ = np.eye(4)[ranks - 1]
        found = score_interval(probs, targ, n_resamples=500, confidence_level=0.9, seed=trial)
        covered += found.low <= (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4 <= found.high
    assert 0.85 < covered / trials < 0.95


def test_paired_intervals_are_narrower_than_those_of_the_scores(case):
    first, _, targ = case
    nearly = first + np.random.default_rng(1).normal(0, 0.05, first.shape)
    one, two, both = score_interval(first, targ), score_interval(nearly, targ), score_difference(first, nearly, targ)
    apart = math.hypot(one.high - one.low, two.high - two.low)
    assert both.high - both.low < apart / 2


def test_better_worse_and_the_same(case):
    first, second, targ = case
    better, worse = score_difference(first, second, targ), score_difference(second, first, targ)
    assert better.is_significant and better.low > 0 and worse.is_significant
    np.testing.assert_allclose(
        [-worse.value, -worse.high, -worse.low], [better.value, better.low, better.high], atol=0.003
    )
    same = score_difference(first, first * 2, targ)
    assert (same.value, same.low, same.high, same.is_significant) == (0, 0, 0, False)


def test_a_wider_level_is_a_wider_interval(case):
    first, _, targ = case
    wide, narrow = score_interval(first, targ, confidence_level=0.99), score_interval(first, targ, confidence_level=0.5)
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_a_seed_repeats(case):
    first, _, targ = case
    assert (
        score_interval(first, targ, seed=3)
        == score_interval(first, targ, seed=3)
        != score_interval(first, targ, seed=4)
    )


def test_any_function_may_be_the_score(case):
    first, second, targ = case
    accuracy = score_interval(first, targ, lambda p, t: float((p.argmax(1) == t.argmax(1)).mean()), n_resamples=50)
    assert 0 < accuracy.low < accuracy.value < accuracy.high < 1
    for name, score in {"map": mean_ap, "auc": roc_auc, "d_prime": d_prime}.items():
        by_name, by_function = (score_difference(first, second, targ, s, n_resamples=5) for s in (name, score))
        assert by_name.value == pytest.approx(by_function.value)


def test_resamples_without_a_score_are_ignored():
    # One clip of three has a tag; the resamples without it have no score.
    found = score_interval([[0.9, 0.1]] * 3, [[0, 1], [0, 0], [0, 0]])
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


def test_an_infinite_d_prime_has_an_interval():
    found = score_interval([[0.9], [0.8], [0.1], [0.2]], [[1], [1], [0], [0]], "d_prime")
    assert (found.value, found.low, found.high) == (math.inf,) * 3


@pytest.mark.parametrize(("result", "text"), [
    (Difference(0.0031, -0.0042, 0.0099, 0.95), "0.003 better, 95 % interval -0.004 to 0.010"),
    (Difference(-0.0031, -0.0099, 0.0042, 0.95), "0.003 worse, 95 % interval -0.010 to 0.004"),
    (Difference(0.0, -0.0001, 0.0001, 0.9), "no different, 90 % interval 0.000 to 0.000"),
    (Interval(0.8534, 0.8411, 0.8654, 0.995), "0.853, 99.5 % interval 0.841 to 0.865"),
])
def test_text(result, text):
    assert str(result) == text


def test_significant_intervals_exclude_zero():
    assert Difference(0.1, 0.01, 0.2, 0.95).is_significant and Difference(-0.1, -0.2, -0.01, 0.95).is_significant
    assert not Difference(0.1, 0.0, 0.2, 0.95).is_significant and not Difference(-0.1, -0.2, 0.0, 0.95).is_significant


@pytest.mark.parametrize(("options", "message"), [
    ({"score": "mapp"}, r"no score named 'mapp', and it is not a function of \(probs, targ\); did you mean map\?$"),
    ({"n_resamples": 0}, "n_resamples is 0"),
    ({"confidence_level": 95}, "confidence_level 95; expected .* between 0 and 1, such as 0.95"),
])
def test_options_that_do_not_fit_are_named(case, options, message):
    with pytest.raises(OptionError, match=message):
        score_interval(case[0], case[2], **options)
    with pytest.raises(OptionError, match=message):
        score_difference(*case, **options)


def test_tables_that_do_not_fit_are_named(case):
    first, _, targ = case
    with pytest.raises(ShapeError, match=r"\(149, 4\) and targ \(150, 4\)"):
        score_difference(first, first[1:], targ)
    with pytest.raises(DataError, match="no clip has a tag"):
        score_interval(first, targ * 0)
