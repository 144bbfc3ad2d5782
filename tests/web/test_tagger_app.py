"""The web tagger: what it answers to sounds, and the sentence and status of every upload that it refuses."""

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
from fatai.report.whole_picture import whole_picture
from fatai.web.security import Guard, HTTPError
from fatai.web.job_queue import JobQueue
from fatai.web.tagger_app import named, tagger_app
from fatai.web.uploads import Limits, shown_name

SR = 44100
LIMITS = Limits(upload_mb=1, sound_s=5, files=3)


class Loud(nn.Module):
    """The logit of "Loud" is high where the mean level is; "Never" is not heard."""

    def forward(self, spec):
        return torch.stack([6 * (spec.mean((1, 2, 3)) - 0.5), torch.full((len(spec),), -9.0)], 1)


def sound(seconds=2.0, sr=SR, kind="WAV", channels=1, loud=(0.5, 1.0), **options):
    """Bytes of quiet noise with a loud stretch."""
    wave = 0.001 * np.random.default_rng(0).standard_normal((round(seconds * sr), channels))
    wave[round(loud[0] * sr):round(loud[1] * sr)] *= 500
    file = io.BytesIO()
    sf.write(file, wave.clip(-0.9, 0.9), sr, format=kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def tagger():
    return SlidingWindowTagger([Loud()], ["Loud", "Never"], ClipConfig(crop_s=0.2, trim_db=None))


@pytest.fixture
def client(tagger):
    with TestClient(Guard(tagger_app(tagger, "fatai: test", LIMITS)), "http://127.0.0.1:8000") as asking:
        yield asking


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """The folder of temporary files, for this test alone; at its end it has to be empty."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert list(tmp_path.rglob("*")) == []


def upload(client, content, name="a.wav", **options):
    return client.post("/tag", files={"sound": (name, content)}, **options)


def refused(response, status, *words):
    assert response.status_code == status, response.text
    sentence = response.json()["error"]
    assert all(word in sentence for word in words), sentence
    return sentence


def test_a_sound_is_answered_with_what_the_tagger_hears_in_it(client, tagger, own_folder):
    content = sound()
    response = upload(client, content)
    assert response.status_code == 200
    heard, = response.json()["sounds"]
    steps = list(tagger.steps(content))
    assert heard["file"] == "a.wav" and heard["seconds"] == 2.0
    assert heard["times"] == [round(s.start_s, 4) for s in steps] + [2.0]
    assert [row["tag"] for row in heard["tags"]] == ["Loud", "Never"]
    np.testing.assert_allclose(
        [row["probs"] for row in heard["tags"]], np.stack([s.probs for s in steps], 1), atol=5e-5
    )
    loud = [a for a, p in zip(heard["times"], heard["tags"][0]["probs"]) if p > 0.5]
    assert min(loud) == pytest.approx(0.5, abs=0.11) and max(loud) == pytest.approx(0.9, abs=0.11)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "AIFF"])
def test_every_format_and_rate_is_taken(client, kind):
    heard, = upload(client, sound(sr=32000, channels=2, kind=kind)).json()["sounds"]
    assert heard["seconds"] == pytest.approx(2.0, abs=0.1) and heard["picture"].startswith("data:image/png;base64,")


def test_several_sounds_are_answered_in_their_order_and_one_that_is_none_keeps_its_place(client, own_folder):
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


def claiming(seconds, kind="WAV", sr=SR):
    """A file whose header promises more than is there."""
    content = bytearray(sound(1, sr=sr, kind=kind))
    if kind == "WAV":
        at = content.index(b"data")
        content[at + 4:at + 8] = (2 * sr * seconds).to_bytes(4, "little")
    else:  # 36 bits for the number of samples, the last of bytes 21 to 25
        content[22:26] = (sr * seconds).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize(("content", "status", "words"), [
    (b"", 422, ["empty"]),
    (b"just words\n", 415, ["text", "not sound"]),
    (zipped(), 415, ["zip archive"]),
    (b"\x89PNG\r\n\x1a\n" + bytes(100), 415, ["PNG"]),
    (bytes(1000), 415, ["no header of a known sound format"]),
    (sound()[:1000], 422, ["cut short"]),
    (sound()[:30], 422, ["header"]),
    (claiming(7200), 422, ["cut short", "635,040,000"]),
    (claiming(7200, "FLAC"), 422, ["promises"]),
    (b"RIFF\xff\xff\xff\xffWAVEfmt \xff\xff\xff\xff" + bytes(100), 422, ["ends inside its header"]),
    (b"RIFF$\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x44\xac\0\0\x88X\1\0\2\0\x10\0data\0\0\0\0", 422, ["no samples"]),
    (sound(0.1, sr=44100, subtype="FLOAT").replace(b"\0\0\0\0", b"\0\0\xc0\x7f")[:44] + b"\0\0\xc0\x7f" * 100, 422, []),
    (sound(6), 422, ["6.0 s long", "at most 5 s"]),
    (sound(6, sr=8000, kind="OGG"), 422, ["6.0 s long"]),
])
def test_what_is_no_sound_or_not_a_whole_or_short_one_is_refused_with_its_reason(
    client, own_folder, content, status, words
):
    sentence = refused(upload(client, content, "walk.wav"), status, "walk.wav", *words)
    assert str(own_folder) not in sentence
    assert upload(client, sound(0.3)).status_code == 200


def test_many_channels_at_a_high_rate_are_no_way_to_send_more(client):
    file = io.BytesIO()
    sf.write(file, np.zeros((450_000, 8)), 96000, format="FLAC")
    refused(upload(client, file.getvalue()), 422, "4.7 s long", "8 channels of 96,000 Hz")


def test_two_hours_of_silence_in_a_small_file_are_refused_before_they_are_decoded(tagger):
    file = io.BytesIO()
    with sf.SoundFile(file, "w", 8000, 1, format="FLAC") as out:
        for _ in range(720):
            out.write(np.zeros(80_000, np.float32))
    with TestClient(Guard(tagger_app(tagger, "t", Limits())), "http://localhost") as client:
        began = time.monotonic()
        refused(upload(client, file.getvalue()), 422, "7,200.0 s long", "at most 600 s")
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
def test_no_name_of_an_upload_becomes_a_path(client, own_folder, name):
    response = upload(client, sound(0.3), name)
    if response.status_code == 200:
        told = response.json()["sounds"][0]["file"]
        assert 0 < len(told) <= 120 and "/" not in told and "\\" not in told and told.isprintable() and told != ".."
    else:
        refused(response, 422)


def test_shown_names():
    assert (
        shown_name("a/b\\c d.wav") == "c d.wav"
        and shown_name("\u202ewav.exe") == "wav.exe"
        and shown_name(" . ") == "sound"
    )
    assert shown_name("x" * 200 + ".wav") == "x" * 116 + ".wav"


def test_an_upload_that_is_too_large_is_refused_with_its_size(client, own_folder):
    refused(upload(client, bytes(1_100_000)), 413, "1.1 MB", "at most 1 MB")


def test_an_upload_that_never_ends_is_given_up(tagger, own_folder):
    read, answers = [], []

    async def endless():
        read.append(100_000)
        start = b'--b\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\n' if len(read) == 1 else b""
        return {"type": "http.request", "body": start + bytes(100_000), "more_body": True}

    async def answered(message):
        answers.append(message)

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
    asyncio.run(Guard(tagger_app(tagger, "t", LIMITS))(scope, endless, answered))
    assert answers[0]["status"] == 413 and b"at most 1 MB" in answers[1]["body"]
    assert sum(read) == 4_000_000


def test_too_many_files_are_refused(client, own_folder):
    for n in (4, 40):
        refused(
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
            ["no whole file"],
        ),
        ({"content": b"rubbish", "headers": {"content-type": "multipart/form-data"}}, 422, ["boundary"]),
        (
            {"content": b"--x--\r\n", "headers": {"content-type": "multipart/form-data; boundary=x"}},
            422,
            ["no whole file"],
        ),
        (
            {
                "content": b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x--\r\n',
                "headers": {"content-type": "multipart/form-data; boundary=x"},
            },
            422,
            ["no whole file"],
        ),
    ],
)
def test_bodies_that_are_no_upload_are_refused(client, own_folder, options, status, words):
    refused(client.post("/tag", **options), status, *words)


def test_a_browser_shows_what_the_server_serves_and_fetches_nothing_else(client):
    shown = client.get("/").text
    assert "fatai: test" in shown and 'data-bytes="1000000"' in shown
    assert "://" not in shown
    for name in ("look.css", "sight.js", "tagger.css", "tagger.js"):
        file = client.get(f"/{name}")
        kind = "text/css" if name.endswith("css") else "text/javascript"
        assert f"/{name}" in shown and file.status_code == 200 and file.headers["content-type"].startswith(kind)
        assert "https://" not in file.text
    assert "script-src 'self'" in client.get("/").headers["content-security-policy"]


def test_health_and_unknown_addresses(client):
    upload(client, sound(0.1))
    assert client.get("/health").json() == {"status": "ok", "waiting": 0, "most": 96, "done": 1, "tags": 2}
    refused(client.get("/../../etc/passwd"), 404, "no such page")
    refused(client.get("/tag"), 405, "GET")


def test_a_name_of_a_run_in_the_page_is_escaped(tagger):
    shown = TestClient(tagger_app(tagger, named("runs/<script>alert(1)")), "http://localhost").get("/").text
    assert "<script>alert" not in shown and "script&gt;alert(1)" in shown


def test_nothing_is_written_into_the_current_folder(tagger, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tagger_app(tagger, "t")
    assert list(tmp_path.iterdir()) == []


def test_a_full_line_is_503_and_a_greedy_client_429():
    line = JobQueue(3, 2)
    with line.place("a"), line.place("a"):
        with pytest.raises(HTTPError, match="2 of your uploads") as caught, line.place("a"):
            pass
        assert caught.value.status == 429
        with line.place("b"):
            with pytest.raises(HTTPError, match="busy with 3 uploads") as caught, line.place("c"):
                pass
            assert caught.value.status == 503 and caught.value.response().headers["retry-after"] == "5"
    assert line.waiting == 0
    line.close()


def test_the_line_works_one_by_one_and_not_for_those_who_have_gone():
    line, began, go, order = JobQueue(9, 9), threading.Event(), threading.Event(), []

    def first():
        began.set()
        go.wait(5)
        order.append(1)
        return "done"

    async def stays():
        return False

    async def goes():
        return True

    async def both():
        busy = asyncio.create_task(line.work(first, stays))
        await asyncio.to_thread(began.wait, 5)
        with pytest.raises(HTTPError, match="did not wait"):
            await line.work(lambda: order.append(2), goes)
        go.set()
        return await busy

    assert asyncio.run(both()) == "done"
    line.close()
    assert order == [1]


def test_an_error_of_the_tagger_is_500_and_the_server_goes_on(own_folder):
    class Broken(nn.Module):
        def forward(self, spec):
            raise RuntimeError("a secret of the machine")

    app = Guard(tagger_app(SlidingWindowTagger([Broken()], ["A"], ClipConfig(crop_s=0.2)), "t", LIMITS))
    with TestClient(app, "http://localhost", raise_server_exceptions=False) as client:
        for _ in range(2):
            sentence = refused(upload(client, sound(0.3)), 500, "the server failed")
            assert "secret" not in sentence
        assert client.get("/health").json()["waiting"] == 0


def test_an_upload_that_dawdles_is_given_up(tagger, own_folder):
    async def body():
        yield b"--x\r\n"
        await asyncio.sleep(30)

    async def ask():
        import httpx

        app = Guard(tagger_app(tagger, "t", Limits(receive_s=0.2)))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.post(
                "/tag", content=body(), headers={"content-type": "multipart/form-data; boundary=x"}
            )

    refused(asyncio.run(ask()), 408, "0.2 seconds")


def test_limits_are_checked():
    with pytest.raises(OptionError, match="sound_s is 0"):
        Limits(sound_s=0)


def pixels(picture):
    import base64

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.uri.partition(",")[2]))).convert("L")).astype(
        float
    )


def test_a_whole_picture_shows_a_tone_where_and_when_it_sounds():
    wave = torch.zeros(4 * SR)
    wave[2 * SR:3 * SR] = torch.sin(2 * torch.pi * 1000 * torch.arange(SR) / SR)
    seen = whole_picture(wave, SR)
    light = pixels(seen)
    row, column = light.sum(1).argmax(), light.sum(0)
    height = dict(seen.ticks)[1000]
    assert abs((len(light) - row - 0.5) / len(light) - height) < 0.02
    loud = np.flatnonzero(column > column.max() / 2) / len(column)
    assert loud.min() == pytest.approx(0.5, abs=0.01) and loud.max() == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize("samples", [1, 500, 44100, 3_000_000])
def test_a_whole_picture_of_any_length_has_bounded_size(samples):
    light = pixels(whole_picture(torch.rand(samples) - 0.5, SR))
    assert light.shape[0] == 96 and 1 <= light.shape[1] <= 1000


def test_a_whole_picture_in_pieces_is_that_of_the_whole(monkeypatch):
    wave = torch.rand(200_000) - 0.5
    whole = whole_picture(wave, SR)
    monkeypatch.setattr("fatai.report.whole_picture._FRAMES_AT_ONCE", 37)
    assert np.abs(pixels(whole_picture(wave, SR)) - pixels(whole)).max() <= 1


def test_temporary_files_lie_where_this_test_looks(own_folder):
    assert Path(tempfile.gettempdir()) == own_folder
