"""The folder of the page without a server: its files, its settings, and targets that are refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from fatai.audio.front_ends import FrontEnd
from fatai.data.config import ClipConfig
from fatai.errors import CheckpointError
from fatai.inference.events.tagger import SlidingWindowTagger
from fatai.io.atomic import write_text
from fatai.metrics.calibration import Calibration
from fatai.metrics.thresholds import Thresholds
from fatai.web import static_page
from fatai.web.onnxruntime_web import OnnxruntimeWeb
from fatai.web.static_page import write_static_page

TAGS = ("Bark", "Meow </script>")
RUNTIME = OnnxruntimeWeb("1.2.3", b"export {};\n//# sourceMappingURL=ort.mjs.map\n", b"\0asm")


@pytest.fixture
def tagger():
    calibration = Calibration(TAGS, (1.5, 1.0), (0.0, 0.5), thresholds=Thresholds(TAGS, (0.25, float("inf"))))
    return SlidingWindowTagger(
        [nn.Identity()], TAGS, ClipConfig(FrontEnd(sr=8000, n_mels=16), crop_s=1, channel=2), step_s=0.3,
        calibration=calibration, prior=np.array([0.25, 0.75]),
    )


@pytest.fixture
def written_graphs(monkeypatch):
    """Names of the graphs that are written, in place of those of torch."""
    names = []

    def write(*args, **options):
        path = next(argument for argument in args if isinstance(argument, Path))
        names.append(path.name)
        write_text(path, "graph")
        return 1e-7

    monkeypatch.setattr(static_page, "export_onnx", write)
    monkeypatch.setattr(static_page, "write_graph", write)
    return names


def test_the_folder_is_complete_and_loads_nothing_from_elsewhere(tagger, tmp_path, written_graphs):
    assert write_static_page(tagger, tmp_path / "page", "pond & <i>", RUNTIME) == 1e-7
    assert written_graphs == ["model.onnx", "overview.onnx"]
    names = {file.name for file in (tmp_path / "page").iterdir()}
    texts = {name: (tmp_path / "page" / name).read_text(encoding="utf-8") for name in names if "wasm" not in name}
    index = texts["index.html"]
    linked = re.findall(r'(?:src|href)="([^"#:]+)"', index)
    assert set(linked) <= names and {"common.css", "tagger.css", "tagger.js", "tag_in_browser.js"} <= set(linked)
    named = {
        name for text in texts.values() for name in re.findall(r'"(?:\./)?([\w.]+\.(?:js|json|onnx|wasm))"', text)
    }
    assert {"tag_worker.js", "windows.js", "onnxruntime.js", "onnxruntime.wasm", "model.json"} <= named <= names
    assert not any("https://" in text for name, text in texts.items() if "LICENSE" not in name)
    assert "<title>pond &amp; &lt;i&gt;</title>" in index and "sent nowhere" in index
    assert "default-src 'none'" in index and "'unsafe-inline'" not in index and "frame-ancestors" not in index
    assert "sourceMappingURL" not in texts["onnxruntime.js"] and "MIT License" in texts["onnxruntime.LICENSE.txt"]


def test_the_settings_are_those_of_the_tagger(tagger, tmp_path, written_graphs):
    write_static_page(tagger, tmp_path, "t", RUNTIME)
    settings = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    assert (settings["sr"], settings["samples"], settings["step"], settings["channel"]) == (8000, 8000, 2400, 2)
    assert settings["tags"] == list(TAGS) and settings["prior"] == [0.25, 0.75] and settings["thresholds"] == [0.25, 1]
    assert settings["calibration"] == {"slope": [1.5, 1], "shift": [0, 0.5], "low": [], "high": [], "floor": 1e-100}
    overview = settings["overview"]
    assert (overview["n_fft"], overview["rows"], len(overview["palette"])) == (512, 48, 6 * 256)
    assert overview["ticks"][0][0] == 100 and all(0 < height < 1 for _, height in overview["ticks"])


def test_a_page_is_replaced_and_files_of_others_are_not(tagger, tmp_path, written_graphs):
    for title in ("one", "two"):
        write_static_page(tagger, tmp_path, title, RUNTIME)
    assert "<title>two</title>" in (tmp_path / "index.html").read_text(encoding="utf-8")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="holds notes.txt, which is no part of such a page; choose a new"):
        write_static_page(tagger, tmp_path, "three", RUNTIME)
    assert "<title>two</title>" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_an_interrupted_export_leaves_no_page(tagger, tmp_path, written_graphs, monkeypatch):
    write_static_page(tagger, tmp_path, "one", RUNTIME)

    def fail(*args, **options):
        raise CheckpointError("differs")

    monkeypatch.setattr(static_page, "export_onnx", fail)
    with pytest.raises(CheckpointError, match="differs"):
        write_static_page(tagger, tmp_path, "two", RUNTIME)
    assert not (tmp_path / "index.html").exists()


@pytest.mark.parametrize(("options", "message"), [
    (("--format", "pages"), "did you mean page?"),
    (("--step-s", "0.5"), "only a page has it; add --format page"),
    (("--onnxruntime-web", "x.tgz", "--format", "folder"), "only a page has it; add --format page"),
    (("--format", "page", "--onnxruntime-web", "none.tgz"), "none.tgz does not exist"),
    (("--format", "onnx"), "does not end in .onnx"),
])
def test_options_that_do_not_fit_are_refused(tiny_run, tmp_path, main_with, options, message):
    ended = main_with("export", tiny_run.out, tmp_path / "out", *options)
    assert ended.returncode != 0 and message in " ".join(ended.stderr.split())
    assert not (tmp_path / "out").exists()
