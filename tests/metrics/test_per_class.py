"""What stands behind each tag's score, against brute force and against what is counted by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fatai.errors import DataError, OptionError, ShapeError
from fatai.metrics.per_class import confusions, tag_costs, tag_intervals
from fatai.metrics.ranking import lwlrap, lwlrap_per_class

TAGS = ["Bark", "Meow", "Purr"]


@st.composite
def clips_and_tags(draw):
    """Few clips and tags with few different scores, so that many tie."""
    n, k = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    probs = draw(
        st.lists(st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9]), min_size=k, max_size=k), min_size=n, max_size=n)
    )
    targ = draw(st.lists(st.lists(st.booleans(), min_size=k, max_size=k), min_size=n, max_size=n))
    return np.array(probs), np.array(targ)


def gained(probs, targ, k, rows):
    """What lwlrap gains when a tag is ranked perfectly in some clips."""
    better = probs.copy()
    better[rows, k] = np.where(targ[rows, k], 2, -1)
    return lwlrap(better, targ) - lwlrap(probs, targ)


@given(clips_and_tags())
@settings(max_examples=200, deadline=None)
def test_a_tags_cost_is_what_its_perfection_would_gain(given_):
    probs, targ = given_
    table = tag_costs(probs, targ)
    for k, row in table.iterrows():
        if targ.any():
            assert row["cost"] == pytest.approx(gained(probs, targ, k, np.arange(len(probs))), abs=1e-12)
            assert row["missed"] == pytest.approx(gained(probs, targ, k, targ[:, k]), abs=1e-12)
            assert row["false_alarms"] == pytest.approx(gained(probs, targ, k, ~targ[:, k]), abs=1e-12)
        else:
            assert row["cost"] == 0
    assert (table[["missed", "false_alarms"]] >= -1e-12).all(axis=None) and list(table["clips"]) == list(targ.sum(0))


def test_a_perfect_order_costs_nothing_and_a_single_tag_takes_all_of_its_clip():
    assert (tag_costs([[0.9, 0.8, 0.1], [0.0, 0.2, 0.3]], [[1, 1, 0], [0, 0, 1]])["cost"] == 0).all()
    # The clip's tag is third of three: precision 1/3; without one of the others 1/2.
    table = tag_costs([[0.1, 0.2, 0.3]], [[1, 0, 0]], TAGS)
    np.testing.assert_allclose(table["cost"], [2 / 3, 1 / 6, 1 / 6])
    assert list(table["tag"]) == TAGS


@given(clips_and_tags())
@settings(max_examples=100, deadline=None)
def test_confusions_are_counted_clip_by_clip(given_):
    probs, targ = given_
    table = confusions(probs, targ)
    found = {(r.tag, r.above): (r.clips, r.total, r.both) for r in table.itertuples()}
    for a, b in itertools.permutations(range(probs.shape[1]), 2):
        clips = sum(t[a] and not t[b] and p[b] >= p[a] for p, t in zip(probs, targ, strict=True))
        total, both = sum(t[a] and not t[b] for t in targ), sum(t[a] and t[b] for t in targ)
        assert found.pop((a, b), (0, total, both)) == (clips, total, both)
    assert not found
    assert table["clips"].is_monotonic_decreasing
    assert ((table["fraction"] * table["total"]).round(9) == table["clips"]).all()


def test_confusions_of_a_perfect_order_are_an_empty_table():
    table = confusions([[0.9, 0.1]], [[1, 0]], ["a", "b"])
    assert len(table) == 0 and list(table.columns) == ["tag", "above", "clips", "total", "fraction", "both"]


def test_intervals_belong_to_each_tags_lwlrap(rng):
    probs, targ = rng.random((60, 3)), rng.random((60, 3)) < 0.3
    table = tag_intervals(probs, targ, TAGS)
    np.testing.assert_allclose(table["lwlrap"], lwlrap_per_class(probs, targ).scores)
    assert list(table["clips"]) == list(targ.sum(0)) and list(table["tag"]) == TAGS
    assert ((table["low"] < table["lwlrap"]) & (table["lwlrap"] < table["high"])).all()
    assert tag_intervals(probs, targ, TAGS).equals(table), "the same seed draws the same clips"
    assert not tag_intervals(probs, targ, TAGS, seed=1).equals(table)


def test_an_interval_is_that_of_all_draws_that_there_are():
    # Precisions 1, 1/2, 1/3 and 1/4 of the only tag that any clip has: 256 equally likely draws of four.
    probs = [[4, 1, 2, 3], [3, 1, 4, 2], [2, 1, 3, 4], [1, 2, 3, 4]]
    targ = [[1, 0, 0, 0]] * 4
    means = np.mean(list(itertools.product([1, 1 / 2, 1 / 3, 1 / 4], repeat=4)), axis=1)
    row = tag_intervals(probs, targ, n_resamples=200_000).iloc[0]
    assert row["lwlrap"] == pytest.approx(25 / 48)
    # Ends fall between values of a coarse distribution: at most one value beside.
    near = np.unique(means.round(9))
    for got, share in ((row["low"], 0.025), (row["high"], 0.975)):
        at = np.searchsorted(near, round(got, 9))
        assert abs(at - np.searchsorted(near, round(np.quantile(means, share, method="nearest"), 9))) <= 1


def test_rare_tags_have_honest_intervals():
    table = tag_intervals([[0.2, 0.9, 0.1], [0.9, 0.2, 0.1]], [[1, 0, 0], [1, 0, 0]], TAGS)
    assert table.loc[0, ["low", "high"]].tolist() == [0.5, 1.0]
    assert table.loc[1:, ["lwlrap", "low", "high"]].isna().all(axis=None) and list(table["clips"]) == [2, 0, 0]


def test_invalid_arguments_are_named():
    for score in (tag_costs, tag_intervals, confusions):
        with pytest.raises(ShapeError, match="there are 2 names of tags; probs has 3 columns"):
            score(np.zeros((1, 3)), np.zeros((1, 3)), ["a", "b"])
        with pytest.raises(DataError, match="NaN"):
            score([[np.nan]], [[1]])
    with pytest.raises(OptionError, match="n_resamples is 0"):
        tag_intervals([[1.0]], [[1]], n_resamples=0)
