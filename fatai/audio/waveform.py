"""Waveform arithmetic: silence, length, level, rate.

Conventions: a *wave* is a float32 tensor whose last dimension holds the samples, full scale [-1, 1]; other dimensions,
if any, are channels or clips. No function is random, and none changes its argument in place.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, NamedTuple, cast

import numpy as np
import soxr
import torch
import torch.nn.functional as F
from torch import Tensor

from fatai.errors import OptionError, ShapeError
from fatai.registry import did_you_mean

__all__ = [
    "PAD_MODES",
    "SILENCE_DB",
    "Section",
    "fit_length",
    "is_silent",
    "nonsilent_section",
    "peak_db",
    "remove_offset",
    "resample",
    "trim_silence",
]

PAD_MODES = ("constant_center", "constant_right", "wrap_right", "wrap_center", "edge_center", "minimum_center")
"""Modes of `fit_length`: values as in `numpy.pad`, and the position of the clip between them."""

SILENCE_DB = -60.0
"""A sound is silent if its peak without a constant offset is below this level, in dB of full scale."""

_OFFSET_FRAME = 2048  # samples
_MIN_OFFSET = 10 ** (SILENCE_DB / 20)
_SILENCE_AMIN = 1e-5  # librosa's floor of an amplitude, -100 dB: lower levels are equally silent


def check_rate(sr: Any, name: str = "sr") -> int:
    """Return a rate in Hz as an integer; raise `OptionError`, which names it, if it is no whole number above 0.

    Examples
    --------
    >>> check_rate(22050.0)
    22050
    """
    is_number = isinstance(sr, Real) and not isinstance(sr, bool)
    if not is_number or not 0 < sr < math.inf or int(sr) != sr:
        raise OptionError(f"{name}={sr!r}; expected a rate in Hz, a whole number above 0")
    return int(sr)


def exact_dtype(device: torch.device) -> torch.dtype:
    """Return float64 for a CPU and float32 for any other device, since Apple's GPUs have no float64.

    Examples
    --------
    >>> exact_dtype(torch.device("cpu")), exact_dtype(torch.device("mps"))
    (torch.float64, torch.float32)
    """
    return torch.float64 if device.type == "cpu" else torch.float32


class Section(NamedTuple):
    """A range of samples [start, stop) of a wave."""

    start: int
    stop: int


def nonsilent_section(
    wave: Tensor, top_db: float = 60.0, *, frame_length: int = 2048, hop_length: int = 512
) -> Section:
    """Return the section between leading and trailing silence, as `librosa.effects.trim` does.

    A frame is silent if its root mean square is `top_db` or more below that of the loudest frame; frames are centred,
    with zeros beyond the ends. The section starts with the first frame that is not silent and ends at the start of the
    frame after the last one. Levels under -100 dB count as -100 dB, so a clip of zeros has no silence to trim. The
    loudest channel decides. A constant offset that would count as sound is not part of the level; librosa keeps it.

    Parameters
    ----------
    wave
        Shape (..., samples): the channels of one clip.
    top_db
        Decibels below the loudest frame, above 0; raise it to keep fainter beginnings and ends.
    frame_length, hop_length
        In samples.

    Raises
    ------
    OptionError
        If an option is not above 0.
    ShapeError
        If the wave has no dimension.
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
    relative = 10 ** (-top_db / 10)
    # An offset that counts as sound makes every frame loud; without such a frame there is nothing to subtract.
    inner = slice(-(-frame_length // 2 // hop_length), (samples - frame_length + frame_length // 2) // hop_length + 1)
    if samples and (power[inner] > power.max() * relative).all():
        offset = _offset(channels, frame_length)
        if (np.square(offset) > power.max() * relative).any():
            power = _frame_power(channels - offset, frame_length, hop_length).max(0, initial=floor)
    frames = np.flatnonzero(power > power.max() * relative)
    return Section(int(frames[0]) * hop_length, min(samples, (int(frames[-1]) + 1) * hop_length))


def trim_silence(wave: Tensor, top_db: float = 60.0, *, frame_length: int = 2048, hop_length: int = 512) -> Tensor:
    """Return a view of a wave (..., samples) without leading and trailing silence, shape (..., n).

    Parameters and errors are those of `nonsilent_section`.
    """
    start, stop = nonsilent_section(wave, top_db, frame_length=frame_length, hop_length=hop_length)
    return wave[..., start:stop]


def remove_offset(wave: Tensor) -> Tensor:
    """Subtract a constant offset from each row of a wave (..., samples), if it is above 0.001, the level of silence.

    The offset is the mean of the 2,048 samples with the least sound, unless they have more sound than offset. A wave
    without one is returned as it is.

    Examples
    --------
    >>> remove_offset(torch.tensor([0.25, 0.25, 0.25])), remove_offset(torch.tensor([0.5, -0.5]))
    (tensor([0., 0., 0.]), tensor([ 0.5000, -0.5000]))
    """
    if wave.numel() == 0:
        return wave
    rows = wave.detach().cpu().numpy().reshape(-1, wave.shape[-1])
    # An offset is at most four times the mean of the whole, which is far below the limit in nearly all waves; half of
    # that leaves room for the rounding errors of a mean in float32.
    if (np.abs(rows.mean(-1)) <= _MIN_OFFSET / 8).all():
        return wave
    offset = _offset(rows, _OFFSET_FRAME)
    offset[np.abs(offset) <= _MIN_OFFSET] = 0
    return wave - torch.from_numpy(offset).reshape(*wave.shape[:-1], 1).to(wave.device) if offset.any() else wave


def is_silent(wave: Tensor, silence_db: float = SILENCE_DB) -> bool:
    """Return whether no channel of a wave (..., samples) reaches a level besides a constant offset.

    Parameters
    ----------
    wave
        One clip, full scale [-1, 1].
    silence_db
        Peak in dB of full scale below which the wave is silent.

    Examples
    --------
    >>> is_silent(torch.full((100,), 0.3)), is_silent(torch.tensor([0.3, 0.31]))
    (True, False)
    """
    return wave.numel() == 0 or bool((peak_db(wave - wave.mean(-1, keepdim=True)) < silence_db).all())


def _offset(wave: np.ndarray, frame_length: int) -> np.ndarray:
    """Return the constant offset of the channels of a wave (channels, samples), shape (channels, 1).

    It is the mean of the frame with the lowest variance, where the least sound is; 0 if that frame has more sound than
    offset, or the whole wave far less offset than the frame, whose mean is that of a low tone then.
    """
    samples = wave.shape[-1]
    length = min(frame_length, samples)
    frames = wave[:, :samples - samples % length].reshape(len(wave), -1, length)
    offset, variance = np.array([_quietest_frame(of_channel) for of_channel in frames]).T[:, :, None]
    is_constant = np.square(offset) > variance
    if is_constant.any():
        whole = wave.mean(-1, keepdims=True, dtype=np.float64)
        is_constant &= whole * offset > np.square(offset) / 4
    return np.where(is_constant, offset, 0).astype(wave.dtype)


def _quietest_frame(frames: np.ndarray) -> tuple[float, float]:
    """Return mean and variance, in float64, of the one of the frames (n, samples) that has the lowest variance."""
    # The variances in the precision of the wave, and their errors, leave few frames, mostly one, to be exact about.
    power = np.einsum("fs,fs->f", frames, frames) / frames.shape[1]
    rough, error = power - np.square(frames.mean(-1)), frames.shape[1] * np.finfo(frames.dtype).eps * power
    frames = frames[~(rough - error > (rough + error).min())]
    variance = frames.var(-1, dtype=np.float64)
    quietest = variance.argmin()
    return frames.mean(-1, dtype=np.float64)[quietest], variance[quietest]


def _frame_power(wave: np.ndarray, frame_length: int, hop_length: int) -> np.ndarray:
    """Return the mean square of centred frames of a wave (channels, samples).

    The result is float64, shape (channels, 1 + samples // hop_length). A frame is composed of blocks whose length
    divides the hop and both halves of the frame, so no sample is squared twice.
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
    wave: Tensor, samples: int, pad_mode: str = "constant_center", *, left: int | None = None, cut: str = "none"
) -> Tensor:
    """Pad a short wave to `samples`; a longer one is returned as it is, or cut.

    Parameters
    ----------
    wave
        Shape (..., n), n >= 1 unless the padding is zeros. The last dimension may also be the frames of a spectrogram.
    samples
        Target length.
    pad_mode
        "constant_center": zeros on both sides, half of them (rounded down) on the left. "constant_right": zeros on the
        right. "wrap_right": repeat the wave on the right. "wrap_center": the same on both sides. "edge_center": repeat
        the outermost values. "minimum_center": the smallest value of each clip (over all dimensions but the first, or
        of the whole wave) on both sides.
    left
        Number of padding values on the left, such as a random one; None leaves it to `pad_mode`.
    cut
        Part of a long wave to remove: "none", "right" (the end), "center" (both ends, so that the centre is kept).

    Returns
    -------
    Shape (..., samples), or longer if `cut` is "none".

    Raises
    ------
    OptionError
        If an option has an unknown value, or `left` is more than the number of missing samples.
    ShapeError
        If an empty wave is to be padded by its own values.

    Examples
    --------
    >>> fit_length(torch.tensor([1.0, 2.0]), 5)
    tensor([0., 1., 2., 0., 0.])
    >>> fit_length(torch.tensor([1.0, 2.0]), 5, "wrap_right")
    tensor([1., 2., 1., 2., 1.])
    """
    if pad_mode not in PAD_MODES:
        raise OptionError(f"no pad_mode named {pad_mode!r}; {did_you_mean(pad_mode, PAD_MODES)}")
    if cut not in ("none", "right", "center"):
        raise OptionError(f"cut={cut!r}; expected 'none', 'right' or 'center'")
    missing = samples - wave.shape[-1]
    if missing <= 0:
        start = -missing // 2 if cut == "center" else 0
        return wave if cut == "none" else wave[..., start:start + samples]
    if left is None:
        left = missing // 2 if pad_mode.endswith("_center") else 0
    elif not 0 <= left <= missing:
        raise OptionError(f"left={left}; expected 0 to {missing}, the number of missing samples")
    return _pad(wave, left, missing - left, pad_mode)


def _pad(wave: Tensor, left: int, right: int, pad_mode: str) -> Tensor:
    """Pad a wave (..., n) to (..., left + n + right)."""
    if pad_mode.startswith("constant"):
        return F.pad(wave, (left, right))
    n = wave.shape[-1]
    if n == 0:
        raise ShapeError(
            f"an empty wave cannot be padded by {pad_mode!r}, which repeats its values; "
            "use 'constant_center' or leave the clip out"
        )
    at = torch.arange(-left, n + right, device=wave.device)
    if pad_mode.startswith("wrap"):
        return wave[..., at % n]
    if pad_mode == "edge_center":
        return wave[..., at.clamp(0, n - 1)]
    lowest = wave.amin(dim=tuple(range(1, wave.ndim)) or 0, keepdim=True)
    return torch.where((at >= 0) & (at < n), wave[..., at.clamp(0, n - 1)], lowest)


def resample(wave: Tensor, sr_from: int, sr_to: int) -> Tensor:
    """Resample a wave by soxr (quality HQ), as `librosa.load` does; not differentiable.

    Parameters
    ----------
    wave
        Shape (..., n).
    sr_from, sr_to
        Rates in Hz.

    Returns
    -------
    Shape (..., ceil(n * sr_to / sr_from)), float32, on the device of `wave`. The length is rounded up exactly; librosa
    rounds up a floating-point product, which may give one sample more.

    Raises
    ------
    OptionError
        If a rate is no whole number above 0.
    """
    sr_from, sr_to = check_rate(sr_from, "sr_from"), check_rate(sr_to, "sr_to")
    if sr_from == sr_to:
        return wave
    samples = -(-wave.shape[-1] * sr_to // sr_from)
    rows = wave.detach().cpu().float().reshape(math.prod(wave.shape[:-1]), wave.shape[-1])
    resampled = [torch.from_numpy(cast(Any, soxr.resample)(row.numpy(), sr_from, sr_to, quality="HQ")) for row in rows]
    # soxr may return a sample more or less.
    resampled = [fit_length(row, samples, "constant_right", cut="right") for row in resampled]
    out = torch.stack(resampled) if resampled else rows.new_zeros(0, samples)
    return out.reshape(*wave.shape[:-1], samples).to(wave.device)


def peak_db(wave: Tensor) -> Tensor:
    """Return the peak level of a wave (..., samples) in dB of full scale, shape (...); -inf for silence.

    Examples
    --------
    >>> peak_db(torch.tensor([0.1, -1.0, 0.5]))
    tensor(0.)
    """
    return 20 * wave.abs().amax(-1).log10()
