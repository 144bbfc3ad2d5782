"""Whatever is read equals what librosa reads; whatever cannot be read becomes one error that names the file."""

import pickle
import struct
import warnings

import librosa
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fatai.audio.io import AUDIO_EXTENSIONS, audio_info, is_readable, load_audio, save_audio
from fatai.errors import AudioError, OptionError, ShapeError

READABLE = {
    "wav": "PCM_16",
    "flac": "PCM_16",
    "ogg": "VORBIS",
    "mp3": "MPEG_LAYER_III",
    "aiff": "PCM_16",
    "au": "PCM_16",
    "caf": "PCM_16",
}


@pytest.fixture
def tone():
    """A second of a tone that swells, at 44.1 kHz."""
    return (np.sin(np.arange(44100) * 0.05) * np.linspace(0, 0.9, 44100)).astype(np.float32)


@pytest.fixture
def write(tmp_path, tone):
    """Write the tone under a name, with libsndfile."""

    def to(name, samples=tone, sr=44100, **how):
        soundfile.write(tmp_path / name, samples, sr, **how)
        return tmp_path / name

    return to


def test_the_bundled_clips_are_read_as_librosa_reads_them(sample):
    for path in sorted(sample.rglob("*.ogg"))[::40]:
        for sr in (None, 32000):
            expected, rate = librosa.load(path, sr=sr)
            wave = load_audio(path, sr)
            assert wave.dtype == torch.float32 and np.array_equal(wave, expected), path
        assert audio_info(path).sr == soundfile.info(path).samplerate


@pytest.mark.parametrize("kind", READABLE)
def test_formats(kind, write):
    path = write(f"tone.{kind}", subtype=READABLE[kind])
    expected, _ = librosa.load(path, sr=None)
    assert np.array_equal(load_audio(path), expected) and f".{kind}" in AUDIO_EXTENSIONS
    info = audio_info(path)
    assert (info.sr, info.channels, info.samples) == (44100, 1, len(expected)) and info.seconds == pytest.approx(
        len(expected) / 44100
    )


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_wav_of_every_width_and_number_of_channels(subtype, channels, write, rng):
    path = write("many.wav", rng.uniform(-1, 1, (5000, channels)), subtype=subtype)
    expected = librosa.to_mono(soundfile.read(path, dtype="float32", always_2d=True)[0].T)
    assert np.allclose(load_audio(path), expected, atol=2e-7, rtol=0)


def test_every_16_bit_value_is_read_exactly(write):
    values = np.arange(-32768, 32768, dtype=np.int16)
    expected = torch.from_numpy(values.astype(np.float32) / 32768)
    for name in ("all.wav", "all.flac", "all.aiff"):
        assert torch.equal(load_audio(write(name, values)), expected)


@pytest.mark.parametrize("sr_from", [8000, 22050, 44100, 48000])
@pytest.mark.parametrize("sr_to", [16000, 32000, 44100])
def test_resampling_equals_librosas(sr_from, sr_to, write, tone):
    path = write("tone.wav", tone, sr_from)
    expected, _ = librosa.load(path, sr=sr_to)
    assert np.array_equal(load_audio(path, sr_to), expected)


@given(
    start=st.integers(0, 999),
    length=st.integers(1, 2000),
    channels=st.integers(1, 2),
    kind=st.sampled_from(["wav", "flac"]),
)
@settings(deadline=None, max_examples=60)
def test_a_section_is_that_part_of_the_whole(start, length, channels, kind, tmp_path_factory):
    path = tmp_path_factory.mktemp("section") / f"clip.{kind}"
    soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, (1000, channels)), 1000)
    section = load_audio(path, None, offset_s=start / 1000, duration_s=length / 1000)
    assert torch.equal(section, load_audio(path, None)[start:start + length])


def test_chunks_beside_the_sound_are_skipped(tmp_path):
    samples = np.arange(-500, 500, dtype="<i2")
    fmt = struct.pack("<HHIIHH", 1, 1, 44100, 88200, 2, 16)
    for name, before in {"list": b"LIST" + struct.pack("<I", 3) + b"abc\0", "none": b""}.items():
        sound = b"data" + struct.pack("<I", 2000) + samples.tobytes()
        body = b"WAVE" + before + b"fmt " + struct.pack("<I", 16) + fmt + before + sound + b"id3 junk"
        path = tmp_path / f"{name}.wav"
        path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
        assert torch.equal(load_audio(path), torch.from_numpy(samples / np.float32(32768)))


def test_a_silent_file_is_read_like_any_other(write):
    assert torch.equal(load_audio(write("silent.wav", np.zeros(100, np.float32))), torch.zeros(100))


def test_floats_beyond_full_scale_are_kept(write):
    assert load_audio(write("loud.wav", np.array([3.0, -2.0], np.float32), subtype="FLOAT")).tolist() == [3.0, -2.0]


# ---- what cannot be read --------------------------------------------------------------------------------------

def broken_files(tmp_path, write):
    """Unreadable files with parts of their error messages."""
    texts = {
        "empty.wav": (b"", "empty (0 bytes)"),
        "page.wav": (b"<html>404</html>", "web page"),
        "picture.ogg": (b"\x89PNG\r\n\x1a\n" + bytes(99), "PNG"),
        "words.wav": (b"fname,labels\na.wav,Bark\n", "this is text"),
        "noise.wav": (bytes(range(255, 100, -1)), "no header of a known sound format"),
        "zip.flac": (b"PK\x03\x04" + bytes(50), "zip archive"),
        **{f"start.{k}": (write(f"whole.{k}", subtype=READABLE[k]).read_bytes()[:45], "cut short")
           for k in ("aiff", "caf", "ogg")},
        "start.wav": (write("whole.wav").read_bytes()[:44], "cut short"),
        "start.au": (write("whole.au").read_bytes()[:20], "cut short"),
        "torn.flac": (b"fLaC" + bytes(40), "header is damaged"),
    }
    for name, (content, _) in texts.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.wav").mkdir()
    return [
        (tmp_path / "absent.wav", "no such file"),
        (tmp_path / "folder.wav", "folder"),
        (write("no_samples.wav", np.zeros(0)), "no samples"),
        *((tmp_path / name, message) for name, (_, message) in texts.items()),
    ]


def test_every_broken_file_is_an_audio_error_that_names_it(tmp_path, write):
    for path, message in broken_files(tmp_path, write):
        for read in (load_audio, audio_info):
            with pytest.raises(AudioError) as caught:
                read(path)
            assert str(path) in str(caught.value) and message in str(caught.value), (path, read)
            # Workers of a loader send errors through pipes.
            assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value) and caught.value.__cause__ is None
        assert not is_readable(path)


@given(cut=st.integers(0, 2043))
@settings(deadline=None, max_examples=60)
def test_of_a_wav_cut_anywhere_the_rest_is_read_and_the_end_told(cut, tmp_path_factory):
    path = tmp_path_factory.mktemp("cut") / "clip.wav"
    soundfile.write(path, np.arange(1000, dtype=np.int16), 8000)
    assert path.stat().st_size == 2044
    path.write_bytes(path.read_bytes()[:cut])
    if cut < 46:
        with pytest.raises(AudioError, match="clip.wav"):
            load_audio(path)
    else:
        with pytest.warns(UserWarning, match=f"2,000 bytes of sound, {cut - 44:,} are there"):
            assert (load_audio(path, None) * 32768).tolist() == list(range((cut - 44) // 2))


def test_samples_that_are_no_numbers_are_refused(write):
    for bad in (np.nan, np.inf):
        path = write("bad.wav", np.array([0.0, bad], np.float32), subtype="FLOAT")
        with pytest.raises(AudioError, match="not finite"):
            load_audio(path)


def test_sections_and_rates_out_of_range_are_named(write):
    path = write("tone.wav")
    with pytest.raises(AudioError, match=r"1\.000 s long, but the section starts at 1\.000 s"):
        load_audio(path, offset_s=1.0)
    for options, message in (
        (dict(sr=0), "sr=0"),
        (dict(offset_s=-1), "offset_s=-1"),
        (dict(duration_s=0), "duration_s=0"),
    ):
        with pytest.raises(OptionError, match=message):
            load_audio(path, **options)


# ---- writing --------------------------------------------------------------------------------------------------

@given(
    values=st.lists(st.integers(-32768, 32767), min_size=1, max_size=50), kind=st.sampled_from(["wav", "flac", "aiff"])
)
@settings(deadline=None, max_examples=50)
def test_16_bit_samples_come_back_unchanged(values, kind, tmp_path_factory):
    wave = torch.tensor(values, dtype=torch.float32) / 32768
    assert torch.equal(load_audio(save_audio(tmp_path_factory.mktemp("out") / f"a.{kind}", wave, 44100)), wave)


def test_what_is_saved(tmp_path):
    stereo = save_audio(tmp_path / "stereo.wav", torch.tensor([[0.5, 0.5], [-0.5, 0.25]]), 8000)
    assert audio_info(stereo).channels == 2 and load_audio(stereo, None, channel="mean").tolist() == [0.0, 0.375]
    assert load_audio(save_audio(tmp_path / "loud.wav", torch.tensor([2.0, -2.0]), 8000), None).tolist() == [
        32767 / 32768,
        -1.0,
    ]
    assert load_audio(
        save_audio(tmp_path / "float.wav", np.array([2.0], np.float32), 8000, subtype="FLOAT"), None
    ).tolist() == [2.0]
    assert audio_info(save_audio(tmp_path / "a.opus", torch.zeros(4800), 48000)).subtype == "OPUS"
    long = save_audio(tmp_path / "long.ogg", torch.zeros(44100 * 60), 44100)
    assert (audio_info(long).samples, audio_info(long).subtype) == (44100 * 60, "VORBIS")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.opus", "float.wav", "long.ogg", "loud.wav", "stereo.wav"]


def test_what_cannot_be_saved_leaves_nothing(tmp_path):
    wave = torch.zeros(10)
    for error, message, call in (
        (
            AudioError,
            "no sound format has the suffix '.xyz'",
            lambda: save_audio(tmp_path / "a.xyz", wave, 8000),
        ),
        (
            OptionError,
            "FLAC files have no subtype 'FLOAT'",
            lambda: save_audio(tmp_path / "a.flac", wave, 8000, subtype="FLOAT"),
        ),
        (ShapeError, r"shape \(0,\)", lambda: save_audio(tmp_path / "a.wav", wave[:0], 8000)),
        (ShapeError, "torch.int64|int64", lambda: save_audio(tmp_path / "a.wav", wave.long(), 8000)),
        (AudioError, "not finite", lambda: save_audio(tmp_path / "a.wav", wave / 0, 8000)),
        (
            AudioError,
            "cannot be written as OGG OPUS at 44100 Hz.*check",
            lambda: save_audio(tmp_path / "a.opus", wave, 44100),
        ),
    ):
        with warnings.catch_warnings(), pytest.raises(error, match=message):
            warnings.simplefilter("error")
            call()
    assert list(tmp_path.iterdir()) == []
