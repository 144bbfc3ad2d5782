"""Mel scales and mel filters, equal to librosa's to the last digit.

`librosa.filters` imports scipy.signal and scipy.stats: 0.7 s beside torch and numba, longer than predicting a sound;
these few formulas are all that a front end needs of it. Frequencies are in Hz; `htk` chooses the formula of HTK,
otherwise that of Slaney's Auditory Toolbox, which is linear below 1 kHz.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

__all__ = ["mel_filters", "mel_frequencies", "mel_frequency_filters"]

# Slaney's scale: linear up to 1 kHz, then 27 mels for each factor of 6.4.
_HZ_PER_MEL = 200.0 / 3
_LOG_FROM_HZ = 1000.0
_LOG_FROM_MEL = _LOG_FROM_HZ / _HZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27.0


def hz_to_mel(hz: float | np.ndarray, *, htk: bool = False) -> np.ndarray:
    """Convert frequencies of any shape from Hz to mels.

    Examples
    --------
    >>> hz_to_mel(np.array([0.0, 500.0, 1000.0])).round(9).tolist()
    [0.0, 7.5, 15.0]
    """
    hz = np.asarray(hz, dtype=np.float64)
    if htk:
        return 2595.0 * np.log10(1.0 + hz / 700.0)
    above = np.maximum(hz, _LOG_FROM_HZ)
    return np.where(
        hz >= _LOG_FROM_HZ, _LOG_FROM_MEL + np.log(above / _LOG_FROM_HZ) / _LOG_STEP, hz / _HZ_PER_MEL
    )


def mel_to_hz(mels: float | np.ndarray, *, htk: bool = False) -> np.ndarray:
    """Convert frequencies of any shape from mels to Hz."""
    mels = np.asarray(mels, dtype=np.float64)
    if htk:
        return 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    above = np.maximum(mels, _LOG_FROM_MEL)
    return np.where(
        mels >= _LOG_FROM_MEL, _LOG_FROM_HZ * np.exp(_LOG_STEP * (above - _LOG_FROM_MEL)), _HZ_PER_MEL * mels
    )


def mel_frequencies(n: int, fmin: float, fmax: float, htk: bool) -> np.ndarray:
    """Return `n` frequencies in Hz, evenly spaced in mel from `fmin` to `fmax`, shape (n,), float64."""
    return mel_to_hz(np.linspace(hz_to_mel(fmin, htk=htk), hz_to_mel(fmax, htk=htk), n), htk=htk)


@lru_cache(maxsize=32)
def mel_filters(
    sr: int, n_fft: int, n_mels: int, fmin: float, fmax: float, htk: bool, norm: str | None
) -> np.ndarray:
    """Return filters that are triangles over Hz, as `librosa.filters.mel`.

    Parameters
    ----------
    sr, n_fft
        Sample rate, and length of the transform in samples.
    n_mels
        Number of filters; their centres are evenly spaced in mel between `fmin` and `fmax`.
    norm
        "slaney" gives each triangle the area 1 over Hz, None the height 1.

    Returns
    -------
    Shape (n_mels, n_fft // 2 + 1), float64, read-only. A filter narrower than the spacing of the bins may be 0
    everywhere.
    """
    edges = mel_frequencies(n_mels + 2, fmin, fmax, htk)
    widths, ramps = np.diff(edges), np.subtract.outer(edges, np.fft.rfftfreq(n=n_fft, d=1.0 / sr))
    lower, upper = -ramps[:-2] / widths[:-1, None], ramps[2:] / widths[1:, None]
    filters = np.maximum(0, np.minimum(lower, upper))
    if norm == "slaney":
        filters *= (2.0 / (edges[2:] - edges[:-2]))[:, None]
    filters.setflags(write=False)
    return filters


@lru_cache(maxsize=32)
def mel_frequency_filters(
    sr: int, n_fft: int, n_mels: int, fmin: float, fmax: float, htk: bool, norm: str | None
) -> np.ndarray:
    """Return filters as `mel_filters` does, but triangles over the mel scale."""
    edges = np.linspace(hz_to_mel(fmin, htk=htk), hz_to_mel(fmax, htk=htk), n_mels + 2)
    left, center, right = (edges[i:n_mels + i, None] for i in range(3))
    mels = hz_to_mel(np.arange(n_fft // 2 + 1) * (sr / n_fft), htk=htk)
    filters = np.minimum((mels - left) / (center - left), (right - mels) / (right - center)).clip(min=0)
    if norm == "slaney":
        filters = filters * (2 / (mel_to_hz(right, htk=htk) - mel_to_hz(left, htk=htk)))
    filters.setflags(write=False)
    return filters
