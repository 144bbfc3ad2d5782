"""The page without a server in Chromium: its answers are those of the tagger, and nothing is asked of another host."""

import base64
import csv
import io
import json
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
import pytest
import soundfile as sf
import torch
from helpers.accessibility import faults
from helpers.browser import drop, open_page, players
from PIL import Image
from torch import nn

from fatai.audio.front_ends import FrontEnd
from fatai.data.config import ClipConfig
from fatai.errors import DataError
from fatai.experiment.run_folder import Tagger
from fatai.inference.events.tagger import SlidingWindowTagger
from fatai.io.atomic import write_text
from fatai.metrics.calibration import Calibration
from fatai.metrics.thresholds import Thresholds
from fatai.report.media import overview_image
from fatai.web import static_page
from fatai.web.onnxruntime_web import OnnxruntimeWeb, load_onnxruntime_web
from fatai.web.static_page import write_static_page
from fatai.web.tagging import tag_upload
from fatai.web.uploads import Limits, Upload

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*(silent|channel)")]

SR, SAMPLES = 16000, 8000
TAGS = ("Bark", "Meow", "Rain")
SETTINGS = ClipConfig(FrontEnd(sr=SR, n_fft=512, hop_length=256, n_mels=32), crop_s=SAMPLES / SR)
CALIBRATION = Calibration(
    TAGS, slope=(1.5, 0.7, 1.0), shift=(-0.5, 0.3, 0.0), thresholds=Thresholds(TAGS, (0.6, 0.2, float("inf")))
)
STRETCHED = Calibration(TAGS, slope=(1.0, 2.0, 1.0), shift=(0.0, 0.1, 0.2), low=(0.1, 0.2, 0.0), high=(0.9, 0.8, 0.5))
PRIOR = np.array([0.5, 0.2, 0.3])

# In place of onnxruntime-web, where that cannot be downloaded: probabilities that depend on the order of the samples.
RUNTIME = """
export const env = {wasm: {}};
export class Tensor { constructor(type, data, dims) { Object.assign(this, {data, dims}); } }
const sigmoid = x => 1 / (1 + Math.exp(-x));
export const InferenceSession = {create: async model => ({run: async ({wave: {data, dims: [n, samples]}}) => {
  const width = samples === 2048 ? 96 : 3, output = new Float32Array(n * width);
  for (let k = 0; k < n; k++) {
    const wave = data.subarray(k * samples, (k + 1) * samples);
    let level = 0, ramp = 0;
    wave.forEach((x, i) => { level += Math.abs(x) / samples; ramp += 20 * x * i / samples ** 2; });
    const probs = [sigmoid(8 * level - 1), sigmoid(50 * ramp), sigmoid(3 * wave[0])];
    output.set(width === 3 ? probs : Array(96).fill(level), k * width);
  }
  return {output: {data: output}};
}})};
"""


class RuntimeTagger(SlidingWindowTagger):
    """Predicts what `RUNTIME` does."""

    def _mean_probs(self, wave, n_before):
        wave = wave.double()
        ramp = torch.arange(wave.shape[1]) / wave.shape[1]
        logits = [8 * wave.abs().mean(1) - 1, 1000 * (wave * ramp).mean(1), 3 * wave[:, 0]]
        return torch.stack(logits, 1).sigmoid().numpy()


class Levels(nn.Module):
    """Logits from the mean level of each band, which differ between tags and sounds."""

    def __init__(self, seed):
        super().__init__()
        self.linear = nn.Linear(32, len(TAGS), bias=False)
        nn.init.normal_(self.linear.weight, std=0.02, generator=torch.Generator().manual_seed(seed))

    def forward(self, spec):
        return self.linear(spec.mean((1, 3)) + 40)


def tagger_of(kind, settings=SETTINGS, **options):
    options = {"calibration": CALIBRATION, "prior": PRIOR, **options}
    if kind is RuntimeTagger:
        return RuntimeTagger([Levels(0)], TAGS, settings, **options)
    return SlidingWindowTagger([Levels(0), Levels(1)], TAGS, settings, weights=[1.0, 3.0], **options)


def burst(seconds, seed=0, level=0.3):
    """Noise that rises and falls twice a second."""
    n = round(seconds * SR)
    swell = np.sin(2 * np.pi * np.arange(n) / SR) ** 2
    return level * swell * np.random.default_rng(seed).uniform(-1, 1, n)


def wav(channels, sr=SR):
    file = io.BytesIO()
    sf.write(file, np.transpose(channels), sr, format="WAV", subtype="PCM_16")
    return file.getvalue()


QUIET = np.full(SR, 0.25)
SOUNDS = {
    "several windows": burst(2.3),
    "a window": burst(0.5),
    "a sample more": burst(0.5 + 1 / SR),
    "shorter": burst(0.21) - 0.1,
    "begins with silence and an offset": np.concatenate([QUIET, 0.25 + burst(1.1), QUIET]),
    "silent": np.concatenate([np.zeros(SR), burst(0.3, level=5e-4)]),
    "stereo": [burst(1.3), burst(1.3, 1)],
    "opposite phase": [burst(1.3), -0.9 * burst(1.3)],
    "a dead channel": [0.001 * burst(1.3, 2), burst(1.3)],
    "a silent channel": [np.zeros(SR), burst(1)],
}


@pytest.fixture(scope="module")
def npm_runtime():
    """The files of the npm package; without them the tests that need them are skipped."""
    try:
        return load_onnxruntime_web(tries=1)
    except DataError as e:
        pytest.skip(f"the npm package onnxruntime-web is neither in the cache nor can it be downloaded: {e}")


@pytest.fixture(scope="module", params=["onnxruntime-web", "a script in its place"])
def kind(request):
    """Class of the taggers, and the runtime of the page."""
    if request.param == "onnxruntime-web":
        pytest.importorskip("onnxscript", reason="onnxscript is of the optional extra: pip install 'fatai[onnx]'")
        pytest.importorskip("onnxruntime")
        return SlidingWindowTagger, request.getfixturevalue("npm_runtime")
    return RuntimeTagger, OnnxruntimeWeb("0", RUNTIME.encode(), b"wasm")


@contextmanager
def served(folder, **headers):
    """Serve a folder as `python -m http.server` does, with more headers, and yield its address."""
    class Handler(SimpleHTTPRequestHandler):
        def end_headers(self):
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            super().end_headers()

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "sounds of a pond"
    with pytest.MonkeyPatch.context() as patch:
        if kind[0] is RuntimeTagger:  # reads no graph
            for name, position in (("export_onnx", 1), ("write_graph", 2)):
                patch.setattr(static_page, name, lambda *args, at=position, **options: write_text(args[at], "") or 0.0)
        write_static_page(tagger_of(kind[0]), out, "fatai: <b>pond</b>", kind[1])
    return out


@pytest.fixture(scope="module")
def address(folder):
    with served(folder.parent) as root:
        yield f"{root}{folder.name.replace(' ', '%20')}/"


TAG = """async ([name, text]) => {
    const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
    return tagSound(new File([bytes], name), () => {});
}"""


def tag(page, content):
    return page.evaluate(TAG, ["a.wav", base64.b64encode(content).decode()])


def assert_same(got, content, tagger):
    steps = list(tagger.frame_probs(content))
    assert got["times"] == pytest.approx([step.start_s for step in steps] + [steps[-1].end_s], abs=1e-4)
    probs = {shown["tag"]: shown["probs"] for shown in got["tags"]}
    expected = np.stack([step.probs for step in steps], 1)
    np.testing.assert_allclose([probs[name] for name in TAGS], expected, atol=1e-3)
    assert [shown["tag"] for shown in got["tags"]] == sorted(TAGS, key=lambda name: -max(probs[name]))
    assert got["silent"] == all(step.is_silent for step in steps)
    thresholds = tagger.thresholds or dict.fromkeys(TAGS)
    assert {shown["tag"]: shown["threshold"] for shown in got["tags"]} == thresholds
    with NamedTemporaryFile(suffix=".wav") as file:
        Path(file.name).write_bytes(content)
        notices = tag_upload(tagger, Upload("a.wav", Path(file.name)), Limits())["notices"]
    assert got["notices"] == [notice.removeprefix("a.wav, ") for notice in notices]


def test_the_answers_are_those_of_the_tagger(chromium, kind, address):
    tagger, probs = tagger_of(kind[0]), []
    with open_page(chromium, address) as page:
        for sound in SOUNDS.values():
            assert_same(tag(page, wav(sound)), wav(sound), tagger)
            probs += [step.probs for step in tagger.frame_probs(wav(sound))]
    assert np.std(probs, 0).min() > 0.02, "the answers differ enough to be compared"


@pytest.mark.parametrize(("settings", "options"), [
    ({"channel": "each"}, {"calibration": STRETCHED}), ({"channel": "loudest"}, {"calibration": None}),
    ({"channel": "mean"}, {"step_s": 0.5}), ({"channel": 1}, {"prior": None}),
    ({"pad_mode": "constant_right"}, {"silence_db": -10}), ({"pad_mode": "wrap_right"}, {}),
    ({"pad_mode": "wrap_center"}, {"step_s": 0.1234}), ({"pad_mode": "edge_center"}, {}),
    ({"pad_mode": "minimum_center"}, {}),
])
def test_the_answers_follow_the_settings(chromium, kind, folder, address, settings, options):
    settings = ClipConfig(SETTINGS.front_end, crop_s=SETTINGS.crop_s, **settings)
    tagger, before = tagger_of(kind[0], settings, **options), (folder / "model.json").read_text(encoding="utf-8")
    try:
        (folder / "model.json").write_text(json.dumps(static_page._settings(tagger, kind[1])), encoding="utf-8")
        with open_page(chromium, address) as page:
            for name in ("shorter", "stereo", "a silent channel", "silent"):
                assert_same(tag(page, wav(SOUNDS[name])), wav(SOUNDS[name]), tagger)
    finally:
        (folder / "model.json").write_text(before, encoding="utf-8")


def test_a_channel_that_a_sound_lacks_is_named(chromium, kind, folder, address):
    before = (folder / "model.json").read_text(encoding="utf-8")
    try:
        (folder / "model.json").write_text(json.dumps({**json.loads(before), "channel": 2}), encoding="utf-8")
        with open_page(chromium, address) as page, pytest.raises(Exception, match="for channel 2, and the sound has 1"):
            tag(page, wav(burst(1)))
    finally:
        (folder / "model.json").write_text(before, encoding="utf-8")


@pytest.mark.parametrize("seconds", [0.3, 40])
def test_the_picture_is_that_of_the_server(chromium, kind, address, seconds):
    wave = burst(seconds)
    with open_page(chromium, address) as page:
        got = tag(page, wav(wave))
    expected = overview_image(torch.from_numpy(sf.read(io.BytesIO(wav(wave)), dtype="float32")[0]), SR)
    images = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"), dtype=float)
        for uri in (got["picture"], expected.uri)
    ]
    assert images[0].shape == images[1].shape
    if kind[0] is not RuntimeTagger:  # whose decibels are a stand-in
        assert np.abs(images[0] - images[1]).mean() < 0.1
    assert [tuple(tick) for tick in got["ticks"]] == expected.ticks


@pytest.mark.parametrize("options", [
    {"viewport": {"width": 1280, "height": 900}}, {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
], ids=["wide", "phone"])
def test_dropped_chosen_and_recorded_sounds_are_shown_and_played(chromium, kind, address, tmp_path, options):
    from playwright.sync_api import expect

    paths = [tmp_path / "one.wav", tmp_path / "two.wav"]
    for k, path in enumerate(paths):
        path.write_bytes(wav(burst(1.4, k)))
    with open_page(chromium, address, permissions=["microphone"], **options) as page:
        expect(page.locator("h1")).to_have_text("fatai: <b>pond</b>")
        drop(page, "dropped.wav", wav(burst(1.4)))
        expect(page.locator(".lanes")).to_have_count(1)
        page.set_input_files("#files", [str(path) for path in paths])
        expect(page.locator(".lanes")).to_have_count(3)
        assert page.locator("h2").all_inner_texts() == ["dropped.wav", "one.wav", "two.wav"]
        assert page.locator(".lanes .tag").count() == 9
        assert players(page) == [pytest.approx(1.4, abs=0.05)] * 3
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        assert page.locator("#message").inner_text() == ""
        page.locator("#threshold").fill("5")
        with page.expect_download() as download:
            page.click("#csv")
        rows = list(csv.DictReader(io.StringIO(open(download.value.path(), encoding="utf-8").read())))
        events = tagger_of(kind[0]).tag(wav(burst(1.4)), threshold=0.05)
        dropped = [row for row in rows if row["file"] == "dropped.wav"]
        assert [(row["tag"], row["start_s"], row["end_s"]) for row in dropped] == [
            (event.tag, f"{event.start_s:.3f}", f"{event.end_s:.3f}") for event in events
        ]
        page.click("#record")
        expect(page.locator("#record")).to_contain_text("stop")
        page.wait_for_timeout(1200)
        page.click("#record")
        expect(page.locator(".lanes")).to_have_count(4)
        assert page.locator("h2").last.inner_text().startswith("recording")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_has_no_serious_fault_of_accessibility(chromium, address, tmp_path, width, scheme):
    from playwright.sync_api import expect

    (tmp_path / "words.wav").write_text("no sound")
    for name, sound in (("a.wav", burst(1.4)), ("silent.wav", np.zeros(SR))):
        (tmp_path / name).write_bytes(wav(sound))
    size = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    with open_page(chromium, address, **size) as page:
        assert faults(page) == [], "before the first sound"
        page.set_input_files("#files", [str(tmp_path / name) for name in ("a.wav", "silent.wav", "words.wav")])
        expect(page.locator(".lanes")).to_have_count(2)
        expect(page.locator(".error")).to_have_count(1)
        assert faults(page) == [], "with sounds"
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


def test_sounds_that_are_refused_are_shown_with_the_reason(chromium, address, tmp_path):
    from playwright.sync_api import expect

    (tmp_path / "words.wav").write_text("no sound")
    (tmp_path / "long.wav").write_bytes(wav(np.zeros(601 * SR)))
    with open_page(chromium, address) as page:
        page.set_input_files("#files", [str(tmp_path / "words.wav"), str(tmp_path / "long.wav")])
        expect(page.locator(".error")).to_have_count(2)
        first, second = page.locator(".error").all_inner_texts()
        assert "words.wav is no sound that this browser can decode" in first
        assert "long.wav is 601.0 s long; expected at most 600 s" in second


def test_a_missing_file_of_the_folder_is_named(chromium, folder, address):
    from playwright.sync_api import expect

    moved = folder.parent / "moved.onnx"
    (folder / "model.onnx").rename(moved)
    try:
        with open_page(chromium, address, expected="404") as page:
            expect(page.locator("#message")).to_contain_text("model.onnx cannot be loaded (404)")
            drop(page, "a.wav", wav(burst(1)))
            expect(page.locator(".error")).to_contain_text("model.onnx cannot be loaded (404)")
    finally:
        moved.rename(folder / "model.onnx")


def test_a_host_with_a_policy_of_its_own_and_a_page_that_is_opened_as_a_file(chromium, kind, folder):
    from playwright.sync_api import expect

    policy = static_page._POLICY + "; frame-ancestors 'none'"
    with served(folder, Content_Security_Policy=policy) as root, open_page(chromium, root) as page:
        assert_same(tag(page, wav(burst(1))), wav(burst(1)), tagger_of(kind[0]))
    with open_page(chromium, (folder / "index.html").as_uri(), expected="file://") as page:
        expect(page.locator("#message")).to_contain_text("browsers run this page from a web server only")


def test_a_run_is_exported_by_command(chromium, npm_runtime, tiny_run, sample, tmp_path, main_with):
    package, out = tmp_path / "package", tmp_path / "page"
    (package / "dist").mkdir(parents=True)
    (package / "package.json").write_text(json.dumps({"name": "onnxruntime-web", "version": npm_runtime.version}))
    (package / "dist" / "ort.wasm.bundle.min.mjs").write_bytes(npm_runtime.script)
    (package / "dist" / "ort-wasm-simd-threaded.wasm").write_bytes(npm_runtime.wasm)
    ended = main_with("export", tiny_run.out, out, "--format", "page", "--onnxruntime-web", package, "--step-s", "0.2")
    assert ended.returncode == 0, ended.stderr
    assert "mean of 2 networks, 10 tags" in ended.stdout
    tagger = Tagger(tiny_run.out, step_s=0.2).only_part()
    tagger.precision = "fp32"
    path = sorted((sample / "test").iterdir())[0]
    wave = sf.read(path, dtype="float32")[0]
    content = wav(wave, tagger.settings.sr)
    steps = list(tagger.frame_probs(content))
    with served(out) as root, open_page(chromium, root) as page:
        got = tag(page, content)
    assert len(got["tags"]) >= 5 and len(got["times"]) == len(steps) + 1
    for shown in got["tags"]:
        expected = [step.probs[tagger.tags.index(shown["tag"])] for step in steps]
        assert shown["probs"] == pytest.approx(expected, abs=1e-3)
