"""Sound files to float32 tensors and back.

Conventions: a *wave* is a mono float32 tensor, shape (samples,), full scale [-1, 1]. Whatever is wrong with a file becomes an
`AudioError` that names the file, says what is wrong with it and what to do; an error of the decoder itself never comes through,
because libsndfile's cannot be printed by the worker processes of a data loader.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias, TypeVar

import numpy as np
import soundfile
import torch
from torch import Tensor

from fatai.io.atomic import write_file
from fatai.errors import AudioError, OptionError, ShapeError
from fatai.io.atomic import TRANSIENT_ERRORS, retry
from fatai.audio.containers import check_container, chunks, why_not_sound
from fatai.audio.waveform import resample

__all__ = [
    "AUDIO_EXTENSIONS",
    "LOUDEST",
    "RATES",
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
"""Suffixes, in lower case, of the files that a search of a folder takes for sound; `load_audio` looks at the content only."""

T = TypeVar("T")

RATES = (1_000, 1_000_000)
"""Lowest and highest rate in Hz that a file may have: a header that claims 1 Hz would make, resampled, years of a minute."""

LOUDEST = 1e12
"""Highest magnitude of a sample that is read, full scale being 1: floats may be scaled as integers, but powers of more would overflow."""

_INT16_STEP = 1 / 32768
_MOST_SAMPLES = (
    1 << 28
)  # of all channels, that are read at once, and that become of them: 1 GiB, or 100 minutes at 44.1 kHz
_HIGH_RATE = 48_000
_BLOCK = 1 << 18  # samples of all channels that are decoded at a time where nobody needs them together
_LENGTH_TELLS = frozenset({"WAV", "WAVEX", "AIFF"})  # containers whose length is compared with the file's
_PLAIN = frozenset(
    {"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "ALAW", "ULAW"}
)  # codings whose samples are finite and not packed


@dataclass(frozen=True)
class AudioInfo:
    """What the header of a sound file says; `samples` are per channel, `sr` is in Hz."""

    path: Path
    sr: int
    channels: int
    samples: int
    format: str
    subtype: str

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.samples / self.sr


def audio_info(path: str | os.PathLike[str]) -> AudioInfo:
    """Rate, channels and length of a sound file, from its header.

    No more is decoded than the last sample of a compressed file, yet a file that was cut short, or holds nothing, is an `AudioError`.
    """
    path = Path(path)

    def read() -> AudioInfo:
        with opened_sound(path) as sound:
            _reach_last_sample(path, sound)
            return AudioInfo(path, sound.samplerate, sound.channels, sound.frames, sound.format, sound.subtype)

    return _from_a_steady_disk(path, read)


def check_audio(path: str | os.PathLike[str]) -> None:
    """Raise the `AudioError` that reading the whole file, at any rate up to 48 kHz, would end with.

    What cannot be told from the header and the file's length, since samples are packed or need not be finite, is decoded, in blocks.
    """
    path = Path(path)

    def read() -> None:
        with opened_sound(path) as sound:
            _check_length(path, sound, sound.frames, max(sound.samplerate, _HIGH_RATE))
            if sound.format in _LENGTH_TELLS and sound.subtype in _PLAIN:
                return
            at_once = max(1, _BLOCK // sound.channels)
            for start in range(0, sound.frames, at_once):
                one_channel(path, read_samples(path, sound, min(at_once, sound.frames - start)))

    _from_a_steady_disk(path, read)


def _raise_if_passing(path: Path) -> None:
    """Read a file that a decoder could not, and raise if the file system fails in a way that passes."""
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


def _from_a_steady_disk(path: Path, read: Callable[[], T]) -> T:
    """What `read` returns; tried again where the file system, and not the file, was at fault."""

    def attempt() -> T:
        try:
            return read()
        except AudioError:
            # A decoder takes an error of the disk for the end of the file: only reading it without one can tell.
            _raise_if_passing(path)
            raise

    try:
        return retry(attempt)
    except AudioError:
        raise
    except OSError as e:
        problem = e.strerror or str(e)
    raise AudioError(
        f"{path}: the file system answers with errors ({problem}), several times; is the drive connected and whole?"
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
        Rate of the result in Hz; a file of another rate is resampled with soxr (quality HQ). None keeps the file's own.
    offset_s, duration_s
        Section to read, in seconds of the file; only that much is decoded. A section that runs over the end is shorter.

    Returns
    -------
    Shape (samples,), float32. Several channels are averaged. 16-bit samples are divided by 32,768, so they lie in [-1, 1);
    a float file may exceed full scale and is left as it is. A silent file is read like any other.

    Raises
    ------
    AudioError
        If the file is missing, a folder, empty, without samples, cut short, not sound, or has samples that are not finite or exceed
        `LOUDEST`; if its rate is outside `RATES`, or more would be read than fits into 1 GiB; if the section starts at or behind the end;
        if the file system failed several times.
    OptionError
        If `sr`, `offset_s` or `duration_s` is out of range.
    """
    path = Path(path)
    _check_section(sr, offset_s, duration_s)

    def read() -> tuple[int, Tensor]:
        with opened_sound(path, plain_wav=True) as sound:
            rate = sound.samplerate
            return rate, _decoded(
                path,
                sound,
                round(offset_s * rate),
                None if duration_s is None else round(duration_s * rate),
                sr or rate,
            )

    rate, wave = _from_a_steady_disk(path, read)
    return wave if sr is None or sr == rate else resample(wave, rate, sr)


def is_readable(path: str | os.PathLike[str]) -> bool:
    """Whether `load_audio` can read the whole file; decodes it to find out."""
    try:
        load_audio(path, sr=None)
    except AudioError:
        return False
    return True


def save_audio(path: str | os.PathLike[str], wave: Tensor | np.ndarray, sr: int, *, subtype: str | None = None) -> Path:
    """Write a wave to a sound file whose format follows the suffix of `path`.

    Parameters
    ----------
    wave
        Shape (samples,) or (channels, samples), full scale [-1, 1]; what exceeds it is clipped unless `subtype` holds floats.
    sr
        Rate in Hz.
    subtype
        libsndfile's name of the coding; by default PCM_16 where the format has it, otherwise the format's own (Ogg: VORBIS).
        In PCM_16 a sample is the nearest multiple of 1/32768, so that what was loaded from 16 bits is saved without any change.

    Returns
    -------
    The path. The file is written beside its name and then renamed, so a killed process leaves no half of it.
    """
    path = Path(path)
    samples = _samples_to_write(wave)
    format_ = (
        path.suffix.lstrip(".")
        .upper()
        .replace("AIF", "AIFF")
        .replace("AIFFF", "AIFF")
        .replace("OGA", "OGG")
        .replace("OPUS", "OGG")
    )
    known = soundfile.available_formats()
    if format_ not in known:
        raise AudioError(f"{path}: no sound format belongs to the suffix {path.suffix!r}; use one of .wav, .flac, .ogg")
    subtypes = soundfile.available_subtypes(format_)
    if subtype is None:
        subtype = (
            "OPUS"
            if path.suffix.lower() == ".opus"
            else "PCM_16"
            if "PCM_16" in subtypes
            else soundfile.default_subtype(format_)
        )
    if subtype not in subtypes:
        raise OptionError(f"{format_} files have no subtype {subtype!r}; choose one of {', '.join(subtypes)}")
    if subtype == "PCM_16":
        samples = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)
    _write_whole(path, samples, sr, format_, subtype)
    return path


def _samples_to_write(wave: Tensor | np.ndarray) -> np.ndarray:
    """Finite samples, shape (samples, channels), of a wave of shape (samples,) or (channels, samples)."""
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


def _write_whole(path: Path, samples: np.ndarray, sr: int, format_: str, subtype: str) -> None:
    problem = ""
    try:
        with write_file(path) as beside:
            with soundfile.SoundFile(
                beside, "w", samplerate=int(sr), channels=samples.shape[1], format=format_, subtype=subtype
            ) as sound:
                # libsndfile's Vorbis encoder keeps one write on the stack and crashes the process on minutes of sound at once.
                for at in range(0, len(samples), 1 << 16):
                    sound.write(samples[at:at + (1 << 16)])
    except (soundfile.SoundFileError, OSError, TypeError) as e:
        problem = str(e)
    if problem:
        raise AudioError(f"{path}: cannot be written as {format_} {subtype} at {sr} Hz ({problem}); "
                         "check that the folder may be written to and that the format has this rate")


def _check_section(sr: int | None, offset_s: float, duration_s: float | None) -> None:
    if sr is not None and sr <= 0:
        raise OptionError(f"sr={sr}; expected a rate in Hz above 0, or None for the file's own")
    if offset_s < 0:
        raise OptionError(f"offset_s={offset_s}; expected seconds from the start of the file, 0 or more")
    if duration_s is not None and duration_s <= 0:
        raise OptionError(f"duration_s={duration_s}; expected seconds above 0, or None for all there is")


class _PlainWav:
    """Reads a WAV file of 16-bit samples, with the attributes and methods of a `AudioFileInfo` that are used here, in half of its time."""

    format, subtype = "WAV", "PCM_16"

    def __init__(self, file: BinaryIO, start: int, size: int, fmt: bytes):
        self._file, self._start = file, start
        self.channels, self.samplerate = struct.unpack("<2xHI", fmt[:8])
        self.frames = size // (2 * self.channels)
        self.seek(0)

    @classmethod
    def of(cls, file: BinaryIO) -> _PlainWav | None:
        """Of a file that is one, whole and not empty; otherwise None."""
        size, fmt = os.fstat(file.fileno()).st_size, b""
        start = file.read(12)
        if start[:4] != b"RIFF" or start[8:] != b"WAVE":
            return None
        for name, at, claimed in chunks(file, size, "<"):
            if name == b"fmt ":
                fmt = file.read(16)
            elif name == b"data":
                channels, align, bits = struct.unpack("<2xH8xHH", fmt) if len(fmt) == 16 else (0, 0, 0)
                known = fmt[:2] == b"\1\0" and bits == 16 and align == 2 * channels > 0 and any(fmt[4:8])
                return cls(file, at, claimed, fmt) if known and align <= claimed <= size - at else None
        return None

    def seek(self, to: int) -> None:
        self._file.seek(self._start + 2 * self.channels * to)

    def read(self, samples: int, dtype: str) -> np.ndarray:
        read = np.empty((samples, self.channels)[:1 + (self.channels > 1)], "<i2")
        held = self._file.readinto(read) // (2 * self.channels)  # type: ignore[attr-defined]
        return read[:held].astype(dtype, copy=False)


_Decoder: TypeAlias = soundfile.SoundFile | _PlainWav


@contextmanager
def opened_sound(path: Path, *, plain_wav: bool = False) -> Iterator[_Decoder]:
    """The decoder of a file whose container is whole; any other file is an `AudioError`."""
    with _bytes_of(path) as file:
        if plain_wav and (plain := _PlainWav.of(file)):
            _check_rate(path, plain)
            yield plain
            return
        file.seek(0)
        check_container(path, file)
        file.seek(0)
        sound, problem = None, ""
        try:
            # By its number, since libsndfile may seek where no file has a place, and a Python file prints a traceback. A seek of the file
            # object may stay within what it holds.
            os.lseek(file.fileno(), 0, os.SEEK_SET)
            sound = soundfile.SoundFile(file if os.name == "nt" else file.fileno(), closefd=False)
        except (soundfile.SoundFileError, RuntimeError, TypeError) as e:
            problem = getattr(e, "error_string", str(e))
        # Raised outside of the except clause: an error that hangs on another one drags it through the workers' pipes.
        if sound is None:
            raise AudioError(why_not_sound(path, file, problem))
        with sound:
            if sound.frames <= 0:
                raise AudioError(f"{path}: the file has a header but no samples; leave it out or record it again")
            _check_rate(path, sound)
            yield sound


@contextmanager
def _bytes_of(path: Path) -> Iterator[BinaryIO]:
    try:
        kind = os.stat(path).st_mode
        # A pipe would be waited for, and a device never ends.
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            raise AudioError(
                f"{path}: this is no ordinary file but a device, a pipe or a socket; give the path of a sound file"
            )
        file = open(path, "rb")
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
            f"{str(path)!r}: no file can have this name, which holds a zero byte; mend the table that names it"
        ) from None
    with file:
        if os.fstat(file.fileno()).st_size == 0:
            raise AudioError(f"{path}: the file is empty (0 bytes); download or copy it again")
        yield file


def _check_rate(path: Path, sound: _Decoder) -> None:
    if not RATES[0] <= sound.samplerate <= RATES[1]:
        raise AudioError(f"{path}: its header says {sound.samplerate:,} Hz; expected {RATES[0]:,} to {RATES[1]:,}: "
                         "write it with its true rate")


def _check_length(path: Path, sound: _Decoder, samples: int, sr: int) -> None:
    """Raise if `samples` of every channel are too many to be read at once, or become too many at `sr` Hz."""
    if max(samples * sound.channels, samples * sr // sound.samplerate) > _MOST_SAMPLES:
        raise AudioError(
            f"{path}: {samples / sound.samplerate / 60:,.0f} min with {sound.channels} channels at {sound.samplerate:,} Hz are too much to "
            "be read at once; cut it, give a section (offset_s, duration_s), or use fatai-submit tag, which reads sound of any length"
        )


def _reach_last_sample(path: Path, sound: _Decoder) -> None:
    """Raise if the last sample that the header announces cannot be decoded."""
    if sound.format in _LENGTH_TELLS or sound.format == "OGG":
        return  # the length of these was compared with the file's already
    _seek(path, sound, sound.frames - 1)
    read_samples(path, sound, 1)


def _decoded(path: Path, sound: _Decoder, offset: int, samples: int | None, sr: int) -> Tensor:
    """One float32 channel of `samples` samples of `sound` from `offset`, which are to have the rate `sr` afterwards."""
    left = sound.frames - offset
    if left <= 0:
        raise AudioError(f"{path}: it is {sound.frames / sound.samplerate:.3f} s long; "
                         f"the section was to start at {offset / sound.samplerate:.3f} s: start earlier")
    wanted = left if samples is None else min(left, max(1, samples))
    _check_length(path, sound, wanted, sr)
    if offset:
        _seek(path, sound, offset)
    return one_channel(path, read_samples(path, sound, wanted))


def one_channel(path: Path | str, read: np.ndarray) -> Tensor:
    """float32 samples of one channel of what was read, shape (samples,) or (samples, channels); `path` is named if they are not finite."""
    # 16-bit samples are read as they are: the conversion below is exact and several times faster than libsndfile's.
    wave = torch.from_numpy(read)
    if read.dtype == np.int16:
        wave = wave.float().mul_(_INT16_STEP)
    if wave.ndim > 1:
        wave = wave.mean(dim=1)
    if read.dtype != np.int16 and len(wave):
        low, high = wave.aminmax()
        if not (low >= -LOUDEST and high <= LOUDEST):  # written so that NaN is refused too
            odd = "far beyond full scale" if torch.isfinite(wave).all() else "that are not finite numbers"
            raise AudioError(f"{path}: the file has samples {odd}; write it again from its source")
    return wave


def _seek(path: Path, sound: _Decoder, to: int) -> None:
    problem = False
    try:
        sound.seek(to)
    except (soundfile.SoundFileError, RuntimeError):
        problem = True
    if problem:
        raise AudioError(_cut_short(path, sound))


def read_samples(path: Path, sound: _Decoder, samples: int) -> np.ndarray:
    """`samples` samples as int16 where the file holds these, as float32 otherwise; shape (samples,) or (samples, channels)."""
    read = None
    try:
        read = sound.read(samples, dtype="int16" if sound.subtype == "PCM_16" else "float32")
    except (soundfile.SoundFileError, RuntimeError):
        pass
    if read is None or len(read) < samples:
        raise AudioError(_cut_short(path, sound))
    return read


def _cut_short(path: Path, sound: _Decoder) -> str:
    return (
        f"{path}: the file is cut short or damaged (its header promises {sound.frames:,} samples, not all can be decoded); "
        "download or copy it again"
    )
