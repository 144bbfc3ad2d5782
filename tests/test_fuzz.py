"""Damaged sounds through the commands: every file has its answer, nothing hangs, nothing strays. The fast test takes a sample of them."""

import pytest

from fuzz.sounds import damaged_sounds
from fuzz.trial import Report, sounds_through_commands


def test_there_are_a_thousand_damaged_sounds_of_every_kind(sample):
    made = list(damaged_sounds(sorted((sample / "test").iterdir())[:8]))
    assert len(made) >= 1000 and len({d.name for d in made}) == len(made)


@pytest.mark.parametrize("every", [120, pytest.param(1, marks=pytest.mark.slow)])
def test_every_damaged_sound_has_its_answer(tmp_path, every):
    report = Report()
    sounds_through_commands(tmp_path, report, every=every)
    assert not report.faults, str(report)
    assert sum(report.tried.values()) >= 1000 / every
