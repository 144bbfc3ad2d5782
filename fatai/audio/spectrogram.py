"""Waveforms to spectrograms: a frozen description, and the `nn.Module` that computes it.

Conventions: waves are (batch, samples), full scale [-1, 1]; a spectrogram is (batch, rows, frames), float32, lowest frequency first.
Every convention of the systems that fatai re-creates is a field of `FrontEnd`. Definitions are librosa's: periodic Hann window,
centred frames, |STFT| ** power, Slaney or HTK mel, decibels re 1.
Each clip is computed as if it were alone: `top_db` and the normalisation of a clip look at its own values only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fatai.errors import FrontEndError, OptionError, ShapeError
from fatai.registry import did_you_mean
from fatai.audio.mel import mel_filters, mel_points
from fatai.audio.pcen import PCEN, smoothing
from fatai.audio.stft import PAD_MODES, ShortTimeSpectra, pad_ends

__all__ = ["FrontEnd", "Spectrogram"]

_CHOICES = {
    "pad_mode": PAD_MODES,
    "framing": ("fft", "window"),
    "norm": ("slaney", None),
    "log": ("db", "ln", "pcen", "none"),
    "normalize": ("none", "global", "clip", "bin", "image"),
}
_ABOVE_ZERO = (
    "sr",
    "n_fft",
    "hop_length",
    "power",
    "n_mels",
    "win_length",
    "top_db",
    "amin",
    "log_offset",
    "pcen_time_s",
    "pcen_power",
    "pcen_eps",
    "clamp",
)
_NOT_BELOW_ZERO = ("fmin", "eps", "pcen_gain", "pcen_bias")
_MOST = {"sr": 1_000_000, "n_fft": 1 << 17, "win_length": 1 << 17, "n_mels": 4096}
_MOST_WINDOWS = 8


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
        Mel filters as in `librosa.filters.mel`, frequencies in Hz; `fmax` None means sr / 2; `norm` "slaney" or None. `n_mels` None
        keeps the n_fft // 2 + 1 bins of the transform.
    log, amin, top_db, log_offset
        "db": 10 log10(max(x, amin)), or 20 log10(max(x, amin ** 0.5)) of a magnitude, then at least the clip's peak - top_db
        (None: no floor). "ln": ln(x + log_offset). "pcen": see `PCEN`. "none": x.
    pcen_gain, pcen_bias, pcen_power, pcen_time_s, pcen_eps, pcen_trainable
        Constants of `PCEN`; trainable means one of each per row, learnt.
    normalize, mean, std, eps, clamp
        "none". "global": (x - mean) / std, numbers. "bin": the same with one mean and std a row. "clip": with the clip's own mean and
        (population) std + eps. "image": standardised, then stretched to 0..255 and cut down to whole numbers; all 0 if the range is
        at most eps. Then cut to [-clamp, clamp], if given.
    channels
        Name of the channels that suit it; see `fatai.audio.channels`.

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
    normalize: str = "none"
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    eps: float = 1e-6
    clamp: float | None = None
    channels: str = "mono"

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
        for name in _ABOVE_ZERO:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise FrontEndError(f"{name}={value}; expected a number above 0")
        for name in _NOT_BELOW_ZERO:
            if not getattr(self, name) >= 0:
                raise FrontEndError(f"{name}={getattr(self, name)}; expected 0 or more")
        for name, most in _MOST.items():
            if (getattr(self, name) or 0) > most:
                raise FrontEndError(f"{name}={getattr(self, name)}; expected at most {most}")
        if len(self.windows) > _MOST_WINDOWS or not all(0 < w <= _MOST["n_fft"] for w in self.windows):
            raise FrontEndError(
                f"windows={self.windows[:10]}; expected at most {_MOST_WINDOWS}, of 1 to {_MOST['n_fft']} samples"
            )

    def _check_together(self) -> None:
        if not self.fmin < self.top_hz <= self.sr / 2:
            raise FrontEndError(
                f"fmin={self.fmin}, fmax={self.fmax} at sr={self.sr}; expected fmin < fmax <= {self.sr / 2} Hz"
            )
        if self.win_length is not None and (self.win_length > self.n_fft or self.windows):
            raise FrontEndError(f"win_length={self.win_length}, n_fft={self.n_fft}, windows={self.windows}; "
                                "expected a window no longer than the transform, and none where several are stacked")
        if self.windows and not self.center:
            raise FrontEndError("stacked windows of several lengths only share their frames when center is true")
        if self.windows and self.n_mels is None:
            raise FrontEndError(
                "stacked windows of several lengths need mel bins, of which each has as many: set n_mels"
            )
        for name in ("mean", "std"):
            value = getattr(self, name)
            if self.normalize == "bin" and (not isinstance(value, tuple) or len(value) != self.rows):
                raise FrontEndError(f"normalize='bin' needs one {name} for each of the {self.rows} rows; "
                                    "measure them with `spectrogram_stats`")
            if self.normalize == "global" and isinstance(value, tuple):
                raise FrontEndError(
                    f"normalize='global' needs {name} as one number, got {len(value)}; or choose normalize='bin'"
                )
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
        return mel_points(self.n_mels, self.fmin, self.top_hz, htk=self.htk)[1:-1]

    def filters(self, n_fft: int | None = None) -> Tensor | None:
        """Mel filters for a transform of `n_fft` samples, shape (n_mels, n_fft // 2 + 1), float32; None without mel bins."""
        if self.n_mels is None:
            return None
        n_fft = n_fft or self.n_fft
        filters = mel_filters(
            self.sr, n_fft, self.n_mels, float(self.fmin), float(self.top_hz), htk=self.htk, norm=self.norm
        )
        return torch.from_numpy(filters.astype(np.float32))

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


class Spectrogram(nn.Module):
    """Waves (batch, samples) to spectrograms (batch, rows, frames), as `settings` say.

    Float32 throughout, also under autocast. Its tensors move with it from device to device, but are not stored with a model's weights,
    except for the constants of a trainable PCEN.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: FrontEnd):
        super().__init__()
        self.settings = settings
        self.spectra = nn.ModuleList(
            ShortTimeSpectra(
                n_fft,
                settings.win_length or n_fft,
                settings.hop_length,
                settings.power,
                settings.filters(n_fft),
                least=settings.amin if settings.log == "db" else 0.0,
                range_db=settings.top_db if settings.log == "db" else None,
            )
            for n_fft in settings.transforms
        )
        self.pcen = nn.ModuleList(_pcen(settings) for _ in settings.transforms) if settings.log == "pcen" else None
        self.register_buffer("mean", _as_column(settings.mean), persistent=False)
        self.register_buffer("std", _as_column(settings.std), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Spectrogram:
        # Follows a network to its device, but stays float32 when that is made half as wide: filters in 16 bits are wrong by decibels.
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)

    def extra_repr(self) -> str:
        return repr(self.settings)

    def forward(self, wave: Tensor) -> Tensor:
        if wave.ndim != 2 or wave.shape[1] == 0 or not wave.is_floating_point():
            raise ShapeError(
                f"got a wave of shape {tuple(wave.shape)} and type {wave.dtype}; "
                "expected floats of shape (batch, samples) with at least one sample: one clip is wave[None]"
            )
        device = wave.device.type
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            wave = (wave if torch.compiler.is_compiling() else wave.as_subclass(Tensor)).float()
            specs = [self._normalized(self._log(i, spectra(*_continued(wave, self.settings, n_fft))))
                     for i, (n_fft, spectra) in enumerate(zip(self.settings.transforms, self.spectra, strict=True))]
            return self._standardised(specs[0] if len(specs) == 1 else torch.cat(specs, 1)).contiguous()

    def _log(self, i: int, spec: Tensor) -> Tensor:
        """Of the spectra of the i-th window length."""
        s = self.settings
        if s.log == "db":
            # |X| ** power in dB is 20 / power times its logarithm; the floor is that of a power.
            if _in_memory(spec):
                return self._decibels(spec)
            spec = (20 / s.power) * spec.clamp(min=s.amin ** (s.power / 2)).log10()
            return spec if s.top_db is None else spec.maximum(spec.amax((1, 2), keepdim=True) - s.top_db)
        if s.log == "ln":
            return (spec + s.log_offset).log()
        return spec if self.pcen is None else self.pcen[i](spec)

    def _decibels(self, spec: Tensor) -> Tensor:
        """In place, in ordinary memory."""
        from fatai.audio import _numba_kernels

        s = self.settings
        least, scale = s.amin ** (s.power / 2), 20 / s.power
        for clip in spec.numpy():
            _numba_kernels.decibels(
                clip, scale, least if s.top_db is None else max(least, float(clip.max()) * 10 ** (-s.top_db / scale))
            )
        return spec

    def _normalized(self, spec: Tensor) -> Tensor:
        """By the clip's own values: each window length apart."""
        if self.settings.normalize == "image":
            return _as_image(spec, self.settings.eps)
        if self.settings.normalize == "clip":
            mean = spec.mean((1, 2), keepdim=True)
            return (spec - mean) / (spec.std((1, 2), keepdim=True, correction=0) + self.settings.eps)
        return spec

    def _standardised(self, spec: Tensor) -> Tensor:
        """By the constants of the settings."""
        if self.settings.normalize in ("global", "bin"):
            spec = (spec - self.mean) / self.std
        return spec if self.settings.clamp is None else spec.clamp(-self.settings.clamp, self.settings.clamp)


def _as_column(values: float | Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 1)


def _as_image(spec: Tensor, eps: float) -> Tensor:
    """Each clip stretched to 0..255 and cut down to whole numbers, as a cast to 8 bits does; 0 where it is flat.

    Standardising first would change nothing but rounding. It decides what is flat: a range r of at most eps * (std + eps), and as no
    std exceeds r / 2, that is one of at most eps ** 2.
    """
    if _in_memory(spec):
        from fatai.audio import _numba_kernels

        for clip in spec.numpy():
            _numba_kernels.stretched(clip, clip.min(), clip.max(), eps ** 2)
        return spec
    low, high = spec.amin((1, 2), keepdim=True), spec.amax((1, 2), keepdim=True)
    flat = high - low <= eps ** 2
    return (255 * (spec - low) / (high - low).masked_fill(flat, torch.inf)).floor()


def _in_memory(spec: Tensor) -> bool:
    """Whether compiled loops may change it in place; they are no part of a traced graph."""
    return (
        not torch.compiler.is_compiling()
        and spec.device.type == "cpu"
        and spec.is_contiguous()
        and not spec.requires_grad
    )


def _continued(wave: Tensor, settings: FrontEnd, n_fft: int) -> tuple[Tensor, int, int]:
    """The wave with what lies beyond its ends, but for zeros, and how many of these the transforms may reach before and behind it."""
    if settings.center:
        reach = n_fft // 2
        return (
            (wave, reach, reach)
            if settings.pad_mode == "constant"
            else (pad_ends(wave, reach, settings.pad_mode), 0, 0)
        )
    # The first window starts with the wave; the transform, in whose middle it lies, may start before.
    unused = n_fft - settings.frame_length
    return wave, unused // 2, unused - unused // 2


def _pcen(settings: FrontEnd) -> PCEN:
    return PCEN(
        settings.bins,
        gain=settings.pcen_gain,
        bias=settings.pcen_bias,
        power=settings.pcen_power,
        eps=settings.pcen_eps,
        b=smoothing(settings.pcen_time_s / settings.seconds_per_frame),
        trainable=settings.pcen_trainable,
    )
