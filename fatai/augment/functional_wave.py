"""Waveform effects as pure functions: noise, shift, pitch, tempo, speed, reverb, overdrive, order of parts.

Conventions: a wave is a float32 tensor (samples,), full scale [-1, 1], at a rate `sr` in Hz; nothing here is random.
The result is a new wave on the same device, of the same length unless stated otherwise, and may leave [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from fatai.audio.waveform import fit_length, resample
from fatai.errors import MissingDependencyError, OptionError
from fatai.io.lazy import librosa, signal

__all__ = [
    "ENGINES",
    "add_noise",
    "change_speed",
    "cut_out",
    "overdrive",
    "pink",
    "reverb",
    "shift",
    "shift_pitch",
    "shuffle_chunks",
    "stretch",
]

ENGINES = ("librosa", "audiomentations")
"""Implementations of pitch shift and time stretch: librosa's phase vocoder, or audiomentations (an extra)."""


def _with_numpy(wave: Tensor, effect: Callable[[np.ndarray], Any]) -> Tensor:
    """Apply `effect` to the samples as a numpy array; the result is a tensor on the wave's device."""
    done = np.ascontiguousarray(effect(wave.detach().cpu().float().numpy()), dtype=np.float32)
    return torch.from_numpy(done).to(wave)


def _audiomentations() -> Any:
    try:
        import audiomentations
    except ImportError as e:
        raise MissingDependencyError(
            "engine='audiomentations' needs that package: pip install 'fatai[augment]', or take engine='librosa'"
        ) from e
    return audiomentations


def _build_effect(kind: str, **parameters: Any) -> Callable[[np.ndarray, int], np.ndarray]:
    """Build an effect of audiomentations with fixed parameters; its own draws would come from other generators."""
    effect = getattr(_audiomentations(), kind)(p=1.0)
    effect.parameters = {"should_apply": True, **parameters}
    return cast(Callable[[np.ndarray, int], np.ndarray], effect.apply)


def pink(white: Tensor) -> Tensor:
    """Make pink noise of white noise: the same power in every octave, mean square 1.

    The white noise is the spectrum of the pink noise, before its power is divided by the frequency: the transform of
    white noise is white noise as well, so that it need not be computed.

    Parameters
    ----------
    white
        Shape (samples,), normally distributed.

    Returns
    -------
    Shape (samples,); 0 for fewer than two samples.

    Examples
    --------
    >>> pink(torch.randn(1000)).square().mean().item()
    1.0...
    """
    n = len(white) // 2
    rate = torch.arange(1, n + 1, device=white.device, dtype=white.dtype)
    spectrum = torch.view_as_complex(white[:2 * n].view(n, 2)) * rate.rsqrt()
    noise = torch.fft.irfft(torch.nn.functional.pad(spectrum, (1, 0)), n=len(white))  # without a constant part
    return noise / noise.square().mean().sqrt().clamp(min=torch.finfo(noise.dtype).tiny)


def add_noise(wave: Tensor, noise: Tensor, snr_db: float) -> Tensor:
    """Add noise at a given signal-to-noise ratio.

    Parameters
    ----------
    wave, noise
        Shape (samples,); `noise` is rescaled, so its level is free. A silent wave stays silent.
    snr_db
        Ratio of the mean powers in dB; 0 means equal power.

    Returns
    -------
    Shape (samples,).

    Examples
    --------
    >>> add_noise(torch.ones(4), 5 * torch.ones(4), 20.0)
    tensor([1.1000, 1.1000, 1.1000, 1.1000])
    """
    noise_power = wave.square().mean() / 10 ** (snr_db / 10)
    return wave + (noise_power / noise.square().mean().clamp(min=torch.finfo(wave.dtype).tiny)).sqrt() * noise


def shift(wave: Tensor, samples: int, *, rollover: bool = False) -> Tensor:
    """Shift a wave (samples,) in time.

    Parameters
    ----------
    wave
        Shape (samples,).
    samples
        Above 0 the sound comes later, below 0 earlier.
    rollover
        True fills the gap with what fell off at the other end, False with silence.

    Examples
    --------
    >>> shift(torch.tensor([1.0, 2.0, 3.0]), 1), shift(torch.tensor([1.0, 2.0, 3.0]), -1, rollover=True)
    (tensor([0., 1., 2.]), tensor([2., 3., 1.]))
    """
    moved = wave.roll(samples)
    if not rollover and samples > 0:
        moved[:samples] = 0
    elif not rollover and samples < 0:
        moved[samples:] = 0
    return moved


def shift_pitch(wave: Tensor, sr: int, semitones: float, *, engine: str = "librosa") -> Tensor:
    """Shift the pitch of a wave (samples,) at the same tempo; `engine` is one of `ENGINES`."""
    if engine == "audiomentations":
        effect = _build_effect("PitchShift", num_semitones=semitones)
        return fit_length(_with_numpy(wave, lambda y: effect(y, sr)), len(wave), "constant_right", cut="right")
    return _with_numpy(wave, lambda y: librosa.effects.pitch_shift(y, sr=sr, n_steps=semitones, n_fft=_n_fft(len(y))))


def stretch(wave: Tensor, sr: int, rate: float, *, engine: str = "librosa") -> Tensor:
    """Change the tempo of a wave at the same pitch: (samples,) to (samples / rate,); `engine` is one of `ENGINES`."""
    if engine == "audiomentations":
        effect, length = _build_effect("TimeStretch", rate=rate), round(len(wave) / rate)
        return fit_length(_with_numpy(wave, lambda y: effect(y, sr)), length, "constant_right", cut="right")
    return _with_numpy(wave, lambda y: librosa.effects.time_stretch(y, rate=rate, n_fft=_n_fft(len(y))))


def _n_fft(samples: int) -> int:
    """Return librosa's 2048, or the largest power of 2 that fits a very short clip."""
    return min(2048, 2 ** max(4, int(math.log2(max(1, samples)))))


def change_speed(wave: Tensor, sr: int, factor: float) -> Tensor:
    """Play a wave faster and higher by `factor`, as a tape: (samples,) to (samples / factor,)."""
    return resample(wave, max(1, round(sr * factor)), sr)


def overdrive(wave: Tensor, gain_db: float, *, color: float = 20.0) -> Tensor:
    """Apply SoX's overdrive: gain, soft cubic clipping, removal of the constant part, and half of the dry sound.

    Parameters
    ----------
    wave
        Shape (samples,).
    gain_db
        Gain before clipping, in dB.
    color
        Asymmetry of the clipping, 0 to 100: more even harmonics.

    Source: the formula of SoX's effect `overdrive`; own code.
    """
    gain, offset = 10 ** (gain_db / 20), color / 200

    def distort(y: np.ndarray) -> np.ndarray:
        driven = np.clip(y.astype(np.float64) * gain + offset, -1, 1)
        driven = driven - driven ** 3 / 3
        # The filter that removes the constant part starts at rest, as if silence had gone before.
        return 0.5 * y + 0.75 * signal.lfilter([1.0, -1.0], [1.0, -0.995], driven)

    return _with_numpy(wave, distort)


# Freeverb (public domain), with SoX's scales: delays of the parallel comb filters and of the all-pass filters, in
# samples at 44.1 kHz.
_COMB_DELAYS = (1116, 1188, 1277, 1356, 1422, 1491, 1557, 1617)
_ALLPASS_DELAYS = (225, 341, 441, 556)
_WET = 0.015


def _comb(dry: np.ndarray, delay: int, feedback: float, damping: float) -> np.ndarray:  # pragma: no cover - compiled
    """Feed a delay line of `delay` samples back through a one-pole low-pass; float64 (samples,) to the same."""
    line, out, store, at = np.zeros(delay), np.empty_like(dry), 0.0, 0
    for i in range(len(dry)):
        out[i] = line[at]
        store = out[i] + (store - out[i]) * damping
        line[at] = dry[i] + feedback * store
        at = at + 1 if at + 1 < delay else 0
    return out


def _allpass(sound: np.ndarray, delay: int) -> np.ndarray:  # pragma: no cover - compiled
    """Smear a sound in time with Freeverb's all-pass filter; float64 (samples,) to the same."""
    line, out, at = np.zeros(delay), np.empty_like(sound), 0
    for i in range(len(sound)):
        out[i] = line[at] - sound[i]
        line[at] = sound[i] + 0.5 * line[at]
        at = at + 1 if at + 1 < delay else 0
    return out


@lru_cache
def _freeverb_filters() -> tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]:
    """Compile the two recursions; numba is imported here, since its import is slow and only a reverb needs it."""
    import numba

    return numba.njit(cache=True)(_comb), numba.njit(cache=True)(_allpass)


def reverb(
    wave: Tensor, sr: int, *, reverberance: float = 50.0, room_size: float = 100.0, damping: float = 50.0
) -> Tensor:
    """Add the reverberation of a room: the sum of eight damped comb filters, diffused by four all-pass filters.

    Parameters
    ----------
    wave
        Shape (samples,).
    sr
        Its rate in Hz.
    reverberance
        Length of the reverberation, 0 to 100.
    room_size
        Size of the room, 0 to 100.
    damping
        Absorption of high frequencies, 0 to 100.

    Returns
    -------
    Shape (samples,): the dry sound plus the reverberation within its length.

    Raises
    ------
    OptionError
        If one of the three is not within [0, 100].

    Source: Freeverb (public domain), with the scales of SoX's effect `reverb`; a mono wave has no use for its stereo
    depth. Own code.
    """
    for name, value in (("reverberance", reverberance), ("room_size", room_size), ("damping", damping)):
        if not 0 <= value <= 100:
            raise OptionError(f"{name} is {value}; expected a number from 0 to 100")
    feedback, low_pass, scale = _feedback(reverberance), damping / 100 * 0.3 + 0.2, room_size / 100 * 0.9 + 0.1
    comb, allpass = _freeverb_filters()

    def add_reverb(y: np.ndarray) -> np.ndarray:
        dry = y.astype(np.float64)
        delays = [max(1, round(scale * sr / 44100 * delay)) for delay in _COMB_DELAYS]
        wet = np.sum([comb(dry, delay, feedback, low_pass) for delay in delays], axis=0)
        for delay in _ALLPASS_DELAYS:
            wet = allpass(wet, max(1, round(sr / 44100 * delay)))
        return dry + _WET * wet

    return _with_numpy(wave, add_reverb)


def _feedback(reverberance: float) -> float:
    """Return the feedback of the comb filters, from 0.3 to 0.98 on a curve that sounds even."""
    a = -1 / math.log(1 - 0.3)
    b = 100 / (math.log(1 - 0.98) * a + 1)
    return 1 - math.exp((reverberance - b) / (a * b))


def shuffle_chunks(wave: Tensor, order: Tensor) -> Tensor:
    """Cut a wave into parts of about equal length and put them together in another order.

    Parameters
    ----------
    wave
        Shape (samples,).
    order
        A permutation of the parts' numbers, int64, shape (parts,).

    Examples
    --------
    >>> shuffle_chunks(torch.arange(5.0), torch.tensor([1, 0]))
    tensor([3., 4., 0., 1., 2.])
    """
    parts = wave.tensor_split(len(order))
    return torch.cat([parts[int(i)] for i in order])


def cut_out(wave: Tensor, start: int, stop: int) -> Tensor:
    """Silence the samples [start, stop) of a wave (samples,)."""
    silenced = wave.clone()
    silenced[start:stop] = 0
    return silenced
