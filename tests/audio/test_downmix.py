"""The channel and the scale of a sound: hand-made files with known answers, at once, in sections and as a stream."""

import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import soundfile as sf
import torch

from fatai.audio import decoder, downmix
from fatai.audio.downmix import parse_channel
from fatai.audio.io import load_audio
from fatai.audio.stream import stream_audio
from fatai.audio.waveform import is_silent, remove_offset
from fatai.errors import AudioError, OptionError

SR = 8000
TONE = (np.round(0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * SR) / SR) * 32768) / 32768).astype(np.float32)
OTHER = (np.round(0.25 * np.sin(2 * np.pi * 700 * np.arange(2 * SR) / SR) * 32768) / 32768).astype(np.float32)
HISS = (np.random.default_rng(0).integers(-2, 3, 2 * SR) / 32768).astype(np.float32)  # of an open input


@pytest.fixture
def write(tmp_path):
    def write(*channels, name="a.wav", subtype="PCM_16"):
        sf.write(tmp_path / name, np.stack(channels, 1), SR, subtype=subtype)
        return tmp_path / name

    return write


def read_everywhere(path, **options):
    """Return the wave of a file, which is the same at once, in sections, as a stream and from its bytes."""
    wave = load_audio(path, None, **options)
    half = len(wave) // 2 / SR
    sections = [load_audio(path, None, duration_s=half, **options), load_audio(path, None, offset_s=half, **options)]
    assert torch.equal(torch.cat(sections), wave)
    for sound in (path, path.read_bytes()):
        assert torch.equal(torch.cat(list(stream_audio(sound, SR, **options))), wave)
    return wave.numpy()


@pytest.mark.parametrize(("channels", "expected", "notice"), [
    ((TONE, -TONE), TONE, r"a.wav: the 2 channels cancel in their mean .opposite phase.; channel 1, the loudest"),
    ((TONE / 2, -TONE), None, ""),  # what is left has a quarter of the level: it does not cancel
    ((0 * TONE, TONE), TONE, r"a.wav: only one of the 2 channels has sound; channel 2"),
    ((HISS, TONE, HISS, HISS), TONE, r"a.wav: only one of the 4 channels has sound; channel 2"),
    ((TONE + 0.25, 0.25 - TONE), TONE + 0.25, "cancel"),  # the offset of the mean is no sound
    ((0 * TONE + 0.25, TONE), TONE, "channel 2"),
    ((TONE, TONE), None, ""),
    ((TONE, OTHER), None, ""),
    ((0 * TONE, 0 * TONE), None, ""),
])
def test_the_mean_is_taken_unless_it_cancels_or_one_channel_alone_has_sound(write, channels, expected, notice):
    path = write(*channels)
    if not notice:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_allclose(read_everywhere(path), np.mean(channels, 0), atol=1 / 32768)
        return
    with pytest.warns(UserWarning, match=notice) as caught:
        np.testing.assert_array_equal(read_everywhere(path), expected)
    assert len([w for w in caught if str(path) in str(w.message)]) == 1  # once, though it was read four times


def test_a_long_file_is_measured_by_stretches_of_all_its_length(write, monkeypatch):
    monkeypatch.setattr(downmix, "_BLOCK", 256)
    # Nothing for the first half, then opposite phase.
    late = TONE * (np.arange(len(TONE)) > SR)
    path, read = write(late, -late), []
    original = decoder.read_samples
    monkeypatch.setattr(decoder, "read_samples", lambda *args: read.append(args[2]) or original(*args))
    with pytest.warns(UserWarning, match="opposite phase"):
        section = load_audio(path, None, duration_s=0.1)
    assert not section.any() and sum(read) == 16 * 128 + 800
    read.clear()
    np.testing.assert_array_equal(load_audio(path, None, offset_s=1.5), late[12000:])
    assert read == [4000]  # measured once


@pytest.mark.parametrize(("channel", "expected"), [
    ("mean", (TONE - OTHER) / 2), ("loudest", TONE), (1, -OTHER), (2, TONE),
])
def test_a_channel_can_be_chosen(write, channel, expected):
    np.testing.assert_allclose(read_everywhere(write(-OTHER, TONE), channel=channel), expected, atol=1e-7)


def test_the_mean_can_be_forced_without_a_notice(write):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not read_everywhere(write(TONE, -TONE), channel="mean").any()


def test_each_keeps_the_channels_apart_also_when_they_are_resampled(write):
    path = write(TONE, OTHER)
    both = load_audio(path, None, channel="each")
    np.testing.assert_array_equal(both, np.stack([TONE, OTHER]))
    resampled = load_audio(path, 4000, channel="each")
    assert torch.equal(resampled[1], load_audio(path, 4000, channel=2)) and resampled.shape == (2, SR)
    assert load_audio(write(TONE, name="mono.wav"), None, channel="each").shape == (1, 2 * SR)


def test_a_channel_that_a_file_lacks_names_the_file_and_what_it_has(write):
    with pytest.raises(AudioError, match=r"a\.wav: channel 3 was asked for, and the file has 2 channels"):
        load_audio(write(TONE, OTHER), channel=3)
    with pytest.raises(AudioError, match=r"mono\.wav: channel 2 was asked for, and the file has one channel"):
        list(stream_audio(write(TONE, name="mono.wav"), SR, channel=2))


@pytest.mark.parametrize("channel", [0, -1, 2000, True, 1.5, None])
def test_numbers_of_no_channel_are_refused(write, channel):
    with pytest.raises(OptionError, match="expected a number from 1 to 1024, or one of auto, mean, loudest, each"):
        load_audio(write(TONE), channel=channel)


def test_what_is_typed_is_a_name_or_a_number():
    assert [parse_channel(text) for text in ("auto", "each", "2")] == ["auto", "each", 2]
    with pytest.raises(OptionError, match="did you mean loudest"):
        parse_channel("loudes")
    with pytest.raises(OptionError, match="channel is 0; expected"):
        parse_channel("0")


def test_arrays_are_treated_as_files_are():
    with pytest.warns(UserWarning, match="the given samples: .*opposite phase"):
        assert torch.equal(torch.cat(list(stream_audio(np.stack([TONE, -TONE]), SR))), torch.from_numpy(TONE))


@pytest.mark.parametrize(("scale", "bits"), [(2.0**15, 16), (1.9 * 2**15, 16), (2.0**23, 24), (2.0**31, 32)])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_integers_stored_as_floats_are_recognized_and_divided(write, scale, bits, subtype):
    path = write(TONE * np.float32(scale), subtype=subtype)
    with pytest.warns(UserWarning, match=f"a.wav: the floats reach .* the scale of {bits}-bit integers"):
        wave = read_everywhere(path)
    np.testing.assert_allclose(wave, TONE * scale / 2 ** (bits - 1), rtol=1e-6)


def test_quiet_whole_numbers_are_integers():
    with pytest.warns(UserWarning, match="16-bit integers"):
        wave = torch.cat(list(stream_audio(np.array([0.0, 20.0, -12.0]), SR)))
    assert (wave * 32768).tolist() == [0, 20, -12]


@pytest.mark.parametrize("samples", [
    1.05 / 0.5 * TONE, 1.1 / 0.5 * TONE, 4 * TONE, 8 * TONE, 60 * TONE, np.array([3.0, -2.0, 8.0], np.float32),
    np.where(np.arange(2 * SR) == 99, np.float32(1000), TONE),  # one wrong sample
])
def test_floats_beyond_full_scale_are_no_integers(write, samples):
    peak = float(np.abs(samples).max())
    notice = pytest.warns(UserWarning, match=f"reach {peak:,.1f} times full scale and are taken as they are")
    with notice if peak > 1.05 else nullcontext():
        np.testing.assert_array_equal(read_everywhere(write(samples, subtype="FLOAT")), samples)


@pytest.mark.parametrize("subtype", ["GSM610", "G721_32"])
def test_a_section_of_a_coding_without_a_seek_is_that_of_the_whole(tmp_path, subtype):
    path = tmp_path / ("a.wav" if subtype == "GSM610" else "a.au")
    sf.write(path, TONE, SR, subtype=subtype)
    whole = load_audio(path, None)
    assert torch.equal(load_audio(path, None, offset_s=0.51), whole[4080:])
    assert torch.equal(load_audio(path, None, offset_s=1, duration_s=0.5), whole[8000:12000])


@pytest.mark.parametrize("offset", [0.3, -0.02, 0.002])
def test_a_constant_offset_is_removed(offset):
    quiet = np.concatenate([np.zeros(4096, np.float32), TONE])
    np.testing.assert_allclose(remove_offset(torch.from_numpy(quiet + np.float32(offset))), quiet, atol=1e-6)


@pytest.mark.parametrize("level", [1e-4, 0.05])
def test_the_offset_is_that_of_the_frame_with_the_lowest_variance(level):
    # Beside the offset, the variances of the fainter noise differ by less than the rounding errors of float32.
    rng = np.random.default_rng(0)
    frames = (0.3 + level * (1 + 0.01 * rng.permutation(8)[:, None]) * rng.standard_normal((8, 2048))).astype("f")
    quietest = frames.astype(np.float64)[frames.var(1, dtype=np.float64).argmin()]
    without = remove_offset(torch.from_numpy(frames.ravel()))
    assert np.array_equal(without, (frames - np.float32(quietest.mean())).ravel())


def test_waves_without_an_offset_stay_as_they_are():
    for wave in (TONE, 0.0009 + 0 * TONE, np.zeros(0, np.float32)):
        assert torch.equal(remove_offset(torch.from_numpy(wave)), torch.from_numpy(wave))


@pytest.mark.parametrize(("peak", "silent"), [(0, True), (0.00099, True), (0.00101, False)])
@pytest.mark.parametrize("offset", [0, 0.3])
def test_silence_is_a_peak_below_minus_60_db_besides_an_offset(peak, silent, offset):
    wave = torch.tensor([peak, -peak] * 100, dtype=torch.float64) + offset
    assert is_silent(wave) is silent
