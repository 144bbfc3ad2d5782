"""Labels that look wrong or missing: by hand, and digits of which a tenth was mislabelled."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from fatai.errors import DataError, ShapeError
from fatai.noisy_labels.label_issues import find_label_issues

TAGS = ["Bark", "Meow", "Purr"]
NAMES = ["a.wav", "b.wav", "c.wav", "d.wav"]
P = [[0.1, 0.9, 0.2], [0.8, 0.3, 0.1], [0.9, 0.8, 0.1], [0.25, 0.5, 0.1]]
T = [[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]]


def log_odds(p):
    return np.log(p / (1 - p))


def test_wrong_and_missing_by_hand():
    found = find_label_issues(P, T, TAGS, NAMES)
    assert found[["kind", "tag", "fname", "rank", "instead", "labels", "prob"]].values.tolist() == [
        ["wrong", "Bark", "a.wav", 1, "Meow", "Bark", 0.1],     # Meow's 9:1 over Bark's 1:9, a factor of 81
        ["missing", "Meow", "a.wav", 1, "", "Bark", 0.9],       # 9:1
        ["missing", "Meow", "c.wav", 2, "", "Bark", 0.8],       # 4:1
        ["wrong", "Bark", "d.wav", 2, "Meow", "Bark", 0.25],    # 1:1 over 1:3
    ]
    np.testing.assert_allclose(found["score"], np.log([81, 9, 4, 3]))


def test_one_row_a_clip_and_the_first_few():
    assert find_label_issues(P, T, TAGS, NAMES, per_clip=True)["fname"].tolist() == ["a.wav", "c.wav", "d.wav"]
    assert find_label_issues(P, T, TAGS, NAMES, per_clip=True, n=2)["fname"].tolist() == ["a.wav", "c.wav"]


def test_every_pair_with_the_least_score_of_all():
    found = find_label_issues(P, T, TAGS, NAMES, min_score=-np.inf)
    assert len(found) == 12
    b = found[(found["fname"] == "b.wav") & (found["kind"] == "wrong")]
    assert b["score"].item() == pytest.approx(log_odds(0.3) - log_odds(0.8))


def test_clips_with_all_tags_or_none():
    found = find_label_issues([[0.1, 0.9], [0.8, 0.2]], [[1, 1], [0, 0]], ["Bark", "Meow"], ["all.wav", "none.wav"])
    assert found[["kind", "tag", "fname", "instead", "labels"]].values.tolist() == [
        ["wrong", "Bark", "all.wav", "", "Bark,Meow"], ["missing", "Bark", "none.wav", "", ""]]


def test_certain_models_and_empty_tables():
    assert np.isfinite(find_label_issues([[0.0, 1.0]], [[1, 0]], ["Bark", "Meow"], ["a.wav"])["score"]).all()
    assert list(find_label_issues(np.zeros((0, 3)), np.zeros((0, 3)), TAGS, []).columns) == [
        "rank", "tag", "kind", "fname", "labels", "prob", "instead", "score"]


@given(
    arrays(np.float64, (6, 3), elements=st.integers(0, 4).map(lambda v: v / 4)),
    arrays(bool, (6, 3)),
    st.permutations(range(6)),
)
@settings(max_examples=50, deadline=None)
def test_order_of_clips_changes_nothing_and_ranks_count_within_tag_and_kind(probs, targ, order):
    names = np.array(list("abcdef"))
    found = find_label_issues(probs, targ, TAGS, names.tolist())
    again = find_label_issues(probs[order], targ[order], TAGS, names[order].tolist())
    assert found.drop(columns="score").values.tolist() == again.drop(columns="score").values.tolist()
    for _, group in found.groupby(["tag", "kind"]):
        assert group["rank"].tolist() == list(range(1, len(group) + 1)) and group["score"].is_monotonic_decreasing


def test_predictions_of_training_clips_raise():
    with pytest.raises(DataError, match="the models were trained on b.wav"):
        find_label_issues(P, T, TAGS, NAMES, trained_on=["b.wav"])
    assert len(find_label_issues(P, T, TAGS, NAMES, trained_on=NAMES, out_of_fold=True)) == 4


@pytest.mark.parametrize(("probs", "targ", "names", "error", "message"), [
    (P, T, NAMES[:3], ShapeError, r"probs has shape \(4, 3\); expected \(3, 3\)"),
    (P, T[:3], NAMES, ShapeError, r"probs has shape \(4, 3\) and targ \(3, 3\)"),
    (P, T, ["a.wav"] * 4, DataError, "names a.wav more than once"),
    (np.array(P) + 0.5, T, NAMES, DataError, "probs holds 1.4 for a.wav, tag Meow"),
    ([[np.nan] * 3, *P[1:]], T, NAMES, DataError, "nan for a.wav, tag Bark.*leave out clips that no fold predicted"),
    (P, np.array(T) / 2, NAMES, DataError, "targ has 0.5"),
])
def test_tables_that_do_not_fit_raise(probs, targ, names, error, message):
    with pytest.raises(error, match=message):
        find_label_issues(probs, targ, TAGS, names)


def mislabelled_digits(fraction, rng):
    """Noisy images of digits, each with one label, and which labels were swapped."""
    images, digit = load_digits(return_X_y=True)
    images, digit = images[:1000] / 16 + rng.normal(0, 0.3, (1000, 64)), digit[:1000]
    swapped = rng.random(len(digit)) < fraction
    return images, digit, np.where(swapped, (digit + rng.integers(1, 10, len(digit))) % 10, digit), swapped


def enrichment(found, names, swapped, first):
    wrong = dict(zip(names, swapped, strict=True))
    return np.mean([wrong[name] for name in found["fname"][:first]]) / swapped.mean()


def test_swapped_labels_are_enriched_fivefold_among_the_first_tenth(rng):
    images, _, label, swapped = mislabelled_digits(0.1, rng)
    probs = cross_val_predict(
        LogisticRegression(max_iter=100),
        images,
        label,
        cv=StratifiedKFold(3, shuffle=True, random_state=0),
        method="predict_proba",
    )
    names = [f"{i:04}.wav" for i in range(len(label))]
    found = find_label_issues(
        probs, np.eye(10)[label], [str(k) for k in range(10)], names, per_clip=True, trained_on=names, out_of_fold=True
    )
    assert len(found) >= 100 and enrichment(found, names, swapped, 100) >= 5


def test_of_half_wrong_labels_the_first_hundred_are_mostly_wrong(rng):
    images, digit, label, swapped = mislabelled_digits(0.47, rng)
    model = LogisticRegression(max_iter=100).fit(images[:300], digit[:300])
    names = [f"{i:04}.wav" for i in range(300, len(label))]
    found = find_label_issues(
        model.predict_proba(images[300:]), np.eye(10)[label[300:]], [str(k) for k in range(10)], names, per_clip=True
    )
    assert enrichment(found, names, swapped[300:], 100) * swapped[300:].mean() >= 0.9
