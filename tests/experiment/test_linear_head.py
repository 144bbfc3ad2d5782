"""Linear probe as a stage, and the recipe panns_logreg that consists of it."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fatai.data.datasets.fat2019 import load_dataset
from fatai.data.labels import multi_hot
from fatai.ensemble.ensemble import ensemble
from fatai.errors import CheckpointError, FataiError, OptionError
from fatai.experiment.frozen_features import FrozenFeatures
from fatai.experiment.linear_head import folded_layer, last_layer, solve_last_layer
from fatai.experiment.recipe import load_recipe
from fatai.experiment.run import run_recipe
from fatai.experiment.schema import Stage
from fatai.experiment.stage import fit_stage
from fatai.inference.embeddings import Embeddings
from fatai.inference.learner import FatLearner, fat_learner
from fatai.inference.linear_probe import LinearProbe
from fatai.inference.predictions import Predictions, check_submission
from fatai.models import create_model
from fatai.models.base import SpectrogramModel
from fatai.models.checkpoint import save_checkpoint


@pytest.fixture
def learn(own_dls, tmp_path):
    return fat_learner(own_dls, "cnn14", width=1 / 16, path=tmp_path, precision="fp32")


def test_the_stage_sets_the_last_layer_to_the_probe_of_the_frozen_features(learn, monkeypatch):
    computed, embed = [], FatLearner.embed

    def recording(*args, **options):
        computed.append(embed(*args, **options))
        return computed[-1]

    monkeypatch.setattr(FatLearner, "embed", recording)
    before = {k: v.clone() for k, v in learn.model.state_dict().items() if not k.startswith("fc_audioset")}
    fit_stage(learn, Stage(linear_probe={"C": 2.0, "max_iter": 1000}, bs=16))
    assert all(torch.equal(v, learn.model.state_dict()[k]) for k, v in before.items()), "only the last layer changes"
    targ = multi_hot(learn.dls.files(0)["labels"], learn.tags)
    weight, bias = folded_layer(LinearProbe.fit(computed[0].values, targ, learn.tags, C=2.0, max_iter=1000))
    # The same features give the same fit; the layer holds it in float32.
    layer = learn.model.fc_audioset
    np.testing.assert_array_equal(layer.weight.detach().numpy(), weight.astype(np.float32))
    np.testing.assert_array_equal(layer.bias.detach().numpy(), bias.astype(np.float32))


def test_the_logits_of_the_layer_are_those_of_scikit_learn_on_the_same_features(rng):
    # Well conditioned: independent features of unit variance, in float64 throughout.
    values, noise = rng.standard_normal((200, 6)) + 3, rng.standard_normal((200, 2))
    targ = values[:, :2] + noise > 3
    weight, bias = folded_layer(LinearProbe.fit(values, targ, ("Bark", "Meow"), C=2.0))
    for k, present in enumerate(targ.T):
        reference = make_pipeline(StandardScaler(), LogisticRegression(C=2.0, max_iter=1000)).fit(values, present)
        logits = values @ weight[k] + bias[k]
        np.testing.assert_allclose(logits, reference.decision_function(values), rtol=1e-9, atol=1e-9)


def test_predictions_are_those_of_the_layer_on_the_embeddings(learn):
    fit_stage(learn, Stage(linear_probe={"C": 2.0, "max_iter": 1000}, bs=16))
    layer, items = learn.model.fc_audioset, learn.dls.files(1)
    features = learn.embed(items, n=1).values.astype(np.float64)
    weight, bias = layer.weight.detach().numpy().astype(np.float64), layer.bias.detach().numpy().astype(np.float64)
    logits = features @ weight.T + bias
    probs = learn.tta(items=items, n=1).probs
    # Features of random weights hardly vary, so the layer has large weights that cancel; float32 rounds each summand of
    # a logit.
    rounding = 1e-5 * (np.abs(features) @ np.abs(weight).T + np.abs(bias))
    assert (np.abs(np.log(probs) - np.log1p(-probs) - logits) <= rounding + 1e-5).all()


def test_other_networks_are_refused(small_dls, tmp_path):
    with pytest.raises(OptionError, match="needs a network of PANNs .* not ConvBlockNet"):
        solve_last_layer(fat_learner(small_dls, "m1", width=0.05, path=tmp_path))
    with pytest.raises(OptionError, match="published head"):
        solve_last_layer(
            fat_learner(small_dls, "cnn14", width=1 / 16, arch_options={"head": "attention"}, path=tmp_path)
        )


@pytest.fixture
def weights(tmp_path):
    """A narrow CNN6 as torch.save writes it."""
    torch.manual_seed(1)
    path = tmp_path / "Cnn6.pth"
    torch.save({"model": create_model("cnn6", 527, 1, width=0.125).state_dict()}, path)
    return path


@pytest.fixture
def panns_logreg(weights):
    """The recipe panns_logreg with a narrow pretrained CNN6 on crops of one second, in two folds."""
    plain = load_recipe("panns_logreg").override(arch="cnn6", width=0.125, n_folds=2, crop_s=1.0).model_dump()
    plain["model"]["options"] = {"pretrained": str(weights)}
    return type(load_recipe("panns_logreg")).model_validate(plain)


def run(*args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run_recipe(*args, num_workers=0, **{"log": lambda line: None, **options})


def test_the_recipe_goes_from_sounds_to_a_submission(panns_logreg, few_clips, tmp_path):
    out, lines = tmp_path / "panns", []
    result = run(few_clips, panns_logreg, out, log=lines.append)
    data = load_dataset(few_clips)
    assert len(result.oof) == len(data.curated) and any("out of fold: lwlrap" in line for line in lines)
    np.testing.assert_allclose(result.oof.probs, Predictions.from_csv(out / "oof.csv").probs)
    check_submission(out / "submission.csv", few_clips / "sample_submission.csv")
    noted = pd.read_csv(out / "folds.csv").merge(
        pd.read_csv(few_clips / "train_curated.csv"), on="fname", suffixes=("", "_given")
    )
    assert len(noted) == len(result.oof) and (noted["labels"] == noted["labels_given"]).all()
    np.testing.assert_allclose(ensemble([out, out], weights="lwlrap").probs, result.test.probs)


def test_a_finished_recipe_is_not_fitted_again_and_never_continued_with_other_data(
    panns_logreg, few_clips, tmp_path, monkeypatch
):
    out = tmp_path / "panns"
    run(few_clips, panns_logreg, out, run_folds=[0], predict_test=False)
    monkeypatch.setattr("fatai.experiment.linear_head.LinearProbe", None)
    run(few_clips, panns_logreg, out, run_folds=[0], predict_test=False, resume=True)
    (tmp_path / "corrections.csv").write_text(f"fname,labels\n{load_dataset(few_clips).curated['fname'][0]},remove\n")
    with pytest.raises(FataiError, match="holds a run of other data"):
        run(few_clips, panns_logreg, out, run_folds=[0], resume=True, corrections=tmp_path / "corrections.csv")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(FataiError, match="exists and is not empty"):
        run(few_clips, panns_logreg, tmp_path / "mine")


@pytest.fixture
def passes(monkeypatch, no_reference):
    """Numbers of clips that go through a network, batch by batch, but for the reference clips of a run.

    Single clips are left out: networks are prepared with them.
    """
    numbers, prepare_input = [], SpectrogramModel.prepare_input

    def counting(self, spec):
        numbers.extend([len(spec)] if len(spec) > 1 else [])
        return prepare_input(self, spec)

    monkeypatch.setattr(SpectrogramModel, "prepare_input", counting)
    return numbers


def test_all_folds_share_the_features_of_a_frozen_network(panns_logreg, few_clips, tmp_path, passes, monkeypatch):
    # Folded batch norms, which predictions of many clips have, round in another way.
    monkeypatch.setattr("fatai.inference.predictor.fold_batch_norm", lambda model, spec: model)
    stages = [panns_logreg.stages[0].model_copy(update={"linear_probe": {"C": 0.01}})]  # without large weights
    recipe, data = panns_logreg.model_copy(update={"stages": tuple(stages)}), load_dataset(few_clips)
    shared = run(data, recipe, tmp_path / "shared")
    assert sum(passes) == len(data.curated) + len(data.test)
    passes.clear()
    monkeypatch.setattr("fatai.experiment.fold._shares_features", lambda *args: False)
    alone = run(data, recipe, tmp_path / "alone")
    assert sum(passes) == 2 * (len(data.curated) + len(data.test)), "by the former way, once in each fold"
    np.testing.assert_allclose(shared.oof.probs, alone.oof.probs, atol=1e-6)
    np.testing.assert_allclose(shared.test.probs, alone.test.probs, atol=1e-6)
    for fold in (0, 1):
        parts = [Embeddings.load(tmp_path / name / f"fold_{fold}" / "embeddings.npy") for name in ("shared", "alone")]
        assert parts[0].fnames == parts[1].fnames
        np.testing.assert_allclose(parts[0].values, parts[1].values, rtol=1e-5, atol=1e-6)


def test_a_continued_run_of_a_frozen_network_ends_with_the_same_bytes(panns_logreg, few_clips, tmp_path):
    run(few_clips, panns_logreg, tmp_path / "whole")
    run(few_clips, panns_logreg, tmp_path / "parts", run_folds=[0])
    run(few_clips, panns_logreg, tmp_path / "parts", resume=True)
    for name in ("fold_1/model.safetensors", "fold_1/embeddings.npy", "oof.csv", "test.csv", "calibration.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_networks_with_random_weights_have_features_of_their_own_in_each_fold(few_clips, tmp_path, passes):
    plain = load_recipe("panns_logreg").override(arch="cnn6", width=0.125, n_folds=2, crop_s=1.0)
    data = load_dataset(few_clips)
    run(data, plain, tmp_path / "run", predict_test=False)
    assert sum(passes) == 2 * len(data.curated)
    parts = [Embeddings.load(tmp_path / "run" / f"fold_{fold}" / "embeddings.npy") for fold in (0, 1)]
    assert not set(parts[0].values[:, 0]) & set(parts[1].values[:, 0])


def test_silent_and_unreadable_clips_are_predicted_as_without_shared_features(own_dls, tmp_path):
    import soundfile as sf

    learn = fat_learner(own_dls, "cnn14", width=1 / 16, path=tmp_path, precision="fp32")
    sf.write(tmp_path / "silent.wav", np.zeros(44100), 44100)
    (tmp_path / "broken.wav").write_text("no sound")
    items = [str(tmp_path / "silent.wav"), *map(str, learn.dls.files(1)["path"][:3]), str(tmp_path / "broken.wav")]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        preds = FrozenFeatures().predict(learn, last_layer(learn.model), items)
        expected = learn.tta(items=items, n=1)
    assert preds.fnames == expected.fnames
    assert (preds.unreadable, preds.silent) == (expected.unreadable, expected.silent) == (
        ("broken.wav",), ("silent.wav",)
    )
    np.testing.assert_allclose(preds.probs, expected.probs, atol=1e-6)
    messages = [str(warning.message) for warning in caught]
    for words in ("1 of 5 clips cannot be read", "1 of 5 clips are silent"):
        assert sum(words in message for message in messages) == 2, "once from each of the two"


def test_the_recipe_takes_the_middle_ten_seconds_or_pads_at_the_end():
    recipe = load_recipe("panns_logreg")
    settings = recipe.settings()
    assert (settings.sr, settings.crop_samples, settings.trim_db) == (32000, 320000, None)
    assert settings.front_end.fmax == 14000
    assert (recipe.tta.views, recipe.tta.n) == ("even", 1)
    short = torch.ones(10)
    assert settings.fit(short)[:10].tolist() == [1.0] * 10 and settings.fit(short)[10:].abs().sum() == 0


def test_missing_weights_are_named(panns_logreg, sample, tmp_path):
    (tmp_path / "Cnn6.pth").unlink()
    with pytest.raises(FataiError, match="there is no file .*Cnn6.pth"):
        run(sample, panns_logreg, tmp_path / "out", run_folds=[0])


def test_the_last_layer_of_efficientat_is_fitted_too(own_dls, tmp_path):
    learn = fat_learner(own_dls, "mn04", width=0.3, path=tmp_path, precision="fp32")
    before = {k: v.clone() for k, v in learn.model.state_dict().items() if not k.startswith("classifier.5.")}
    solve_last_layer(learn)
    assert all(torch.equal(v, learn.model.state_dict()[k]) for k, v in before.items()), "only the last layer changes"
    table = learn.dls.files(0)
    embeddings = learn.embed(table, n=1)
    targ = multi_hot(table["labels"], learn.tags)
    probe = LinearProbe.fit(embeddings.values, targ, learn.tags, C=2.0, max_iter=1000)
    weight, bias = folded_layer(probe)
    np.testing.assert_array_equal(learn.model.classifier[5].weight.detach().numpy(), weight.astype(np.float32))
    np.testing.assert_array_equal(learn.model.classifier[5].bias.detach().numpy(), bias.astype(np.float32))


@pytest.mark.parametrize(("name", "words"), [("panns_logreg", "its features are random"), ("gold_plan", "few clips")])
def test_a_recipe_for_published_weights_says_at_the_start_that_it_has_none(name, words, sample, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr("fatai.experiment.run.locate_weights", lambda arch, pretrained: None)
    monkeypatch.setattr("fatai.experiment.run.check_network", lambda recipe, n_tags: None)

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("fatai.experiment.run.SelfTrainingRounds", stop)
    for overrides, expected in (
        ({}, ["get cnn14 (327 MB, CC BY 4.0), and run with --weights cnn14", "--arch mn04 --weights mn04_as"]),
        ({"arch": "mn04"}, ["get mn04_as (4 MB, MIT), and run with --weights mn04_as"]),
        ({"weights": "cnn14"}, []),
    ):
        lines.clear()
        with pytest.raises(KeyboardInterrupt):
            run_recipe(
                sample, load_recipe(name).override(**overrides), tmp_path / str(len(expected)), num_workers=0,
                log=lines.append,
            )
        advice = [line for line in lines if "fatai-submit weights get" in line]
        assert len(advice) == len(expected) and all(map(str.endswith, advice, expected)), advice
        assert not expected or words in advice[0]


def test_weights_that_cannot_be_had_end_a_run_before_anything_is_written(sample, tmp_path, monkeypatch):
    monkeypatch.setenv("FATAI_WEIGHTS", str(tmp_path / "none"))
    recipe = load_recipe("panns_logreg").override(arch="mn04", weights="mn04_as")
    with pytest.raises(CheckpointError, match="copy mn04_as_mAP_432.pt into it, .*weights get mn04_as"):
        run_recipe(sample, recipe, tmp_path / "run", num_workers=0)
    with pytest.raises(CheckpointError, match="mn04_as are of mn04, not of cnn14; choose cnn14, or build mn04"):
        run_recipe(sample, load_recipe("panns_logreg").override(weights="mn04_as"), tmp_path / "run", num_workers=0)
    assert not list(tmp_path.iterdir())


def test_weights_that_do_not_fit_end_a_run_before_its_folder_is_made(sample, tmp_path):
    save_checkpoint(tmp_path / "wide.pt", create_model("mn04", 527, width=2).state_dict())
    save_checkpoint(tmp_path / "mn04_as_mAP_432.pt", create_model("mn04", 527).state_dict())
    recipe, out = load_recipe("probe"), tmp_path / "run"
    with pytest.raises(CheckpointError, match="wide.pt does not fit"):
        run_recipe(sample, recipe.override(weights=tmp_path / "wide.pt"), out, num_workers=0)
    narrow = recipe.override(weights=tmp_path / "mn04_as_mAP_432.pt", width=0.5)
    with pytest.raises(OptionError, match="the width is 0.5, and the published weights mn04_as are of width 1"):
        run_recipe(sample, narrow, out, num_workers=0)
    assert not out.exists()
