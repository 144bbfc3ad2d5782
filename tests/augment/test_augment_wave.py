"""Augmentation of waves: each by hand or against librosa, and properties of all of them."""

import math

import librosa
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

from fatai.augment import functional_wave
from fatai.augment.batch_input import BatchInput
from fatai.augment.wave import (
    AddNoise,
    ChunkShuffle,
    CropLengths,
    Cutout,
    Gain,
    Overdrive,
    PitchShift,
    Reverb,
    Shift,
    SpeedPerturb,
    TimeStretch,
    WaveAugmentation,
    WaveChain,
)
from fatai.errors import OptionError, ShapeError
from fatai.registry import AUGMENTATIONS

SR = 8000
# Repeated padding needs silence, which the waves here don't have.
ON_WAVE = [
    name
    for name in AUGMENTATIONS.names()
    if isinstance(AUGMENTATIONS.build(name), WaveAugmentation) and name != "repeat_pad"
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def tone(hz=440.0, seconds=1.0, level=0.5):
    return level * torch.sin(2 * math.pi * hz * torch.arange(round(seconds * SR)) / SR)


def loudest_hz(wave):
    spectrum = torch.fft.rfft(wave.double() * torch.hann_window(len(wave), dtype=torch.float64)).abs()
    return float(spectrum.argmax()) * SR / len(wave)


@pytest.fixture
def wave():
    return torch.stack([tone(200 * (i + 1), 1.2) for i in range(4)]) + 0.01 * torch.randn(4, 9600)


# All augmentations of waves


@pytest.mark.parametrize("name", ON_WAVE)
def test_shape_and_dtype_stay_and_the_input_too(name, wave):
    before = wave.clone()
    got = AUGMENTATIONS.build(name, p=1.0).augment(wave, SR, generator())
    assert got.shape == wave.shape and got.dtype == wave.dtype and got.isfinite().all() and got.abs().max() < 4
    assert torch.equal(wave, before) and not torch.equal(got, wave)


@pytest.mark.parametrize("name", ON_WAVE)
def test_a_seed_repeats_and_another_differs(name, wave):
    augmentation = AUGMENTATIONS.build(name, p=1.0)
    first, again, other = (augmentation.augment(wave, SR, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("name", ON_WAVE)
def test_numpys_generator_is_not_used(name, wave):
    np.random.seed(1)
    state = np.random.get_state()[1].copy()
    AUGMENTATIONS.build(name, p=1.0).augment(wave, SR)
    assert (np.random.get_state()[1] == state).all()


@pytest.mark.parametrize("name", ON_WAVE)
def test_p_0_returns_the_same_tensor(name, wave):
    assert AUGMENTATIONS.build(name, p=0.0).augment(wave, SR) is wave


@pytest.mark.parametrize("name", ON_WAVE)
def test_the_clips_not_chosen_are_untouched(name, wave):
    whole = AUGMENTATIONS.build(name, p=1.0).augment(wave, SR, generator(3))
    half = AUGMENTATIONS.build(name, p=0.5).augment(wave, SR, generator(3))
    chosen = torch.rand(4, generator=generator(3), dtype=torch.float64) < 0.5
    assert torch.equal(half[chosen], whole[chosen]) and torch.equal(half[~chosen], wave[~chosen])


@pytest.mark.parametrize("name", ON_WAVE)
@pytest.mark.parametrize("samples", [1, 40, 3000])
def test_silence_and_short_clips_pass(name, samples):
    got = AUGMENTATIONS.build(name, p=1.0).augment(torch.zeros(2, samples), SR)
    assert (
        got.shape == (2, samples)
        and got.isfinite().all()
        and got.abs().max() < 1e-3 + (name in ("overdrive", "third_place_effects"))
    )


@pytest.mark.parametrize("name", ON_WAVE)
def test_unknown_options_raise(name):
    with pytest.raises(OptionError, match="has no option 'probability'"):
        AUGMENTATIONS.build(name, probability=0.5)


def test_a_wave_without_batch_dimension_raises():
    with pytest.raises(ShapeError, match=r"\(100,\); expected \(batch, samples\): one clip is wave\[None\]"):
        Gain().augment(torch.zeros(100), SR)


# One by one


def test_gain_is_uniform_in_decibels():
    wave = torch.ones(4000, 1)
    db = 20 * Gain(p=1).augment(wave, SR, generator())[:, 0].log10()
    assert -6 <= float(db.min()) < -5.9 and 5.9 < float(db.max()) <= 6 and float(db.mean()) == pytest.approx(0, abs=0.2)


@pytest.mark.parametrize("color", ["white", "pink"])
@given(snr_db=st.floats(-5, 40), seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_noise_reaches_the_ratio(color, snr_db, seed):
    wave = tone()[None]
    added = AddNoise(snr_db=(snr_db, snr_db), color=color, p=1).augment(wave, SR, generator(seed)) - wave
    assert 10 * math.log10(wave.square().mean() / added.square().mean()) == pytest.approx(snr_db, abs=0.05)


def test_white_noise_is_flat_and_pink_noise_falls_by_3_db_an_octave():
    white = torch.randn(1 << 17, generator=generator())
    for noise, slope in ((white, 0.0), (functional_wave.pink(white), -3.01)):
        power = torch.fft.rfft(noise.double()).abs().square()
        octaves = [10 * math.log10(power[2 ** k:2 ** (k + 1)].mean()) for k in range(8, 16)]
        assert np.polyfit(range(8), octaves, 1)[0] == pytest.approx(slope, abs=0.15)


def test_a_shift_leaves_silence_or_rolls_over():
    wave = torch.arange(1.0, 6.0)
    assert functional_wave.shift(wave, 2).tolist() == [0, 0, 1, 2, 3] and functional_wave.shift(wave, -2).tolist() == [
        3,
        4,
        5,
        0,
        0,
    ]
    assert (
        functional_wave.shift(wave, 2, rollover=True).tolist() == [4, 5, 1, 2, 3]
        and functional_wave.shift(wave, 0).tolist() == wave.tolist()
    )
    assert functional_wave.shift(wave, 9).tolist() == [0] * 5
    shifts = Shift(seconds=(-0.5, 0.5)).draw(5000, 1, SR, generator()).value
    assert -0.5 <= float(shifts.min()) < -0.499 and 0.499 < float(shifts.max()) <= 0.5


@pytest.mark.parametrize("engine", functional_wave.ENGINES)
@pytest.mark.parametrize("semitones", [-3.0, 2.0])
def test_pitch_moves_and_length_stays(engine, semitones):
    pytest.importorskip(engine)
    got = functional_wave.shift_pitch(tone(), SR, semitones, engine=engine)
    assert len(got) == SR and loudest_hz(got) == pytest.approx(440 * 2 ** (semitones / 12), rel=0.01)


@pytest.mark.parametrize("engine", functional_wave.ENGINES)
@pytest.mark.parametrize("rate", [0.8, 1.25])
def test_a_stretch_changes_length_and_leaves_pitch(engine, rate):
    pytest.importorskip(engine)
    got = functional_wave.stretch(tone(), SR, rate, engine=engine)
    assert len(got) == round(SR / rate) and loudest_hz(got) == pytest.approx(440, rel=0.01)


def test_pitch_shift_equals_librosa():
    wave = tone(300) + 0.1 * torch.randn(SR, generator=generator())
    expected = librosa.effects.pitch_shift(wave.numpy(), sr=SR, n_steps=1.5)
    np.testing.assert_array_equal(functional_wave.shift_pitch(wave, SR, 1.5).numpy(), expected)


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_speed_changes_length_and_pitch_together(factor):
    got = functional_wave.change_speed(tone(), SR, factor)
    assert len(got) == math.ceil(SR / factor) and loudest_hz(got) == pytest.approx(440 * factor, rel=0.01)


def test_log_uniform_speed_is_uniform_in_its_logarithm():
    drawn = SpeedPerturb(factor=(0.8, 1.25), log_uniform=True).draw(20000, 1, SR, generator()).value
    assert float(drawn.log().mean()) == pytest.approx(0, abs=0.01)
    assert 0.8 <= float(drawn.min()) < 0.801 and 1.249 < float(drawn.max()) <= 1.25


def test_overdrive_worked_by_hand():
    # 20 dB is 10; with color 20 the offset is 0.1. First sample: 0.05 * 10 + 0.1 = 0.6, less 0.6 ** 3 / 3 = 0.528.
    # Second: clipped to 1, less 1 / 3; the filter gives 2/3 - 0.528 + 0.995 * 0.528.
    got = functional_wave.overdrive(torch.tensor([0.05, 0.3]), 20.0)
    expected = [0.5 * 0.05 + 0.75 * 0.528, 0.5 * 0.3 + 0.75 * (2 / 3 - 0.528 + 0.995 * 0.528)]
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6)


def test_reverb_is_dry_until_its_first_echo_and_then_rings_ever_less():
    click = torch.zeros(3 * 44100)
    click[0] = 1.0
    got = functional_wave.reverb(click, 44100, reverberance=50, room_size=100)
    assert got[0] == 1 and (got[1:1116] == 0).all()
    # All eight echoes pass the four all-pass filters, each of which lets -1 of its input through: the first is 0.015.
    assert got[1116].item() == pytest.approx(0.015, rel=1e-5)
    energy = got[1116:].square().view(-1)[:3 * 43000].chunk(6)
    levels = [float(part.sum()) for part in energy]
    assert all(a > b for a, b in zip(levels, levels[1:], strict=False))


def test_reverberance_lengthens_and_a_smaller_room_shortens_the_first_delay():
    click = torch.zeros(2 * 44100)
    click[0] = 1.0
    late = [float(functional_wave.reverb(click, 44100, reverberance=r)[44100:].square().sum()) for r in (0, 49, 99)]
    assert late[0] < late[1] < late[2]
    small = functional_wave.reverb(click, 44100, room_size=0)
    assert int(small[1:].nonzero()[0]) + 1 == round(0.1 * 1116)


def test_comb_and_allpass_have_the_closed_forms_impulse_responses():
    click = np.zeros(60)
    click[0] = 1.0
    # z^-7 / (1 - 0.8 z^-7 0.7 / (1 - 0.3 z^-1)), and (-1 + 1.5 z^-5) / (1 - 0.5 z^-5), as fractions of polynomials for
    # scipy.
    top, bottom = np.zeros(9), np.zeros(8)
    top[7], top[8] = 1.0, -0.3
    bottom[0], bottom[1], bottom[7] = 1.0, -0.3, -0.8 * 0.7
    comb, allpass = functional_wave._freeverb_filters()
    np.testing.assert_allclose(comb(click, 7, 0.8, 0.3), lfilter(top, bottom, click), atol=1e-12)
    expected = lfilter([-1, 0, 0, 0, 0, 1.5], [1, 0, 0, 0, 0, -0.5], click)
    np.testing.assert_allclose(allpass(click, 5), expected, atol=1e-12)


def test_chunks_are_near_half_a_second_and_all_come_back():
    wave = torch.arange(2.6 * SR)[None]
    augmentation = ChunkShuffle(p=1)
    drawn = augmentation.draw(1, wave.shape[1], SR, generator())
    assert drawn.value.shape == (1, 5) and sorted(drawn.value[0].tolist()) == list(range(5))
    got = augmentation.augment(wave, SR, generator(1))
    assert torch.equal(got.sort(1).values, wave) and int((got.diff() != 1).sum()) <= 4
    short = torch.randn(1, SR // 2)
    assert torch.equal(augmentation.augment(short, SR), short)


def test_cutout_silences_a_quarter():
    got = Cutout(p=1).augment(torch.ones(50, 1000), SR, generator())
    assert (got.sum(1) == 750).all() and ((got.diff(dim=1) != 0).sum(1) <= 2).all() and len(got.argmin(1).unique()) > 20


def test_crop_lengths_are_drawn_for_the_whole_batch():
    augmentation = CropLengths(seconds=(0.5, 1.0, 1.2), weights=(0.2, 0.6, 0.2))
    wave = torch.arange(9600.0).expand(3, -1)
    sizes = [augmentation.augment(wave, SR, generator(seed)).shape[1] for seed in range(300)]
    assert {s: sizes.count(s) for s in set(sizes)}.keys() == {4000, 8000, 9600} and 0.5 < sizes.count(8000) / 300 < 0.7
    got = next(c for c in (augmentation.augment(wave, SR, generator(s)) for s in range(50)) if c.shape[1] == 4000)
    assert (got.diff(dim=1) == 1).all() and len(got[:, 0].unique()) > 1


def test_a_chain_runs_its_augmentations_in_order():
    wave = tone()[None]
    chain = WaveChain(Gain(), Cutout(), p=1.0)
    g = generator(2)
    torch.rand(1, generator=g, dtype=torch.float64)  # the coin
    gain = Gain().draw(1, SR, SR, g).value
    start = int(Cutout().draw(1, SR, SR, g).value)
    expected = functional_wave.cut_out(wave[0] * 10 ** (gain.item() / 20), start, start + 2000)
    assert torch.equal(chain.augment(wave, SR, generator(2))[0], expected)


def test_third_place_effects_are_as_published():
    chain = AUGMENTATIONS.build("third_place_effects")
    assert [type(c) for c in chain.augmentations] == [Reverb, PitchShift, Overdrive, SpeedPerturb]
    assert chain.p == 0.75 and chain.order > Gain().order
    reverb, pitch, drive, speed = chain.draw(5000, SR, SR, generator())
    assert set(reverb.reverberance.tolist()) == set(reverb.room_size.tolist()) == set(range(50))
    for values, low, high in ((pitch.value, -3, 3), (drive.value, 2, 9), (speed.value, 0.9, 1.1)):
        assert low <= float(values.min()) < low + 0.02 and high - 0.02 < float(values.max()) <= high


@pytest.mark.parametrize(("build", "message"), [
    (lambda: Gain(gain_db=(6, -6)), r"gain_db is \(6, -6\); expected two numbers in rising order"),
    (lambda: AddNoise(color="brown"), "color is 'brown'; known: white, pink, random"),
    (lambda: PitchShift(engine="librosaa"), "engine is 'librosaa'; did you mean librosa?"),
    (lambda: PitchShift(semitones=(-30, 0)), r"semitones is \(-30, 0\).*within \[-24, 24\]"),
    (lambda: TimeStretch(rate=(0, 1)), r"rate is \(0, 1\)"),
    (lambda: Reverb(room_size=(0, 200)), r"room_size is \(0, 200\)"),
    (lambda: ChunkShuffle(chunk_s=0), "chunk_s is 0; expected seconds above 0"),
    (lambda: Cutout(fraction=2), "fraction is 2"),
    (lambda: CropLengths(seconds=(1,), weights=(1, 2)), r"seconds is \(1,\) with weights \(1, 2\)"),
    (lambda: WaveChain(), "got no augmentations; expected at least one"),
    (lambda: functional_wave.reverb(torch.zeros(9), SR, damping=-1), "damping is -1"),
    (lambda: BatchInput(spec=torch.zeros(1)).rate, "the sample rate of this batch is unknown"),
])
def test_wrong_options_raise(build, message):
    with pytest.raises(OptionError, match=message):
        build()


def test_overdrive_of_a_loud_tone_stays_finite_and_is_limited():
    assert Overdrive(p=1).augment(tone(level=1.0)[None], SR).abs().max() < 0.5 + 0.75 * 2 * 2 / 3
