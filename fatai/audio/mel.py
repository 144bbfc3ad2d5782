"""The mel scale: frequencies that sound evenly spaced, and triangular filters around them.

Definitions are librosa's: Slaney's scale or HTK's, triangles that are straight in Hz, heights of 1 or such that areas are equal.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

__all__ = ["mel_filters", "mel_points"]


def _hz_to_mel(hz: float, htk: bool) -> float:
    """Slaney's scale is linear (3 mel in 200 Hz) up to 1 kHz = 15 mel, then 27 mel for each factor of 6.4."""
    if htk:
        return float(2595.0 * np.log10(1.0 + hz / 700.0))
    return hz * 3 / 200 if hz < 1000.0 else float(15.0 + 27.0 * np.log(hz / 1000.0) / np.log(6.4))


def _mel_to_hz(mel: np.ndarray, htk: bool) -> np.ndarray:
    if htk:
        return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    return np.where(mel < 15.0, mel * 200 / 3, 1000.0 * np.exp(np.log(6.4) / 27.0 * (np.maximum(mel, 15.0) - 15.0)))


def mel_points(n_mels: int, fmin: float, fmax: float, *, htk: bool = False) -> np.ndarray:
    """Feet and tops of `n_mels` triangles in Hz, evenly spaced in mel from `fmin` to `fmax`; shape (n_mels + 2,), rising."""
    return _mel_to_hz(np.linspace(_hz_to_mel(fmin, htk), _hz_to_mel(fmax, htk), n_mels + 2), htk)


@lru_cache(maxsize=32)
def mel_filters(
    sr: int, n_fft: int, n_mels: int, fmin: float, fmax: float, *, htk: bool = False, norm: str | None = "slaney",
) -> np.ndarray:
    """Triangular filters; those of `librosa.filters.mel`.

    Parameters
    ----------
    sr, fmin, fmax
        In Hz.
    n_fft
        Length of the transform in samples.
    norm
        "slaney" divides each triangle by half its width in Hz, None leaves its height at 1.

    Returns
    -------
    Shape (n_mels, n_fft // 2 + 1), float64, read-only. A filter narrower than the bins' spacing may be 0 everywhere.
    """
    points = mel_points(n_mels, fmin, fmax, htk=htk)
    bins = np.arange(n_fft // 2 + 1) * (sr / n_fft)
    widths = np.diff(points)[:, None]
    rising = (bins - points[:-2, None]) / widths[:-1]
    falling = (points[2:, None] - bins) / widths[1:]
    filters = np.maximum(0.0, np.minimum(rising, falling))
    if norm == "slaney":
        filters *= 2.0 / (points[2:] - points[:-2])[:, None]
    filters.setflags(write=False)
    return filters
