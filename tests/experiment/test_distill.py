"""Distillation: targets, the networks of the teacher that a fold learns from, and when the score is honest."""

import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from fatai.data.datasets.fat2019 import load_dataset
from fatai.data.labels import multi_hot
from fatai.errors import FataiError
from fatai.experiment import distill
from fatai.experiment.distill import Student, check_teachers
from fatai.experiment.manifest import read_manifest
from fatai.experiment.recipe import Recipe
from fatai.experiment.run import run_recipe
from fatai.experiment.schema import Stage

pytestmark = pytest.mark.usefixtures("no_reference")


@pytest.fixture(scope="module")
def few(sample):
    """Every tenth curated clip of the bundled data and six noisy ones, without test clips."""
    data = load_dataset(sample)
    return replace(
        data, curated=data.curated.iloc[::10].reset_index(drop=True), test=data.test.iloc[:0],
        noisy=data.noisy.iloc[:6].reset_index(drop=True),
    )


def recipe(*, seed=2019, **stage):
    return Recipe(
        name="student", clips={"crop_s": 0.25}, folds={"n": 2, "splitter": "kfold", "seed": seed},
        model={"arch": "m1", "width": 0.05}, stages=[{"epochs": 1, "bs": 4, "name": "fit", **stage}],
        tta={"views": "even", "n": 1},
    )


def run(data, made, out, **options):
    lines = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = run_recipe(data, made, out, num_workers=0, log=lines.append, **options)
    return result, lines


@pytest.fixture(scope="module")
def teacher(few, tmp_path_factory):
    out = tmp_path_factory.mktemp("teacher") / "run"
    run(few, recipe(), out)
    return out


@pytest.fixture
def seen(monkeypatch):
    """Every callback that sets targets, and the fold of every network of the teacher that is loaded."""
    callbacks, folds = [], []
    load, make = distill.trained_model, distill.SampleWeights

    def recording(run, fold=0):
        folds.append(fold)
        return load(run, fold)

    def keeping(*args, **options):
        callbacks.append(make(*args, **options))
        return callbacks[-1]

    monkeypatch.setattr(distill, "trained_model", recording)
    monkeypatch.setattr(distill, "SampleWeights", keeping)
    return callbacks, folds


def test_targets_are_labels_mixed_with_the_network_that_held_out_the_same_clips(few, teacher, seen, tmp_path):
    callbacks, folds = seen
    _, lines = run(few, recipe(teacher=str(teacher), teacher_weight=0.25), tmp_path / "run")
    assert folds == [0, 1] and not any("optimistic" in line for line in lines)
    assert read_manifest(tmp_path / "run")["teacher_saw_held_out"] is False
    labels = dict(zip(few.curated["path"].astype(str), multi_hot(few.curated["labels"], few.tags), strict=True))
    for fold, callback in enumerate(callbacks):
        paths = list(callback.targets)
        model = distill.trained_model(teacher, fold)
        probs = replace(model, calibration=None).tta([str(path) for path in paths], n=1).probs
        expected = [0.75 * labels[path] + 0.25 * row for path, row in zip(paths, probs, strict=True)]
        np.testing.assert_allclose([callback.targets[path] for path in paths], expected, atol=1e-6)
    assert not set(callbacks[0].targets) & set(callbacks[1].targets), "a fold has targets for its training clips alone"


def test_unlabelled_clips_have_the_targets_of_the_teacher_and_no_labels(few, teacher, seen, tmp_path):
    callbacks, folds = seen
    _, lines = run(few, recipe(teacher=str(teacher), teacher_clips="noisy"), tmp_path / "run", run_folds=[1])
    assert set(folds) == {1} and any("and 6 unlabelled ones" in line for line in lines)
    noisy = [str(path) for path in few.noisy["path"]]
    probs = replace(distill.trained_model(teacher, 1), calibration=None).tta(noisy, n=1).probs
    np.testing.assert_allclose([callbacks[0].targets[path] for path in noisy], probs, atol=1e-6)
    # The probabilities are not computed again.
    folds.clear()
    (tmp_path / "run" / "fold_1" / "model.safetensors").unlink()
    run(few, recipe(teacher=str(teacher), teacher_clips="noisy"), tmp_path / "run", run_folds=[1], resume=True)
    assert folds == []


def test_a_teacher_with_other_weights_predicts_again(few, teacher, tmp_path):
    again = tmp_path / "teacher"
    shutil.copytree(teacher, again)
    student = Student(tmp_path / "fold_1", few.tags, tuple(few.curated["fname"][:1]))
    before = distill.teacher_probs(student, [str(again)], few.noisy, "unlabelled")
    for fold in (0, 1):  # other files of the same size
        other = teacher / f"fold_{1 - fold}" / "model.safetensors"
        shutil.copyfile(other, again / f"fold_{fold}" / "model.safetensors")
    with pytest.warns(UserWarning, match="changed after .*fold_1 began to learn from it"):
        after = distill.teacher_probs(student, [str(again)], few.noisy, "unlabelled")
    assert not np.allclose(before, after, atol=1e-6)
    assert len(list(student.folder.iterdir())) == 1, "the former probabilities are removed"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stored = distill.teacher_probs(student, [str(again)], few.noisy, "unlabelled")
    np.testing.assert_allclose(stored, after, atol=1e-6)


def test_a_folder_of_sounds_is_learned_from_too(few, teacher, sample, seen, tmp_path):
    made = recipe(teacher=[str(teacher)], teacher_clips=str(sample / "train_noisy"))
    _, lines = run(replace(few, noisy=None), made, tmp_path / "run", run_folds=[0])
    n_files = len(list((sample / "train_noisy").iterdir()))
    assert any(f"and {n_files} unlabelled ones" in line for line in lines)


def test_a_teacher_with_other_folds_makes_the_score_optimistic_and_the_run_says_so(few, teacher, seen, tmp_path):
    _, folds = seen
    _, lines = run(few, recipe(teacher=str(teacher), seed=7), tmp_path / "run", run_folds=[0])
    assert folds == [0, 1], "all networks of the teacher"
    assert any("optimistic: networks of the teacher were trained on the held-out clips" in line for line in lines)
    assert read_manifest(tmp_path / "run")["teacher_saw_held_out"] is True


def test_stages_with_other_teachers_have_targets_of_their_own(few, teacher, seen, tmp_path):
    callbacks, _ = seen
    run(few, recipe(epochs=2), tmp_path / "second")
    made = recipe(teacher=str(teacher), teacher_weight=1.0)
    second = made.stages[0].model_copy(update={"name": "more", "teacher": (str(tmp_path / "second"),)})
    run(few, made.model_copy(update={"stages": (*made.stages, second)}), tmp_path / "run", run_folds=[0])
    first, other = (callback.targets for callback in callbacks)
    path = next(iter(first))
    expected = replace(distill.trained_model(tmp_path / "second", 0), calibration=None).tta([path], n=1).probs[0]
    np.testing.assert_allclose(other[path], expected, atol=1e-6)
    assert not np.allclose(first[path], other[path], atol=1e-6)


def test_the_pupil_of_a_teacher_with_an_optimistic_score_has_one_too(few, teacher, tmp_path):
    held_out = [list(few.curated["fname"][:1])]
    stages = recipe(teacher=str(teacher)).stages
    assert check_teachers(stages, held_out)
    manifest = teacher / "manifest.json"
    text = manifest.read_text()
    try:
        manifest.write_text(text.replace('"teacher_saw_held_out": false', '"teacher_saw_held_out": true'))
        assert not check_teachers(stages, held_out)
    finally:
        manifest.write_text(text)
    assert check_teachers(stages, held_out)


def test_stages_cannot_learn_from_different_unlabelled_clips():
    stages = [{"teacher": "a", "teacher_clips": clips} for clips in ("noisy", "sounds")]
    with pytest.raises(ValidationError, match="use noisy and sounds; expected the same clips in all stages"):
        Recipe(name="x", stages=stages)


def test_no_teacher_in_the_folder_is_an_error_before_training(few, tmp_path):
    with pytest.raises(FataiError, match="nowhere is not a finished run"):
        run(few, recipe(teacher=str(tmp_path / "nowhere")), tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher_clips": "noisy"}, "teacher_clips is set without a teacher"),
        ({"teacher": []}, "teacher is an empty list"),
        ({"teacher": "a", "linear_probe": {"C": 1.0}}, "teacher and linear_probe both set"),
        ({"teacher": "a", "noisy_labels": {"method": "previous"}}, "teacher and noisy_labels both set"),
        ({"teacher": "a", "teacher_weight": 1.5}, "teacher_weight"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        Stage(**settings)
