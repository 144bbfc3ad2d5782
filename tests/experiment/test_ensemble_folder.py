"""The folder of an ensemble predicts, tags, exports and reports like that of a run; data without a test part."""

import json
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from fatai.errors import CheckpointError, DataError, OptionError
from fatai.experiment.ensemble_folder import EnsembleFolder, is_ensemble_folder
from fatai.experiment.ensemble_recipe import EnsembleRecipe, load_ensemble
from fatai.experiment.ensemble_run import run_ensemble
from fatai.experiment.held_out import scored_model
from fatai.experiment.recipe import load_recipe
from fatai.experiment.run_folder import Tagger, ensemble_models, predict_with_run, trained_model
from fatai.experiment.tag_batch import TagBatch
from fatai.export.onnx import AverageProbs
from fatai.export.pretrained import load_pretrained
from fatai.inference.events.averaged import AveragedTagger
from fatai.inference.events.tagger import SlidingWindowTagger
from fatai.inference.predictions import Predictions
from fatai.metrics.calibration import Calibration
from fatai.report.html import run_report


@pytest.fixture(scope="module")
def folder(tiny_run, tmp_path_factory):
    """Two runs of the same network, one with other last layers, weighted 3 : 1, and a third without weight."""
    out = tmp_path_factory.mktemp("ensemble")
    for name in ("one", "two", "unused"):
        shutil.copytree(tiny_run.out, out / name)
    for k in (0, 1):  # each fold of the second run gets the weights of the other
        shutil.copyfile(tiny_run.out / f"fold_{1 - k}/model.safetensors", out / f"two/fold_{k}/model.safetensors")
    (out / "two" / "fold_1" / "model.safetensors").unlink()  # a single fold
    for name in ("calibration.json", "oof.csv", "folds.csv"):
        shutil.copyfile(tiny_run.out / name, out / name)
    EnsembleFolder(out, ("two", "one", "unused"), (1.0, 3.0, 0.0)).save()
    return out


@pytest.fixture(scope="module")
def clips(sample):
    return sorted((sample / "test").iterdir())[:3]


def test_the_folder_predicts_by_its_weights(folder, clips):
    one, two = (predict_with_run(folder / name, clips, calibrate=False) for name in ("one", "two"))
    assert abs(one.probs - two.probs).max() > 1e-4, "or the weights show nothing"
    found = predict_with_run(folder, clips, calibrate=False)
    np.testing.assert_allclose(found.probs, 0.75 * one.probs + 0.25 * two.probs, atol=1e-6)
    expected = Calibration.from_json(folder / "calibration.json").apply(found.probs)
    np.testing.assert_allclose(predict_with_run(folder, clips).probs, expected, atol=1e-9)
    batch = TagBatch(folder)({"path": [str(clip) for clip in clips]})
    np.testing.assert_allclose(np.stack([batch[tag] for tag in found.tags], axis=1), expected, atol=1e-6)


def test_the_folder_tags_by_its_weights(folder, rng):
    wave = rng.normal(0, 0.1, 44_100).astype(np.float32)
    one, two, both = (
        np.stack([step.probs for step in Tagger(folder / name, calibrate=False).frame_probs(wave)])
        for name in ("one", "two", ".")
    )
    np.testing.assert_allclose(both, 0.75 * one + 0.25 * two, atol=1e-6)
    expected = Calibration.from_json(folder / "calibration.json").apply(both)
    np.testing.assert_allclose([step.probs for step in Tagger(folder).frame_probs(wave)], expected, atol=1e-6)


def test_the_networks_of_the_folder_have_the_weights_of_their_runs(folder):
    models, weights = ensemble_models(folder)
    assert weights == [1.5, 1.5, 1.0] and len(models) == 3
    assert trained_model(folder, 1).digest() == trained_model(folder / "one", 1).digest()


def test_a_graph_of_several_networks_is_their_weighted_average():
    logits = [torch.zeros(2, 3), torch.full((2, 3), 2.0)]
    models = [torch.nn.Flatten(), torch.nn.Sequential(torch.nn.Flatten(), _Add(2.0))]
    for average, expected in [
        ("mean", 0.25 * logits[0].sigmoid() + 0.75 * logits[1].sigmoid()),
        ("gmean", logits[0].sigmoid() ** 0.25 * logits[1].sigmoid() ** 0.75),
    ]:
        found = AverageProbs(models, average, [1.0, 3.0])(torch.zeros(2, 3))
        torch.testing.assert_close(found, expected)


class _Add(torch.nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return x + self.value


@pytest.mark.slow
def test_export_writes_the_weighted_average_as_one_graph(folder, tmp_path, main_with):
    pytest.importorskip("onnxruntime")
    ended = main_with("export", folder, tmp_path / "model.onnx")
    assert ended.returncode == 0 and "weighted mean of 3 networks" in ended.stdout, ended.stderr


def test_a_model_folder_of_the_ensemble_is_its_main_run_with_the_scores_of_that_run(folder, tmp_path, main_with):
    ended = main_with("export", folder, tmp_path / "model")
    assert ended.returncode == 0, ended.stderr
    assert "run one alone of the ensemble, fold 0 alone of 2 folds, " in ended.stdout
    model, expected = load_pretrained(tmp_path / "model", device="cpu"), scored_model(folder / "one")
    assert model.digest() == expected.digest() and model.training["scores"] == expected.training["scores"] != []


def test_predict_and_tag_take_the_folder(folder, clips, main_with):
    ended = main_with("predict", folder, clips[0], "--top", 1)
    assert ended.returncode == 0 and clips[0].name in ended.stdout
    assert main_with("tag", folder, clips[0], "--threshold", "0.1").returncode == 0


@pytest.fixture(scope="module")
def unlike(folder, tmp_path_factory):
    """The ensemble with windows of 0.7 s at half of the rate in its second run."""
    out = tmp_path_factory.mktemp("unlike") / "run"
    shutil.copytree(folder, out)
    recipe = load_recipe(out / "two" / "recipe.toml")
    rate = recipe.settings().sr // 2
    changed = recipe.with_front_end(sr=rate, fmax=rate / 2).override(crop_s=0.7)
    (out / "two" / "recipe.toml").write_text(changed.resolved())
    return out


def steps_of(run, wave, **options):
    return list(Tagger(run, step_s=0.2, **options).frame_probs(wave, 44_100))


def test_runs_that_read_clips_differently_are_averaged_step_by_step(unlike, rng):
    wave = rng.normal(0, 0.1, 3 * 44_100).astype(np.float32)
    one, two, both = (steps_of(unlike / name, wave, calibrate=False) for name in ("one", "two", "."))
    assert [(s.start_s, s.end_s) for s in both] == [(s.start_s, s.end_s) for s in one] and len(both) == 15
    expected = [0.75 * a.probs + 0.25 * b.probs for a, b in zip(one, two, strict=True)]
    np.testing.assert_allclose([step.probs for step in both], expected, atol=1e-9)
    assert abs(np.array(expected) - [step.probs for step in one]).max() > 1e-4, "or the second run shows nothing"
    calibrated = Calibration.from_json(unlike / "calibration.json").apply(np.array(expected))
    np.testing.assert_allclose([step.probs for step in steps_of(unlike, wave)], calibrated, atol=1e-9)
    tagger = Tagger(unlike)
    assert (tagger.step_s, tagger.window_s, len(tagger.networks)) == (pytest.approx(0.25, abs=1e-4), 0.7, 3)
    assert tagger.thresholds is not None and Tagger(unlike, calibrate=False).thresholds is None


def test_silence_stays_without_tags_in_the_average_of_unlike_runs(unlike, rng):
    silent = np.zeros(3 * 44_100, np.float32)
    wave = np.concatenate([rng.normal(0, 0.1, 44_100).astype(np.float32), silent])
    assert not any(step.probs.any() for step in steps_of(unlike, wave)[-6:])
    with pytest.warns(UserWarning, match="silent"):
        steps = steps_of(unlike, silent)
    assert all(step.is_silent for step in steps) and len(steps) == 15 and Tagger(unlike).tag(silent, 44_100) == []


def test_steps_of_unlike_runs_do_not_drift_apart(unlike):
    tagger = Tagger(unlike, step_s=0.2501)  # 5514.7 samples at the lower rate
    assert {part.step / part.settings.sr for part in tagger.parts} == {tagger.step_s}
    assert abs(tagger.step_s - 0.2501) < 1 / 22_050


def test_a_log_is_bound_to_the_parts_of_an_average(unlike, folder):
    assert Tagger(unlike).identity() == Tagger(unlike).identity() != Tagger(folder, step_s=0.25).identity()


def test_an_average_of_unlike_runs_tags_from_the_command_and_is_no_graph(unlike, clips, tmp_path, main_with):
    ended = main_with("tag", unlike, clips[0], "--threshold", "0.1")
    assert ended.returncode == 0 and clips[0].name in ended.stdout
    with pytest.raises(CheckpointError, match="read clips differently.*such as .*one"):
        ensemble_models(unlike)
    with pytest.raises(OptionError, match="read sound in 2 different ways; expected runs that read it alike"):
        Tagger(unlike).only_part()


def test_an_average_needs_parts_alike_in_tags_and_steps(folder):
    one, two = (Tagger(folder, step_s=step_s).only_part() for step_s in (0.1, 0.2))
    for parts, weights, words in [
        ([], [], "different tags or steps"), ([one, two], [1, 1], "different tags or steps"),
        ([one, one], [1], "2 taggers and the weights"), ([one], [0], "not all 0"),
    ]:
        with pytest.raises(OptionError, match=words):
            AveragedTagger(parts, weights)


@pytest.mark.parametrize("change, words", [
    ({"members": ["../one", "two"]}, "names of folders"), ({"weights": [1.0]}, "one weight for each"),
    ({"weights": [-1.0, 2.0]}, "numbers >= 0"), ({"how": "rank_tag"}, "expected mean, gmean, rank_clip"),
    ({"format": "?"}, "fatai ensemble 1"), ({"members": [1, 2]}, "list of names"), ({"weights": ["1", 2]}, "numbers"),
    ({"members": ["one", "one"]}, "no member twice"),
])
def test_a_file_that_is_not_valid_is_refused(change, words, tmp_path):
    values = {"format": "fatai ensemble 1", "how": "mean", "members": ["one", "two"], "weights": [0.5, 0.5]}
    (tmp_path / "ensemble.json").write_text(json.dumps({**values, **change}))
    assert is_ensemble_folder(tmp_path)
    with pytest.raises(CheckpointError, match=words):
        predict_with_run(tmp_path, ["a.wav"])


def test_weights_of_networks_are_checked(folder):
    tagger = Tagger(folder)
    with pytest.raises(OptionError, match="3 networks and the weights"):
        SlidingWindowTagger(tagger.networks, tagger.tags, tagger.settings, weights=[1.0])


@pytest.fixture(scope="module")
def without_test(sample, tmp_path_factory):
    """A table of some sounds of the sample with two tags."""
    folder = tmp_path_factory.mktemp("sounds")
    table = pd.read_csv(sample / "train_curated.csv")
    first = table["labels"].value_counts().index[:2]
    table = table[table["labels"].isin(first)].head(24)
    for name in table["fname"]:
        shutil.copyfile(sample / "train_curated" / name, folder / name)
    table.to_csv(folder / "labels.csv", index=False)
    return folder / "labels.csv"


@pytest.mark.usefixtures("no_reference", "undrawn")
def test_an_ensemble_of_data_without_a_test_part_is_a_whole_run(without_test, tiny_recipe, tmp_path):
    (tmp_path / "tiny.toml").write_text(tiny_recipe.override(epochs=1).resolved())
    path = str(tmp_path / "tiny.toml")
    members = [{"name": "one", "recipe": path}, {"name": "two", "recipe": path, "overrides": {"seed": 3}}]
    recipe = EnsembleRecipe.model_validate({"name": "duo", "how": "forward", "members": members})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = run_ensemble(
            without_test, recipe, tmp_path / "out", num_workers=0, log=lambda line: None, report=run_report
        )
    out = tmp_path / "out"
    assert result.test is None and not (out / "test.csv").exists() and (out / "report.html").is_file()
    assert load_ensemble(out / "ensemble.toml") == recipe
    opened = EnsembleFolder.open(out)
    assert opened.members == ("one", "two") and sum(opened.weights) == pytest.approx(1)
    oof = Predictions.from_csv(out / "oof.csv")
    assert len(oof) == len(pd.read_csv(without_test))
    assert oof.score(without_test) == pytest.approx(result.ensembled.predictions.oof_score)
    notes = json.loads((out / "manifest.json").read_text())
    assert notes["recipe"] == "duo" and notes["lwlrap"]["oof"] == pytest.approx(oof.score(without_test))
    assert (out / "calibration.json").exists() and notes["calibration"]["method"] == "shared"
    sounds = sorted(without_test.parent.glob("*.ogg"))[:2]
    assert len(predict_with_run(out, sounds)) == 2
    with pytest.raises(DataError, match="exists and is not empty"):
        run_ensemble(without_test, recipe, out)
