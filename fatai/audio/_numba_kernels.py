"""The inner loops of spectra on a CPU, compiled: what torch and NumPy do in several passes over memory is done in one.

A module of its own, since importing numba takes time that only a first spectrogram on a CPU shall cost. Compiled code is kept on disk,
so it is made once on a machine; it runs in one thread, without the interpreter's lock. Arrays are contiguous along their last axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

__all__ = ["band_levels", "decibels", "doubtful_frames", "stretched", "windowed"]


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Sums in any order, but inf and NaN as they are; no exceptions.
    options: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written to
        return numba.njit(**options)(function)


@_compiled
def windowed(
    wave: np.ndarray, starts: np.ndarray, window: np.ndarray, out: np.ndarray
) -> None:  # pragma: no cover - compiled
    """Stretches of a wave (samples,) from `starts` (frames,) on, times the window, into `out` (frames, length of the window).

    Beyond the ends of the wave are zeros: a stretch may start before it, or end behind it.
    """
    for i in range(len(starts)):
        left = min(max(0, -starts[i]), len(window))
        right = max(left, min(len(window), len(wave) - starts[i]))
        out[i, :left] = 0
        out[i, right:] = 0
        stretch, weights, row = wave[starts[i] + left:starts[i] + right], window[left:right], out[i, left:right]
        for k in range(len(row)):
            row[k] = stretch[k] * weights[k]


@_compiled
def band_levels(
    parts: np.ndarray,
    root: bool,
    first: np.ndarray,
    ends: np.ndarray,
    weights: np.ndarray,
    at: np.ndarray,
    levels: np.ndarray,
    sums: np.ndarray,
) -> None:  # pragma: no cover - compiled
    """Levels of spectra in bands.

    Parameters
    ----------
    parts
        Shape (frames, 2 * bins): real and imaginary parts in turn, float32 or float64.
    root
        Whether levels are magnitudes instead of powers.
    first, ends, weights
        Bands: the first bin of each, shape (rows,); the weights of its bins, for all bands in one array; where those of each band end.
    at
        Shape (frames,): the places of the frames in `levels` and `sums`.
    levels, sums
        Written to: shape (rows, all frames), the weighted sums; shape (all frames,), the sums over all bins.
    """
    # Four frames at a time: a narrow band is a few additions that wait for one another, so those of other frames fit in between.
    rows, last = np.empty((4, parts.shape[1] // 2), np.float32), len(parts) - 1
    for i in range(0, len(parts), 4):
        for j in range(4):
            frame, row, total = parts[min(i + j, last)], rows[j], np.float32(0)
            for k in range(len(row)):
                level = np.float32(frame[2 * k] * frame[2 * k] + frame[2 * k + 1] * frame[2 * k + 1])
                if root:
                    level = np.sqrt(level)
                row[k] = level
                total += level
            sums[at[min(i + j, last)]] = total
        at_0, at_1, at_2, at_3 = at[i], at[min(i + 1, last)], at[min(i + 2, last)], at[min(i + 3, last)]
        end = 0
        for band in range(len(first)):
            start, end = end, ends[band]
            bins, band_weights = slice(first[band], first[band] + end - start), weights[start:end]
            row_0, row_1, row_2, row_3 = rows[0, bins], rows[1, bins], rows[2, bins], rows[3, bins]
            sum_0 = sum_1 = sum_2 = sum_3 = np.float32(0)
            for k in range(len(band_weights)):
                sum_0 += row_0[k] * band_weights[k]
                sum_1 += row_1[k] * band_weights[k]
                sum_2 += row_2[k] * band_weights[k]
                sum_3 += row_3[k] * band_weights[k]
            levels[band, at_0], levels[band, at_1], levels[band, at_2], levels[band, at_3] = sum_0, sum_1, sum_2, sum_3


@_compiled
def doubtful_frames(
    levels: np.ndarray, sums: np.ndarray, faint: np.ndarray, floor: float
) -> np.ndarray:  # pragma: no cover - compiled
    """Which of the frames of `levels` (rows, frames) have a level above `floor`, yet below their sum times `faint` (rows,)."""
    found = np.zeros(levels.shape[1], np.bool_)
    for band in range(len(levels)):
        row = levels[band]
        for i in range(len(row)):
            found[i] |= (row[i] > floor) & (row[i] < sums[i] * faint[band])
    return found.nonzero()[0]


@_compiled
def decibels(levels: np.ndarray, scale: float, floor: float) -> None:  # pragma: no cover - compiled
    """Turn `levels` (rows, frames) into scale * log10(max(level, floor)); what is not finite becomes inf.

    For the logarithm of m * 2 ** e, with m between the roots of 1/2 and of 2, a few terms of e * ln 2 + 2 artanh((m - 1) / (m + 1))
    are enough, and many of these are computed at once: it takes a third of the time of torch's.
    """
    factor, least, exponents = (
        np.float32(scale / np.log(10.0)),
        np.float32(max(floor, 1.2e-38)),
        np.empty(levels.shape[1], np.float32),
    )
    for band in range(len(levels)):
        row = levels[band]
        for i in range(len(row)):
            row[i] = least if row[i] < least else row[i]
        bits = row.view(np.int32)
        for i in range(len(row)):
            exponent = (bits[i] - 0x3F3504F3) >> 23  # the bits of the root of 1/2
            exponents[i] = exponent if exponent < 128 else np.inf
            bits[i] -= exponent << 23
        for i in range(len(row)):
            s = (row[i] - np.float32(1)) / (row[i] + np.float32(1))
            square = s * s
            series = s * (
                np.float32(2) + square * (np.float32(2 / 3) + square * (np.float32(2 / 5) + square * np.float32(2 / 7)))
            )
            row[i] = factor * (exponents[i] * np.float32(np.log(2)) + series)


@_compiled
def stretched(
    levels: np.ndarray, low: np.float32, high: np.float32, flat: float
) -> None:  # pragma: no cover - compiled
    """Stretch `levels` (rows, frames) from low..high to 0..255 and cut them down to whole numbers; all 0 if that range is at most flat."""
    width = high - low if high - low > flat else np.float32(np.inf)
    for band in range(len(levels)):
        row = levels[band]
        for i in range(len(row)):
            row[i] = np.floor(np.float32(255) * (row[i] - low) / width)
