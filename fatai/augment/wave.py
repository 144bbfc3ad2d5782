"""Augmentation of waves: level, noise, shift, pitch, tempo, speed, reverb, distortion, order of parts, length.

Each augmentation is a fastai callback (`cbs=Gain()`) that changes the waves of a training batch, from which the
spectrograms are then rendered again. Its `draw` returns all random numbers with a row for each clip, its `apply` is a
pure function of `fatai.augment.functional_wave`. In a batch waves keep their length: what became longer is cut, what
became shorter is padded with zeros behind. `fatai.augment.item.ItemAugmentations(PitchShift(), ...)` runs them on whole
clips instead, as they are read and before they are cropped. The base classes are in `fatai.augment.wave_base`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from fastcore.meta import delegates
from torch import Tensor

from fatai.augment import functional_wave
from fatai.augment.base import BatchAugmentation
from fatai.augment.batch_input import BatchInput
from fatai.augment.draws import check_probability, check_range, draw_bernoulli, draw_integers, draw_uniform
from fatai.augment.wave_base import Numbers, UniformAugmentation, WaveAugmentation
from fatai.errors import OptionError
from fatai.registry import AUGMENTATIONS, did_you_mean

__all__ = [
    "AddNoise",
    "ChunkShuffle",
    "CropLengths",
    "Cutout",
    "Gain",
    "Overdrive",
    "PitchShift",
    "Reverb",
    "Shift",
    "SpeedPerturb",
    "TimeStretch",
    "WaveAugmentation",
    "WaveChain",
]


@AUGMENTATIONS.register("gain", source="Gold-only plan notebook, FAT2019; 4th place's EnvNet (MIT); own code")
class Gain(UniformAugmentation):
    """Make a clip louder or quieter.

    Parameters
    ----------
    gain_db
        Lowest and highest gain, uniform in dB. The result may leave [-1, 1].
    p, before_mixing, generator
        As in `WaveAugmentation`.
    """

    @delegates(WaveAugmentation.__init__)
    def __init__(self, *, gain_db: tuple[float, float] = (-6.0, 6.0), **kwargs: Any):
        super().__init__(gain_db, "gain_db", **kwargs)

    def apply(self, wave: Tensor, drawn: Numbers, sr: int) -> Tensor:
        """Return the louder or quieter wave, (samples,)."""
        return wave * 10 ** (float(drawn.value) / 20)


class _NoiseDraws(NamedTuple):
    """Ratio in dB, seed of the noise, and True for pink noise; each (clips,)."""

    snr_db: Tensor
    seed: Tensor
    pink: Tensor


@AUGMENTATIONS.register("noise", source="Gold-only plan notebook, FAT2019; own code")
class AddNoise(UniformAugmentation):
    """Add noise.

    Parameters
    ----------
    snr_db
        Lowest and highest signal-to-noise ratio in dB, uniform.
    color
        "white", "pink", or "random": either with the same probability.
    p, before_mixing, generator
        As in `WaveAugmentation`.

    Raises
    ------
    OptionError
        If `color` is none of these.
    """

    COLORS = ("white", "pink", "random")

    @delegates(WaveAugmentation.__init__)
    def __init__(self, *, snr_db: tuple[float, float] = (20.0, 30.0), color: str = "random", **kwargs: Any):
        super().__init__(snr_db, "snr_db", **kwargs)
        if color not in self.COLORS:
            raise OptionError(f"color is {color!r}; {did_you_mean(color, self.COLORS)}")
        self.p_pink = {"white": 0.0, "pink": 1.0, "random": 0.5}[color]

    def draw(self, n: int, samples: int, sr: int, generator: torch.Generator | None = None) -> _NoiseDraws:
        """Draw ratio, seed and color for `n` clips."""
        seed = draw_integers(n, 0, 2 ** 31 - 1, generator)
        return _NoiseDraws(draw_uniform(n, *self.bounds, generator), seed, draw_bernoulli(n, self.p_pink, generator))

    def apply(self, wave: Tensor, drawn: _NoiseDraws, sr: int) -> Tensor:
        """Return the wave (samples,) with noise."""
        noise = torch.randn(len(wave), generator=torch.Generator().manual_seed(int(drawn.seed)))
        noise = functional_wave.pink(noise) if drawn.pink else noise
        return functional_wave.add_noise(wave, noise.to(wave), float(drawn.snr_db))


@AUGMENTATIONS.register("shift", source="Gold-only plan notebook, FAT2019; own code")
class Shift(UniformAugmentation):
    """Shift a clip in time.

    Parameters
    ----------
    seconds
        Lowest and highest shift, uniform; above 0 the sound comes later.
    rollover
        True fills the gap with the samples that fell off at the other end, False with silence.
    p, before_mixing, generator
        As in `WaveAugmentation`.
    """

    @delegates(WaveAugmentation.__init__)
    def __init__(self, *, seconds: tuple[float, float] = (-0.5, 0.5), rollover: bool = False, **kwargs: Any):
        super().__init__(seconds, "seconds", **kwargs)
        self.rollover = rollover

    def apply(self, wave: Tensor, drawn: Numbers, sr: int) -> Tensor:
        """Return the shifted wave, (samples,)."""
        return functional_wave.shift(wave, round(float(drawn.value) * sr), rollover=self.rollover)


def _check_engine(engine: str) -> str:
    if engine not in functional_wave.ENGINES:
        raise OptionError(f"engine is {engine!r}; {did_you_mean(engine, functional_wave.ENGINES)}")
    return engine


@AUGMENTATIONS.register(
    "pitch", source="Gold-only plan notebook, FAT2019; librosa and audiomentations (MIT) do the work"
)
class PitchShift(UniformAugmentation):
    """Shift the pitch at the same tempo.

    Parameters
    ----------
    semitones
        Lowest and highest shift, uniform, within [-24, 24].
    engine
        One of `functional_wave.ENGINES`. Slow with either: prefer `ItemAugmentations` and workers.
    p, before_mixing, generator
        As in `WaveAugmentation`.
    """

    @delegates(WaveAugmentation.__init__)
    def __init__(self, *, semitones: tuple[float, float] = (-2.0, 2.0), engine: str = "librosa", **kwargs: Any):
        super().__init__(semitones, "semitones", low=-24, high=24, **kwargs)
        self.engine = _check_engine(engine)

    def apply(self, wave: Tensor, drawn: Numbers, sr: int) -> Tensor:
        """Return the shifted wave, (samples,)."""
        return functional_wave.shift_pitch(wave, sr, float(drawn.value), engine=self.engine)


@AUGMENTATIONS.register(
    "stretch", source="Gold-only plan notebook, FAT2019; librosa and audiomentations (MIT) do the work"
)
class TimeStretch(UniformAugmentation):
    """Change the tempo at the same pitch.

    Parameters
    ----------
    rate
        Lowest and highest factor of the tempo, uniform, within [0.1, 10]; above 1 is faster.
    engine
        One of `functional_wave.ENGINES`.
    p, before_mixing, generator
        As in `WaveAugmentation`.
    """

    @delegates(WaveAugmentation.__init__)
    def __init__(self, *, rate: tuple[float, float] = (0.9, 1.1), engine: str = "librosa", **kwargs: Any):
        super().__init__(rate, "rate", low=0.1, high=10, **kwargs)
        self.engine = _check_engine(engine)

    def apply(self, wave: Tensor, drawn: Numbers, sr: int) -> Tensor:
        """Return the stretched wave: (samples,) to (samples / rate,)."""
        return functional_wave.stretch(wave, sr, float(drawn.value), engine=self.engine)


@AUGMENTATIONS.register("speed_perturb", source="FAT2019 3rd place repository (Apache-2.0); own code")
class SpeedPerturb(UniformAugmentation):
    """Change tempo and pitch together, as a tape played faster or slower.

    Parameters
    ----------
    factor
        Lowest and highest factor of the speed, within [0.1, 10]; above 1 is faster and higher. The 4th place's is (0.8,
        1.25), with `log_uniform`.
    log_uniform
        True draws uniformly in the logarithm of the factor, False in the factor.
    p, before_mixing, generator
        As in `WaveAugmentation`.
    """

    @delegates(WaveAugmentation.__init__)
    def __init__(self, *, factor: tuple[float, float] = (0.9, 1.1), log_uniform: bool = False, **kwargs: Any):
        super().__init__(factor, "factor", low=0.1, high=10, **kwargs)
        self.log_uniform = log_uniform

    def draw(self, n: int, samples: int, sr: int, generator: torch.Generator | None = None) -> Numbers:
        """Draw the factors of `n` clips."""
        if self.log_uniform:
            return Numbers(draw_uniform(n, math.log(self.bounds[0]), math.log(self.bounds[1]), generator).exp())
        return super().draw(n, samples, sr, generator)

    def apply(self, wave: Tensor, drawn: Numbers, sr: int) -> Tensor:
        """Return the faster or slower wave: (samples,) to (samples / factor,)."""
        return functional_wave.change_speed(wave, sr, float(drawn.value))


class _ReverbDraws(NamedTuple):
    """Reverberance and room size, 0 to 100; each (clips,)."""

    reverberance: Tensor
    room_size: Tensor


@AUGMENTATIONS.register(
    "reverb", source="FAT2019 3rd place repository (Apache-2.0): SoX's reverb; Freeverb (public domain); own code"
)
class Reverb(WaveAugmentation):
    """Add the reverberation of a room.

    Parameters
    ----------
    reverberance, room_size
        Lowest and highest whole number, within [0, 100]; see `functional_wave.reverb`.
    p, before_mixing, generator
        As in `WaveAugmentation`.
    """

    @delegates(WaveAugmentation.__init__)
    def __init__(self, *, reverberance: tuple[int, int] = (0, 49), room_size: tuple[int, int] = (0, 49), **kwargs: Any):
        super().__init__(**kwargs)
        check_range(reverberance, "reverberance", low=0, high=100)
        check_range(room_size, "room_size", low=0, high=100)
        self.reverberance, self.room_size = reverberance, room_size

    def draw(self, n: int, samples: int, sr: int, generator: torch.Generator | None = None) -> _ReverbDraws:
        """Draw reverberance and room size of `n` clips."""
        return _ReverbDraws(
            draw_integers(n, *self.reverberance, generator=generator),
            draw_integers(n, *self.room_size, generator=generator),
        )

    def apply(self, wave: Tensor, drawn: _ReverbDraws, sr: int) -> Tensor:
        """Return the wave (samples,) with reverberation."""
        options = {"reverberance": float(drawn.reverberance), "room_size": float(drawn.room_size)}
        return functional_wave.reverb(wave, sr, **options)


@AUGMENTATIONS.register("overdrive", source="FAT2019 3rd place repository (Apache-2.0): SoX's overdrive; own code")
class Overdrive(UniformAugmentation):
    """Distort a clip as an overdriven amplifier does.

    Parameters
    ----------
    gain_db
        Lowest and highest gain of the amplifier in dB, uniform.
    p, before_mixing, generator
        As in `WaveAugmentation`.
    """

    @delegates(WaveAugmentation.__init__)
    def __init__(self, *, gain_db: tuple[float, float] = (2.0, 9.0), **kwargs: Any):
        super().__init__(gain_db, "gain_db", **kwargs)

    def apply(self, wave: Tensor, drawn: Numbers, sr: int) -> Tensor:
        """Return the distorted wave, (samples,)."""
        return functional_wave.overdrive(wave, float(drawn.value))


@AUGMENTATIONS.register("chunk_shuffle", source="FAT2019 3rd place repository (Apache-2.0); own code")
class ChunkShuffle(WaveAugmentation):
    """Cut a clip into parts and put them together in random order.

    Parameters
    ----------
    chunk_s
        Approximate length of a part in seconds; a clip of fewer than two parts stays as it is.
    p, before_mixing, generator
        As in `WaveAugmentation`.

    Raises
    ------
    OptionError
        If `chunk_s` is not above 0.
    """

    @delegates(WaveAugmentation.__init__)
    def __init__(self, *, chunk_s: float = 0.5, **kwargs: Any):
        super().__init__(**kwargs)
        if not chunk_s > 0:
            raise OptionError(f"chunk_s is {chunk_s}; expected seconds above 0")
        self.chunk_s = chunk_s

    def draw(self, n: int, samples: int, sr: int, generator: torch.Generator | None = None) -> Numbers:
        """Draw the order of the parts for `n` clips: int64, shape (n, parts)."""
        parts = max(1, int(samples / (self.chunk_s * sr)))
        return Numbers(draw_uniform((n, parts), 0, 1, generator).argsort(1))

    def apply(self, wave: Tensor, drawn: Numbers, sr: int) -> Tensor:
        """Return the wave (samples,) with its parts in another order."""
        return functional_wave.shuffle_chunks(wave, drawn.value)


@AUGMENTATIONS.register("cutout", source="FAT2019 3rd place repository (Apache-2.0), unused there; own code")
class Cutout(WaveAugmentation):
    """Silence one stretch of a clip, anywhere in it.

    Parameters
    ----------
    fraction
        Length of the stretch as a fraction of the clip, within [0, 1].
    p, before_mixing, generator
        As in `WaveAugmentation`.
    """

    @delegates(WaveAugmentation.__init__)
    def __init__(self, *, fraction: float = 0.25, **kwargs: Any):
        super().__init__(**kwargs)
        self.fraction = check_probability(fraction, "fraction")

    def draw(self, n: int, samples: int, sr: int, generator: torch.Generator | None = None) -> Numbers:
        """Draw the first silenced sample of `n` clips."""
        return Numbers(draw_integers(n, 0, samples - round(self.fraction * samples), generator))

    def apply(self, wave: Tensor, drawn: Numbers, sr: int) -> Tensor:
        """Return the wave (samples,) with a silent stretch."""
        return functional_wave.cut_out(wave, int(drawn.value), int(drawn.value) + round(self.fraction * len(wave)))


@AUGMENTATIONS.register("crop_lengths", source="Gold-only plan notebook, FAT2019: crops of 5, 10 and 12 s; own code")
class CropLengths(BatchAugmentation):
    """Cut all clips of a batch to a length drawn for the batch, which trains the network on crops of several lengths.

    Parameters
    ----------
    seconds
        Lengths to choose from. The loaders' `crop_s` must be the longest: a batch is cut, never padded.
    weights
        Relative probability of each length; None draws all alike.
    generator
        Of the draws; None is torch's global one.

    Raises
    ------
    OptionError
        If a length is not above 0, or `weights` are not one number of at least 0 for each, not all 0.
    """

    def __init__(
        self, *, seconds: Sequence[float] = (5.0, 10.0, 12.0), weights: Sequence[float] | None = (0.2, 0.6, 0.2),
        generator: torch.Generator | None = None,
    ):
        super().__init__("wave", -1, generator)
        weights = [1.0] * len(seconds) if weights is None else list(weights)
        if (
            not len(seconds)
            or min(seconds) <= 0
            or len(weights) != len(seconds)
            or min(weights) < 0
            or sum(weights) <= 0
        ):
            raise OptionError(
                f"seconds is {tuple(seconds)} with weights {tuple(weights)}; expected lengths above 0 and a weight "
                "for each"
            )
        self.seconds = tuple(seconds)
        self.cumulative = torch.tensor(weights, dtype=torch.float64).cumsum(0) / sum(weights)

    def augment(self, wave: Tensor, sr: int, generator: torch.Generator | None = None) -> Tensor:
        """Return crops of the drawn length, each from a random position.

        Parameters
        ----------
        wave
            Shape (batch, samples).
        sr
            Its rate in Hz.
        generator
            In place of the augmentation's own.

        Returns
        -------
        Shape (batch, samples of the drawn length), or `wave` itself if it is no longer than that.
        """
        generator = generator or self.generator
        which = torch.bucketize(draw_uniform(1, 0, 1, generator), self.cumulative, right=True)
        size = max(1, round(self.seconds[int(which.clamp(max=len(self.seconds) - 1))] * sr))
        if size >= wave.shape[1]:
            return wave
        start = draw_integers(len(wave), 0, wave.shape[1] - size, generator).to(wave.device)
        return wave.gather(1, start[:, None] + torch.arange(size, device=wave.device))

    def augment_values(self, x: Tensor, batch: BatchInput) -> Tensor:
        """Return crops of the waves (batch, samples)."""
        return self.augment(x, batch.rate)


class WaveChain(WaveAugmentation):
    """Run several augmentations one after the other on the same clips.

    Parameters
    ----------
    augmentations
        In their order. The chain is drawn as a whole with its own `p`; theirs are not used.
    p, before_mixing, generator
        As in `WaveAugmentation`.

    Raises
    ------
    OptionError
        If there are no augmentations.
    """

    @delegates(WaveAugmentation.__init__)
    def __init__(self, *augmentations: WaveAugmentation, **kwargs: Any):
        super().__init__(**kwargs)
        if not augmentations:
            raise OptionError("got no augmentations; expected at least one, such as WaveChain(Reverb(), Overdrive())")
        self.augmentations = augmentations

    def draw(self, n: int, samples: int, sr: int, generator: torch.Generator | None = None) -> tuple[Any, ...]:
        """Draw the numbers of every augmentation for `n` clips."""
        return tuple(a.draw(n, samples, sr, generator) for a in self.augmentations)

    def apply(self, wave: Tensor, drawn: tuple[Any, ...], sr: int) -> Tensor:
        """Return the wave (samples,) after all augmentations; its length may change."""
        for augmentation, numbers in zip(self.augmentations, drawn, strict=True):
            wave = augmentation.apply(wave, numbers, sr)
        return wave


@AUGMENTATIONS.register("third_place_effects", source="FAT2019 3rd place repository (Apache-2.0); own code")
@delegates(WaveAugmentation.__init__)
def third_place_effects(*, engine: str = "librosa", **kwargs: Any) -> WaveChain:
    """Build the 3rd place's chain: reverb, pitch +-300 cents, overdrive 2 to 9 dB, speed 0.9 to 1.1; p 0.75."""
    chain = Reverb(), PitchShift(semitones=(-3.0, 3.0), engine=engine), Overdrive(), SpeedPerturb()
    return WaveChain(*chain, **{"p": 0.75, "before_mixing": False, **kwargs})
