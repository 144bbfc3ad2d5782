"""Prediction with finished runs: with the views of the recipe, or with others."""

import shutil

import numpy as np
import pytest

from fatai.data.config import ClipConfig
from fatai.errors import CheckpointError, OptionError, RecipeError, UnknownNameError
from fatai.experiment.recipe import Recipe, load_recipe
from fatai.experiment.run import run_recipe
from fatai.experiment.run_folder import FinishedRun, Tagger, predict_with_run, trained_model
from fatai.experiment.tag_batch import TagBatch
from fatai.export.pretrained import load_pretrained
from fatai.inference.predictions import Predictions
from fatai.inference.predictor import Predictor
from fatai.inference.tta import build_views
from fatai.inference.view_store import load_views
from fatai.metrics.calibration import Calibration


@pytest.fixture(scope="module")
def clips(sample):
    return sorted((sample / "test").iterdir())[:4]


def by_hand(run, clips, views, average="probs"):
    """Return the mean over folds of the predictions of each."""
    run = FinishedRun.open(run)
    probs = [
        Predictor(
            f.model, run.recipe.settings(), views, len(f.tags), average=average, precision=run.recipe.precision,
            seed=run.recipe.seed,
        ).predict(clips).probs
        for f in run.folds()
    ]
    assert len(probs) == 2
    return np.mean(probs, axis=0)


def test_a_run_predicts_with_the_views_of_its_recipe(tiny_run, clips):
    np.testing.assert_allclose(
        predict_with_run(tiny_run.out, clips, calibrate=False).probs,
        by_hand(tiny_run.out, clips, build_views("even", 2)), atol=1e-5,
    )


def test_the_pretrained_weights_of_a_recipe_are_not_needed_again(tiny_run, clips, tmp_path):
    run = shutil.copytree(tiny_run.out, tmp_path / "run")
    text = (run / "recipe.toml").read_text()
    assert "[model.options]\n" in text
    (run / "recipe.toml").write_text(
        text.replace("[model.options]\n", '[model.options]\npretrained = "/gone/Cnn14.pth"\n')
    )
    np.testing.assert_array_equal(predict_with_run(run, clips).probs, predict_with_run(tiny_run.out, clips).probs)


def test_a_run_of_a_network_of_timm_needs_neither_the_folder_nor_the_weights_again(tiny_recipe, sample, tmp_path):
    import timm

    timm.models.save_for_hf(timm.create_model("test_vit", num_classes=7), tmp_path / "net", safe_serialization=True)
    model = {"arch": f"timm:local-dir:{tmp_path / 'net'}", "options": {"pretrained": True, "drop_path_rate": 0.1}}
    stage = {"epochs": 1, "bs": 32, "layer_decay": 0.7}
    plain = {**tiny_recipe.model_dump(), "model": model, "stages": [stage]}
    recipe = Recipe.model_validate(plain).override(run_folds=(0,))
    run_recipe(sample, recipe, tmp_path / "run", num_workers=0, predict_test=False, log=lambda line: None)
    shutil.rmtree(tmp_path / "net")
    written = load_recipe(tmp_path / "run" / "recipe.toml")
    assert written.model.arch == "timm:test_vit" and written.model.options["drop_path_rate"] == 0.1
    probs = predict_with_run(tmp_path / "run", sorted((sample / "test").iterdir())[:2], n=1).probs
    assert probs.shape == (2, 10) and np.isfinite(probs).all()


def test_an_unknown_network_of_timm_is_refused_before_a_folder_is_written(tiny_recipe, sample, tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean resnet"):
        run_recipe(sample, tiny_recipe.override(arch="timm:resnt18"), tmp_path / "run", num_workers=0)
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_would_read_its_network_from_elsewhere_is_refused(tiny_run, clips, tmp_path):
    shutil.copytree(tiny_run.out, tmp_path / "run")
    recipe = tmp_path / "run" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('arch = "m1"', 'arch = "timm:hf-hub:someone/net"'))
    with pytest.raises(RecipeError, match="would be read from elsewhere"):
        predict_with_run(tmp_path / "run", clips)


def test_folds_share_loaded_clips_and_each_has_its_own_prior(tiny_run, clips, tmp_path, monkeypatch):
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF")
    loaded = []
    read = ClipConfig.read_each
    monkeypatch.setattr(ClipConfig, "read_each", lambda self, path: loaded.append(path) or read(self, path))
    with pytest.warns(UserWarning, match="1 of 3 clips cannot be read"):
        got = predict_with_run(tiny_run.out, [clips[0], broken, clips[1]])
    assert loaded == [str(clips[0]), str(broken), str(clips[1])], "once, not once per fold"
    priors = [fold.prior for fold in FinishedRun.open(tiny_run.out).folds()]
    assert not np.allclose(priors[0], priors[1]), "the folds were trained on different clips"
    np.testing.assert_allclose(got.probs[1], np.mean(priors, axis=0), atol=1e-7)
    assert got.unreadable == ("broken.wav",)


@pytest.mark.parametrize(
    ("views", "options"), [("tiles", {"step_s": 0.2}), ("random", {"n": 3}), ("whole", {}), ("padded", {"frames": [2]})]
)
def test_another_kind_of_views_can_be_chosen(tiny_run, clips, views, options):
    got = predict_with_run(tiny_run.out, clips, views=views, **options, calibrate=False)
    np.testing.assert_allclose(got.probs, by_hand(tiny_run.out, clips, build_views(views, **options)), atol=1e-5)
    assert got.fnames == tuple(c.name for c in clips)


def test_another_number_of_the_runs_views_and_the_mean_of_logits(tiny_run, clips):
    got = predict_with_run(tiny_run.out, clips, n=5, average="logits", calibrate=False)
    np.testing.assert_allclose(got.probs, by_hand(tiny_run.out, clips, build_views("even", 5), "logits"), atol=1e-5)


def test_the_views_of_every_fold_are_saved(tiny_run, clips, tmp_path):
    got = predict_with_run(tiny_run.out, clips, n=3, save_views=tmp_path / "views", calibrate=False)
    saved = [load_views(tmp_path / "views" / f"fold_{k}.npz") for k in (0, 1)]
    rows = [np.stack([views.probs[views.clip == i].mean(0) for i in range(4)]) for views in saved]
    np.testing.assert_allclose(np.mean(rows, axis=0), got.probs, atol=1e-6)


def test_other_folders_and_invalid_views_are_refused(tiny_run, clips, tmp_path):
    with pytest.raises(CheckpointError, match="is not a finished run; expected recipe.toml and fold_0/model"):
        predict_with_run(tmp_path, clips)
    with pytest.raises(OptionError, match="'tiles' has no option 'n'"):
        predict_with_run(tiny_run.out, clips, views="tiles", n=3)


def test_a_recipe_may_have_any_kind_of_views_and_its_options():
    plain = load_recipe("quick").model_dump()
    tta = {"views": "padded", "options": {"frames": [8, 64]}, "average": "logits"}
    recipe = Recipe.model_validate({**plain, "tta": tta})
    assert recipe.tta.n is None and recipe.tta.average == "logits"


@pytest.mark.parametrize(("tta", "message"), [
    ('views = "tiles"\nn = 8', "tta.*'tiles' has no option 'n'"),
    ('views = "whole"\nn = 2', "'whole' has one view per clip"),
    ('average = "median"', "tta.average"),
    ('views = "tilse"', "did you mean tiles"),
    ("[tta.options]\nstep = 3", "no option 'step'"),
])
def test_a_recipe_whose_views_cannot_be_built_is_refused(tmp_path, tta, message):
    (tmp_path / "r.toml").write_text(f'name = "r"\n[tta]\n{tta}\n')
    with pytest.raises(RecipeError, match=message):
        load_recipe(tmp_path / "r.toml")


def test_the_calibration_of_a_run_is_applied_unless_it_is_left_out(tiny_run, clips, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run.out, run)
    plain = predict_with_run(run, clips, calibrate=False)
    (run / "calibration.json").unlink()  # as a run of an earlier version
    assert predict_with_run(run, clips) == plain
    with pytest.raises(
        CheckpointError, match="calibration.json: no such file; expected a calibration, as fatai-submit calibrate"
    ):
        predict_with_run(run, clips, calibrate=True)
    tags = plain.tags[::-1]
    calibration = Calibration(tags, slope=tuple(0.5 + i for i in range(len(tags))), shift=(0.25,) * len(tags))
    calibration.to_json(run / "calibration.json")
    assert predict_with_run(run, clips, calibrate=False) == plain
    expected = calibration.apply(plain.probs[:, ::-1])[:, ::-1]
    for calibrate in (None, True):
        np.testing.assert_allclose(predict_with_run(run, clips, calibrate=calibrate).probs, expected, atol=1e-6)


@pytest.mark.parametrize(("options", "calibrate"), [([], None), (["--calibrate"], True), (["--no-calibrate"], False)])
def test_python_and_the_command_predict_the_same(tiny_run, clips, tmp_path, main_with, options, calibrate):
    ended = main_with("predict", tiny_run.out, *clips, *options, "--out", tmp_path / "tags.csv")
    assert ended.returncode == 0, ended.stderr
    written = Predictions.from_csv(tmp_path / "tags.csv")
    found = predict_with_run(tiny_run.out, clips, calibrate=calibrate)
    batch = TagBatch(tiny_run.out, calibrate=calibrate)({"path": [str(clip) for clip in clips]})
    assert written.tags == found.tags
    np.testing.assert_allclose(written.probs, found.probs, atol=1e-6)
    np.testing.assert_allclose(np.stack([batch[tag] for tag in found.tags], axis=1), found.probs, atol=1e-6)
    printed = main_with("predict", tiny_run.out, *clips, *options, "--top", 1).stdout.splitlines()
    assert printed == [f"{c.name}: {found.tags[row.argmax()]} {row.max():.2f}"
                       for c, row in zip(clips, found.probs, strict=True)]


def test_a_loaded_model_predicts_as_its_run_and_without_its_calibration_if_asked_for(tiny_run, clips, tmp_path):
    folder = trained_model(tiny_run.out, 0).save(tmp_path / "model")
    calibrated, plain = load_pretrained(folder, device="cpu"), load_pretrained(folder, device="cpu", calibrate=False)
    calibration = Calibration.from_json(tiny_run.out / "calibration.json")
    assert plain.calibration is None and Tagger(folder, calibrate=False).thresholds is None
    assert Tagger(folder).thresholds == calibrated.tagger().thresholds == Tagger(tiny_run.out).thresholds != {}
    raw = plain.tta(clips).probs
    np.testing.assert_allclose(calibrated.tta(clips).probs, calibration.apply(raw), atol=1e-6)
    np.testing.assert_allclose(predict_with_run(folder, clips).probs, calibration.apply(raw), atol=1e-6)
    np.testing.assert_allclose(predict_with_run(folder, clips, calibrate=False).probs, raw, atol=1e-6)
    for model, expected in ((calibrated, calibration.apply(raw)), (plain, raw)):
        assert model.predict(clips[0])[0].prob == pytest.approx(expected[0].max(), abs=1e-6)


def test_networks_are_in_the_order_of_the_numbers_of_their_folds(tiny_run, tmp_path):
    shutil.copytree(tiny_run.out, tmp_path / "run")
    (tmp_path / "run" / "fold_1").rename(tmp_path / "run" / "fold_10")
    for name in ("fold_2", "fold_old"):
        shutil.copytree(tiny_run.out / "fold_1", tmp_path / "run" / name)
    opened = FinishedRun.open(tmp_path / "run")
    assert opened.fold_numbers == [0, 2, 10]
    assert [fold.name for fold in opened.folds()] == ["fold_0", "fold_2", "fold_10"]
