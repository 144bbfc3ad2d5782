"""The web tagger: responses to sounds, and status and message of every upload that it refuses."""

import asyncio
import io
import tempfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from PIL import Image
from starlette.testclient import TestClient
from torch import nn

from fatai.data.config import ClipConfig
from fatai.errors import OptionError
from fatai.inference.events.tagger import SlidingWindowTagger
from fatai.report.media import overview_image
from fatai.web.job_queue import JobQueue
from fatai.web.security import HTTPError, SecurityMiddleware
from fatai.web.tagger_app import page_title, tagger_app
from fatai.web.uploads import Limits, display_name

SR = 44100
LIMITS = Limits(upload_mb=1, sound_s=5, files=3)


class Loud(nn.Module):
    """The logit of "Loud" is high where the mean level is; that of "Never" is always low."""

    def forward(self, spec):
        return torch.stack([6 * (spec.mean((1, 2, 3)) - 0.5), torch.full((len(spec),), -9.0)], 1)


def sound(seconds=2.0, sr=SR, kind="WAV", channels=1, loud=(0.5, 1.0), **options):
    """Bytes of quiet noise with a loud stretch."""
    wave = 0.001 * np.random.default_rng(0).standard_normal((round(seconds * sr), channels))
    wave[round(loud[0] * sr):round(loud[1] * sr)] *= 500
    file = io.BytesIO()
    sf.write(file, wave.clip(-0.9, 0.9), sr, format=kind, **options)
    return file.getvalue()


NOISE = 0.3 * np.random.default_rng(1).uniform(-1, 1, 22050)


@pytest.fixture(scope="module")
def tagger():
    return SlidingWindowTagger([Loud()], ["Loud", "Never"], ClipConfig(crop_s=0.2, trim_db=None))


@pytest.fixture
def client(tagger):
    with TestClient(SecurityMiddleware(tagger_app(tagger, "fatai: test", LIMITS)), "http://127.0.0.1:8000") as client:
        yield client


@pytest.fixture
def temp_folder(tmp_path, monkeypatch):
    """Folder of temporary files of this test; checks that it is empty at the end."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert list(tmp_path.rglob("*")) == []


def upload(client, content, name="a.wav", **options):
    return client.post("/tag", files={"sound": (name, content)}, **options)


def assert_error(response, status, *words):
    assert response.status_code == status, response.text
    message = response.json()["error"]
    assert all(word in message for word in words), message
    return message


def test_the_response_to_a_sound_holds_the_tags_over_time(client, tagger, temp_folder):
    content = sound()
    response = upload(client, content)
    assert response.status_code == 200
    result, = response.json()["sounds"]
    steps = list(tagger.frame_probs(content))
    assert result["file"] == "a.wav" and result["seconds"] == 2.0
    assert result["times"] == [round(s.start_s, 4) for s in steps] + [2.0]
    assert [row["tag"] for row in result["tags"]] == ["Loud", "Never"]
    np.testing.assert_allclose(
        [row["probs"] for row in result["tags"]], np.stack([s.probs for s in steps], 1), atol=5e-5
    )
    loud = [a for a, p in zip(result["times"], result["tags"][0]["probs"], strict=False) if p > 0.5]
    assert min(loud) == pytest.approx(0.5, abs=0.11) and max(loud) == pytest.approx(0.9, abs=0.11)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "AIFF"])
def test_every_format_and_rate_is_accepted(client, kind):
    result, = upload(client, sound(sr=32000, channels=2, kind=kind)).json()["sounds"]
    assert result["seconds"] == pytest.approx(2.0, abs=0.1) and result["picture"].startswith("data:image/png;base64,")


@pytest.mark.parametrize(("wave", "options", "notice"), [
    (np.stack([NOISE, -NOISE], 1), {"subtype": "PCM_16"}, "the 2 channels cancel in their mean"),
    (NOISE, {"subtype": "PCM_U8"}, "coded with 8 bits"), (8 * NOISE, {"subtype": "FLOAT"}, "the floats reach"),
    (0 * NOISE, {"subtype": "PCM_16"}, "silent"),
])
def test_notices_name_the_upload(client, temp_folder, wave, options, notice):
    file = io.BytesIO()
    sf.write(file, wave, SR, format="WAV", **options)
    # A second client may send another sound of this name.
    for _ in range(2):
        with pytest.warns(UserWarning) as caught:
            result, = upload(client, file.getvalue(), "forest.wav").json()["sounds"]
        texts = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
        assert len(texts) == 1 and texts[0].startswith(f"forest.wav: {notice}"), texts
        assert len(result["notices"]) == 1 and result["notices"][0].startswith(notice)
    assert upload(client, sound()).json()["sounds"][0]["notices"] == []


def test_the_channel_of_the_tagger_is_taken(temp_folder):
    left, right = np.zeros_like(NOISE), np.concatenate([NOISE, 0 * NOISE])[11025:33075]
    file = io.BytesIO()
    sf.write(file, np.stack([left, right], 1), SR, format="WAV")
    tagger = SlidingWindowTagger([Loud()], ["Loud", "Never"], ClipConfig(crop_s=0.2, trim_db=None, channel=2))
    with TestClient(SecurityMiddleware(tagger_app(tagger, "t", LIMITS)), "http://localhost") as client:
        result, = upload(client, file.getvalue()).json()["sounds"]
    assert not result["silent"]
    probs = [step.probs[0] for step in tagger.frame_probs(file.getvalue())]
    assert result["tags"][0]["probs"] == pytest.approx(probs, abs=1e-4)


def test_several_sounds_are_returned_in_order_with_the_errors_of_bad_ones(client, temp_folder):
    files = [("f", ("a.wav", sound(1))), ("f", ("b.wav", b"no sound at all")), ("f", ("c.wav", sound(0.5)))]
    sounds = client.post("/tag", files=files).json()["sounds"]
    assert [s["file"] for s in sounds] == ["a.wav", "b.wav", "c.wav"] and [s.get("seconds") for s in sounds] == [
        1.0,
        None,
        0.5,
    ]
    assert "b.wav" in sounds[1]["error"] and sounds[1]["status"] == 415


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.wav", bytes(10_000_000))
    return file.getvalue()


def declare_seconds(seconds, kind="WAV", sr=SR):
    """Return a file whose header declares more samples than it holds."""
    content = bytearray(sound(1, sr=sr, kind=kind))
    if kind == "WAV":
        start = content.index(b"data")
        content[start + 4:start + 8] = (2 * sr * seconds).to_bytes(4, "little")
    else:  # 36 bits for the number of samples, the last of bytes 21 to 25
        content[22:26] = (sr * seconds).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize(("content", "status", "words"), [
    (b"", 422, ["empty"]),
    (b"just words\n", 415, ["text", "not sound"]),
    (zipped(), 415, ["zip archive"]),
    (b"\x89PNG\r\n\x1a\n" + bytes(100), 415, ["PNG"]),
    (bytes(1000), 415, ["no header of a known sound format"]),
    (sound()[:30], 422, ["header"]),
    (b"RIFF\xff\xff\xff\xffWAVEfmt \xff\xff\xff\xff" + bytes(100), 422, ["ends inside its header"]),
    (b"RIFF$\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x44\xac\0\0\x88X\1\0\2\0\x10\0data\0\0\0\0", 422, ["no samples"]),
    (sound(0.1, sr=44100, subtype="FLOAT").replace(b"\0\0\0\0", b"\0\0\xc0\x7f")[:44] + b"\0\0\xc0\x7f" * 100, 422, []),
    (sound(6), 422, ["6.0 s long", "at most 5 s"]),
    (sound(6, sr=8000, kind="OGG"), 422, ["6.0 s long"]),
])
def test_bad_sounds_are_refused_with_the_reason(
    client, temp_folder, content, status, words
):
    message = assert_error(upload(client, content, "walk.wav"), status, "walk.wav", *words)
    assert str(temp_folder) not in message
    assert upload(client, sound(0.3)).status_code == 200


@pytest.mark.parametrize("content", [sound()[:44 + 2 * SR], declare_seconds(7200), declare_seconds(7200, "FLAC")])
def test_of_a_sound_shorter_than_its_header_declares_the_rest_is_tagged(client, content):
    with pytest.warns(UserWarning, match="read to its end at 1.000 s"):
        response = upload(client, content, "walk.wav")
    assert response.status_code == 200 and response.json()["sounds"][0]["seconds"] == 1.0


def test_many_channels_at_a_high_rate_count_as_longer(client):
    file = io.BytesIO()
    sf.write(file, np.zeros((450_000, 8)), 96000, format="FLAC")
    assert_error(upload(client, file.getvalue()), 422, "4.7 s long", "8 channels of 96,000 Hz")


def test_two_hours_of_silence_in_a_small_file_are_refused_before_they_are_decoded(tagger):
    file = io.BytesIO()
    with sf.SoundFile(file, "w", 8000, 1, format="FLAC") as out:
        for _ in range(720):
            out.write(np.zeros(80_000, np.float32))
    with TestClient(SecurityMiddleware(tagger_app(tagger, "t", Limits())), "http://localhost") as client:
        began = time.monotonic()
        assert_error(upload(client, file.getvalue()), 422, "7,200.0 s long", "at most 600 s")
    assert len(file.getvalue()) < 1_000_000 and time.monotonic() - began < 2


@pytest.mark.parametrize(
    "name",
    [
        "../../../../tmp/evil.wav",
        "..\\..\\evil.wav",
        "/etc/passwd",
        "C:\\Windows\\evil.wav",
        "evil\x00.wav",
        "a" * 5000 + ".wav",
        "..",
        "",
        "<img src=x onerror=alert(1)>.wav",
        "\u202egnp.wav",
        "nul\r\nSet-Cookie: a=b.wav",
    ],
)
def test_no_name_of_an_upload_becomes_a_path(client, temp_folder, name):
    response = upload(client, sound(0.3), name)
    if response.status_code == 200:
        told = response.json()["sounds"][0]["file"]
        assert 0 < len(told) <= 120 and "/" not in told and "\\" not in told and told.isprintable() and told != ".."
    else:
        assert_error(response, 422)


def test_display_names():
    assert (
        display_name("a/b\\c d.wav") == "c d.wav"
        and display_name("\u202ewav.exe") == "wav.exe"
        and display_name(" . ") == "sound"
    )
    assert display_name("x" * 200 + ".wav") == "x" * 116 + ".wav"


def test_a_too_large_upload_is_refused_with_its_size(client, temp_folder):
    assert_error(upload(client, bytes(1_100_000)), 413, "1.1 MB", "at most 1 MB")


def test_an_endless_upload_is_aborted(tagger, temp_folder):
    read, messages = [], []

    async def endless():
        read.append(100_000)
        start = b'--b\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\n' if len(read) == 1 else b""
        return {"type": "http.request", "body": start + bytes(100_000), "more_body": True}

    async def send(message):
        messages.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/tag",
        "raw_path": b"/tag",
        "query_string": b"",
        "scheme": "http",
        "http_version": "1.1",
        "root_path": "",
        "headers": [(b"host", b"localhost"), (b"content-type", b"multipart/form-data; boundary=b")],
        "client": ("127.0.0.1", 5),
        "server": ("127.0.0.1", 80),
    }
    asyncio.run(SecurityMiddleware(tagger_app(tagger, "t", LIMITS))(scope, endless, send))
    assert messages[0]["status"] == 413 and b"at most 1 MB" in messages[1]["body"]
    assert sum(read) == 4_000_000


def test_too_many_files_are_refused(client, temp_folder):
    for n in (4, 40):
        assert_error(
            client.post("/tag", files=[("f", (f"{k}.wav", sound(0.1))) for k in range(n)]), 413, "more than 3 files"
        )


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ({"content": sound(0.1), "headers": {"content-type": "audio/wav"}}, 415, ["audio/wav", "multipart/form-data"]),
        ({"content": b"x"}, 415, ["unknown"]),
        ({"data": {"a": "b"}}, 415, ["multipart/form-data"]),
        (
            {"content": b"--x\r\nrubbish", "headers": {"content-type": "multipart/form-data; boundary=x"}},
            422,
            ["no complete file"],
        ),
        ({"content": b"rubbish", "headers": {"content-type": "multipart/form-data"}}, 422, ["boundary"]),
        (
            {"content": b"--x--\r\n", "headers": {"content-type": "multipart/form-data; boundary=x"}},
            422,
            ["no complete file"],
        ),
        (
            {
                "content": b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x--\r\n',
                "headers": {"content-type": "multipart/form-data; boundary=x"},
            },
            422,
            ["no complete file"],
        ),
    ],
)
def test_bodies_that_are_not_uploads_are_refused(client, temp_folder, options, status, words):
    assert_error(client.post("/tag", **options), status, *words)


def test_the_page_loads_only_files_of_the_server(client):
    shown = client.get("/").text
    assert "fatai: test" in shown and 'data-max-bytes="1000000"' in shown
    assert "://" not in shown
    for name in ("common.css", "common.js", "tagger.css", "tagger.js", "tag_on_server.js"):
        file = client.get(f"/{name}")
        kind = "text/css" if name.endswith("css") else "text/javascript"
        assert f'"{name}"' in shown and file.status_code == 200 and file.headers["content-type"].startswith(kind)
        assert "https://" not in file.text
    assert "script-src 'self'" in client.get("/").headers["content-security-policy"]


def test_health_and_unknown_addresses(client):
    upload(client, sound(0.1))
    assert client.get("/health").json() == {"status": "ok", "waiting": 0, "max_waiting": 96, "done": 1, "tags": 2}
    assert_error(client.get("/../../etc/passwd"), 404, "no such page")
    assert_error(client.get("/tag"), 405, "GET")


def test_the_name_of_a_run_is_escaped(tagger):
    shown = TestClient(tagger_app(tagger, page_title("runs/<script>alert(1)")), "http://localhost").get("/").text
    assert "<script>alert" not in shown and "script&gt;alert(1)" in shown


def test_nothing_is_written_into_the_current_folder(tagger, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tagger_app(tagger, "t")
    assert list(tmp_path.iterdir()) == []


def test_a_full_queue_is_503_and_too_many_uploads_of_a_client_429():
    queue = JobQueue(3, 2)
    with queue.slot("a"), queue.slot("a"):
        with pytest.raises(HTTPError, match="2 of your uploads") as caught, queue.slot("a"):
            pass
        assert caught.value.status == 429
        with queue.slot("b"):
            with pytest.raises(HTTPError, match="busy with 3 uploads") as caught, queue.slot("c"):
                pass
            assert caught.value.status == 503 and caught.value.response().headers["retry-after"] == "5"
    assert queue.n_waiting == 0
    queue.close()


def test_the_queue_runs_one_job_at_a_time_and_none_of_disconnected_clients():
    queue, started, go, order = JobQueue(9, 9), threading.Event(), threading.Event(), []

    def first():
        started.set()
        go.wait(5)
        order.append(1)
        return "done"

    async def stays():
        return False

    async def goes():
        return True

    async def both():
        busy = asyncio.create_task(queue.run(first, stays))
        await asyncio.to_thread(started.wait, 5)
        with pytest.raises(HTTPError, match="closed the connection"):
            await queue.run(lambda: order.append(2), goes)
        go.set()
        return await busy

    assert asyncio.run(both()) == "done"
    queue.close()
    assert order == [1]


def test_an_error_of_the_tagger_is_500_and_the_server_continues(temp_folder):
    class Broken(nn.Module):
        def forward(self, spec):
            raise RuntimeError("a secret of the machine")

    app = SecurityMiddleware(tagger_app(SlidingWindowTagger([Broken()], ["A"], ClipConfig(crop_s=0.2)), "t", LIMITS))
    with TestClient(app, "http://localhost", raise_server_exceptions=False) as client:
        for _ in range(2):
            message = assert_error(upload(client, sound(0.3)), 500, "the server failed")
            assert "secret" not in message
        assert client.get("/health").json()["waiting"] == 0


def test_a_slow_upload_is_aborted(tagger, temp_folder):
    async def body():
        yield b"--x\r\n"
        await asyncio.sleep(30)

    async def ask():
        import httpx

        app = SecurityMiddleware(tagger_app(tagger, "t", Limits(receive_s=0.2)))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.post(
                "/tag", content=body(), headers={"content-type": "multipart/form-data; boundary=x"}
            )

    assert_error(asyncio.run(ask()), 408, "0.2 seconds")


def test_limits_are_checked():
    with pytest.raises(OptionError, match="sound_s is 0"):
        Limits(sound_s=0)


def pixels(picture):
    import base64

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.uri.partition(",")[2]))).convert("L")).astype(
        float
    )


def test_the_spectrogram_of_a_recording_shows_a_tone_at_its_time_and_frequency():
    wave = torch.zeros(4 * SR)
    wave[2 * SR:3 * SR] = torch.sin(2 * torch.pi * 1000 * torch.arange(SR) / SR)
    image = overview_image(wave, SR)
    levels = pixels(image)
    row, column = levels.sum(1).argmax(), levels.sum(0)
    height = dict(image.ticks)[1000]
    assert abs((len(levels) - row - 0.5) / len(levels) - height) < 0.02
    loud = np.flatnonzero(column > column.max() / 2) / len(column)
    assert loud.min() == pytest.approx(0.5, abs=0.01) and loud.max() == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize("samples", [1, 500, 44100, 3_000_000])
def test_the_spectrogram_of_a_recording_has_bounded_size(samples):
    levels = pixels(overview_image(torch.rand(samples) - 0.5, SR))
    assert levels.shape[0] == 96 and 1 <= levels.shape[1] <= 1000


def test_the_spectrogram_in_blocks_is_that_of_the_whole(monkeypatch):
    wave = torch.rand(200_000) - 0.5
    whole = overview_image(wave, SR)
    monkeypatch.setattr("fatai.report.media._FRAMES_AT_ONCE", 37)
    assert np.abs(pixels(overview_image(wave, SR)) - pixels(whole)).max() <= 1


def test_the_folder_of_temporary_files_is_that_of_the_test(temp_folder):
    assert Path(tempfile.gettempdir()) == temp_folder
