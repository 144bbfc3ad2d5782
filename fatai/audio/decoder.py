"""Open the decoder of a sound file, find the samples that are there, and read them.

Every problem with a file raises an `AudioError` that names the file, the problem and a remedy. The decoder's own
exceptions are never raised, because those of libsndfile cannot be pickled by the worker processes of a data loader.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

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
from fatai.audio.ffmpeg import decoded_by_ffmpeg, find_container
from fatai.audio.remote import RemoteFile
from fatai.errors import AudioError
from fatai.io.atomic import TRANSIENT_ERRORS
from fatai.io.fetch import is_url

__all__ = [
    "LENGTH_CHECKED",
    "MAX_MAGNITUDE",
    "RATES",
    "Decoder",
    "as_floats",
    "open_sound",
    "raise_if_transient",
    "read_floats",
    "read_samples",
    "seek",
]

RATES = (1_000, 1_000_000)
"""Lowest and highest rate in Hz of a file: with a header of 1 Hz, resampling would turn a minute into years."""

MAX_MAGNITUDE = 1e12
"""Highest magnitude of a sample, full scale being 1: floats may be scaled like integers, but their powers overflow."""

LENGTH_CHECKED = frozenset({"WAV", "WAVEX", "AIFF", "RF64", "W64", "AU"})
"""Containers whose number of samples libsndfile computes from the size of the file."""

_INT16_STEP = 1 / 32768
_BLOCK = 1 << 18  # samples of all channels that are decoded at once to move to a later one
_UNKNOWN_FRAMES = 1 << 62  # libsndfile's number of samples of a FLAC file that declares none is higher


@contextmanager
def open_sound(path: Path | str, *, plain_wav: bool = False) -> Iterator[Decoder]:
    """Open the decoder of a sound file.

    Parameters
    ----------
    path
        Sound file, or a URL of fsspec.
    plain_wav
        True allows the faster reader of 16-bit WAV files.

    Raises
    ------
    AudioError
        If the file is not a sound file with samples, or its rate is outside `RATES`.
    """
    if is_url(path):
        with RemoteFile(str(path)) as remote:
            try:
                with _opened(path, cast(BinaryIO, remote), plain_wav) as decoder:
                    remote.check()
                    yield decoder
            except AudioError:
                remote.check()  # what looks like a damaged file may be a broken connection
                raise
        return
    with _open_bytes(path) as file, _opened(path, file, plain_wav) as decoder:
        yield decoder


@contextmanager
def _opened(path: Path | str, file: BinaryIO, plain_wav: bool) -> Iterator[Decoder]:
    with ExitStack() as stack:
        problem = ""
        container = find_container(file)
        if container:
            local = file.local_path() if isinstance(file, RemoteFile) else Path(path)
            file, problem = stack.enter_context(decoded_by_ffmpeg(local, container))
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


class Decoder:
    """An open sound file, read up to the last sample that is there.

    Attributes
    ----------
    samplerate, channels, format, subtype
        As of `soundfile.SoundFile`.
    frames
        Number of samples per channel that are there.
    mismatch
        As in `fatai.audio.io.AudioInfo`.
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


def read_floats(path: Path | str, sound: Decoder, samples: int) -> Tensor:
    """Decode the next samples as floats, shape (samples,) or (samples, channels); errors of both steps."""
    return as_floats(path, read_samples(path, sound, samples))


def read_samples(path: Path | str, sound: Decoder, samples: int) -> np.ndarray:
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


def seek(path: Path | str, sound: Decoder, to: int) -> None:
    """Move to a sample, counted from the first; raise `AudioError` if the file is damaged before it."""
    problem = False
    try:
        sound.seek(to)
    except (soundfile.SoundFileError, RuntimeError):
        problem = True
    if problem:
        raise AudioError(_damaged(path, sound))


def _damaged(path: Path | str, sound: Decoder) -> str:
    return (
        f"{path}: the file is damaged (of {sound.frames:,} samples not all can be decoded); download or copy it again"
    )


def raise_if_transient(path: Path | str) -> None:
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


@contextmanager
def _open_bytes(path: Path | str) -> Iterator[BinaryIO]:
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


def _check_regular(path: Path | str) -> None:
    mode = os.stat(path).st_mode
    # Opening a pipe blocks, and a device has no end.
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise AudioError(f"{path}: this is a device, a pipe or a socket; give the path of a sound file")


def _open_decoder(path: Path | str, file: BinaryIO, data: SoundData | None) -> soundfile.SoundFile:
    problem = ""
    try:
        if data and data.header:
            return soundfile.SoundFile(MendedFile(file, data), closefd=False)
        if isinstance(file, RemoteFile):
            file.seek(0)
            return soundfile.SoundFile(file, closefd=False)
        # By its descriptor, since libsndfile may seek to an invalid position, where a Python file prints a traceback. A
        # seek of the file object may stay within its buffer.
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        return soundfile.SoundFile(file if os.name == "nt" else file.fileno(), closefd=False)
    except (soundfile.SoundFileError, RuntimeError, TypeError) as e:
        problem = getattr(e, "error_string", str(e))
    # Raised outside of the except clause: a chained exception would be pickled with it by the workers.
    raise AudioError(describe_non_sound(path, file, problem))


def _check_rate(path: Path | str, sound: Decoder) -> None:
    if not RATES[0] <= sound.samplerate <= RATES[1]:
        raise AudioError(f"{path}: the header declares {sound.samplerate:,} Hz; expected {RATES[0]:,} to {RATES[1]:,}: "
                         "write the file with its true rate")


class _Samples(NamedTuple):
    """Number of samples that can be decoded, its difference from the header as in `Decoder`, and where they are.

    `was_probed` is true if other decoders have moved the position of the file.
    """

    frames: int
    mismatch: str
    data: SoundData | None
    was_probed: bool = True


def _find_samples(path: Path | str, file: BinaryIO, data: SoundData | None, sound: soundfile.SoundFile) -> _Samples:
    """Find the samples of a file that a decoder has opened; opening one of Ogg takes as long as decoding seconds."""
    mismatch = data.mismatch if data else ""
    declared, format_ = sound.frames, sound.format
    if format_ == "OGG":
        position = file.seek(0, os.SEEK_CUR)  # of the decoder, which shares the descriptor
        mismatch = missing_from_ogg(file)
        file.seek(position)
    if format_ in LENGTH_CHECKED or declared <= 0 or format_ == "OGG" and not mismatch:
        return _Samples(declared, mismatch, data, was_probed=False)
    probe = _Probe(path, file)
    try:
        if declared < _UNKNOWN_FRAMES and probe.count(data, declared - 1):
            return _Samples(declared, mismatch, data)
        raise_if_transient(path)  # a decoder treats an error of the disk as the end of the file
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

    def __init__(self, path: Path | str, file: BinaryIO):
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
