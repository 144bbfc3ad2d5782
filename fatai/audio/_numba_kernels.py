"""Compiled inner loops of spectrograms on a CPU: one pass over memory where torch and NumPy need several.

The loops have a module of their own because importing numba takes time, which is spent at the first spectrogram on a
CPU only. Compiled code is cached on disk, so each machine compiles once; it runs in one thread, without the
interpreter's lock. Arrays are contiguous along their last axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

__all__ = ["cut_frames", "find_inexact_frames", "sum_bands", "to_decibels", "to_image"]


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Sums may be reordered; inf and NaN are kept; no exceptions.
    options: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's is writable
        return numba.njit(**options)(function)


@_compiled
def cut_frames(
    wave: np.ndarray, starts: np.ndarray, window: np.ndarray, out: np.ndarray
) -> None:  # pragma: no cover - compiled
    """Cut a wave into frames, multiply them by a window and write them to `out`.

    Parameters
    ----------
    wave
        Shape (samples,), float32. It is continued by zeros: a frame may start before it or end after it.
    starts
        Shape (frames,): first sample of each frame.
    window
        Shape (n_fft,), float32 or float64.
    out
        Shape (frames, n_fft), the dtype of `window`; written to.
    """
    for i in range(len(starts)):
        left = min(max(0, -starts[i]), len(window))
        right = max(left, min(len(window), len(wave) - starts[i]))
        out[i, :left] = 0
        out[i, right:] = 0
        piece, weights, row = wave[starts[i] + left:starts[i] + right], window[left:right], out[i, left:right]
        for k in range(len(row)):
            row[k] = piece[k] * weights[k]


@_compiled
def sum_bands(
    parts: np.ndarray,
    root: bool,
    first: np.ndarray,
    ends: np.ndarray,
    weights: np.ndarray,
    columns: np.ndarray,
    levels: np.ndarray,
    sums: np.ndarray,
) -> None:  # pragma: no cover - compiled
    """Sum the power or magnitude of spectra in bands.

    Parameters
    ----------
    parts
        Shape (frames, 2 * bins), float32 or float64: real and imaginary part of each bin, interleaved.
    root
        True for magnitudes, False for powers.
    first, ends, weights
        Bands. Shape (rows,): first bin of each band. Shape (rows,): end of each band's weights in `weights`. Shape
        (n,): weights of the bins of all bands, one band after another.
    columns
        Shape (frames,): index of each frame in `levels` and `sums`.
    levels, sums
        Written to. Shape (rows, all frames): weighted sums. Shape (all frames,): sums over all bins.
    """
    # Four frames at a time: in a narrow band each addition waits for the last one, so those of other frames run in
    # between.
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
            sums[columns[min(i + j, last)]] = total
        at_0, at_1 = columns[i], columns[min(i + 1, last)]
        at_2, at_3 = columns[min(i + 2, last)], columns[min(i + 3, last)]
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
def find_inexact_frames(
    levels: np.ndarray, sums: np.ndarray, min_fraction: np.ndarray, floor: float
) -> np.ndarray:  # pragma: no cover - compiled
    """Return the indices of frames with a level above `floor` that is less than a given fraction of the frame's sum.

    Parameters
    ----------
    levels
        Shape (rows, frames).
    sums
        Shape (frames,).
    min_fraction
        Shape (rows,).
    floor
        Lower levels are ignored.

    Returns
    -------
    Shape (n,), int64, rising.
    """
    found = np.zeros(levels.shape[1], np.bool_)
    for band in range(len(levels)):
        row = levels[band]
        for i in range(len(row)):
            found[i] |= (row[i] > floor) & (row[i] < sums[i] * min_fraction[band])
    return found.nonzero()[0]


@_compiled
def to_decibels(levels: np.ndarray, scale: float, floor: float) -> None:  # pragma: no cover - compiled
    """Convert `levels` (rows, frames) to scale * log10(max(level, floor)), in place; non-finite values become inf.

    The logarithm of m * 2 ** e, with m between the roots of 1/2 and of 2, is e * ln 2 + 2 artanh((m - 1) / (m + 1)), of
    which a few terms are enough. They are computed for many values at once, in a third of the time of torch's
    logarithm.
    """
    factor, lowest = np.float32(scale / np.log(10.0)), np.float32(max(floor, 1.2e-38))
    exponents = np.empty(levels.shape[1], np.float32)
    for band in range(len(levels)):
        row = levels[band]
        for i in range(len(row)):
            row[i] = lowest if row[i] < lowest else row[i]
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
def to_image(
    levels: np.ndarray, low: np.float32, high: np.float32, flat: float
) -> None:  # pragma: no cover - compiled
    """Scale `levels` (rows, frames) from low..high to 0..255 and round down, in place; 0 if the range is <= `flat`."""
    width = high - low if high - low > flat else np.float32(np.inf)
    for band in range(len(levels)):
        row = levels[band]
        for i in range(len(row)):
            row[i] = np.floor(np.float32(255) * (row[i] - low) / width)
