"""Input channels against librosa's deltas, ImageNet's constants and coordinates written by hand."""

import librosa
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fatai.audio.channels import Repeat, delta
from fatai.audio.front_ends import FRONT_ENDS, front_end
from fatai.audio.io import load_audio
from fatai.errors import OptionError, ShapeError, UnknownNameError
from fatai.registry import CHANNELS

EXPECTED = {"mono": 1, "repeat3": 3, "imagenet": 3, "deltas": 3, "coord": 2, "coord_time": 3, "windows": 3}


@pytest.mark.parametrize("name", EXPECTED)
def test_each_kind_has_the_declared_number_of_channels(name):
    spec = torch.randn(2, 12, 20)
    channels = CHANNELS.build(name)
    out = channels(spec)
    rows = 4 if name == "windows" else 12
    assert (
        out.shape == (2, channels.n_channels, rows, 20)
        and channels.n_channels == EXPECTED[name]
        and out.dtype == torch.float32
    )
    assert torch.equal(out[1:], channels(spec[1:])) and not channels.state_dict() and CHANNELS.source(name)
    with pytest.raises(ShapeError, match=r"shape \(12, 20\); expected \(batch, rows, frames\)"):
        channels(spec[0])


def test_all_kinds_are_tested_here_and_unknown_ones_suggest_the_nearest():
    assert set(EXPECTED) == set(CHANNELS.names())
    with pytest.raises(UnknownNameError, match="did you mean deltas"):
        CHANNELS.build("delta")


@given(
    frames=st.integers(9, 60), width=st.sampled_from([3, 5, 9]), order=st.sampled_from([1, 2]), seed=st.integers(0, 99)
)
@settings(deadline=None, max_examples=80)
def test_delta_equals_librosas(frames, width, order, seed):
    spec = np.random.default_rng(seed).normal(0, 20, (2, 7, frames))
    mine = delta(torch.from_numpy(spec), order=order, width=width)
    assert np.allclose(mine, librosa.feature.delta(spec, width=width, order=order), atol=1e-9)


@given(frames=st.integers(1, 8), order=st.sampled_from([1, 2]))
@settings(deadline=None, max_examples=30)
def test_delta_of_few_frames_continues_the_outermost(frames, order):
    spec = np.random.default_rng(frames).normal(0, 20, (1, 4, frames))
    mine = delta(torch.from_numpy(spec), order=order)
    assert mine.shape == spec.shape and np.allclose(
        mine, librosa.feature.delta(spec, order=order, mode="nearest"), atol=1e-9
    )


def test_deltas_of_a_real_clip(sample):
    wave = load_audio(sorted(sample.rglob("*.ogg"))[0])[:44100]
    spec = FRONT_ENDS.build("first")(wave[None])
    channels = CHANNELS.build(front_end("first").channels)(spec)[0].numpy()
    db = 100 * spec[0].double().numpy()
    for i, expected in enumerate((db, librosa.feature.delta(db), librosa.feature.delta(db, order=2))):
        assert np.abs(100 * channels[i] - expected).max() <= 1e-3


def test_delta_of_a_line_is_its_slope():
    line = torch.arange(20.0)[None, None] * 3
    assert torch.allclose(delta(line), torch.full((1, 1, 20), 3.0), atol=1e-5)
    assert torch.allclose(delta(line, order=2), torch.zeros(1, 1, 20), atol=1e-5)
    assert torch.allclose(delta(line ** 2, order=2), torch.full((1, 1, 20), 18.0), atol=1e-3)


@pytest.mark.parametrize("options", [dict(width=4), dict(width=1), dict(order=0), dict(order=9, width=9)])
def test_delta_names_options_out_of_range(options):
    with pytest.raises(OptionError, match="expected an odd width of at least 3, and an order from 1"):
        delta(torch.zeros(1, 4, 20), **options)


def test_images_are_standardized_as_those_of_imagenet():
    spec = torch.tensor([[[0.0, 255.0]]])
    by_hand = [[-0.485 / 0.229, 0.515 / 0.229], [-0.456 / 0.224, 0.544 / 0.224], [-0.406 / 0.225, 0.594 / 0.225]]
    assert CHANNELS.build("imagenet")(spec)[0, :, 0].tolist() == [pytest.approx(row, abs=1e-5) for row in by_hand]


def test_coordinates_rise_from_minus_one_to_one():
    spec = torch.randn(2, 3, 5)
    out = CHANNELS.build("coord_time")(spec)
    assert torch.equal(out[:, 0], spec) and torch.equal(CHANNELS.build("coord")(spec), out[:, :2])
    assert out[1, 1, :, 3].tolist() == [-1, 0, 1] and out[1, 2, 0].tolist() == [-1, -0.5, 0, 0.5, 1]
    assert (out[:, 1].std(-1) == 0).all() and (out[:, 2].std(1) == 0).all()


def test_repeats_and_windows():
    spec = torch.randn(2, 6, 5)
    assert all(torch.equal(channel, spec) for channel in CHANNELS.build("repeat3")(spec).unbind(1))
    assert torch.equal(CHANNELS.build("windows", n_windows=2)(spec)[:, 1], spec[:, 3:])
    with pytest.raises(ShapeError, match="6 rows, which are not 4 windows of equal size"):
        CHANNELS.build("windows", n_windows=4)(spec)
    with pytest.raises(OptionError, match="n_channels=0; expected at least 1"):
        Repeat(0)


def test_derivatives_are_exact_within_autocast():
    spec = 20 * torch.randn(2, 64, 100) - 40
    expected = CHANNELS.build("deltas")(spec)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = CHANNELS.build("deltas")(spec)
    assert torch.equal(got, expected)


def test_the_derivatives_of_no_clips_are_none():
    assert delta(torch.zeros(0, 64, 100)).shape == (0, 64, 100) and delta(torch.zeros(0, 64, 3)).shape == (0, 64, 3)
