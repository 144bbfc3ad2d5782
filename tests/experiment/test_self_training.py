"""Noisy clips in a run: judged by models that never trained on them, chosen, trained on, let go of again."""

import shutil
import warnings

import numpy as np
import pandas as pd
import pytest

from fatai.callbacks.csv_logger import EpochCSVLogger
from fatai.callbacks.sample_weights import SampleWeights
from fatai.data.datasets.fat2019 import load_dataset
from fatai.data.folds import noisy_fold_masks
from fatai.errors import DataError, OptionError, RecipeError
from fatai.experiment.fold import fold_learner
from fatai.experiment.recipe import load_recipe
from fatai.experiment.run import run_recipe
from fatai.experiment.run_folder import predict_with_run
from fatai.inference.predictions import Predictions
from fatai.noisy_labels.methods import select_noisy_labels

pytestmark = pytest.mark.usefixtures("no_reference")


@pytest.fixture
def staged(tiny_recipe):
    """A function that makes the tiny recipe with stages of one epoch that differ in the given keys."""

    def make(*changes, **more):
        plain = tiny_recipe.override(epochs=1).model_dump()
        stages = tuple({**plain["stages"][0], "name": f"s{k}", **change} for k, change in enumerate(changes))
        return type(tiny_recipe).model_validate({**plain, "stages": stages, **more})

    return make


@pytest.fixture
def run(few_clips, tmp_path):
    def run_it(recipe, out="run", data=few_clips, **options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return run_recipe(
                data, recipe, tmp_path / out, num_workers=0, log=options.pop("log", lambda line: None), **options
            )

    return run_it


class Spy(SampleWeights):
    """Records the stage, noisy clips, weights and targets of each fit."""

    recorded: list = []

    def before_fit(self):
        super().before_fit()
        stage = next(cb.stage for cb in self.learn.cbs if isinstance(cb, EpochCSVLogger))
        table = self.learn.dls.files(0)
        noisy = set(table["fname"][table["noisy"]]) if "noisy" in table else set()
        Spy.recorded.append((stage, noisy, *self.values(), self._target_rows()))


@pytest.fixture
def spied(monkeypatch):
    Spy.recorded = []
    monkeypatch.setattr("fatai.experiment.fold.SampleWeights", Spy)
    return Spy.recorded


def test_rounds_start_where_clips_or_weights_change(staged):
    ninth = {"noisy_labels": {"method": "ninth_place_low_loss", "n": 20}}
    recipe = staged({}, {}, {**ninth, "reinit": True}, {}, {}, {"noisy_labels": {"method": "previous"}})
    assert recipe.rounds() == [range(0, 2), range(2, 3), range(3, 5), range(5, 6)]
    assert [recipe.predicts_noisy_after(k) for k in range(4)] == [True, False, False, False]
    assert staged({}, {}).rounds() == [range(0, 2)]


def test_the_best_clips_by_curated_models_are_added_in_one_stage(staged, run, few_clips, spied, tmp_path):
    lines = []
    ninth = {"method": "ninth_place_low_loss", "n": 8, "per_tag": 3}
    recipe = staged({}, {"noisy_labels": ninth, "noisy_sample_weight": 0.5, "reinit": True}, {})
    result = run(recipe, log=lines.append)
    data = load_dataset(few_clips)
    predicted = [Predictions.from_csv(tmp_path / "run" / f"fold_{k}" / "judged_0.csv") for k in (0, 1)]
    mean = (predicted[0].probs + predicted[1].probs) / 2
    expected = select_noisy_labels(
        data.noisy, data.tags, "ninth_place_low_loss", probs=mean, fnames=predicted[0].fnames, n=8, per_tag=3
    )
    written = pd.read_csv(tmp_path / "run" / "noisy_1.csv")
    assert set(written["fname"][written["kept"]]) == set(expected.fnames) and len(written) == len(data.noisy)
    assert [stage for stage, *_ in spied] == ["s1", "s1"]
    for _, noisy, weights, flags, targets in spied:
        assert noisy == set(expected.fnames) and targets is None
        assert set(weights[flags > 0].tolist()) == {0.5} and set(weights[flags == 0].tolist()) == {1.0}
    assert any("stage s1: ninth_place_low_loss: " in line for line in lines)
    history = pd.read_csv(tmp_path / "run" / "fold_1" / "history.csv")
    assert list(history["stage"]) == ["s0", "s1", "s2"]
    assert {f.name for f in (tmp_path / "run" / "fold_0").iterdir()} == {
        "model.safetensors", "history.csv", "oof.csv", "test.csv", "fold.json", "judged_0.csv"}
    assert set(result.oof.fnames) == set(data.curated["fname"]), "noisy clips are never held out"


def test_a_killed_run_with_noisy_clips_resumes_to_the_same_bytes(staged, run, tmp_path, monkeypatch):
    recipe = staged(
        {},
        {"noisy_labels": {"method": "scoring", "k": 8}, "noisy_fold_split": "own"},
        {"noisy_labels": {"method": "scoring", "k": 9}},
    )
    run(recipe, "whole")

    class KilledError(Exception):
        pass

    calls = []

    def broken(*args, **kwargs):
        calls.append(args)
        if len(calls) in (2, 4, 6, 8):
            raise KilledError("here")
        return fold_learner(*args, **kwargs)

    monkeypatch.setattr("fatai.experiment.fold.fold_learner", broken)
    for _ in range(4):
        with pytest.raises(KilledError):
            run(recipe, "broken", resume=True)
    run(recipe, "broken", resume=True)
    assert len(calls) == 6 + 4, "six rounds of folds, four of them started twice"
    for name in (
        "oof.csv",
        "test.csv",
        "noisy_1.csv",
        "noisy_2.csv",
        "fold_0/model.safetensors",
        "fold_1/model.safetensors",
    ):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_each_clip_is_scored_by_the_fold_that_was_not_trained_on_it(staged, run, few_clips, tmp_path):
    recipe = staged(
        {},
        {"noisy_labels": {"method": "as_given"}, "noisy_fold_split": "own"},
        {"noisy_labels": {"method": "scoring", "k": 9}},
    )
    run(recipe)
    fold = [Predictions.from_csv(tmp_path / "run" / f"fold_{k}" / "judged_1.csv") for k in (0, 1)]
    names = sorted(fold[0].fnames)
    masks = noisy_fold_masks(len(names), split="own", n=2, seed=recipe.folds.seed)
    trained_on = {names[i] for i in np.flatnonzero(masks[0])}
    unseen = [fold[1 if name in trained_on else 0].probs[fold[0].fnames.index(name)] for name in fold[0].fnames]
    written = pd.read_csv(tmp_path / "run" / "noisy_2.csv")
    data = load_dataset(few_clips)
    expected = select_noisy_labels(data.noisy, data.tags, "scoring_9", probs=np.array(unseen), fnames=fold[0].fnames)
    assert set(written["fname"][written["kept"]]) == set(expected.fnames)


def test_some_folds_alone_score_only_clips_that_one_was_not_trained_on(staged, run, few_clips, tmp_path):
    lines = []
    recipe = staged(
        {},
        {"noisy_labels": {"method": "as_given"}, "noisy_fold_split": "own"},
        {"noisy_labels": {"method": "scoring", "k": 4}},
    )
    run(recipe, run_folds=[0], log=lines.append)
    names = sorted(load_dataset(few_clips).noisy["fname"])
    mask = noisy_fold_masks(len(names), split="own", n=2, seed=recipe.folds.seed)[0]
    written = pd.read_csv(tmp_path / "run" / "noisy_2.csv")
    assert set(written["fname"]) == {names[i] for i in np.flatnonzero(~mask)} and written["kept"].sum() == 4
    assert any(line.startswith("12 noisy clips are in every fold's training set") for line in lines)


def test_models_that_were_all_trained_on_the_clips_cannot_score_them(staged, run):
    recipe = staged({}, {"noisy_labels": {"method": "as_given"}}, {"noisy_labels": {"method": "scoring", "k": 9}})
    with pytest.raises(DataError, match="every model was trained on .*split='own' or 'others'"):
        run(recipe)
    with pytest.raises(OptionError, match="scoring_9 needs probabilities"):
        run(staged({"noisy_labels": {"method": "scoring", "k": 9}}), "other")


def test_soft_targets_and_those_of_a_second_head_reach_the_loss(staged, run, spied, few_clips, tmp_path):
    run(staged({"noisy_labels": {"method": "kaggle_fat_soft_labels"}}), "soft", run_folds=[0], predict_test=False)
    _, _, weights, flags, targets = spied.pop()
    noisy = [t for t, flag in zip(targets, flags, strict=True) if flag]
    assert all(t is None for t, flag in zip(targets, flags, strict=True) if not flag)
    assert all(
        t.max() == pytest.approx(0.8) and t[t < 0.5].sum() == pytest.approx(0.2, abs=1e-6)
        for t in noisy
        if (t > 0.5).sum() == 1
    )
    result = run(staged({"noisy_labels": {"method": "fourth_place_second_head"}}, {}), "heads", run_folds=[0])
    _, _, weights, flags, targets = spied[0]
    assert weights.shape == (20 + 24, 20) and all(len(t) == 20 for t in targets)
    for w, flag, targ in zip(weights, flags, targets, strict=True):
        first, second = (w[:10], targ[:10]), (w[10:], targ[10:])
        used, unused = (second, first) if flag else (first, second)
        assert (used[0] == 2).all() and used[1].sum() >= 1 and (unused[0] == 0).all() and (unused[1] == 0).all()
    assert len(spied) == 2 and result.test.probs.shape == (20, 10)
    again = predict_with_run(tmp_path / "heads", sorted((few_clips / "test").iterdir())[:4], calibrate=False)
    np.testing.assert_allclose(again.probs, result.test.select(again.fnames).probs, atol=1e-5)


def test_a_mixture_is_drawn_with_the_weights_of_the_method(staged, run, monkeypatch):
    from fatai.data.samplers import MixtureSampler

    drawn = []
    monkeypatch.setattr(
        "fatai.experiment.stage.MixtureSampler",
        lambda sources, weights, **o: drawn.append((set(sources), weights, o)) or MixtureSampler(sources, weights, **o),
    )
    noisy = {"noisy_labels": {"method": "first_place_corrections"}, "loss": "split"}
    run(staged({**noisy, "sampling": "mixture", "sampling_options": {"n": 32}}), run_folds=[1])
    assert drawn == [({"curated", "noisy"}, {"noisy": 0.2, "curated": 0.8}, {"n": 32})]
    with pytest.raises(OptionError, match="without weights of the sources"):
        run(staged({"sampling": "mixture"}), "none", run_folds=[1])


def test_corrections_change_the_training_clips(staged, run, few_clips, tmp_path):
    curated = pd.read_csv(few_clips / "train_curated.csv", dtype=str)["fname"]
    (tmp_path / "corrections.csv").write_text(f"fname,labels\n{curated[0]},remove\n{curated[1]},Rain\n")
    result = run(staged({}), run_folds=[0, 1], predict_test=False, corrections=tmp_path / "corrections.csv")
    assert set(result.oof.fnames) == set(curated[1:])
    with pytest.raises(Exception, match="a run of other data"):
        run(staged({}), resume=True)


def test_invalid_stages_and_data_are_refused(staged, run, few_clips, tmp_path):
    with pytest.raises(ValueError, match="reuses the previous selection, but no stage before it selects"):
        staged({"noisy_labels": {"method": "previous"}})
    (tmp_path / "my.toml").write_text('name = "my"\n[[stages]]\nnoisy_labels = { method = "ninth_place_low_los" }\n')
    with pytest.raises(RecipeError, match="did you mean ninth_place_low_loss"):
        load_recipe(tmp_path / "my.toml")
    data = tmp_path / "data"
    shutil.copytree(few_clips, data, ignore=shutil.ignore_patterns("truth", "train_noisy*"))
    with pytest.raises(DataError, match="trains on noisy clips, but .* has none"):
        run(staged({"noisy_labels": {"method": "as_given"}}), "none", data=data)
