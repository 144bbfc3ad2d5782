"""Learning rates against the closed forms and the published logs."""

import math

import pytest

from fatai.errors import OptionError
from fatai.registry import SCHEDULES
from fatai.train.schedules import cosine_restarts, linear_one_cycle, warmup_cosine, warmup_steps


def test_warmup_cosine_is_the_ninth_places_run_epoch_by_epoch():
    at = warmup_cosine(65, 1e-3)
    for epoch in range(65):
        if epoch <= 6:
            wanted = 5e-5 + 0.001 * epoch / 6.5
        else:
            wanted = 1e-7 + (1e-3 - 1e-7) * (1 + math.cos(math.pi * (epoch - 7) / 65)) / 2
        assert at(epoch) == pytest.approx(wanted, rel=1e-12)
    assert at(64) == pytest.approx(3.7e-5, rel=0.01), "the log ends at 3.7e-5, not at 1e-7"


def test_warmup_cosine_changes_once_an_epoch():
    at = warmup_cosine(65, 1e-3)
    assert at(3.0) == at(3.5) == at(3.999) != at(4.0)


def test_warmup_steps_over_40_000_iterations():
    at = warmup_steps(40, 0.1)      # an epoch stands for 1,000 iterations
    assert at(0) == pytest.approx(0.01)
    assert at(1) == pytest.approx(0.055), "half way through the warm-up of 2,000"
    assert [at(t) for t in (2, 11.999, 12, 24, 36)] == pytest.approx([0.1, 0.1, 0.01, 0.001, 0.0001])


def test_linear_one_cycle_of_the_third_place():
    at = linear_one_cycle(100)
    assert [at(t) for t in (0, 15, 30, 65, 100)] == pytest.approx([1e-4, 2.55e-3, 5e-3, (5e-3 + 1e-7) / 2, 1e-7])


def test_cosine_restarts_begins_again():
    at = cosine_restarts(128, 1e-3, cycle=64)
    assert [at(t) for t in (0, 32, 64)] == pytest.approx([1e-3, (1e-3 + 1e-6) / 2, 1e-3])
    assert at(63.999) == pytest.approx(1e-6, rel=1e-2)


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_every_schedule_is_positive_throughout_and_refuses_nonsense(name):
    at = SCHEDULES.build(name, 10, 1e-2)
    assert all(at(t / 7) > 0 for t in range(70))
    with pytest.raises(OptionError, match="epochs is 0"):
        SCHEDULES.build(name, 0, 1e-2)
