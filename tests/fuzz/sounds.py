"""Damaged sounds made of real clips: truncated, corrupted, mislabelled, badly named, or no sounds at all."""

from __future__ import annotations

import io
import os
import random
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

__all__ = ["Damaged", "damaged_sounds", "create"]

# Format, subtype, rate, name, and how many bytes from the start count as header.
_CONTAINERS = [
    ("WAV", "PCM_16", 44100, "wav", 60), ("WAV", "PCM_24", 44100, "wav", 72), ("WAV", "FLOAT", 44100, "wav", 84),
    ("WAV", "ALAW", 44100, "wav", 62), ("AIFF", "PCM_16", 44100, "aiff", 72), ("AU", "PCM_16", 44100, "au", 32),
    ("CAF", "PCM_16", 44100, "caf", 96), ("W64", "PCM_16", 44100, "w64", 132), ("RF64", "PCM_16", 44100, "rf64", 108),
    ("FLAC", "PCM_16", 44100, "flac", 110), ("OGG", "VORBIS", 44100, "ogg", 130), ("OGG", "OPUS", 48000, "opus", 110),
    ("MP3", "MPEG_LAYER_III", 44100, "mp3", 80),
]
_FLIPS = 24
_SECONDS = 0.25
_TEN_HOURS_S = 36_000


class Damaged(NamedTuple):
    """A damaged file: kind of damage, name in bytes, and content or a function that creates it at a path."""

    kind: str
    name: bytes
    content: bytes | Callable[[str], None]


def damaged_sounds(clips: list[Path], seed: int = 2019) -> Iterator[Damaged]:
    """Yield every damaged file, each name once; deterministic except for the serial numbers of Ogg streams."""
    draw = random.Random(seed)
    for number, (format_, subtype, sr, suffix, header) in enumerate(_CONTAINERS):
        whole = encoded(_samples(clips[number % len(clips)], sr), sr, format_, subtype)
        stem = f"{format_}_{subtype}".lower()
        for length in range(min(header, len(whole))):
            yield Damaged("cut in the header", f"{stem}_head{length:03d}.{suffix}".encode(), whole[:length])
        for tenth in range(1, 10):
            yield Damaged("cut in the sound", f"{stem}_body{tenth}.{suffix}".encode(), whole[:len(whole) * tenth // 10])
        yield Damaged("cut in the sound", f"{stem}_last.{suffix}".encode(), whole[:-1])
        for flip in range(_FLIPS):
            # Half of them where they change what is promised, half where they change what is heard.
            bit = draw.randrange(8 * (header if flip % 2 else len(whole)))
            broken = bytearray(whole)
            broken[bit // 8] ^= 1 << bit % 8
            yield Damaged("a flipped bit", f"{stem}_flip{flip:02d}.{suffix}".encode(), bytes(broken))
        yield Damaged(
            "a hole",
            f"{stem}_hole.{suffix}".encode(),
            whole[: len(whole) // 2] + bytes(2000) + whole[len(whole) // 2 + 2000 :],
        )
        yield Damaged("something behind it", f"{stem}_tail.{suffix}".encode(), whole + b"\xff" * 997)
    samples = _samples(clips[0], 44100)
    yield from _odd_headers(samples)
    yield from _odd_values(samples)
    yield from _odd_names(encoded(samples, 44100, "WAV", "PCM_16"))
    yield from _not_sound()
    yield from _not_files()


def encoded(samples: np.ndarray, sr: int, format_: str, subtype: str) -> bytes:
    """The bytes of a sound file of `samples`, shape (samples,) or (samples, channels)."""
    file = io.BytesIO()
    soundfile.write(file, samples, sr, format=format_, subtype=subtype)
    return file.getvalue()


def _samples(clip: Path, sr: int) -> np.ndarray:
    return soundfile.read(clip, dtype="float32", frames=round(_SECONDS * sr), always_2d=True)[0][:, 0]


def wav(
    data: bytes, *, tag: int = 1, channels: int = 1, sr: int = 44100, bits: int = 16, align: int | None = None,
    riff_size: int | None = None, fmt_size: int = 16, data_size: int | None = None, before: bytes = b"",
) -> bytes:
    """A WAV file whose every field says what it is told to."""
    align = channels * bits // 8 if align is None else align
    fmt = struct.pack("<HHIIHH", tag, channels % 65536, sr, sr * align % 2**32, align % 65536, bits)
    body = b"WAVE" + before + b"fmt " + struct.pack("<I", fmt_size) + fmt + b"data"
    body += struct.pack("<I", len(data) if data_size is None else data_size) + data
    return b"RIFF" + struct.pack("<I", len(body) if riff_size is None else riff_size) + body


def _odd_headers(samples: np.ndarray) -> Iterator[Damaged]:
    data = (samples * 32767).astype("<i2").tobytes()

    def odd(kind: str, what: str, **fields: int) -> Damaged:
        return Damaged(kind, f"wav_{what}.wav".encode(), wav(data, **fields))

    for size in (0, 1, 3, len(data) - 1, len(data) + 1, len(data) + 2, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1):
        yield odd("a wrong size", f"data_size_{size}", data_size=size)
        yield odd("a wrong size", f"riff_size_{size}", riff_size=size)
        yield odd("a wrong size", f"fmt_size_{size}", fmt_size=size)
    for sr in (0, 1, 2, 7, 100, 999, 1_000_001, 2_822_400, 2**31 - 1, 2**31, 2**32 - 1):
        yield odd("an odd rate", f"rate_{sr}", sr=sr)
        yield Damaged(
            "an odd rate", f"float_rate_{sr}.wav".encode(), wav(samples.astype("<f4").tobytes(), tag=3, bits=32, sr=sr)
        )
    for channels in (0, 2, 64, 255, 1024, 1025, 32768, 65535):
        yield odd("odd channels", f"channels_{channels}", channels=channels)
    for bits in (0, 1, 7, 8, 12, 24, 32, 64, 255, 65535):
        yield odd("odd bits", f"bits_{bits}", bits=bits)
    for align in (0, 1, 3, 65535):
        yield odd("odd bits", f"align_{align}", align=align)
    for tag in (0, 2, 3, 6, 7, 17, 49, 80, 85, 0xFFFE, 0xFFFF):
        yield odd("an odd coding", f"tag_{tag}", tag=tag)
    for number, chunk in enumerate(
        (b"JUNK\xff\xff\xff\xff", b"JUNK\xf8\xff\xff\xff", b"LIST\0\0\0\0" * 3000, b"\0" * 64, b"fmt \0\0\0\0")
    ):
        yield Damaged("odd chunks", f"wav_chunk_{number}.wav".encode(), wav(data, before=chunk))


def _odd_values(samples: np.ndarray) -> Iterator[Damaged]:
    values = {"nan": np.nan, "inf": np.inf, "minus_inf": -np.inf, "huge": 3e38, "loud": 1e6, "tiny": 1e-42}
    for name, value in values.items():
        for where, part in (("first", slice(0, 1)), ("last", slice(-1, None)), ("all", slice(None))):
            spoilt = samples.copy()
            spoilt[part] = value
            for format_, suffix in (("WAV", "wav"), ("AIFF", "aiff"), ("CAF", "caf")):
                whole = encoded(spoilt, 44100, format_, "FLOAT")
                yield Damaged("odd values", f"{format_.lower()}_{name}_{where}.{suffix}".encode(), whole)
    yield Damaged("odd values", b"zeros.wav", encoded(np.zeros(11025, np.float32), 44100, "WAV", "PCM_16"))
    for n in (0, 1, 2, 3):
        for format_, subtype, suffix in (
            ("WAV", "PCM_16", "wav"),
            ("WAV", "FLOAT", "wav"),
            ("FLAC", "PCM_16", "flac"),
            ("OGG", "VORBIS", "ogg"),
            ("AIFF", "PCM_16", "aiff"),
            ("MP3", "MPEG_LAYER_III", "mp3"),
        ):
            whole = encoded(samples[:n], 44100, format_, subtype)
            yield Damaged("hardly any sample", f"{format_}_{subtype}_{n}_samples.{suffix}".lower().encode(), whole)
    many = np.tile(samples[:, None], 64)
    yield Damaged("many channels", b"channels_64.wav", encoded(many, 44100, "WAV", "PCM_16"))
    yield Damaged("many channels", b"channels_8.flac", encoded(many[:, :8], 44100, "FLAC", "PCM_24"))
    yield Damaged(
        "many channels", b"channels_255.ogg", encoded(np.tile(samples[:2000, None], 255), 44100, "OGG", "VORBIS")
    )
    for subtype in ("PCM_U8", "PCM_24", "PCM_32", "DOUBLE", "ALAW", "ULAW", "IMA_ADPCM", "MS_ADPCM", "GSM610"):
        yield Damaged("an odd coding", f"coded_{subtype}.wav".lower().encode(), encoded(samples, 8000, "WAV", subtype))
    hour = 44100 * 3600
    yield Damaged("ten hours", b"claims_ten_hours.wav", wav(bytes(2000), data_size=2 * 10 * hour % 2**32))
    yield Damaged("ten hours", b"claims_ten_hours.w64", encoded(samples, 44100, "W64", "PCM_16").replace(
        struct.pack("<Q", 2 * len(samples) + 24), struct.pack("<Q", 20 * hour + 24)))
    size = 2 * 1000 * _TEN_HOURS_S
    yield Damaged("ten hours", b"sparse_ten_hours.wav", _sparse(wav(b"", sr=1000, data_size=size), size))
    yield Damaged("ten hours", b"packed_ten_hours.flac", _silent_flac(1000, _TEN_HOURS_S))


def _sparse(header: bytes, size: int) -> Callable[[str], None]:
    def make(path: str) -> None:
        with open(path, "wb") as file:
            file.write(header)
            file.truncate(len(header) + size)

    return make


def _silent_flac(sr: int, seconds: int) -> Callable[[str], None]:
    def make(path: str) -> None:
        with soundfile.SoundFile(path, "w", sr, 1, "PCM_16", format="FLAC") as file:
            for _ in range(0, seconds, 600):
                file.write(np.zeros(600 * sr, np.int16))

    return make


def _odd_names(whole: bytes) -> Iterator[Damaged]:
    names = [
        b"caf\xe9.wav",
        b"\xff\xfe.wav",
        b"\xed\xa0\x80.wav",
        b"new\nline.wav",
        b"tab\there.wav",
        b"quo\"te.wav",
        b"com,ma.wav",
        b"semi;colon.wav",
        b"=cmd|' !A1.wav",
        b"-rf.wav",
        b"--help.wav",
        b"%s%n.wav",
        b"$(touch x).wav",
        b"`touch x`.wav",
        b" outer .wav",
        b"back\\slash.wav",
        b"\x1b[31mred.wav",
        b"\xe2\x80\xaegnp.wav",
        "\N{GRINNING FACE}.wav".encode(),
        b"a" * 251 + b".wav",
        b"UPPER.WAV",
        b"two.dots.wav",
        b"con.wav",
        b"\xcc\x81.wav",
        b"bell\x07.wav",
        b"[glob]*?.wav",
        b"{0.__class__}.wav",
        b"<b>tag.wav",
    ]
    for name in names:
        yield Damaged("an odd name", name, whole)
        yield Damaged("an odd name", name[-250:].removesuffix(b".wav")[:240] + b"_cut.wav", whole[:700])
    for suffix in (b"mp3", b"ogg", b"flac", b"aiff", b"txt", b"csv", b"exe"):
        yield Damaged("a wrong suffix", b"wrong_suffix." + suffix, whole)
    yield Damaged("a wrong suffix", b"no_suffix", whole)


def _not_sound() -> Iterator[Damaged]:
    things = {
        "text": b"hello, this is not sound\n",
        "empty": b"",
        "png": b"\x89PNG\r\n\x1a\n" + bytes(99),
        "zip": b"PK\x03\x04" + bytes(200),
        "html": b"<!DOCTYPE html><html>404</html>",
        "npy": b"\x93NUMPY" + bytes(90),
        "pickle": b"\x80\x04cos\nsystem\n.",
        "nul": bytes(4096),
        "noise": random.Random(5).randbytes(5000),
        "lfs": b"version https://git-lfs.github.com/spec/v1\n",
        "elf": b"\x7fELF" + bytes(99),
        "riff_only": b"RIFF",
        "oggs_only": b"OggS",
        "flac_only": b"fLaC",
        "form_only": b"FORM",
        "id3_huge": b"ID3\x04\0\0\x7f\x7f\x7f\x7f",
        "riff_avi": b"RIFF\x10\0\0\0AVI LIST" + bytes(64),
        "oggs_many": b"OggS" * 30_000,
        "sync_many": b"\xff\xfb\x90\x64" * 5000,
    }
    for name, content in things.items():
        for suffix in ("wav", "ogg"):
            yield Damaged("not sound", f"{name}.{suffix}".encode(), content)


def _not_files() -> Iterator[Damaged]:
    def bound(path: str) -> None:
        with socket.socket(socket.AF_UNIX) as s:
            here = os.getcwd()
            os.chdir(os.path.dirname(path))  # the name of a socket has at most 107 bytes
            try:
                s.bind(os.path.basename(path))
            finally:
                os.chdir(here)

    yield Damaged("no file", b"folder.wav", os.mkdir)
    yield Damaged("no file", b"link_to_nowhere.wav", lambda path: os.symlink("nowhere.wav", path))
    yield Damaged("no file", b"link_to_itself.wav", lambda path: os.symlink("link_to_itself.wav", path))
    yield Damaged("no file", b"link_to_folder.wav", lambda path: os.symlink("/", path))
    yield Damaged("no file", b"link_to_zeros.wav", lambda path: os.symlink("/dev/zero", path))
    yield Damaged("no file", b"link_to_memory.wav", lambda path: os.symlink("/proc/self/mem", path))
    yield Damaged("no file", b"pipe.wav", os.mkfifo)
    yield Damaged("no file", b"socket.wav", bound)


def create(damaged: Damaged, folder: Path) -> None:
    """Create the file in a folder."""
    path = os.path.join(os.fsencode(folder), damaged.name)
    if callable(damaged.content):
        damaged.content(os.fsdecode(path))
    else:
        with open(path, "wb") as file:
            file.write(damaged.content)
