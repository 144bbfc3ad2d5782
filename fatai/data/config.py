"""`ClipConfig`: how a sound file becomes the input of a network."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from fatai.audio.downmix import check_channel
from fatai.audio.front_ends import FrontEnd
from fatai.audio.front_ends import front_end as find_front_end
from fatai.audio.io import load_audio
from fatai.audio.waveform import PAD_MODES, fit_length, remove_offset, trim_silence
from fatai.errors import OptionError
from fatai.registry import CHANNELS, did_you_mean

__all__ = ["ClipConfig"]


@dataclass(frozen=True)
class ClipConfig:
    """Front end, channels, crop length, trimming and padding of clips.

    Attributes
    ----------
    front_end
        Map from waves to spectrograms; files are resampled to its `sr`.
    channels
        A name of `CHANNELS`; None takes that of the front end.
    crop_s
        Length of a training crop and of a view, in seconds, from 0.05 to 600. Longer crops contain more of an event but
        take more memory.
    trim_db
        Leading and trailing silence this many dB below the peak is removed; None keeps it.
    pad_mode
        Padding of clips that are shorter than a crop, a name of `PAD_MODES`.
    channel
        Channel of a sound file, as in `load_audio`: "auto", "mean", "loudest", or a number from 1. "each" is for
        predictions: every channel is predicted. Not to be confused with `channels`, those of the network's input.

    Raises
    ------
    OptionError
        If `crop_s` or `trim_db` is out of range, `channels`, `pad_mode` or `channel` is unknown, or the front end has
        constants to be trained: spectrograms are computed before the network, outside of training.
    """

    front_end: FrontEnd = field(default_factory=lambda: find_front_end("ninth"))
    channels: str | None = None
    crop_s: float = 2.0
    trim_db: float | None = 60.0
    pad_mode: str = "constant_center"
    channel: str | int = "auto"

    def __post_init__(self) -> None:
        if not 0.05 <= self.crop_s <= 600:
            raise OptionError(f"crop_s is {self.crop_s}; expected seconds between 0.05 and 600")
        if self.channels is not None and self.channels not in CHANNELS:
            raise OptionError(f"channels is {self.channels!r}; {did_you_mean(self.channels, CHANNELS.names())}")
        if self.trim_db is not None and not 0 < self.trim_db < math.inf:
            raise OptionError(f"trim_db is {self.trim_db}; expected decibels above 0, or None to keep silence")
        if self.pad_mode not in PAD_MODES:
            raise OptionError(f"pad_mode is {self.pad_mode!r}; {did_you_mean(self.pad_mode, PAD_MODES)}")
        check_channel(self.channel)
        if self.front_end.pcen_trainable:
            raise OptionError(
                "pcen_trainable is True; expected False, since nothing is trained in spectrograms, which are computed "
                "before the network: take fixed constants (pcen_gain, ...), or make PCEN(rows, trainable=True) a layer "
                "of your network"
            )

    @property
    def sr(self) -> int:
        """Sample rate in Hz."""
        return self.front_end.sr

    @property
    def crop_samples(self) -> int:
        """Length of a crop in samples."""
        return round(self.crop_s * self.sr)

    @property
    def crop_frames(self) -> int:
        """Length of a crop in spectrogram frames."""
        return self.front_end.frames(self.crop_samples)

    def read(self, path: str | Path) -> Tensor:
        """Load and trim a whole clip, without a constant offset.

        Parameters
        ----------
        path
            A sound file; it is resampled to `sr`, and `channel` decides on its channels.

        Returns
        -------
        float32, shape (samples,), in [-1, 1].

        Raises
        ------
        AudioError
            If the file cannot be decoded, or has fewer channels than `channel`.
        OptionError
            If `channel` is "each".
        """
        self.check_one_wave()
        return self.trim(load_audio(path, self.sr, channel=self.channel))

    def check_one_wave(self) -> None:
        """Raise `OptionError` if `channel` is "each", so that a clip has several waves."""
        if self.channel == "each":
            raise OptionError(
                "channel is 'each', which only predictions take; expected 'auto', 'mean', 'loudest' or the number of a "
                "channel where clips are loaded for training"
            )

    def read_each(self, path: str | Path) -> list[Tensor]:
        """Load and trim every channel of a clip if `channel` is "each", otherwise one wave; as `read`."""
        waves = load_audio(path, self.sr, channel=self.channel)
        return [self.trim(wave) for wave in (waves if self.channel == "each" else waves[None])]

    def trim(self, wave: Tensor) -> Tensor:
        """Remove a constant offset, and as `trim_db` specifies silence at both ends, from a wave, shape (samples,)."""
        wave = remove_offset(wave)
        return wave if self.trim_db is None else trim_silence(wave, self.trim_db)

    def fit(self, wave: Tensor) -> Tensor:
        """Pad a wave, shape (samples,), to the length of a crop if it is shorter; return a longer one unchanged."""
        short = wave.shape[-1] < self.crop_samples
        return fit_length(wave, self.crop_samples, self.pad_mode) if short else wave

    def sound_span(self, samples: int) -> tuple[float, float]:
        """Return where the sound of a clip of `samples` samples begins and ends after `fit`, as fractions of the whole.

        Examples
        --------
        >>> ClipConfig(crop_s=2.0).sound_span(44100)      # a second, centered in two
        (0.25, 0.75)
        """
        missing = max(0, self.crop_samples - samples)
        left = missing // 2 if self.pad_mode.endswith("_center") else 0
        if not missing or self.pad_mode.startswith("wrap"):
            return 0.0, 1.0
        return left / self.crop_samples, (left + samples) / self.crop_samples

    def channels_module(self) -> nn.Module:
        """Build the module that maps (batch, mels, frames) to (batch, channels, mels, frames)."""
        return CHANNELS.build(self.channels_name)

    @property
    def channels_name(self) -> str:
        """Name in `CHANNELS`: the own one, or that of the front end."""
        return self.channels or self.front_end.channels

    @property
    def spec_size(self) -> tuple[int, int]:
        """Mels and frames of the input of a network for one crop."""
        spec = torch.zeros(1, self.front_end.rows, self.crop_frames)
        mels, frames = self.channels_module()(spec).shape[-2:]
        return mels, frames
