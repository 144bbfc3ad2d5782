"""Load sound files as float32 tensors, and save them.

Conventions: a *wave* is a mono float32 tensor, shape (samples,), full scale [-1, 1]. Every problem with a file raises
an `AudioError` that names the file, the problem and a remedy. The decoder's own exceptions are never raised, because
those of libsndfile cannot be pickled by the worker processes of a data loader.
"""

from __future__ import annotations

import os
import stat
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
import soundfile
import torch
from torch import Tensor

from fatai.audio.containers import (
    MendedFile,
    SoundData,
    describe_non_sound,
    find_sound_data,
    flac_ends,
    missing_from_ogg,
)
from fatai.audio.downmix import ChannelLevels, Downmix, check_channel
from fatai.audio.ffmpeg import decoded_by_ffmpeg, find_container
from fatai.audio.segments import split_segment
from fatai.audio.waveform import resample
from fatai.errors import AudioError, OptionError, ShapeError
from fatai.io.atomic import TRANSIENT_ERRORS, retry, write_file

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

RATES = (1_000, 1_000_000)
"""Lowest and highest rate in Hz of a file: with a header of 1 Hz, resampling would turn a minute into years."""

MAX_MAGNITUDE = 1e12
"""Highest magnitude of a sample, full scale being 1: floats may be scaled like integers, but their powers overflow."""

_INT16_STEP = 1 / 32768
# Of all channels, read at once, before or after resampling: 1 GiB, or 100 minutes at 44.1 kHz.
_MAX_SAMPLES = 1 << 28
_HIGH_RATE = 48_000
_LOW_RATE = 4_000  # below it even speech is cut off
_BLOCK = 1 << 18  # samples of all channels per block, where they are not needed at once
# Containers whose number of samples libsndfile computes from the size of the file.
_LENGTH_CHECKED = frozenset({"WAV", "WAVEX", "AIFF", "RF64", "W64", "AU"})
_UNKNOWN_FRAMES = 1 << 62  # libsndfile's number of samples of a FLAC file that declares none is higher
# Codings whose samples are always finite and not compressed.
_PLAIN = frozenset({"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "ALAW", "ULAW"})
_FLOATS = frozenset({"FLOAT", "DOUBLE"})
# Bits for each sample of codings whose noise may change tags, by what the coding is called.
_COARSE = {
    "ALAW": ("A-law", 8), "ULAW": ("mu-law", 8), "IMA_ADPCM": ("IMA ADPCM", 4), "MS_ADPCM": ("MS ADPCM", 4),
    "VOX_ADPCM": ("VOX ADPCM", 4), "NMS_ADPCM_16": ("NMS ADPCM", 2), "NMS_ADPCM_24": ("NMS ADPCM", 3),
    "NMS_ADPCM_32": ("NMS ADPCM", 4), "G721_32": ("G.721", 4), "G723_24": ("G.723", 3), "G723_40": ("G.723", 5),
    "GSM610": ("GSM 06.10", 2), "DPCM_8": ("DPCM", 8),
}
_EIGHT_BITS_DB = -53  # the power of an error that is uniform within a step of 1/128
_STRETCHES = 16  # of _BLOCK values each, by which the channels of a long file are measured
_mismatches_warned: set[str] = set()  # names of files
_notices_given: set[tuple[str, str]] = set()  # paths and notices
_downmixes: dict[tuple[object, ...], Downmix] = {}  # by path, identity of the file, and channel
_MAX_REMEMBERED = 1 << 16  # files and notices
_SUFFIX_FORMATS = {".aif": "AIFF", ".oga": "OGG", ".opus": "OGG"}  # where it is not the suffix in capitals


@dataclass(frozen=True)
class AudioInfo:
    """The header of a sound file.

    Attributes
    ----------
    path
        The file.
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

    path: Path
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
    name, segment = Path(path), split_segment(path)
    file = Path(segment.path)

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
    path = Path(path)

    def read() -> None:
        with open_sound(path) as sound:
            _check_length(path, sound, sound.frames, max(sound.samplerate, _HIGH_RATE))
            warn_of_mismatch(path, sound)
            warn_of_quality(path, sound, _HIGH_RATE)
            if sound.format in _LENGTH_CHECKED and sound.subtype in _PLAIN:
                return
            n = max(1, _BLOCK // sound.channels)
            for start in range(0, sound.frames, n):
                read_floats(path, sound, min(n, sound.frames - start))

    _retry_reading(path, read)


def _raise_if_transient(path: Path) -> None:
    """Read the bytes of a file that a decoder rejected; raise an `OSError` if the file system has a transient error."""
    try:
        if os.path.isfile(path):
            with open(path, "rb") as file:
                while file.read(1 << 20):
                    pass
    except OSError as e:
        if e.errno in TRANSIENT_ERRORS:
            raise
    except ValueError:
        pass


def _retry_reading(path: Path, read: Callable[[], T]) -> T:
    """Return the result of `read`; repeat it after an error of the file system, not of the file."""

    def attempt() -> T:
        try:
            return read()
        except AudioError:
            # A decoder treats an error of the disk as the end of the file; only reading the bytes shows the difference.
            _raise_if_transient(path)
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
        within which the section lies.
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
        or exceed `MAX_MAGNITUDE`; if its rate is outside `RATES`, or the result would exceed 1 GiB; if the section
        starts at or after the end; if it has fewer channels than `channel`; if the file system failed several times.
    OptionError
        If `sr`, `offset_s`, `duration_s` or `channel` is out of range.
    """
    segment = split_segment(path)
    path = Path(segment.path)
    _check_section(sr, offset_s, duration_s)
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


def _check_section(sr: int | None, offset_s: float, duration_s: float | None) -> None:
    if sr is not None and sr <= 0:
        raise OptionError(f"sr={sr}; expected a rate in Hz above 0, or None for that of the file")
    if offset_s < 0:
        raise OptionError(f"offset_s={offset_s}; expected seconds from the start of the file, 0 or more")
    if duration_s is not None and duration_s <= 0:
        raise OptionError(f"duration_s={duration_s}; expected seconds above 0, or None for all there is")


class _PlainWav:
    """Reader of 16-bit WAV files, twice as fast as `soundfile.SoundFile`, with the attributes that are used here."""

    format, subtype = "WAV", "PCM_16"

    def __init__(self, file: BinaryIO, data: SoundData):
        self._file, self._start = file, data.start
        self.channels, self.samplerate = struct.unpack("<2xHI", data.fmt[:8])
        self.frames = data.length // (2 * self.channels)
        self.seek(0)

    @classmethod
    def open(cls, file: BinaryIO, data: SoundData) -> _PlainWav | None:
        """Return a reader if the file is a 16-bit WAV file with samples, otherwise None."""
        channels, align, bits = struct.unpack("<2xH8xHH", data.fmt[:16]) if len(data.fmt) >= 16 else (0, 0, 0)
        known = data.fmt[:2] == b"\1\0" and bits == 16 and align == 2 * channels > 0 and any(data.fmt[4:8])
        return cls(file, data) if known and align <= data.length else None

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, to: int) -> None:
        """Move to a sample, counted from the first."""
        self._file.seek(self._start + 2 * self.channels * to)

    def read(self, samples: int, dtype: str) -> np.ndarray:
        """Read at most `samples` samples, shape (n,) or (n, channels)."""
        buffer = np.empty((samples, self.channels)[:1 + (self.channels > 1)], "<i2")
        n = self._file.readinto(buffer) // (2 * self.channels)  # type: ignore[attr-defined]
        return buffer[:n].astype(dtype, copy=False)


class Decoder:
    """An open sound file, read up to the last sample that is there.

    Attributes
    ----------
    samplerate, channels, format, subtype
        As of `soundfile.SoundFile`.
    frames
        Number of samples per channel that are there.
    mismatch
        As in `AudioInfo`.
    """

    def __init__(self, source: soundfile.SoundFile | _PlainWav, frames: int, mismatch: str):
        self._source, self.frames, self.mismatch, self._at = source, frames, mismatch, 0
        self.samplerate, self.channels = source.samplerate, source.channels
        self.format, self.subtype = source.format, source.subtype

    def seek(self, to: int) -> None:
        """Move to a sample, counted from the first; codings without a seek (GSM, G.721) are decoded up to there."""
        if self._source.seekable():
            self._source.seek(to)
            self._at = to
        while self._at < to and len(self.read(min(_BLOCK, to - self._at), dtype="float32")):
            pass

    def read(self, samples: int, dtype: str) -> np.ndarray:
        """Read at most `samples` samples, shape (n,) or (n, channels)."""
        decoded = self._source.read(min(samples, self.frames - self._at), dtype=dtype)
        self._at += len(decoded)
        return decoded


@contextmanager
def open_sound(path: Path, *, plain_wav: bool = False) -> Iterator[Decoder]:
    """Open the decoder of a sound file.

    Parameters
    ----------
    path
        Sound file.
    plain_wav
        True allows the faster reader of 16-bit WAV files.

    Raises
    ------
    AudioError
        If the file is not a sound file with samples, or its rate is outside `RATES`.
    """
    with ExitStack() as stack:
        file, problem = stack.enter_context(_open_bytes(path)), ""
        container = find_container(file)
        if container:
            file, problem = stack.enter_context(decoded_by_ffmpeg(path, container))
        data = find_sound_data(path, file)
        if plain_wav and data and (plain := _PlainWav.open(file, data)):
            decoder = Decoder(plain, plain.frames, data.mismatch)
            _check_rate(path, decoder)
            yield decoder
            return
        sound = stack.enter_context(_open_decoder(path, file, data))
        there = _find_samples(path, file, data, sound)
        if there.frames <= 0:
            reason = "has a header but no samples; leave it out or record it again"
            if there.mismatch:
                reason = f"is cut short ({there.mismatch}), and no sample is left; download or copy it again"
            raise AudioError(f"{path}: the file {reason}")
        if there.was_probed:
            sound.close()
            sound = stack.enter_context(_open_decoder(path, file, there.data))
        decoder = Decoder(sound, there.frames, problem or there.mismatch)
        if container:
            decoder.format = container.name
        _check_rate(path, decoder)
        yield decoder


def warn_of_mismatch(path: Path, sound: Decoder, *, name: str | None = None) -> None:
    """Warn, once for each file, if its header declares another length than it has; `name` is shown for the path."""
    if sound.mismatch and str(path) not in _mismatches_warned:
        _mismatches_warned.add(str(path))
        warnings.warn(
            f"{name or path}: read to its end at {sound.frames / sound.samplerate:.3f} s; the end of the sound is "
            f"missing, or the length in the header is wrong ({sound.mismatch}): if it should be longer, download or "
            "copy it again",
            stacklevel=3,
        )


def warn_of_quality(path: Path, sound: Decoder, sr: int | None, *, name: str | None = None) -> None:
    """Warn of a low rate, once for each file, and of a coarse coding, once for each folder of such files.

    Parameters
    ----------
    path, sound
        A file and its decoder.
    sr
        Rate in Hz to which it is resampled; None is its own.
    name
        Shown for the path.
    """
    rate = sound.samplerate
    if rate < _LOW_RATE <= (sr or rate):
        notice = f"its rate is {rate:,} Hz, so it has no sound above {rate // 2:,} Hz, which many tags need"
        _give_notices(path, [notice], name)
    if notice := coding_notice(sound.subtype):
        _give_notices(path.parent, [f"{notice}; so it is with files of this coding beside it"], name or str(path))


def coding_notice(subtype: str) -> str:
    """Return a notice on a coding, by libsndfile's name of it, whose noise may change tags; "" for others."""
    if subtype in ("PCM_U8", "PCM_S8"):
        return (
            f"coded with 8 bits for each sample: sound below their noise, {_EIGHT_BITS_DB} dB of full scale, is lost, "
            "and probabilities may differ from those of a recording with 16 bits"
        )
    if subtype not in _COARSE:
        return ""
    name, bits = _COARSE[subtype]
    return (
        f"coded as {name}, with {bits} bits for each sample: its noise may change probabilities, compared with a "
        "recording with 16 bits"
    )


class _Samples(NamedTuple):
    """Number of samples that can be decoded, its difference from the header as in `AudioInfo`, and where they are.

    `was_probed` is true if other decoders have moved the position of the file.
    """

    frames: int
    mismatch: str
    data: SoundData | None
    was_probed: bool = True


def _find_samples(path: Path, file: BinaryIO, data: SoundData | None, sound: soundfile.SoundFile) -> _Samples:
    """Find the samples of a file that a decoder has opened; opening one of Ogg takes as long as decoding seconds."""
    mismatch = data.mismatch if data else ""
    declared, format_ = sound.frames, sound.format
    if format_ == "OGG":
        position = file.seek(0, os.SEEK_CUR)  # of the decoder, which shares the descriptor
        mismatch = missing_from_ogg(file)
        file.seek(position)
    if format_ in _LENGTH_CHECKED or declared <= 0 or format_ == "OGG" and not mismatch:
        return _Samples(declared, mismatch, data, was_probed=False)
    probe = _Probe(path, file)
    try:
        if declared < _UNKNOWN_FRAMES and probe.count(data, declared - 1):
            return _Samples(declared, mismatch, data)
        _raise_if_transient(path)  # a decoder treats an error of the disk as the end of the file
        if format_ == "FLAC":
            frames, data = _flac_frames_there(probe, list(flac_ends(file)))
        else:
            frames = _frames_there(probe, data, declared)
    finally:
        probe.close()
    if declared >= _UNKNOWN_FRAMES:
        return _Samples(frames, "its header declares no length", data)
    return _Samples(frames, mismatch or f"its header declares {declared:,} samples, {frames:,} are there", data)


class _Probe:
    """Attempts to decode single samples of a file, which is opened again after each that failed."""

    def __init__(self, path: Path, file: BinaryIO):
        self._path, self._file = path, file
        self._sound: soundfile.SoundFile | None = None

    def count(self, data: SoundData | None, at: int) -> int:
        """Return 1 if the sample `at` can be decoded, otherwise 0."""
        try:
            self._sound = self._sound or _open_decoder(self._path, self._file, data)
            self._sound.seek(at)
            return len(self._sound.read(1))
        except (soundfile.SoundFileError, RuntimeError, AudioError):
            self.close()
            return 0

    def close(self) -> None:
        """Close the decoder."""
        if self._sound:
            self._sound.close()
        self._sound = None


def _flac_frames_there(probe: _Probe, ends: Sequence[SoundData]) -> tuple[int, SoundData | None]:
    """Return the number of samples, and the first of `ends` that can be decoded to its last sample."""
    for data in ends:
        probe.close()
        frames = int.from_bytes(data.header[18:], "big") & (1 << 36) - 1
        if probe.count(data, frames - 1):
            return frames, data
    return 0, None


def _frames_there(probe: _Probe, data: SoundData | None, declared: int) -> int:
    """Return the number of samples of a compressed file whose last ones cannot be decoded."""
    there, beyond = 0, 1
    while beyond < declared and probe.count(data, beyond - 1):
        there, beyond = beyond, 2 * beyond
    beyond = min(beyond, declared)
    while beyond - there > 1:
        middle = (there + beyond) // 2
        there, beyond = (middle, beyond) if probe.count(data, middle - 1) else (there, middle)
    return there


def _open_decoder(path: Path, file: BinaryIO, data: SoundData | None) -> soundfile.SoundFile:
    problem = ""
    try:
        if data and data.header:
            return soundfile.SoundFile(MendedFile(file, data), closefd=False)
        # By its descriptor, since libsndfile may seek to an invalid position, where a Python file prints a traceback. A
        # seek of the file object may stay within its buffer.
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        return soundfile.SoundFile(file if os.name == "nt" else file.fileno(), closefd=False)
    except (soundfile.SoundFileError, RuntimeError, TypeError) as e:
        problem = getattr(e, "error_string", str(e))
    # Raised outside of the except clause: a chained exception would be pickled with it by the workers.
    raise AudioError(describe_non_sound(path, file, problem))


@contextmanager
def _open_bytes(path: Path) -> Iterator[BinaryIO]:
    try:
        _check_regular(path)
        # Without a buffer, whose position would differ from the one to which a decoder moves the descriptor.
        file = open(path, "rb", buffering=0)
    except AudioError:
        raise
    except FileNotFoundError:
        raise AudioError(f"{path}: there is no such file; check the folder and the name in the table") from None
    except IsADirectoryError:
        raise AudioError(f"{path}: this is a folder; give the path of one sound file in it") from None
    except OSError as e:
        if e.errno in TRANSIENT_ERRORS:
            raise
        raise AudioError(f"{path}: the file cannot be opened ({e.strerror}); check its permissions") from None
    except ValueError:
        raise AudioError(
            f"{str(path)!r}: a file name cannot contain a zero byte; correct the table that names it"
        ) from None
    with file:
        if os.fstat(file.fileno()).st_size == 0:
            raise AudioError(f"{path}: the file is empty (0 bytes); download or copy it again")
        yield file


def _check_regular(path: Path) -> None:
    mode = os.stat(path).st_mode
    # Opening a pipe blocks, and a device has no end.
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise AudioError(f"{path}: this is a device, a pipe or a socket; give the path of a sound file")


def _check_rate(path: Path, sound: Decoder) -> None:
    if not RATES[0] <= sound.samplerate <= RATES[1]:
        raise AudioError(f"{path}: the header declares {sound.samplerate:,} Hz; expected {RATES[0]:,} to {RATES[1]:,}: "
                         "write the file with its true rate")


def _check_length(path: Path, sound: Decoder, samples: int, sr: int) -> None:
    """Raise if `samples` samples of each channel are too many to be read at once, or after resampling to `sr` Hz."""
    if max(samples * sound.channels, samples * sr // sound.samplerate) > _MAX_SAMPLES:
        raise AudioError(
            f"{path}: {samples / sound.samplerate / 60:,.0f} min with {sound.channels} channels at "
            f"{sound.samplerate:,} Hz are too much to be read at once; cut the file, give a section (offset_s, "
            "duration_s), or use fatai-submit tag, which reads sound of any length"
        )


def _decode(
    path: Path, sound: Decoder, offset: int, samples: int | None, sr: int, channel: str | int
) -> Tensor:
    """Return `samples` samples from `offset` on, as `load_audio`; raise if they are too many at the rate `sr`."""
    available = sound.frames - offset
    if available <= 0:
        raise AudioError(f"{path}: the file is {sound.frames / sound.samplerate:.3f} s long, "
                         f"but the section starts at {offset / sound.samplerate:.3f} s; start earlier")
    n = available if samples is None else min(available, max(1, samples))
    _check_length(path, sound, n, sr)
    if n == sound.frames <= _STRETCHES * _stretch(sound):
        # The whole of a short file: it is measured as it is, not read twice.
        whole = read_floats(path, sound, n)
        return _measured_downmix(path, sound, channel, [whole]).apply(whole)
    downmix = find_downmix(path, sound, channel)
    if offset:
        _seek(path, sound, offset)
    return downmix.apply(read_floats(path, sound, n))


def find_downmix(
    path: Path, sound: Decoder, channel: str | int, *, name: str | None = None, notify: bool = True
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
            start = k * n if sound.frames <= _STRETCHES * n else k * (sound.frames - n) // (_STRETCHES - 1)
            _seek(path, sound, start)
            yield read_floats(path, sound, min(n, sound.frames - start))
        _seek(path, sound, 0)

    return _measured_downmix(path, sound, channel, stretches(), name, notify)


def _stretch(sound: Decoder) -> int:
    return max(1, _BLOCK // sound.channels)


def _measured_downmix(
    path: Path, sound: Decoder, channel: str | int, blocks: Iterable[Tensor], name: str | None = None,
    notify: bool = True,
) -> Downmix:
    """Return the decision on a file by the levels of `blocks`, each (samples,) or (samples, channels), or a known one.

    Nothing is measured where the number of channels decides alone.
    """
    levels = ChannelLevels(sound.channels)
    if sound.subtype not in _FLOATS and (sound.channels == 1 or channel not in ("auto", "loudest")):
        return levels.decide(name or path, channel, floats=False)
    status = os.stat(path)
    key = (str(path), status.st_size, status.st_mtime_ns, status.st_ino, channel)
    if key not in _downmixes:
        for block in blocks:
            levels.add(block)
        if len(_downmixes) >= _MAX_REMEMBERED:
            _downmixes.clear()
        _downmixes[key] = levels.decide(name or path, channel, floats=sound.subtype in _FLOATS)
    if notify:
        _give_notices(path, _downmixes[key].notices, name)
    return _downmixes[key]


def _give_notices(path: Path, notices: Iterable[str], name: str | None = None) -> None:
    """Warn, once for each path and notice; `name` is shown for the path."""
    for notice in notices:
        if (str(path), notice) not in _notices_given:
            if len(_notices_given) >= _MAX_REMEMBERED:
                _notices_given.clear()
            _notices_given.add((str(path), notice))
            warnings.warn(f"{name or path}: {notice}", stacklevel=4)


def as_floats(path: Path | str, samples: np.ndarray) -> Tensor:
    """Return decoded samples as floats, after checking them.

    Parameters
    ----------
    path
        Name of the sound in error messages.
    samples
        Shape (samples,) or (samples, channels), int16 or float32.

    Returns
    -------
    The same shape, float32; 16-bit samples are divided by 32,768.

    Raises
    ------
    AudioError
        If a sample is not finite or exceeds `MAX_MAGNITUDE`.
    """
    # 16-bit samples are read as they are: this conversion is exact and several times faster than libsndfile's.
    floats = torch.from_numpy(samples)
    if samples.dtype == np.int16:
        return floats.float().mul_(_INT16_STEP)
    if len(floats):
        low, high = floats.aminmax()
        if not (low >= -MAX_MAGNITUDE and high <= MAX_MAGNITUDE):  # also True for NaN
            problem = "far beyond full scale" if torch.isfinite(floats).all() else "that are not finite numbers"
            raise AudioError(f"{path}: the file has samples {problem}; write it again from its source")
    return floats


def read_floats(path: Path, sound: Decoder, samples: int) -> Tensor:
    """Decode the next samples as floats, shape (samples,) or (samples, channels); errors of both steps."""
    return as_floats(path, read_samples(path, sound, samples))


def _seek(path: Path, sound: Decoder, to: int) -> None:
    problem = False
    try:
        sound.seek(to)
    except (soundfile.SoundFileError, RuntimeError):
        problem = True
    if problem:
        raise AudioError(_damaged(path, sound))


def read_samples(path: Path, sound: Decoder, samples: int) -> np.ndarray:
    """Decode the next samples.

    Returns
    -------
    Shape (samples,) or (samples, channels); int16 for a 16-bit file, otherwise float32.

    Raises
    ------
    AudioError
        If fewer samples can be decoded.
    """
    decoded = None
    try:
        decoded = sound.read(samples, dtype="int16" if sound.subtype == "PCM_16" else "float32")
    except (soundfile.SoundFileError, RuntimeError):
        pass
    if decoded is None or len(decoded) < samples:
        raise AudioError(_damaged(path, sound))
    return decoded


def _damaged(path: Path, sound: Decoder) -> str:
    return (
        f"{path}: the file is damaged (of {sound.frames:,} samples not all can be decoded); download or copy it again"
    )
