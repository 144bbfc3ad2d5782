"""Generated sounds without events, the false alarms in them, and thresholds that limit these."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fatai.audio.background import BACKGROUNDS, synthesize_background
from fatai.errors import OptionError, ShapeError
from fatai.inference.events.false_alarms import count_events, limit_false_alarms


@pytest.mark.parametrize("kind", BACKGROUNDS)
def test_a_background_is_the_same_for_a_seed_and_another_for_another(kind):
    wave = synthesize_background(kind, 2.0, 16000, seed=3)
    assert wave.shape == (32000,) and wave.dtype == torch.float32 and wave.abs().max() <= 0.51
    assert torch.equal(wave, synthesize_background(kind, 2.0, 16000, seed=3))
    if kind == "silence":
        assert not wave.any()
        return
    assert not torch.equal(wave, synthesize_background(kind, 2.0, 16000, seed=4))
    # No event stands out: the loudest tenth of a second is less than 10 dB above the mean.
    power = wave.reshape(20, -1).square().mean(1)
    assert 10 * torch.log10(power.max() / power.mean()) < 10 and power.min() > 0


def test_spectra_are_those_of_their_names():
    def share_below(kind, hz):
        power = np.abs(np.fft.rfft(synthesize_background(kind, 4.0, 16000))) ** 2
        return power[np.fft.rfftfreq(64000, 1 / 16000) < hz].sum() / power.sum()

    assert share_below("hum", 1300) > 0.95 and share_below("speech_shaped", 1000) > 0.8
    assert share_below("speech_shaped", 80) < 0.01 and share_below("rain", 1000) < 0.8


def test_wrong_backgrounds_are_refused():
    with pytest.raises(OptionError, match="did you mean hum"):
        synthesize_background("hun")
    with pytest.raises(OptionError, match="sr 100"):
        synthesize_background("hum", sr=100)


def test_events_are_rows_of_steps_within_a_sound():
    probs = np.array([[0.9, 0.0], [0.8, 0.6], [0.2, 0.6], [0.7, 0.6]])
    one, two = np.array([True, False, False, False]), np.array([True, False, False, True])
    assert count_events(probs, one, 0.5).tolist() == [2, 1] and count_events(probs, two, 0.5).tolist() == [2, 2]
    assert count_events(probs, one, np.array([0.95, 0.6])).tolist() == [0, 1]
    with pytest.raises(ShapeError, match=r"\(4, 2\)"):
        count_events(probs, one[:2], 0.5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=30), st.integers(0, 5))
def test_a_limit_is_the_lowest_threshold_with_no_more_events_at_it_or_above(steps, allowed):
    probs = np.array([[value / 8] for value, _ in steps])
    starts = np.array([True, *(start for _, start in steps[1:])])
    limit = limit_false_alarms(probs, starts, 2.0, allowed / 2)[0]
    values = np.unique([*probs[:, 0], 1.0])
    above = [v for v in values if v >= limit]
    saturated = limit == 1 and count_events(probs, starts, 1.0)[0] > allowed
    assert saturated or all(count_events(probs, starts, v)[0] <= allowed for v in above)
    below = values[values < limit]
    assert len(below) == 0 or count_events(probs, starts, below[-1])[0] > allowed


def test_limits_need_hours():
    with pytest.raises(OptionError, match="hours is 0"):
        limit_false_alarms(np.ones((1, 1)), np.array([True]), 0, 1)
