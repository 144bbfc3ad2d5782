"""A search within a time: outer clips that it never uses, its files, its budget, stopping, two processes."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import tomli_w

from fatai.data.datasets.fat2019 import load_dataset
from fatai.errors import CheckpointError, OptionError
from fatai.experiment import tune as tune_module
from fatai.experiment.clip_tables import folded_table
from fatai.experiment.recipe import load_recipe
from fatai.experiment.search_space import Dimension, make_space
from fatai.experiment.study import RunningTrial
from fatai.experiment.tune import tune_recipe
from fatai.io.json import read_json_limited
from fatai.metrics.ranking import lwlrap
from fatai.report.tuning import tune_report

pytest.importorskip("optuna")
pytestmark = pytest.mark.usefixtures("no_reference")
needs_locks = pytest.mark.skipif(os.name == "nt", reason="Windows has no such locks")

RECIPE = load_recipe("quick").override(arch="m1", width=0.125, epochs=2, bs=4, crop_s=0.25, n_views=1)
SPACE = make_space([Dimension(key="stages.lr", factor=4, log=True)], RECIPE)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """A table of 24 short sounds with two tags: low and high tones, in noise."""
    folder = tmp_path_factory.mktemp("sounds")
    rng, t = np.random.default_rng(0), np.arange(11025) / 22050
    for k in range(24):
        wave = 0.5 * np.sin(2 * np.pi * (300 if k % 2 else 3000) * t) + 0.1 * rng.standard_normal(len(t))
        sf.write(folder / f"{k:02d}.wav", wave.astype(np.float32), 22050)
    rows = [{"file": f"{k:02d}.wav", "tags": "low" if k % 2 else "high"} for k in range(24)]
    pd.DataFrame(rows).to_csv(folder / "labels.csv", index=False)
    return folder / "labels.csv"


@pytest.fixture
def tune(sounds, tmp_path):
    """Search in a cache of its own; give the lines of progress beside the result."""

    def run(out="tune", *, lines=None, recipe=RECIPE, **options):
        options = {"space": SPACE, "n_trials": 2, "n_inner": 2, "budget_s": 600.0, **options}
        return tune_recipe(
            sounds, recipe, tmp_path / out, num_workers=0, cache_dir=tmp_path / "cache",
            log=(lines if lines is not None else []).append, **options,
        )

    return run


@pytest.mark.filterwarnings("ignore")
def test_a_search_writes_its_files_and_its_recipe_runs(tune, sounds, tmp_path):
    lines = []
    result = tune(lines=lines, report=tune_report)
    trials = pd.read_csv(result.out / "trials.csv")
    assert list(trials["state"]) == ["complete", "complete"] and trials["stages.lr"][0] == RECIPE.stages[0].lr
    best = trials.loc[trials["score"].idxmax()]
    tuned = load_recipe(result.out / "tuned.toml")
    assert tuned.stages[0].lr == best["stages.lr"] and tuned.folds == RECIPE.folds and tuned.clips == RECIPE.clips
    assert best["score"] >= trials["score"][0]
    page = (result.out / "tune.html").read_text()
    assert "stages.lr" in page and "http" not in page.replace("http-equiv", "") and "<svg" in page
    assert any(line.startswith("trial 1: lwlrap") and "left" in line for line in lines)
    assert not list((result.out / "trials").iterdir()), "weights of ended trials are removed"


@pytest.mark.filterwarnings("ignore")
def test_outer_clips_are_scored_by_models_that_never_had_them(tune, sounds, monkeypatch):
    used = set()
    train = tune_module.SelfTrainingRounds.train_last

    def train_last(self, table, folds):
        if "trials" in self.context.out.parts:
            used.update(table["fname"])
            assert set(self.context.data.curated["fname"]) == set(table["fname"]) and not len(self.context.data.test)
        return train(self, table, folds)

    monkeypatch.setattr(tune_module.SelfTrainingRounds, "train_last", train_last)
    result = tune(n_trials=1)
    data = load_dataset(sounds)
    table, _, folds = folded_table(data, RECIPE.override(n_folds=4))
    outer = table[folds == 0]
    assert used == set(table["fname"]) - set(outer["fname"]) and result.outer.clips == len(outer)
    oof = pd.read_csv(result.out / "outer" / "base" / "oof.csv", dtype={"fname": str}).set_index("fname")
    targ = np.array([[tag in tags for tag in data.tags] for tags in outer["labels"]])
    assert lwlrap(oof.loc[outer["fname"], list(data.tags)], targ) == pytest.approx(result.outer.base.value)
    stored = read_json_limited(result.out / "outer.json")
    assert stored["base"]["value"] == result.outer.base.value and stored["clips"] == len(outer)


@pytest.mark.filterwarnings("ignore")
def test_a_pruned_trial_ends_within_its_training_and_the_search_goes_on(tune, monkeypatch):
    report = RunningTrial.report
    monkeypatch.setattr(RunningTrial, "report", lambda self, *args: report(self, *args) or self.number == 1)
    monkeypatch.setattr(tune_module._Search, "_estimate_s", lambda self, trial: 1.0)
    monkeypatch.setattr(tune_module._Search, "score_outer", lambda self: None)
    lines = []
    result = tune(n_trials=3, lines=lines)
    assert [trial.state for trial in result.trials] == ["complete", "pruned", "complete"]
    assert [len(trial.course) for trial in result.trials] == [4, 1, 4], "two epochs in each of two folds"
    assert any(line.startswith("trial 1: pruned after 25% of its training") for line in lines)
    assert not list((result.out / "trials").iterdir())


def estimates(monkeypatch, seconds):
    """Let each trial be expected to take a number of seconds; the trials themselves score without training."""
    monkeypatch.setattr(tune_module._Search, "_estimate_s", lambda self, trial: seconds)
    monkeypatch.setattr(tune_module._Search, "_score", lambda self, trial: float(trial.number))
    monkeypatch.setattr(tune_module._Search, "_trial_seconds", lambda self: [seconds] if self.study.best() else [])
    monkeypatch.setattr(tune_module._Search, "score_outer", lambda self: None)


def test_a_trial_that_would_not_end_in_time_is_not_begun(tune, monkeypatch):
    estimates(monkeypatch, 40.0)
    now = [1000.0]

    def score(self, trial):
        now[0] += 50
        return float(trial.number)

    monkeypatch.setattr(tune_module._Search, "_score", score)
    monkeypatch.setattr(tune_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    lines = []
    result = tune(budget_s=310.0, n_trials=None, lines=lines)
    # 310, 260, 210, 160 and 110 s are enough for a trial and the last run, 40 + 40; 60 s are not.
    assert [trial.state for trial in result.trials] == ["complete"] * 5 + ["interrupted"]
    assert "the next trial would take about 0:00:40, and the runs on the outer clips 0:00:40" in lines[-2]
    assert load_recipe(result.out / "tuned.toml").stages[0].lr == result.trials[4].labels["stages.lr"]


def test_a_budget_too_short_for_the_recipe_itself_is_refused_with_what_it_needs(tune, monkeypatch):
    estimates(monkeypatch, 400.0)
    with pytest.raises(OptionError, match="0:05:00 of the budget of 0:05:00 are left, but quick alone"):
        tune(budget_s=300.5)


def test_settings_that_cannot_be_trained_fail_and_the_search_goes_on(tune, monkeypatch):
    estimates(monkeypatch, 1.0)

    def score(self, trial):
        if trial.number == 1:
            raise OptionError("the loss is no number")
        return 0.5

    monkeypatch.setattr(tune_module._Search, "_score", score)
    result = tune(n_trials=3)
    assert [trial.state for trial in result.trials] == ["complete", "failed", "complete"]
    assert result.trials[1].note == "the loss is no number" and result.tuned == result.base, "of equal ones the first"


def test_a_recipe_that_cannot_be_trained_ends_the_search(tune, monkeypatch):
    estimates(monkeypatch, 1.0)

    def score(self, trial):
        raise OptionError("the loss is no number")

    monkeypatch.setattr(tune_module._Search, "_score", score)
    with pytest.raises(OptionError, match="the loss is no number"):
        tune()


@needs_locks
def test_ctrl_c_keeps_what_was_found(tune, monkeypatch):
    estimates(monkeypatch, 1.0)

    def score(self, trial):
        if trial.number == 2:
            raise KeyboardInterrupt
        return float(trial.number)

    monkeypatch.setattr(tune_module._Search, "_score", score)
    drawn = []
    with pytest.raises(KeyboardInterrupt):
        tune(n_trials=5, report=lambda result: drawn.append(result) or result.out)
    (result,) = drawn
    assert [trial.state for trial in result.trials] == ["complete", "complete", "interrupted"]
    assert load_recipe(result.out / "tuned.toml").stages[0].lr == result.trials[1].labels["stages.lr"]
    monkeypatch.setattr(tune_module._Search, "_score", lambda self, trial: float(trial.number))
    again = tune(n_trials=5)
    assert again.trials[3].labels == result.trials[2].labels


def test_a_folder_with_other_things_or_another_search_is_refused(tune, monkeypatch, tmp_path):
    estimates(monkeypatch, 1.0)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(CheckpointError, match="exists and holds no search"):
        tune("mine")
    tune("a")
    with pytest.raises(CheckpointError, match="holds a search with another recipe"):
        tune("a", recipe=RECIPE.override(seed=3))


@pytest.mark.parametrize("options", [{"n_inner": 1}, {"budget_s": 0.0}, {"n_trials": 0}])
def test_numbers_out_of_range_are_refused(options, tune):
    with pytest.raises(OptionError, match="expected at least 2 inner folds, and a budget and a number of trials above"):
        tune(**options)


def command(sounds, tmp_path, out, *options):
    """The arguments of the command for a small search, in a process of its own."""
    recipe, space = tmp_path / "small.toml", tmp_path / "space.toml"
    recipe.write_text(RECIPE.override(epochs=6).resolved())
    space.write_text(tomli_w.dumps({"tune": [{"key": "stages.lr", "factor": 4, "log": True}]}))
    return [
        sys.executable, "-m", "fatai.cli", "tune", str(sounds), "--recipe", str(recipe), "--space", str(space),
        "--inner-folds", "2", "--num-workers", "0", "--out", str(tmp_path / out), *options,
    ]


def comparable(out):
    """What two searches have in common: settings and scores of the trials that ended by themselves."""
    trials = pd.read_csv(out / "trials.csv")
    return trials[trials["state"] != "interrupted"][["state", "score", "stages.lr"]].reset_index(drop=True)


@pytest.fixture(scope="module")
def unbroken(sounds, tmp_path_factory):
    """The folder of a search of four trials by one process."""
    folder = tmp_path_factory.mktemp("unbroken")
    ended = subprocess.run(
        command(sounds, folder, "tune", "--trials", "4"), env=environment(folder), capture_output=True, text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    return folder / "tune"


def environment(folder):
    return {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache")}


def sigint_as_usual():
    """Undo that a process in the background ignores Ctrl-C, and its children too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@needs_locks
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT] if os.name != "nt" else [])
def test_a_stopped_search_continues_to_the_same_end(number, sounds, unbroken, tmp_path):
    args, env = command(sounds, tmp_path, "broken", "--trials", "4"), environment(tmp_path)
    process = subprocess.Popen(
        args, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=sigint_as_usual
    )
    for line in process.stdout:
        if line.startswith("trial 1:"):
            break
    until = time.monotonic() + 120
    while not list((tmp_path / "broken" / "trials").rglob("state_0.pt")) and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number], errors
    assert len(comparable(tmp_path / "broken")) == 2 and (tmp_path / "broken" / "tuned.toml").exists()
    again = subprocess.run(args, env=env, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0, again.stderr
    pd.testing.assert_frame_equal(comparable(tmp_path / "broken"), comparable(unbroken))
    assert (tmp_path / "broken" / "tuned.toml").read_bytes() == (unbroken / "tuned.toml").read_bytes()
    assert (tmp_path / "broken" / "outer.json").read_bytes() == (unbroken / "outer.json").read_bytes()


@needs_locks
@pytest.mark.slow
def test_two_processes_share_a_search_without_running_a_trial_twice(sounds, tmp_path):
    args, env = command(sounds, tmp_path, "shared", "--trials", "8"), environment(tmp_path)
    processes = [
        subprocess.Popen(args, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    outputs = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    numbers = [[int(line.split()[1][:-1]) for line in out.splitlines() if line.startswith("trial ")]
               for out, _ in outputs]
    assert sorted(numbers[0] + numbers[1]) == list(range(8)) and numbers[0] and numbers[1], "each ran some, none twice"
    trials = pd.read_csv(tmp_path / "shared" / "trials.csv")
    assert trials["stages.lr"].is_unique and (tmp_path / "shared" / "outer.json").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_trial_is_estimated_without_a_decision_on_noisy_clips_that_it_does_not_make(sample, tmp_path, monkeypatch):
    estimated = []

    def estimate(data, recipe, **options):
        estimated.append(recipe)
        return SimpleNamespace(seconds=1.0)

    monkeypatch.setattr(tune_module, "estimate_run", estimate)
    monkeypatch.setattr(tune_module._Search, "_score", lambda self, trial: 0.5)
    monkeypatch.setattr(tune_module._Search, "score_outer", lambda self: None)
    recipe = RECIPE.override(values={"noisy_decision": True, "folds.run_folds": [1]})
    assert load_dataset(sample).noisy is not None
    result = tune_recipe(
        sample, recipe, tmp_path / "tune", space=SPACE, n_trials=1, num_workers=0, log=lambda line: None
    )
    assert [recipe.noisy_decision for recipe in estimated] == [None]
    assert result.tuned.noisy_decision, "the recipe that is found still decides"
    assert estimated[0].folds.n == 3 and estimated[0].folds.run_folds is None
