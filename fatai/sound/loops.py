"""The inner loops of spectra on a CPU, compiled: what torch and NumPy do in several passes over memory is done in one.

A module of its own, since importing numba takes time that only a first spectrogram on a CPU shall cost. Compiled code is kept on disk,
so it is made once on a machine; it runs in one thread, without the interpreter's lock. Arrays are contiguous along their last axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

__all__ = ["band_levels", "doubtful_frames", "windowed"]


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    options: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc", "contract", "nsz"}}  # sums in any order, but inf and NaN as they are
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written to
        return numba.njit(**options)(function)


@_compiled
def windowed(wave: np.ndarray, starts: np.ndarray, window: np.ndarray, out: np.ndarray) -> None:  # pragma: no cover - compiled
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
    parts: np.ndarray, root: bool, first: np.ndarray, ends: np.ndarray, weights: np.ndarray, at: np.ndarray, levels: np.ndarray,
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
    row = np.empty(parts.shape[1] // 2, np.float32)
    for i in range(len(parts)):
        total = np.float32(0)
        for k in range(len(row)):
            level = np.float32(parts[i, 2 * k] * parts[i, 2 * k] + parts[i, 2 * k + 1] * parts[i, 2 * k + 1])
            if root:
                level = np.sqrt(level)
            row[k] = level
            total += level
        sums[at[i]] = total
        start = 0
        for band in range(len(first)):
            band_weights = weights[start:ends[band]]
            bins = row[first[band]:first[band] + len(band_weights)]
            start, level = ends[band], np.float32(0)
            for k in range(len(band_weights)):
                level += bins[k] * band_weights[k]
            levels[band, at[i]] = level


@_compiled
def doubtful_frames(levels: np.ndarray, sums: np.ndarray, faint: np.ndarray, floor: float) -> np.ndarray:  # pragma: no cover - compiled
    """Which of the frames of `levels` (rows, frames) have a level above `floor`, yet below their sum times `faint` (rows,)."""
    found = np.zeros(levels.shape[1], np.bool_)
    for band in range(len(levels)):
        row = levels[band]
        for i in range(len(row)):
            found[i] |= (row[i] > floor) & (row[i] < sums[i] * faint[band])
    return found.nonzero()[0]
