"""Waveforms are trimmed as librosa does, padded as NumPy does, and resampled as soxr does."""

import librosa
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fatai.audio.io import load_audio, save_audio
from fatai.audio.waveform import PAD_MODES, fit_length, nonsilent_section, peak_db, resample, trim_silence
from fatai.errors import OptionError, ShapeError


def librosa_section(wave, top_db, **frames):
    return tuple(int(i) for i in librosa.effects.trim(np.asarray(wave), top_db=top_db, **frames)[1])


@pytest.mark.parametrize("top_db", [10.0, 30.0, 60.0])
def test_the_bundled_clips_are_trimmed_as_librosa_trims_them(top_db, sample):
    changed = 0
    for path in sorted(sample.rglob("*.ogg"))[::10]:
        wave = load_audio(path)
        assert tuple(nonsilent_section(wave, top_db)) == librosa_section(wave, top_db), path
        trimmed = trim_silence(wave, top_db)
        assert np.array_equal(trimmed, librosa.effects.trim(wave.numpy(), top_db=top_db)[0])
        changed += len(trimmed) < len(wave)
    assert changed


@given(
    before=st.integers(0, 6000),
    sound=st.integers(1, 6000),
    behind=st.integers(0, 6000),
    level=st.sampled_from([1.0, 1e-2]),
    frame_length=st.sampled_from([2048, 1000, 7]),
    hop_length=st.sampled_from([512, 441, 1]),
)
@settings(deadline=None, max_examples=60)
def test_noise_between_silences_is_found_as_librosa_finds_it(before, sound, behind, level, frame_length, hop_length):
    rng = np.random.default_rng(before)
    wave = np.concatenate([np.zeros(before), rng.uniform(-level, level, sound), np.zeros(behind)]).astype(np.float32)
    frames = dict(frame_length=frame_length, hop_length=hop_length)
    assert tuple(nonsilent_section(torch.from_numpy(wave), 60.0, **frames)) == librosa_section(wave, 60.0, **frames)


@pytest.mark.parametrize("samples", [1, 5, 511, 512, 513, 2048, 44100])
def test_silence_and_a_level_tone_are_kept_whole(samples):
    # librosa keeps silence, too: nothing in it lies below its own peak.
    for value in (0.0, 0.5):
        wave = torch.full((samples,), value)
        assert tuple(nonsilent_section(wave)) == librosa_section(wave, 60.0) and trim_silence(wave).shape == wave.shape


def test_trimming_ends():
    assert trim_silence(torch.zeros(0)).shape == (0,) and trim_silence(torch.zeros(2, 0)).shape == (2, 0)
    wave = torch.cat([torch.zeros(44100), torch.ones(44100), torch.zeros(44100)])
    both = torch.stack([wave, wave.roll(20000)])  # the loudest channel of each frame decides
    start, stop = nonsilent_section(both)
    assert (start, stop) == librosa_section(both, 60.0, aggregate=np.max)
    assert (start, stop) == (nonsilent_section(wave).start, nonsilent_section(wave.roll(20000)).stop)
    assert torch.equal(trim_silence(both), both[:, start:stop])
    assert torch.equal(trim_silence(trim_silence(wave)), trim_silence(wave))
    assert trim_silence(wave).untyped_storage().data_ptr() == wave.untyped_storage().data_ptr()


class TestOffset:
    @pytest.fixture
    def event(self):
        """A second of 16-bit silence with a tone from sample 10240 to 20480."""
        wave = torch.zeros(44100)
        wave[10240:20480] = 0.4 * torch.sin(torch.arange(10240) * 0.3)
        return (wave * 32768).round() / 32768

    @pytest.mark.parametrize("offset", [-0.5, -0.02, 0.01, 0.3, 100.0])
    def test_a_constant_offset_changes_no_section(self, event, offset):
        # Frames of 2048 centred samples: the first with the tone is at 9728 or before, the last at 21504 or before.
        assert tuple(nonsilent_section(event)) == (9728, 21504)
        assert tuple(nonsilent_section(event + offset)) == (9728, 21504)
        assert torch.equal(trim_silence(event + offset), event[9728:21504] + offset), "it stays in the wave"

    def test_each_channel_has_its_own(self, event):
        both = torch.stack([event + 0.1, 0.5 * event - 0.2])
        assert tuple(nonsilent_section(both)) == (9728, 21504)

    def test_an_offset_under_noise(self, event):
        noisy = event + 1e-5 * torch.randn(44100, generator=torch.Generator().manual_seed(0)) + 0.02
        assert tuple(nonsilent_section(noisy)) == (9728, 21504)

    @pytest.mark.parametrize("hz", [1, 3, 30])
    def test_a_low_tone_is_sound(self, hz):
        tone = 0.5 * torch.sin(torch.arange(44100) * (2 * np.pi * hz / 44100))
        assert tuple(nonsilent_section(tone)) == librosa_section(tone.numpy(), 60.0)

    @pytest.mark.parametrize("samples", [1, 2, 100, 2047, 2048, 5000])
    def test_nothing_but_an_offset_has_no_silence_to_trim(self, samples):
        assert tuple(nonsilent_section(torch.full((samples,), 0.25))) == (0, samples)

    @pytest.mark.parametrize(
        ("subtype", "snr_db"), [("PCM_U8", 30), ("ALAW", 34), ("ULAW", 34), ("IMA_ADPCM", 20), ("MS_ADPCM", 20)]
    )
    def test_a_coding_differs_by_its_own_noise(self, event, subtype, snr_db, tmp_path):
        coded = load_audio(save_audio(tmp_path / "a.wav", event, 44100, subtype=subtype))[:44100]
        section, coded_section = (np.array(nonsilent_section(wave)) for wave in (event, coded))
        assert np.abs(section - coded_section).max() <= 1024, "two frames"
        noise = coded - event
        assert 10 * (event.square().mean() / (noise - noise.mean()).square().mean()).log10() > snr_db

    @pytest.mark.parametrize("subtype", ["ALAW", "ULAW", "PCM_24"])
    def test_the_value_of_silence_in_a_coding_is_no_sound(self, event, subtype, tmp_path):
        # Silence in A-law is decoded as 8 / 32768.
        quiet = 0.1 * event
        path = save_audio(tmp_path / "a.wav", quiet, 44100, subtype=subtype)
        assert tuple(nonsilent_section(load_audio(path))) == tuple(nonsilent_section(quiet)) == (9728, 21504)


def test_trimming_options_out_of_range_are_named():
    wrong = (
        (dict(top_db=0), "top_db=0"),
        (dict(frame_length=0), "frame_length=0"),
        (dict(hop_length=-1), "hop_length=-1"),
    )
    for options, message in wrong:
        with pytest.raises(OptionError, match=f"{message}.*expected numbers above 0"):
            trim_silence(torch.ones(10), **options)
    with pytest.raises(ShapeError, match="a single number"):
        trim_silence(torch.tensor(1.0))


# ---- length ---------------------------------------------------------------------------------------------------

def padded_by_numpy(wave: np.ndarray, samples: int, pad_mode: str) -> np.ndarray:
    missing = samples - wave.shape[-1]
    left = missing // 2 if pad_mode.endswith("_center") else 0
    ends = (0, 0), (left, missing - left)
    if pad_mode == "minimum_center":
        return np.stack([np.pad(row, ends[1], constant_values=row.min()) for row in wave])
    return np.pad(wave, ends, mode=pad_mode.split("_")[0])


@given(n=st.integers(1, 30), more=st.integers(0, 100), pad_mode=st.sampled_from(PAD_MODES))
@settings(deadline=None, max_examples=150)
def test_short_waves_are_padded_as_numpy_does(n, more, pad_mode):
    wave = np.random.default_rng(n).normal(size=(2, n)).astype(np.float32)
    padded = fit_length(torch.from_numpy(wave), n + more, pad_mode)
    assert padded.shape == (2, n + more)
    assert np.array_equal(padded.numpy(), padded_by_numpy(wave, n + more, pad_mode))


@given(n=st.integers(1, 30), samples=st.integers(1, 30), pad_mode=st.sampled_from(PAD_MODES))
@settings(deadline=None, max_examples=100)
def test_long_waves_are_kept_or_cut(n, samples, pad_mode):
    wave = torch.arange(float(n))
    assert fit_length(wave, samples, pad_mode).shape[-1] == max(n, samples)
    for cut in ("right", "center"):
        assert fit_length(wave, samples, pad_mode, cut=cut).shape[-1] == samples
    if n >= samples:
        assert torch.equal(fit_length(wave, samples, pad_mode), wave)
        assert torch.equal(fit_length(wave, samples, pad_mode, cut="right"), wave[:samples])
        assert fit_length(wave, samples, pad_mode, cut="center")[0] == (n - samples) // 2


@given(n=st.integers(1, 20), left=st.integers(0, 10), right=st.integers(0, 10), pad_mode=st.sampled_from(PAD_MODES))
@settings(deadline=None, max_examples=100)
def test_the_left_padding_can_be_chosen(n, left, right, pad_mode):
    wave = torch.randn(n)
    assert torch.equal(fit_length(wave, n + left + right, pad_mode, left=left)[left:left + n], wave)


def test_by_hand():
    wave = torch.tensor([1.0, 2.0, 3.0])
    expected = {
        "constant_center": [0, 0, 1, 2, 3, 0, 0, 0],
        "constant_right": [1, 2, 3, 0, 0, 0, 0, 0],
        "wrap_right": [1, 2, 3, 1, 2, 3, 1, 2],
        "wrap_center": [2, 3, 1, 2, 3, 1, 2, 3],
        "edge_center": [1, 1, 1, 2, 3, 3, 3, 3],
        "minimum_center": [1, 1, 1, 2, 3, 1, 1, 1],
    }
    assert {pad_mode: fit_length(wave, 8, pad_mode).tolist() for pad_mode in PAD_MODES} == expected
    images = torch.tensor([[[4.0], [9.0]], [[1.0], [-5.0]]])  # (batch, rows, frames): one lowest value a clip
    assert fit_length(images, 3, "minimum_center").tolist() == [[[4, 4, 4], [4, 9, 4]], [[-5, 1, -5], [-5, -5, -5]]]
    assert fit_length(torch.zeros(0), 3).tolist() == [0, 0, 0]


def test_invalid_options_of_fit_length_are_named():
    wave = torch.ones(3)
    with pytest.raises(OptionError, match="'wrap_rigth'; did you mean wrap_right"):
        fit_length(wave, 5, "wrap_rigth")
    with pytest.raises(OptionError, match="cut='left'; expected 'none', 'right' or 'center'"):
        fit_length(wave, 5, cut="left")
    with pytest.raises(OptionError, match="left=3; expected 0 to 2"):
        fit_length(wave, 5, left=3)
    for pad_mode in ("wrap_right", "wrap_center", "edge_center", "minimum_center"):
        with pytest.raises(ShapeError, match="which repeats its values"):
            fit_length(torch.zeros(0), 5, pad_mode)


# ---- rate and level -------------------------------------------------------------------------------------------

@given(
    samples=st.integers(0, 3000),
    sr_from=st.sampled_from([8000, 11025, 44100]),
    sr_to=st.sampled_from([8000, 32000, 48000]),
)
@example(samples=441, sr_from=11025, sr_to=48000)
@settings(deadline=None, max_examples=40)
def test_resampling_equals_librosas(samples, sr_from, sr_to):
    wave = np.random.default_rng(samples).uniform(-1, 1, (2, samples)).astype(np.float32)
    mine = resample(torch.from_numpy(wave), sr_from, sr_to)
    assert mine.shape == (2, -(-samples * sr_to // sr_from)) and mine.dtype == torch.float32
    if samples:
        theirs = librosa.resample(wave, orig_sr=sr_from, target_sr=sr_to, res_type="soxr_hq")
        # The length is n * sr_to / sr_from, rounded up. librosa multiplies by the rounded ratio, which may lie above a
        # whole number: 441 samples from 11,025 to 48,000 Hz are 1,920, and librosa pads them to 1,921.
        assert theirs.shape[1] - mine.shape[1] == (samples * (float(sr_to) / sr_from) > mine.shape[1])
        assert np.array_equal(mine.numpy(), theirs[:, :mine.shape[1]])


def test_resampling_keeps_a_tone():
    at = np.arange(44100) / 44100
    tone = resample(torch.from_numpy(np.sin(2 * np.pi * 440 * at).astype(np.float32)), 44100, 32000)
    expected = np.sin(2 * np.pi * 440 * np.arange(32000) / 32000)
    assert np.abs(tone.numpy() - expected)[500:-500].max() < 1e-4
    with pytest.raises(OptionError, match="sr_from=0; expected a rate in Hz"):
        resample(tone, 0, 8000)


def test_peak_level_in_decibels():
    waves = torch.tensor([[1.0, 0.0], [-0.1, 0.05], [0.0, 0.0]])
    assert peak_db(waves).tolist() == pytest.approx([0.0, -20.0, -np.inf])
