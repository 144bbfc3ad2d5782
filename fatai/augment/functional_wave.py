"""What can be done to a wave, as pure functions: noise, shifts, pitch and pace, reverb, overdrive, order of its parts.

Conventions: a wave is a float32 tensor (samples,), full scale [-1, 1], at a rate `sr` in Hz; nothing here is random. The result is a new
wave on the same device, of the same length unless a function says otherwise, and may leave [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import librosa
import numpy as np
import torch
from scipy.signal import lfilter
from torch import Tensor

from fatai.errors import MissingDependencyError, OptionError
from fatai.audio.waveform import fit_length, resample

__all__ = [
    "ENGINES",
    "add_noise",
    "change_pace",
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
"""Who shifts pitch and stretches time: librosa's phase vocoder, or audiomentations, which asks for its extra."""


def _by_numpy(wave: Tensor, effect: Callable[[np.ndarray], Any]) -> Tensor:
    """`effect` of the samples as a numpy array, back as a tensor on the wave's device."""
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


def _effect_of(kind: str, **parameters: Any) -> Callable[[np.ndarray, int], np.ndarray]:
    """An effect of audiomentations with settled parameters: its own draws, from other generators, are left out."""
    effect = getattr(_audiomentations(), kind)(p=1.0)
    effect.parameters = {"should_apply": True, **parameters}
    return cast(Callable[[np.ndarray, int], np.ndarray], effect.apply)


def pink(white: Tensor) -> Tensor:
    """White noise made pink: every octave has the same power; mean square 1.

    Examples
    --------
    >>> pink(torch.randn(1000)).square().mean().item()
    1.0...
    """
    spectrum = torch.fft.rfft(white.double())
    rate = torch.arange(len(spectrum), device=white.device, dtype=torch.float64)
    spectrum = spectrum * torch.where(rate > 0, rate.clamp(min=1).rsqrt(), 0.0)
    noise = torch.fft.irfft(spectrum, n=len(white))
    return (noise / noise.square().mean().sqrt().clamp(min=torch.finfo(torch.float64).tiny)).to(white)


def add_noise(wave: Tensor, noise: Tensor, snr_db: float) -> Tensor:
    """Noise at a ratio of powers below the wave; the noise's own level is free. A silent wave stays silent.

    Examples
    --------
    >>> add_noise(torch.ones(4), 5 * torch.ones(4), 20.0)
    tensor([1.1000, 1.1000, 1.1000, 1.1000])
    """
    wanted = wave.square().mean() / 10 ** (snr_db / 10)
    return wave + (wanted / noise.square().mean().clamp(min=torch.finfo(wave.dtype).tiny)).sqrt() * noise


def shift(wave: Tensor, samples: int, *, wraps: bool = False) -> Tensor:
    """The wave later by `samples` (earlier if below 0), silence where it was, or what fell off at the other end if it wraps.

    Examples
    --------
    >>> shift(torch.tensor([1.0, 2.0, 3.0]), 1), shift(torch.tensor([1.0, 2.0, 3.0]), -1, wraps=True)
    (tensor([0., 1., 2.]), tensor([2., 3., 1.]))
    """
    moved = wave.roll(samples)
    if not wraps and samples > 0:
        moved[:samples] = 0
    elif not wraps and samples < 0:
        moved[samples:] = 0
    return moved


def shift_pitch(wave: Tensor, sr: int, semitones: float, *, engine: str = "librosa") -> Tensor:
    """Higher or lower at the same pace."""
    if engine == "audiomentations":
        effect = _effect_of("PitchShift", num_semitones=semitones)
        return fit_length(_by_numpy(wave, lambda y: effect(y, sr)), len(wave), "constant_right", cut="right")
    return _by_numpy(wave, lambda y: librosa.effects.pitch_shift(y, sr=sr, n_steps=semitones, n_fft=_n_fft(len(y))))


def stretch(wave: Tensor, sr: int, rate: float, *, engine: str = "librosa") -> Tensor:
    """Faster by `rate` at the same pitch; the length is divided by it."""
    if engine == "audiomentations":
        effect = _effect_of("TimeStretch", rate=rate)
        return fit_length(_by_numpy(wave, lambda y: effect(y, sr)), round(len(wave) / rate), "constant_right", cut="right")
    return _by_numpy(wave, lambda y: librosa.effects.time_stretch(y, rate=rate, n_fft=_n_fft(len(y))))


def _n_fft(samples: int) -> int:
    """librosa's 2048, or the power of 2 that still fits a very short clip."""
    return min(2048, 2 ** max(4, int(math.log2(max(1, samples)))))


def change_pace(wave: Tensor, sr: int, factor: float) -> Tensor:
    """Faster and higher by `factor`, as a tape is: the length is divided by it."""
    return resample(wave, max(1, round(sr * factor)), sr)


def overdrive(wave: Tensor, gain_db: float, *, colour: float = 20.0) -> Tensor:
    """SoX's overdrive: a gain, a soft cubic clipping that `colour` (0 to 100) makes lopsided, no constant part, and half of the dry sound.

    Source: the effect `overdrive` of SoX, whose formula this is; own code.
    """
    gain, offset = 10 ** (gain_db / 20), colour / 200

    def distort(y: np.ndarray) -> np.ndarray:
        driven = np.clip(y.astype(np.float64) * gain + offset, -1, 1)
        driven = driven - driven ** 3 / 3
        # The filter that removes the constant part starts at rest, as if nothing had been before.
        return 0.5 * y + 0.75 * lfilter([1.0, -1.0], [1.0, -0.995], driven)

    return _by_numpy(wave, distort)


# Delays of the parallel echoes and of the diffusing filters in samples at 44.1 kHz: Freeverb's (public domain), which SoX has too.
_ECHOES = (1116, 1188, 1277, 1356, 1422, 1491, 1557, 1617)
_DIFFUSERS = (225, 341, 441, 556)
_WET = 0.015


def reverb(wave: Tensor, sr: int, *, reverberance: float = 50.0, room: float = 100.0, damping: float = 50.0) -> Tensor:
    """The sound in a room: dry plus the sum of eight damped echoes, diffused by four all-pass filters.

    Parameters
    ----------
    reverberance
        How long it rings, 0 to 100.
    room
        How large the room is, 0 to 100.
    damping
        How dull its walls are, 0 to 100.

    Source: Freeverb (public domain), with the scales of SoX's effect `reverb`; a mono wave has no use for its stereo depth. Own code.
    """
    from fatai.augment import freeverb

    for name, value in (("reverberance", reverberance), ("room", room), ("damping", damping)):
        if not 0 <= value <= 100:
            raise OptionError(f"{name} is {value}; expected a number from 0 to 100")
    # The feedback runs from 0.3 to 0.98 on a curve that sounds even.
    a = -1 / math.log(1 - 0.3)
    b = 100 / (math.log(1 - 0.98) * a + 1)
    feedback = 1 - math.exp((reverberance - b) / (a * b))
    dull, scale = damping / 100 * 0.3 + 0.2, room / 100 * 0.9 + 0.1

    def wet(y: np.ndarray) -> np.ndarray:
        dry = y.astype(np.float64)
        out = np.sum(
            [freeverb.echo(dry, max(1, round(scale * sr / 44100 * d)), feedback, dull) for d in _ECHOES], axis=0
        )
        for delay in _DIFFUSERS:
            out = freeverb.diffused(out, max(1, round(sr / 44100 * delay)))
        return dry + _WET * out

    return _by_numpy(wave, wet)


def shuffle_chunks(wave: Tensor, order: Tensor) -> Tensor:
    """The wave cut into as many parts as `order` is long, as equal as can be, and put together in that order.

    Examples
    --------
    >>> shuffle_chunks(torch.arange(5.0), torch.tensor([1, 0]))
    tensor([3., 4., 0., 1., 2.])
    """
    parts = wave.tensor_split(len(order))
    return torch.cat([parts[int(i)] for i in order])


def cut_out(wave: Tensor, start: int, stop: int) -> Tensor:
    """Silence from `start` up to, without, `stop`."""
    silenced = wave.clone()
    silenced[start:stop] = 0
    return silenced
