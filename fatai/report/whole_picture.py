"""A sound of any length as one picture without margins, so that a page can lay a playhead and bars of time exactly on it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from fatai.errors import ShapeError
from fatai.report.media import frequency_ticks, picture
from fatai.audio.front_ends import FrontEnd

__all__ = ["WholePicture", "whole_picture"]

_ROWS, _RANGE_DB = 96, 80.0
_FRAMES_AT_ONCE = 1024


class WholePicture(NamedTuple):
    """A data URI of a PNG, and frequencies in Hz with their height in it, 0 at the bottom and 1 at the top."""

    uri: str
    ticks: list[tuple[float, float]]


def whole_picture(wave: Tensor, sr: int, columns: int = 1000) -> WholePicture:
    """The mel spectrogram of a wave, shape (samples,), from its loudest point down to 80 dB below it; memory grows with the frames only.

    It has `columns` pixels at most from left to right, and 96 or, of a low rate, 48 from top to bottom.

    Raises
    ------
    ShapeError
        If there is no sample or more than one channel.
    """
    if wave.ndim != 1 or not len(wave):
        raise ShapeError(f"got a wave of shape {tuple(wave.shape)}; expected (samples,) with at least one sample")
    n_fft = 2048 if sr >= 16000 else 512
    # A short sound gets enough frames to be looked at, a long one no more than its columns can show.
    hop = int(min(n_fft // 2, max(n_fft // 16, len(wave) // columns)))
    shown = FrontEnd(
        sr=sr, n_fft=n_fft, hop_length=hop, center=False, n_mels=_ROWS if n_fft == 2048 else _ROWS // 2, fmin=20.0
    )
    module, step = shown.build(), _FRAMES_AT_ONCE * hop
    # Frame k is centred on sample k * hop, as if the whole wave were transformed at once.
    padded = pad(wave, (n_fft // 2, n_fft // 2))
    with torch.inference_mode():
        parts = [module(padded[None, at:at + step - hop + n_fft])[0] for at in range(0, len(padded) - n_fft + 1, step)]
    values = torch.cat(parts, 1)
    high = float(values.max())
    return WholePicture(
        picture(values, low=high - _RANGE_DB, high=high, most=(_ROWS, columns)), frequency_ticks(shown, shown.rows),
    )
