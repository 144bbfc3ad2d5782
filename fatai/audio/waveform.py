"""Waveform arithmetic: silence, length, level, rate.

Conventions: a *wave* is a float32 tensor whose last dimension are its samples, full scale [-1, 1]; other dimensions, if any, are
channels or clips. Nothing here is random unless a generator is handed in, and nothing changes in place.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import numpy as np
import soxr
import torch
import torch.nn.functional as F
from torch import Tensor

from fatai.errors import OptionError, ShapeError
from fatai.registry import did_you_mean

__all__ = ["PAD_MODES", "Section", "fit_length", "peak_db", "resample", "sound_section", "trim_silence"]

PAD_MODES = ("constant_center", "constant_right", "wrap_right", "wrap_center", "edge_center", "minimum_center")
"""What `fit_length` can put around a clip that is too short."""

_SILENCE_AMIN = 1e-5  # librosa's floor of an amplitude, below which all is equally silent: -100 dB


class Section(NamedTuple):
    """A stretch of a wave: first sample, and the one behind the last."""

    start: int
    stop: int


def sound_section(wave: Tensor, top_db: float = 60.0, *, frame_length: int = 2048, hop_length: int = 512) -> Section:
    """Where the sound is between leading and trailing silence, as `librosa.effects.trim` finds it.

    A frame is silent if its root mean square lies `top_db` or more below that of the loudest one; frames are centred, with zeros
    beyond the ends. The section starts with the first frame that is not silent and ends where the one behind the last begins.
    Levels under -100 dB count as -100 dB, so a clip of zeros has no silence to trim. Of several channels the loudest decides.

    Parameters
    ----------
    wave
        Shape (..., samples): the channels of one clip.
    top_db
        Decibels below the loudest frame, above 0.
    frame_length, hop_length
        In samples.
    """
    if top_db <= 0 or frame_length < 1 or hop_length < 1:
        raise OptionError(
            f"top_db={top_db}, frame_length={frame_length}, hop_length={hop_length}; expected numbers above 0"
        )
    if wave.ndim == 0:
        raise ShapeError("got a single number; expected a wave of shape (..., samples)")
    samples, floor = wave.shape[-1], _SILENCE_AMIN ** 2
    channels = wave.detach().cpu().numpy().reshape(math.prod(wave.shape[:-1]), samples)
    power = _frame_power(channels, frame_length, hop_length).max(0, initial=floor)
    if len(channels) == 0:
        return Section(0, 0)
    frames = np.flatnonzero(power > power.max() * 10 ** (-top_db / 10))
    return Section(int(frames[0]) * hop_length, min(samples, (int(frames[-1]) + 1) * hop_length))


def trim_silence(wave: Tensor, top_db: float = 60.0, *, frame_length: int = 2048, hop_length: int = 512) -> Tensor:
    """The wave without leading and trailing silence, a view; see `sound_section` for what is silent."""
    start, stop = sound_section(wave, top_db, frame_length=frame_length, hop_length=hop_length)
    return wave[..., start:stop]


def _frame_power(wave: np.ndarray, frame_length: int, hop_length: int) -> np.ndarray:
    """Mean square of centred frames, float64, shape (channels, 1 + samples // hop_length).

    A frame is put together from blocks that divide both the hop and the reach to either side, so that no sample is squared twice.
    """
    left, right = frame_length // 2, frame_length - frame_length // 2
    block = math.gcd(hop_length, left, right)
    samples, before, step = wave.shape[-1], 1 + left // block, hop_length // block
    whole = samples - samples % block
    energies = np.zeros((len(wave), before + whole // block + 1 + right // block))  # with zeros beyond the ends
    blocks = wave[:, :whole].reshape(len(wave), whole // block, block)
    energies[:, before:before + whole // block] = np.einsum("cbs,cbs->cb", blocks, blocks)
    energies[:, before + whole // block] = np.square(wave[:, whole:]).sum(-1)
    running = energies.cumsum(1)  # entry i: energy of the blocks before block i - before + 1
    frames = 1 + samples // hop_length
    return (running[:, frame_length // block::step][:, :frames] - running[:, ::step][:, :frames]) / frame_length


def fit_length(
    wave: Tensor, samples: int, how: str = "constant_center", *, left: int | None = None, cut: str = "none"
) -> Tensor:
    """Fill a short wave up to `samples`; a longer one is kept, or cut if `cut` says where.

    Parameters
    ----------
    wave
        Shape (..., n), n >= 1 unless `how` fills with zeros. The last dimension may also be the frames of a spectrogram.
    samples
        Length wanted.
    how
        "constant_center": zeros, half of them (rounded down) on the left. "constant_right": zeros behind. "wrap_right": the wave again
        and again. "wrap_center": the same to both sides, the wave in the middle. "edge_center": the outermost values to both sides.
        "minimum_center": the smallest value of each clip (all but the first dimension, or all of a wave) to both sides.
    left
        How many of the values to fill in go to the left, for a place drawn by the caller; None leaves it to `how`.
    cut
        What a wave that is too long loses: "none", "right" (its end), "both" (half, rounded down, from its start).

    Returns
    -------
    Shape (..., samples), or longer when `cut` is "none".

    Examples
    --------
    >>> fit_length(torch.tensor([1.0, 2.0]), 5)
    tensor([0., 1., 2., 0., 0.])
    >>> fit_length(torch.tensor([1.0, 2.0]), 5, "wrap_right")
    tensor([1., 2., 1., 2., 1.])
    """
    if how not in PAD_MODES:
        raise OptionError(f"no way to fill a short clip is called {how!r}; {did_you_mean(how, PAD_MODES)}")
    if cut not in ("none", "right", "both"):
        raise OptionError(f"cut={cut!r}; expected 'none', 'right' or 'both'")
    n = wave.shape[-1]
    if n >= samples:
        start = (n - samples) // 2 if cut == "both" else 0
        return wave if cut == "none" else wave[..., start:start + samples]
    if left is None:
        left = (samples - n) // 2 if how.endswith("_both") else 0
    elif not 0 <= left <= samples - n:
        raise OptionError(f"left={left}; expected 0 to {samples - n}, the values that are missing")
    if how.startswith("zeros"):
        return F.pad(wave, (left, samples - n - left))
    if n == 0:
        raise ShapeError(
            f"an empty wave cannot be filled with {how!r}: there is nothing to repeat; use 'constant_center' or leave the clip out"
        )
    at = torch.arange(samples, device=wave.device) - left
    if how.startswith("wrap"):
        return wave[..., at % n]
    if how == "edge_center":
        return wave[..., at.clamp(0, n - 1)]
    lowest = wave.amin(dim=tuple(range(1, wave.ndim)) or 0, keepdim=True)
    return torch.where((at >= 0) & (at < n), wave[..., at.clamp(0, n - 1)], lowest)


def resample(wave: Tensor, sr_from: int, sr_to: int) -> Tensor:
    """The wave at another rate, by soxr in its quality HQ, as `librosa.load` does it.

    Shape (..., n) becomes (..., ceil(n * sr_to / sr_from)); float32, on the device of `wave`. Not differentiable.
    """
    if sr_from <= 0 or sr_to <= 0:
        raise OptionError(f"cannot resample from {sr_from} to {sr_to} Hz; rates must be above 0")
    if sr_from == sr_to:
        return wave
    samples = math.ceil(wave.shape[-1] * sr_to / sr_from)
    rows = wave.detach().cpu().float().reshape(math.prod(wave.shape[:-1]), wave.shape[-1])
    done = [torch.from_numpy(cast(Any, soxr.resample)(row.numpy(), sr_from, sr_to, quality="HQ")) for row in rows]
    # soxr may give a sample more or less than asked for.
    done = [fit_length(row, samples, "constant_right", cut="right") for row in done]
    out = torch.stack(done) if done else rows.new_zeros(0, samples)
    return out.reshape(*wave.shape[:-1], samples).to(wave.device)


def peak_db(wave: Tensor) -> Tensor:
    """Level of the loudest sample in dB of full scale, shape (...) for a wave (..., samples); -inf for silence."""
    return 20 * wave.abs().amax(-1).log10()
