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
_CHUNK_CPU = 1 << 20  # samples of frames held at once
_CHUNK_GPU = 1 << 27
_LARGEST_BLOCK = 24 << 20  # bytes
# Rounding in float32 adds about (1.2e-7 * norm of the frame) ** 2 to the power of every bin. A bin above this share of the norm squared
# is thereby changed by less than 0.0006 dB (measured on 400 recordings).
_SAFE_SHARE = 3e-5


class ShortTimeSpectra(nn.Module):
    """|STFT| ** power, in bands or as it is: waves (batch, samples), of at least `n_fft` samples, to (batch, rows, frames).

    Transforms are in float64, where the device can: in float32 the rounding of what is loud in a frame lies some 140 dB below it,
    spread over all bins, which is an error of 0.01 dB and more in the faintest bands of real clips.

    Parameters
    ----------
    n_fft, win_length, hop_length
        In samples; a window shorter than the transform lies in its middle. The first transform starts with the first sample.
    power
        1 for magnitude, 2 for power.
    filters
        Shape (rows, n_fft // 2 + 1), 0 or more; None keeps the bins of the transform.
    range_db
        Levels may be wrong that lie further than this below the peak of their clip. On a CPU that saves most of the float64 for bands
        of power: only frames with bands that are within this range and yet faint next to the rest of the frame need it.
    """

    window: Tensor
    filters: Tensor
    _faint: Tensor

    def __init__(self, n_fft: int, win_length: int, hop_length: int, power: float, filters: Tensor | None = None,
                 *, range_db: float | None = None):
        super().__init__()
        # The C library gives freed memory back to the system above a limit that follows the largest block ever freed; to fetch it
        # again for every clip takes as long as half of the work. This block is never touched, so it costs nothing.
        torch.empty(_LARGEST_BLOCK, dtype=torch.uint8)
        self.n_fft, self.win_length, self.hop_length, self.power, self.range_db = n_fft, win_length, hop_length, power, range_db
        self.register_buffer("window", self._exact_window(None).float(), persistent=False)
        self.register_buffer("filters", torch.empty(0) if filters is None else filters.float(), persistent=False)
        self.rows = n_fft // 2 + 1 if filters is None else len(filters)
        # The powers of one half of the bins add up to half of n_fft times the norm squared.
        faint = torch.zeros(0) if filters is None else filters.float().amax(1) * (_SAFE_SHARE * 2 / n_fft)
        self.register_buffer("_faint", faint, persistent=False)
        self._narrow = [] if filters is None else list(_narrow_bands(self.filters))

    def _exact_window(self, device: torch.device | None) -> Tensor:
        """Periodic Hann window in the middle of the transform, in float64 but for Apple's GPUs, which have none."""
        if device is not None and device.type == "mps":
            return self.window
        window = torch.hann_window(self.win_length, periodic=True, dtype=torch.float64, device=device)
        left = (self.n_fft - self.win_length) // 2
        return F.pad(window, (left, self.n_fft - self.win_length - left))

    def forward(self, wave: Tensor) -> Tensor:
        on_cpu = wave.device.type == "cpu"
        quick = on_cpu and self.range_db is not None and self.power == 2.0 and len(self._narrow) > 0
        window = self.window if quick else self._exact_window(wave.device)
        frames = wave.unfold(-1, self.n_fft, self.hop_length)
        limit = max(1, (_CHUNK_CPU if on_cpu else _CHUNK_GPU) // self.n_fft)  # frames at once
        # One clip at a time where that costs nothing, so that its neighbours do not even change how it is rounded.
        clips = 1 if on_cpu else max(1, limit // frames.shape[1])
        spec = []
        for some in frames.split(clips):
            parts = [self._levels(torch.fft.rfft(piece * window)) for piece in some.split(limit, 1)]
            levels, energies = (x[0] if len(x) == 1 else torch.cat(x, 1) for x in zip(*parts, strict=True))
            if quick:
                self._correct(levels, energies, some)
            spec.append(levels)
        return (spec[0] if len(spec) == 1 else torch.cat(spec)).transpose(1, 2)

    def _levels(self, spectra: Tensor) -> tuple[Tensor, Tensor]:
        """Of complex spectra (batch, frames, bins) the levels (batch, frames, rows), and the summed levels (batch, frames) of all bins."""
        levels = _power(spectra)
        if self.power != 2.0:
            # The root's gradient at 0 is not finite, that of the absolute value is.
            levels = spectra.abs().float() if spectra.requires_grad else levels.sqrt_()
            levels = levels if self.power == 1.0 else levels ** self.power
        sums = levels.sum(-1)
        if self._narrow and spectra.device.type == "cpu":
            levels = torch.cat([levels[..., start:stop] @ filters for start, stop, filters in self._narrow], -1)
        elif self._narrow:
            levels = levels @ self.filters.T
        return levels, sums

    def _correct(self, levels: Tensor, energies: Tensor, frames: Tensor) -> None:
        """Once more in float64, into `levels`, the frames whose bands are within the range but hardly above the rounding of float32.

        Shapes (1, frames, rows), (1, frames) and (1, frames, n_fft).
        """
        assert self.range_db is not None
        floor = levels.amax((1, 2), keepdim=True) * 10 ** (-self.range_db / 10)
        # How far inside of both limits: the minimum of two differences is quicker than two comparisons.
        inside = torch.minimum(levels - floor, energies[..., None] * self._faint - levels)
        doubtful = (inside.amax(-1) > 0).any(0).nonzero()[:, 0]
        if len(doubtful):
            for t in doubtful.split(max(1, _CHUNK_CPU // self.n_fft)):
                levels[:, t] = self._levels(torch.fft.rfft(frames[:, t] * self._exact_window(frames.device)))[0]


def _power(spectra: Tensor) -> Tensor:
    """Squared magnitude, float32; in place where no gradient needs the parts, since new memory takes longer than the squares."""
    parts = torch.view_as_real(spectra).flatten(-2).float()
    parts = parts.square() if parts.requires_grad else parts.mul_(parts)
    return parts[..., ::2] + parts[..., 1::2]


def _narrow_bands(filters: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Neighbouring filters, cut to the bins that any of them uses: the first and the last + 1 of these, and a matrix (bins, filters).

    A filter is a narrow band: some neighbours at a time touch a small part of what the whole matrix does.
    """
    for some in filters.split(_GROUP):
        used = (some > 0).any(0).nonzero().flatten()
        start, stop = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
        yield start, stop, some[:, start:stop].T.contiguous()


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
