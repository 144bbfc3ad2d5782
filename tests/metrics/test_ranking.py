"""lwlrap by hand, against scikit-learn, against the competition's loop, and by its properties."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import label_ranking_average_precision_score

from fatai.errors import DataError, ShapeError
from fatai.metrics.ranking import _precision_reference, lwlrap, lwlrap_per_class, precision_hits


def sklearn_lwlrap(scores, targ):
    """Clips weighted by their number of tags, which leaves out those without any."""
    return label_ranking_average_precision_score(targ, scores, sample_weight=targ.sum(axis=1))


def official_lwlrap(scores, targ):
    """The competition's loop over clips: scores and weights of the tags, and their weighted sum."""
    sums, counts = [0.0] * targ.shape[1], [0] * targ.shape[1]
    for clip_scores, clip_targ in zip(scores, targ, strict=True):
        found = 0
        for rank, tag in enumerate(np.argsort(clip_scores)[::-1], start=1):
            if clip_targ[tag]:
                found += 1
                sums[tag] += found / rank
                counts[tag] += 1
    per_tag = np.array([s / max(1, c) for s, c in zip(sums, counts, strict=True)])
    weights = np.array(counts) / sum(counts)
    return per_tag, weights, float((per_tag * weights).sum())


@st.composite
def tied_cases(draw):
    """Few different scores, so that many are tied; at least one tag is present."""
    shape = draw(st.tuples(st.integers(1, 8), st.integers(2, 9)))
    targ = draw(hnp.arrays(np.int64, shape, elements=st.integers(0, 1)))
    targ[0, 0] = 1
    return draw(hnp.arrays(np.float64, shape, elements=st.integers(-2, 2).map(float))), targ


def random_case(rng, clips=60, tags=12):
    """Scores of which no two are equal; some clips have several tags, some none."""
    targ = (rng.random((clips, tags)) < 0.15).astype(int)
    targ[: clips // 4] = 0
    targ[-1, 3] = 1
    return rng.permutation(clips * tags).reshape(clips, tags) / (clips * tags), targ


@pytest.mark.parametrize(("scores", "targ", "expected"), [
    ([[0.9, 0.1, 0.2]], [[1, 0, 0]], 1.0),
    ([[0.9, 0.1, 0.2]], [[0, 1, 0]], 1 / 3),
    # Two tags at ranks 2 and 3: (1/2 + 2/3) / 2.
    ([[0.9, 0.8, 0.1]], [[0, 1, 1]], 7 / 12),
    # The clip with two tags weighs twice as much: (1 + 1 + 1/2) / 3, not (1 + 1/2) / 2.
    ([[0.9, 0.8, 0.1], [0.5, 0.6, 0.1]], [[1, 1, 0], [1, 0, 0]], 5 / 6),
    # A clip without a tag is ignored.
    ([[0.9, 0.1], [0.9, 0.1]], [[0, 1], [0, 0]], 0.5),
    # All tied: each tag ranks last of three.
    ([[0.0, 0.0, 0.0]], [[1, 0, 0]], 1 / 3),
    ([[0.0, 0.0, 0.0]], [[1, 1, 0]], 2 / 3),
    ([[-math.inf, 0.0, math.inf]], [[1, 0, 1]], (1 + 2 / 3) / 2),
])
def test_worked_by_hand(scores, targ, expected):
    assert lwlrap(scores, targ) == pytest.approx(expected, abs=1e-15)


def test_per_tag_worked_by_hand():
    # Clip 1: tags 0 and 1 rank 1 and 3, hence 1 and 2/3. Clip 2: tag 1 ranks 2. No clip has tag 3.
    scores, weights = lwlrap_per_class([[4, 2, 3, 1], [1, 3, 4, 2]], [[1, 1, 0, 0], [0, 1, 0, 0]])
    np.testing.assert_allclose(scores, [1, (2 / 3 + 1 / 2) / 2, 0, 0], atol=1e-15)
    np.testing.assert_allclose(weights, [1 / 3, 2 / 3, 0, 0], atol=1e-15)


@settings(deadline=None)
@given(tied_cases())
def test_equals_scikit_learn_also_where_scores_are_tied(case):
    scores, targ = case
    assert lwlrap(scores, targ) == pytest.approx(sklearn_lwlrap(scores, targ), abs=1e-12)


def test_equals_the_official_loop_where_nothing_is_tied(rng):
    scores, targ = random_case(rng)
    per_tag, weights, overall = official_lwlrap(scores, targ)
    assert lwlrap(scores, targ) == pytest.approx(overall, abs=1e-12)
    ours = lwlrap_per_class(scores, targ)
    np.testing.assert_allclose(ours.scores, per_tag, atol=1e-12)
    np.testing.assert_allclose(ours.weights, weights, atol=1e-12)


@settings(deadline=None)
@given(tied_cases())
def test_precisions_equal_their_definition_clip_by_clip(case):
    hits = precision_hits(*case)
    assert np.array_equal(hits.precision, _precision_reference(*case))
    assert np.array_equal(np.argwhere(case[1]), np.stack([hits.clips, hits.tags], axis=1))


def test_precisions_equal_their_definition_with_many_clips(rng):
    scores, targ = random_case(rng, clips=500, tags=80)
    assert np.array_equal(precision_hits(scores, targ).precision, _precision_reference(scores, targ))
    assert np.array_equal(_precision_reference(np.zeros((2, 3)), np.zeros((2, 3))), np.zeros(0))


@pytest.mark.parametrize("tags", [255, 256, 300])
def test_more_tags_than_a_byte_counts(rng, tags):
    scores, targ = random_case(rng, clips=4, tags=tags)
    targ[3] = 1
    assert lwlrap(scores, targ) == pytest.approx(sklearn_lwlrap(scores, targ), abs=1e-12)


@settings(deadline=None)
@given(tied_cases(), st.randoms(use_true_random=False))
def test_neither_the_order_of_clips_nor_that_of_tags_matters(case, random):
    scores, targ = case
    rows, columns = list(range(len(scores))), list(range(scores.shape[1]))
    random.shuffle(rows)
    random.shuffle(columns)
    moved = np.ix_(rows, columns)
    assert lwlrap(scores[moved], targ[moved]) == pytest.approx(lwlrap(scores, targ), abs=1e-12)
    np.testing.assert_allclose(
        lwlrap_per_class(scores[moved], targ[moved]).scores, lwlrap_per_class(scores, targ).scores[columns], atol=1e-12
    )


@settings(deadline=None)
@given(tied_cases())
def test_the_weighted_sum_of_the_tags_is_the_whole(case):
    scores, weights = lwlrap_per_class(*case)
    assert (scores * weights).sum() == pytest.approx(lwlrap(*case), abs=1e-12)
    assert weights.sum() == pytest.approx(1)


def test_only_the_order_within_a_clip_counts(rng):
    scores, targ = random_case(rng)
    assert (
        lwlrap(1 / (1 + np.exp(-scores)), targ)
        == lwlrap(scores * rng.uniform(1, 2, (60, 1)), targ)
        == lwlrap(scores, targ)
    )
    assert lwlrap(scores * np.linspace(0.1, 1, 12), targ) != lwlrap(scores, targ)


def test_ties_are_not_decided_by_the_column():
    tied = np.zeros((2, 4))
    assert {lwlrap(tied[:1], np.eye(4)[[tag]]) for tag in range(4)} == {0.25}
    assert official_lwlrap(tied[:1], np.eye(4)[[3]])[2] != official_lwlrap(tied[:1], np.eye(4)[[0]])[2]


def test_arrays_tensors_frames_and_lists_of_any_type_score_alike(rng):
    scores, targ = random_case(rng, clips=6)
    expected = lwlrap(scores, targ)
    assert lwlrap(torch.tensor(scores, requires_grad=True), torch.tensor(targ).bool()) == expected
    assert lwlrap(pd.DataFrame(scores), pd.DataFrame(targ).astype(float)) == expected
    assert lwlrap(scores.tolist(), targ.tolist()) == expected
    assert lwlrap(np.asfortranarray(scores), np.asfortranarray(targ.astype(bool))) == expected
    # Whole numbers in place of fractions, as unsigned bytes too.
    assert lwlrap((scores * 72).round().astype(np.uint8), targ) == expected
    halves = torch.tensor(scores, dtype=torch.bfloat16)
    assert lwlrap(halves, targ) == lwlrap(halves.double().numpy(), targ)


def test_the_input_is_left_as_it_was(rng):
    scores, targ = random_case(rng)
    before = scores.copy(), targ.copy()
    lwlrap_per_class(scores, targ)
    assert (scores == before[0]).all() and (targ == before[1]).all()


def test_without_any_tag_there_is_no_score():
    assert math.isnan(lwlrap(np.zeros((3, 4)), np.zeros((3, 4))))
    assert math.isnan(lwlrap(np.zeros((0, 4)), np.zeros((0, 4))))
    assert lwlrap_per_class(np.zeros((3, 4)), np.zeros((3, 4))).weights.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(("probs", "targ", "error", "message"), [
    (np.zeros((2, 3)), np.zeros((3, 2)), ShapeError, r"\(2, 3\) and targ \(3, 2\); expected both as \(clips, tags\)"),
    (np.zeros(3), np.zeros(3), ShapeError, r"shape \(3,\)"),
    ([[0.5, 0.1], [0.2, math.nan]], [[1, 0], [0, 1]], DataError, "NaN at clip 1, tag 1"),
    ([[0.5, 0.1]], [[1, 0.3]], DataError, "targ has 0.3 at clip 0, tag 1; expected 0 or 1"),
    ([[0.5, 0.1]], [[-1, 1]], DataError, "targ has -1 at clip 0, tag 0"),
    ([[0.5, 0.1]], [[math.nan, 1]], DataError, "targ has nan at clip 0, tag 0"),
    ([["a", "b"]], [[0, 1]], DataError, "expected numbers"),
])
def test_what_cannot_be_ranked_is_named(probs, targ, error, message):
    for score in (lwlrap, lwlrap_per_class):
        with pytest.raises(error, match=message):
            score(probs, targ)
