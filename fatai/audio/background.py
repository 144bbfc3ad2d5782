"""Sounds that hold no event: hum, hiss, rain, speech-shaped noise and silence, generated alike wherever they are made.

Networks that never saw such sounds mistake them for events. A wave is float32, shape (samples,), in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fatai.errors import OptionError
from fatai.io.lazy import signal
from fatai.registry import did_you_mean

__all__ = ["BACKGROUNDS", "synthesize_background"]

_SMOOTH_S = 0.4  # seconds over which levels drift


def synthesize_background(kind: str, seconds: float = 30.0, sr: int = 32000, seed: int = 0) -> Tensor:
    """Generate a sound without any event; the same arguments give the same sound.

    Parameters
    ----------
    kind
        One of `BACKGROUNDS`.
    seconds
        Length, 0.1 to 3600.
    sr
        Sampling rate in Hz, 8,000 to 192,000.
    seed
        Seed of all that is random: levels, pitch, noise.

    Raises
    ------
    OptionError
        If there is no such kind, or a number is out of range.
    """
    if kind not in BACKGROUNDS:
        raise OptionError(f"there is no background {kind!r}; {did_you_mean(kind, list(BACKGROUNDS))}")
    if not 0.1 <= seconds <= 3600 or not 8000 <= sr <= 192_000:
        raise OptionError(f"seconds is {seconds} and sr {sr}; expected 0.1 to 3600 s at 8,000 to 192,000 Hz")
    rng = np.random.default_rng([seed, list(BACKGROUNDS).index(kind)])
    wave = BACKGROUNDS[kind](rng, round(seconds * sr), sr)
    peak = np.abs(wave).max()
    if peak > 0:
        wave = wave * (10 ** (rng.uniform(-30, -6) / 20) / peak)
    return torch.from_numpy(wave.astype(np.float32))


def _hum(rng: np.random.Generator, n: int, sr: int) -> np.ndarray:
    """Mains hum: harmonics of about 50 or 60 Hz over faint noise."""
    t, hz = np.arange(n) / sr, rng.choice([50.0, 60.0]) * rng.uniform(0.998, 1.002)
    harmonics = [k for k in range(1, 21) if k * hz < sr / 2]
    levels = rng.uniform(0.2, 1, len(harmonics)) / np.array(harmonics)
    phases = rng.uniform(0, 2 * np.pi, len(harmonics))
    tones = sum(a * np.sin(2 * np.pi * k * hz * t + p) for a, k, p in zip(levels, harmonics, phases, strict=True))
    return np.asarray(tones) + 0.02 * rng.standard_normal(n)


def _hiss(rng: np.random.Generator, n: int, sr: int) -> np.ndarray:
    """Hiss of a recorder or of wind: noise that falls by a slope, with a level that drifts."""
    pole = rng.uniform(0.0, 0.95)
    return signal.lfilter([1.0], [1.0, -pole], rng.standard_normal(n)) * _drift(rng, n, sr, 0.3)


def _rain(rng: np.random.Generator, n: int, sr: int) -> np.ndarray:
    """Rain-like noise: many short decaying clicks over hiss."""
    drops = (rng.random(n) < rng.uniform(200, 2000) / sr) * rng.exponential(1.0, n)
    decay = np.exp(-1 / (0.0002 * sr))
    return signal.lfilter([1.0], [1.0, -decay], drops * rng.choice([-1.0, 1.0], n)) + 0.1 * rng.standard_normal(n)


def _speech_shaped(rng: np.random.Generator, n: int, sr: int) -> np.ndarray:
    """Noise with the long-term spectrum of speech: flat to about 500 Hz, then falling by 9 dB per octave."""
    spectrum = np.fft.rfft(rng.standard_normal(n))
    hz = np.fft.rfftfreq(n, 1 / sr)
    return np.fft.irfft(spectrum * (hz > 80) / (1 + (hz / 500) ** 1.5), n) * _drift(rng, n, sr, 0.5)


def _silence(rng: np.random.Generator, n: int, sr: int) -> np.ndarray:
    return np.zeros(n)


def _drift(rng: np.random.Generator, n: int, sr: int, depth: float) -> np.ndarray:
    """Return a slowly changing factor (n,), within about 1 +- `depth`."""
    knots = rng.uniform(1 - depth, 1 + depth, max(2, round(n / sr / _SMOOTH_S) + 1))
    return np.interp(np.linspace(0, len(knots) - 1, n), np.arange(len(knots)), knots)


BACKGROUNDS: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "hum": _hum, "hiss": _hiss, "rain": _rain, "speech_shaped": _speech_shaped, "silence": _silence,
}
"""Kinds of background."""
