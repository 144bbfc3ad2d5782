"""Runs of a recipe: files of the run folder, reproducibility, resuming, and messages for wrong input."""

import dataclasses
import json
import shutil
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch

from fatai.audio.segments import file_of, segment_path
from fatai.callbacks.csv_logger import EpochCSVLogger
from fatai.callbacks.failure import TerminateOnNaN
from fatai.data.datasets.fat2019 import load_dataset
from fatai.errors import CheckpointError, DataError, OptionError
from fatai.experiment.clip_tables import folded_table
from fatai.experiment.manifest import data_digest
from fatai.experiment.recipe import load_recipe
from fatai.experiment.run import _can_resume, recipe_learner, run_recipe
from fatai.experiment.run_folder import predict_with_run
from fatai.experiment.schema import Stage
from fatai.inference.learner import FatLearner
from fatai.inference.predictions import Predictions, check_submission
from fatai.metrics.calibration import Calibration, cross_calibrate, cross_decide
from fatai.metrics.ranking import lwlrap
from fatai.metrics.thresholds import f1_thresholds, mean_f1
from fatai.models.checkpoint import load_weights, save_weights
from fatai.report.data import load_report_data
from fatai.report.sections import metrics
from fatai.training.cross_validation import fit_folds


def test_a_run_folder_has_its_files(tiny_run, sample):
    out = tiny_run.out
    files = {str(f.relative_to(out)) for f in out.rglob("*") if f.is_file()}
    assert files == {
        "recipe.toml",
        "manifest.json",
        "folds.csv",
        "oof.csv",
        "test.csv",
        "submission.csv",
        "calibration.json",
        "reference/probs.csv",
        *(f"reference/{k:02d}.flac" for k in range(16)),
        *(
            f"fold_{k}/{f}"
            for k in (0, 1)
            for f in ("model.safetensors", "history.csv", "oof.csv", "test.csv", "fold.json")
        ),
    }
    check_submission(out / "submission.csv", sample / "sample_submission.csv")
    assert load_recipe(out / "recipe.toml").model.arch == "m1"


def test_a_report_is_drawn_only_if_asked_for(tiny_run, tiny_recipe, sample, tmp_path):
    out, lines, drawn = tmp_path / "run", [], []
    shutil.copytree(tiny_run.out, out)

    def report(folder, data):
        drawn.append((folder, len(data.curated)))
        return folder / "report.html"

    run_recipe(sample, tiny_recipe, out, resume=True, num_workers=0, log=lines.append, report=report)
    assert drawn == [(out, 120)] and f"report: {out / 'report.html'}" in lines


def test_out_of_fold_predictions_cover_each_curated_clip_once(tiny_run, sample):
    oof = Predictions.from_csv(tiny_run.out / "oof.csv")
    assert list(oof.fnames) == list(pd.read_csv(sample / "train_curated.csv", dtype=str)["fname"])
    assert oof.score(sample / "train_curated.csv") == pytest.approx(tiny_run.oof_score)


def test_a_run_stores_calibration_and_thresholds_that_are_scored_across_folds(tiny_run, sample):
    calibration = Calibration.from_json(tiny_run.out / "calibration.json")
    probs, targ = tiny_run.oof.align_with(sample / "train_curated.csv")
    assert calibration.method == "shared" and calibration.thresholds is not None
    assert lwlrap(calibration.apply(probs), targ) == lwlrap(probs, targ)
    folds = pd.read_csv(tiny_run.out / "folds.csv").set_index("fname")["fold"][list(tiny_run.oof.fnames)].to_numpy()
    crossed = cross_calibrate(probs, targ, folds, method="shared")
    notes = json.loads((tiny_run.out / "manifest.json").read_text())["calibration"]
    expected = {"half": mean_f1(probs >= 0.5, targ)}
    for rule, shrink in (("f1_shared", np.inf), ("f1_shrunk", 100)):
        find = partial(f1_thresholds, shrink=shrink)
        expected[rule] = mean_f1(cross_decide(crossed, targ, folds, thresholds=find), targ)
    assert notes["f1_of"] == expected and notes["thresholds"] == max(expected, key=expected.get)
    assert notes["f1"]["before"] == expected["half"] and notes["f1"]["after"] <= max(expected.values())
    section = metrics.calibration(load_report_data(tiny_run.out))
    assert [f1 for _, f1, _ in section["f1"]["rows"]] == list(expected.values())
    assert section["f1"]["stored"] == notes["thresholds"]
    assert [stored for _, _, stored in section["f1"]["rows"]] == [rule == notes["thresholds"] for rule in expected]


def test_the_test_predictions_are_the_mean_over_the_folds(tiny_run, sample):
    test = Predictions.from_csv(tiny_run.out / "test.csv")
    again = predict_with_run(tiny_run.out, sorted((sample / "test").iterdir()), calibrate=False)
    np.testing.assert_allclose(again.select(test.fnames).probs, test.probs, atol=1e-5)


@pytest.mark.parametrize("how", ["gmean", "mean"])
def test_the_predictions_of_the_folds_are_averaged_as_the_recipe_sets(how, tiny_run, tiny_recipe, sample, tmp_path):
    plain = tiny_recipe.model_dump()
    recipe = type(tiny_recipe).model_validate({**plain, "tta": {**plain["tta"], "fold_average": how}})
    shutil.copytree(tiny_run.out, tmp_path / "run")
    (tmp_path / "run" / "recipe.toml").write_text(recipe.resolved())
    result = run_recipe(sample, recipe, tmp_path / "run", resume=True, num_workers=0, log=lambda line: None)
    one, two = (Predictions.from_csv(tmp_path / "run" / f"fold_{k}" / "test.csv") for k in (0, 1))
    expected = np.sqrt(one.probs * two.probs) if how == "gmean" else (one.probs + two.probs) / 2
    np.testing.assert_allclose(result.test.probs, expected, rtol=1e-6)
    few = sorted((sample / "test").iterdir())[:5]
    again = predict_with_run(tmp_path / "run", few, calibrate=False)
    np.testing.assert_allclose(again.probs, result.test.select(again.fnames).probs, atol=1e-5)


def test_history_has_a_row_an_epoch(tiny_run):
    history = pd.read_csv(tiny_run.out / "fold_0" / "history.csv")
    assert list(history.columns) == ["stage", "epoch", "train_loss", "valid_loss", "lwlrap", "seconds"]
    assert list(history["epoch"]) == [0, 1]


def test_the_manifest_notes_recipe_seed_data_and_versions(tiny_run):
    manifest = json.loads((tiny_run.out / "manifest.json").read_text())
    assert manifest["recipe"] == "quick" and manifest["seed"] == 2019 and len(manifest["data"]["digest"]) == 64
    assert (
        torch.__version__.startswith(manifest["versions"]["torch"]) and manifest["lwlrap"]["oof"] == tiny_run.oof_score
    )


@pytest.mark.slow  # test_reproduce.py compares as many files of the same run
def test_the_same_seed_gives_the_same_bytes(tiny_run, tiny_recipe, sample, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_recipe(sample, tiny_recipe, tmp_path / "again", num_workers=0, log=lambda line: None)
    for name in ("oof.csv", "test.csv", "submission.csv", "folds.csv", "recipe.toml", "fold_1/model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tiny_run.out / name).read_bytes(), name


def test_a_folder_that_is_not_empty_is_not_overwritten(tiny_run, tiny_recipe, sample):
    with pytest.raises(DataError, match="exists and is not empty"):
        run_recipe(sample, tiny_recipe, tiny_run.out)


@pytest.fixture
def odd_data(few_clips, tmp_path):
    """A part of the sample with a broken curated and a broken test file."""
    data = tmp_path / "data"
    shutil.copytree(few_clips, data, ignore=shutil.ignore_patterns("train_noisy*"))
    broken = [sorted((data / part).iterdir())[0] for part in ("train_curated", "test")]
    for path in broken:
        path.write_bytes(b"OggS")
    return data, [b.name for b in broken]


def test_broken_files_are_left_out_or_predicted_by_the_prior(odd_data, tiny_recipe, tmp_path):
    data, (curated, test) = odd_data
    with pytest.warns(UserWarning) as caught:
        recipe = tiny_recipe.override(epochs=1)
        result = run_recipe(data, recipe, tmp_path / "run", num_workers=0, log=lambda line: None)
    messages = [str(w.message) for w in caught]
    assert sum("training files cannot be read" in m and curated in m for m in messages) == 1
    assert any("training prior" in m and test in m for m in messages)
    assert result.unreadable == (curated,) and curated not in result.oof.fnames
    row = result.test.probs[result.test.fnames.index(test)]
    assert np.isfinite(row).all() and result.test.unreadable == (test,)
    check_submission(tmp_path / "run" / "submission.csv", data / "sample_submission.csv")


def test_a_single_fold_can_be_trained_without_the_test_part(few_clips, tiny_recipe, tmp_path):
    lines = []
    result = run_recipe(
        few_clips,
        tiny_recipe.override(epochs=1),
        tmp_path / "run",
        run_folds=[1],
        predict_test=False,
        num_workers=0,
        log=lines.append,
    )
    assert set(result.fold_scores) == {1} and result.test is None and not (tmp_path / "run" / "test.csv").exists()
    assert len(result.oof.fnames) == 20 and any("fold 1: lwlrap" in line for line in lines)


def test_a_stage_can_mix_mask_and_balance_and_a_run_can_cache(few_clips, tiny_recipe, tmp_path):
    plain = tiny_recipe.override(epochs=1).model_dump()
    plain["clips"]["cache"] = "features"
    plain["stages"][0].update(
        mixup={"name": "mixup", "domain": "log"}, augment=({"name": "spec_augment"},), sampling="balanced",
        sampling_options={"max_repeats": 2},
    )
    second = {
        **plain["stages"][0],
        "sampling": "shuffle",
        "sampling_options": {},
        "mixup": None,
        "augment": (),
        "name": "plain",
    }
    recipe = type(tiny_recipe).model_validate({**plain, "stages": (plain["stages"][0], second)})
    result = run_recipe(
        few_clips,
        recipe,
        tmp_path / "run",
        run_folds=[0],
        predict_test=False,
        num_workers=0,
        log=lambda line: None,
        cache_dir=tmp_path / "cache",
    )
    assert np.isfinite(result.oof.probs).all()
    assert sum(f.stat().st_size > 0 for f in (tmp_path / "cache").rglob("*.f16")) == 40, (
        "every curated clip is cached once"
    )
    history = pd.read_csv(tmp_path / "run" / "fold_0" / "history.csv")
    assert list(history["stage"]) == ["fit", "plain"] and history["lwlrap"].between(0, 1).all()
    resolved = load_recipe(tmp_path / "run" / "recipe.toml")
    assert (
        resolved.stages == recipe.stages and resolved.clips == recipe.clips and resolved.settings() == recipe.settings()
    )


class KilledError(Exception):
    """Simulates the end of the process."""


@pytest.fixture
def two_stages(tiny_recipe):
    """A recipe of two epochs without mixup and two with it."""
    plain = tiny_recipe.model_dump()
    first = {**plain["stages"][0], "bs": 8}
    second = {**first, "name": "mixed", "mixup": {"name": "mixup", "domain": "log"}, "schedule": "warmup_cosine"}
    return type(tiny_recipe).model_validate({**plain, "stages": (first, second)})


def test_a_killed_run_resumes_to_the_same_bytes(few_clips, two_stages, tmp_path, monkeypatch):
    def run(out, **options):
        return run_recipe(
            few_clips, two_stages, tmp_path / out, run_folds=[1], num_workers=0, log=lambda line: None, **options
        )

    kills = [("fit", 0), ("fit", 1), ("mixed", 0), ("mixed", 1), ("views", 0)]
    started = []

    class Kill(TerminateOnNaN):
        def after_loss(self):
            stage = next(cb.stage for cb in self.learn.cbs if isinstance(cb, EpochCSVLogger))
            if self.iter == 1:
                started.append((stage, self.epoch))
                if kills and (stage, self.epoch) == kills[0]:
                    raise KilledError("here")

    def no_views(*args, **kwargs):
        if kills and kills[0][0] == "views":
            raise KilledError
        return views(*args, **kwargs)

    monkeypatch.setattr("fatai.experiment.stage.TerminateOnNaN", Kill)
    views = FatLearner.tta
    monkeypatch.setattr(FatLearner, "tta", no_views)
    while kills:
        with pytest.raises(KilledError):
            run("broken", resume=True)
        del kills[0]
    resumed = run("broken", resume=True)
    assert started == [
        ("fit", 0),
        ("fit", 0),
        ("fit", 1),
        ("fit", 1),
        ("mixed", 0),
        ("mixed", 0),
        ("mixed", 1),
        ("mixed", 1),
    ]
    unbroken = run("unbroken")
    assert resumed.oof == unbroken.oof and resumed.test == unbroken.test
    files = {str(f.relative_to(tmp_path / "unbroken")) for f in (tmp_path / "unbroken").rglob("*") if f.is_file()}
    assert files == {str(f.relative_to(tmp_path / "broken")) for f in (tmp_path / "broken").rglob("*") if f.is_file()}
    # These contain times.
    for name in files - {"manifest.json", "fold_1/history.csv"}:
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes(), name
    history = [
        pd.read_csv(tmp_path / out / "fold_1" / "history.csv").drop(columns="seconds") for out in ("broken", "unbroken")
    ]
    assert history[0].equals(history[1]) and list(history[0]["epoch"]) == [0, 1, 0, 1]


def test_a_finished_run_is_not_trained_again_and_gets_its_test_part(
    sample, tiny_run, tmp_path, tiny_recipe, monkeypatch
):
    out = tmp_path / "run"
    shutil.copytree(tiny_run.out, out)
    for name in ("test.csv", "submission.csv", "fold_0/test.csv", "fold_1/test.csv"):
        (out / name).unlink()
    monkeypatch.setattr(FatLearner, "fit_one_cycle", None)
    result = run_recipe(sample, tiny_recipe, out, resume=True, num_workers=0, log=lambda line: None)
    seconds = [json.loads((run / "manifest.json").read_text())["seconds"] for run in (tiny_run.out, out)]
    assert seconds[1] == pytest.approx(seconds[0] + result.seconds, abs=0.1), "the duration is that of both calls"
    assert result.test == tiny_run.test and result.oof == tiny_run.oof and result.fold_scores == tiny_run.fold_scores
    assert (out / "submission.csv").read_bytes() == (tiny_run.out / "submission.csv").read_bytes()


def test_a_run_of_another_recipe_or_other_data_is_not_resumed(sample, tiny_run, tiny_recipe, tmp_path):
    out, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(tiny_run.out, out)
    with pytest.raises(
        CheckpointError, match=r"another recipe: stages.0.epochs is 3 and was 2; stages.0.lr is 0.5 and was"
    ):
        run_recipe(sample, tiny_recipe.override(epochs=3, lr=0.5), out, resume=True)
    shutil.copytree(sample, other, ignore=shutil.ignore_patterns("truth"))
    sorted((other / "test").iterdir())[0].write_bytes(b"OggS")
    with pytest.raises(CheckpointError, match="a run of other data"):
        run_recipe(other, tiny_recipe, out, resume=True)
    (out / "manifest.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="is not the manifest of a run"):
        run_recipe(sample, tiny_recipe, out, resume=True)
    (out / "manifest.json").unlink()
    with pytest.raises(DataError, match="exists and is not empty"):
        run_recipe(sample, tiny_recipe, out, resume=True)


@pytest.mark.parametrize(
    "text, words",
    [
        ('{"digest": 1', "cannot be read"),
        ('{"unreadable": {}}', "cannot be read"),
        ('{"digest": "0", "unreadable": {"oof": [], "test": []}}', "trained on other data"),
    ],
)
def test_invalid_notes_of_a_fold_are_refused(sample, tiny_run, tiny_recipe, tmp_path, text, words):
    out = tmp_path / "run"
    shutil.copytree(tiny_run.out, out)
    (out / "fold_0" / "fold.json").write_text(text)
    with pytest.raises(CheckpointError, match=words):
        run_recipe(sample, tiny_recipe, out, resume=True, num_workers=0)


def test_fit_folds_puts_every_prediction_in_its_row():
    table = pd.DataFrame({"fname": list("abcd")})
    truth = np.eye(2)[[0, 1, 0, 1]]
    joined = fit_folds(table, np.array([1, 0, 0, 1]), 2, lambda k, t: truth[t["is_valid"].to_numpy()] * (k + 1),
                       lambda probs, rows: lwlrap(probs, truth[rows]))
    assert joined.oof.tolist() == [[2, 0], [0, 1], [1, 0], [0, 2]] and joined.scores == {0: 1.0, 1: 1.0}
    with pytest.raises(DataError, match="3 fold numbers for 4 clips"):
        fit_folds(table, np.zeros(3), 2, None, None)
    with pytest.raises(DataError, match="fold 7 has no clip"):
        fit_folds(table, np.array([1, 0, 0, 1]), 2, None, None, run_folds=[7])


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda run: (run / "recipe.toml").unlink(), "is not a finished run"),
        (
            lambda run: (run / "fold_0" / "model.safetensors").write_bytes(b"not tensors at all"),
            "cannot be read as safetensors",
        ),
        (
            lambda run: save_weights(run / "fold_0" / "model.safetensors", torch.nn.Linear(1, 1), {}),
            "has no valid tags",
        ),
        (
            lambda run: save_weights(
                run / "fold_0" / "model.safetensors",
                torch.nn.Linear(1, 1),
                {"fatai": '{"tags": ["a"], "in_channels": 1, "prior": [0.5]}'},
            ),
            "does not fit its model",
        ),
        (
            lambda run: save_weights(
                run / "fold_0" / "model.safetensors",
                torch.nn.Linear(1, 1),
                {"fatai": '{"tags": ["a"], "in_channels": 1e9, "prior": [0.5]}'},
            ),
            "expected 1 to 100,000 tags",
        ),
    ],
)
def test_a_run_folder_that_does_not_fit_is_refused(tiny_run, tmp_path, sample, damage, words):
    run = tmp_path / "run"
    shutil.copytree(tiny_run.out, run)
    damage(run)
    with pytest.raises(CheckpointError, match=words):
        predict_with_run(run, [next((sample / "test").iterdir())])


def test_weights_come_back_as_they_were(tmp_path):
    first, second = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    save_weights(tmp_path / "w.safetensors", first, {})
    load_weights(tmp_path / "w.safetensors", second)
    assert torch.equal(first.weight, second.weight) and torch.equal(first.bias, second.bias)


def test_a_run_with_one_tag_is_selected_and_scored_by_average_precision(tiny_recipe, tmp_path):
    rng = np.random.default_rng(0)
    for k in range(8):
        sf.write(tmp_path / f"{k}.wav", 0.1 * rng.standard_normal(8000) * (1 + (k % 2)), 16000)
    rows = "".join(f"{k}.wav,{'Rain' if k % 2 else ''}\n" for k in range(8))
    (tmp_path / "one.csv").write_text("file,tags\n" + rows)
    stage = {"epochs": 2, "bs": 4, "checkpoint": "best", "schedule": "plateau", "early_stopping_patience": 5}
    monitor = {"schedule_options": {"monitor": "lwlrap", "patience": 0}}
    recipe = type(tiny_recipe).model_validate({**tiny_recipe.model_dump(), "stages": [{**stage, **monitor}]})
    lines = []
    out = tmp_path / "run"
    result = run_recipe(tmp_path / "one.csv", recipe, out, num_workers=0, log=lines.append)
    values = result.oof.probs[:, 0]
    present = np.array([int(Path(name).stem) % 2 == 1 for name in result.oof.fnames])
    precision = [(present & (values >= v)).sum() / (values >= v).sum() for v in values[present]]
    assert result.oof_score == pytest.approx(np.mean(precision))
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["map"]["oof"] == result.oof_score and "lwlrap" not in manifest
    assert list(pd.read_csv(out / "fold_0" / "history.csv").columns)[4] == "map"
    assert any(line.startswith("out of fold: average precision") for line in lines)
    assert not any("lwlrap" in line for line in lines)


def test_only_a_recipe_that_selects_epochs_on_held_out_clips_has_an_optimistic_score(tiny_recipe):
    def recipe(select_on="held_out", **stage):
        plain = tiny_recipe.model_dump()
        return type(tiny_recipe).model_validate(
            {**plain, "folds": {**plain["folds"], "select_on": select_on}, "stages": [stage]}
        )

    assert Stage().checkpoint == "last" and not recipe().selects_on_held_out
    assert recipe(checkpoint="best").selects_on_held_out and recipe(early_stopping_patience=3).selects_on_held_out
    assert not recipe("inner", checkpoint="best").selects_on_held_out
    assert not load_recipe("quick").selects_on_held_out and not load_recipe("esc10").selects_on_held_out
    assert load_recipe("ninth").selects_on_held_out and load_recipe("gold_plan").selects_on_held_out


@pytest.mark.parametrize("select_on, optimistic", [("held_out", True), ("inner", False)])
def test_the_run_and_its_report_say_that_the_score_is_optimistic(
    select_on, optimistic, tiny_run, tiny_recipe, sample, tmp_path
):
    plain = tiny_recipe.model_dump()
    folds = {**plain["folds"], "select_on": select_on}
    recipe = type(tiny_recipe).model_validate(
        {**plain, "folds": folds, "stages": [{**plain["stages"][0], "checkpoint": "best"}]}
    )
    out, lines = tmp_path / "run", []
    shutil.copytree(tiny_run.out, out)
    (out / "recipe.toml").write_text(recipe.resolved())
    run_recipe(sample, recipe, out, resume=True, num_workers=0, log=lines.append)
    assert any("this out-of-fold score is optimistic" in line for line in lines) == optimistic
    assert json.loads((out / "manifest.json").read_text())["selects_on_held_out"] == optimistic
    assert metrics.overall(load_report_data(out))["optimistic"] == optimistic


def test_a_folder_of_other_things_is_left_as_it_is(tiny_recipe, sample, tmp_path):
    mine = {"recipe.toml": tiny_recipe.resolved(), ".notes.part1": "mine", "thesis.txt": "years"}
    for name, text in mine.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match="exists and is not empty"):
        run_recipe(sample, tiny_recipe, tmp_path, resume=True, num_workers=0)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == mine


@pytest.mark.parametrize("own", [True, False], ids=["its_own_recipe", "another_file"])
def test_a_run_that_was_killed_before_its_manifest_begins_anew(own, tiny_recipe, sample, tmp_path):
    text = tiny_recipe.resolved() if own else "# my experiment"
    (tmp_path / "recipe.toml").write_text(text)
    (tmp_path / ".folds.0a1b2c.part.csv").write_text("fname")
    data = load_dataset(sample)
    assert not _can_resume(tmp_path, tiny_recipe, data, data_digest(data))
    assert [path.read_text() for path in tmp_path.iterdir()] == ([] if own else [text])


def test_a_run_is_not_continued_in_the_folder_of_an_ensemble(tiny_recipe, sample, tmp_path):
    (tmp_path / "manifest.json").write_text('{"data": {}}')
    with pytest.raises(CheckpointError, match="holds no run of a recipe, but perhaps of an ensemble"):
        run_recipe(sample, tiny_recipe, tmp_path, resume=True, num_workers=0)


@pytest.mark.parametrize("run_folds", [[7], [0, 2], []], ids=str)
def test_a_fold_that_does_not_exist_is_refused_before_anything_is_written(run_folds, tiny_recipe, sample, tmp_path):
    with pytest.raises(OptionError, match=r"expected one or more of \[0, 1\]"):
        run_recipe(sample, tiny_recipe, tmp_path / "run", run_folds=run_folds, num_workers=0)
    assert not (tmp_path / "run").exists()


def test_an_inner_split_keeps_the_segments_of_a_file_together(tiny_recipe, sample):
    data = load_dataset(sample)
    rows = [
        {**row, **{column: segment_path(str(row[column]), start, start + 0.2) for column in ("fname", "path")}}
        for row in data.curated.to_dict("records") for start in (0.0, 0.2)
    ]
    data = dataclasses.replace(data, curated=pd.DataFrame(rows))
    plain = tiny_recipe.model_dump()
    recipe = type(tiny_recipe).model_validate({**plain, "folds": {**plain["folds"], "select_on": "inner"}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learn = recipe_learner(data, recipe, 0, num_workers=0)
    train, valid = ({file_of(path) for path in learn.dls.files(k)["path"]} for k in (0, 1))
    assert valid and not train & valid


@pytest.mark.parametrize("options", [{}, {"splitter": "group", "group_col": "street"}])
def test_an_inner_split_holds_the_fold_out_and_selects_on_a_fifth_of_the_rest(options, tiny_recipe, sample):
    plain = tiny_recipe.model_dump()
    data = load_dataset(sample)
    data = dataclasses.replace(data, curated=data.curated.assign(street=[k // 4 for k in range(120)]))
    recipe = type(tiny_recipe).model_validate(
        {**plain, "folds": {**plain["folds"], "select_on": "inner", **options}}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learn = recipe_learner(data, recipe, 0, num_workers=0)
        table, _, folds = folded_table(data, recipe)
    held_out = set(table["fname"][folds == 0])
    train, valid = (set(learn.dls.files(k)["fname"]) for k in (0, 1))
    assert not held_out & (train | valid) and not train & valid and len(held_out | train | valid) == 120
    assert len(valid) == pytest.approx((120 - len(held_out)) / 5, abs=4)
    if options:
        street = dict(zip(table["fname"], table["street"], strict=True))
        assert not {street[f] for f in train} & {street[f] for f in valid}


def test_an_inner_split_of_a_single_group_is_refused(tiny_recipe, sample):
    data = load_dataset(sample)
    data = dataclasses.replace(data, curated=data.curated.assign(street=[k % 2 for k in range(120)]))
    folds = {"n": 2, "select_on": "inner", "splitter": "group", "group_col": "street"}
    recipe = type(tiny_recipe).model_validate({**tiny_recipe.model_dump(), "folds": folds})
    with pytest.raises(DataError, match="only 1 value of street among its training clips; expected at least 2"):
        recipe_learner(data, recipe, 0, num_workers=0)
