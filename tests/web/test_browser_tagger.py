"""The web tagger in Chromium: drop, choose and record sounds, see and play them, download the CSV."""

import csv
import io
import re
import shutil
import subprocess
from contextlib import ExitStack

import pytest
from helpers.browser import drop, open_page, players, serving

from fatai.experiment.run_folder import Tagger
from fatai.inference.events.formats import write_events
from fatai.inference.events.progress_log import FileEvents

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tiny_run):
    with serving("serve", tiny_run.out) as (_, address):
        yield address


@pytest.fixture(scope="module")
def sounds(sample):
    return sorted((sample / "test").iterdir())[:3]


@pytest.fixture(scope="module")
def tagger(tiny_run):
    return Tagger(tiny_run.out)


def wav(path):
    import soundfile as sf

    wave, sr = sf.read(path)
    file = io.BytesIO()
    sf.write(file, wave, sr, format="WAV")
    return file.getvalue(), len(wave) / sr


@pytest.mark.parametrize("options", [
    {"viewport": {"width": 1000, "height": 900}}, {"viewport": {"width": 360, "height": 740}, "color_scheme": "dark"},
], ids=["wide", "phone"])
def test_a_dropped_wav_shows_its_tags_over_time_and_plays(chromium, server, sounds, tagger, options):
    from playwright.sync_api import expect

    content, seconds = wav(sounds[0])
    best = {tag: max(step.probs[k] for step in tagger.frame_probs(content)) for k, tag in enumerate(tagger.tags)}
    with open_page(chromium, server, **options) as page:
        drop(page, "dropped.wav", content)
        expect(page.locator("h2")).to_have_text("dropped.wav")
        expect(page.locator(".lanes .tag")).to_have_count(10)
        shown = [row.split("\n") for row in page.locator(".lanes .tag").all_inner_texts()]
        assert [row[0] for row in shown] == sorted(best, key=lambda tag: -best[tag])
        assert [int(row[-1].rstrip(" %")) for row in shown] == pytest.approx(
            [100 * best[row[0]] for row in shown], abs=0.6
        )
        assert players(page) == [pytest.approx(seconds, abs=0.05)]
        # The spectrogram and the bars share their time, and nothing is wider than the screen.
        picture, bars = (page.locator(f".lanes {name}").first.bounding_box() for name in ("img", "svg"))
        assert picture["x"] == pytest.approx(bars["x"], abs=1) and picture["width"] == pytest.approx(
            bars["width"], abs=1
        )
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        # A click in the middle of the picture goes to the middle of the sound.
        page.mouse.click(picture["x"] + picture["width"] / 2, picture["y"] + 20)
        assert page.evaluate("() => document.querySelector('audio').currentTime") == pytest.approx(
            seconds / 2, abs=0.05
        )
        page.evaluate("() => document.querySelector('audio').play()")
        page.wait_for_timeout(300)
        assert page.evaluate("() => document.querySelector('audio').currentTime") > seconds / 2


def test_several_files_are_tagged_at_once_and_their_csv_is_that_of_the_command(
    chromium, server, sounds, tagger, tmp_path
):
    from playwright.sync_api import expect

    with open_page(chromium, server) as page:
        page.set_input_files("#files", [str(path) for path in sounds])
        expect(page.locator(".lanes")).to_have_count(3)
        # The threshold is a slider; the events follow it.
        page.locator("#threshold").fill("10")
        with page.expect_download() as download:
            page.click("#csv")
        assert download.value.suggested_filename == "tags.csv"
        rows = list(csv.DictReader(io.StringIO(open(download.value.path(), encoding="utf-8").read())))
        write_events(
            tmp_path / "events.csv", [FileEvents(path.name, tagger.tag(path, threshold=0.1)) for path in sounds]
        )
        wanted = list(csv.DictReader(open(tmp_path / "events.csv", encoding="utf-8")))
        assert wanted and len(rows) == len(wanted)
        key = lambda row: (row["file"], row["tag"], float(row["start_s"]))
        for got, want in zip(sorted(rows, key=key), sorted(wanted, key=key), strict=True):
            assert (got["file"], got["tag"]) == (want["file"], want["tag"])
            for column in ("start_s", "end_s", "prob"):
                assert float(got[column]) == pytest.approx(float(want[column]), abs=0.0011)
        page.locator("article button").first.click()
        expect(page.locator("article")).to_have_count(2)


def test_a_recording_is_tagged(chromium, server):
    from playwright.sync_api import expect

    with open_page(chromium, server, permissions=["microphone"]) as page:
        page.click("#record")
        expect(page.locator("#record")).to_contain_text("stop")
        page.wait_for_timeout(1200)
        page.click("#record")
        expect(page.locator(".lanes")).to_have_count(1)
        assert page.locator("h2").inner_text().startswith("recording") and 0.5 < players(page)[0] < 5


def test_refused_files_are_shown_with_the_reason(chromium, server, tmp_path):
    from playwright.sync_api import expect

    (tmp_path / "<b>words.wav").write_text("no sound")
    (tmp_path / "big.wav").write_bytes(bytes(33_000_000))
    with open_page(chromium, server, expected="415") as page:
        page.set_input_files("#files", [str(tmp_path / "<b>words.wav"), str(tmp_path / "big.wav")])
        expect(page.locator(".error")).to_have_count(2)
        names, messages = page.locator("h2").all_inner_texts(), page.locator(".error").all_inner_texts()
        errors = dict(zip(names, messages, strict=True))
        assert "this is text" in errors["<b>words.wav"] and "33.0 MB; expected at most 32 MB" in errors["big.wav"]
        assert page.locator("b").count() == 0
        page.set_input_files("#files", [str(tmp_path / "<b>words.wav")] * 9)
        expect(page.locator("#message")).to_have_text("9 files are too many at once; the first 8 are tagged")
        expect(page.locator(".error")).to_have_count(10)


def test_what_is_unusual_in_a_file_is_shown(chromium, server):
    import numpy as np
    import soundfile as sf
    from playwright.sync_api import expect

    file, noise = io.BytesIO(), np.random.default_rng(0).uniform(-0.3, 0.3, 22050)
    sf.write(file, np.stack([noise, -noise], 1), 44100, format="WAV")
    with open_page(chromium, server) as page:
        drop(page, "inverted.wav", file.getvalue())
        expect(page.locator(".notices li")).to_have_count(1)
        expect(page.locator(".notices li")).to_contain_text("the 2 channels cancel in their mean")
        silent = io.BytesIO()
        sf.write(silent, np.zeros(22050), 44100, format="WAV")
        drop(page, "silent.wav", silent.getvalue())
        expect(page.locator("article").nth(1)).to_contain_text("silent (no peak reaches")


@pytest.fixture(scope="module")
def server_without_ffmpeg(tiny_run, tmp_path_factory):
    with ExitStack() as started:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", str(tmp_path_factory.mktemp("empty_path")))
            _, address = started.enter_context(serving("serve", tiny_run.out))
        yield address


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg, which writes the uploads, is not installed")
@pytest.mark.parametrize(("name", "coding", "kept"), [
    ("a.m4a", ["-c:a", "aac"], 1.0), ("a.aac", ["-c:a", "aac"], 1.0), ("a.webm", ["-c:a", "libopus"], 1.0),
    ("cut.aac", ["-c:a", "aac"], 0.5), ("cut.webm", ["-c:a", "libopus"], 0.5),
])
def test_what_the_server_cannot_read_is_decoded_by_the_browser(
    chromium, server_without_ffmpeg, tmp_path, name, coding, kept
):
    from playwright.sync_api import expect

    tone = ["-f", "lavfi", "-i", "sine=frequency=440:duration=2"]
    subprocess.run(["ffmpeg", "-v", "error", *tone, *coding, str(tmp_path / name)], check=True)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:round(kept * len(content))])
    with open_page(chromium, server_without_ffmpeg, expected="4") as page:
        page.set_input_files("#files", str(tmp_path / name))
        expect(page.locator("h2")).to_have_text(name)
        expect(page.locator(".lanes")).to_have_count(1)
        expect(page.locator(".notices li").first).to_contain_text("decoded by this browser")
        shown = float(re.search(r"([\d.]+) s\b", page.locator("article .head").inner_text())[1])
        assert 0.6 * kept * 2 < shown < 1.3 * kept * 2


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg, which writes the upload, is not installed")
def test_a_sound_that_the_browser_decodes_keeps_its_channels(chromium, server_without_ffmpeg, tmp_path):
    from playwright.sync_api import expect

    opposite = ["-f", "lavfi", "-i", "aevalsrc=0.5*sin(880*PI*t)|-0.5*sin(880*PI*t):d=2:s=44100"]
    subprocess.run(["ffmpeg", "-v", "error", *opposite, "-c:a", "aac", str(tmp_path / "two.m4a")], check=True)
    with open_page(chromium, server_without_ffmpeg, expected="4") as page:
        page.set_input_files("#files", str(tmp_path / "two.m4a"))
        expect(page.locator(".lanes")).to_have_count(1)
        expect(page.locator(".notices")).to_contain_text("the 2 channels cancel in their mean")
