"""Splits: equal to their references, robust to rare tags; leaks between folds are found."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iterstrat.ml_stratifiers import MultilabelStratifiedKFold
from sklearn.model_selection import KFold, StratifiedKFold

from fatai.data.folds import (
    SPLITTERS,
    absent_tags,
    find_leaks,
    fold_table,
    make_folds,
    noisy_fold_masks,
    warn_about_folds,
    warn_about_leaks,
)
from fatai.errors import DataError, OptionError, ShapeError

SHUFFLED = sorted(set(SPLITTERS) - {"predefined"})
TAGS = ["Bark", "Meow", "Purr", "Yowl"]


@pytest.fixture
def targ(rng):
    """200 clips, 4 tags, one or two each."""
    targ = np.zeros((200, 4), np.float32)
    targ[np.arange(200), rng.integers(4, size=200)] = 1
    targ[rng.random(200) < 0.2, 3] = 1
    return targ


def by_hand(splitter, targ, y):
    return [set(test) for _, test in splitter.split(targ, y)]


def as_sets(folds):
    return [set(np.flatnonzero(folds == k)) for k in range(folds.max() + 1)]


def test_stratified_is_scikit_learns_on_the_first_tag(targ):
    expected = by_hand(StratifiedKFold(5, shuffle=True, random_state=2019), targ, targ.argmax(1))
    assert as_sets(make_folds(targ)) == expected


def test_multilabel_is_iterative_stratifications(targ):
    expected = by_hand(MultilabelStratifiedKFold(5, shuffle=True, random_state=42), targ, targ)
    assert as_sets(make_folds(targ, splitter="multilabel", seed=42)) == expected


def test_kfold_is_scikit_learns_shuffled_kfold(targ):
    assert as_sets(make_folds(targ, splitter="kfold", n=4, seed=42)) == by_hand(
        KFold(4, shuffle=True, random_state=42), targ, None
    )


def test_sliced_folds_are_slices_of_one_permutation(targ):
    order = np.random.RandomState(1234).permutation(200)
    assert as_sets(make_folds(targ, splitter="sliced", seed=1234)) == [set(order[40 * k:40 * k + 40]) for k in range(5)]


def test_predefined_folds_keep_the_order_of_their_numbers():
    folds = make_folds(np.ones((4, 1)), splitter="predefined", groups=["10", "2", "1.0", "2"])
    assert folds.tolist() == [2, 1, 0, 1] and folds.dtype == np.int64


def test_predefined_folds_may_be_words_or_an_array():
    groups = np.array(["west", "east", "west"])
    assert make_folds(np.ones((3, 1)), splitter="predefined", groups=groups).tolist() == [1, 0, 1]


@pytest.mark.parametrize("cell", ["", None, float("nan")])
def test_a_clip_without_a_predefined_fold_is_named(cell):
    with pytest.raises(DataError, match="clip 1 has no fold"):
        make_folds(np.ones((3, 1)), splitter="predefined", groups=["1", cell, "2"])


def test_a_single_predefined_fold_raises():
    with pytest.raises(OptionError, match="only the value '1'"):
        make_folds(np.ones((2, 1)), splitter="predefined", groups=[1, 1])


def test_no_group_is_in_two_folds_and_tags_are_spread_evenly(targ, rng):
    groups = rng.integers(60, size=200)
    folds = make_folds(targ, splitter="group", groups=groups)
    assert all(len(set(folds[groups == g])) == 1 for g in range(60) if (groups == g).any())
    counts = fold_table(folds, targ, TAGS)[[0, 1, 2, 3, 4]].to_numpy()
    assert (np.abs(counts - counts.mean(1, keepdims=True)) <= 3).all()
    sizes = np.bincount(folds)
    assert sizes.max() - sizes.min() <= 4


def test_no_group_fold_is_empty_even_when_one_group_is_huge():
    folds = make_folds(np.ones((100, 1)), splitter="group", n=3, groups=["big"] * 98 + ["a", "b"])
    assert sorted(np.bincount(folds)) == [1, 1, 98]


def test_fewer_groups_than_folds_raise():
    with pytest.raises(OptionError, match="2 groups for 3 folds"):
        make_folds(np.ones((6, 1)), splitter="group", n=3, groups=list("ababab"))


@pytest.mark.parametrize("splitter", SHUFFLED)
def test_every_method_repeats_with_its_seed_and_changes_with_another(targ, splitter):
    groups = np.arange(200) // 2
    one = make_folds(targ, splitter=splitter, seed=1, groups=groups)
    np.testing.assert_array_equal(one, make_folds(targ, splitter=splitter, seed=1, groups=groups))
    assert (one != make_folds(targ, splitter=splitter, seed=2, groups=groups)).any()


@pytest.mark.parametrize("splitter", SHUFFLED)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_folds_hold_every_clip_out_once_whatever_the_tags(splitter, data):
    n_clips, n_tags = data.draw(st.integers(4, 30)), data.draw(st.integers(1, 5))
    n = data.draw(st.integers(2, min(6, n_clips)))
    cells = data.draw(st.lists(st.booleans(), min_size=n_clips * n_tags, max_size=n_clips * n_tags))
    targ = np.array(cells, dtype=np.float32).reshape(n_clips, n_tags)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folds = make_folds(targ, splitter=splitter, n=n, groups=np.arange(n_clips))
    assert folds.shape == (n_clips,) and set(folds) == set(range(n))


@pytest.mark.parametrize("splitter", ["stratified", "multilabel"])
def test_a_tag_with_fewer_clips_than_folds_warns_by_name_and_passes(splitter):
    targ = np.zeros((40, 3))
    targ[:38, 0], targ[38:, 1] = 1, 1
    with pytest.warns(UserWarning, match=r"fewer clips than the 5 folds: Meow \(2\)") as caught:
        folds = make_folds(targ, splitter=splitter, tags=["Bark", "Meow", "Purr"])
    assert sum("fewer clips" in str(w.message) for w in caught) == 1 and set(folds) == {0, 1, 2, 3, 4}


def test_soft_labels_count_as_their_positives(targ):
    soft, hard = (make_folds(t, splitter="multilabel") for t in (targ * 0.8, targ))
    np.testing.assert_array_equal(soft, hard)


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"splitter": "stratifed"}, OptionError, "did you mean stratified"),
    ({"n": 1}, OptionError, "n is 1; expected 2 to 200"),
    ({"n": 201}, OptionError, "2 to 200"),
    ({"splitter": "group"}, OptionError, "'group' needs groups"),
    ({"splitter": "predefined"}, OptionError, "'predefined' needs groups"),
    ({"splitter": "group", "groups": [1, 2]}, ShapeError, "2 groups for 200 clips"),
])
def test_invalid_arguments_raise_with_a_reason(targ, options, error, message):
    with pytest.raises(error, match=message):
        make_folds(targ, **options)


def test_targets_must_be_a_table():
    with pytest.raises(ShapeError, match=r"\(3,\); expected \(clips, tags\)"):
        make_folds(np.ones(3))


def test_the_table_of_folds_counts_by_hand():
    targ = np.array([[1, 0], [0, 1], [1, 1], [1, 0]])
    table = fold_table(np.array([0, 1, 1, -1]), targ, ["Bark", "Purr"])
    assert table.to_dict() == {0: {"Bark": 1, "Purr": 0}, 1: {"Bark": 1, "Purr": 2}, "all": {"Bark": 3, "Purr": 2}}


def test_tags_absent_from_a_fold_are_named_on_the_side_that_lacks_them():
    targ = np.array([[1, 0], [1, 1], [1, 0], [1, 0]])
    folds = np.array([0, 1, 1, 0])
    absent = absent_tags(folds, targ, ["Bark", "Purr"])
    assert absent.validation == {0: ["Purr"]} and absent.training == {1: ["Purr"]}
    with pytest.warns(
        UserWarning, match="fold 0 holds out no clip of Purr; fold 1 has no training clip of Purr"
    ):
        warn_about_folds(folds, targ, ["Bark", "Purr"])


def test_full_folds_do_not_warn(targ):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert warn_about_folds(make_folds(targ), targ, TAGS) == ({}, {})


def test_noisy_clips_may_be_shared_or_split_as_the_3rd_and_the_4th_place_did():
    parts = noisy_fold_masks(10, split="own", n=5, seed=42)
    assert parts.sum(0).tolist() == [1] * 10 and parts.sum(1).tolist() == [2] * 5
    for k, (_, test) in enumerate(KFold(5, shuffle=True, random_state=42).split(np.zeros(10))):
        assert set(np.flatnonzero(parts[k])) == set(test)
    np.testing.assert_array_equal(noisy_fold_masks(10, split="others", n=5, seed=42), ~parts)
    assert noisy_fold_masks(10, split="all", n=3).all()
    with pytest.raises(OptionError, match="all, own or others"):
        noisy_fold_masks(10, split="some")


def test_files_sounds_and_groups_in_two_folds_are_found():
    leaks = find_leaks(
        [0, 1, 1, -1],
        ["a.wav", "b.wav", "c.wav", "a.wav"],
        hashes=["x", "y", "y", None],
        groups=["roof", "cellar", "", "roof"],
    )
    assert [(leak.kind, leak.key, leak.folds) for leak in leaks] == [
        ("file", "a.wav", (-1, 0)),
        ("group", "roof", (-1, 0)),
    ]
    leaks = find_leaks([0, 1], ["a.wav", "b.wav"], hashes=["x", "x"])
    assert leaks[0].kind == "sound" and leaks[0].files == ("a.wav", "b.wav")


def test_duplicates_within_one_fold_or_among_noisy_clips_are_no_leak():
    assert (
        find_leaks([0, 0, -1, -1], ["a", "b", "c", "d"], hashes=["x", "x", "y", "y"], groups=[None, None, 1, 1]) == []
    )


def test_leaks_are_listed_in_one_warning_with_names():
    leaks = find_leaks([0, 1, 0, 1], ["a", "b", "c", "c"], hashes=["x", "x", "y", "z"])
    with pytest.warns(UserWarning, match=r"1 file \(c\); 1 sound \(a = b\).*split by group instead") as caught:
        warn_about_leaks(leaks)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_about_leaks([])


def test_group_folds_have_no_group_leak(targ, rng):
    groups = [f"site {g}" for g in rng.integers(30, size=200)]
    names = [f"{k}.wav" for k in range(200)]
    assert find_leaks(make_folds(targ, splitter="group", groups=groups), names, groups=groups) == []
    assert find_leaks(make_folds(targ, splitter="kfold"), names, groups=groups)
