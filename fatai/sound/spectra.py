"""Short-time spectra of waves, whole or summed into mel bands, on any device and fast on a CPU."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PAD_MODES", "ShortTimeSpectra", "pad_ends"]

PAD_MODES = ("constant", "reflect", "edge")
"""What `pad_ends` can put beyond the ends of a wave: zeros, the wave mirrored at its outermost samples, these samples repeated."""

_GROUP = 16  # mel filters multiplied at once; of 4, 8, 16 and 32 the fastest
_CHUNK = {"cpu": 1 << 18}  # samples of frames held at once: a megabyte stays in the cache, and needs no new pages from the system
_CHUNK_ELSEWHERE = 1 << 28


class ShortTimeSpectra(nn.Module):
    """|STFT| ** power, in bands or as it is: waves (batch, samples), of at least `n_fft` samples, to (batch, rows, frames).

    Parameters
    ----------
    n_fft, win_length, hop_length
        In samples; a window shorter than the transform lies in its middle. The first transform starts with the first sample.
    power
        1 for magnitude, 2 for power.
    filters
        Shape (rows, n_fft // 2 + 1), 0 or more; None keeps the bins of the transform.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, n_fft: int, win_length: int, hop_length: int, power: float, filters: Tensor | None = None):
        super().__init__()
        self.n_fft, self.hop_length, self.power = n_fft, hop_length, power
        left = (n_fft - win_length) // 2
        window = F.pad(torch.hann_window(win_length, periodic=True, dtype=torch.float64), (left, n_fft - win_length - left))
        self.register_buffer("window", window.float(), persistent=False)
        self.register_buffer("filters", torch.empty(0) if filters is None else filters.float(), persistent=False)
        self.rows = n_fft // 2 + 1 if filters is None else len(filters)
        self._narrow = [] if filters is None else list(_narrow_bands(self.filters, parts=2 if power == 2.0 else 1))

    def forward(self, wave: Tensor) -> Tensor:
        frames = wave.unfold(-1, self.n_fft, self.hop_length)
        n_clips, n_frames = frames.shape[:2]
        limit = max(1, _CHUNK.get(wave.device.type, _CHUNK_ELSEWHERE) // self.n_fft)  # frames at once
        spec = wave.new_empty(n_clips, self.rows, n_frames)
        clips = max(1, limit // n_frames)
        for clip in range(0, n_clips, clips):
            for t in range(0, n_frames, limit):
                here = slice(clip, clip + clips), slice(t, t + limit)
                self._fill(spec[here[0], :, here[1]], frames[here])
        return spec

    def _fill(self, spec: Tensor, frames: Tensor) -> None:
        """Spectra of frames (batch, frames, n_fft) into `spec` (batch, rows, frames)."""
        spectra = torch.fft.rfft(frames * self.window)
        if self._narrow and spectra.device.type == "cpu":
            # Squares of real and imaginary parts stay apart: the filters have each value twice, so the product adds them.
            parts = torch.view_as_real(spectra).flatten(-2).square() if self.power == 2.0 else self._levels(spectra)
            row = 0
            for start, stop, filters in self._narrow:
                band = parts[..., start:stop] @ filters
                spec[:, row:row + band.shape[-1]] = band.transpose(1, 2)
                row += band.shape[-1]
        elif len(self.filters):
            spec.copy_(self.filters @ self._levels(spectra).transpose(1, 2))
        else:
            spec.copy_(self._levels(spectra).transpose(1, 2))

    def _levels(self, spectra: Tensor) -> Tensor:
        if self.power == 2.0:
            return torch.view_as_real(spectra).square().sum(-1)
        return spectra.abs() if self.power == 1.0 else spectra.abs() ** self.power


def _narrow_bands(filters: Tensor, parts: int) -> Iterator[tuple[int, int, Tensor]]:
    """Neighbouring filters, cut to the bins that any of them uses: the first and the last + 1 of these, and a matrix (bins, filters).

    A filter is a narrow band: some neighbours at a time touch a small part of what the whole matrix does. Each bin is there `parts` times.
    """
    for some in filters.split(_GROUP):
        used = (some > 0).any(0).nonzero().flatten()
        start, stop = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
        yield parts * start, parts * stop, some[:, start:stop].repeat_interleave(parts, 1).T.contiguous()


def pad_ends(wave: Tensor, reach: int, mode: str) -> Tensor:
    """Waves (batch, samples) continued by `reach` samples at both ends; `mode` is one of `PAD_MODES`.

    A wave of any length can be reflected: one shorter than `reach` goes to and fro between its mirrors, as in `numpy.pad`.
    """
    samples = wave.shape[-1]
    if mode == "constant":
        return F.pad(wave, (reach, reach))
    if mode == "reflect" and samples > reach:
        return F.pad(wave[:, None], (reach, reach), mode="reflect")[:, 0]
    at = torch.arange(-reach, samples + reach, device=wave.device)
    if mode == "reflect" and samples > 1:
        period = 2 * (samples - 1)
        at = at.remainder(period)
        at = torch.minimum(at, period - at)
    return wave[:, at.clamp(0, samples - 1)]
