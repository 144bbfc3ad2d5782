"""The 3rd place's modes by hand and against scikit-learn, and the ties that the published tool leaves to chance."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import label_ranking_average_precision_score, log_loss

from fatai.errors import OptionError, UnknownNameError
from fatai.noisy_labels.pseudo_labels import cardinality_threshold, label_ranking_agreement, mean_log_loss
from fatai.noisy_labels.selection import attach_predictions
from fatai.registry import NOISY

TAGS = ["Bark", "Meow", "Purr"]
# Not in the order of the names, and the probabilities in yet another one: what 5 modes got wrong when labels went by
# position.
TABLE = pd.DataFrame({"fname": ["d.wav", "b.wav", "c.wav", "a.wav"], "labels": ["Bark", "Meow", "Bark,Purr", "Purr"]})
PREDICTED = {"a.wav": [0.1, 0.2, 0.3], "b.wav": [0.6, 0.3, 0.1], "c.wav": [0.7, 0.2, 0.8], "d.wav": [0.9, 0.1, 0.2]}
DATA = attach_predictions(TABLE, TAGS, list(PREDICTED.values()), list(PREDICTED))


def kept(name, data=DATA, **options):
    """Clip to labels."""
    selection = NOISY.build(name, **options)(data)
    return dict(zip(selection.fnames, selection.labels, strict=True))


# A mean of one tag a clip is reached between 0.3 and 0.6: Bark for d and b, Bark and Purr for c, nothing for a.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fullmatch_1.0", {"d.wav": ["Bark"], "c.wav": ["Bark", "Purr"]}),
        ("relabelall_1.0", {"d.wav": ["Bark"], "b.wav": ["Bark"], "c.wav": ["Bark", "Purr"]}),
        ("relabelall-replacenan_1.0", {"d.wav": ["Bark"], "b.wav": ["Bark"], "c.wav": ["Bark", "Purr"]}),
        (
            "relabelall-merge_1.0",
            {"d.wav": ["Bark"], "b.wav": ["Bark", "Meow"], "c.wav": ["Bark", "Purr"], "a.wav": ["Purr"]},
        ),
        # Two tags a clip: 9 values above 0.1 are 2.25 a clip, the 6 above 0.2 only 1.5.
        (
            "relabelall_2.0",
            {"d.wav": ["Bark", "Purr"], "b.wav": ["Bark", "Meow"], "c.wav": TAGS, "a.wav": ["Meow", "Purr"]},
        ),
        # Agreement is 1 for d, c and a, 1/2 for b; of the former d has the lowest log loss, then c.
        ("scoring_1", {"d.wav": ["Bark"]}),
        ("scoring_2", {"d.wav": ["Bark"], "c.wav": ["Bark", "Purr"]}),
        ("scoring_3", {"d.wav": ["Bark"], "c.wav": ["Bark", "Purr"], "a.wav": ["Purr"]}),
        ("scoring_4", {"d.wav": ["Bark"], "b.wav": ["Meow"], "c.wav": ["Bark", "Purr"], "a.wav": ["Purr"]}),
    ],
)
def test_each_mode_on_a_table_worked_out_by_hand(name, expected):
    assert kept(name) == expected


def test_kept_clips_stay_in_the_order_of_the_table_with_reasons():
    selection = NOISY.build("relabelall_1.0")(DATA)
    assert selection.fnames == ("d.wav", "b.wav", "c.wav")
    assert selection.clips["reason"].tolist() == ["as given", "relabelled", "as given", "without a predicted label"]
    assert selection.clips["changed"].tolist() == [False, True, False, False]
    assert str(selection).startswith("relabelall: 3 of 4 clips kept (2 as given, ")


def test_third_place_keeps_the_best_as_given_and_pseudo_labels_the_rest():
    assert kept("third_place_pseudo_labels", k=1, cardinality=1.0) == {
        "d.wav": ["Bark"],
        "b.wav": ["Bark"],
        "c.wav": ["Bark", "Purr"],
    }
    assert kept("third_place_pseudo_labels", k=3, cardinality=1.0) == {
        "d.wav": ["Bark"],
        "b.wav": ["Bark"],
        "c.wav": ["Bark", "Purr"],
        "a.wav": ["Purr"],
    }


def test_without_a_parameter_the_threshold_leaves_as_many_tags_as_are_given():
    # 5 given labels over 4 clips; 0.3 is there twice, so 4 or 6 lie above, equally far from 5: the lower threshold, 6,
    # is taken.
    assert kept("relabelall")["a.wav"] == ["Purr"] and kept("relabelall")["b.wav"] == ["Bark", "Meow"]
    assert kept("relabelall") == kept("relabelall", cardinality=1.25) == kept("relabelall_1.25")


def test_equal_clips_are_ordered_by_name():
    names = ["c.wav", "a.wav", "b.wav"]
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        table = pd.DataFrame({"fname": [names[i] for i in order], "labels": "Bark"})
        data = attach_predictions(table, TAGS, [[0.9, 0.1, 0.1]] * 3, names)
        assert set(kept("scoring_2", data)) == {"a.wav", "b.wav"}


def test_a_tie_with_the_label_counts_against_it():
    assert label_ranking_agreement(
        np.array([[0.5, 0.5, 0.1], [0.5, 0.4, 0.1]]), np.array([[1, 0, 0], [1, 0, 0]], dtype=bool)
    ).tolist() == [0.5, 1.0]


probabilities = arrays(np.float64, (6, 4), elements=st.integers(0, 10).map(lambda v: v / 10))
flags = arrays(bool, (6, 4))


@given(probabilities, flags)
@settings(max_examples=50, deadline=None)
def test_agreement_and_log_loss_are_scikit_learns_clip_by_clip(probs, labels):
    by_clip = [label_ranking_average_precision_score(labels[i:i + 1], probs[i:i + 1]) for i in range(6)]
    np.testing.assert_allclose(label_ranking_agreement(probs, labels), by_clip, atol=1e-12)
    inside = probs.clip(1e-7, 1 - 1e-7)
    np.testing.assert_allclose(
        mean_log_loss(probs, labels), [log_loss(labels[i], inside[i], labels=[0, 1]) for i in range(6)], atol=1e-9
    )


@given(arrays(np.float64, (5, 3), elements=st.floats(0, 1)), st.floats(0.1, 3))
@settings(max_examples=50, deadline=None)
def test_no_candidate_comes_closer_than_the_threshold_and_none_below_it_as_close(probs, wanted):
    found = cardinality_threshold(probs, wanted)
    candidates = np.linspace(0, 1, 10_000)
    distance = np.abs(np.array([(probs > t).sum() / 5 for t in candidates]) - wanted)
    assert found.value == candidates[np.flatnonzero(distance == distance.min())[0]]
    assert found.cardinality == (probs > found.value).sum(1).mean()


def test_of_two_thresholds_equally_close_the_lower_is_taken():
    assert cardinality_threshold(np.array([[0.9, 0.6]]), 1.5) == (0.0, 2.0)


def test_a_tag_at_the_threshold_is_not_above_it():
    data = attach_predictions(TABLE.head(1), TAGS, [[0.5, 0.0, 0.2]], ["d.wav"])
    assert kept("relabelall_2", data) == {"d.wav": ["Bark", "Purr"]} and kept("relabelall_3", data) == {
        "d.wav": ["Bark", "Purr"]
    }


def test_more_clips_than_there_are_are_all_kept_with_a_warning():
    with pytest.warns(UserWarning, match="scoring_9 asks for the best 9 of 4 clips: all are kept"):
        assert len(kept("scoring_9")) == 4


@pytest.mark.parametrize("name", ["fullmatch_1.0", "relabelall", "relabelall-merge_1"])
def test_an_empty_table_gives_an_empty_choice(name):
    with np.errstate(all="raise"):
        selection = NOISY.build(name)(attach_predictions(TABLE.head(0), TAGS, np.zeros((0, 3)), []))
    assert len(selection) == 0 and selection.targ.shape == (0, 3)
    assert list(selection.table.columns) == ["fname", "labels", "source", "noisy", "weight"]


@pytest.mark.parametrize(("name", "options", "message"), [
    ("scoring_1k", {}, "'scoring_1k' ends in '1k'; expected a whole number of clips, such as scoring_1000"),
    ("scoring_0", {}, "k is 0; expected the number of clips to keep"),
    ("scoring_1.5", {}, "ends in '1.5'; expected a whole number"),
    ("relabelall-merge_x", {}, "ends in 'x'; expected a mean number of tags a clip, such as relabelall-merge_1.2"),
    ("fullmatch_0", {}, "cardinality is 0.0; expected .* above 0"),
    ("relabelall_nan", {}, "cardinality is nan"),
    ("scoring", {"top": 3}, "'scoring' has no option 'top'"),
])
def test_invalid_parameters_raise(name, options, message):
    with pytest.raises(OptionError, match=message):
        NOISY.build(name, **options)


def test_more_tags_a_clip_than_there_are_tags_raises():
    with pytest.raises(OptionError, match="relabelall is to leave 4.0 tags a clip; expected at most 3"):
        kept("relabelall_4")


def test_an_unknown_mode_gets_a_suggestion():
    with pytest.raises(UnknownNameError, match="did you mean relabelall"):
        NOISY.build("relabelal")
