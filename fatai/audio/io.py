"""Load sound files as float32 tensors, and save them.

Conventions: a *wave* is a mono float32 tensor, shape (samples,), full scale [-1, 1]. Every problem with a file raises
an `AudioError` that names the file, the problem and a remedy.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import soundfile
from torch import Tensor

from fatai.audio.decoder import LENGTH_CHECKED, Decoder, open_sound, raise_if_transient, read_floats, seek
from fatai.audio.downmix import check_channel, find_downmix, is_measured_whole, measure_downmix
from fatai.audio.notices import warn_of_mismatch, warn_of_quality
from fatai.audio.remote import sound_path
from fatai.audio.segments import split_segment
from fatai.audio.waveform import check_rate, resample
from fatai.errors import AudioError, OptionError, ShapeError
from fatai.io.atomic import retry, write_file

__all__ = [
    "AUDIO_EXTENSIONS",
    "AudioInfo",
    "audio_info",
    "check_audio",
    "is_readable",
    "load_audio",
    "save_audio",
]

AUDIO_EXTENSIONS = frozenset(
    {
        ".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".mp2", ".mp3", ".oga", ".ogg", ".opus", ".rf64", ".snd",
        ".w64", ".wav",
    }
)
"""Suffixes, in lower case, of sound files in a folder; `load_audio` depends on the content only."""

T = TypeVar("T")

# Of all channels, read at once, before or after resampling: 1 GiB, or 100 minutes at 44.1 kHz.
_MAX_SAMPLES = 1 << 28
_HIGH_RATE = 48_000
_BLOCK = 1 << 18  # samples of all channels per block, where they are not needed at once
# Codings whose samples are always finite and not compressed.
_PLAIN = frozenset({"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "ALAW", "ULAW"})
_SUFFIX_FORMATS = {".aif": "AIFF", ".oga": "OGG", ".opus": "OGG"}  # where it is not the suffix in capitals


@dataclass(frozen=True)
class AudioInfo:
    """The header of a sound file.

    Attributes
    ----------
    path
        The file; a URL is text.
    sr
        Rate in Hz.
    channels
        Number of channels.
    samples
        Number of samples per channel.
    format, subtype
        libsndfile's names of container and coding: "WAV", "PCM_16". Of a file that ffmpeg decodes, the name of the
        container, such as "MPEG-4", and "FLOAT".
    mismatch
        Difference between the length that the header declares and `samples`: the end of the file is missing, or its
        header is wrong. Empty if they agree.
    """

    path: Path | str
    sr: int
    channels: int
    samples: int
    format: str
    subtype: str
    mismatch: str = ""

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.samples / self.sr


def audio_info(path: str | os.PathLike[str]) -> AudioInfo:
    """Read rate, channels and length of a sound file, or of a segment of it (`fatai.audio.segments`).

    The length is that of the samples which are there. At most the last sample is decoded, of a compressed file, unless
    its end is missing.

    Raises
    ------
    AudioError
        If the file cannot be read or has no samples.
    """
    name, segment = sound_path(path), split_segment(path)
    file = sound_path(segment.path)

    def read() -> AudioInfo:
        with open_sound(file) as sound:
            start, stop = (round(s * sound.samplerate) for s in segment.section(sound.frames / sound.samplerate))
            return AudioInfo(
                name, sound.samplerate, sound.channels, max(1, stop - start), sound.format, sound.subtype,
                sound.mismatch,
            )

    return _retry_reading(file, read)


def check_audio(path: str | os.PathLike[str]) -> None:
    """Raise the `AudioError` that loading the whole file, at any rate up to 48 kHz, would raise.

    Compressed samples, and floats, which may not be finite, are decoded in blocks; for other files the header and the
    size are enough. Of a segment only its times are checked.
    """
    if split_segment(path).end_s is not None:
        audio_info(path)
        return
    path = sound_path(path)

    def read() -> None:
        with open_sound(path) as sound:
            _check_length(path, sound, sound.frames, max(sound.samplerate, _HIGH_RATE))
            warn_of_mismatch(path, sound)
            warn_of_quality(path, sound, _HIGH_RATE)
            if sound.format in LENGTH_CHECKED and sound.subtype in _PLAIN:
                return
            n = max(1, _BLOCK // sound.channels)
            for start in range(0, sound.frames, n):
                read_floats(path, sound, min(n, sound.frames - start))

    _retry_reading(path, read)


def _retry_reading(path: Path | str, read: Callable[[], T]) -> T:
    """Return the result of `read`; repeat it after an error of the file system, not of the file."""

    def attempt() -> T:
        try:
            return read()
        except AudioError:
            # A decoder treats an error of the disk as the end of the file; only reading the bytes shows the difference.
            raise_if_transient(path)
            raise

    try:
        return retry(attempt)
    except AudioError:
        raise
    except OSError as e:
        problem = e.strerror or str(e)
    raise AudioError(
        f"{path}: the file system failed several times ({problem}); check the drive and its connection"
    )


def load_audio(
    path: str | os.PathLike[str],
    sr: int | None = 44100,
    *,
    offset_s: float = 0.0,
    duration_s: float | None = None,
    channel: str | int = "auto",
) -> Tensor:
    """Read a sound file, or a section of it, as one channel.

    Parameters
    ----------
    path
        Anything that libsndfile reads: WAV, FLAC, Ogg Vorbis and Opus, MP3, AIFF and more; also AAC, WebM, WMA and
        others if the program ffmpeg is on the PATH; also a segment, as "rec.wav#t=12.5,15" (`fatai.audio.segments`),
        within which the section lies; also a URL of fsspec, as "s3://bucket/rec.flac", of which only those blocks are
        fetched that the section needs (`fatai.audio.remote`).
    sr
        Rate of the result in Hz; a file of another rate is resampled with soxr (quality HQ). None keeps the rate of the
        file.
    offset_s, duration_s
        Section to read, in seconds of the file; only that section is decoded, and once for a file of several channels
        or of floats the stretches by which they are measured. It ends with the file.
    channel
        "auto" averages the channels, except where they cancel (opposite phase), or only one of them has sound: then it
        takes the loudest, with a warning. "mean" always averages. "loudest" takes the channel with the most power
        besides a constant offset. A number takes that channel, counted from 1. "each" keeps them apart. All sections
        of a file are treated alike.

    Returns
    -------
    Shape (samples,), with `channel="each"` (channels, samples), float32. 16-bit samples are divided by 32,768, so they
    lie in [-1, 1); a float file may exceed full scale and is not scaled, unless it holds integers as floats, by the
    rule of `fatai.audio.downmix`. Of a file whose end is missing, or whose header declares a wrong length, all that is
    there is read. There is one warning for each file and reason; of codings with few bits, one for each folder.

    Raises
    ------
    AudioError
        If the file is missing, a folder, empty, without samples, damaged, not sound, or has samples that are not finite
        or exceed 1e12; if its rate is outside 1 kHz to 1 MHz, or the result would exceed 1 GiB; if the section starts
        at or after the end; if it has fewer channels than `channel`; if the file system failed several times.
    OptionError
        If `sr`, `offset_s`, `duration_s` or `channel` is out of range.
    """
    segment = split_segment(path)
    path = sound_path(segment.path)
    sr = None if sr is None else check_rate(sr)
    _check_section(offset_s, duration_s)
    check_channel(channel)

    def read() -> tuple[int, Tensor]:
        with open_sound(path, plain_wav=True) as sound:
            warn_of_mismatch(path, sound)
            warn_of_quality(path, sound, sr)
            rate = sound.samplerate
            start_s, stop_s = segment.section(sound.frames / rate)
            offset = round((start_s + offset_s) * rate)
            samples = None if duration_s is None else round(duration_s * rate)
            if segment.end_s is not None:
                left = round(stop_s * rate) - offset
                samples = left if samples is None else min(samples, left)
            return rate, _decode(path, sound, offset, samples, sr or rate, channel)

    rate, wave = _retry_reading(path, read)
    return wave if sr is None or sr == rate else resample(wave, rate, sr)


def is_readable(path: str | os.PathLike[str]) -> bool:
    """Return True if `load_audio` can read the whole file; it is decoded."""
    try:
        load_audio(path, sr=None)
    except AudioError:
        return False
    return True


def _check_section(offset_s: float, duration_s: float | None) -> None:
    if not 0 <= offset_s < math.inf:
        raise OptionError(f"offset_s={offset_s}; expected seconds from the start of the file, 0 or more")
    if duration_s is not None and not 0 < duration_s < math.inf:
        raise OptionError(f"duration_s={duration_s}; expected seconds above 0, or None for all there is")


def _check_length(path: Path | str, sound: Decoder, samples: int, sr: int) -> None:
    """Raise if `samples` samples of each channel are too many to be read at once, or after resampling to `sr` Hz."""
    if max(samples * sound.channels, samples * sr // sound.samplerate) > _MAX_SAMPLES:
        raise AudioError(
            f"{path}: {samples / sound.samplerate / 60:,.0f} min with {sound.channels} channels at "
            f"{sound.samplerate:,} Hz are too much to be read at once; cut the file, give a section (offset_s, "
            "duration_s), or use fatai-submit tag, which reads sound of any length"
        )


def _decode(
    path: Path | str, sound: Decoder, offset: int, samples: int | None, sr: int, channel: str | int
) -> Tensor:
    """Return `samples` samples from `offset` on, as `load_audio`; raise if they are too many at the rate `sr`."""
    available = sound.frames - offset
    if available <= 0:
        raise AudioError(f"{path}: the file is {sound.frames / sound.samplerate:.3f} s long, "
                         f"but the section starts at {offset / sound.samplerate:.3f} s; start earlier")
    n = available if samples is None else min(available, max(1, samples))
    _check_length(path, sound, n, sr)
    if n == sound.frames and is_measured_whole(sound):
        # It is measured as it is, not read twice.
        whole = read_floats(path, sound, n)
        return measure_downmix(path, sound, channel, [whole]).apply(whole)
    downmix = find_downmix(path, sound, channel)
    if offset:
        seek(path, sound, offset)
    return downmix.apply(read_floats(path, sound, n))


def save_audio(path: str | os.PathLike[str], wave: Tensor | np.ndarray, sr: int, *, subtype: str | None = None) -> Path:
    """Write a wave to a sound file; the suffix of `path` determines the format.

    Parameters
    ----------
    path
        File to write. It is written under a temporary name and renamed, so a killed process leaves no partial file.
    wave
        Shape (samples,) or (channels, samples), floats, full scale [-1, 1]; higher values are clipped unless `subtype`
        is a float coding.
    sr
        Rate in Hz.
    subtype
        libsndfile's name of the coding; by default PCM_16 if the format has it, otherwise the format's default (Ogg:
        VORBIS). In PCM_16 a sample is rounded to the nearest multiple of 1/32768, so loading and saving a 16-bit file
        changes nothing.

    Returns
    -------
    The path.

    Raises
    ------
    AudioError
        If the suffix has no format, samples are not finite, or the file cannot be written.
    OptionError
        If the format does not have the subtype.
    ShapeError
        If the wave has another shape or type.
    """
    path = Path(path)
    samples = _samples_to_write(wave)
    format_ = _SUFFIX_FORMATS.get(path.suffix.lower(), path.suffix.lstrip(".").upper())
    if format_ not in soundfile.available_formats():
        raise AudioError(f"{path}: no sound format has the suffix {path.suffix!r}; use one of .wav, .flac, .ogg")
    subtypes = soundfile.available_subtypes(format_)
    if subtype is None:
        subtype = _default_subtype(path, format_)
    if subtype not in subtypes:
        raise OptionError(f"{format_} files have no subtype {subtype!r}; choose one of {', '.join(subtypes)}")
    if subtype == "PCM_16":
        samples = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)
    _write(path, samples, sr, format_, subtype)
    return path


def _default_subtype(path: Path, format_: str) -> str:
    if path.suffix.lower() == ".opus":
        return "OPUS"
    return "PCM_16" if "PCM_16" in soundfile.available_subtypes(format_) else soundfile.default_subtype(format_)


def _samples_to_write(wave: Tensor | np.ndarray) -> np.ndarray:
    """Return a wave (samples,) or (channels, samples) as (samples, channels), float32; raise if it is not finite."""
    samples = wave.detach().cpu().numpy() if isinstance(wave, Tensor) else np.asarray(wave)
    if samples.ndim not in (1, 2) or samples.shape[-1] == 0 or not np.issubdtype(samples.dtype, np.floating):
        raise ShapeError(
            f"got a wave of shape {samples.shape} and type {samples.dtype}; expected floats of shape (samples,) or "
            "(channels, samples) with at least one sample"
        )
    if not np.isfinite(samples).all():
        raise AudioError(
            "the wave has samples that are not finite; replace them first, for instance with torch.nan_to_num"
        )
    return np.ascontiguousarray(np.atleast_2d(samples).T, dtype=np.float32)


def _write(path: Path, samples: np.ndarray, sr: int, format_: str, subtype: str) -> None:
    problem = ""
    try:
        with write_file(path) as temp:
            with soundfile.SoundFile(
                temp, "w", samplerate=int(sr), channels=samples.shape[1], format=format_, subtype=subtype
            ) as sound:
                # libsndfile's Vorbis encoder keeps a whole write on the stack: minutes of sound at once crash the
                # process.
                for at in range(0, len(samples), 1 << 16):
                    sound.write(samples[at:at + (1 << 16)])
    except (soundfile.SoundFileError, OSError, TypeError) as e:
        problem = str(e)
    if problem:
        raise AudioError(f"{path}: cannot be written as {format_} {subtype} at {sr} Hz ({problem}); "
                         "check that the folder is writable and that the format supports this rate")
