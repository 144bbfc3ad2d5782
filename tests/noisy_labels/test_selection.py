"""Labels and probabilities meet by name; models that trained on a clip don't judge it; choices are split over folds."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.model_selection import KFold

from fatai.callbacks.sample_weights import SampleWeights
from fatai.errors import DataError, LabelError, OptionError, ShapeError
from fatai.noisy_labels.selection import attach_predictions, out_of_fold_mean
from fatai.registry import NOISY

TAGS = ["Bark", "Meow"]
TABLE = pd.DataFrame({"fname": ["b.wav", "a.wav"], "labels": ["Meow", ["Bark", "Meow"]]})
NAMES = ["a.wav", "x.wav", "b.wav"]
PROBS = [[0.9, 0.2], [0.5, 0.5], [0.4, 0.3]]


@pytest.fixture
def ten():
    """Ten clips as given, in no order of names."""
    table = pd.DataFrame({"fname": [f"{i}.wav" for i in (3, 1, 4, 0, 5, 9, 2, 6, 8, 7)], "labels": "Bark"})
    return NOISY.build("as_given")(attach_predictions(table, TAGS))


def test_rows_are_matched_by_name_and_others_left_out():
    data = attach_predictions(TABLE, TAGS, PROBS, NAMES)
    assert data.fnames == ("b.wav", "a.wav") and data.probs.tolist() == [[0.4, 0.3], [0.9, 0.2]]
    assert data.given.tolist() == [[False, True], [True, True]]


def test_tensors_and_frames_of_half_precision_are_read():
    assert (
        attach_predictions(TABLE, TAGS, torch.tensor(PROBS, dtype=torch.float16, requires_grad=True), NAMES).probs.dtype
        == np.float64
    )


def test_results_cannot_be_changed():
    data = attach_predictions(TABLE, TAGS, PROBS, NAMES)
    with pytest.raises(ValueError, match="read-only"):
        data.probs[0, 0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.probs = None


@pytest.mark.parametrize(
    ("probs", "names", "error", "message"),
    [
        (PROBS[:2], NAMES[:2], DataError, "there are no probabilities of b.wav; predict every clip"),
        (PROBS, ["a.wav", "a.wav", "b.wav"], DataError, "fnames names a.wav more than once"),
        (PROBS, NAMES[:2], ShapeError, r"probs has shape \(3, 2\); expected \(2, 2\): a row for each fname"),
        ([row * 2 for row in PROBS], NAMES, ShapeError, r"probs has shape \(3, 4\)"),
        (
            [[0.9, 1.2], *PROBS[1:]],
            NAMES,
            DataError,
            "probs holds 1.2 for a.wav, tag Meow; expected numbers within .* take the sigmoid",
        ),
        ([[np.nan, 0.2], *PROBS[1:]], NAMES, DataError, "probs holds nan for a.wav, tag Bark"),
        (PROBS, None, OptionError, "got probs without fnames"),
    ],
)
def test_probabilities_that_do_not_fit_raise(probs, names, error, message):
    with pytest.raises(error, match=message):
        attach_predictions(TABLE, TAGS, probs, names)


@pytest.mark.parametrize(("table", "error", "message"), [
    (TABLE.rename(columns={"labels": "label"}), DataError, "columns fname, label; expected fname and labels"),
    (TABLE.assign(fname="a.wav"), DataError, "the table names a.wav more than once"),
    (TABLE.assign(labels=["Meow", "Purr"]), LabelError, "the table, row 2, a.wav: unknown tag 'Purr'"),
])
def test_tables_that_do_not_fit_raise(table, error, message):
    with pytest.raises(error, match=message):
        attach_predictions(table, TAGS)


def test_predictions_of_training_clips_raise():
    with pytest.raises(DataError, match="were trained on a.wav, so their predictions .* pass out_of_fold=True"):
        attach_predictions(TABLE, TAGS, PROBS, NAMES, trained_on=["a.wav", "curated.wav"])
    assert not attach_predictions(TABLE, TAGS, PROBS, NAMES, trained_on=["x.wav", "curated.wav"]).out_of_fold
    assert attach_predictions(TABLE, TAGS, PROBS, NAMES, trained_on=["a.wav"], out_of_fold=True).out_of_fold


def test_the_mean_is_over_models_that_left_the_clip_out():
    stack = [[[0.9], [0.2]], [[0.5], [0.4]], [[0.1], [0.6]]]
    mean = out_of_fold_mean(stack, ["a.wav", "b.wav"], [["a.wav"], ["b.wav", "a.wav"], []])
    np.testing.assert_allclose(mean, [[0.1], [0.4]])


def test_an_untrained_folds_gaps_do_not_spoil_the_mean():
    assert out_of_fold_mean([[[np.nan]], [[0.5]]], ["a.wav"], [["a.wav"], []]).tolist() == [[0.5]]


def test_a_clip_that_every_model_trained_on_has_no_mean():
    with pytest.raises(
        DataError, match=r"every model was trained on b.wav; split .* over the folds \(split='own' or 'others'\)"
    ):
        out_of_fold_mean(np.zeros((2, 2, 1)), ["a.wav", "b.wav"], [["b.wav"], ["b.wav", "a.wav"]])
    with pytest.raises(ShapeError, match=r"probs has shape \(2, 2, 1\); expected .* with 1 models and 2 clips"):
        out_of_fold_mean(np.zeros((2, 2, 1)), ["a.wav", "b.wav"], [[]])


def test_folds_get_the_parts_of_scikit_learns_kfold_on_sorted_names(ten):
    names = np.array(sorted(ten.fnames))
    parts = ten.per_fold(split="own")
    by_hand = [set(names[oof_score]) for _, oof_score in KFold(5, shuffle=True, random_state=42).split(names)]
    assert [set(part.fnames) for part in parts] == by_hand
    assert [set(part.fnames) for part in ten.per_fold(split="others")] == [set(names) - part for part in by_hand]
    assert all(part.fnames == ten.fnames for part in ten.per_fold())


def test_split_clips_are_predicted_by_the_folds_that_left_them_out(ten):
    """What one model learnt by heart (1.0) must not show."""
    parts = ten.per_fold(split="own", n=5)
    stack = [[[1.0, 0.0] if name in part.fnames else [0.25, 0.0] for name in ten.fnames] for part in parts]
    mean = out_of_fold_mean(stack, ten.fnames, [part.fnames for part in parts])
    assert mean[:, 0].tolist() == [0.25] * 10


def test_rows_of_one_clip_stay_in_one_fold():
    table = pd.DataFrame({"fname": list("abcdef"), "labels": "Bark"})
    fixes = pd.DataFrame({"fname": list("abcdef"), "labels": [["Meow"]] * 6})
    selection = NOISY.build("first_place_corrections", corrections=fixes)(attach_predictions(table, TAGS))
    for part in selection.per_fold(split="own", n=3):
        assert sorted(part.fnames) == sorted(2 * list(set(part.fnames))) and len(part) == 4
        assert part.targ.shape == (4, 2) and part.source == ("noisy", "noisy", "corrected", "corrected")


def test_weights_of_a_stage(ten):
    assert ten.scale_weights(0.5).weight.tolist() == [0.5] * 10 and ten.weight.tolist() == [1] * 10
    with pytest.raises(OptionError, match="factor is -1"):
        ten.scale_weights(-1)


def weights_in_training(clips, **options):
    """What `SampleWeights` would tell the loss of the clips of a table."""
    callback = SampleWeights(**options)
    train = SimpleNamespace(dataset=SimpleNamespace(items=clips))
    callback.learn = SimpleNamespace(dls=SimpleNamespace(train=train, loaders=[train], tags=TAGS))
    return [values.tolist() for values in callback.values()]


def test_weights_and_flags_reach_training_by_name():
    clips = pd.DataFrame({"fname": ["curated.wav", "a.wav", "b.wav"]})
    method = NOISY.build("gold_plan_confidence", keep_threshold=0.3, add_threshold=None)
    gold = method(attach_predictions(TABLE, TAGS, PROBS, NAMES))
    weights, noisy = weights_in_training(clips, weights=gold.weights_by_fname, noisy=gold.fnames)
    np.testing.assert_allclose(weights, [1, 0.9, 0.5])
    assert noisy == [0, 1, 1]
    of_tags = NOISY.build("gold_plan_confidence", keep_threshold=0.3, add_threshold=None, class_weight=[1, 2])(
        attach_predictions(TABLE, TAGS, PROBS, NAMES)
    )
    np.testing.assert_allclose(
        weights_in_training(clips, weights=of_tags.weights_by_fname)[0], [[1, 1], [0.9, 1.8], [0.5, 1]], rtol=1e-6
    )


def test_the_table_carries_weights_and_flags_into_training():
    fixes = pd.DataFrame({"fname": ["a.wav"], "labels": [["Bark"]]})
    method = NOISY.build("first_place_corrections", corrections=fixes)
    selection = method(attach_predictions(TABLE, TAGS)).scale_weights(0.5)
    assert selection.table["labels"].tolist() == [["Meow"], ["Bark", "Meow"], ["Bark"]]
    assert weights_in_training(selection.table) == [[0.5, 0.5, 0.5], [1, 1, 0]]


def test_soft_targets_are_no_labels():
    soft = NOISY.build("kaggle_fat_soft_labels")(attach_predictions(TABLE, TAGS))
    with pytest.raises(OptionError, match="gives soft targets, which lists of labels cannot express"):
        _ = soft.labels
    np.testing.assert_allclose(soft.targets_by_fname["b.wav"], [0.2, 0.8], rtol=1e-6)
