"""Waveforms to spectrograms: a frozen description and its `nn.Module`.

Conventions: waves are (batch, samples), full scale [-1, 1]; a spectrogram is (batch, rows, frames), float32, lowest frequency first.
Every convention of the systems that fatai re-creates is a field of `FrontEnd`; a named front end is a set of values. Definitions are
librosa's: periodic window, centred frames, power = |STFT| ** power, Slaney or HTK mel, decibels re 1.
Each clip is computed as if it were alone: `top_db` and the normalisation of a clip look at its own values only.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fatai.errors import FrontEndError, OptionError, ShapeError
from fatai.registry import FRONT_ENDS, did_you_mean

__all__ = ["FrontEnd", "PCEN", "Spectrogram", "SpectrogramStats", "front_end", "mel_filters"]

_CHOICES = {
    "pad_mode": ("constant", "reflect", "edge"),
    "framing": ("fft", "window"),
    "norm": ("slaney", None),
    "log": ("db", "ln", "pcen", "none"),
    "normalise": ("none", "global", "clip", "bin", "image"),
}
_GROUP = 8  # mel filters multiplied at once: measured best of 4, 8 and 16
_CHUNK = {"cpu": 1 << 20}  # values of windowed frames held at once, so that the passes over them hit the cache
_CHUNK_ELSEWHERE = 1 << 28


@dataclass(frozen=True)
class FrontEnd:
    """Everything that decides how a wave becomes a spectrogram; plain values, so it can be stored and compared.

    Parameters
    ----------
    sr
        Rate of the waves in Hz.
    n_fft, win_length, hop_length
        In samples; `win_length` None means `n_fft`. A shorter window lies in the middle of the transform.
    windows
        Further use: transform lengths (each its own window) that are computed with the same hop and stacked on top of one another,
        the first one's rows first; the channels "windows" separate them again. Empty: only `n_fft`.
    center, pad_mode
        Whether frame t is centred on sample t * hop_length, and what lies beyond the ends: "constant" (zeros), "reflect" or "edge".
    framing
        Without `center`: whether the first "fft" or the first "window" starts with the first sample.
    power
        1 for magnitude, 2 for power.
    n_mels, fmin, fmax, htk, norm
        Mel filters as in `librosa.filters.mel`, frequencies in Hz; `fmax` None means sr / 2; `norm` "slaney" or None. `n_mels` None keeps the
        n_fft // 2 + 1 bins of the transform.
    log, amin, top_db, log_offset
        "db": 10 log10(max(x, amin)), or 20 log10(max(x, amin ** 0.5)) of a magnitude, then at least the clip's peak - top_db (None: no floor).
        "ln": ln(x + log_offset). "pcen": see `PCEN`. "none": x.
    pcen_gain, pcen_bias, pcen_power, pcen_time_s, pcen_eps, pcen_trainable
        Constants of `PCEN`; trainable means one of each per row, learnt.
    normalise, mean, std, eps, clamp
        "none". "global": (x - mean) / std, numbers. "bin": the same with one mean and std a row. "clip": with the clip's own mean and
        (population) std + eps. "image": standardised, then stretched to 0..255 and cut down to whole numbers; all 0 if the range is at most eps.
        Then cut to [-clamp, clamp], if given.
    channels
        Name of the channels that suit it; see `fatai.sound.channels`.

    Raises
    ------
    FrontEndError
        If values are out of range or contradict each other.
    """

    sr: int = 44100
    n_fft: int = 2048
    win_length: int | None = None
    hop_length: int = 512
    windows: tuple[int, ...] = ()
    center: bool = True
    pad_mode: str = "constant"
    framing: str = "fft"
    power: float = 2.0
    n_mels: int | None = 128
    fmin: float = 0.0
    fmax: float | None = None
    htk: bool = False
    norm: str | None = "slaney"
    log: str = "db"
    amin: float = 1e-10
    top_db: float | None = None
    log_offset: float = 1e-4
    pcen_gain: float = 0.5
    pcen_bias: float = 1e-3
    pcen_power: float = 0.2
    pcen_time_s: float = 0.4
    pcen_eps: float = 1e-9
    pcen_trainable: bool = False
    normalise: str = "none"
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    eps: float = 1e-6
    clamp: float | None = None
    channels: str = "one"

    def __post_init__(self) -> None:
        for name in ("windows", "mean", "std"):  # TOML and JSON give lists; a frozen value has to be hashable
            value = getattr(self, name)
            if isinstance(value, (list, np.ndarray)):
                object.__setattr__(self, name, tuple(value.tolist() if isinstance(value, np.ndarray) else value))
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise FrontEndError(f"{name}={getattr(self, name)!r}; expected one of {', '.join(map(repr, known))}")
        self._check_numbers()
        self._check_together()

    def _check_numbers(self) -> None:
        for name in ("sr", "n_fft", "hop_length", "power", "n_mels", "win_length", "top_db", "amin", "log_offset", "pcen_time_s", "pcen_eps", "clamp"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise FrontEndError(f"{name}={value}; expected a number above 0")
        for name in ("fmin", "eps", "pcen_gain", "pcen_bias", "pcen_power"):
            if not getattr(self, name) >= 0:
                raise FrontEndError(f"{name}={getattr(self, name)}; expected 0 or more")
        if any(w <= 0 for w in self.windows):
            raise FrontEndError(f"windows={self.windows}; expected lengths above 0")

    def _check_together(self) -> None:
        if not self.fmin < self.top_hz <= self.sr / 2:
            raise FrontEndError(f"fmin={self.fmin}, fmax={self.fmax} at sr={self.sr}; expected fmin < fmax <= {self.sr / 2} Hz")
        if self.win_length is not None and (self.win_length > self.n_fft or self.windows):
            raise FrontEndError(f"win_length={self.win_length}, n_fft={self.n_fft}, windows={self.windows}; expected a window no longer than the "
                                "transform, and none where several are stacked")
        if self.windows and not self.center:
            raise FrontEndError("stacked windows of several lengths only share their frames when center is true")
        if self.windows and self.n_mels is None:
            raise FrontEndError("stacked windows of several lengths need mel bins, of which each has as many: set n_mels")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if self.normalise == "bin" and (not isinstance(value, tuple) or len(value) != self.rows):
                raise FrontEndError(f"normalise='bin' needs one {name} for each of the {self.rows} rows; get them from `fatai-submit stats`")
            if self.normalise == "global" and isinstance(value, tuple):
                raise FrontEndError(f"normalise='global' needs {name} as one number, got {len(value)}; or choose normalise='bin'")
        if any(not s > 0 for s in (self.std if isinstance(self.std, tuple) else (self.std,))):
            raise FrontEndError("std must be above 0 everywhere; a row that never changes cannot be standardised")

    @property
    def top_hz(self) -> float:
        """`fmax`, or half of the rate."""
        return self.sr / 2 if self.fmax is None else self.fmax

    @property
    def transforms(self) -> tuple[int, ...]:
        """Transform lengths: `windows`, or `n_fft` alone."""
        return self.windows or (self.n_fft,)

    @property
    def bins(self) -> int:
        """Frequencies: mel bands, or bins of the transform."""
        return self.n_mels or self.n_fft // 2 + 1

    @property
    def rows(self) -> int:
        """Rows of the spectrogram: `bins` for each window length."""
        return self.bins * len(self.transforms)

    @property
    def seconds_per_frame(self) -> float:
        return self.hop_length / self.sr

    @property
    def frame_length(self) -> int:
        """Samples that one frame looks at when frames are not centred."""
        return (self.win_length or self.n_fft) if self.framing == "window" else self.n_fft

    def frames(self, samples: int) -> int:
        """Number of frames of a wave of `samples` samples; never less than 1."""
        if self.center:
            return 1 + samples // self.hop_length
        return 1 + max(0, samples - self.frame_length) // self.hop_length

    def samples(self, frames: int) -> int:
        """Fewest samples of which `frames` frames can be made."""
        if frames < 1:
            raise OptionError(f"frames={frames}; expected at least 1")
        return max(1, (frames - 1) * self.hop_length + (0 if self.center else self.frame_length))

    def frequencies_hz(self) -> np.ndarray:
        """Centre of each of the `bins`, float64, rising."""
        if self.n_mels is None:
            return np.arange(self.bins) * (self.sr / self.n_fft)
        return _mel_points(self.n_mels, self.fmin, self.top_hz, self.htk)[1:-1]

    def replace(self, **overrides: Any) -> FrontEnd:
        """The same with some values changed; an unknown one is an `OptionError` that lists the known."""
        known = [f.name for f in dataclasses.fields(self)]
        for name in overrides:
            if name not in known:
                raise OptionError(f"a front end has no setting {name!r}; {did_you_mean(name, known)}")
        return dataclasses.replace(self, **overrides)

    def build(self) -> Spectrogram:
        """The module that computes it."""
        return Spectrogram(self)


def front_end(name: str | FrontEnd, **overrides: Any) -> FrontEnd:
    """The description registered under `name`, or the one given, with some values changed."""
    if isinstance(name, FrontEnd):
        return name.replace(**overrides)
    settings = getattr(FRONT_ENDS.build(name, **overrides), "settings", None)
    if not isinstance(settings, FrontEnd):
        raise FrontEndError(f"the front end {name!r} has no description; give its module an attribute `settings` that is a FrontEnd")
    return settings


def _hz_to_mel(hz: np.ndarray | float, htk: bool) -> np.ndarray:
    """Slaney's scale is linear (3 mel in 200 Hz) up to 1 kHz = 15 mel, then 27 mel for each factor of 6.4; HTK's is 2595 log10(1 + f / 700)."""
    hz = np.asarray(hz, dtype=np.float64)
    if htk:
        return 2595.0 * np.log10(1.0 + hz / 700.0)
    return np.where(hz < 1000.0, hz * 3 / 200, 15.0 + 27.0 * np.log(np.maximum(hz, 1000.0) / 1000.0) / np.log(6.4))


def _mel_to_hz(mel: np.ndarray, htk: bool) -> np.ndarray:
    if htk:
        return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    return np.where(mel < 15.0, mel * 200 / 3, 1000.0 * np.exp(np.log(6.4) / 27.0 * (np.maximum(mel, 15.0) - 15.0)))


def _mel_points(n_mels: int, fmin: float, fmax: float, htk: bool) -> np.ndarray:
    """Feet and tops of `n_mels` triangles in Hz, evenly spaced in mel, n_mels + 2 of them."""
    low, high = _hz_to_mel(fmin, htk), _hz_to_mel(fmax, htk)
    return _mel_to_hz(np.linspace(low, high, n_mels + 2), htk)


@lru_cache(maxsize=32)
def _mel_filters(sr: int, n_fft: int, n_mels: int, fmin: float, fmax: float, htk: bool, norm: str | None) -> np.ndarray:
    points = _mel_points(n_mels, fmin, fmax, htk)
    bins = np.arange(n_fft // 2 + 1) * (sr / n_fft)
    rising = (bins - points[:-2, None]) / np.diff(points)[:-1, None]
    falling = (points[2:, None] - bins) / np.diff(points)[1:, None]
    filters = np.maximum(0.0, np.minimum(rising, falling))
    if norm == "slaney":
        filters *= 2.0 / (points[2:] - points[:-2])[:, None]
    return filters


def mel_filters(settings: FrontEnd, n_fft: int | None = None) -> Tensor:
    """Triangular filters, shape (n_mels, n_fft // 2 + 1), float32; those of `librosa.filters.mel`."""
    if settings.n_mels is None:
        raise FrontEndError("a front end without mel bins (n_mels=None) has no mel filters; set n_mels")
    filters = _mel_filters(settings.sr, n_fft or settings.n_fft, settings.n_mels, float(settings.fmin), float(settings.top_hz), settings.htk, settings.norm)
    return torch.from_numpy(filters.astype(np.float32))


class _Band(nn.Module):
    """Power spectra of one window length, in mel bands or as they are: (batch, padded samples) to (batch, rows, frames)."""

    window: Tensor
    filters: Tensor

    def __init__(self, settings: FrontEnd, n_fft: int):
        super().__init__()
        self.n_fft, self.hop_length, self.power = n_fft, settings.hop_length, settings.power
        win_length = settings.win_length or n_fft
        left = (n_fft - win_length) // 2
        window = F.pad(torch.hann_window(win_length, periodic=True, dtype=torch.float64), (left, n_fft - win_length - left))
        self.register_buffer("window", window.float(), persistent=False)
        filters = mel_filters(settings, n_fft) if settings.n_mels else torch.empty(0)
        self.register_buffer("filters", filters, persistent=False)
        self.groups = _narrow_groups(filters) if settings.n_mels else []

    def forward(self, wave: Tensor) -> Tensor:
        frames = wave.unfold(-1, self.n_fft, self.hop_length)
        n_clips, n_frames = frames.shape[:2]
        limit = max(1, _CHUNK.get(wave.device.type, _CHUNK_ELSEWHERE) // self.n_fft)  # frames at once
        if n_clips * n_frames <= limit:
            return self._bands(frames)
        clips = max(1, limit // n_frames)
        return torch.cat([
            torch.cat([self._bands(frames[i:i + clips, t:t + limit]) for t in range(0, n_frames, limit)], -1)
            for i in range(0, n_clips, clips)
        ])

    def _bands(self, frames: Tensor) -> Tensor:
        """(batch, frames, n_fft) to (batch, rows, frames)."""
        pairs = torch.view_as_real(torch.fft.rfft(frames * self.window))
        if self.power == 2.0:
            # The filters are repeated for real and imaginary parts, so the sum of the two squares is part of the product.
            squares = pairs.flatten(-2).square()
            if not self.groups:
                return squares.unflatten(-1, (-1, 2)).sum(-1).transpose(1, 2)
            return self._product(squares, parts=2)
        magnitude = torch.view_as_complex(pairs).abs()
        if self.power != 1.0:
            magnitude = magnitude ** self.power
        return self._product(magnitude, parts=1) if self.groups else magnitude.transpose(1, 2)

    def _product(self, spectra: Tensor, parts: int) -> Tensor:
        """Mel bands of spectra (batch, frames, parts * bins)."""
        if spectra.device.type != "cpu":
            return self.filters.repeat_interleave(parts, 1) @ spectra.transpose(1, 2)
        # A filter is a narrow band: eight neighbours at a time touch an eighth of what the whole matrix does.
        flat = spectra.flatten(0, 1)
        bands = [flat[:, parts * start:parts * stop] @ self.filters[rows, start:stop].repeat_interleave(parts, 1).T for rows, start, stop in self.groups]
        return torch.cat(bands, 1).view(*spectra.shape[:2], -1).transpose(1, 2)


def _narrow_groups(filters: Tensor) -> list[tuple[slice, int, int]]:
    """Neighbouring filters, and the first and last + 1 of the bins that any of them uses."""
    groups = []
    for at in range(0, len(filters), _GROUP):
        used = (filters[at:at + _GROUP] > 0).any(0).nonzero().flatten()
        start, stop = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
        groups.append((slice(at, at + _GROUP), start, stop))
    return groups


class Spectrogram(nn.Module):
    """Waves (batch, samples) to spectrograms (batch, rows, frames), as `settings` say.

    Float32 throughout, also under autocast. Its tensors move with it from device to device, but are not stored with a model's weights,
    except for the constants of a trainable PCEN.
    """

    def __init__(self, settings: FrontEnd):
        super().__init__()
        self.settings = settings
        self.bands = nn.ModuleList(_Band(settings, n_fft) for n_fft in settings.transforms)
        self.pcen = PCEN.from_settings(settings) if settings.log == "pcen" else None
        self.register_buffer("mean", _as_column(settings.mean), persistent=False)
        self.register_buffer("std", _as_column(settings.std), persistent=False)

    mean: Tensor
    std: Tensor

    def extra_repr(self) -> str:
        return repr(self.settings)

    def forward(self, wave: Tensor) -> Tensor:
        if wave.ndim != 2 or wave.shape[1] == 0 or not wave.is_floating_point():
            raise ShapeError(f"got a wave of shape {tuple(wave.shape)} and type {wave.dtype}; expected floats of shape (batch, samples) with at "
                             "least one sample: one clip is wave[None]")
        with torch.autocast(wave.device.type, enabled=False):
            wave = wave.as_subclass(Tensor).float()
            specs = [self._normalised(self._log(band(_padded(wave, self.settings, band.n_fft)))) for band in self._stacked()]
            spec = specs[0] if len(specs) == 1 else torch.cat(specs, 1)
            return self._standardised(spec).contiguous()

    def _stacked(self) -> list[_Band]:
        return list(self.bands)  # type: ignore[arg-type]

    def _log(self, spec: Tensor) -> Tensor:
        s = self.settings
        if s.log == "db":
            # power is 2 for power: |X| ** power in dB is (20 / power) log10 of it
            spec = (20 / s.power) * spec.clamp(min=s.amin ** (s.power / 2)).log10()
            return spec if s.top_db is None else spec.maximum(spec.amax((1, 2), keepdim=True) - s.top_db)
        if s.log == "ln":
            return (spec + s.log_offset).log()
        return spec if self.pcen is None else self.pcen(spec)

    def _normalised(self, spec: Tensor) -> Tensor:
        """By the clip's own values: each window length apart."""
        if self.settings.normalise not in ("clip", "image"):
            return spec
        mean = spec.mean((1, 2), keepdim=True)
        std = spec.std((1, 2), keepdim=True, correction=0)
        spec = (spec - mean) / (std + self.settings.eps)
        return spec if self.settings.normalise == "clip" else _as_image(spec, self.settings.eps)

    def _standardised(self, spec: Tensor) -> Tensor:
        """By the constants of the settings."""
        if self.settings.normalise in ("global", "bin"):
            spec = (spec - self.mean) / self.std
        return spec if self.settings.clamp is None else spec.clamp(-self.settings.clamp, self.settings.clamp)


def _as_column(values: float | Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 1)


def _as_image(spec: Tensor, eps: float) -> Tensor:
    """Each clip stretched to 0..255 and cut down to whole numbers, as a cast to 8 bits does; 0 where its range is at most `eps`."""
    low, high = spec.amin((1, 2), keepdim=True), spec.amax((1, 2), keepdim=True)
    flat = high - low <= eps
    # In this order: the peak is 255 * r / r, which rounding may bring under 255, and then truncation under 254, as in the original.
    levels = (255 * (spec - low) / (high - low).masked_fill(flat, 1.0)).floor()
    return levels.masked_fill(flat, 0.0)


def _padded(wave: Tensor, settings: FrontEnd, n_fft: int) -> Tensor:
    """The wave with what lies beyond its ends, of at least one transform's length."""
    if settings.center:
        return _pad_ends(wave, n_fft // 2, settings.pad_mode)
    if settings.framing == "window":
        left = (n_fft - (settings.win_length or n_fft)) // 2
        wave = F.pad(wave, (left, n_fft - (settings.win_length or n_fft) - left))
    return F.pad(wave, (0, max(0, n_fft - wave.shape[-1])))


def _pad_ends(wave: Tensor, reach: int, mode: str) -> Tensor:
    if mode == "constant":
        return F.pad(wave, (reach, reach))
    samples = wave.shape[-1]
    at = torch.arange(-reach, samples + reach, device=wave.device)
    if mode == "edge":
        return wave[:, at.clamp(0, samples - 1)]
    if samples > reach:
        return F.pad(wave[:, None], (reach, reach), mode="reflect")[:, 0]
    # A wave shorter than the reach goes to and fro in its mirrors, as in numpy.pad.
    period = max(1, 2 * (samples - 1))
    at = at.remainder(period)
    return wave[:, torch.minimum(at, period - at) if samples > 1 else torch.zeros_like(at)]


class PCEN(nn.Module):
    """Per-channel energy normalisation: an automatic gain for each row of a spectrogram, then a root.

    With a smoother M_t = (1 - b) M_(t-1) + b S_t that starts at M_0 = S_0,
    out = (S * (eps + M) ** -gain + bias) ** power - bias ** power. The time constant of n frames gives
    b = (sqrt(1 + 4 n ** 2) - 1) / (2 n ** 2). No scaling of S by 2 ** 31.

    Parameters
    ----------
    rows
        Rows of the spectrogram.
    trainable
        Whether gain, bias, power and b are parameters, one each per row, kept as logarithms; gradients then flow through the smoother.

    Source: arXiv:1607.05666; constants and trainable form of Kaggle-FAT.
    """

    def __init__(self, rows: int, *, gain: float = 0.5, bias: float = 1e-3, power: float = 0.2, b: float = 0.02469, eps: float = 1e-9,
                 trainable: bool = False):
        super().__init__()
        self.eps, self.trainable = eps, trainable
        for name, value in dict(gain=gain, bias=bias, power=power, b=b).items():
            if trainable:
                if not value > 0:
                    raise FrontEndError(f"PCEN's {name}={value} cannot be trained: it is stored as a logarithm, so it has to start above 0")
                self.register_parameter(f"log_{name}", nn.Parameter(torch.full((rows, 1), math.log(value))))
            else:
                self.register_buffer(f"fixed_{name}", torch.full((rows, 1), float(value)), persistent=False)

    @classmethod
    def from_settings(cls, settings: FrontEnd) -> PCEN:
        n = settings.pcen_time_s / settings.seconds_per_frame
        b = (math.sqrt(1 + 4 * n * n) - 1) / (2 * n * n)
        return cls(settings.rows if not settings.windows else settings.bins, gain=settings.pcen_gain, bias=settings.pcen_bias,
                   power=settings.pcen_power, b=b, eps=settings.pcen_eps, trainable=settings.pcen_trainable)

    def constant(self, name: str) -> Tensor:
        """"gain", "bias", "power" or "b", shape (rows, 1)."""
        return getattr(self, f"log_{name}").exp() if self.trainable else getattr(self, f"fixed_{name}")

    def forward(self, spec: Tensor) -> Tensor:
        """(batch, rows, frames) of magnitudes to the same shape."""
        gain, bias, power, b = (self.constant(name) for name in ("gain", "bias", "power", "b"))
        smooth = _smoothed(spec, b)
        # (eps + M) ** -gain by way of logarithms, which keep their precision where M is far below eps.
        gained = spec * (-gain * (math.log(self.eps) + torch.log1p(smooth / self.eps))).exp()
        return (gained + bias) ** power - bias ** power


def _smoothed(spec: Tensor, b: Tensor) -> Tensor:
    """First-order recursion along the frames, started at the first frame."""
    decay = 1 - b[:, 0]
    state = spec[..., 0]
    states = [state]
    for frame in (spec[..., 1:] * b).unbind(-1):
        state = decay * state + frame
        states.append(state)
    return torch.stack(states, -1)


class SpectrogramStats:
    """Mean and standard deviation of spectrograms that come one batch at a time, per row and over all, in float64.

    Examples
    --------
    >>> stats = SpectrogramStats()
    >>> for value in (1.0, 3.0):
    ...     stats.add(torch.full((1, 2, 5), value))
    >>> stats.mean, stats.std, stats.bin_mean.tolist()
    (2.0, 1.0, [2.0, 2.0])
    """

    def __init__(self) -> None:
        self.frames = 0
        self.bin_mean = np.zeros(0)
        self._squares = np.zeros(0)  # summed squares of the deviations from bin_mean

    def add(self, spec: Tensor) -> None:
        """Count the frames of (batch, rows, frames) in."""
        values = spec.detach().transpose(0, 1).flatten(1).double().cpu().numpy()
        self.merge(values.shape[1], values.mean(1), ((values - values.mean(1, keepdims=True)) ** 2).sum(1))

    def merge(self, frames: int, bin_mean: np.ndarray, squares: np.ndarray) -> None:
        """Count in what was counted elsewhere (Chan's formula, which loses no digits where a sum of squares does)."""
        if self.frames and len(bin_mean) != len(self.bin_mean):
            raise ShapeError(f"got spectrograms of {len(bin_mean)} rows after some of {len(self.bin_mean)}; use one front end for all")
        if not self.frames:
            self.bin_mean, self._squares = np.zeros(len(bin_mean)), np.zeros(len(bin_mean))
        total = self.frames + frames
        shift = bin_mean - self.bin_mean
        self._squares = self._squares + squares + shift ** 2 * (self.frames * frames / max(1, total))
        self.bin_mean = self.bin_mean + shift * (frames / max(1, total))
        self.frames = total

    @property
    def bin_std(self) -> np.ndarray:
        """Population standard deviation of each row."""
        return np.sqrt(self._squares / max(1, self.frames))

    @property
    def mean(self) -> float:
        """Over all rows."""
        return float(self.bin_mean.mean())

    @property
    def std(self) -> float:
        """Over all rows: spread within the rows and between them."""
        return float(np.sqrt((self._squares / max(1, self.frames)).mean() + self.bin_mean.var()))


@FRONT_ENDS.register("ninth", source="modeling kernel of the 9th place of Freesound Audio Tagging 2019; own code")
def ninth(**overrides: Any) -> Spectrogram:
    """64 mel, dB with top_db 80, one mean and standard deviation; 4 s are 256 frames."""
    return FrontEnd(
        n_fft=1920, hop_length=690, n_mels=64, fmin=20.0, fmax=22050.0, top_db=80.0, normalise="global", mean=-35.7, std=21.6,
    ).replace(**overrides).build()
