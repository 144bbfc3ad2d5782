"""Random changes of waves: level, noise, place, pitch, pace, room, distortion, order, length.

Each change is a fastai callback (`cbs=Gain()`) that changes the waves of a training batch, from which the spectrograms are then made
anew. Its `draw` gives all random numbers with a row for each clip, its `apply` is a pure function of `fatai.augment.functional_wave`. In a batch
waves keep their length: what became longer is cut, what became shorter gets silence behind. Changes of whole clips, as they are read and
before they are cropped, are run by `fatai.augment.item.ItemAugmentations(PitchShift(), ...)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from fastcore.meta import delegates
from torch import Tensor

from fatai.augment import functional_wave
from fatai.augment.base import BatchAugmentation, chance, checked_p, checked_range, integers, rows_of, uniform
from fatai.errors import OptionError, ShapeError
from fatai.registry import AUGMENTATIONS, did_you_mean
from fatai.audio.waveform import fit_length

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
    "Speed",
    "TimeStretch",
    "WaveChain",
    "WaveAugmentation",
]


class Numbers(NamedTuple):
    """One random number for each clip, (clips,)."""

    value: Tensor


class WaveAugmentation(BatchAugmentation):
    """A random change of single waves: `draw`, then `apply`, for clips chosen with probability `p`.

    Parameters
    ----------
    p
        Probability for each clip.
    before_mixing
        Whether clips are changed before they are mixed, or the mixtures.
    generator
        Of the draws; None is torch's global one, and the only one that suits loader workers.
    """

    def __init__(self, *, p: float = 0.5, before_mixing: bool = True, generator: torch.Generator | None = None):
        super().__init__("wave", -1 if before_mixing else 1, generator)
        self.p = checked_p(p)

    def draw(self, n: int, samples: int, sr: int, generator: torch.Generator | None = None) -> Any:
        """All random numbers for `n` clips of `samples` samples, on the CPU."""
        raise NotImplementedError

    def apply(self, wave: Tensor, drawn: Any, sr: int) -> Tensor:
        """One changed wave (samples,) of any length; a pure function. `drawn` holds this clip's numbers, without their first dimension."""
        raise NotImplementedError

    def change(self, wave: Tensor, sr: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw and apply.

        Parameters
        ----------
        wave
            Shape (batch, samples).
        sr
            Its rate in Hz.
        generator
            Instead of the change's own.

        Returns
        -------
        A new tensor of the same shape, or `wave` itself if no clip was chosen.
        """
        if wave.ndim != 2:
            raise ShapeError(
                f"got waves of shape {tuple(wave.shape)}; expected (batch, samples): one clip is wave[None]"
            )
        chosen, drawn = self._draws(len(wave), wave.shape[1], sr, generator)
        if not chosen.any():
            return wave
        size = wave.shape[1]
        changed = [
            fit_length(self.apply(row, rows_of(drawn, torch.tensor(i)), sr), size, "constant_right", cut="right")
            if chosen[i]
            else row
            for i, row in enumerate(wave)
        ]
        return torch.stack(changed)

    def change_item(self, wave: Tensor, sr: int) -> Tensor:
        """As `change`, for one clip (samples,), whose length may change."""
        if len(wave) == 0:
            return wave
        chosen, drawn = self._draws(1, len(wave), sr, None)
        return self.apply(wave, rows_of(drawn, torch.tensor(0)), sr) if chosen[0] else wave

    def _draws(self, n: int, samples: int, sr: int, generator: torch.Generator | None) -> tuple[Tensor, Any]:
        generator = generator or self.generator
        return chance(n, self.p, generator), self.draw(n, samples, sr, generator)

    def change_batch(self, x: Tensor, batch: Any) -> Tensor:
        return self.change(x, rate_of(batch))


def rate_of(batch: Any) -> int:
    """The rate in Hz of a batch of waves, or of spectrograms that know theirs."""
    made_by = getattr(batch, "front_end", None)
    sr = getattr(getattr(batch, "wave", batch), "sr", None) if made_by is None else made_by.sr
    if sr is None:
        raise OptionError("this batch does not tell its rate: give its waves an attribute `sr`, as TensorWave has")
    return int(sr)


class _Uniform(WaveAugmentation):
    """A change by one number, uniform in a range."""

    def __init__(
        self, bounds: tuple[float, float], what: str, *, low: float = -math.inf, high: float = math.inf, **kwargs: Any
    ):
        super().__init__(**kwargs)
        checked_range(bounds, what, low=low, high=high)
        self.bounds = bounds

    def draw(self, n: int, samples: int, sr: int, generator: torch.Generator | None = None) -> Any:
        return Numbers(uniform(n, *self.bounds, generator))


@AUGMENTATIONS.register("gain", source="Gold-only plan notebook, FAT2019; 4th place's EnvNet (MIT); own code")
class Gain(_Uniform):
    """Louder or quieter by `gain_db` (lowest, highest), uniform in dB; it may leave [-1, 1]."""

    @delegates(WaveAugmentation.__init__)
    def __init__(self, *, gain_db: tuple[float, float] = (-6.0, 6.0), **kwargs: Any):
        super().__init__(gain_db, "gain_db", **kwargs)

    def apply(self, wave: Tensor, drawn: Numbers, sr: int) -> Tensor:
        return wave * 10 ** (float(drawn.value) / 20)


class _Noise(NamedTuple):
    """Ratio in dB, seed of the noise, whether it is pink; each (clips,)."""

    snr_db: Tensor
    seed: Tensor
    pink: Tensor


@AUGMENTATIONS.register("noise", source="Gold-only plan notebook, FAT2019; own code")
class AddNoise(_Uniform):
    """Noise at `snr_db` (lowest, highest) below the clip, "white", "pink", or "either" with the same chance."""

    COLORS = ("white", "pink", "either")

    @delegates(WaveAugmentation.__init__)
    def __init__(self, *, snr_db: tuple[float, float] = (20.0, 30.0), colour: str = "either", **kwargs: Any):
        super().__init__(snr_db, "snr_db", **kwargs)
        if colour not in self.COLORS:
            raise OptionError(f"colour is {colour!r}; {did_you_mean(colour, self.COLORS)}")
        self.p_pink = {"white": 0.0, "pink": 1.0, "either": 0.5}[colour]

    def draw(self, n: int, samples: int, sr: int, generator: torch.Generator | None = None) -> _Noise:
        seed = integers(n, 0, 2 ** 31 - 1, generator)
        return _Noise(uniform(n, *self.bounds, generator), seed, chance(n, self.p_pink, generator))

    def apply(self, wave: Tensor, drawn: _Noise, sr: int) -> Tensor:
        noise = torch.randn(len(wave), generator=torch.Generator().manual_seed(int(drawn.seed)))
        noise = functional_wave.pink(noise) if drawn.pink else noise
        return functional_wave.add_noise(wave, noise.to(wave), float(drawn.snr_db))


@AUGMENTATIONS.register("shift", source="Gold-only plan notebook, FAT2019; own code")
class Shift(_Uniform):
    """Earlier or later by `seconds` (lowest, highest), with silence in the gap, or what fell off if it `wraps`."""

    @delegates(WaveAugmentation.__init__)
    def __init__(self, *, seconds: tuple[float, float] = (-0.5, 0.5), wraps: bool = False, **kwargs: Any):
        super().__init__(seconds, "seconds", **kwargs)
        self.wraps = wraps

    def apply(self, wave: Tensor, drawn: Numbers, sr: int) -> Tensor:
        return functional_wave.shift(wave, round(float(drawn.value) * sr), wraps=self.wraps)


def _checked_engine(engine: str) -> str:
    if engine not in functional_wave.ENGINES:
        raise OptionError(f"engine is {engine!r}; {did_you_mean(engine, functional_wave.ENGINES)}")
    return engine


@AUGMENTATIONS.register(
    "pitch", source="Gold-only plan notebook, FAT2019; librosa and audiomentations (MIT) do the work"
)
class PitchShift(_Uniform):
    """Higher or lower by `semitones` (lowest, highest) at the same pace; `engine` is one of `functional_wave.ENGINES`."""

    @delegates(WaveAugmentation.__init__)
    def __init__(self, *, semitones: tuple[float, float] = (-2.0, 2.0), engine: str = "librosa", **kwargs: Any):
        super().__init__(semitones, "semitones", low=-24, high=24, **kwargs)
        self.engine = _checked_engine(engine)

    def apply(self, wave: Tensor, drawn: Numbers, sr: int) -> Tensor:
        return functional_wave.shift_pitch(wave, sr, float(drawn.value), engine=self.engine)


@AUGMENTATIONS.register(
    "stretch", source="Gold-only plan notebook, FAT2019; librosa and audiomentations (MIT) do the work"
)
class TimeStretch(_Uniform):
    """Faster or slower by `rate` (lowest, highest) at the same pitch; `engine` is one of `functional_wave.ENGINES`."""

    @delegates(WaveAugmentation.__init__)
    def __init__(self, *, rate: tuple[float, float] = (0.9, 1.1), engine: str = "librosa", **kwargs: Any):
        super().__init__(rate, "rate", low=0.1, high=10, **kwargs)
        self.engine = _checked_engine(engine)

    def apply(self, wave: Tensor, drawn: Numbers, sr: int) -> Tensor:
        return functional_wave.stretch(wave, sr, float(drawn.value), engine=self.engine)


@AUGMENTATIONS.register("speed", source="FAT2019 3rd place repository (Apache-2.0); own code")
class Speed(_Uniform):
    """Faster and higher, or slower and lower, by `factor` (lowest, highest); uniform, or with `even` uniform in its logarithm.

    The 4th place's is factor=(0.8, 1.25), even=True.
    """

    @delegates(WaveAugmentation.__init__)
    def __init__(self, *, factor: tuple[float, float] = (0.9, 1.1), even: bool = False, **kwargs: Any):
        super().__init__(factor, "factor", low=0.1, high=10, **kwargs)
        self.even = even

    def draw(self, n: int, samples: int, sr: int, generator: torch.Generator | None = None) -> Numbers:
        if self.even:
            return Numbers(uniform(n, math.log(self.bounds[0]), math.log(self.bounds[1]), generator).exp())
        return super().draw(n, samples, sr, generator)

    def apply(self, wave: Tensor, drawn: Numbers, sr: int) -> Tensor:
        return functional_wave.change_pace(wave, sr, float(drawn.value))


class _Room(NamedTuple):
    """Reverberance and size, 0 to 100; each (clips,)."""

    reverberance: Tensor
    room: Tensor


@AUGMENTATIONS.register(
    "reverb", source="FAT2019 3rd place repository (Apache-2.0): SoX's reverb; Freeverb (public domain); own code"
)
class Reverb(WaveAugmentation):
    """A room around the sound: reverberance and room size are whole numbers of the ranges given (lowest, highest), 0 to 100."""

    @delegates(WaveAugmentation.__init__)
    def __init__(self, *, reverberance: tuple[int, int] = (0, 49), room: tuple[int, int] = (0, 49), **kwargs: Any):
        super().__init__(**kwargs)
        checked_range(reverberance, "reverberance", low=0, high=100)
        checked_range(room, "room", low=0, high=100)
        self.reverberance, self.room = reverberance, room

    def draw(self, n: int, samples: int, sr: int, generator: torch.Generator | None = None) -> _Room:
        return _Room(integers(n, *self.reverberance, generator=generator), integers(n, *self.room, generator=generator))

    def apply(self, wave: Tensor, drawn: _Room, sr: int) -> Tensor:
        return functional_wave.reverb(wave, sr, reverberance=float(drawn.reverberance), room=float(drawn.room))


@AUGMENTATIONS.register("overdrive", source="FAT2019 3rd place repository (Apache-2.0): SoX's overdrive; own code")
class Overdrive(_Uniform):
    """An overdriven amplifier with a gain of `gain_db` (lowest, highest)."""

    @delegates(WaveAugmentation.__init__)
    def __init__(self, *, gain_db: tuple[float, float] = (2.0, 9.0), **kwargs: Any):
        super().__init__(gain_db, "gain_db", **kwargs)

    def apply(self, wave: Tensor, drawn: Numbers, sr: int) -> Tensor:
        return functional_wave.overdrive(wave, float(drawn.value))


@AUGMENTATIONS.register("chunk_shuffle", source="FAT2019 3rd place repository (Apache-2.0); own code")
class ChunkShuffle(WaveAugmentation):
    """The clip cut into parts of about `chunk_s` seconds, in random order; a clip of fewer than two parts stays."""

    @delegates(WaveAugmentation.__init__)
    def __init__(self, *, chunk_s: float = 0.5, **kwargs: Any):
        super().__init__(**kwargs)
        if not chunk_s > 0:
            raise OptionError(f"chunk_s is {chunk_s}; expected seconds above 0")
        self.chunk_s = chunk_s

    def draw(self, n: int, samples: int, sr: int, generator: torch.Generator | None = None) -> Numbers:
        parts = max(1, int(samples / (self.chunk_s * sr)))
        return Numbers(uniform((n, parts), 0, 1, generator).argsort(1))

    def apply(self, wave: Tensor, drawn: Numbers, sr: int) -> Tensor:
        return functional_wave.shuffle_chunks(wave, drawn.value)


@AUGMENTATIONS.register("cutout", source="FAT2019 3rd place repository (Apache-2.0), unused there; own code")
class Cutout(WaveAugmentation):
    """A stretch of `share` of the clip is silenced, anywhere."""

    @delegates(WaveAugmentation.__init__)
    def __init__(self, *, share: float = 0.25, **kwargs: Any):
        super().__init__(**kwargs)
        self.share = checked_p(share, "share")

    def draw(self, n: int, samples: int, sr: int, generator: torch.Generator | None = None) -> Numbers:
        return Numbers(integers(n, 0, samples - round(self.share * samples), generator))

    def apply(self, wave: Tensor, drawn: Numbers, sr: int) -> Tensor:
        return functional_wave.cut_out(wave, int(drawn.value), int(drawn.value) + round(self.share * len(wave)))


@AUGMENTATIONS.register("crop_lengths", source="Gold-only plan notebook, FAT2019: crops of 5, 10 and 12 s; own code")
class CropLengths(BatchAugmentation):
    """Every batch has crops of a length drawn for it: the network sees sounds at several scales.

    Parameters
    ----------
    seconds
        Lengths to choose from. The loaders' `crop_s` must be the longest: a batch is cut, never filled.
    weights
        How often each is taken, relative to one another; None takes all alike.
    generator
        Of the draws; None is torch's global one.
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
                f"seconds is {tuple(seconds)} with weights {tuple(weights)}; expected lengths above 0 and a weight for each"
            )
        self.seconds = tuple(seconds)
        self.upper = torch.tensor(weights, dtype=torch.float64).cumsum(0) / sum(weights)

    def change(self, wave: Tensor, sr: int, generator: torch.Generator | None = None) -> Tensor:
        """Crops (batch, samples of the drawn length) of waves (batch, samples), each from a place of its own."""
        generator = generator or self.generator
        which = int(
            torch.bucketize(uniform(1, 0, 1, generator), self.upper, right=True).clamp(max=len(self.seconds) - 1)
        )
        size = max(1, round(self.seconds[which] * sr))
        if size >= wave.shape[1]:
            return wave
        start = integers(len(wave), 0, wave.shape[1] - size, generator).to(wave.device)
        return wave.gather(1, start[:, None] + torch.arange(size, device=wave.device))

    def change_batch(self, x: Tensor, batch: Any) -> Tensor:
        return self.change(x, rate_of(batch))


class WaveChain(WaveAugmentation):
    """Several changes one after the other, for the same clips: one coin of `p` for the whole chain, theirs don't count."""

    @delegates(WaveAugmentation.__init__)
    def __init__(self, *changes: WaveAugmentation, **kwargs: Any):
        super().__init__(**kwargs)
        if not changes:
            raise OptionError(
                "a chain of no changes changes nothing: give it at least one, such as WaveChain(Reverb(), Overdrive())"
            )
        self.changes = changes

    def draw(self, n: int, samples: int, sr: int, generator: torch.Generator | None = None) -> tuple[Any, ...]:
        return tuple(c.draw(n, samples, sr, generator) for c in self.changes)

    def apply(self, wave: Tensor, drawn: tuple[Any, ...], sr: int) -> Tensor:
        for change, numbers in zip(self.changes, drawn, strict=True):
            wave = change.apply(wave, numbers, sr)
        return wave


@AUGMENTATIONS.register("third_effects", source="FAT2019 3rd place repository (Apache-2.0); own code")
@delegates(WaveAugmentation.__init__)
def third_effects(*, engine: str = "librosa", **kwargs: Any) -> WaveChain:
    """The 3rd place's chain: reverb, pitch by up to 300 cents, overdrive of 2 to 9 dB, speed of 0.9 to 1.1, in 3 of 4 mixtures."""
    chain = Reverb(), PitchShift(semitones=(-3.0, 3.0), engine=engine), Overdrive(), Speed()
    return WaveChain(*chain, **{"p": 0.75, "before_mixing": False, **kwargs})
