"""MkDocs hook: draws the pictures of the page on crop, front end and network from bundled clips."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

CLIP = "899d783b.ogg"  # a rooster, 2.45 s


def front_ends() -> Any:
    """Draw one clip with every registered front end."""
    from fatai.registry import FRONT_ENDS

    names = FRONT_ENDS.names()
    figure, axes = _subplots(3, -(-len(names) // 3), 2.6)
    for name, axis in zip(names, axes, strict=False):
        _draw(axis, name, name)
    return figure


def resolutions() -> Any:
    """Draw one clip with other windows, mel bands and PCEN."""
    figure, axes = _subplots(3, 2, 2.6)
    for axis, (title, settings) in zip(axes, {
        "ninth: window 1,920, hop 690, 64 bands": {},
        "short window: 512": {"n_fft": 512},
        "long window: 8,192": {"n_fft": 8192},
        "24 bands": {"n_mels": 24},
        "hop 2,760": {"hop_length": 2760},
        "PCEN": {"log": "pcen", "normalize": "none"},
    }.items(), strict=True):
        _draw(axis, "ninth", title, **settings)
    return figure


def crops() -> Any:
    """Draw the first pieces of one clip at several lengths of crops."""
    figure, axes = _subplots(4, 1, 2.6)
    for axis, crop_s in zip(axes, (0.25, 0.5, 1.0, 2.0), strict=True):
        _draw(axis, "ninth", f"crop_s = {crop_s:g}", crop_s=crop_s)
    return figure


FIGURES: dict[str, Callable[[], Any]] = {"front_ends": front_ends, "resolutions": resolutions, "crops": crops}


def on_files(files: Any, config: Any) -> Any:
    """Add the pictures."""
    from mkdocs.structure.files import File

    for name, draw in FIGURES.items():
        file = io.BytesIO()
        draw().savefig(file, format="png", dpi=110)
        files.append(File.generated(config, f"pictures/{name}.png", content=file.getvalue()))
    return files


def _subplots(columns: int, rows: int, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.axis("off")  # until something is drawn
    return figure, axes


def _draw(axis: Any, name: str, title: str, crop_s: float = 2.0, **settings: Any) -> None:
    """Draw the beginning of the clip as a front end transforms it."""
    from fatai.audio.front_ends import front_end
    from fatai.audio.io import load_audio
    from fatai.audio.waveform import fit_length, trim_silence
    from fatai.data.datasets.fat2019 import fat_sample
    from fatai.data.tensors import TensorSpec

    fe = front_end(name, **settings)
    n = round(crop_s * fe.sr)
    wave = trim_silence(load_audio(fat_sample() / "train_curated" / CLIP, fe.sr))[:n]
    spec = TensorSpec(fe.build()(fit_length(wave, n)[None])[0][None])
    spec.front_end = fe
    axis.axis("on")
    spec.show(ctx=axis, title=f"{title}\n{spec.shape[-2]} x {spec.shape[-1]}")
