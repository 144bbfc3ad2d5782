"""Fifty uploads at once, half of them hostile: good ones are tagged, others refused, and memory stays bounded."""

import gzip
import io
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests
import soundfile as sf
from helpers.browser import serving

pytestmark = pytest.mark.slow

MAX_BYTES = 1.5e9


def wav(seconds, sr=44100, channels=1, kind="WAV"):
    file = io.BytesIO()
    wave = 0.3 * np.random.default_rng(0).standard_normal((round(seconds * sr), channels))
    sf.write(file, wave.clip(-1, 1).astype(np.float32), sr, format=kind)
    return file.getvalue()


def silence(seconds, sr, channels, kind="FLAC"):
    file = io.BytesIO()
    with sf.SoundFile(file, "w", sr, channels, format=kind) as out:
        for _ in range(seconds // 10):
            out.write(np.zeros((10 * sr, channels), np.float32))
    return file.getvalue()


def zip_bomb():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for k in range(10):
            archive.writestr(f"../../{k}.wav", bytes(10_000_000))
    return file.getvalue()


def patch(content, start, value):
    return content[:start] + value + content[start + len(value):]


def hostile():
    """(name, bytes, status) of uploads that must not harm the server: refused, or read as far as there is sound."""
    short, flac = wav(1), wav(1, kind="FLAC")
    two_hours = (2 * 44100 * 7200).to_bytes(4, "little")
    # A length in a header is a hint: these three hold one second of sound, and that is what is tagged.
    yield "claims two hours.wav", patch(short, short.index(b"data") + 4, two_hours), 200
    yield "claims two hours.flac", patch(flac, 22, (44100 * 7200).to_bytes(4, "big")), 200
    yield "claims 4 GB.wav", patch(short, short.index(b"data") + 4, b"\xfe\xff\xff\xff"), 200
    yield "claims a huge header.wav", patch(short, 16, b"\xff\xff\xff\x7f"), 422
    yield "claims 65535 channels.wav", patch(short, 22, b"\xff\xff"), 422
    yield "claims 4 GHz.wav", patch(short, 24, b"\xff\xff\xff\xff"), 422
    yield "is two hours of silence.flac", silence(7200, 8000, 1), 422
    yield "is eight silent channels.flac", silence(590, 96000, 8), 422
    yield "is too large.wav", bytes(40_000_000), 413
    yield "bomb.zip", zip_bomb(), 415
    yield "bomb.wav.gz", gzip.compress(bytes(50_000_000)), 415
    yield "picture.wav", b"\x89PNG\r\n\x1a\n" + bytes(10_000), 415
    yield "page.wav", b"<!DOCTYPE html><script>alert(1)</script>", 415
    yield "noise.wav", b"\1" + np.random.default_rng(1).bytes(100_000), 415
    yield "empty.wav", b"", 422
    yield "cut.wav", short[:5000], 200  # the sound before the cut is tagged
    yield "cut.ogg", wav(1, kind="OGG")[:5000], 422
    yield "nan.wav", float_wav(np.full(1000, np.nan, np.float32)), 422


def float_wav(samples):
    data = samples.tobytes()
    head = b"fmt \x10\0\0\0\3\0\1\0" + (44100).to_bytes(4, "little") + (4 * 44100).to_bytes(4, "little") + b"\4\0\x20\0"
    body = b"WAVE" + head + b"data" + len(data).to_bytes(4, "little") + data
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def valid():
    """(name, bytes, status) of uploads that must be tagged."""
    for k in range(20):
        yield f"good {k}.wav", wav(0.5 + k / 4), 200
    yield "../../../../tmp/up and away.wav", wav(1), 200
    yield "..\\..\\windows.wav", wav(1, kind="FLAC"), 200
    yield "/etc/passwd", wav(1, kind="MP3"), 200
    for k in range(5):
        yield f"long {k}.wav", wav(180, sr=16000 if k else 44100, channels=1 + k % 2), 200
    yield "one sample.wav", wav(1 / 44100), 200


class MemoryMonitor(threading.Thread):
    """Record the peak memory of a process."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.process, self.peak, self.stop = psutil.Process(pid), 0, threading.Event()

    def run(self):
        while not self.stop.wait(0.02):
            self.peak = max(self.peak, self.process.memory_info().rss)


def test_fifty_uploads_at_once(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    bad = [*hostile(), *[(f"words {k}.wav", b"not a sound", 415) for k in range(3)]]
    good = list(valid())
    jobs = [job for pair in zip(bad, good, strict=False) for job in pair] + good[len(bad):]
    assert len(jobs) == 50
    with serving("serve", tiny_run.out) as (process, address):
        monitor = MemoryMonitor(process.pid)
        monitor.start()

        def send(job):
            name, content, _ = job
            return requests.post(f"{address}tag", files={"sound": (name, content)}, timeout=300)

        start = time.monotonic()
        with ThreadPoolExecutor(50) as pool:
            responses = pool.map(send, jobs)
            seen = 0
            while seen < 20:  # the server still responds to others while it works
                health = requests.get(f"{address}health", timeout=15).json()
                seen += 1
                time.sleep(0.05)
            responses = list(responses)
        seconds = time.monotonic() - start
        monitor.stop.set()
        assert health["status"] == "ok"
        for (name, _, status), response in zip(jobs, responses, strict=True):
            assert response.status_code == status, (name, response.text[:300])
            if status == 200:
                sound, = response.json()["sounds"]
                assert sound["file"] == name.replace("\\", "/").split("/")[-1] and len(sound["tags"]) == 10
            else:
                message = response.json()["error"]
                assert 20 < len(message) < 400 and str(tmp_path) not in message and "\n" not in message, message
        assert requests.get(f"{address}health", timeout=5).json() == {**health, "waiting": 0, "done": 50}
        assert process.poll() is None
        assert monitor.peak < MAX_BYTES, f"{monitor.peak / 1e9:.2f} GB"
        left = [path for path in tmp_path.rglob("*") if path.name.startswith("fatai-")]
        assert left == []
    print(f"50 uploads in {seconds:.1f} s, at most {monitor.peak / 1e6:.0f} MB")
    assert not Path("/tmp/up and away.wav").exists()
