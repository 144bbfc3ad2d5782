"""Check of one sound file: length, level, clipping, a digest of its samples, or why it cannot be read."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from fatai.audio.decoder import MAX_MAGNITUDE, Decoder, open_sound
from fatai.audio.downmix import Downmix, find_downmix
from fatai.audio.io import AudioInfo, audio_info
from fatai.audio.notices import coding_notice
from fatai.errors import AudioError

__all__ = ["CLIPPING_LEVEL", "MIN_CLIPPED_SAMPLES", "AudioFileInfo", "audio_digest", "check_audio_file"]

CLIPPING_LEVEL = 1 - 2 / 32768
"""Magnitude from which samples count as full scale: the last two steps of 16 bits."""
MIN_CLIPPED_SAMPLES = 10
"""A file is clipped if at least this many samples, and the two before each, are at full scale."""
_BLOCK = 1 << 20  # samples of all channels decoded at once


@dataclass(frozen=True)
class AudioFileInfo:
    """Measurements of one file, from decoding all of it; a file that cannot be decoded has 0 samples and an `error`.

    Attributes
    ----------
    path
        The file.
    sr
        Sample rate in Hz.
    channels, samples
        Number of channels, and of samples per channel.
    peak
        Highest magnitude over all channels, 1.0 at full scale.
    level
        The same without the mean of each channel.
    clipped
        Number of samples that, like the two before each, are at full scale in some channel.
    digest
        As `audio_digest` returns it.
    error
        "", "unreadable", "empty" or "not_finite".
    detail
        Description of the error.
    mismatch
        Difference between the length that the header declares and `samples`, or "".
    notices
        Why not the mean of the channels is loaded, or that the floats are on the scale of integers; `peak`, `level`
        and `clipped` are those after the division.
    coding
        A notice on a coding with few bits for each sample, or "".
    """

    path: Path
    sr: int = 0
    channels: int = 0
    samples: int = 0
    peak: float = 0.0
    clipped: int = 0
    digest: str = ""
    error: str = ""
    detail: str = ""
    mismatch: str = ""
    level: float = 0.0
    notices: tuple[str, ...] = ()
    coding: str = ""

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.samples / self.sr if self.sr else 0.0


def check_audio_file(path: str | Path) -> AudioFileInfo:
    """Decode a file in blocks of bounded size and measure it; errors are returned, not raised."""
    path = Path(path)
    try:
        info = audio_info(path)
    except AudioError as e:
        error = "empty" if _is_empty(path) else "unreadable"
        return AudioFileInfo(path, error=error, detail=str(e).removeprefix(f"{path}: "))
    try:
        return _measure(path, info)
    except (soundfile.SoundFileError, RuntimeError, OSError) as e:
        return AudioFileInfo(path, info.sr, info.channels, error="unreadable", detail=f"decoding ends with: {e}")


def _is_empty(path: Path) -> bool:
    """Return whether a file that `audio_info` rejects has no bytes, or a complete header and no samples."""
    try:
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_size == 0 or soundfile.SoundFile(file.fileno(), closefd=False).frames == 0
    except (soundfile.SoundFileError, RuntimeError, OSError, ValueError):
        return False


@dataclass
class _Measurement:
    """Running measurements over blocks of samples."""

    samples: int = 0
    peak: float = 0.0
    clipped: int = 0
    digest: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16))
    tail: np.ndarray = field(default_factory=lambda: np.zeros(2, dtype=bool))
    sums: np.ndarray | float = 0.0
    highest: np.ndarray | float = -np.inf
    lowest: np.ndarray | float = np.inf

    @property
    def level(self) -> float:
        """Highest magnitude over all channels without the mean of each."""
        mean = self.sums / max(1, self.samples)
        return float(np.maximum(self.highest - mean, mean - self.lowest).max())

    def add(self, block: np.ndarray, channel: int | None = None) -> None:
        """Add a block of finite samples, shape (samples, channels), of which `channel` (None: the mean) is loaded."""
        magnitude = np.abs(block)
        self.samples += len(block)
        self.sums = self.sums + block.sum(0, dtype=np.float64)
        self.highest = np.maximum(self.highest, block.max(0))
        self.lowest = np.minimum(self.lowest, block.min(0))
        self.peak = max(self.peak, float(magnitude.max()))
        mono = block.mean(1, dtype=np.float64) if channel is None else block[:, channel]
        mono = np.rint(mono * 32768).clip(-32768, 32767)
        self.digest.update(mono.astype("<i2").tobytes())
        # The last two flags of the previous block, so that a run across the border counts as one.
        full = np.concatenate([self.tail, (magnitude >= CLIPPING_LEVEL).any(1)])
        self.clipped += int((full[:-2] & full[1:-1] & full[2:]).sum())
        self.tail = full[-2:]


def _measure(path: Path, info: AudioInfo) -> AudioFileInfo:
    found = _Measurement()
    with open_sound(path) as sound:
        downmix = _find_downmix(path, sound)
        while len(values := sound.read(max(1, _BLOCK // info.channels), dtype="float32")):
            block = values.reshape(len(values), info.channels)
            if not np.isfinite(np.abs(block).max()):
                row = int(np.argmin(np.isfinite(block).all(1)))
                detail = f"sample {found.samples + row:,} is {', '.join(map(str, block[row]))}"
                return AudioFileInfo(path, info.sr, info.channels, error="not_finite", detail=detail)
            found.add(block * np.float32(downmix.gain), downmix.channel)
    detail = ""
    if found.samples < info.samples:
        detail = f"only {found.samples:,} of {info.samples:,} samples can be decoded"
    elif found.peak > MAX_MAGNITUDE:
        detail = f"samples reach {found.peak:.1g} times full scale"
    if detail:
        return AudioFileInfo(path, info.sr, info.channels, error="unreadable", detail=detail)
    digest = found.digest.hexdigest()
    return AudioFileInfo(
        path,
        info.sr,
        info.channels,
        found.samples,
        found.peak,
        found.clipped,
        digest,
        mismatch=info.mismatch,
        level=found.level,
        notices=downmix.notices,
        coding=coding_notice(info.subtype),
    )


def _find_downmix(path: Path, sound: Decoder) -> Downmix:
    """Return how the channels are loaded; of a file that cannot be decoded the mean; decoding it finds the reason."""
    try:
        return find_downmix(path, sound, "auto", notify=False)
    except AudioError:
        sound.seek(0)
        return Downmix()


def audio_digest(path: str | Path) -> str | None:
    """Hash the samples of a file, averaged over channels and rounded to 16 bits; return None if it cannot be read.

    The same sound in WAV and FLAC, or under two names, has the same digest; a lossy copy has another one.
    """
    return check_audio_file(path).digest or None
