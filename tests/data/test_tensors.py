"""Tensors that can be shown and played."""

import matplotlib.pyplot as plt
import numpy as np
import torch

from fatai.audio.front_ends import front_end
from fatai.data import show  # noqa: F401 - extends fastai's show_batch
from fatai.data.tensors import TensorSpec, TensorWave, audio_players


def test_a_spectrogram_has_hz_upwards_and_seconds_to_the_right():
    spec = TensorSpec(torch.randn(1, 64, 128))
    spec.front_end = front_end("ninth")
    axis = spec.show(title="Bark")
    assert axis.get_xlabel() == "seconds" and axis.get_ylabel() == "Hz" and axis.get_title() == "Bark"
    assert np.isclose(axis.get_xlim()[1], 128 * 690 / 44100)
    labels = {label.get_text(): height for label, height in zip(axis.get_yticklabels(), axis.get_yticks(), strict=True)}
    assert {"1k", "2k", "5k", "10k"} <= set(labels)
    centers = spec.front_end.frequencies_hz()
    np.testing.assert_allclose(np.interp(labels["2k"] - 0.5, np.arange(64), centers), 2000)
    plt.close("all")


def test_a_wave_shows_seconds_and_plays():
    wave = TensorWave(torch.zeros(44100))
    wave.sr = 22050
    assert np.isclose(wave.show().lines[0].get_xdata()[-1], 2, atol=1e-3)
    assert "<audio" in wave.hear()._repr_html_()
    plt.close("all")


def test_players_escape_file_names():
    html = audio_players([(np.zeros(10), 8000, "<b>")]).data
    assert "&lt;b&gt;" in html and "<audio" in html


def test_show_batch_draws_one_titled_spectrogram_per_clip(small_dls):
    axes = small_dls.show_batch(max_n=3)
    figure = plt.gcf()
    titles = [a.get_title() for a in figure.axes if a.get_title()]
    assert len(titles) == 3 and all(set(t.split("\n")) <= set(small_dls.tags) for t in titles), axes
    plt.close("all")


def test_a_batch_carries_its_waves_and_front_end(small_dls):
    spec, _ = small_dls.one_batch()
    assert spec.wave.shape == (16, 22050) and spec.front_end == small_dls.clip_config.front_end
