"""`ClipConfig`: how a clip becomes what the network sees."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from fatai.errors import OptionError
from fatai.registry import CHANNELS, did_you_mean
from fatai.audio.io import load_audio
from fatai.audio.front_ends import FrontEnd, front_end as find_front_end
from fatai.audio.waveform import fit_length, trim_silence

__all__ = ["ClipConfig"]


@dataclass(frozen=True)
class ClipConfig:
    """How a clip becomes what the network sees.

    Attributes
    ----------
    front_end
        The map from wave to spectrogram; its `sr` is the rate that files are read at.
    channels
        A name of `CHANNELS`; None takes the front end's own.
    crop_s
        Seconds of a training crop and of a view.
    trim_db
        Leading and trailing silence below the peak by this many dB is cut off; None keeps it.
    pad_mode
        What a clip shorter than a crop is filled with, a name of `PAD_MODES`.
    """

    front_end: FrontEnd = field(default_factory=lambda: find_front_end("ninth"))
    channels: str | None = None
    crop_s: float = 2.0
    trim_db: float | None = 60.0
    pad_mode: str = "constant_center"

    def __post_init__(self) -> None:
        if not 0.05 <= self.crop_s <= 600:
            raise OptionError(f"crop_s is {self.crop_s}; expected seconds between 0.05 and 600")
        if self.channels is not None and self.channels not in CHANNELS:
            raise OptionError(f"channels is {self.channels!r}; {did_you_mean(self.channels, CHANNELS.names())}")

    @property
    def sr(self) -> int:
        return self.front_end.sr

    @property
    def crop_samples(self) -> int:
        return round(self.crop_s * self.sr)

    @property
    def crop_frames(self) -> int:
        """Frames of the spectrogram of a crop."""
        return self.front_end.frames(self.crop_samples)

    def read(self, path: str | Path) -> Tensor:
        """A whole clip, trimmed, shape (samples,); raises `AudioError`."""
        wave = load_audio(path, self.sr)
        return wave if self.trim_db is None else trim_silence(wave, self.trim_db)

    def fit(self, wave: Tensor) -> Tensor:
        """A wave (samples,) filled up to a crop's length if it is shorter; a longer one is returned as it is."""
        short = wave.shape[-1] < self.crop_samples
        return fit_length(wave, self.crop_samples, self.pad_mode) if short else wave

    def channels_module(self) -> nn.Module:
        return CHANNELS.build(self.channels or self.front_end.channels)
