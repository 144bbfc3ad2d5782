"""Fitted ensembles: results known in advance, and nested scores that are not fitted on the clips they score."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import torch
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from fatai.ensemble.averaging import FittableEnsemble, WeightedAverage
from fatai.ensemble.ensemble import ensemble, ensemble_report, nested_cv_predict
from fatai.ensemble.members import align_out_of_fold, load_members, read_folds
from fatai.ensemble.stacking import StackingNet
from fatai.errors import DataError, OptionError, SubmissionError
from fatai.inference.predictions import Predictions
from fatai.metrics.ranking import lwlrap
from fatai.registry import ENSEMBLES

TAGS = ("Bark", "Meow", "Oboe", "Purr")
TINY_MLP = {"base": 4, "bs": 16, "samples_per_epoch": 64, "max_epochs": 2}
FITTED = {
    "lwlrap_weights": {},
    "cobyla": {},
    "forward": {"rounds": 8},
    "rank_temperature": {},
    "logreg": {},
    "mlp": TINY_MLP,
}


@pytest.fixture(scope="module")
def known():
    """(probs, targ) of 200 clips with one tag each: a good, a middling and a random model, and the truth."""
    rng = np.random.default_rng(7)
    targ = np.eye(4, dtype=bool)[rng.integers(4, size=200)]
    noise = rng.normal(size=(3, 200, 4))
    return expit(np.array([2.0, 1.0, 0.0])[:, None, None] * targ + noise), targ


@pytest.fixture
def write_runs(tmp_path, known):
    """A function of the fold numbers of each run: writes run folders that hold `known`, returns them and the truth."""
    probs, targ = known
    names = [f"{i:03d}.wav" for i in range(len(targ))]
    truth = pd.DataFrame({"fname": names, "labels": [TAGS[i] for i in targ.argmax(1)]})

    def write(*folds):
        runs = []
        for k, (member, fold) in enumerate(zip(probs, folds, strict=False)):  # there may be fewer runs than models
            run = tmp_path / f"run{k}"
            run.mkdir()
            Predictions(names, TAGS, member).to_csv(run / "oof.csv")
            Predictions(["x.wav", "y.wav"], TAGS, member[:2]).to_csv(run / "test.csv")
            if fold is not None:
                pd.DataFrame({"fname": names, "fold": fold}).to_csv(run / "folds.csv", index=False)
            (run / "manifest.json").write_text(json.dumps({"lwlrap": {"oof": lwlrap(member, targ)}}))
            runs.append(run)
        return runs, truth

    return write


def halves(n=200):
    return np.arange(n) % 2


# Results known in advance.


def test_every_fitted_method_is_tested_here():
    assert sorted(FITTED) == [how for how in ENSEMBLES.names() if isinstance(ENSEMBLES.build(how), FittableEnsemble)]


def test_forward_selection_worked_by_hand():
    # `one` ranks the first two clips right and the third wrong, `two` the other way round.
    targ = np.array([[1, 0], [1, 0], [0, 1]], dtype=bool)
    one = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]])
    two = np.array([[0.45, 0.55], [0.45, 0.55], [0.4, 0.6]])
    bad = 1 - one
    assert [lwlrap(p, targ) for p in (one, two, bad)] == pytest.approx([5 / 6, 2 / 3, 2 / 3])
    fitted = ENSEMBLES.build("forward").fit(np.stack([one, two, bad]), targ)
    # Round 1 adds `one` (5/6). In round 2 one + two gives the third clip 0.5 and 0.5, a tie, which counts as wrong: 5/6
    # again, so the first of equals, `one`, is added again; more of `one` never helps. The earliest best counts are 1,
    # 0, 0.
    np.testing.assert_array_equal(fitted.weights, [1, 0, 0])
    # With `one` less wrong on the third clip the mean of both is right: 0.675 to 0.325, and 0.475 to 0.525.
    softer = np.array([[0.9, 0.1], [0.9, 0.1], [0.55, 0.45]])
    np.testing.assert_array_equal(
        ENSEMBLES.build("forward").fit(np.stack([softer, two, bad]), targ).weights, [0.5, 0.5, 0]
    )


def test_forward_selection_adds_the_model_whose_weighted_average_is_best(rng):
    targ = np.eye(5, dtype=bool)[rng.integers(0, 5, 60)]
    probs = np.clip(targ * 0.3 + rng.random((4, 60, 5)) * 0.7, 0, 1)
    for average in ("mean", "gmean"):
        averager, counts, scores = ENSEMBLES.build(average), [np.zeros(4)], []
        for size in range(1, 8):
            found = [lwlrap(averager(probs, (counts[-1] + model) / size), targ) for model in np.eye(4)]
            counts.append(counts[-1] + np.eye(4)[int(np.argmax(found))])
            scores.append(max(found))
        best = int(np.argmax(scores)) + 1
        fitted = ENSEMBLES.build("forward", average=average, rounds=7).fit(probs, targ)
        np.testing.assert_allclose(fitted.weights, counts[best] / best)


def test_forward_selection_never_scores_below_the_best_member(known):
    probs, targ = known
    for average in ("mean", "gmean", "rank_clip", "rank_tag"):
        fitted = ENSEMBLES.build("forward", average=average, rounds=10).fit(probs, targ)
        member_scores = [lwlrap(WeightedAverage(fitted.averager, np.eye(3)[i])(probs), targ) for i in range(3)]
        assert lwlrap(fitted(probs), targ) >= max(member_scores) and fitted.weights.sum() == pytest.approx(1)


def test_cobyla_is_no_worse_than_equal_weights_and_leaves_out_a_harmful_model(known):
    probs, targ = known
    harmful = np.concatenate([probs[:1], 1 - probs[:1]])
    fitted = ENSEMBLES.build("cobyla").fit(harmful, targ)
    assert fitted.weights[0] > fitted.weights[1] and lwlrap(fitted(harmful), targ) == pytest.approx(
        lwlrap(probs[0], targ)
    )
    fitted = ENSEMBLES.build("cobyla").fit(probs, targ)
    assert lwlrap(fitted(probs), targ) >= lwlrap(probs.mean(0), targ)
    assert (fitted.weights >= 0).all() and fitted.weights.sum() == pytest.approx(1)
    np.testing.assert_array_equal(ENSEMBLES.build("cobyla").fit(probs[:1], targ).weights, [1])


@pytest.mark.parametrize(("probs", "scores"), [
    # Right within both clips; the first clip is higher in both tags, so ranks within a tag tie in each clip, which
    # counts as wrong.
    ([[0.9, 0.8], [0.1, 0.2]], {"mean": 1, "gmean": 1, "rank_clip": 1, "rank_tag": 0.5, "minmax_tag": 0.5}),
    # Meow is always low: wrong within the second clip, right within both tags.
    ([[0.5, 0.1], [0.4, 0.3]], {"mean": 0.75, "gmean": 0.75, "rank_clip": 0.75, "rank_tag": 1, "minmax_tag": 1}),
])
def test_order_within_clips_after_each_average(probs, scores):
    for average, score in scores.items():
        assert lwlrap(ENSEMBLES.build(average)(np.array([probs]), np.ones(1)), np.eye(2)) == score, average


def test_cobyla_keeps_its_start_if_it_ends_below_it(monkeypatch, known):
    monkeypatch.setattr(
        scipy.optimize,
        "minimize",
        lambda loss, start, **options: scipy.optimize.OptimizeResult(x=np.array([0, 0, 1.0])),
    )
    np.testing.assert_array_equal(ENSEMBLES.build("cobyla").fit(*known).weights, [1 / 3] * 3)


def test_weights_are_searched_for_the_score_of_the_given_average():
    # The same two tables as models: by mean only the first is right, by ranks within a tag only the second.
    probs = np.array([[[0.9, 0.8], [0.1, 0.2]], [[0.5, 0.1], [0.4, 0.3]]])
    for how in ("forward", "cobyla"):
        by_mean, by_rank = (
            ENSEMBLES.build(how, average=average).fit(probs, np.eye(2, dtype=bool)) for average in ("mean", "rank_tag")
        )
        assert lwlrap(by_mean(probs), np.eye(2)) == lwlrap(by_rank(probs), np.eye(2)) == 1
        assert by_rank.weights[1] > 0
    np.testing.assert_array_equal(
        ENSEMBLES.build("forward", average="rank_tag").fit(probs, np.eye(2, dtype=bool)).weights, [0, 1]
    )
    np.testing.assert_array_equal(
        ENSEMBLES.build("forward", average="mean").fit(probs, np.eye(2, dtype=bool)).weights, [1, 0]
    )


def test_rank_temperature_step_by_step(known):
    probs, targ = known
    fitted = ENSEMBLES.build("rank_temperature").fit(probs, targ)
    weights = np.array([lwlrap(p, targ) for p in probs])
    ranks = (pd.DataFrame(probs[0]).rank() - 1).to_numpy() * weights[0]
    for k in (1, 2):
        ranks += (pd.DataFrame(probs[k]).rank() - 1).to_numpy() * weights[k]
    ranks /= 199 * weights.sum()
    stretched = (ranks - ranks.min(0)) / (ranks.max(0) - ranks.min(0))
    z = logit(np.clip(stretched, 1e-7, 1 - 1e-7))
    stacked = fitted(probs)
    for tag in range(4):
        middle = np.argmin(np.abs(stretched[:, tag] - 0.7))
        slope = logit(stacked[middle, tag]) / z[middle, tag]
        np.testing.assert_allclose(stacked[:, tag], expit(slope * z[:, tag]), atol=1e-12)
        losses = [
            np.logaddexp(0, np.where(targ[:, tag], -1, 1) * s * z[:, tag]).mean()
            for s in (slope, 0.97 * slope, 1.03 * slope)
        ]
        assert losses[0] == min(losses)


def test_an_average_stays_at_most_1_where_rounded_weights_sum_to_more():
    rng = np.random.default_rng(0)
    for n in range(2, 30):
        weights = rng.random(n)
        ones = WeightedAverage(ENSEMBLES.build("mean"), weights / weights.sum())(np.ones((n, 1, 1)))
        assert ones <= 1 and ones == pytest.approx(1)


def test_logistic_stacking_is_scikit_learns_on_standardised_logits(known):
    probs, targ = known
    stacked = ENSEMBLES.build("logreg").fit(probs[:, :150], targ[:150])(probs[:, 150:])
    z = logit(probs[:, :, 2]).T
    mean, std = z[:150].mean(0), z[:150].std(0)
    learner = LogisticRegression(C=1.0, max_iter=1000).fit((z[:150] - mean) / std, targ[:150, 2])
    np.testing.assert_allclose(stacked[:, 2], learner.predict_proba((z[150:] - mean) / std)[:, 1], atol=1e-6)


def test_logistic_stacking_across_tags_uses_the_other_tags():
    # Meow is present exactly where Bark is not, which only Bark's probability shows.
    rng = np.random.default_rng(1)
    bark = rng.random(100) > 0.5
    targ = np.stack([bark, ~bark], axis=1)
    probs = np.stack([np.where(bark, 0.9, 0.1), rng.random(100)], axis=1)[None]
    meow = {
        across: ENSEMBLES.build("logreg", across_tags=across).fit(probs, targ)(probs)[:, 1] for across in (False, True)
    }
    assert ((meow[True] > 0.5) == ~bark).all() and not ((meow[False] > 0.5) == ~bark).all()


def test_a_tag_that_no_clip_has_keeps_the_mean_in_logistic_stacking(known):
    probs, targ = known
    none = targ.copy()
    none[:, 1] = False
    np.testing.assert_array_equal(ENSEMBLES.build("logreg").fit(probs, none)(probs)[:, 1], probs.mean(0)[:, 1])


@pytest.mark.parametrize(("reduction", "parameters"), [(16, 1_180_101), (2, 1_454_746), (1, 1_768_626)])
def test_the_stacking_network_has_the_published_number_of_parameters(reduction, parameters):
    network = StackingNet(7 * 80, 80, reduction=reduction)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_the_gate_multiplies_the_inputs():
    network = StackingNet(6, 2, base=4).eval()
    x = torch.rand(3, 6)
    gate = torch.sigmoid(network.gate[2](torch.relu(network.gate[0](x))))
    torch.testing.assert_close(network(x), network.layers(x * gate))


def test_the_mlp_learns_is_reproducible_and_restores_torchs_generator(known):
    probs, targ = known
    # Inverted probabilities, so that no average of the models can be right.
    wrong = 1 - probs[:1]
    build = lambda: ENSEMBLES.build("mlp", base=16, bs=32, samples_per_epoch=2048, lr=3e-3, max_epochs=8)
    torch.manual_seed(3)
    fitted = build().fit(wrong[:, :150], targ[:150])
    after = torch.rand(1)
    torch.manual_seed(3)
    assert after == torch.rand(1)
    stacked = fitted(wrong[:, 150:])
    assert stacked.dtype == np.float64 and lwlrap(stacked, targ[150:]) > 0.75 > 0.5 > lwlrap(wrong[0, 150:], targ[150:])
    np.testing.assert_array_equal(build().fit(wrong[:, :150], targ[:150])(wrong[:, 150:]), stacked)


# The nested score.


@pytest.mark.parametrize("how", FITTED)
def test_nested_predictions_of_a_fold_come_from_a_fit_on_the_others(how, known):
    probs, targ = known
    folds = halves()
    oof = align_out_of_fold(
        [Predictions([str(i) for i in range(200)], TAGS, p) for p in probs],
        pd.DataFrame({"fname": [str(i) for i in range(200)], "labels": [TAGS[i] for i in targ.argmax(1)]}),
        TAGS,
        [{str(i): int(f) for i, f in enumerate(folds)}] * 3,
    )
    np.testing.assert_array_equal(oof.folds, folds)
    nested = nested_cv_predict(oof, how, **FITTED[how])
    by_hand = ENSEMBLES.build(how, **FITTED[how]).fit(probs[:, folds == 0], targ[folds == 0])(probs[:, folds == 1])
    np.testing.assert_allclose(nested[folds == 1], by_hand, atol=1e-12)
    # The labels of a fold have no influence on its predictions.
    changed = oof._replace(targ=np.where(folds[:, None] == 1, ~targ, targ))
    np.testing.assert_array_equal(nested_cv_predict(changed, how, **FITTED[how])[folds == 1], nested[folds == 1])


def test_nested_score_shows_overfitting():
    # Random tags: a stacker with many inputs fits them, but its nested score is that of chance.
    rng = np.random.default_rng(11)
    targ = np.eye(4, dtype=bool)[rng.integers(4, size=80)]
    probs = rng.random((12, 80, 4))
    names = [str(i) for i in range(80)]
    oof = align_out_of_fold([Predictions(names, TAGS, p) for p in probs],
                      pd.DataFrame({"fname": names, "labels": [TAGS[i] for i in targ.argmax(1)]}), TAGS)
    fitted = ENSEMBLES.build("logreg", across_tags=True, C=10).fit(probs, targ)(probs)
    chance = (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4
    assert (
        lwlrap(fitted, targ) > 0.9
        and lwlrap(nested_cv_predict(oof, "logreg", across_tags=True, C=10), targ) < chance + 0.1
    )


@pytest.mark.parametrize("how", ["mean", *FITTED])
def test_run_folders_hold_all_that_a_fit_needs(how, write_runs, known):
    probs, targ = known
    runs, truth = write_runs(halves(), halves(), halves())
    options = FITTED.get(how, {})
    result = ensemble_report(runs, how, truth=truth, **options)
    assert result.member_scores == pytest.approx([lwlrap(p, targ) for p in probs])
    assert result.predictions.oof_score == result.oof.score(truth) and result.predictions.fnames == ("x.wav", "y.wav")
    fitted = ENSEMBLES.build(how, **options)
    expected = fitted.fit(probs, targ)(probs[:, :2]) if how != "mean" else probs[:, :2].mean(0)
    np.testing.assert_allclose(result.predictions.probs, expected, atol=1e-9)
    assert ensemble(runs, how, truth=truth, **options) == result.predictions
    assert result.members == tuple(map(str, runs)) and (result.weights is not None) == (
        how not in ("rank_temperature", "logreg", "mlp")
    )


def test_a_result_prints_members_weights_and_scores(write_runs, known):
    probs, targ = known
    runs, truth = write_runs(halves(), halves())
    rows = str(ensemble_report(runs, weights=[3, 1], truth=truth)).splitlines()
    assert rows[0].split() == ["member", "weight", "oof", "lwlrap"]
    assert rows[1].split() == [str(runs[0]), "0.750", f"{lwlrap(probs[0], targ):.4f}"]
    assert rows[3].split() == ["ensemble,", "nested", f"{lwlrap((3 * probs[0] + probs[1]) / 4, targ):.4f}"]


def test_runs_are_weighted_by_their_manifests_without_a_truth(write_runs, known):
    probs, targ = known
    runs, truth = write_runs(halves(), halves())
    scores = np.array([lwlrap(p, targ) for p in probs[:2]])
    expected = (scores / scores.sum()) @ probs[:2, :2].transpose(1, 0, 2)
    np.testing.assert_allclose(ensemble(runs, weights="lwlrap").probs, expected)
    np.testing.assert_allclose(ensemble(runs, weights="lwlrap", truth=truth).probs, expected)
    for text in ("", "{}", "[1]", '{"lwlrap": {"oof": "1"}}', '{"lwlrap": {"oof": 7}}'):
        (runs[1] / "manifest.json").write_text(text)
        with pytest.raises(OptionError, match="run1 has none"):
            ensemble(runs, weights="lwlrap")


def test_folds_of_runs_are_used_where_they_agree_and_made_where_not(write_runs, tmp_path):
    runs, truth = write_runs(halves() + 3, halves() + 3, None)
    members = load_members(runs)
    both = align_out_of_fold([m.oof for m in members[:2]], truth, TAGS, [m.folds for m in members[:2]])
    np.testing.assert_array_equal(both.folds, halves())
    with_third = align_out_of_fold([m.oof for m in members], truth, TAGS, [m.folds for m in members])
    assert np.bincount(with_third.folds).tolist() == [40] * 5
    moved = {name: (fold + 1) % 2 if name == "007.wav" else fold for name, fold in members[0].folds.items()}
    apart = align_out_of_fold([m.oof for m in members[:2]], truth, TAGS, [members[0].folds, moved])
    assert np.bincount(apart.folds).tolist() == [40] * 5
    one_fold = align_out_of_fold([m.oof for m in members[:1]], truth, TAGS, [{name: 0 for name in members[0].folds}])
    assert np.bincount(one_fold.folds).tolist() == [40] * 5


def test_only_clips_in_all_members_count_in_any_order(known):
    probs, targ = known
    names = [f"{i}" for i in range(200)]
    truth = pd.DataFrame({"fname": names[:150], "labels": [TAGS[i] for i in targ.argmax(1)[:150]]})
    first = Predictions(names, TAGS, probs[0])
    second = Predictions(names, TAGS, probs[1]).select(names[:99:-1], TAGS[::-1])
    oof = align_out_of_fold([first, second], truth, TAGS)
    assert oof.fnames == tuple(names[100:150])
    np.testing.assert_array_equal(oof.probs, probs[:2, 100:150])
    np.testing.assert_array_equal(oof.targ, targ[100:150])


def test_unusable_out_of_fold_predictions_are_named(write_runs, tmp_path, known):
    runs, truth = write_runs(halves(), halves())
    with pytest.raises(DataError, match="no clip is in the truth and in the out-of-fold predictions"):
        ensemble(runs, truth=pd.DataFrame({"fname": ["q"], "labels": ["Bark"]}))
    with pytest.raises(DataError, match="none of the 200 clips in both"):
        ensemble(runs, truth=truth.assign(labels=""))
    (runs[1] / "oof.csv").unlink()
    with pytest.raises(OptionError, match="run1 has no out-of-fold predictions"):
        ensemble(runs, truth=truth)
    with pytest.raises(OptionError, match="oof holds 1 predictions; expected 2"):
        ensemble(runs, oof=[runs[0]], truth=truth)
    other = Predictions(truth["fname"], [*TAGS[:3], "Gong"], known[0][1])
    with pytest.raises(SubmissionError, match="lack the tags 'Purr'"):
        ensemble(runs, oof=[runs[0], other], truth=truth)
    (runs[0] / "folds.csv").write_text("fname,fold\n000.wav,one\n")
    with pytest.raises(DataError, match="line 2: fold is 'one'; expected a whole number"):
        read_folds(runs[0] / "folds.csv")
    (runs[0] / "folds.csv").write_text("clip,fold\n")
    with pytest.raises(DataError, match="expected fname and fold"):
        ensemble(runs[:1])


def test_a_stored_score_survives_selection_and_is_checked():
    preds = Predictions(["a", "b"], TAGS, np.zeros((2, 4)), oof_score=0.5)
    assert preds.select(["b"]).oof_score == 0.5 and preds == dataclasses.replace(preds, oof_score=None)
    with pytest.raises(SubmissionError, match="oof_score is 1.5"):
        Predictions(["a"], TAGS, np.zeros((1, 4)), oof_score=1.5)
