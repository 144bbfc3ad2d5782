"""A stream of sound equals the whole file, and errors name the sound."""

import numpy as np
import pytest
import soundfile as sf
import torch

from fatai.audio import stream as streams
from fatai.audio.io import load_audio
from fatai.audio.stream import stream_audio
from fatai.audio.waveform import resample
from fatai.errors import AudioError, OptionError, ShapeError


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(streams, "_BLOCK", 4096)


def joined(*args, **options):
    blocks = list(stream_audio(*args, **options))
    assert all(block.dtype == torch.float32 and block.ndim == 1 for block in blocks)
    return torch.cat(blocks)


def sounds(rng, samples, channels):
    return (0.2 * rng.standard_normal((samples, channels))).clip(-1, 1)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize(("rate", "channels"), [(44100, 1), (48000, 2), (8000, 1)])
def test_a_stream_of_a_file_is_the_file(tmp_path, rng, suffix, rate, channels):
    path = tmp_path / f"a.{suffix}"
    sf.write(path, sounds(rng, 3 * rate // 2 + 1, channels), rate)
    at_once = load_audio(path, 44100)
    for sound in (path, str(path), path.read_bytes()):
        streamed = joined(sound, 44100)
        assert len(streamed) == len(at_once)
        torch.testing.assert_close(streamed, at_once, atol=1e-6, rtol=0)


@pytest.mark.parametrize("channels", [3, 6, 100])
def test_any_number_of_channels_is_averaged(tmp_path, rng, channels):
    wave = np.round(sounds(rng, 5000, channels) * 32768) / 32768
    sf.write(tmp_path / "a.wav", wave, 22050, subtype="FLOAT")
    np.testing.assert_allclose(joined(tmp_path / "a.wav", 22050), wave.mean(1), atol=1e-6)


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
def test_a_stream_of_samples_is_the_samples(rng, make):
    wave = sounds(rng, 10_001, 2).T.astype(np.float32)
    np.testing.assert_allclose(joined(make(wave), 44100), wave.mean(0), atol=1e-7)
    np.testing.assert_allclose(joined(make(wave[0]), 44100), wave[0], atol=0)
    np.testing.assert_allclose(
        joined(make(wave[0]), 32000, sr_from=48000), resample(torch.from_numpy(wave[0]), 48000, 32000), atol=1e-6
    )
    np.testing.assert_allclose(joined(make(wave[0].astype(np.float64)), 44100), wave[0], atol=0)


def test_16_bit_samples_are_scaled_as_those_of_files_are():
    assert joined(np.array([16384, -32768, 0], np.int16), 44100).tolist() == [0.5, -1.0, 0.0]
    assert joined(np.array([[16384, 0, 0], [0, 0, 0]], np.int16), 44100, channel="mean").tolist() == [0.25, 0, 0]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((100, 2)), r"shape \(100, 2\); expected \(samples,\) or \(channels, samples\).*transpose"),
        (np.zeros(0), r"shape \(0,\)"),
        (np.zeros((1, 2, 3)), "shape"),
        (np.zeros(5, np.int64), "type int64; expected floats"),
        (np.array(["a"]), "type <U1"),
    ],
)
def test_samples_of_another_shape_or_type_are_refused(samples, message):
    with pytest.raises(ShapeError, match=message):
        joined(samples, 44100)


def test_errors_name_the_file(tmp_path, rng):
    whole = tmp_path / "whole.flac"
    sf.write(whole, sounds(rng, 50_000, 1), 44100)
    damaged = tmp_path / "damaged.flac"
    encoded = whole.read_bytes()
    damaged.write_bytes(encoded[:40_000] + bytes(200) + encoded[40_200:])
    with pytest.raises(AudioError, match="damaged.flac: the file is damaged"):
        joined(damaged, 44100)
    with pytest.raises(AudioError, match="nothing.wav: there is no such file"):
        joined(tmp_path / "nothing.wav", 44100)
    with pytest.raises(AudioError, match="this is a folder"):
        joined(tmp_path, 44100)
    sf.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), 44100, subtype="FLOAT")
    with pytest.raises(AudioError, match="nan.wav: the file has samples that are not finite"):
        joined(tmp_path / "nan.wav", 44100)
    with pytest.raises(AudioError, match="the given samples: .*not finite"):
        joined(np.array([0.0, np.inf]), 44100)


@pytest.mark.parametrize(("encoded", "message"), [
    (b"", "the given 0 bytes: the file is empty"), (b"<html>", "the given 6 bytes: this is a web page"),
    (b"\x00" * 99, "the given 99 bytes: the file has no header"),
])
def test_bytes_that_are_no_sound_are_refused_without_naming_a_temporary_file(encoded, message):
    with pytest.raises(AudioError, match=f"^{message}"):
        joined(encoded, 44100)


@pytest.mark.parametrize("rate", [1, 999, 2_000_000_000])
def test_a_rate_that_would_never_end_is_refused(tmp_path, rate):
    sf.write(tmp_path / "a.wav", np.zeros(100), rate)
    with pytest.raises(AudioError, match=f"a.wav: the header declares {rate:,} Hz; expected 1,000 to 1,000,000"):
        joined(tmp_path / "a.wav", 44100)
    with pytest.raises(OptionError, match=f"sr_from={rate} Hz"):
        joined(np.zeros(100), 44100, sr_from=rate)


def test_only_one_block_is_decoded_at_a_time(tmp_path, rng):
    sf.write(tmp_path / "a.wav", sounds(rng, 50_000, 2), 44100)
    assert {len(block) for block in stream_audio(tmp_path / "a.wav", 44100)} == {2048, 50_000 % 2048}


@pytest.mark.parametrize("sr", [0, -1, 22050.5, float("nan"), "44100", None, True], ids=repr)
def test_a_rate_that_is_no_rate_is_named(tmp_path, sr):
    sf.write(tmp_path / "a.wav", np.zeros(4410), 44100)
    for sound in (tmp_path / "a.wav", (tmp_path / "a.wav").read_bytes(), np.zeros(4410)):
        with pytest.raises(OptionError, match="sr=.*expected a rate in Hz"):
            joined(sound, sr, **({} if isinstance(sound, (bytes, type(tmp_path))) else {"sr_from": 44100}))


def test_a_rate_that_is_a_whole_float_is_that_rate(tmp_path):
    sf.write(tmp_path / "a.wav", np.linspace(-0.5, 0.5, 4410), 44100)
    assert torch.equal(joined(tmp_path / "a.wav", 22050.0), joined(tmp_path / "a.wav", 22050))
