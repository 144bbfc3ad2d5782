"""`ClipConfig`: how a sound file becomes the input of a network."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from fatai.audio.front_ends import FrontEnd
from fatai.audio.front_ends import front_end as find_front_end
from fatai.audio.io import load_audio
from fatai.audio.waveform import fit_length, trim_silence
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

    Raises
    ------
    OptionError
        If `crop_s` is out of range, `channels` is unknown, or the front end has constants to be trained: spectrograms
        are computed before the network, outside of training.
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
        """Load and trim a whole clip.

        Parameters
        ----------
        path
            A sound file; channels are averaged, and it is resampled to `sr`.

        Returns
        -------
        float32, shape (samples,), in [-1, 1].

        Raises
        ------
        AudioError
            If the file cannot be decoded.
        """
        return self.trim(load_audio(path, self.sr))

    def trim(self, wave: Tensor) -> Tensor:
        """Remove leading and trailing silence from a wave, shape (samples,), as `trim_db` specifies."""
        return wave if self.trim_db is None else trim_silence(wave, self.trim_db)

    def fit(self, wave: Tensor) -> Tensor:
        """Pad a wave, shape (samples,), to the length of a crop if it is shorter; return a longer one unchanged."""
        short = wave.shape[-1] < self.crop_samples
        return fit_length(wave, self.crop_samples, self.pad_mode) if short else wave

    def channels_module(self) -> nn.Module:
        """Build the module that maps (batch, mels, frames) to (batch, channels, mels, frames)."""
        return CHANNELS.build(self.channels or self.front_end.channels)
