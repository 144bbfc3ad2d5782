"""Waveforms to spectrograms: the settings as a frozen dataclass, and the `nn.Module` that computes them.

Conventions: waves are (batch, samples), full scale [-1, 1]; a spectrogram is (batch, rows, frames), float32, lowest
frequency first. Every convention of the systems that fatai reproduces is a field of `FrontEnd`. Definitions are
librosa's: periodic Hann window, centred frames, |STFT| ** power, Slaney or HTK mel filters, decibels re 1. Each clip of
a batch is computed independently: `top_db` and the normalization of a clip depend on its own values only.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fatai.audio.mel import mel_filters, mel_frequencies, mel_frequency_filters
from fatai.audio.pcen import PCEN, smoothing
from fatai.audio.stft import STFT_PAD_MODES, ShortTimeSpectra, pad_ends
from fatai.errors import FrontEndError, OptionError, ShapeError
from fatai.registry import did_you_mean

__all__ = ["FrontEnd", "Spectrogram"]

_CHOICES = {
    "pad_mode": STFT_PAD_MODES,
    "framing": ("fft", "window"),
    "norm": ("slaney", None),
    "mel_triangles": ("hz", "mel"),
    "log": ("db", "ln", "pcen", "none"),
    "normalize": ("none", "global", "clip", "bin", "image"),
}
_POSITIVE = (
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
    "min_samples",
)
_NON_NEGATIVE = ("fmin", "eps", "pcen_gain", "pcen_bias", "preemphasis")
_INTEGERS = ("sr", "min_samples", "n_fft", "win_length", "hop_length", "n_mels")
_OPTIONAL = ("win_length", "n_mels", "fmax", "top_db", "clamp")
_MAX = {
    "sr": 1_000_000, "n_fft": 1 << 17, "win_length": 1 << 17, "n_mels": 4096, "min_samples": 1 << 17, "preemphasis": 1,
}
_MAX_WINDOWS = 8


@dataclass(frozen=True)
class FrontEnd:
    """Settings of a spectrogram; plain values, so they can be stored, hashed and compared.

    Parameters
    ----------
    sr
        Rate of the waves in Hz.
    min_samples
        Shorter waves are first extended by zeros, at their end, to so many samples.
    preemphasis
        Factor c within [0, 1] of the filter x[t] - c * x[t - 1]. Its result is one sample shorter than the wave, since
        the first one has no predecessor; a wave of a single sample is extended by one zero before. 0: no filter.
    n_fft, win_length, hop_length
        In samples; `win_length` None means `n_fft`. A shorter window is centred in the transform. A longer window
        resolves frequencies better, a shorter one time.
    windows
        Lengths of several transforms (each its own window) with the same hop, whose spectrograms are stacked along the
        rows, those of the first length first; the channels "windows" separate them again. Empty: only `n_fft`.
    periodic
        True for the periodic Hann window, the usual one of spectral analysis; False for the symmetric one.
    center, pad_mode
        True centres frame t on sample t * hop_length; `pad_mode` is the padding at the ends: "constant" (zeros),
        "reflect" or "edge".
    framing
        Without `center`: "fft" starts the first transform at the first sample, "window" the first window.
    power
        1 for magnitude, 2 for power.
    n_mels, fmin, fmax, htk, norm
        Mel filters of `librosa.filters.mel`, frequencies in Hz; `fmax` None means sr / 2; `norm` "slaney" or None.
        `n_mels` None keeps the n_fft // 2 + 1 bins of the transform.
    mel_triangles
        "hz": the sides of the filters are straight lines over the frequency, as librosa's. "mel": over the mel scale,
        as Kaldi's and `torchaudio.compliance.kaldi.get_mel_banks`, which has HTK's scale and no `norm`.
    log, amin, top_db, log_offset
        "db": 10 log10(max(x, amin)), or 20 log10(max(x, amin ** 0.5)) of a magnitude, then at least the clip's peak -
        top_db (None: no floor). "ln": ln(x + log_offset). "pcen": see `PCEN`. "none": x.
    pcen_gain, pcen_bias, pcen_power, pcen_time_s, pcen_eps, pcen_trainable
        Constants of `PCEN`; trainable means one of each per row, learned, in networks that have the `Spectrogram` as a
        layer: `ClipConfig` refuses it.
    normalize, mean, std, eps, clamp
        "none". "global": (x - mean) / std, numbers. "bin": the same with one mean and std per row. "clip": with the
        clip's own mean and (population) std + eps. "image": standardized, then scaled to 0..255 and rounded down; all 0
        if the range is at most eps. Finally clamped to [-clamp, clamp], if given.
    channels
        Name of the input channels that suit these settings; see `fatai.audio.channels`.

    Raises
    ------
    FrontEndError
        If values are out of range or contradict each other.
    """

    sr: int = 44100
    min_samples: int = 1
    preemphasis: float = 0.0
    n_fft: int = 2048
    win_length: int | None = None
    hop_length: int = 512
    windows: tuple[int, ...] = ()
    periodic: bool = True
    center: bool = True
    pad_mode: str = "constant"
    framing: str = "fft"
    power: float = 2.0
    n_mels: int | None = 128
    fmin: float = 0.0
    fmax: float | None = None
    htk: bool = False
    norm: str | None = "slaney"
    mel_triangles: str = "hz"
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
        self._check_types()
        self._check_numbers()
        self._check_frequencies()
        self._check_windows()
        self._check_constants()

    def _check_types(self) -> None:
        for name in dict.fromkeys((*_POSITIVE, *_NON_NEGATIVE, "fmax")):
            value, kind = getattr(self, name), Integral if name in _INTEGERS else Real
            if not _is_number(value, kind) and not (value is None and name in _OPTIONAL):
                raise FrontEndError(
                    f"{name}={value!r}; expected {'an integer' if kind is Integral else 'a number'}"
                )
        if not isinstance(self.windows, tuple) or not all(_is_number(w, Integral) for w in self.windows):
            raise FrontEndError(f"windows={self.windows!r}; expected integers, the lengths of the windows in samples")

    def _check_numbers(self) -> None:
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise FrontEndError(f"{name}={value}; expected a number above 0")
        for name in _NON_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise FrontEndError(f"{name}={getattr(self, name)}; expected 0 or more")
        for name, highest in _MAX.items():
            if (getattr(self, name) or 0) > highest:
                raise FrontEndError(f"{name}={getattr(self, name)}; expected at most {highest}")

    def _check_frequencies(self) -> None:
        if not self.fmin < self.max_hz <= self.sr / 2:
            raise FrontEndError(
                f"fmin={self.fmin}, fmax={self.fmax} at sr={self.sr}; expected fmin < fmax <= {self.sr / 2} Hz"
            )

    def _check_windows(self) -> None:
        if len(self.windows) > _MAX_WINDOWS or not all(0 < w <= _MAX["n_fft"] for w in self.windows):
            raise FrontEndError(
                f"windows={self.windows[:10]}; expected at most {_MAX_WINDOWS}, of 1 to {_MAX['n_fft']} samples"
            )
        if self.win_length is not None and (self.win_length > self.n_fft or self.windows):
            raise FrontEndError(f"win_length={self.win_length}, n_fft={self.n_fft}, windows={self.windows}; "
                                "expected a window no longer than the transform, and none with stacked windows")
        if self.windows and not self.center:
            raise FrontEndError("stacked windows of several lengths have the same frames only if center is true")
        if self.windows and self.n_mels is None:
            raise FrontEndError("stacked windows of several lengths need the same number of rows: set n_mels")

    def _check_constants(self) -> None:
        for name in ("mean", "std"):
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else (value,):
                if not _is_number(number, Real) or not math.isfinite(number):
                    raise FrontEndError(f"{name}={number!r}; expected a finite number, or one for each row")
            if self.normalize == "bin" and (not isinstance(value, tuple) or len(value) != self.rows):
                raise FrontEndError(f"normalize='bin' needs one {name} for each of the {self.rows} rows; "
                                    "measure them with `spectrogram_stats`")
            if self.normalize == "global" and isinstance(value, tuple):
                raise FrontEndError(
                    f"normalize='global' needs {name} as one number, got {len(value)}; or choose normalize='bin'"
                )
        if any(not s > 0 for s in (self.std if isinstance(self.std, tuple) else (self.std,))):
            raise FrontEndError("std must be above 0 everywhere; a constant row cannot be standardized")

    @property
    def max_hz(self) -> float:
        """Highest frequency in Hz: `fmax`, or half of the rate."""
        return self.sr / 2 if self.fmax is None else self.fmax

    @property
    def transforms(self) -> tuple[int, ...]:
        """Transform lengths: `windows`, or `n_fft` alone."""
        return self.windows or (self.n_fft,)

    @property
    def bins(self) -> int:
        """Number of frequencies: mel bands, or bins of the transform."""
        return self.n_mels or self.n_fft // 2 + 1

    @property
    def rows(self) -> int:
        """Number of rows of the spectrogram: `bins` for each window length."""
        return self.bins * len(self.transforms)

    @property
    def seconds_per_frame(self) -> float:
        """Hop in seconds."""
        return self.hop_length / self.sr

    @property
    def frame_length(self) -> int:
        """Number of samples of a frame when frames are not centred."""
        return (self.win_length or self.n_fft) if self.framing == "window" else self.n_fft

    @property
    def shortest(self) -> int:
        """Number of samples that shorter waves are extended to: `min_samples`, with pre-emphasis at least 2."""
        return max(self.min_samples, 1 + (self.preemphasis > 0))

    def frames(self, samples: int) -> int:
        """Return the number of frames, at least 1, of a wave of `samples` samples.

        Examples
        --------
        >>> FrontEnd(hop_length=512).frames(1024)
        3
        """
        samples = max(samples, self.shortest) - (self.preemphasis > 0)
        if self.center:
            return 1 + samples // self.hop_length
        return 1 + max(0, samples - self.frame_length) // self.hop_length

    def samples(self, frames: int) -> int:
        """Return the smallest number of samples, at least 1, that gives at least `frames` frames."""
        if frames < 1:
            raise OptionError(f"frames={frames}; expected at least 1")
        samples = (frames - 1) * self.hop_length + (0 if self.center else self.frame_length) + (self.preemphasis > 0)
        return samples if samples > self.shortest else 1

    def frequencies_hz(self) -> np.ndarray:
        """Return the centre frequency of each row of one transform, shape (bins,), float64, rising."""
        if self.n_mels is None:
            return np.arange(self.bins) * (self.sr / self.n_fft)
        return mel_frequencies(self.n_mels + 2, self.fmin, self.max_hz, self.htk)[1:-1]

    def filters(self, n_fft: int | None = None) -> Tensor | None:
        """Return mel filters for a transform of `n_fft` samples; None without mel bands.

        See `librosa.filters.mel`, and the setting `mel_triangles`.

        Returns
        -------
        Tensor of shape (n_mels, n_fft // 2 + 1), float32. A filter narrower than the spacing of the bins may be 0
        everywhere.
        """
        if self.n_mels is None:
            return None
        make = mel_filters if self.mel_triangles == "hz" else mel_frequency_filters
        filters = make(
            self.sr, n_fft or self.n_fft, self.n_mels, float(self.fmin), float(self.max_hz), self.htk, self.norm
        )
        return torch.from_numpy(filters.astype(np.float32))

    def replace(self, **overrides: Any) -> FrontEnd:
        """Return a copy with some settings changed.

        Raises
        ------
        OptionError
            If there is no setting of that name; the message suggests the nearest one.
        FrontEndError
            If values are out of range or contradict each other.
        """
        known = [f.name for f in dataclasses.fields(self)]
        for name in overrides:
            if name not in known:
                raise OptionError(f"a front end has no setting {name!r}; {did_you_mean(name, known)}")
        return dataclasses.replace(self, **overrides)

    def build(self) -> Spectrogram:
        """Return the module that computes the spectrogram."""
        return Spectrogram(self)


def _is_number(value: Any, kind: type) -> bool:
    """Return True for a number of a kind of `numbers`; True and False are none."""
    return isinstance(value, kind) and not isinstance(value, bool)


class Spectrogram(nn.Module):
    """Compute spectrograms (batch, rows, frames) of waves (batch, samples).

    The result is float32, also under autocast. The buffers follow the module to its device but are not part of the
    state dict, except for the constants of a trainable PCEN.

    Parameters
    ----------
    settings
        What to compute.
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
                periodic=settings.periodic,
                amin=settings.amin if settings.log == "db" else 0.0,
                top_db=settings.top_db if settings.log == "db" else None,
            )
            for n_fft in settings.transforms
        )
        self.pcen = nn.ModuleList(_pcen(settings) for _ in settings.transforms) if settings.log == "pcen" else None
        self.register_buffer("mean", _as_column(settings.mean), persistent=False)
        self.register_buffer("std", _as_column(settings.std), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Spectrogram:
        # Follow a network to its device, but stay float32 when it is converted to half precision: filters in 16 bits
        # are wrong by decibels.
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)

    def extra_repr(self) -> str:
        """Return the settings, for `repr`."""
        return repr(self.settings)

    def forward(self, wave: Tensor) -> Tensor:
        """Compute the spectrograms of waves.

        Parameters
        ----------
        wave
            Shape (batch, samples), floats of any precision, full scale [-1, 1], at least one sample.

        Returns
        -------
        Shape (batch, rows, frames), float32, contiguous.

        Raises
        ------
        ShapeError
            If the wave has another shape or type.
        """
        if wave.ndim != 2 or wave.shape[1] == 0 or not wave.is_floating_point():
            raise ShapeError(
                f"got a wave of shape {tuple(wave.shape)} and type {wave.dtype}; "
                "expected floats of shape (batch, samples) with at least one sample: one clip is wave[None]"
            )
        device = wave.device.type
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            wave = self._emphasize((wave if torch.compiler.is_compiling() else wave.as_subclass(Tensor)).float())
            return self._finish(
                [spectra(*_pad(wave, self.settings, n_fft))
                 for n_fft, spectra in zip(self.settings.transforms, self.spectra, strict=True)]
            )

    def _emphasize(self, wave: Tensor) -> Tensor:
        """Extend short waves (batch, samples) by zeros, and apply the pre-emphasis."""
        missing = self.settings.shortest - wave.shape[1]
        wave = F.pad(wave, (0, missing)) if missing > 0 else wave
        factor = self.settings.preemphasis
        return wave[:, 1:] - factor * wave[:, :-1] if factor else wave

    def from_linear(self, levels: Tensor) -> Tensor:
        """Apply logarithm, normalization and clamp to mel levels, such as those of a mix of spectrograms.

        Parameters
        ----------
        levels
            Shape (batch, rows, frames), float32: magnitudes or powers, as the setting `power` has it.

        Returns
        -------
        Shape (batch, rows, frames), float32, contiguous: what `forward` returns for a wave of these levels.
        """
        # A copy, since the compiled loops work in place.
        return self._finish(levels.clone().split(self.settings.bins, 1))

    def _finish(self, levels: Sequence[Tensor]) -> Tensor:
        """Return the spectrogram (batch, rows, frames) of levels (batch, bins, frames), one for each window length."""
        specs = [self._normalize_clip(self._log(i, part)) for i, part in enumerate(levels)]
        return self._standardize(specs[0] if len(specs) == 1 else torch.cat(specs, 1)).contiguous()

    def _log(self, i: int, spec: Tensor) -> Tensor:
        """Compress levels (batch, bins, frames) of the i-th window length."""
        s = self.settings
        if s.log == "db":
            # |X| ** power in dB is 20 / power times its logarithm; amin is the floor of a power.
            if _may_use_kernels(spec):
                return self._decibels(spec)
            spec = (20 / s.power) * spec.clamp(min=s.amin ** (s.power / 2)).log10()
            return spec if s.top_db is None else spec.maximum(spec.amax((1, 2), keepdim=True) - s.top_db)
        if s.log == "ln":
            return (spec + s.log_offset).log()
        return spec if self.pcen is None else self.pcen[i](spec)

    def _decibels(self, spec: Tensor) -> Tensor:
        """Convert levels (batch, bins, frames) to decibels in place, on the CPU."""
        from fatai.audio import _numba_kernels

        s = self.settings
        floor, scale = s.amin ** (s.power / 2), 20 / s.power
        for clip in spec.numpy():
            _numba_kernels.to_decibels(
                clip, scale, floor if s.top_db is None else max(floor, float(clip.max()) * 10 ** (-s.top_db / scale))
            )
        return spec

    def _normalize_clip(self, spec: Tensor) -> Tensor:
        """Normalize (batch, bins, frames) by each clip's own values, for one window length."""
        if self.settings.normalize == "image":
            return _as_image(spec, self.settings.eps)
        if self.settings.normalize == "clip":
            mean = spec.mean((1, 2), keepdim=True)
            return (spec - mean) / (spec.std((1, 2), keepdim=True, correction=0) + self.settings.eps)
        return spec

    def _standardize(self, spec: Tensor) -> Tensor:
        """Normalize (batch, rows, frames) by the constants of the settings, and clamp."""
        if self.settings.normalize in ("global", "bin"):
            spec = (spec - self.mean) / self.std
        return spec if self.settings.clamp is None else spec.clamp(-self.settings.clamp, self.settings.clamp)


def _as_column(values: float | Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 1)


def _as_image(spec: Tensor, eps: float) -> Tensor:
    """Scale each clip of (batch, bins, frames) to 0..255 and round down, as a cast to 8 bits does; 0 if it is flat.

    The published systems standardize first, which only changes the rounding and decides what is flat: a range r of at
    most eps * (std + eps). No std exceeds r / 2, so that is a range of at most eps ** 2.
    """
    if _may_use_kernels(spec):
        from fatai.audio import _numba_kernels

        for clip in spec.numpy():
            _numba_kernels.to_image(clip, clip.min(), clip.max(), eps ** 2)
        return spec
    low, high = spec.amin((1, 2), keepdim=True), spec.amax((1, 2), keepdim=True)
    flat = high - low <= eps ** 2
    return (255 * (spec - low) / (high - low).masked_fill(flat, torch.inf)).floor()


def _may_use_kernels(spec: Tensor) -> bool:
    """Return True if compiled loops may change a tensor of any shape in place; they cannot be traced."""
    return (
        not torch.compiler.is_compiling()
        and spec.device.type == "cpu"
        and spec.is_contiguous()
        and not spec.requires_grad
    )


def _pad(wave: Tensor, settings: FrontEnd, n_fft: int) -> tuple[Tensor, int, int]:
    """Return the arguments of `ShortTimeSpectra`: a wave (batch, samples), and the zeros before and after it."""
    if settings.center:
        reach = n_fft // 2
        return (
            (wave, reach, reach)
            if settings.pad_mode == "constant"
            else (pad_ends(wave, reach, settings.pad_mode), 0, 0)
        )
    # The first window starts with the wave; the transform in which it is centred may start before.
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
