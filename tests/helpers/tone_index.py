"""Recordings of tones, and a network that measures their spectrum: an index whose right answers are known."""

import numpy as np
import soundfile as sf
import torch

from fatai.audio.front_ends import FrontEnd
from fatai.data.config import ClipConfig
from fatai.inference.search.encoder import WindowEncoder
from fatai.models.base import SpectrogramModel

SR = 8000


class MeanSpectrum(SpectrogramModel):
    """Features are the mean of each mel band; the logit of "low" is high where the lower half has more power."""

    def features(self, spec):
        return spec.mean(dim=(1, 3)) + 10

    def classify(self, features):
        half = features.shape[1] // 2
        low = features[:, :half].mean(1) - features[:, half:].mean(1)
        return torch.stack([low, -low], 1)


def tone_encoder(tags=("low", "high")):
    front_end = FrontEnd(sr=SR, n_fft=256, hop_length=128, n_mels=16, fmin=50.0)
    return WindowEncoder(MeanSpectrum(max(len(tags), 2), 1), ClipConfig(front_end, crop_s=1.0), tags)


def tone(hz, seconds=1.0, seed=0):
    t = np.arange(round(seconds * SR)) / SR
    noise = np.random.default_rng(seed).standard_normal(len(t))
    return (0.3 * np.sin(2 * np.pi * hz * t) + 0.01 * noise).astype(np.float32)


def write_tones(folder, n=12, seconds=1.0):
    """Write n sounds, alternately of about 300 and 2500 Hz, named by their kind; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k in range(n):
        kind, hz = (("low", 300), ("high", 2500))[k % 2]
        paths.append(folder / f"{kind}{k}.wav")
        sf.write(paths[-1], tone(hz + 7 * k, seconds, seed=k), SR)
    return paths
