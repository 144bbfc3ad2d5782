"""Fuzz tests of the commands on a sample of damaged sounds and malicious files; `make fuzz` runs all."""

import pytest
from fuzz.sounds import damaged_sounds
from fuzz.trial import Report, files_through_commands, sounds_through_commands


def test_there_are_a_thousand_damaged_sounds_of_every_kind(sample):
    made = list(damaged_sounds(sorted((sample / "test").iterdir())[:8]))
    assert len(made) >= 1000 and len({d.name for d in made}) == len(made)


@pytest.mark.slow
def test_every_damaged_sound_has_a_result(tmp_path):
    report = Report()
    sounds_through_commands(tmp_path, report)
    assert not report.faults, str(report)
    assert sum(report.tried.values()) >= 1000


@pytest.mark.slow
def test_malicious_tables_recipes_models_runs_and_caches_end_with_a_sentence(tmp_path):
    report = Report()
    run = sounds_through_commands(tmp_path, Report(), every=200)
    files_through_commands(tmp_path, run, report, every=8)
    assert not report.faults, str(report)
    assert sum(report.tried.values()) >= 100 and len(report.tried) == 7, "some of every kind"
