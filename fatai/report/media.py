"""Sounds and pictures embedded in a page: data URIs and inline SVG.

Conventions: a *wave* has the shape (samples,), values in [-1, 1]; a *spectrogram* has the shape (rows, frames), lowest
frequency first; both may be arrays or tensors. Untrusted words are escaped here. The same input gives the same bytes.
SVG text has the color of the page's text, so that light and dark pages show it; colors of data suit every kind of color
vision.
"""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor
from torch.nn.functional import pad

from fatai.audio.frequency_axis import format_hz, frequency_ticks
from fatai.audio.front_ends import FrontEnd
from fatai.errors import ShapeError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "COLORS",
    "MAX_SECONDS",
    "OverviewImage",
    "audio_player",
    "audio_uri",
    "figure_svg",
    "image_uri",
    "new_figure",
    "overview_image",
    "shorten",
    "spectrogram_svg",
]

MAX_SECONDS = 10.0
"""Maximum length of an embedded sound."""

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's colors, distinct for every kind of color vision; lines and hatches differ too."""

OVERVIEW_COLUMNS, OVERVIEW_DB = 1000, 80.0
"""Maximum width of an overview in pixels, and its range in dB below the maximum."""

_MP3_RATES = (16000, 22050, 24000, 32000, 44100, 48000)
_MP3_LEVEL = 0.8  # libsndfile's scale of constant rates: 96 kbit/s at 44.1 kHz, 40 at 16 kHz
_WAV_RATE = 16000
_MAX_PIXELS = (128, 400)  # rows, columns
_HEAT_PIXELS = (64, 128)
_STEPS_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_HEAT = (255, 140, 0)
_LEFT, _TOP, _INNER_WIDTH, _INNER_HEIGHT = 46, 6, 346, 144  # of a plot of 400 by 180 units
_PADDING, _MIN_PADDING_NAME = "#9a9a9a", 50  # of 400 units of width
# Replaced by the page's text color when the SVG is written.
_INK = "#010203"
_OVERVIEW_ROWS = 96
_FRAMES_AT_ONCE = 1024


# Sound

def audio_uri(wave: Any, sr: int, *, max_s: float = MAX_SECONDS) -> str:
    """Encode a wave as a data URI: MP3 of at most 96 kbit/s or, if libsndfile cannot write it, WAV of 16 kHz.

    One second takes at most 13 kB as MP3, 32 kB as WAV, and a third more as text.

    Parameters
    ----------
    wave
        Shape (samples,).
    sr
        Sampling rate in Hz.
    max_s
        Only the first `max_s` seconds are encoded.

    Raises
    ------
    ShapeError
        If there is no sample or more than one channel.
    """
    import soundfile as sf

    samples = _to_numpy(wave)
    if samples.ndim != 1 or not len(samples):
        raise ShapeError(f"got a wave of shape {samples.shape}; expected (samples,) with at least one sample")
    kept = np.clip(np.nan_to_num(samples[:max(1, round(max_s * sr))]), -1, 1)
    if "MP3" in sf.available_formats():
        rate = min((r for r in _MP3_RATES if r >= sr), default=_MP3_RATES[-1])
        return _data_uri("audio/mpeg", _encode_mp3(_resample(kept, sr, rate), rate))
    file = io.BytesIO()
    rate = min(sr, _WAV_RATE)
    sf.write(file, _resample(kept, sr, rate), rate, format="WAV", subtype="PCM_16")
    return _data_uri("audio/wav", file.getvalue())


def audio_player(wave: Any, sr: int, label: str = "") -> Markup:
    """Return an HTML player of a wave, shape (samples,) at `sr` Hz; screen readers read `label`."""
    uri = audio_uri(wave, sr)
    return Markup('<audio controls preload="metadata" src="{}" aria-label="{}"></audio>').format(uri, label)


def _encode_mp3(samples: np.ndarray, sr: int) -> bytes:
    import soundfile as sf

    file = io.BytesIO()
    try:
        encoder = sf.SoundFile(file, "w", sr, 1, format="MP3", compression_level=_MP3_LEVEL, bitrate_mode="CONSTANT")
    except TypeError:  # soundfile before 0.13 has no constant rates
        encoder = sf.SoundFile(file, "w", sr, 1, format="MP3")
    with encoder:
        encoder.write(samples)
    return file.getvalue()


def _resample(samples: np.ndarray, sr: int, new_sr: int) -> np.ndarray:
    import soxr

    return samples if sr == new_sr else np.clip(soxr.resample(samples, sr, new_sr), -1, 1)


# Pictures

def image_uri(
    values: Any,
    *,
    cmap: str = "magma",
    vmin: float | None = None,
    vmax: float | None = None,
    max_size: tuple[int, int] = _MAX_PIXELS,
) -> str:
    """Encode a table as a data URI of a PNG with one pixel per value, the first row at the bottom.

    Parameters
    ----------
    values
        Shape (rows, columns); larger tables are averaged down to `max_size`. NaN and infinities are drawn as the lowest
        value.
    cmap
        Name of a color map of matplotlib.
    vmin, vmax
        Values at the ends of the color map; by default the minimum and the maximum.
    max_size
        Maximum number of rows and columns.
    """
    table = _downsample(np.nan_to_num(_to_table(values), nan=np.nan, posinf=np.nan, neginf=np.nan), max_size)
    finite = table[np.isfinite(table)]
    low = float(finite.min()) if vmin is None and len(finite) else vmin or 0.0
    high = float(finite.max()) if vmax is None and len(finite) else vmax or 0.0
    level = np.zeros(table.shape) if high <= low else (np.nan_to_num(table, nan=low) - low) / (high - low)
    return _png_uri((255 * level.clip(0, 1)).round().astype(np.uint8)[::-1], cmap_colors(cmap))


def spectrogram_svg(
    values: Any, front_end: FrontEnd, *, heat: Any = None, sound: tuple[float, float] = (0.0, 1.0), label: str = ""
) -> Markup:
    """Return a spectrogram as inline SVG, with axes in Hz and seconds.

    Parameters
    ----------
    values
        Shape (rows, frames), as `front_end` computes it.
    front_end
        Gives the frequencies of the rows and the seconds of a frame.
    heat
        Shape (rows, frames), within [0, 1]: drawn over the spectrogram, which is then gray; 1 is the strongest.
    sound
        Where the sound begins and ends, as fractions of the width; the padding at its sides is greyed.
    label
        Description for screen readers.
    """
    table = _to_table(values)
    layers = [_plot_image(image_uri(table, cmap="magma" if heat is None else "gray"), "pixelated")]
    if heat is not None:
        layers.append(_plot_image(_heat_uri(heat)))
    spans = [(start, end) for start, end in ((0.0, sound[0]), (sound[1], 1.0)) if end > start]
    layers += [_padding(start, end) for start, end in spans]
    seconds = table.shape[1] * front_end.seconds_per_frame
    return _plot_svg(layers, frequency_ticks(front_end, table.shape[0]), seconds, label)


def _plot_image(uri: str, rendering: str = "auto") -> Markup:
    """Return an image that fills a plot."""
    element = Markup(
        '<image x="{}" y="{}" width="{}" height="{}" preserveAspectRatio="none" image-rendering="{}" href="{}"/>'
    )
    return element.format(_LEFT, _TOP, _INNER_WIDTH, _INNER_HEIGHT, rendering, uri)


def _padding(start: float, end: float) -> Markup:
    """Return a gray rectangle over padding, given as fractions of the width, with its name if there is room for it."""
    x, width = _LEFT + _INNER_WIDTH * start, _INNER_WIDTH * (end - start)
    rect = Markup('<rect class="padding" x="{:.1f}" y="{}" width="{:.1f}" height="{}" fill="{}" fill-opacity="0.85"/>')
    drawn = rect.format(x, _TOP, width, _INNER_HEIGHT, _PADDING)
    if width < _MIN_PADDING_NAME:
        return drawn
    text = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="middle" fill="#000000">padding</text>')
    return drawn + text.format(x + width / 2, _TOP + _INNER_HEIGHT / 2)


def _plot_svg(layers: list[Markup], frequencies: Sequence[tuple[float, float]], seconds: float, label: str) -> Markup:
    """Return layers with axes: frequencies in Hz and their height from 0 to 1, and seconds from 0."""
    labels = [_text_left(_LEFT - 6, _TOP + _INNER_HEIGHT * (1 - y), format_hz(hz)) for hz, y in frequencies]
    below = _TOP + _INNER_HEIGHT
    labels += [_text_below(_LEFT + _INNER_WIDTH * x, below + 14, f"{s:g}") for s, x in _time_ticks(seconds)]
    labels += [
        _text_below(_LEFT + _INNER_WIDTH / 2, below + 27, "seconds"),
        Markup('<text transform="translate(9 {:.1f}) rotate(-90)" text-anchor="middle">Hz</text>').format(
            _TOP + _INNER_HEIGHT / 2
        ),
    ]
    frame = Markup(
        '<svg class="spectrogram" viewBox="0 0 400 180" role="img" aria-label="{}" font-size="11" '
        'fill="currentColor">{}</svg>'
    )
    return frame.format(label, Markup("").join([*layers, *labels]))


def _text_left(x: float, y: float, text: str) -> Markup:
    element = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="end" dominant-baseline="middle">{}</text>')
    return element.format(x, y, text)


def _text_below(x: float, y: float, text: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(x, y, text)


class OverviewImage(NamedTuple):
    """A spectrogram of a whole sound, without axes.

    Attributes
    ----------
    uri
        Data URI of a PNG without margins.
    ticks
        Frequencies in Hz and their height in the image, 0 at the bottom and 1 at the top.
    """

    uri: str
    ticks: list[tuple[float, float]]

    def svg(self, seconds: float, label: str = "") -> Markup:
        """Return it with axes, as `spectrogram_svg`, given the length of the sound."""
        return _plot_svg([_plot_image(self.uri)], self.ticks, seconds, label)


def overview_image(wave: Tensor, sr: int, columns: int = OVERVIEW_COLUMNS) -> OverviewImage:
    """Draw the mel spectrogram of a whole sound without margins, so that a page can place a playhead exactly on it.

    The range is 80 dB below the maximum. Memory does not grow with the length but with the frames only.

    Parameters
    ----------
    wave
        Shape (samples,).
    sr
        Sampling rate in Hz.
    columns
        Maximum width in pixels; the height is 96 pixels, or 48 at rates below 16 kHz.

    Raises
    ------
    ShapeError
        If there is no sample or more than one channel.
    """
    if wave.ndim != 1 or not len(wave):
        raise ShapeError(f"got a wave of shape {tuple(wave.shape)}; expected (samples,) with at least one sample")
    front_end = overview_front_end(sr)
    # A short sound gets enough frames to be legible, a long one no more than its columns can show.
    hop = int(min(front_end.n_fft // 2, max(front_end.n_fft // 16, len(wave) // columns)))
    front_end = front_end.replace(hop_length=hop)
    values = _spectrogram_in_parts(wave, front_end)
    high = float(values.max())
    low = high - OVERVIEW_DB if float(values.min()) < high else high  # silence is dark
    uri = image_uri(values, vmin=low, vmax=high, max_size=(_OVERVIEW_ROWS, columns))
    return OverviewImage(uri, frequency_ticks(front_end, front_end.rows))


def overview_front_end(sr: int) -> FrontEnd:
    """Return the front end of `overview_image` at a rate in Hz; the hop depends on the length of a sound."""
    n_fft = 2048 if sr >= 16000 else 512
    n_mels = _OVERVIEW_ROWS if n_fft == 2048 else _OVERVIEW_ROWS // 2
    return FrontEnd(sr=sr, n_fft=n_fft, center=False, n_mels=n_mels, fmin=20.0)


def cmap_colors(cmap: str) -> np.ndarray:
    """Return 256 colors of a color map of matplotlib, uint8, shape (256, 3)."""
    import matplotlib

    return matplotlib.colormaps[cmap](np.arange(256), bytes=True)[:, :3]


def _spectrogram_in_parts(wave: Tensor, front_end: FrontEnd) -> Tensor:
    """Compute the spectrogram of a wave, shape (rows, frames), some frames at a time."""
    n_fft, hop = front_end.n_fft, front_end.hop_length
    module, step = front_end.build(), _FRAMES_AT_ONCE * hop
    # Frame k is centered on sample k * hop, as if the whole wave were transformed at once.
    padded = pad(wave, (n_fft // 2, n_fft // 2))
    starts = range(0, len(padded) - n_fft + 1, step)
    with torch.inference_mode():
        return torch.cat([module(padded[None, start:start + step - hop + n_fft])[0] for start in starts], 1)


@contextmanager
def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> Iterator[tuple[Figure, Any]]:
    """Give a matplotlib figure of a size in inches and its axes, to be drawn by `figure_svg` inside the block.

    It belongs to no window and changes no setting of matplotlib. `options` go to `Figure.subplots`.
    """
    import matplotlib
    from matplotlib.figure import Figure

    colored = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    transparent = ("axes.facecolor", "figure.facecolor", "savefig.facecolor")
    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "fatai",
        "text.parse_math": False,
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "grid.alpha": 0.3,
        **dict.fromkeys(transparent, "none"),
        **dict.fromkeys(colored, _INK),
    }
    with matplotlib.rc_context():
        # Without the user's own settings, so that the same run gives the same picture everywhere.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(style)
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(rows, columns, **options)


def figure_svg(figure: Figure, label: str = "") -> Markup:
    """Return a figure of `new_figure` as inline SVG, within its block; text stays text, in the page's color."""
    file = io.StringIO()
    with warnings.catch_warnings():
        # The browser has the letters that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg"):].replace(_INK, "currentColor")
    # A style would apply to the whole page, and ids would occur twice; ids that are digests are needed and harmless.
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[A-Za-z.]+\d?[A-Za-z]*_\d+"', "", text)
    # The page sets the size; inside HTML no namespaces are needed.
    text = re.sub(r'^<svg .*?viewBox="([^"]*)".*?>', r'<svg viewBox="\1">', text, count=1, flags=re.DOTALL)
    start = Markup('<svg class="figure" role="img" aria-label="{}" ').format(label)
    return Markup(text.replace("<svg ", str(start), 1).replace("xlink:href", "href").strip())


def shorten(value: Any, max_length: int = 80) -> str:
    """Return a value as text of at most `max_length` characters."""
    text = str(value)
    return text if len(text) <= max_length else f"{text[:max_length - 1]}…"


def _to_numpy(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu().float().numpy()
    return np.asarray(values, dtype=np.float32)


def _to_table(values: Any) -> np.ndarray:
    table = _to_numpy(values)
    if table.ndim != 2 or 0 in table.shape:
        raise ShapeError(f"got values of shape {table.shape}; expected (rows, frames), none of them 0")
    return table


def _downsample(table: np.ndarray, max_size: tuple[int, int]) -> np.ndarray:
    """Average neighboring rows and columns so that there are at most `max_size`."""
    for axis, limit in enumerate(max_size):
        n = table.shape[axis]
        if n > limit:
            starts = np.arange(limit) * n // limit
            sums, counts = np.add.reduceat(table, starts, axis=axis), np.diff(np.append(starts, n))
            table = sums / (counts[:, None] if axis == 0 else counts)
    return table


def _heat_uri(heat: Any) -> str:
    """Encode a heat map, shape (rows, frames), as a PNG of one color, more opaque where it is stronger."""
    opacity = (255 * 0.8 * _downsample(_to_table(heat), _HEAT_PIXELS).clip(0, 1)).round().astype(np.uint8)[::-1]
    return _png_uri(opacity, np.tile(np.array(_HEAT, dtype=np.uint8), (256, 1)), opacity=bytes(range(256)))


def _png_uri(levels: np.ndarray, palette: np.ndarray, opacity: bytes | None = None) -> str:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(levels)).convert("L")
    image.putpalette(np.ascontiguousarray(palette).tobytes())
    file = io.BytesIO()
    image.save(file, format="PNG", compress_level=9, **({} if opacity is None else {"transparency": opacity}))
    return _data_uri("image/png", file.getvalue())


def _data_uri(mime_type: str, content: bytes) -> str:
    return f"data:{mime_type};base64,{base64.b64encode(content).decode('ascii')}"


def _time_ticks(seconds: float) -> list[tuple[float, float]]:
    step = next((s for s in _STEPS_S if seconds / s <= 8), _STEPS_S[-1])
    return [(round(k * step, 6), k * step / seconds) for k in range(int(seconds / step + 1e-9) + 1)]
