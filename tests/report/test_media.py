"""Embedded sounds and pictures: correct, bounded in size, escaped and reproducible."""

import base64
import io
import re
import warnings
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
import soundfile as sf
import torch
from PIL import Image

from fatai.audio.front_ends import front_end
from fatai.errors import ShapeError
from fatai.report import media
from fatai.report.media import (
    audio_player,
    audio_uri,
    figure_svg,
    image_uri,
    new_figure,
    overview_image,
    spectrogram_svg,
)

NINTH = front_end("ninth")


def content_of(uri, kind):
    """The bytes of a data URI of one kind."""
    start = f"data:{kind};base64,"
    assert uri.startswith(start)
    return base64.b64decode(uri[len(start):], validate=True)


def image_of(uri):
    return Image.open(io.BytesIO(content_of(uri, "image/png")))


def attributes(markup, name):
    """The attributes of every element of one name, as a browser's parser sees them."""
    found = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag == name:
                found.append(dict(attrs))

    Reader().feed(str(markup))
    return found


def tone(sr, hz, seconds):
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(sr * seconds)) / sr).astype(np.float32)


@pytest.mark.parametrize("sr", [8000, 16000, 22050, 32000, 44100, 96000])
@pytest.mark.parametrize("mp3", [True, False])
def test_a_sound_keeps_its_length_level_and_pitch(sr, mp3, monkeypatch):
    if not mp3:
        monkeypatch.setattr(sf, "available_formats", lambda: {"WAV": "WAV"})
    decoded, rate = sf.read(
        io.BytesIO(content_of(audio_uri(tone(sr, 440, 1.0), sr), "audio/mpeg" if mp3 else "audio/wav"))
    )
    assert len(decoded) / rate == pytest.approx(1.0, abs=0.1)
    middle = decoded[len(decoded) // 4:3 * len(decoded) // 4]
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.03)
    strongest = np.abs(np.fft.rfft(middle * np.hanning(len(middle)))).argmax() * rate / len(middle)
    assert strongest == pytest.approx(440, abs=4)


@pytest.mark.parametrize("mp3", [True, False])
def test_the_size_of_a_sound_is_bounded(mp3, rng, monkeypatch):
    if not mp3:
        monkeypatch.setattr(sf, "available_formats", lambda: {"WAV": "WAV"})
    uri = audio_uri(rng.uniform(-1, 1, 44100 * 12), 44100)
    assert len(content_of(uri, "audio/mpeg" if mp3 else "audio/wav")) <= media.MAX_SECONDS * (13_000 if mp3 else 32_100)
    decoded, rate = sf.read(io.BytesIO(content_of(uri, "audio/mpeg" if mp3 else "audio/wav")))
    assert len(decoded) / rate == pytest.approx(10, abs=0.15)


def test_silence_one_sample_nan_and_infinity_can_be_encoded():
    for wave in (torch.zeros(4000), np.ones(1), np.array([np.nan, np.inf, -3.0] * 500)):
        decoded, _ = sf.read(io.BytesIO(content_of(audio_uri(wave, 16000), "audio/mpeg")))
        assert len(decoded) and np.isfinite(decoded).all()


@pytest.mark.parametrize("shape", [(0,), (2, 100)])
def test_another_shape_is_an_error(shape):
    with pytest.raises(ShapeError, match=re.escape(f"shape {shape}; expected (samples,)")):
        audio_uri(np.zeros(shape), 16000)


def test_a_picture_has_a_pixel_for_each_value_and_the_first_row_below():
    image = image_of(image_uri(np.array([[0.0, 1.0, 0.5], [0.25, 0.75, np.nan]]), cmap="viridis"))
    got = np.asarray(image.convert("RGB"))
    expected = matplotlib.colormaps["viridis"](np.array([[64, 191, 0], [0, 255, 128]]), bytes=True)[..., :3]
    np.testing.assert_array_equal(got, expected)


def test_larger_pictures_are_averaged_down_and_flat_ones_are_dark():
    averaged = image_of(image_uri([[0, 2, 4, 6], [0, 2, 4, 6]], cmap="gray", vmin=0, vmax=6, max_size=(1, 2)))
    np.testing.assert_array_equal(np.asarray(averaged), [[round(255 / 6), round(255 * 5 / 6)]])
    assert image_of(image_uri(np.zeros((300, 900)))).size == (400, 128)
    assert np.unique(np.asarray(image_of(image_uri(np.full((4, 4), 7.0), cmap="gray")).convert("L"))).tolist() == [0]


def test_averaging_leaves_the_mean_of_even_cuts():
    table = np.arange(30, dtype=np.float32).reshape(5, 6)
    np.testing.assert_allclose(media._downsample(table, (5, 3)), table.reshape(5, 3, 2).mean(2))
    np.testing.assert_allclose(media._downsample(table, (1, 6)), table.mean(0, keepdims=True))


def test_a_spectrogram_has_hz_and_seconds_at_their_places():
    frames = 129  # of 690 samples at 44.1 kHz: 2.018 s
    drawn = spectrogram_svg(np.zeros((64, frames)), NINTH, label='<script>"')
    words = dict(zip(re.findall(r">([^<>]+)</text>", drawn), attributes(drawn, "text"), strict=True))
    assert {"Hz", "seconds", "100", "1k", "10k", "0", "1", "2"} <= set(words)
    assert float(words["1"]["x"]) - float(words["0"]["x"]) == pytest.approx(346 / (frames * 690 / 44100), abs=0.1)
    nearest = np.abs(NINTH.frequencies_hz() - 1000).argmin()
    assert float(words["1k"]["y"]) == pytest.approx(6 + 144 * (1 - (nearest + 0.5) / 64), abs=144 / 64)
    assert attributes(drawn, "svg")[0]["aria-label"] == '<script>"' and "<script" not in drawn


def test_heat_is_drawn_over_a_gray_spectrogram():
    drawn = spectrogram_svg(np.random.rand(64, 20), NINTH, heat=np.eye(64, 20))
    below, above = (image_of(image["href"]) for image in attributes(drawn, "image"))
    gray = np.asarray(below.convert("RGB"))
    assert (gray == gray[..., :1]).all()
    opacity = np.asarray(above.convert("RGBA"))[::-1, :, 3]
    assert above.size == (20, 64) and opacity[0, 0] == 204 and opacity[1, 0] == 0


@pytest.mark.parametrize("name", ["third_1d", "panns"])
def test_any_front_end_has_readable_ticks(name):
    made_by = front_end(name)
    drawn = spectrogram_svg(np.zeros((made_by.rows, 50)), made_by)
    heights = [float(t["y"]) for t in attributes(drawn, "text") if t.get("text-anchor") == "end"]
    assert len(heights) >= 3 and min(-np.diff(heights)) > 11, "words are 11 high"


def test_a_player_embeds_its_sound():
    (one,) = attributes(audio_player(tone(16000, 300, 0.5), 16000, 'a"><script>'), "audio")
    assert sf.info(io.BytesIO(content_of(one["src"], "audio/mpeg"))).duration == pytest.approx(0.5, abs=0.1)
    assert one["aria-label"] == 'a"><script>' and "controls" in one


def drawn_figure(title):
    with new_figure(4, 3) as (figure, axis):
        axis.plot([0, 1], [0, 1])
        axis.set(title=title, xlabel="epoch")
        return figure_svg(figure, title)


def test_a_figure_has_the_color_of_the_page_is_self_contained_and_reproducible():
    before = dict(matplotlib.rcParams)
    drawn = drawn_figure("$\\frac <script>&")
    assert drawn == drawn_figure("$\\frac <script>&")
    assert dict(matplotlib.rcParams) == before
    assert (
        "$\\frac &lt;script&gt;&amp;" in drawn
        and "<script" not in drawn
        and "http" not in drawn
        and "<style" not in drawn
    )
    assert "currentColor" in drawn and media._INK not in drawn and "#000000" not in drawn
    names = re.findall(r' id="([^"]*)"', drawn)
    assert set(re.findall(r'(?:href="#|url\(#)([^")]*)', drawn)) <= set(names), "every reference has a target"


def test_text_in_any_script_can_be_drawn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "雨" in drawn_figure("雨 \x0b")


def test_padding_at_the_sides_of_the_sound_is_greyed_and_named_where_there_is_room():
    inner = 400 - 46 - 8
    drawn = spectrogram_svg(np.zeros((64, 20)), NINTH, sound=(0.05, 0.5))
    found = re.findall(r'class="padding" x="(.*?)" y="6" width="(.*?)"', drawn)
    spans = [(float(x) - 46, float(width)) for x, width in found]
    np.testing.assert_allclose(spans, [(0, 0.05 * inner), (0.5 * inner, 0.5 * inner)], atol=0.06)
    assert drawn.count(">padding<") == 1
    assert "padding" not in spectrogram_svg(np.zeros((64, 20)), NINTH)


def test_the_picture_of_silence_is_dark_and_that_of_sound_is_not():
    dark, bright = (
        np.asarray(Image.open(io.BytesIO(content_of(overview_image(wave, 16000).uri, "image/png"))).convert("L"))
        for wave in (torch.zeros(8000), torch.rand(8000) - 0.5)
    )
    assert dark.max() < 10 and bright.max() > 200
