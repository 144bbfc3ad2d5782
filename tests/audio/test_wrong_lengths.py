"""Sound files whose header declares a wrong length, or whose end is missing, are read to the end of what is there."""

import os
import struct
import warnings

import numpy as np
import pytest
import soundfile

from fatai.audio.containers import flac_ends
from fatai.audio.io import audio_info, check_audio, load_audio
from fatai.audio.stream import stream_audio
from fatai.data.audit.audio_file import check_audio_file
from fatai.errors import AudioError

SR = 8000
VALUES = np.arange(1, 101, dtype="<i2")
WAVE = VALUES / np.float32(32768)


def riff(data, declared, *, fmt=None, before=b"", after=b"", riff_size=0):
    """A WAV file of these bytes of samples, 16-bit mono by default, with a declared number of bytes."""
    fmt = fmt or struct.pack("<HHIIHH", 1, 1, SR, 2 * SR, 2, 16)
    head = b"RIFF" + struct.pack("<I", riff_size) + b"WAVEfmt " + struct.pack("<I", len(fmt)) + fmt
    return head + before + b"data" + struct.pack("<I", declared) + data + after


def read(path):
    """What each way to read returns, which is the same, with the texts of the warnings, but for those of a coding."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wave = load_audio(path, None)
        streamed = np.concatenate(list(stream_audio(path, SR)))
        check_audio(path)
    assert np.array_equal(streamed, wave) and audio_info(path).samples == len(wave)
    assert np.array_equal(load_audio(path, None, offset_s=(len(wave) - 1) / SR), wave[-1:])
    return wave.numpy(), [str(w.message) for w in caught if "bits for each sample" not in str(w.message)]


@pytest.mark.parametrize("declared", [0, 0x7FFFFFFF, 0x7FFFF000, 0x80000000, 0xFFFFFFFE, 201, 216])
def test_16_bit_wav(tmp_path, declared):
    path = tmp_path / "a.wav"
    path.write_bytes(riff(VALUES.tobytes(), declared))
    wave, told = read(path)
    assert np.array_equal(wave, WAVE)
    assert len(told) == 1 and f"{path}: read to its end at 0.013 s" in told[0] and "missing" in told[0]
    assert f"its header declares {declared:,} bytes of sound, 200 are there" in told[0]
    assert check_audio_file(path).mismatch in told[0] and check_audio_file(path).samples == 100


CODINGS = {
    "PCM_U8": struct.pack("<HHIIHH", 1, 1, SR, SR, 1, 8), "ALAW": struct.pack("<HHIIHHH", 6, 1, SR, SR, 1, 8, 0),
    "PCM_24": struct.pack("<HHIIHH", 1, 1, SR, 3 * SR, 3, 24), "FLOAT": struct.pack("<HHIIHH", 3, 1, SR, 4 * SR, 4, 32),
}


@pytest.mark.parametrize("declared", [0, 0x7FFFFFFF, 300, 0xFFFFFFFF])
@pytest.mark.parametrize("coding", CODINGS)
def test_other_codings(tmp_path, rng, coding, declared):
    soundfile.write(tmp_path / "whole.wav", 0.5 * rng.uniform(-1, 1, 60), SR, subtype=coding)
    expected = soundfile.read(tmp_path / "whole.wav", dtype="float32")[0]
    whole = (tmp_path / "whole.wav").read_bytes()
    start = whole.index(b"data") + 8
    size = struct.unpack("<I", whole[start - 4:start])[0]
    path = tmp_path / "a.wav"
    path.write_bytes(riff(whole[start:start + size], declared, fmt=CODINGS[coding]))
    wave, told = read(path)
    assert np.array_equal(wave, expected) and len(told) == (declared != 0xFFFFFFFF)


def test_a_length_declared_as_unknown_is_no_fault(tmp_path):
    (tmp_path / "a.wav").write_bytes(riff(VALUES.tobytes(), 0xFFFFFFFF))
    wave, told = read(tmp_path / "a.wav")
    assert np.array_equal(wave, WAVE) and told == []


@pytest.mark.parametrize("n", [0, 1, 3])
def test_an_empty_wav_with_other_chunks_behind_it_has_no_samples(tmp_path, n):
    (tmp_path / "a.wav").write_bytes(riff(b"", 0, after=n * (b"LIST" + struct.pack("<I", 3) + b"abc\0")))
    with pytest.raises(AudioError, match="has a header but no samples"):
        load_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("after", [b"", bytes(1000), b"guan" + struct.pack("<I", 4) + b"abcd"])
@pytest.mark.parametrize("pad", [b"", b"\0"])
def test_chunks_of_odd_length_with_and_without_padding(tmp_path, pad, after):
    before = b"wamd" + struct.pack("<I", 7) + b"\0\0\2\0\0\0\1" + pad
    for fmt, data in ((None, VALUES.tobytes()), (CODINGS["FLOAT"], WAVE.astype("<f4").tobytes())):
        (tmp_path / "a.wav").write_bytes(riff(data, len(data), fmt=fmt, before=before, after=after))
        wave, told = read(tmp_path / "a.wav")
        assert np.array_equal(wave, WAVE) and told == []


@pytest.mark.parametrize(("bits", "rows"), [(16, 1 << 31), (24, 1_500_000_000)])
def test_a_wav_over_4_gb_whose_32_bit_size_ran_over(tmp_path, bits, rows):
    path, width = tmp_path / "a.wav", bits // 8
    fmt, size = struct.pack("<HHIIHH", 1, 1, SR, width * SR, width, bits), width * (rows + 1000)
    with path.open("wb") as file:
        file.write(riff(b"", size & 0xFFFFFFFF, fmt=fmt))
        file.seek(44 + size - 2 * width)
        file.write(b"\0" * (width - 1) + b"\x40" + b"\0" * (width - 1) + b"\xc0")
        file.write(b"LIST" + struct.pack("<I", 4) + b"abcd")
    info = audio_info(path)
    assert info.samples == rows + 1000 and f"{size & 0xFFFFFFFF:,} bytes of sound, {size:,} are there" in info.mismatch
    with pytest.warns(UserWarning, match="a.wav: read to its end at"):
        assert load_audio(path, None, offset_s=(rows + 997) / SR).tolist() == [0, 0.5, -0.5]


FORMATS = {"a.aiff": "PCM_16", "a.au": "PCM_16", "a.caf": "PCM_16", "a.w64": "PCM_16", "a.rf64": "PCM_16",
           "a.wav": "PCM_24", "b.aiff": "ULAW"}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("lost", [2, 1000, 2000])
def test_the_end_of_a_plain_file_is_missing(tmp_path, rng, name, lost):
    path = tmp_path / name
    soundfile.write(path, 0.5 * rng.uniform(-1, 1, 3000), SR, subtype=FORMATS[name])
    whole = soundfile.read(path, dtype="float32")[0]
    path.write_bytes(path.read_bytes()[:-lost])
    wave, told = read(path)
    width = {"PCM_16": 2, "PCM_24": 3, "ULAW": 1}[FORMATS[name]]
    assert len(wave) == 3000 - -(-lost // width) and np.array_equal(wave, whole[:len(wave)])
    assert len(told) == 1 and audio_info(path).mismatch in told[0]


@pytest.fixture
def noise(rng):
    return (0.3 * rng.uniform(-1, 1, 5 * SR)).astype(np.float32)


class TestCompressed:
    @pytest.mark.parametrize(("lost", "frames"), [(1, 9), (300, 9), (20_000, 7), (60_000, 1)])
    @pytest.mark.parametrize("unknown", [False, True])
    def test_flac(self, tmp_path, noise, lost, frames, unknown):
        path = tmp_path / "a.flac"
        soundfile.write(path, noise, SR)
        whole = soundfile.read(path, dtype="float32")[0]
        content = bytearray(path.read_bytes()[:-lost])
        if unknown:
            content[21:26] = bytes([content[21] & 0xF0, 0, 0, 0, 0])
        path.write_bytes(content)
        wave, told = read(path)
        # Nine frames of 4096 samples and one of 3136, at 14.2 bits a sample of this noise: 7.3 and 5.6 KB.
        assert len(wave) == 4096 * frames
        assert np.array_equal(wave, whole[:len(wave)]) and len(told) == 1
        message = "declares no length" if unknown else f"declares 40,000 samples, {len(wave):,} are there"
        assert message in told[0]

    def test_flac_of_unknown_length(self, tmp_path, noise):
        path = tmp_path / "a.flac"
        soundfile.write(path, noise, SR)
        content = bytearray(path.read_bytes())
        content[21:26] = bytes([content[21] & 0xF0, 0, 0, 0, 0])
        path.write_bytes(content)
        wave, told = read(path)
        assert len(wave) == 40_000 and len(told) == 1 and "its header declares no length" in told[0]
        np.testing.assert_allclose(wave, noise, atol=1 / 32768, rtol=0)

    def test_ends_of_a_flac_file_are_those_of_its_frames(self, tmp_path, noise):
        path = tmp_path / "a.flac"
        soundfile.write(path, noise, SR)
        with path.open("rb") as file:
            ends = list(flac_ends(file))
        totals = [int.from_bytes(end.header[18:], "big") & (1 << 36) - 1 for end in ends]
        assert totals == [40_000] + [4096 * k for k in range(9, 1, -1)]
        assert ends[0].start + ends[0].length == path.stat().st_size

    def test_flac_damaged_in_the_middle_is_an_error(self, tmp_path, noise):
        path = tmp_path / "a.flac"
        soundfile.write(path, noise, SR)
        content = bytearray(path.read_bytes())
        content[len(content) // 2:len(content) // 2 + 200] = bytes(200)
        path.write_bytes(content)
        for function in (check_audio, load_audio):
            with pytest.raises(AudioError, match="a.flac: the file is damaged"):
                function(path)

    def test_mp3(self, tmp_path, noise):
        path = tmp_path / "a.mp3"
        soundfile.write(path, noise, SR)
        whole = soundfile.read(path, dtype="float32")[0]
        path.write_bytes(path.read_bytes()[:path.stat().st_size * 3 // 5])
        wave, told = read(path)
        assert 0.5 * len(whole) < len(wave) < 0.62 * len(whole)
        np.testing.assert_allclose(wave[:-2000], whole[:len(wave) - 2000], atol=1e-4)
        assert len(told) == 1 and f"declares {len(whole):,} samples, {len(wave):,} are there" in told[0]

    @pytest.mark.parametrize("kind", ["VORBIS", "OPUS"])
    @pytest.mark.parametrize("where", ["between pages", "in a page"])
    def test_ogg_without_its_last_page(self, tmp_path, rng, kind, where):
        path = tmp_path / "a.ogg"
        soundfile.write(path, 0.3 * rng.uniform(-1, 1, 30 * SR), SR, format="OGG", subtype=kind)
        whole = soundfile.read(path, dtype="float32")[0]
        content = path.read_bytes()
        last = content.rindex(b"OggS")
        path.write_bytes(content[:last + (100 if where == "in a page" else 0)])
        wave, told = read(path)
        assert 0.7 * len(whole) < len(wave) < len(whole)
        np.testing.assert_allclose(wave[:-1000], whole[:len(wave) - 1000], atol=1e-4)
        assert len(told) == 1 and "last page" in told[0].lower().replace("ogg ", "")

    def test_an_ogg_without_samples_is_an_error(self, tmp_path, noise):
        path = tmp_path / "a.ogg"
        soundfile.write(path, noise[:2000], SR)
        content = path.read_bytes()
        path.write_bytes(content[:content.rindex(b"OggS")])
        with pytest.raises(AudioError, match=r"a.ogg: the file is cut short \(the last page.*no sample is left"):
            load_audio(path)


def test_the_warning_about_given_bytes_names_no_temporary_file():
    encoded = riff(VALUES.tobytes(), 500)
    with pytest.warns(UserWarning, match="^the given 244 bytes: read to its end at 0.013 s"):
        assert sum(len(block) for block in stream_audio(encoded, SR)) == 100


def test_each_file_is_told_once(tmp_path):
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(riff(VALUES.tobytes(), 500))
    with pytest.warns(UserWarning) as caught:
        for _ in range(3):
            for name in ("a.wav", "b.wav"):
                load_audio(tmp_path / name)
    assert [os.path.basename(str(w.message).split(":")[0]) for w in caught] == ["a.wav", "b.wav"]
