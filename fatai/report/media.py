"""Sounds and pictures that a page holds in itself: data URIs and inline SVG, nothing that has to be fetched.

Conventions: a wave is (samples,) in [-1, 1]; `values` of a spectrogram are (rows, frames), lowest frequency first, arrays or tensors. Words
that come from strangers are escaped here. The same input gives the same bytes. SVG draws its words in the page's own colour, so that a
light and a dark page both show them; colours of data are safe for every kind of colour vision.
"""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from fatai.errors import ShapeError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fatai.audio.front_ends import FrontEnd

__all__ = [
    "COLORS",
    "MOST_SECONDS",
    "figure_svg",
    "frequency_ticks",
    "new_figure",
    "picture",
    "player",
    "short",
    "sound",
    "spectrogram",
]

MOST_SECONDS = 10.0
"""Sound beyond this is not embedded."""

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Of Okabe and Ito, which all kinds of colour vision tell apart; lines and hatches differ too."""

_MP3_RATES = (16000, 22050, 24000, 32000, 44100, 48000)
_MP3_LEVEL = 0.8  # libsndfile's scale of constant rates: 96 kbit/s at 44.1 kHz, 40 at 16 kHz
_WAV_RATE = 16000
_MOST_PIXELS = (128, 400)  # rows, columns
_TICKS_HZ = (50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000)
_STEPS_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_HEAT = (255, 140, 0)
# Stands for the page's colour of words until the SVG is written.
_INK = "#010203"


# Sound

def sound(wave: Any, sr: int, *, most_s: float = MOST_SECONDS) -> str:
    """A data URI of a wave, shape (samples,): MP3 of at most 96 kbit/s or, where libsndfile cannot write that, WAV of 16 kHz.

    Only the first `most_s` seconds are kept, so no sound takes more than 13 kB a second of MP3 (32 kB of WAV), a third more as text.

    Raises
    ------
    ShapeError
        If there is no sample or more than one channel.
    """
    import soundfile as sf

    samples = _plain(wave)
    if samples.ndim != 1 or not len(samples):
        raise ShapeError(f"got a wave of shape {samples.shape}; expected (samples,) with at least one sample")
    kept = np.clip(np.nan_to_num(samples[:max(1, round(most_s * sr))]), -1, 1)
    if "MP3" in sf.available_formats():
        rate = min((r for r in _MP3_RATES if r >= sr), default=_MP3_RATES[-1])
        return _uri("audio/mpeg", _mp3(_resampled(kept, sr, rate), rate))
    file = io.BytesIO()
    sf.write(file, _resampled(kept, sr, min(sr, _WAV_RATE)), min(sr, _WAV_RATE), format="WAV", subtype="PCM_16")
    return _uri("audio/wav", file.getvalue())


def player(wave: Any, sr: int, label: str = "") -> Markup:
    """An HTML player of a wave; `label` is read aloud to those who don't see it."""
    return Markup('<audio controls preload="metadata" src="{}" aria-label="{}"></audio>').format(sound(wave, sr), label)


def _mp3(samples: np.ndarray, sr: int) -> bytes:
    import soundfile as sf

    file = io.BytesIO()
    try:
        encoder = sf.SoundFile(file, "w", sr, 1, format="MP3", compression_level=_MP3_LEVEL, bitrate_mode="CONSTANT")
    except TypeError:  # soundfile before 0.13 knows no rates
        encoder = sf.SoundFile(file, "w", sr, 1, format="MP3")
    with encoder:
        encoder.write(samples)
    return file.getvalue()


def _resampled(samples: np.ndarray, sr: int, to: int) -> np.ndarray:
    import soxr

    return samples if sr == to else np.clip(soxr.resample(samples, sr, to), -1, 1)


# Pictures

def picture(
    values: Any,
    *,
    colours: str = "magma",
    low: float | None = None,
    high: float | None = None,
    most: tuple[int, int] = _MOST_PIXELS,
) -> str:
    """A data URI of a PNG with a pixel for each value, the first row at the bottom.

    Parameters
    ----------
    values
        Shape (rows, columns). More than `most` are averaged down to so many. What is no number is drawn as the lowest.
    colours
        Name of a colour map of matplotlib.
    low, high
        Values of the two ends of the map; by default the lowest and the highest.
    """
    import matplotlib

    table = _shrunk(np.nan_to_num(_table(values), nan=np.nan, posinf=np.nan, neginf=np.nan), most)
    there = table[np.isfinite(table)]
    low = float(there.min()) if low is None and len(there) else low or 0.0
    high = float(there.max()) if high is None and len(there) else high or 0.0
    level = np.zeros(table.shape) if high <= low else (np.nan_to_num(table, nan=low) - low) / (high - low)
    palette = matplotlib.colormaps[colours](np.arange(256), bytes=True)[:, :3]
    return _png((255 * level.clip(0, 1)).round().astype(np.uint8)[::-1], palette)


def spectrogram(values: Any, front_end: FrontEnd, *, heat: Any = None, label: str = "") -> Markup:
    """Inline SVG of a spectrogram, frequency in Hz upwards and seconds to the right.

    Parameters
    ----------
    values
        Shape (rows, frames), as `front_end` makes them.
    heat
        Shape (rows, frames), within [0, 1]: laid over the spectrogram, which is then grey; 1 is the strongest.
    label
        What the picture shows, for those who don't see it.
    """
    table = _table(values)
    width, height, left, bottom = 400, 180, 46, 30
    inner_w, inner_h = width - left - 8, height - bottom - 6
    image = Markup('<image x="{}" y="6" width="{}" height="{}" preserveAspectRatio="none" href="{}"{}/>')
    layers = [image.format(left, inner_w, inner_h, picture(table, colours="magma" if heat is None else "gray"),
                           Markup(' style="image-rendering:pixelated"'))]
    if heat is not None:
        layers.append(image.format(left, inner_w, inner_h, _glow(heat), ""))
    words = [Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="end" dominant-baseline="middle">{}</text>').format(
        left - 6, 6 + inner_h * (1 - at), _short_hz(hz)) for hz, at in frequency_ticks(front_end, table.shape[0])]
    words += [
        Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{:g}</text>').format(
            left + inner_w * at, height - bottom + 14, s
        )
        for s, at in _time_ticks(table.shape[1] * front_end.seconds_per_frame)
    ]
    words += [
        Markup('<text x="{:.1f}" y="{}" text-anchor="middle">seconds</text>').format(left + inner_w / 2, height - 3),
        Markup('<text transform="translate(9 {:.1f}) rotate(-90)" text-anchor="middle">Hz</text>').format(
            6 + inner_h / 2
        ),
    ]
    frame = Markup(
        '<svg class="spectrogram" viewBox="0 0 {} {}" role="img" aria-label="{}" font-size="11" fill="currentColor">{}</svg>'
    )
    return frame.format(width, height, label, Markup("").join([*layers, *words]))


@contextmanager
def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> Iterator[tuple[Figure, Any]]:
    """A matplotlib figure of a size in inches and its axes, for `figure_svg`; belongs to no window and leaves no setting changed."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "fatai",
        "text.parse_math": False,
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
        "legend.frameon": False,
        "grid.alpha": 0.3,
        **dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), _INK
        ),
    }
    with matplotlib.rc_context():
        # Of the user's own settings none, or the same run would be drawn otherwise elsewhere.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(style)
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(rows, columns, **options)


def figure_svg(figure: Figure, label: str = "") -> Markup:
    """Inline SVG of a figure of `new_figure`, within its block; words are words, in the page's colour."""
    file = io.StringIO()
    with warnings.catch_warnings():
        # The browser has the letters that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg"):].replace(_INK, "currentColor")
    # A style would hold for the whole page, and names of parts would be there twice; those that are digests are needed and harmless.
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[A-Za-z.]+\d?[A-Za-z]*_\d+"', "", text)
    # Sizes of the page rule, not points; names of other vocabularies are not needed inside HTML.
    text = re.sub(r'^<svg .*?viewBox="([^"]*)".*?>', r'<svg viewBox="\1">', text, count=1, flags=re.DOTALL)
    return Markup(text.replace("<svg ", str(Markup('<svg class="figure" role="img" aria-label="{}" ').format(label)), 1)
                  .replace("xlink:href", "href").strip())


def short(words: Any, most: int = 80) -> str:
    """Words, cut where they are too long to be shown."""
    text = str(words)
    return text if len(text) <= most else f"{text[:most - 1]}…"


def _plain(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu().float().numpy()
    return np.asarray(values, dtype=np.float32)


def _table(values: Any) -> np.ndarray:
    table = _plain(values)
    if table.ndim != 2 or 0 in table.shape:
        raise ShapeError(f"got values of shape {table.shape}; expected (rows, frames), none of them 0")
    return table


def _shrunk(table: np.ndarray, most: tuple[int, int]) -> np.ndarray:
    """At most `most` rows and columns: the mean of those that fall together."""
    for axis, limit in enumerate(most):
        n = table.shape[axis]
        if n > limit:
            starts = np.arange(limit) * n // limit
            sums, counts = np.add.reduceat(table, starts, axis=axis), np.diff(np.append(starts, n))
            table = sums / (counts[:, None] if axis == 0 else counts)
    return table


def _glow(heat: Any) -> str:
    """A PNG of one colour, the more opaque the stronger the heat."""
    opacity = (255 * 0.8 * _shrunk(_table(heat), (64, 128)).clip(0, 1)).round().astype(np.uint8)[::-1]
    return _png(opacity, np.tile(np.array(_HEAT, dtype=np.uint8), (256, 1)), opacity=bytes(range(256)))


def _png(levels: np.ndarray, palette: np.ndarray, opacity: bytes | None = None) -> str:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(levels)).convert("L")
    image.putpalette(np.ascontiguousarray(palette).tobytes())
    file = io.BytesIO()
    image.save(file, format="PNG", compress_level=9, **({} if opacity is None else {"transparency": opacity}))
    return _uri("image/png", file.getvalue())


def _uri(kind: str, held: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(held).decode('ascii')}"


def frequency_ticks(front_end: FrontEnd, rows: int) -> list[tuple[float, float]]:
    """Frequencies in Hz and where their row's middle lies, 0 at the bottom and 1 at the top; no two too near to be read."""
    centres = front_end.frequencies_hz()
    centres = centres if len(centres) == rows else np.linspace(centres[0], centres[-1], rows)
    ticks: list[tuple[float, float]] = []
    for hz in _TICKS_HZ:
        if centres[0] <= hz <= centres[-1]:
            at = (float(np.interp(hz, centres, np.arange(rows))) + 0.5) / rows
            if not ticks or at - ticks[-1][1] > 0.09:
                ticks.append((hz, at))
    return ticks


def _time_ticks(seconds: float) -> list[tuple[float, float]]:
    step = next((s for s in _STEPS_S if seconds / s <= 8), _STEPS_S[-1])
    return [(round(k * step, 6), k * step / seconds) for k in range(int(seconds / step + 1e-9) + 1)]


def _short_hz(hz: float) -> str:
    return f"{hz / 1000:g}k" if hz >= 1000 else f"{hz:g}"
