"""Sounds at addresses of fsspec, read in ranges of bytes."""

import io
import warnings

import fsspec
import numpy as np
import pytest
import soundfile
import torch

from fatai.audio import remote
from fatai.audio.io import audio_info, check_audio, load_audio
from fatai.audio.stream import stream_audio
from fatai.errors import AudioError

SR, SECONDS = 32_000, 120
SECTION = {"offset_s": 80, "duration_s": 10}


def encoded(format_, channels=1, seconds=SECONDS):
    """Return noise, encoded."""
    wave = np.random.default_rng(0).normal(0, 0.1, (SR * seconds, channels)).astype(np.float32).clip(-1, 1)
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", SR, channels, format=format_) as sound:
        for start in range(0, len(wave), 1 << 16):
            sound.write(wave[start:start + (1 << 16)])
    return file.getvalue()


@pytest.fixture(scope="module")
def long_wav():
    """7.7 MB."""
    return encoded("WAV")


@pytest.fixture
def web(server, monkeypatch):
    """A web server whose files `fsspec` reads, and no notices or copies of other tests."""
    pytest.importorskip("aiohttp", reason="fsspec reads http by aiohttp")
    monkeypatch.setattr(remote, "_notified", set())
    remote._copied.cache_clear()
    yield server
    remote._copied.cache_clear()


@pytest.mark.parametrize("format_", ["WAV", "FLAC", "OGG"])
def test_a_section_of_a_long_file_fetches_a_part_of_it(web, tmp_path, monkeypatch, format_):
    monkeypatch.setattr(remote, "_BLOCK", 1 << 14)
    monkeypatch.setattr(remote, "_WHOLE", 1 << 15)
    content = encoded(format_)
    path = tmp_path / f"local.{format_.lower()}"
    path.write_bytes(content)
    web.files[path.name] = content
    url = f"{web.url}{path.name}"
    found = load_audio(url, SR, **SECTION)
    torch.testing.assert_close(found, load_audio(path, SR, **SECTION), atol=0, rtol=0)
    assert web.n_sent < len(content) / 2
    torch.testing.assert_close(load_audio(f"{url}#t=80,90", SR), found, atol=0, rtol=0)
    info = audio_info(url)
    assert (info.path, info.samples, info.sr) == (url, SR * SECONDS, SR)


def test_a_section_of_wav_fetches_its_own_bytes_and_the_header(web, long_wav):
    web.files["long.wav"] = long_wav
    load_audio(f"{web.url}long.wav", SR, **SECTION)
    assert web.n_sent <= 3 << 20  # of 7.7 MB: blocks of 1 MiB for the header and 640 kB of samples
    assert all(wanted and wanted.startswith("bytes=") for _, wanted in web.requests)


def test_a_stream_of_a_url_is_that_of_the_file_in_bounded_memory(web, long_wav, tmp_path, monkeypatch):
    web.files["long.wav"] = long_wav
    (tmp_path / "local.wav").write_bytes(long_wav)
    monkeypatch.setattr(remote, "_N_BLOCKS", 2)
    caches, open_ranges = [], remote._open_ranges

    def opened(url):
        file, size = open_ranges(url)
        caches.append(file.cache)  # the closed file has none
        return file, size

    monkeypatch.setattr(remote, "_open_ranges", opened)
    blocks = zip(stream_audio(f"{web.url}long.wav", SR), stream_audio(tmp_path / "local.wav", SR), strict=True)
    assert all(torch.equal(a, b) for a, b in blocks)
    (cache,) = caches
    assert len(long_wav) <= web.n_sent <= 1.2 * len(long_wav)
    assert cache.cache_info().currsize <= 2 < len(long_wav) >> 20


def test_memory_addresses_and_stereo_are_read_like_files(tmp_path):
    content = encoded("FLAC", channels=2, seconds=20)
    path = tmp_path / "stereo.flac"
    path.write_bytes(content)
    fsspec.filesystem("memory").pipe_file("/ranges/stereo.flac", content)
    url = "memory://ranges/stereo.flac"
    check_audio(url)
    for channel in ("auto", "each", 2):
        assert torch.equal(load_audio(url, 16_000, channel=channel), load_audio(path, 16_000, channel=channel))


@pytest.mark.parametrize("is_said", [False, True])
def test_a_server_without_ranges_gives_a_whole_copy_once_with_a_notice(web, long_wav, monkeypatch, is_said):
    web.files["long.wav"], web.ranges = long_wav, False
    if is_said:
        monkeypatch.setattr(web, "accept_ranges", "none")
    url = f"{web.url}long.wav"
    with pytest.warns(UserWarning, match="copied whole to a temporary file"):
        first = load_audio(url, SR, **SECTION)
    folder = remote._copied(url).path.parent
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = load_audio(url, SR, offset_s=90, duration_s=10)
    wanted = torch.from_numpy(soundfile.read(io.BytesIO(long_wav), dtype="float32")[0][80 * SR:100 * SR])
    assert torch.equal(torch.cat([first, second]), wanted)
    assert [wanted for _, wanted in web.requests].count(None) == 1
    remote._copied.cache_clear()
    assert not folder.exists()


def test_a_whole_copy_is_bounded(web, long_wav, monkeypatch):
    web.files["long.wav"], web.ranges = long_wav, False
    monkeypatch.setattr(remote, "MAX_COPY", 4 << 20)
    with pytest.warns(UserWarning, match="copied whole"), pytest.raises(AudioError, match="at most 4,194,304 bytes"):
        load_audio(f"{web.url}long.wav", SR, **SECTION)


def test_a_broken_connection_is_not_taken_for_a_short_file(web, long_wav, monkeypatch):
    web.files["long.wav"] = long_wav
    reads = remote.RemoteFile._read

    def read(self, start, stop):
        if start > len(long_wav) // 2:
            web.files.clear()
        return reads(self, start, stop)

    monkeypatch.setattr(remote.RemoteFile, "_read", read)
    with pytest.raises(AudioError, match="long.wav cannot be read"):
        for _ in stream_audio(f"{web.url}long.wav", SR):
            pass


@pytest.mark.parametrize(("url", "reason"), [
    ("memory://ranges/none.wav", "there is no such file"),
    ("nope://x.wav", "nope"),
    ("memory://ranges/empty.wav", "is empty"),
    ("memory://ranges/text.wav", "this is text"),
])
def test_what_cannot_be_read_is_named_with_the_reason(url, reason):
    files = fsspec.filesystem("memory")
    files.pipe_file("/ranges/empty.wav", b"")
    files.pipe_file("/ranges/text.wav", b"words, not sound")
    with pytest.raises(AudioError, match=reason) as caught:
        load_audio(url)
    assert url in str(caught.value)
