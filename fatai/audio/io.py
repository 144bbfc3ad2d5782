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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
    {".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".rf64", ".w64", ".wav"}
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
_BLOCK = 1 << 18  # samples of all channels per block, where they are not needed at once
# Containers whose number of samples libsndfile computes from the size of the file.
_LENGTH_CHECKED = frozenset({"WAV", "WAVEX", "AIFF", "RF64", "W64", "AU"})
_UNKNOWN_FRAMES = 1 << 62  # libsndfile's number of samples of a FLAC file that declares none is higher
# Codings whose samples are always finite and not compressed.
_PLAIN = frozenset({"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "ALAW", "ULAW"})
_mismatches_warned: set[str] = set()  # names of files
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
        libsndfile's names of container and coding: "WAV", "PCM_16".
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
    """Read rate, channels and length of a sound file.

    The length is that of the samples which are there. At most the last sample is decoded, of a compressed file, unless
    its end is missing.

    Raises
    ------
    AudioError
        If the file cannot be read or has no samples.
    """
    path = Path(path)

    def read() -> AudioInfo:
        with open_sound(path) as sound:
            return AudioInfo(
                path, sound.samplerate, sound.channels, sound.frames, sound.format, sound.subtype, sound.mismatch
            )

    return _retry_reading(path, read)


def check_audio(path: str | os.PathLike[str]) -> None:
    """Raise the `AudioError` that loading the whole file, at any rate up to 48 kHz, would raise.

    Compressed samples, and floats, which may not be finite, are decoded in blocks; for other files the header and the
    size are enough.
    """
    path = Path(path)

    def read() -> None:
        with open_sound(path) as sound:
            _check_length(path, sound, sound.frames, max(sound.samplerate, _HIGH_RATE))
            warn_of_mismatch(path, sound)
            if sound.format in _LENGTH_CHECKED and sound.subtype in _PLAIN:
                return
            n = max(1, _BLOCK // sound.channels)
            for start in range(0, sound.frames, n):
                to_mono(path, read_samples(path, sound, min(n, sound.frames - start)))

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
    path: str | os.PathLike[str], sr: int | None = 44100, *, offset_s: float = 0.0, duration_s: float | None = None
) -> Tensor:
    """Read a sound file, or a section of it, as one channel.

    Parameters
    ----------
    path
        Anything that libsndfile reads: WAV, FLAC, Ogg Vorbis and Opus, MP3, AIFF and more.
    sr
        Rate of the result in Hz; a file of another rate is resampled with soxr (quality HQ). None keeps the rate of the
        file.
    offset_s, duration_s
        Section to read, in seconds of the file; only that section is decoded. It ends with the file.

    Returns
    -------
    Shape (samples,), float32. Several channels are averaged. 16-bit samples are divided by 32,768, so they lie in [-1,
    1); a float file may exceed full scale and is not scaled. Of a file whose end is missing, or whose header declares a
    wrong length, all that is there is read, with one warning for each file.

    Raises
    ------
    AudioError
        If the file is missing, a folder, empty, without samples, damaged, not sound, or has samples that are not finite
        or exceed `MAX_MAGNITUDE`; if its rate is outside `RATES`, or the result would exceed 1 GiB; if the section
        starts at or after the end; if the file system failed several times.
    OptionError
        If `sr`, `offset_s` or `duration_s` is out of range.
    """
    path = Path(path)
    _check_section(sr, offset_s, duration_s)

    def read() -> tuple[int, Tensor]:
        with open_sound(path, plain_wav=True) as sound:
            warn_of_mismatch(path, sound)
            rate = sound.samplerate
            samples = None if duration_s is None else round(duration_s * rate)
            return rate, _decode(path, sound, round(offset_s * rate), samples, sr or rate)

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
        """Move to a sample, counted from the first."""
        self._source.seek(to)
        self._at = to

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
    with _open_bytes(path) as file:
        data = find_sound_data(path, file)
        if plain_wav and data and (plain := _PlainWav.open(file, data)):
            decoder = Decoder(plain, plain.frames, data.mismatch)
            _check_rate(path, decoder)
            yield decoder
            return
        there = _find_samples(path, file, data)
        if there.frames <= 0:
            problem = "has a header but no samples; leave it out or record it again"
            if there.mismatch:
                problem = f"is cut short ({there.mismatch}), and no sample is left; download or copy it again"
            raise AudioError(f"{path}: the file {problem}")
        with _open_decoder(path, file, there.data) as sound:
            decoder = Decoder(sound, there.frames, there.mismatch)
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


class _Samples(NamedTuple):
    """Number of samples that can be decoded, its difference from the header as in `AudioInfo`, and where they are."""

    frames: int
    mismatch: str
    data: SoundData | None


def _find_samples(path: Path, file: BinaryIO, data: SoundData | None) -> _Samples:
    mismatch = data.mismatch if data else ""
    with _open_decoder(path, file, data) as sound:
        declared, format_ = sound.frames, sound.format
    if format_ == "OGG":
        mismatch = missing_from_ogg(file)
    if format_ in _LENGTH_CHECKED or declared <= 0 or format_ == "OGG" and not mismatch:
        return _Samples(declared, mismatch, data)
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


def _decode(path: Path, sound: Decoder, offset: int, samples: int | None, sr: int) -> Tensor:
    """Return `samples` samples from `offset` on as a mono wave (n,); raise if they are too many at the rate `sr`."""
    available = sound.frames - offset
    if available <= 0:
        raise AudioError(f"{path}: the file is {sound.frames / sound.samplerate:.3f} s long, "
                         f"but the section starts at {offset / sound.samplerate:.3f} s; start earlier")
    n = available if samples is None else min(available, max(1, samples))
    _check_length(path, sound, n, sr)
    if offset:
        _seek(path, sound, offset)
    return to_mono(path, read_samples(path, sound, n))


def to_mono(path: Path | str, samples: np.ndarray) -> Tensor:
    """Average the channels of decoded samples.

    Parameters
    ----------
    path
        Name of the sound in error messages.
    samples
        Shape (samples,) or (samples, channels), int16 or float32.

    Returns
    -------
    Shape (samples,), float32; 16-bit samples are divided by 32,768.

    Raises
    ------
    AudioError
        If a sample is not finite or exceeds `MAX_MAGNITUDE`.
    """
    # 16-bit samples are read as they are: this conversion is exact and several times faster than libsndfile's.
    wave = torch.from_numpy(samples)
    if samples.dtype == np.int16:
        wave = wave.float().mul_(_INT16_STEP)
    if wave.ndim > 1:
        wave = wave.mean(dim=1)
    if samples.dtype != np.int16 and len(wave):
        low, high = wave.aminmax()
        if not (low >= -MAX_MAGNITUDE and high <= MAX_MAGNITUDE):  # also True for NaN
            problem = "far beyond full scale" if torch.isfinite(wave).all() else "that are not finite numbers"
            raise AudioError(f"{path}: the file has samples {problem}; write it again from its source")
    return wave


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
