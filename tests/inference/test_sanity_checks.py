"""Warnings about predictions with a planted problem, and none about sound predictions."""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import ks_2samp

from fatai.errors import SubmissionError
from fatai.inference.predictions import Predictions
from fatai.inference.sanity_checks import constant_tags, sanity_warnings, shifted_tags, tied_fractions

TAGS = tuple(f"tag{i}" for i in range(10))


def made(probs, tags=TAGS):
    return Predictions([str(i) for i in range(len(probs))], tags, probs)


@pytest.fixture
def probs(rng):
    return expit(rng.normal(-2, 2, (300, 10)))


def test_sound_predictions_have_no_warnings(probs, rng):
    assert sanity_warnings(made(probs)) == []
    assert sanity_warnings(made(probs), made(expit(rng.normal(-2, 2, (400, 10))))) == []


def test_constant_tags_are_named(probs):
    probs[:, [2, 5]] = 0.25, 0.75
    assert constant_tags(made(probs)) == ["tag2", "tag5"]
    (warning,) = sanity_warnings(made(probs))
    assert warning.startswith("2 of 10 tags are the same in every clip: 'tag2', 'tag5'")
    assert constant_tags(made(probs[:1])) == [], "one clip alone is always the same"


def test_ties_worked_by_hand():
    # First clip: 0.1 three times; second: first place shared; third: none. 5 of 12 values, 1 of 3 clips.
    table = made([[0.1, 0.1, 0.9, 0.1], [0.5, 0.5, 0.1, 0.2], [0.1, 0.2, 0.3, 0.4]], TAGS[:4])
    assert tied_fractions(table) == (5 / 12, 1 / 3)
    assert tied_fractions(made(np.zeros((2, 1)), TAGS[:1])) == (0, 0)
    assert tied_fractions(Predictions([], TAGS, np.zeros((0, 10)))) == (0, 0)


def test_many_ties_are_a_warning(probs):
    probs[:, 0] += 0.5 * (1 - probs[:, 0])
    low = made(np.where(probs < 0.2, 0, probs))
    (warning,) = sanity_warnings(low)
    fraction = np.mean([(row == other).sum() > 1 for row in low.probs for other in row])
    assert warning.startswith(f"{fraction:.0%} of the values are shared by tags of the same clip")
    probs[:30, :2] = 1
    assert sanity_warnings(made(probs)) == [
        "in 10% of the clips several tags share the first place; ties lower the score"
    ]


def test_shifted_tags_are_named_the_farthest_first(probs, rng):
    other = expit(rng.normal(-2, 2, (400, 10)))
    other[:, 7] = expit(rng.normal(0, 2, 400))
    other[:, 1] = expit(rng.normal(3, 2, 400))
    found = shifted_tags(made(probs), made(other[:, ::-1], TAGS[::-1]))
    assert [tag for tag, _ in found] == ["tag1", "tag7"]
    assert found[0][1] == pytest.approx(ks_2samp(probs[:, 1], other[:, 1]).statistic)
    assert shifted_tags(made(probs), made(other), min_shift=found[1][1] + 1e-9) == found[:1], "significant, but small"
    (warning,) = sanity_warnings(made(probs), made(other))
    assert warning.startswith("2 of 10 tags have another distribution") and "'tag1' (by 0." in warning
    with pytest.raises(SubmissionError, match="lack the tags 'tag9'"):
        shifted_tags(made(probs), made(other[:, :9], TAGS[:9]))


def test_alpha_is_over_all_tags(probs, rng):
    other = probs.copy()
    other[:, 4] = expit(rng.normal(-1.5, 2, 300))
    chance = ks_2samp(probs[:, 4], other[:, 4]).pvalue
    for times, found in ((11, ["tag4"]), (9, [])):
        assert [tag for tag, _ in shifted_tags(made(probs), made(other), min_shift=0.01, alpha=times * chance)] == found


def test_a_shift_of_few_clips_is_no_warning():
    # Fully separated, but three clips are not significant.
    assert shifted_tags(made(np.full((3, 10), 0.1) * np.arange(1, 11)), made(np.full((3, 10), 0.9))) == []
