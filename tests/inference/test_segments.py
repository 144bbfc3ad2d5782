"""Windows to steps to events, by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fatai.errors import OptionError
from fatai.inference.events.segments import OverlapAverager, SoundEvent, Step, expand_threshold, merge_steps

TAGS = ("Bark", "Meow")


def steps_of(step, windows, end):
    averager, found = OverlapAverager(step), []
    for start, stop, prob in windows:
        found += averager.before(start)
        averager.add(start, stop, np.array([prob]))
    return [(a, b, float(p[0])) for a, b, p in [*found, *averager.rest(end)]]


def test_a_step_is_the_mean_of_the_windows_that_cover_it():
    # Windows of 4 every 2 samples: the second and third step are covered by two windows each.
    assert steps_of(2, [(0, 4, 1.0), (2, 6, 0.0), (4, 8, 0.5)], 8) == [
        (0, 2, 1.0),
        (2, 4, 0.5),
        (4, 6, 0.25),
        (6, 8, 0.5),
    ]


def test_a_window_is_weighted_by_the_part_of_the_step_it_covers():
    # Of the step 4..6 the second window (3..6, moved to the end of 6 samples) covers all, the first (0..5) one half.
    assert steps_of(2, [(0, 5, 1.0), (3, 6, 0.0)], 6) == [
        (0, 2, 1.0),
        (2, 4, pytest.approx(2 / 3)),
        (4, 6, pytest.approx(1 / 3)),
    ]


def test_the_last_step_ends_where_the_recording_does():
    assert steps_of(2, [(0, 3, 0.5)], 3) == [(0, 2, 0.5), (2, 3, 0.5)]


@given(st.integers(1, 9), st.integers(1, 30), st.integers(1, 100), st.randoms(use_true_random=False))
def test_steps_cover_the_sound_once_and_are_the_mean_over_their_samples(step, size, samples, random):
    size = min(max(size, step), samples)
    starts = [*range(0, samples - size + 1, step)]
    starts += [samples - size] if starts[-1] < samples - size else []
    windows = [(start, start + size, random.random()) for start in starts]
    found = steps_of(step, windows, samples)
    assert [a for a, _, _ in found] == list(range(0, samples, step)) and [b for _, b, _ in found][:-1] == [
        a for a, _, _ in found
    ][1:]
    assert found[-1][1] == samples
    for a, b, prob in found:
        covering = [p for start, stop, p in windows for t in range(a, b) if start <= t < stop]
        assert prob == pytest.approx(np.mean(covering))


def events(probs, threshold=0.5, top=None):
    steps = [Step(k / 2, (k + 1) / 2, np.array(row)) for k, row in enumerate(probs)]
    return list(merge_steps(steps, TAGS, expand_threshold(threshold, TAGS), top))


def test_neighboring_steps_become_one_event_with_their_highest_probability():
    assert events([[0.5, 0], [0.9, 0], [0.6, 0.7], [0.4, 0.7], [0.5, 0]]) == [
        SoundEvent(0.0, 1.5, "Bark", 0.9), SoundEvent(1.0, 2.0, "Meow", 0.7), SoundEvent(2.0, 2.5, "Bark", 0.5),
    ]
    assert events([[0.4, 0.1]]) == [] == events([])


def test_every_tag_has_its_threshold():
    assert events([[0.6, 0.3]], {"Meow": 0.3, "Bark": 0.7}) == [SoundEvent(0.0, 0.5, "Meow", 0.3)]


def test_top_limits_the_tags_detected_at_a_time():
    assert events([[0.6, 0.7], [0.9, 0.8]], top=1) == [
        SoundEvent(0.0, 0.5, "Meow", 0.7),
        SoundEvent(0.5, 1.0, "Bark", 0.9),
    ]
    assert len(events([[0.6, 0.7]], top=9)) == 2


@pytest.mark.parametrize(("threshold", "message"), [
    (1.5, r"threshold is 1.5; expected numbers within \[0, 1\]"), (float("nan"), "threshold is nan"),
    ({"Bark": 0.5}, "lacks the tag 'Meow'"), ({"Bark": 0.5, "Meow": 0.5, "Moo": 1}, "has the unknown tag 'Moo'; "),
])
def test_invalid_thresholds_are_an_error(threshold, message):
    with pytest.raises(OptionError, match=message):
        expand_threshold(threshold, TAGS)


def test_top_of_zero_is_an_error():
    with pytest.raises(OptionError, match="top is 0"):
        events([[1, 1]], top=0)
