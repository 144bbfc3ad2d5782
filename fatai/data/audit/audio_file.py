"""What one sound file holds: length, level, clipping, a digest of what is heard, or why it cannot be read."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from fatai.errors import AudioError
from fatai.audio.io import MAX_MAGNITUDE, AudioInfo, audio_info, open_sound

__all__ = ["MIN_CLIPPED_SAMPLES", "CLIPPING_LEVEL", "AudioFileInfo", "check_audio_file", "audio_digest"]

CLIPPING_LEVEL = 1 - 2 / 32768
"""Samples from here on are at full scale: the last two steps of 16 bits."""
MIN_CLIPPED_SAMPLES = 10
"""A file is clipped if at least so many samples are at full scale and have two neighbours in a row that are, too."""
_BLOCK = 1 << 20  # samples of all channels decoded at once


@dataclass(frozen=True)
class AudioFileInfo:
    """What one file holds, from decoding all of it; a file that cannot be decoded has 0 samples and a `fault`.

    `peak` is the highest magnitude over all channels, 1.0 being full scale; `clipped` counts samples as `MIN_CLIPPED_SAMPLES` says;
    `digest` is that of `audio_digest`; `fault` is "", "unreadable", "empty" or "not_finite", `what` a sentence on it.
    """

    path: Path
    sr: int = 0
    channels: int = 0
    samples: int = 0
    peak: float = 0.0
    clipped: int = 0
    digest: str = ""
    fault: str = ""
    what: str = ""

    @property
    def seconds(self) -> float:
        return self.samples / self.sr if self.sr else 0.0


def check_audio_file(path: str | Path) -> AudioFileInfo:
    """Decode a file in blocks of bounded size and measure it; faults are part of the answer, nothing is raised."""
    path = Path(path)
    try:
        info = audio_info(path)
    except AudioError as e:
        return AudioFileInfo(path, fault="empty" if _is_empty(path) else "unreadable", what=_without_path(str(e), path))
    try:
        return _measured(path, info)
    except (soundfile.SoundFileError, RuntimeError, OSError) as e:
        return AudioFileInfo(path, info.sr, info.channels, fault="unreadable", what=f"decoding ends with: {e}")


def _without_path(sentence: str, path: Path) -> str:
    return sentence.removeprefix(f"{path}: ")


def _is_empty(path: Path) -> bool:
    """Whether a file that `audio_info` refused has no bytes, or a whole header and no samples."""
    try:
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_size == 0 or soundfile.SoundFile(file.fileno(), closefd=False).frames == 0
    except (soundfile.SoundFileError, RuntimeError, OSError, ValueError):
        return False


def _measured(path: Path, info: AudioInfo) -> AudioFileInfo:
    digest, peak, samples, clipped, tail = _new_digest(), 0.0, 0, 0, np.zeros(2, dtype=bool)
    with open_sound(path) as sound:
        while len(read := sound.read(max(1, _BLOCK // info.channels), dtype="float32")):
            block = read.reshape(len(read), info.channels)
            high = float(np.abs(block).max())
            if not np.isfinite(high):
                at = samples + int(np.argmin(np.isfinite(block).all(1)))
                what = f"sample {at:,} is {', '.join(map(str, block[at - samples]))}"
                return AudioFileInfo(path, info.sr, info.channels, fault="not_finite", what=what)
            peak, samples = max(peak, high), samples + len(block)
            _feed(digest, block)
            # Two flags of the block before, so that a run across the border counts as one.
            full = np.concatenate([tail, (np.abs(block) >= CLIPPING_LEVEL).any(1)])
            clipped, tail = clipped + int((full[:-2] & full[1:-1] & full[2:]).sum()), full[-2:]
    if samples < info.samples:
        what = f"only {samples:,} of the {info.samples:,} samples that its header promises can be decoded"
        return AudioFileInfo(path, info.sr, info.channels, fault="unreadable", what=what)
    if peak > MAX_MAGNITUDE:
        return AudioFileInfo(
            path, info.sr, info.channels, fault="unreadable", what=f"samples reach {peak:.1g} times full scale"
        )
    return AudioFileInfo(path, info.sr, info.channels, samples, peak, clipped, digest.hexdigest())


def _new_digest() -> Any:
    return hashlib.blake2b(digest_size=16)


def _feed(digest: Any, block: np.ndarray) -> None:
    digest.update(np.rint(block.mean(1, dtype=np.float64) * 32768).clip(-32768, 32767).astype("<i2").tobytes())


def audio_digest(path: str | Path) -> str | None:
    """A digest of what is heard in a file: its samples, channels averaged, rounded to 16 bits.

    The same sound in WAV and FLAC, or under two names, has the same digest; a lossy copy has another one. None if it cannot be read.
    """
    return check_audio_file(path).digest or None
