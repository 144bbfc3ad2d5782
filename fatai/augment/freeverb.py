"""The two recursions that Freeverb is made of, compiled: sample by sample, as they are written down.

A module of its own, since importing numba takes time that only a reverb shall cost.
"""

from __future__ import annotations

import numba
import numpy as np

__all__ = ["diffused", "echo"]


@numba.njit(cache=True)
def echo(dry: np.ndarray, delay: int, feedback: float, dull: float) -> np.ndarray:  # pragma: no cover - compiled
    """A delay line of `delay` samples that feeds its output back, dulled by a one-pole low-pass; float64 (samples,)."""
    line, out, store, at = np.zeros(delay), np.empty_like(dry), 0.0, 0
    for i in range(len(dry)):
        out[i] = line[at]
        store = out[i] + (store - out[i]) * dull
        line[at] = dry[i] + feedback * store
        at = at + 1 if at + 1 < delay else 0
    return out


@numba.njit(cache=True)
def diffused(sound: np.ndarray, delay: int) -> np.ndarray:  # pragma: no cover - compiled
    """Freeverb's all-pass filter: it smears in time and leaves the spectrum nearly as it was; float64 (samples,)."""
    line, out, at = np.zeros(delay), np.empty_like(sound), 0
    for i in range(len(sound)):
        out[i] = line[at] - sound[i]
        line[at] = sound[i] + 0.5 * line[at]
        at = at + 1 if at + 1 < delay else 0
    return out
