"""Every method by hand on small tables, and properties of all methods."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fatai.data.samplers import MIXTURE_WEIGHTS, MixtureSampler
from fatai.errors import DataError, OptionError, ShapeError, UnknownNameError
from fatai.noisy_labels.methods import attach_predictions, second_head, select_noisy_labels
from fatai.registry import LOSSES, NOISY

TAGS = ["Bark", "Meow", "Purr"]
METHODS = sorted(
    {
        *NOISY.names(),
        "scoring_3",
        "fullmatch_1.1",
        "relabelall_1.1",
        "relabelall-replacenan_1.1",
        "relabelall-merge_1.1",
    }
)


def table_of(**labels):
    """A table of clips by their stems."""
    return pd.DataFrame({"fname": [f"{stem}.wav" for stem in labels], "labels": list(labels.values())})


def choose(method, table, rows=None, **options):
    """Apply a method to a table whose probabilities come in the order of the table."""
    fnames = None if rows is None else table["fname"]
    return select_noisy_labels(table, TAGS, method, probs=rows, fnames=fnames, **options)


# 9th place

PAIRS = table_of(a="Bark", b="Bark,Meow", c="Bark", d="Meow", e="Bark", f="")
P = [[0.9, 0.1, 0.1], [0.9, 0.9, 0.1], [0.8, 0.1, 0.1], [0.1, 0.6, 0.1], [0.5, 0.1, 0.1], [0.0, 0.0, 0.0]]


def test_ninth_place_takes_the_best_of_one_label():
    selection = choose("ninth_place_low_loss", PAIRS, P, n=2)
    assert selection.fnames == ("a.wav", "c.wav") and selection.labels == [["Bark"], ["Bark"]]
    assert selection.clips["reason"].tolist() == [
        "as given", "not of one label", "as given", "not among the best 2", "not among the best 2", "not of one label"]
    assert selection.clips["score"][0] == pytest.approx(-np.log(0.9))  # three times 0.9 right


def test_ninth_place_caps_tags_after_taking_the_best():
    # Of the best 2 one is above the cap, and no third clip replaces it.
    assert choose("ninth_place_low_loss", PAIRS, P, n=2, per_tag=1).fnames == ("a.wav",)
    assert choose("ninth_place_low_loss", PAIRS, P, n=3, per_tag=1).fnames == ("a.wav", "d.wav")
    assert choose("ninth_place_low_loss", PAIRS, P, per_tag=2).clips["reason"][4] == "after 2 better ones of their tag"


def test_ninth_place_orders_equal_losses_by_name():
    table = table_of(c="Bark", a="Bark", b="Bark")
    assert set(choose("ninth_place_low_loss", table, [[0.7, 0.2, 0.2]] * 3, n=2).fnames) == {"a.wav", "b.wav"}


def test_ninth_place_scores_are_finite_for_probabilities_0_and_1():
    assert np.isfinite(choose("ninth_place_low_loss", PAIRS, np.eye(3)[[0, 1, 2, 0, 1, 2]]).clips["score"]).all()


# Gold plan

def test_gold_plan_keeps_adds_drops_and_weights():
    table = table_of(a="Bark,Meow", b="Bark", c="Purr", d="Purr")
    probs = [[0.8, 0.79, 0.94], [0.9, 0.95, 0.0], [0.0, 0.0, 0.79], [0.99, 0.0, 0.1]]
    selection = choose("gold_plan_confidence", table, probs)
    assert selection.fnames == ("a.wav", "b.wav", "d.wav")
    assert selection.labels == [["Bark"], ["Bark", "Meow"], ["Bark"]]
    np.testing.assert_allclose(selection.weight, [0.8, 0.95, 0.99], rtol=1e-6)
    assert selection.clips["reason"].tolist() == ["relabelled", "relabelled", "without a confirmed tag", "relabelled"]


def test_gold_plan_without_adding():
    probs = [[0.9, 0.99, 0.0], [0.99, 0.0, 0.1]]
    selection = choose("gold_plan_confidence", table_of(b="Bark", d="Purr"), probs, add_threshold=None)
    assert selection.labels == [["Bark"]]


def test_gold_plan_weights_stay_within_one_half_and_one():
    probs = [[0.3, 0, 0], [1, 0, 0]]
    selection = choose("gold_plan_confidence", table_of(a="Bark", b="Bark"), probs, keep_threshold=0.2)
    assert selection.weight.tolist() == [0.5, 1.0]


def test_gold_plan_tag_weights_reach_the_loss():
    selection = choose("gold_plan_confidence", table_of(a="Bark"), [[0.8, 0.1, 0.1]], class_weight=[0.5, 1.0, 1.5])
    np.testing.assert_allclose(selection.weight, [[0.4, 0.8, 1.2]], rtol=1e-6)
    loss = LOSSES.build("bce")
    loss.sample_weight = torch.tensor(selection.weight)
    # Every logit is 0, so each tag costs ln 2: times the mean weight, 0.8.
    assert float(loss(torch.zeros(1, 3), torch.tensor(selection.targ))) == pytest.approx(0.8 * np.log(2))


# 36th place

def test_kaggle_fat_softens_every_clip():
    selection = choose("kaggle_fat_soft_labels", table_of(a="Bark", b="Bark,Purr", c="Bark,Meow,Purr", d=""))
    np.testing.assert_allclose(selection.targ, [[0.8, 0.1, 0.1], [0.8, 0.2, 0.8], [0.8] * 3, [0.2 / 3] * 3], rtol=1e-6)
    assert selection.is_soft and not selection.clips["changed"].any() and selection.weight.tolist() == [1] * 4


def test_kaggle_fat_with_80_tags():
    tags = [f"tag{i:02}" for i in range(80)]
    table = pd.DataFrame({"fname": ["a.wav"], "labels": ["tag03;tag07"]})
    targ = select_noisy_labels(table, tags, "kaggle_fat_soft_labels").targ
    assert targ[0, 3] == np.float32(0.8) and targ[0, 0] == pytest.approx(0.2 / 78)


# 1st place

FIXES = pd.DataFrame({"fname": ["a.wav", "b.wav"], "labels": [None, ["Purr"]]})
GIVEN = table_of(a="Bark", b="Meow", c="Bark,Meow")


def test_first_place_flags_noisy_rows_and_adds_corrected_ones():
    selection = choose("first_place_corrections", GIVEN, corrections=FIXES)
    assert selection.fnames == ("b.wav", "c.wav", "b.wav")
    assert selection.labels == [["Meow"], ["Bark", "Meow"], ["Purr"]]
    assert selection.source == ("noisy", "noisy", "corrected") and selection.noisy.tolist() == [True, True, False]
    assert selection.source_weights == {"noisy": 0.07, "corrected": 0.33, "curated": 0.60}
    assert selection.clips["reason"].tolist() == ["removed by hand", "as given, and with corrected labels", "as given"]


def test_first_place_without_removals_and_without_corrections():
    options = {"corrections": FIXES, "removals": False, "source_weights": "corr_noisy_003"}
    with_all = choose("first_place_corrections", GIVEN, **options)
    assert with_all.source == ("noisy",) * 3 + ("corrected",)
    assert with_all.source_weights == MIXTURE_WEIGHTS["corr_noisy_003"]
    plain = choose("first_place_corrections", GIVEN)
    assert plain.source == ("noisy",) * 3 and plain.source_weights == {"noisy": 0.20, "curated": 0.80}


def test_first_place_source_weights_fit_the_sampler():
    selection = choose("first_place_corrections", GIVEN, corrections=FIXES)
    sources, generator = [*selection.source, "curated", "curated"], torch.Generator().manual_seed(0)
    sampler = MixtureSampler(sources, selection.source_weights, n=2000, generator=generator)
    assert np.mean([i == 2 for i in sampler]) == pytest.approx(0.33, abs=0.04)


def test_first_place_warns_about_corrections_of_other_clips():
    with pytest.warns(UserWarning, match="1 of 1 corrections in corrections match no clip"):
        choose("first_place_corrections", GIVEN, corrections=FIXES.assign(fname=["x.wav", "y.wav"]).head(1))


# 4th place

def test_fourth_place_trains_the_second_head_only():
    selection = choose("fourth_place_second_head", table_of(a="Bark", b="Meow,Purr"))
    assert selection.tags[3:] == ("Bark (noisy)", "Meow (noisy)", "Purr (noisy)")
    assert (
        selection.targ.tolist() == [[0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 1]]
        and selection.weight.tolist() == [[0, 0, 0, 2, 2, 2]] * 2
    )


def test_the_loss_of_two_heads_is_that_of_the_clips_head(rng):
    logits, targ = torch.tensor(rng.normal(size=(4, 6))), (rng.random((4, 3)) < 0.4).astype(np.float32)
    curated, noisy = second_head(targ[:2], noisy=False), second_head(targ[2:], noisy=True)
    both, weight = (torch.tensor(np.concatenate(pair)) for pair in zip(curated, noisy, strict=True))
    of_head = torch.cat([logits[:2, :3], logits[2:, 3:]])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(of_head, torch.tensor(targ).double())
    torch.testing.assert_close(LOSSES.build("bce")(logits, both, sample_weight=weight), expected)


def test_fourth_place_pseudo_labels_are_normalized_squares():
    selection = choose("fourth_place_pseudo_labels", table_of(a="Purr", b="Bark"), [[0.9, 0.1, 0.2], [0, 0, 0]])
    np.testing.assert_allclose(selection.targ, [[0.81 / 0.86, 0.01 / 0.86, 0.04 / 0.86], [0, 0, 0]], rtol=1e-6)
    assert selection.weight.tolist() == [20, 20] and selection.clips["changed"].all()


# All methods

def anything(rng, clips=12):
    """A table of random labels and rough probabilities, so that many are tied; one clip without labels."""
    labels = [[tag for tag in TAGS if rng.random() < 0.4] or ["Meow"] for _ in range(clips - 1)]
    table = pd.DataFrame(
        {"fname": [f"{i:02}.wav" for i in rng.permutation(clips)], "labels": pd.Series([*labels, []], dtype=object)}
    )
    return table, rng.integers(0, 5, (clips, 3)) / 4


def rows_of(selection):
    weights = np.broadcast_to(selection.weight.reshape(len(selection), -1), selection.targ.shape).tolist()
    return sorted(zip(selection.fnames, selection.source, selection.targ.tolist(), weights, strict=True))


@pytest.mark.filterwarnings("ignore:.*asks for the best")
@pytest.mark.parametrize("name", METHODS)
def test_the_order_of_rows_changes_nothing(name, rng):
    table, probs = anything(rng)
    straight = choose(name, table, probs)
    for order in (np.argsort(table["fname"]), rng.permutation(len(table))):
        shuffled = select_noisy_labels(table.iloc[order], TAGS, name, probs=probs[::-1], fnames=table["fname"][::-1])
        assert rows_of(shuffled) == rows_of(straight)


@pytest.mark.filterwarnings("ignore:.*asks for the best")
@pytest.mark.parametrize("name", METHODS)
def test_every_result_can_be_trained_on_and_accounts_for_every_clip(name, rng):
    table, probs = anything(rng)
    before = table.copy(deep=True), probs.copy()
    selection = choose(name, table, probs)
    assert selection.targ.shape == (len(selection), len(selection.tags))
    assert ((selection.targ >= 0) & (selection.targ <= 1)).all()
    assert (
        selection.weight.shape in ((len(selection),), selection.targ.shape)
        and np.isfinite(selection.weight).all()
        and (selection.weight >= 0).all()
    )
    assert selection.targ.dtype == selection.weight.dtype == np.float32 and not selection.targ.flags.writeable
    assert selection.clips["fname"].tolist() == table["fname"].tolist()
    assert set(selection.fnames) == set(selection.clips["fname"][selection.clips["kept"]])
    assert selection.clips["reason"].str.len().all()
    targ, weight = torch.tensor(selection.targ), torch.tensor(selection.weight)
    loss = LOSSES.build("bce")(torch.zeros(targ.shape), targ, sample_weight=weight)
    assert len(selection) == 0 or torch.isfinite(loss)
    pd.testing.assert_frame_equal(table, before[0])
    np.testing.assert_array_equal(probs, before[1])


@given(arrays(np.float64, (5, 3), elements=st.floats(0, 1)), arrays(bool, (5, 3)), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_gold_plan_thresholds_decide_which_tags_stay(probs, labels, keep, add):
    given_labels = [[t for t, y in zip(TAGS, row, strict=True) if y] for row in labels]
    table = pd.DataFrame({"fname": list("abcde"), "labels": pd.Series(given_labels)})
    selection = choose("gold_plan_confidence", table, probs, keep_threshold=keep, add_threshold=add)
    expected = {n: [t for t, y, p in zip(TAGS, row, ps, strict=True) if (y and p >= keep) or p >= add]
                for n, row, ps in zip("abcde", labels, probs, strict=True)}
    assert dict(zip(selection.fnames, selection.labels, strict=True)) == {n: row for n, row in expected.items() if row}


def test_every_method_has_source_and_description():
    assert {
        "ninth_place_low_loss",
        "gold_plan_confidence",
        "kaggle_fat_soft_labels",
        "first_place_corrections",
        "fourth_place_second_head",
        "fourth_place_pseudo_labels",
        "third_place_pseudo_labels",
        "scoring",
        "fullmatch",
        "as_given",
    } <= set(NOISY.names())
    assert all(NOISY.source(name) and NOISY.describe(name) for name in METHODS)


WITHOUT_PREDICTIONS = {"as_given", "kaggle_fat_soft_labels", "first_place_corrections", "fourth_place_second_head"}


@pytest.mark.parametrize("name", sorted(set(METHODS) - WITHOUT_PREDICTIONS))
def test_methods_that_need_predictions_raise_without_them(name):
    with pytest.raises(OptionError, match="needs probabilities of the clips; give probs and fnames"):
        choose(name, PAIRS)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("ninth_place_low_loss", {"n": 0}, OptionError, "n is 0; expected a number of clips of at least 1"),
        ("ninth_place_low_loss", {"per_tag": -1}, OptionError, "per_tag is -1"),
        ("ninth_place_low_loss", {"cap": 3}, OptionError, "'ninth_place_low_loss' has no option 'cap'"),
        ("gold_plan_confidence", {"keep_threshold": 1.5}, OptionError, "keep_threshold is 1.5; expected a probability"),
        ("gold_plan_confidence", {"add_threshold": -0.1}, OptionError, "add_threshold is -0.1"),
        (
            "gold_plan_confidence",
            {"class_weight": [1.0]},
            OptionError,
            r"class_weight is \[1.0\]; expected .* each of the 3 tags",
        ),
        ("kaggle_fat_soft_labels", {"positive": 0.0}, OptionError, "positive is 0.0"),
        ("fourth_place_pseudo_labels", {"power": 0}, OptionError, "power is 0"),
        (
            "first_place_corrections",
            {"source_weights": "corr_noisy_4"},
            OptionError,
            "no mixture is named 'corr_noisy_4'; did you mean corr_noisy_004",
        ),
        (
            "first_place_corrections",
            {"source_weights": "corr_noisy_004"},
            DataError,
            "draw corrected clips, but no clip is corrected",
        ),
        ("ninth_place_lowloss", {}, UnknownNameError, "no noisy-label method .*; did you mean ninth_place_low_loss"),
    ],
)
def test_invalid_options_raise(name, options, error, message):
    with pytest.raises(error, match=message):
        choose(name, PAIRS, P, **options)


def test_second_head_raises_for_one_dimension():
    with pytest.raises(ShapeError, match=r"targ has shape \(3,\)"):
        second_head([1, 0, 0], noisy=True)


def test_an_unknown_label_raises():
    with pytest.raises(ValueError, match="unknown tag 'Barc'; did you mean Bark"):
        attach_predictions(table_of(a="Barc"), TAGS)
