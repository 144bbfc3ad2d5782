"""The tagger as a folder of files for any static host: sounds are tagged in the browser of the visitor.

The folder holds the page, the network with its front end as ONNX, and onnxruntime-web, which runs it. The page computes
what `SlidingWindowTagger` does for the same wave: windows, silence, calibration, thresholds. Only decoding and
resampling are the browser's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fatai import __version__
from fatai.audio.frequency_axis import frequency_ticks
from fatai.export.files import check_target
from fatai.export.model_folder import synthesize_sound
from fatai.export.onnx import export_onnx, write_graph
from fatai.export.pretrained import Pretrained
from fatai.inference.events.tagger import SlidingWindowTagger
from fatai.io.atomic import write_file, write_text
from fatai.metrics.calibration import FINE_FLOOR, FLOOR
from fatai.report.media import OVERVIEW_COLUMNS, OVERVIEW_DB, cmap_colors, overview_front_end
from fatai.web.onnxruntime_web import OnnxruntimeWeb
from fatai.web.server import read_package_text
from fatai.web.tagger_page import tagger_files, tagger_page
from fatai.web.tagging import MAX_TAGS, MIN_PROB, MIN_TAGS
from fatai.web.uploads import Limits

__all__ = ["write_static_page"]

# WebAssembly is refused by a policy without wasm-unsafe-eval; a worker follows the policy of the page in some browsers.
_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; style-src 'self'; "
    "img-src 'self' data:; media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'"
)
_LIMITS = Limits(upload_mb=200, files=32)  # 10 minutes of stereo in 24 bits
_SCRIPT = "tag_in_browser.js"
_SCRIPTS = tuple(f"in_browser/{name}" for name in (_SCRIPT, "tag_worker.js", "windows.js", "overview.js"))
_INDEX, _SETTINGS, _NETWORK, _OVERVIEW = "index.html", "model.json", "model.onnx", "overview.onnx"
_RUNTIME, _WASM, _LICENSE = "onnxruntime.js", "onnxruntime.wasm", "onnxruntime.LICENSE.txt"
_OVERVIEW_TOLERANCE_DB = 0.01


def write_static_page(
    tagger: SlidingWindowTagger, folder: Path, title: str, runtime: OnnxruntimeWeb, *, tolerance: float = 1e-4
) -> float:
    """Write the page of a tagger, replacing an earlier one.

    Parameters
    ----------
    tagger
        Its networks become one graph that averages their probabilities; they are computed in float32.
    folder
        A new or empty folder, or one of an earlier page.
    title
        Title of the page.
    runtime
        From `load_onnxruntime_web`.
    tolerance
        As in `export_onnx`.

    Returns
    -------
    The largest difference of probabilities between torch and onnxruntime.

    Raises
    ------
    CheckpointError
        If the folder holds other files, or as in `export_onnx`.
    MissingDependencyError
        As in `export_onnx`.
    """
    texts = {
        **tagger_files(*_SCRIPTS),
        _SETTINGS: json.dumps(_settings(tagger, runtime), allow_nan=False, ensure_ascii=False) + "\n",
        _LICENSE: read_package_text("fatai.web", _LICENSE),
        _INDEX: tagger_page(
            title, tagger, _LIMITS, script=_SCRIPT, policy=_POLICY,
            note="They are tagged by this browser, and sent nowhere.",
        ),
    }
    check_target(folder, {*texts, _NETWORK, _OVERVIEW, _RUNTIME, _WASM}, "such a page")
    # Without index.html there is no page: an interrupted export leaves nothing that looks complete.
    (folder / _INDEX).unlink(missing_ok=True)
    prior = np.zeros(len(tagger.tags))  # not part of the graph
    models = [Pretrained(network, tagger.tags, tagger.settings, prior, None, {}, {}) for network in tagger.networks]
    difference = export_onnx(models, folder / _NETWORK, weights=tagger.weights.tolist(), tolerance=tolerance)
    _write_overview(tagger, folder / _OVERVIEW)
    for name, content in ((_RUNTIME, _without_source_map(runtime.script)), (_WASM, runtime.wasm)):
        with write_file(folder / name) as temporary:
            temporary.write_bytes(content)
    for name, text in texts.items():
        write_text(folder / name, text)
    return difference


def _settings(tagger: SlidingWindowTagger, runtime: OnnxruntimeWeb) -> dict[str, Any]:
    """Return all that the page computes with beside the graphs."""
    settings, thresholds, calibration = tagger.settings, tagger.thresholds, tagger.calibration
    front_end = overview_front_end(settings.sr)
    return {
        "fatai": __version__,
        "onnxruntime_web": runtime.version,
        "tags": list(tagger.tags),
        "sr": settings.sr,
        "samples": settings.crop_samples,
        "step": tagger.step,
        "pad_mode": settings.pad_mode,
        "channel": settings.channel,
        "silence_db": tagger.silence_db,
        "prior": None if tagger.prior is None else tagger.prior.tolist(),
        "calibration": None if calibration is None else {
            **{name: list(getattr(calibration, name)) for name in ("slope", "shift", "low", "high")},
            "floor": FLOOR if calibration.low else FINE_FLOOR,
        },
        "thresholds": None if thresholds is None else [thresholds[tag] for tag in tagger.tags],
        "shown": {"min_prob": MIN_PROB, "min_tags": MIN_TAGS, "max_tags": MAX_TAGS},
        "overview": {
            "n_fft": front_end.n_fft,
            "rows": front_end.rows,
            "columns": OVERVIEW_COLUMNS,
            "range_db": OVERVIEW_DB,
            "palette": cmap_colors("magma").tobytes().hex(),
            "ticks": frequency_ticks(front_end, front_end.rows),
        },
    }


def _write_overview(tagger: SlidingWindowTagger, path: Path) -> None:
    """Write the graph from frames (frames, samples) to decibels (frames, bands, 1), for the picture of a sound."""
    front_end = overview_front_end(tagger.settings.sr)
    sound = synthesize_sound(tagger.settings)
    frames = sound.repeat(-(-3 * front_end.n_fft // len(sound)))[:3 * front_end.n_fft].reshape(3, -1)
    write_graph(
        front_end.build().eval(), frames, path, name="the spectrogram of the page", output="decibels",
        tolerance=_OVERVIEW_TOLERANCE_DB,
    )


def _without_source_map(script: bytes) -> bytes:
    """Return a script without the comment that names its source map, a file that the folder lacks."""
    lines = script.split(b"\n")
    return b"\n".join(line for line in lines if not line.startswith(b"//# sourceMappingURL="))
