"""Trials of a search in a file: draws independent of interruptions, several processes, pruning. Nothing trains."""

import os
import shutil
import signal

import pytest
from helpers.processes import new_processes

from fatai.errors import CheckpointError
from fatai.experiment.recipe import load_recipe
from fatai.experiment.search_space import default_space
from fatai.experiment.study import TuneStudy

pytest.importorskip("optuna")
needs_locks = pytest.mark.skipif(os.name == "nt", reason="Windows has no such locks")
SPACE = default_space(load_recipe("quick"))


def open_study(out, **options):
    return TuneStudy(out, SPACE, {"data": "a"}, **options)


def score(labels):
    """A smooth function of the settings, in place of a training."""
    return -abs(labels["stages.lr"] - 0.002) - 0.001 * abs(labels["model.width"] - 0.3)


def run_trials(study, n, *, stop_in=None):
    """Run trials until there are `n`; raise KeyboardInterrupt within the trial number `stop_in`."""
    while True:
        with study.next_trial(n) as trial:
            if trial is None:
                return
            trial.report(1, score(trial.labels))
            if trial.number == stop_in:
                raise KeyboardInterrupt
            study.finish(trial, score(trial.labels))


def ended(study):
    return [(t.labels, t.score, t.course) for t in study.trials() if t.state != "interrupted"]


def test_the_first_trial_is_the_recipe_itself(tmp_path):
    study = open_study(tmp_path)
    run_trials(study, 3)
    assert [trial.number for trial in study.trials()] == [0, 1, 2]
    assert study.trials()[0].labels == SPACE.base() != study.trials()[1].labels
    assert study.best() == max(study.trials(), key=lambda trial: trial.score)


def test_values_are_within_their_bounds(tmp_path):
    study = open_study(tmp_path)
    run_trials(study, 12)
    for trial in study.trials():
        for d in SPACE.dimensions:
            value = trial.labels[d.key]
            assert value in d.choices if d.choices else d.low <= value <= d.high


@needs_locks
@pytest.mark.parametrize("stop_in", [0, 5, 11])
def test_an_interrupted_search_ends_as_an_unbroken_one(stop_in, tmp_path):
    unbroken = open_study(tmp_path / "a")
    run_trials(unbroken, 14)
    with pytest.raises(KeyboardInterrupt):
        run_trials(open_study(tmp_path / "b"), 14, stop_in=stop_in)
    again = open_study(tmp_path / "b")
    run_trials(again, 14)
    assert ended(again) == ended(unbroken)
    assert [trial.number for trial in again.trials() if trial.state == "interrupted"] == [stop_in]


def search_until_killed(folder):
    study = open_study(folder)
    for number in range(3):
        with study.next_trial() as trial:
            trial.report(1, score(trial.labels))
            if number == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            study.finish(trial, score(trial.labels))


@needs_locks
def test_a_trial_of_a_killed_process_is_repeated_in_its_folder(tmp_path):
    unbroken = open_study(tmp_path / "a")
    run_trials(unbroken, 4)
    killed = new_processes().Process(target=search_until_killed, args=(tmp_path / "b",))
    killed.start()
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL
    study = open_study(tmp_path / "b")
    with study.next_trial() as trial:
        assert (trial.number, trial.folder.name) == (3, "0002"), "what the trial has trained is found there"
        assert study.trials()[2].state == "interrupted" and study.trials()[3].course == study.trials()[2].course
        study.finish(trial, score(trial.labels))
    run_trials(study, 4)
    assert ended(study) == ended(unbroken)


@needs_locks
def test_a_trial_that_runs_elsewhere_is_not_repeated(tmp_path):
    first, second = open_study(tmp_path), open_study(tmp_path)
    with first.next_trial() as one:
        assert second.others_running()
        with second.next_trial() as two:
            assert (one.number, two.number) == (0, 1) and one.labels != two.labels
            second.finish(two, 0.5)
        first.finish(one, 0.4)
    assert [trial.state for trial in second.trials()] == ["complete", "complete"] and not second.others_running()


def test_trials_that_ended_before_their_time_do_not_count(tmp_path):
    study = open_study(tmp_path)
    with study.next_trial(1) as trial:
        assert trial is not None  # not finished: as if the time were up
    with study.next_trial(1) as trial:
        assert trial.labels == SPACE.base()
        study.finish(trial, 0.1)
    with study.next_trial(1) as trial:
        assert trial is None


def test_a_trial_that_is_worse_than_others_is_pruned(tmp_path):
    study = open_study(tmp_path)
    for value in (0.5, 0.6, 0.7, 0.8):
        with study.next_trial() as trial:
            assert not any(trial.report(step, value) for step in range(1, 6))
            study.finish(trial, value)
    with study.next_trial() as trial:
        assert not trial.report(1, 0.1), "not before the second score"
        assert trial.report(5, 0.1)
        study.finish(trial, pruned=True)
    with study.next_trial() as trial:
        assert not trial.report(5, 0.75)
        study.finish(trial, 0.75)
    assert study.trials()[4].state == "pruned" and study.trials()[4].score is None
    assert study.best().score == 0.8


def test_a_score_that_is_no_number_fails(tmp_path):
    study = open_study(tmp_path)
    with study.next_trial() as trial:
        assert not trial.report(1, float("nan"))
        study.finish(trial, float("nan"), note="no tag is present")
    assert (study.trials()[0].state, study.trials()[0].note) == ("failed", "no tag is present")
    assert study.best() is None and study.importances() == {}


def test_another_search_in_the_same_folder_is_refused_with_what_differs(tmp_path):
    open_study(tmp_path)
    with pytest.raises(CheckpointError, match="holds a search with another data; give the same"):
        TuneStudy(tmp_path, SPACE, {"data": "b"})


def test_the_time_of_a_search_is_that_in_which_trials_ran(tmp_path):
    from datetime import datetime, timedelta
    from types import SimpleNamespace

    def trial(start, end, **attributes):
        at = datetime(2026, 1, 1)
        state = SimpleNamespace(is_finished=lambda: True)
        return SimpleNamespace(
            state=state, datetime_start=at + timedelta(seconds=start), datetime_complete=at + timedelta(seconds=end),
            user_attrs=attributes,
        )

    study = open_study(tmp_path)
    trials = [trial(0, 10), trial(5, 12), trial(100, 107), trial(12, 99, interrupted=True)]
    study._study = SimpleNamespace(trials=trials)
    assert study.searched_s() == 12 + 7


def test_importances_name_the_setting_that_matters(tmp_path):
    study = open_study(tmp_path)
    run_trials(study, 20)
    shares = study.importances()
    assert next(iter(shares)) == "stages.lr" and sum(shares.values()) == pytest.approx(1)
    shutil.rmtree(tmp_path)
