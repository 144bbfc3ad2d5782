"""Cut a stream of samples into overlapping windows, without holding more of it than one window and one block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fatai.audio.waveform import remove_offset
from fatai.data.config import ClipConfig

__all__ = ["Window", "cut_windows"]


class Window(NamedTuple):
    """Samples (crop_samples,) of a recording from `start`, without a constant offset.

    `end` is where they, or the recording before them, stop.
    """

    start: int
    end: int
    wave: Tensor


def cut_windows(blocks: Iterable[Tensor], settings: ClipConfig, step: int) -> Iterator[Window]:
    """Yield the windows of a recording; the last one ends where the recording does.

    Parameters
    ----------
    blocks
        The recording in blocks of shape (samples,), in order.
    settings
        Length of a window, `crop_samples`, and padding of a recording that is shorter.
    step
        Samples from one window to the next, at least 1.
    """
    size = settings.crop_samples
    # `buffer` starts at sample `first`, no later than the last window; the next window starts `offset` samples later.
    buffer, first, offset = torch.zeros(0), 0, 0
    for block in blocks:
        buffer = torch.cat([buffer, block])
        while len(buffer) >= offset + size:
            yield Window(first + offset, first + offset + size, remove_offset(buffer[offset:offset + size]))
            buffer, first, offset = buffer[offset:], first + offset, step
    if offset == 0:
        yield Window(0, len(buffer), settings.fit(remove_offset(buffer)))
    elif len(buffer) > size:
        yield Window(first + len(buffer) - size, first + len(buffer), remove_offset(buffer[-size:]))
