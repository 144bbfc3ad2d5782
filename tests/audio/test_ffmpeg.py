"""Sounds that libsndfile cannot decode: by the real ffmpeg if there is one, and by a stand-in that records its call."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from fatai.audio import ffmpeg
from fatai.audio.io import audio_info, check_audio, load_audio
from fatai.audio.stream import stream_audio
from fatai.errors import AudioError

SR = 44100
M4A = b"\0\0\0\x20ftypM4A \0\0\2\0" + bytes(64)
needs_ffmpeg = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")
# Arguments of an encoder for each suffix, and the largest difference of a sample from the original.
CODINGS = {
    "m4a": (["-c:a", "alac"], 2e-4), "wv": (["-c:a", "wavpack"], 2e-4), "tta": (["-c:a", "tta"], 2e-4),
    "aac": (["-c:a", "aac", "-b:a", "192k"], 0.1), "mka": (["-c:a", "pcm_s16le"], 2e-4),
    "webm": (["-c:a", "libopus", "-b:a", "192k"], 0.1), "wma": (["-c:a", "wmav2", "-b:a", "192k"], 0.1),
    "mp4": (["-c:a", "aac", "-b:a", "192k"], 0.1), "3gp": (["-c:a", "aac", "-b:a", "192k"], 0.1),
    "spx": (["-c:a", "libspeex", "-ar", "16000", "-q:a", "10"], None),
    "caf": (["-c:a", "adpcm_ima_qt"], 0.1), "g726.wav": (["-c:a", "g726", "-ar", "8000", "-b:a", "40k"], None),
}


@pytest.fixture
def no_ffmpeg(monkeypatch, tmp_path):
    (tmp_path / "empty_path").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty_path"))


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """A function that puts a program called ffmpeg on the PATH, which writes its arguments to a file and runs code."""

    def made(code):
        folder = tmp_path / "bin"
        folder.mkdir()
        program = folder / "ffmpeg"
        log = tmp_path / "arguments"
        program.write_text(
            f"#!{sys.executable}\nimport os, sys, time\n"
            f"open({str(log)!r}, 'w').write('\\n'.join([*sys.argv[1:], 'stdin=' + repr(sys.stdin.read())]))\n{code}\n"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        return log

    return made


def tone(path, seconds=1.0):
    """Write a second of two tones and return them, (samples,)."""
    t = np.arange(round(SR * seconds)) / SR
    wave = (0.3 * np.sin(2 * np.pi * 440 * t) + 0.2 * np.sin(2 * np.pi * 1000 * t)).astype(np.float32)
    soundfile.write(path, wave, SR, subtype="PCM_16")
    return wave


@pytest.fixture
def coded(tmp_path):
    """A function that encodes two tones under a suffix with ffmpeg; it returns the path and the tones."""

    def made(suffix, seconds=1.0):
        wave, path = tone(tmp_path / "plain.wav", seconds), tmp_path / f"a.{suffix}"
        command = ["ffmpeg", "-v", "error", "-y", "-i", str(tmp_path / "plain.wav"), *CODINGS[suffix][0], str(path)]
        if subprocess.run(command, check=False).returncode:
            pytest.skip(f"this ffmpeg cannot write .{suffix}")
        return path, wave

    return made


@needs_ffmpeg
@pytest.mark.parametrize("suffix", CODINGS)
def test_every_coding_gives_the_sound_that_was_encoded(coded, suffix):
    path, wave = coded(suffix)
    if path.suffix in (".aac", ".caf", ".spx", ".wav", ".webm", ".wma", ".3gp", ".mp4"):  # with a delay of the encoder
        decoded = load_audio(path, SR).numpy()
        assert len(decoded) == pytest.approx(SR, abs=0.12 * SR)
        spectrum = np.abs(np.fft.rfft(decoded[8000:8000 + 22050]))
        assert set(np.argsort(spectrum)[-2:] * 2) == {440, 1000}
    else:
        decoded = load_audio(path, SR).numpy()
        assert len(decoded) == len(wave)
        assert np.abs(decoded - wave).max() < CODINGS[suffix][1]
    check_audio(path)
    assert audio_info(path).format != "WAV"


@needs_ffmpeg
def test_a_section_and_a_stream_are_parts_of_the_whole(coded):
    path, wave = coded("m4a", 3.0)
    section = load_audio(path, SR, offset_s=1.25, duration_s=0.5).numpy()
    assert len(section) == SR // 2 and np.abs(section - wave[55125:77175]).max() < 2e-4
    assert np.array_equal(np.concatenate(list(stream_audio(path, SR))), load_audio(path, SR).numpy())
    assert list(stream_audio(path.read_bytes(), SR))[0].shape == load_audio(path, SR).shape
    with pytest.raises(AudioError, match=r"the file is 3.000 s long"):
        load_audio(path, SR, offset_s=4)


@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["mka", "wv"])
def test_a_cut_file_is_read_to_where_it_ends(coded, suffix):
    path, wave = coded(suffix, 4.0)
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    with pytest.warns(UserWarning) if suffix == "mka" else pytest.MonkeyPatch.context():
        decoded = load_audio(path, SR).numpy()
    assert 0.3 * len(wave) < len(decoded) < 0.6 * len(wave)
    assert np.abs(decoded - wave[:len(decoded)]).max() < 2e-4


@needs_ffmpeg
@pytest.mark.parametrize("content", [M4A, b"\x1aE\xdf\xa3" + bytes(99), b"wvpk" + bytes(99)])
def test_what_ffmpeg_cannot_decode_is_an_error_with_its_reason(tmp_path, content):
    (tmp_path / "a.m4a").write_bytes(content)
    with pytest.raises(AudioError, match=r"a.m4a: this is .*, and ffmpeg cannot decode it \(.+\); download") as caught:
        load_audio(tmp_path / "a.m4a")
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("content", [
    b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/secret\n", b"ffconcat version 1.0\nfile /etc/passwd\n",
    b"<?xml version='1.0'?><MPD></MPD>", b"[playlist]\nFile1=/etc/passwd\n", b"v=0\no=- 0 0 IN IP4 127.0.0.1\n",
])
@pytest.mark.parametrize("suffix", ["m4a", "webm", "wav", "m3u8"])
def test_a_playlist_is_never_handed_over(tmp_path, fake, content, suffix):
    log = fake("")
    (tmp_path / f"a.{suffix}").write_bytes(content)
    with pytest.raises(AudioError, match="text"):
        load_audio(tmp_path / f"a.{suffix}")
    assert not log.exists()


def test_the_call_is_bounded_and_has_no_network(tmp_path, fake):
    tone(tmp_path / "plain.wav")
    log = fake(f"os.write(1, open({str(tmp_path / 'plain.wav')!r}, 'rb').read())")
    name = "-i http;$(touch x).m4a"
    (tmp_path / name).write_bytes(M4A)
    assert len(load_audio(tmp_path / name)) == SR
    arguments = log.read_text().split("\n")
    after = dict(zip(arguments, arguments[1:], strict=False))
    assert after["-protocol_whitelist"] == "file,pipe" and after["-i"] == f"file:{tmp_path / name}"
    assert arguments.index("-protocol_whitelist") < arguments.index("-i") and after["-f"] == "wav"
    assert arguments[arguments.index("-i") - 2:arguments.index("-i")] == ["-f", "mov"]
    assert "-nostdin" in arguments and arguments[-1] == "stdin=''" and float(after["-t"]) <= 86400
    assert int(after["-fs"]) <= 1 << 32 and not (tmp_path / "x").exists()


def test_a_program_that_never_ends_is_killed(tmp_path, fake, monkeypatch):
    fake("time.sleep(60)")
    monkeypatch.setattr(ffmpeg, "_TIMEOUT_S", 0.3)
    (tmp_path / "a.m4a").write_bytes(M4A)
    with pytest.raises(AudioError, match="did not decode it within 0.3 s; convert"):
        load_audio(tmp_path / "a.m4a")


def test_a_sound_beyond_the_limit_is_refused_and_not_cut(tmp_path, fake, monkeypatch):
    tone(tmp_path / "plain.wav")
    fake(f"os.write(1, open({str(tmp_path / 'plain.wav')!r}, 'rb').read())")
    monkeypatch.setattr(ffmpeg, "_MAX_SECONDS", 1)
    (tmp_path / "a.m4a").write_bytes(M4A)
    with pytest.raises(AudioError, match="too much to be decoded by ffmpeg.*a.flac"):
        load_audio(tmp_path / "a.m4a")


def test_the_reason_is_the_last_line_of_the_program(tmp_path, fake):
    fake("sys.stderr.write('first\\nmoov atom not found\\n'); sys.exit(1)")
    (tmp_path / "a.m4a").write_bytes(M4A)
    with pytest.raises(AudioError, match=r"cannot decode it \(moov atom not found\); download"):
        load_audio(tmp_path / "a.m4a")


@pytest.mark.parametrize(("content", "kind"), [
    (M4A, "MPEG-4"), (b"\x1aE\xdf\xa3" + bytes(64), "Matroska or WebM"), (b"\xff\xf1\x50\x80" + bytes(64), "AAC"),
    (b"ID3\4\0\0\0\0\0\4abcd\xff\xf9" + bytes(64), "AAC"), (b"0&\xb2u\x8ef\xcf\x11\xa6\xd9" + bytes(64), "Windows"),
    (b"RIFF\0\0\0\0WAVEfmt \x12\0\0\0\x61\1" + bytes(64), "0x0161"),
    (b"caff\0\1\0\0desc" + bytes(16) + b"aac " + bytes(64), "'aac '"),
])
def test_without_ffmpeg_an_error_says_how_to_convert(tmp_path, no_ffmpeg, content, kind):
    path = tmp_path / "my a.m4a"
    path.write_bytes(content)
    for read in (load_audio, audio_info, check_audio, lambda p: list(stream_audio(p, SR))):
        with pytest.raises(AudioError) as caught:
            read(path)
        assert kind in str(caught.value)
        assert str(caught.value).endswith("convert it, e.g. `ffmpeg -i 'my a.m4a' 'my a.wav'`, or install ffmpeg")


def test_a_program_in_the_current_folder_is_not_run(tmp_path, monkeypatch):
    (tmp_path / "ffmpeg").write_text("#!/bin/sh\nexit 1\n")
    os.chmod(tmp_path / "ffmpeg", 0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", ".")
    assert ffmpeg.ffmpeg_path() is None
