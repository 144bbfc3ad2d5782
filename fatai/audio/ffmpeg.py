"""Decode what libsndfile cannot, such as AAC, WebM and WMA, with the program `ffmpeg`, if it is on the PATH.

A file is handed over only if its first bytes are those of a container or coding of a fixed list, and the demuxer is
given: never a playlist or a script, which could name other files. Duration, bytes and time are limited, and only the
protocols `file` and `pipe` are allowed. The decoded sound is a temporary WAV file without a name.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from fatai.errors import AudioError

__all__ = [
    "FFMPEG_EXTENSIONS",
    "Container",
    "conversion_advice",
    "conversion_command",
    "decoded_by_ffmpeg",
    "ffmpeg_path",
    "find_container",
]

FFMPEG_EXTENSIONS = frozenset({
    ".3ga", ".3gp", ".aac", ".ac3", ".amr", ".ape", ".asf", ".dsf", ".m4a", ".m4b", ".mka", ".mkv", ".mov", ".mp4",
    ".mpc", ".spx", ".tta", ".weba", ".webm", ".wma", ".wv",
})
"""Suffixes, in lower case, of sound files in a folder that only ffmpeg decodes."""

_MAX_SECONDS = 24 * 3600
_MAX_BYTES = 1 << 32  # of decoded samples: 6.7 hours at 44.1 kHz in one channel
_TIMEOUT_S = 600
_PREFIXES = {
    b"\x1aE\xdf\xa3": ("Matroska or WebM", "matroska"),
    b"0&\xb2u\x8ef\xcf\x11": ("Windows Media", "asf"),
    b"#!AMR": ("AMR", "amr"),
    b"wvpk": ("WavPack", "wv"),
    b"MAC ": ("Monkey's Audio", "ape"),
    b"TTA1": ("True Audio", "tta"),
    b"MPCK": ("Musepack", "mpc8"),
    b"MP+": ("Musepack", "mpc"),
    b"\x0bw": ("AC-3", "ac3"),
    b"DSD ": ("DSD", "dsf"),
}
_MP4_BOXES = (b"ftyp", b"moov", b"wide")
# Codings that libsndfile does not have: format tags of WAV (G.726, AAC, WMA, AC-3 and others), format names of CAF.
_WAV_CODINGS = frozenset({
    0x22, 0x45, 0x64, 0x65, 0xFF, 0x160, 0x161, 0x162, 0x163, 0x1600, 0x1602, 0x2000, 0x706D, 0xA106,
})
_CAF_CODINGS = frozenset({b"aac ", b"aach", b"ima4", b"ilbc", b"opus", b"QDM2", b"MAC3", b"MAC6", b".mp3", b"ac-3"})
_CUT = re.compile(r"partial file|ended prematurely|truncat|moov atom not found|invalid data|end of file", re.IGNORECASE)


class Container(NamedTuple):
    """A container that ffmpeg reads: its name for people, and that of ffmpeg's demuxer."""

    name: str
    demuxer: str


def ffmpeg_path() -> str | None:
    """Return the absolute path of the program ffmpeg; None if it is not on the PATH."""
    found = shutil.which("ffmpeg")
    # Windows finds programs in the current folder too, which may be untrusted.
    return found if found and os.path.isabs(found) else None


def conversion_advice(path: str | os.PathLike[str]) -> str:
    """Say how to convert a file that needs ffmpeg."""
    return f"convert it, e.g. `{conversion_command(path)}`, or install ffmpeg"


def conversion_command(path: str | os.PathLike[str], suffix: str = ".wav") -> str:
    """Return the command that converts a file with ffmpeg, to be entered in its folder."""
    path = Path(path)
    return f"ffmpeg -i {shlex.quote(path.name)} {shlex.quote(path.stem + suffix)}"


def find_container(file: BinaryIO) -> Container | None:
    """Return the container of a file that libsndfile cannot decode, by its first bytes; None for all other files."""
    file.seek(0)
    start = file.read(64)
    if start[:3] == b"ID3" and len(start) >= 10:  # before AAC too
        file.seek(10 + sum((byte & 127) << 7 * k for k, byte in enumerate(reversed(start[6:10]))))
        return _aac(file.read(2))
    if start[4:8] in _MP4_BOXES:
        return Container("MPEG-4", "mov")
    for prefix, names in _PREFIXES.items():
        if start.startswith(prefix):
            return Container(*names)
    return _coding(start) or _aac(start)


def _aac(start: bytes) -> Container | None:
    # The layer of the header is 0, which MP3 never has.
    return Container("AAC", "aac") if len(start) > 1 and start[0] == 0xFF and start[1] & 0xF6 == 0xF0 else None


def _coding(start: bytes) -> Container | None:
    """Return the container if libsndfile reads it, but not the coding in it."""
    if start[:4] == b"RIFF" and start[8:16] == b"WAVEfmt " and int.from_bytes(start[20:22], "little") in _WAV_CODINGS:
        return Container(f"WAV of the coding 0x{int.from_bytes(start[20:22], 'little'):04X}", "wav")
    if start[:4] == b"caff" and start[8:12] == b"desc" and start[28:32] in _CAF_CODINGS:
        return Container(f"CAF of the coding {start[28:32].decode('latin-1')!r}", "caf")
    if start[:4] == b"OggS" and start[28:33] == b"Speex":
        return Container("Speex", "ogg")
    return None


class DecodedSound(NamedTuple):
    """A WAV file of float samples, and what ffmpeg says about a missing end; empty if it is complete."""

    file: BinaryIO
    problem: str


@contextmanager
def decoded_by_ffmpeg(path: Path, container: Container) -> Iterator[DecodedSound]:
    """Decode the first sound of a file to a temporary WAV file, which is removed at the end of the block.

    Parameters
    ----------
    path
        The file.
    container
        Its container, from `find_container`.

    Raises
    ------
    AudioError
        If ffmpeg is not on the PATH, cannot decode the file, or a limit is exceeded.
    """
    program = ffmpeg_path()
    if program is None:
        raise AudioError(f"{path}: this is {container.name}, which libsndfile cannot decode; {conversion_advice(path)}")
    with tempfile.TemporaryFile(buffering=0) as wav, tempfile.TemporaryFile() as messages:
        status = _run(path, [program, *_arguments(path, container)], wav, messages)
        messages.seek(0)
        lines = messages.read(1 << 16).decode("utf-8", "replace").strip().splitlines()
        if status or wav.seek(0, os.SEEK_END) <= 128:
            reason = lines[-1].replace(f"file:{os.path.abspath(path)}", path.name) if lines else "it has no sound"
            raise AudioError(
                f"{path}: this is {container.name}, and ffmpeg cannot decode it ({reason[:200]}); download or copy it "
                "again"
            )
        _check_limit(path, wav)
        yield DecodedSound(wav, next((line.strip()[:200] for line in lines if _CUT.search(line)), ""))


def _arguments(path: Path, container: Container) -> list[str]:
    # With "file:" before it, a name cannot be an option or an address.
    return [
        "-nostdin", "-hide_banner", "-v", "error", "-threads", "1",
        "-protocol_whitelist", "file,pipe", "-f", container.demuxer, "-i", f"file:{os.path.abspath(path)}",
        "-map", "0:a:0", "-vn", "-sn", "-dn", "-map_metadata", "-1", "-t", str(_MAX_SECONDS), "-fs", str(_MAX_BYTES),
        "-c:a", "pcm_f32le", "-f", "wav", "pipe:1",
    ]


def _run(path: Path, command: list[str], out: BinaryIO, messages: BinaryIO) -> int:
    """Run ffmpeg and return its exit status; it is killed after `_TIMEOUT_S`."""
    problem = ""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=messages, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        problem = f"did not decode it within {_TIMEOUT_S} s"
    except OSError as e:
        problem = f"cannot be started ({e.strerror})"
    if problem:
        raise AudioError(f"{path}: ffmpeg {problem}; convert the file to WAV or FLAC first")
    return done.returncode


def _check_limit(path: Path, wav: BinaryIO) -> None:
    wav.seek(0)
    header = wav.read(64)
    at = header.find(b"fmt ") + 8
    per_second = max(1, int.from_bytes(header[at + 8:at + 12], "little"))
    size = wav.seek(0, os.SEEK_END)
    if size >= min(_MAX_BYTES, per_second * _MAX_SECONDS):
        raise AudioError(
            f"{path}: {size / per_second / 3600:.1f} h are too much to be decoded by ffmpeg to a temporary file; "
            f"convert it to FLAC first, e.g. `{conversion_command(path, '.flac')}`"
        )
