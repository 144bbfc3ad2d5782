"""Round frequencies for the axis of a spectrogram."""

from __future__ import annotations

import numpy as np

from fatai.audio.spectrogram import FrontEnd

__all__ = ["format_hz", "frequency_ticks"]

_TICKS_HZ = (50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000)
_MIN_DISTANCE = 0.09  # of the height; nearer labels would overlap


def frequency_ticks(front_end: FrontEnd, rows: int) -> list[tuple[float, float]]:
    """Return round frequencies in Hz and the height of their row's center, from 0 at the bottom to 1 at the top.

    Those too near another are left out.
    """
    centers = front_end.frequencies_hz()
    centers = centers if len(centers) == rows else np.linspace(centers[0], centers[-1], rows)
    ticks: list[tuple[float, float]] = []
    for hz in _TICKS_HZ:
        if centers[0] <= hz <= centers[-1]:
            height = (float(np.interp(hz, centers, np.arange(rows))) + 0.5) / rows
            if not ticks or height - ticks[-1][1] > _MIN_DISTANCE:
                ticks.append((hz, height))
    return ticks


def format_hz(hz: float) -> str:
    """Return a frequency in Hz as the label of a tick: 500, 1k, 2.5k.

    Examples
    --------
    >>> format_hz(500), format_hz(2000)
    ('500', '2k')
    """
    return f"{hz / 1000:g}k" if hz >= 1000 else f"{hz:g}"
