"""Short-time spectra of waves, as they are or summed into mel bands, on any device and fast on a CPU."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["STFT_PAD_MODES", "ShortTimeSpectra", "pad_ends"]

STFT_PAD_MODES = ("constant", "reflect", "edge")
"""Modes of `pad_ends`, named as in `numpy.pad`."""

_CHUNK_CPU = 1 << 20  # bytes of frames at a time: few calls, yet within the caches
_CHUNK_GPU = 1 << 29
_LARGEST_BLOCK = 24 << 20  # bytes
# Rounding in float32 adds about (1.2e-7 * norm of the frame) ** 2 to the power of every bin. A bin above this fraction
# of the norm squared is thereby changed by less than 0.0006 dB (measured on 400 recordings).
_EXACT_FRACTION = 5e-5
_FLOOR_FRACTION = 0.5  # a level computed as less than this fraction of the floor is below the floor for any rounding
_MAX_PRODUCT = 512  # rows of a matrix of a transform


class ShortTimeSpectra(nn.Module):
    """Compute |STFT| ** power, in bands or per bin: waves (batch, samples) to levels (batch, rows, frames), float32.

    Transforms are in float64 on CPUs and CUDA devices, and in float32 on others, which may have no float64: in float32
    the rounding error of the loud bins of a frame lies some 140 dB below them, spread over all bins, which is an error
    of 0.01 dB and more in the faintest bands of real clips.

    Parameters
    ----------
    n_fft, win_length, hop_length
        In samples; a window shorter than the transform is centred in it.
    power
        1 for magnitude, 2 for power.
    filters
        Shape (rows, n_fft // 2 + 1), non-negative; None keeps the bins of the transform.
    periodic
        True for the periodic Hann window, False for the symmetric one.
    amin, top_db
        Levels may be inaccurate if they are below `amin`, or more than `top_db` below the peak of their clip. On a CPU
        either saves most of the float64 for bands of power: only frames that have bands above both limits, but faint
        next to the rest of the frame, need it.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, n_fft: int, win_length: int, hop_length: int, power: float, filters: Tensor | None = None,
                 *, periodic: bool = True, amin: float = 0.0, top_db: float | None = None):
        super().__init__()
        # The C library returns freed memory to the system above a limit that follows the largest block ever freed;
        # fetching it again for every clip takes as long as half of the work. This block is never touched, so it costs
        # nothing.
        torch.empty(_LARGEST_BLOCK, dtype=torch.uint8)
        self.n_fft, self.win_length, self.hop_length, self.power = n_fft, win_length, hop_length, power
        self.periodic, self.amin, self.top_db = periodic, amin, top_db
        self.register_buffer("window", self._float64_window(None).float(), persistent=False)
        self.register_buffer("filters", torch.empty(0) if filters is None else filters.float(), persistent=False)
        self._bands = None if filters is None or power not in (1.0, 2.0) else _Bands.from_filters(self.filters)
        # A copy: the buffer's own memory is released when it moves, as to a loader's workers.
        self._windows = self.window.numpy().copy(), self._float64_window(None).numpy()
        # The powers of one half of the bins add up to half of n_fft times the norm squared.
        self._min_fraction = (
            self.filters.amax(-1).numpy() * np.float32(_EXACT_FRACTION * 2 / n_fft)
            if self._bands
            else np.empty(0, np.float32)
        )

    def _float64_window(self, device: torch.device | None) -> Tensor:
        """Return the Hann window, padded to (n_fft,), in float64; in float32 where that may be missing."""
        if device is not None and device.type not in ("cpu", "cuda"):
            return self.window
        if torch.compiler.is_compiling():  # by its formula, since older versions of onnxscript lack the window
            period = self.win_length if self.periodic else max(1, self.win_length - 1)
            angles = torch.arange(self.win_length, dtype=torch.float64, device=device) * (2 * math.pi / period)
            window = 0.5 - 0.5 * torch.cos(angles)
        else:
            window = torch.hann_window(self.win_length, periodic=self.periodic, dtype=torch.float64, device=device)
        left = (self.n_fft - self.win_length) // 2
        return F.pad(window, (left, self.n_fft - self.win_length - left))

    def forward(self, wave: Tensor, left: int = 0, right: int = 0) -> Tensor:
        """Compute the levels of waves.

        Parameters
        ----------
        wave
            Shape (batch, samples), floats.
        left, right
            Zeros before and after the wave: the first transform starts `left` samples before it, the last one ends at
            most `right` samples after it, unless it is the first.

        Returns
        -------
        Shape (batch, rows, frames), float32, with at least one frame.
        """
        if self._needs_torch(wave):
            return self._by_torch(F.pad(wave, (left, max(right, self.n_fft - left - wave.shape[-1]))))
        assert self._bands is not None
        frames = 1 + max(0, left + wave.shape[-1] + right - self.n_fft) // self.hop_length
        starts, spec = np.arange(frames) * self.hop_length - left, torch.empty(len(wave), len(self.filters), frames)
        for clip, levels in zip(wave.detach().contiguous().numpy(), spec.numpy(), strict=True):
            self._by_kernels(_Clip(clip, starts, levels, np.empty(frames, np.float32)), self._bands)
        return spec

    def _needs_torch(self, wave: Tensor) -> bool:
        """Return True where the compiled loops cannot be used."""
        return (
            torch.compiler.is_compiling()
            or wave.device.type != "cpu"
            or self._bands is None
            or (wave.requires_grad and torch.is_grad_enabled())
        )

    def _by_torch(self, wave: Tensor) -> Tensor:
        """Compute levels (batch, rows, frames) of padded waves (batch, samples) on any device, and with a gradient."""
        window, frames = self._float64_window(wave.device), wave.unfold(-1, self.n_fft, self.hop_length)
        if torch.compiler.is_compiling():  # one graph for batches of any size
            is_graph = torch.compiler.is_exporting()
            levels = self._levels(torch.fft.rfft(frames * window)) if not is_graph else self._exported(frames * window)
            return levels.transpose(1, 2)
        if not len(frames):  # rejected by some transforms of older versions of torch
            return wave.new_empty(0, len(self.filters) or self.n_fft // 2 + 1, frames.shape[1])
        limit = max(1, (_CHUNK_CPU if wave.device.type == "cpu" else _CHUNK_GPU) // (4 * self.n_fft))  # frames at once
        spec = [torch.cat([self._levels(torch.fft.rfft(chunk * window)) for chunk in clips.split(limit, 1)], 1)
                for clips in frames.split(max(1, limit // frames.shape[1]))]
        return torch.cat(spec).transpose(1, 2)

    def _levels(self, spectra: Tensor) -> Tensor:
        """Return levels (batch, frames, rows) of complex spectra (batch, frames, bins)."""
        levels = _power(spectra)
        if self.power != 2.0:
            # The gradient of the root is not finite at 0, that of the absolute value is.
            levels = spectra.abs().float() if spectra.requires_grad else levels.sqrt_()
            levels = levels if self.power == 1.0 else levels ** self.power
        return levels @ self.filters.T if len(self.filters) else levels

    def _exported(self, frames: Tensor) -> Tensor:
        """Return levels (batch, frames, rows) of windowed frames (batch, frames, n_fft) by operations of ONNX."""
        levels = bin_powers(frames).float()
        levels = levels if self.power == 2.0 else levels ** (self.power / 2)
        return levels @ self.filters.T if len(self.filters) else levels

    def _by_kernels(self, clip: _Clip, bands: _Bands) -> None:
        """Compute the levels of a clip: powers in float32, and in float64 for frames where that is not exact enough."""
        from fatai.audio import _numba_kernels

        frames, (window_32, window_64) = np.arange(len(clip.starts)), self._windows
        if self.power == 1.0 or (self.amin == 0 and self.top_db is None):
            return self._compute_frames(clip, frames, window_64, bands)
        self._compute_frames(clip, frames, window_32, bands)
        floor = self.amin
        if self.top_db is not None:
            floor = max(floor, float(clip.levels.max()) * 10 ** (-self.top_db / 10))
        inexact = _numba_kernels.find_inexact_frames(
            clip.levels, clip.sums, self._min_fraction, _FLOOR_FRACTION * floor
        )
        self._compute_frames(clip, inexact, window_64, bands)

    def _compute_frames(self, clip: _Clip, frames: np.ndarray, window: np.ndarray, bands: _Bands) -> None:
        """Compute the levels of some frames of a clip, indices of shape (n,), in the precision of the window."""
        from fatai.audio import _numba_kernels

        limit = max(1, _CHUNK_CPU // window.nbytes)
        dtype = torch.float64 if window.dtype == np.float64 else torch.float32
        buffer = torch.empty(min(limit, len(frames)), self.n_fft, dtype=dtype)
        for first in range(0, len(frames), limit):
            chunk = frames[first:first + limit]
            windowed = buffer[:len(chunk)]
            _numba_kernels.cut_frames(clip.wave, clip.starts[chunk], window, windowed.numpy())
            parts = torch.fft.rfft(windowed).numpy().view(window.dtype)
            _numba_kernels.sum_bands(parts, self.power == 1.0, *bands, chunk, clip.levels, clip.sums)


class _Clip(NamedTuple):
    """A wave (samples,), the starts of its frames (frames,), and the results: levels (rows, frames), sums (frames,)."""

    wave: np.ndarray
    starts: np.ndarray
    levels: np.ndarray
    sums: np.ndarray


class _Bands(NamedTuple):
    """Filters without their zeros: first bins (rows,), ends of their weights (rows,), weights of all filters (n,)."""

    first: np.ndarray
    ends: np.ndarray
    weights: np.ndarray

    @classmethod
    def from_filters(cls, filters: Tensor) -> _Bands:
        """Convert filters of shape (rows, bins)."""
        rows = filters.numpy()
        used = [row.nonzero()[0] if row.any() else np.zeros(1, np.int64) for row in rows]
        weights = [row[bins[0]:bins[-1] + 1] for row, bins in zip(rows, used, strict=True)]
        return cls(np.array([bins[0] for bins in used]), np.cumsum([len(w) for w in weights]), np.concatenate(weights))


def _power(spectra: Tensor) -> Tensor:
    """Return squared magnitudes, float32, of complex spectra of any shape; may overwrite their memory."""
    # In place because allocating memory takes longer than squaring.
    parts = torch.view_as_real(spectra).flatten(-2).float()
    parts = parts.square() if parts.requires_grad else parts.mul_(parts)
    return parts[..., ::2] + parts[..., 1::2]


def bin_powers(frames: Tensor) -> Tensor:
    """Return squared magnitudes of the transforms of real frames, by matrix products (Cooley and Tukey, 1965).

    The transform of onnxruntime takes several times as long.

    Parameters
    ----------
    frames
        Shape (..., n_fft), floats.

    Returns
    -------
    Shape (..., n_fft // 2 + 1), type of `frames`.

    Examples
    --------
    >>> bin_powers(torch.tensor([1.0, 0.0, -1.0, 0.0, 1.0, 0.0])).round()
    tensor([1., 4., 4., 1.])
    """
    n_fft, like = frames.shape[-1], {"dtype": frames.dtype, "device": frames.device}
    slow = max(n for n in range(1, math.isqrt(n_fft) + 1) if n_fft % n == 0)  # n = fast * i + j
    fast, half = n_fft // slow, slow // 2 + 1
    if fast > _MAX_PRODUCT:  # such as twice a prime
        return torch.view_as_real(torch.fft.rfft(frames)).square().sum(-1)
    # The transform of bin k = k1 + slow * k2; those of k1 above half are conjugates of others.
    cos, sin = _circle(half, slow, slow, like)
    columns = frames.unflatten(-1, (slow, fast))
    real, imag = cos @ columns, -(sin @ columns)  # (..., half, fast)
    cos, sin = _circle(half, fast, n_fft, like)
    turned = torch.cat([real * cos + imag * sin, imag * cos - real * sin], -1)
    cos, sin = _circle(fast, fast, fast, like)
    parts = turned @ torch.cat([torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)])
    real, imag = parts.split(fast, -1)
    powers = (real * real + imag * imag).flatten(-2)
    bins = torch.arange(n_fft // 2 + 1, device=frames.device)
    bins = torch.where(bins % slow < half, bins, n_fft - bins)
    return powers.index_select(-1, bins % slow * fast + bins // slow)


def _circle(rows: int, columns: int, period: int, like: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of the products of row and column, shape (rows, columns), in parts of a circle."""
    angles = np.outer(np.arange(rows), np.arange(columns)) % period * (2 * math.pi / period)
    # From numpy, as constants: cosines that a graph computes have the precision of float32.
    return torch.from_numpy(np.cos(angles)).to(**like), torch.from_numpy(np.sin(angles)).to(**like)


def pad_ends(wave: Tensor, reach: int, mode: str) -> Tensor:
    """Extend waves by `reach` samples at both ends, as `numpy.pad` does.

    Parameters
    ----------
    wave
        Shape (batch, samples). A wave shorter than `reach` is reflected repeatedly.
    reach
        Number of samples to add at each end.
    mode
        One of `STFT_PAD_MODES`.

    Returns
    -------
    Shape (batch, samples + 2 * reach).

    Examples
    --------
    >>> pad_ends(torch.tensor([[1.0, 2.0, 3.0]]), 1, "reflect")
    tensor([[2., 1., 2., 3., 2.]])
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
