"""How the channels of a sound become one wave: their mean, or one of them; and the scale of floats.

The mean is wrong for two kinds of recordings: two channels of opposite phase (one of them wired the wrong way round)
cancel, and a single microphone among inputs that nothing is plugged into loses level to them. "auto" notices both by
the channels' levels, without their constant offsets, over the whole of a short sound, and over 16 stretches of a long
one, so that a recording of hours isn't read twice.

Floats are at full scale [-1, 1] by convention, and may exceed it a little, as may those of a mixing desk. Some programs
write the integers of a converter as floats instead. Those are recognized by values that no float recording has: a peak
above 64, 36 dB over full scale, or nothing but whole numbers with a peak above 8; and at least one value in a thousand
beyond 1, so that a single wrong sample isn't taken for a scale. A peak of up to 2^16 is the scale of 16 bits, one of up
to 2^24 that of 24 bits, one of up to 2^32 that of 32 bits: twice the range of each, since resampling and mixing exceed
it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fatai.audio.decoder import Decoder, read_floats, seek
from fatai.audio.notices import give_notices
from fatai.errors import AudioError, OptionError
from fatai.io.fetch import is_url
from fatai.registry import did_you_mean

__all__ = [
    "CHANNEL_NAMES",
    "ChannelLevels",
    "Downmix",
    "check_channel",
    "find_downmix",
    "is_measured_whole",
    "measure_downmix",
    "parse_channel",
]

CHANNEL_NAMES = ("auto", "mean", "loudest", "each")
"""Choices of a channel by name; a number, counted from 1, is the other one."""

MAX_CHANNEL = 1024
"""Highest number of a channel: that of libsndfile."""

_DEAD_DB = -40.0  # relative to the loudest channel
_CANCELLED = 0.1  # power of the mean, relative to that of the mean of unrelated channels
_FLOAT_PEAK = 64.0
_WHOLE_NUMBER_PEAK = 8.0
_LOUD_PEAK = 1.05  # resampling exceeds full scale by less
_BEYOND_FULL_SCALE = 1e-3  # share of the values
_INTEGER_BITS = (16, 24, 32)
_FLOATS = frozenset({"FLOAT", "DOUBLE"})  # libsndfile's names of codings
_BLOCK = 1 << 18  # values of all channels in a stretch
_STRETCHES = 16  # by which the channels of a long file are measured
_MAX_REMEMBERED = 1 << 16  # files
_downmixes: dict[tuple[object, ...], Downmix] = {}  # by path, identity of the file, and channel


def check_channel(channel: str | int) -> str | int:
    """Return a choice of a channel, a name of `CHANNEL_NAMES` or a number from 1; raise `OptionError` for others."""
    if isinstance(channel, str) and channel not in CHANNEL_NAMES:
        raise OptionError(
            f"channel is {channel!r}; expected a number from 1, or a name: {did_you_mean(channel, CHANNEL_NAMES)}"
        )
    is_number = isinstance(channel, int) and not isinstance(channel, bool)
    if not isinstance(channel, str) and not (is_number and 1 <= channel <= MAX_CHANNEL):
        raise OptionError(
            f"channel is {channel!r}; expected a number from 1 to {MAX_CHANNEL}, or one of {', '.join(CHANNEL_NAMES)}"
        )
    return channel


def parse_channel(text: str) -> str | int:
    """Parse a choice of a channel as it is typed; raise `OptionError` if there is no such choice.

    Examples
    --------
    >>> parse_channel("2"), parse_channel("loudest")
    (2, 'loudest')
    """
    return check_channel(int(text) if text.isascii() and text.lstrip("-").isdigit() else text)


@dataclass(frozen=True)
class Downmix:
    """A decision on the channels and the scale of a sound.

    Attributes
    ----------
    channel
        Position of the channel that is taken, from 0; None takes the mean.
    gain
        Factor of all samples: 1, or the step of integers that are stored as floats.
    notices
        What is unusual about the sound and what was done, a phrase for each.
    is_each
        True keeps the channels apart.
    """

    channel: int | None = None
    gain: float = 1.0
    notices: tuple[str, ...] = ()
    is_each: bool = False

    def apply(self, samples: Tensor) -> Tensor:
        """Return the wave, float32 (samples,), or with `is_each` (channels, samples).

        Parameters
        ----------
        samples
            Shape (samples,) or (samples, channels), float32.
        """
        if self.is_each:
            samples = samples.reshape(len(samples), -1).T.contiguous()
        elif samples.ndim > 1:
            samples = samples.mean(1) if self.channel is None else samples[:, self.channel].contiguous()
        return samples if self.gain == 1 else samples * self.gain


@dataclass
class ChannelLevels:
    """Running measurement of the channels of a sound, in blocks (samples, channels) of floats.

    Attributes
    ----------
    channels
        Number of channels.
    """

    channels: int
    _n: int = 0
    _peak: float = 0.0
    _is_whole: bool = True
    _n_beyond: int = 0
    # Of each channel, and in the last place of the mean of all.
    _sums: Any = field(default=0.0)
    _squares: Any = field(default=0.0)

    def add(self, samples: Tensor) -> None:
        """Measure more samples, shape (samples,) or (samples, channels), float32 and finite."""
        block = samples.numpy().reshape(len(samples), self.channels)
        self._n += len(block)
        magnitude = np.abs(block)
        self._peak = max(self._peak, float(magnitude.max(initial=0)))
        self._n_beyond += int((magnitude > 1).sum())
        self._is_whole = self._is_whole and bool((block == np.rint(block)).all())
        if self.channels > 1:
            both = np.concatenate([block, block.mean(1, keepdims=True)], 1, dtype=np.float64)
            self._sums = self._sums + both.sum(0)
            self._squares = self._squares + np.square(both).sum(0)

    @property
    def power(self) -> np.ndarray:
        """Mean square without the constant offset of each channel, and last that of their mean, (channels + 1,)."""
        if self._n == 0 or self.channels == 1:
            return np.zeros(self.channels + 1)
        means = self._sums / self._n
        power = self._squares / self._n - np.square(means)
        # The rounding errors of the difference are no sound.
        return np.where(power > 1e-12 * np.square(means), power, 0.0)

    def decide(self, name: object, channel: str | int, *, floats: bool = True) -> Downmix:
        """Decide on the channel and the scale.

        Parameters
        ----------
        name
            The sound, for messages.
        channel
            A name of `CHANNEL_NAMES`, or a number from 1.
        floats
            Whether the sound is stored as floats, whose scale is to be found.

        Raises
        ------
        AudioError
            If the sound has fewer channels than the number asked for.
        """
        gain, scale_notice = self._scale() if floats else (1.0, "")
        taken, channel_notice = self._channel(name, channel)
        notices = tuple(notice for notice in (channel_notice, scale_notice) if notice)
        return Downmix(taken, gain, notices, is_each=channel == "each")

    def _channel(self, name: object, channel: str | int) -> tuple[int | None, str]:
        if isinstance(channel, int):
            if channel > self.channels:
                have = "one channel" if self.channels == 1 else f"{self.channels} channels"
                raise AudioError(
                    f"{name}: channel {channel} was asked for, and the file has {have}; choose one of them"
                )
            return channel - 1, ""
        if self.channels == 1 or channel in ("mean", "each"):
            return None, ""
        power = self.power
        loudest = int(power[:-1].argmax())
        if channel == "loudest":
            return loudest, ""
        notice = self._problem_of_mean(power)
        return (loudest, f"{notice}; channel {loudest + 1}, the loudest, is taken") if notice else (None, "")

    def _problem_of_mean(self, power: np.ndarray) -> str:
        """Return why the mean misrepresents the channels, or ""."""
        each, mean = power[:-1], power[-1]
        if each.max() == 0:
            return ""
        if mean < _CANCELLED * each.mean() / self.channels:
            return f"the {self.channels} channels cancel in their mean (opposite phase)"
        if (each > each.max() * 10 ** (_DEAD_DB / 10)).sum() == 1:
            return f"only one of the {self.channels} channels has sound"
        return ""

    def _scale(self) -> tuple[float, str]:
        """Return the factor to full scale [-1, 1], and a notice unless it is 1."""
        peak = self._peak
        is_integer = peak > (_WHOLE_NUMBER_PEAK if self._is_whole else _FLOAT_PEAK)
        bits = next((bits for bits in _INTEGER_BITS if peak <= 2.0**bits), None)
        if not is_integer or bits is None or self._n_beyond < _BEYOND_FULL_SCALE * self._n * self.channels:
            return 1.0, _loudness_notice(peak)
        notice = f"the floats reach {peak:,.0f}, the scale of {bits}-bit integers; they are divided by 2^{bits - 1}"
        return 2.0 ** (1 - bits), notice


def _loudness_notice(peak: float) -> str:
    """Return a notice on floats beyond full scale, "" for others."""
    if peak <= _LOUD_PEAK:
        return ""
    return (
        f"the floats reach {peak:,.1f} times full scale and are taken as they are; tags of so loud a sound may differ: "
        "scale the file to the level of other recordings"
    )


def find_downmix(
    path: Path | str, sound: Decoder, channel: str | int, *, name: str | None = None, notify: bool = True
) -> Downmix:
    """Decide on the channel and the scale of a file, which is at its first sample before and after.

    A file of up to 16 stretches of 2^18 values is decoded for it, of a longer one 16 such stretches. The decision is
    kept as long as the process lives and the file stays as it is.

    Parameters
    ----------
    channel
        As in `load_audio`.
    name
        Shown for the path in warnings.
    notify
        Whether to warn of what is unusual.

    Raises
    ------
    AudioError
        If the file has fewer channels than `channel`, or cannot be decoded.
    """
    def stretches() -> Iterator[Tensor]:
        n = _stretch(sound)
        count = min(_STRETCHES, -(-sound.frames // n))
        for k in range(count):
            start = k * n if is_measured_whole(sound) else k * (sound.frames - n) // (_STRETCHES - 1)
            seek(path, sound, start)
            yield read_floats(path, sound, min(n, sound.frames - start))
        seek(path, sound, 0)

    return measure_downmix(path, sound, channel, stretches(), name, notify)


def measure_downmix(
    path: Path | str, sound: Decoder, channel: str | int, blocks: Iterable[Tensor], name: str | None = None,
    notify: bool = True,
) -> Downmix:
    """Return the decision on a file by the levels of `blocks`, each (samples,) or (samples, channels), or a known one.

    Nothing is measured where the number of channels decides alone.
    """
    levels = ChannelLevels(sound.channels)
    if sound.subtype not in _FLOATS and (sound.channels == 1 or channel not in ("auto", "loudest")):
        return levels.decide(name or path, channel, floats=False)
    key = (*_identity(path, sound), channel)
    if key not in _downmixes:
        for block in blocks:
            levels.add(block)
        if len(_downmixes) >= _MAX_REMEMBERED:
            _downmixes.clear()
        _downmixes[key] = levels.decide(name or path, channel, floats=sound.subtype in _FLOATS)
    if notify:
        give_notices(path, _downmixes[key].notices, name)
    return _downmixes[key]


def _stretch(sound: Decoder) -> int:
    return max(1, _BLOCK // sound.channels)


def _identity(path: Path | str, sound: Decoder) -> tuple[object, ...]:
    """Return what changes with a file; of a URL, its length in samples stands for the rest."""
    if is_url(path):
        return path, sound.frames, sound.samplerate
    status = os.stat(path)
    return str(path), status.st_size, status.st_mtime_ns, status.st_ino


def is_measured_whole(sound: Decoder) -> bool:
    """Return True if all of a file, rather than stretches of it, is measured for the decision on its channels."""
    return sound.frames <= _STRETCHES * _stretch(sound)
