"""Find truncated sound files and files that are not sound by their first and last bytes, without a decoder."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fatai.errors import AudioError

__all__ = ["check_container", "chunks", "describe_non_sound"]

# A page has at most 65,307 bytes, so the last complete one always starts within this many bytes of the end.
_OGG_TAIL = 1 << 17
_UNKNOWN_SIZE = 0xFFFFFFFF  # written by recorders to a pipe, where the size cannot be filled in afterwards
_NOT_SOUND = {
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x7fELF": "a program",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file",
    b"<!DO": "a web page",
    b"<htm": "a web page",
    b"version https://git-lfs": "a Git LFS pointer",
}


def check_container(path: Path, file: BinaryIO) -> None:
    """Raise an `AudioError` if a file is shorter than its container declares; libsndfile reads it without an error."""
    size, start = os.fstat(file.fileno()).st_size, file.read(12)
    missing = ""
    if start[:4] == b"RIFF" and start[8:] in (b"WAVE", b""):
        missing = _missing_from_chunks(file, size, b"data", "<")
    elif start[:4] == b"FORM" and start[8:] in (b"AIFF", b"AIFC", b""):
        missing = _missing_from_chunks(file, size, b"SSND", ">")
    elif start[:4] == b"OggS":
        missing = _missing_from_ogg(file, size)
    if missing:
        raise AudioError(f"{path}: the file is cut short ({missing}); download or copy it again")


def _missing_from_chunks(file: BinaryIO, size: int, wanted: bytes, order: str) -> str:
    """Describe the missing bytes of a RIFF or AIFF file positioned at its 12th byte; empty if it is complete."""
    for name, start, declared in chunks(file, size, order):
        if name == wanted:
            if _UNKNOWN_SIZE > declared > size - start:
                return f"its header declares {declared:,} bytes of sound, {size - start:,} are there"
            return ""
    return f"it ends inside its header, after {size:,} bytes"


def chunks(file: BinaryIO, size: int, order: str) -> Iterator[tuple[bytes, int, int]]:
    """Yield the chunks of a RIFF or AIFF file.

    Parameters
    ----------
    file
        Binary file; when a chunk is yielded, it is positioned at the chunk's first byte.
    size
        Size of the file in bytes.
    order
        Byte order: "<" for RIFF, ">" for AIFF.

    Yields
    ------
    Name, offset of the first byte, and declared length in bytes.
    """
    start = 20
    while start <= size:
        file.seek(start - 8)
        name, declared = struct.unpack(f"{order}4sI", file.read(8))
        yield name, start, declared
        start += declared + declared % 2 + 8


def _missing_from_ogg(file: BinaryIO, size: int) -> str:
    """Describe the missing end of an Ogg file; empty if its last page is complete and flagged as the last."""
    file.seek(max(0, size - _OGG_TAIL))
    tail = file.read()
    at = tail.rfind(b"OggS")
    segments = tail[at + 27:at + 27 + tail[at + 26]] if at + 27 <= len(tail) else b""
    if at + 27 > len(tail) or len(segments) < tail[at + 26] or at + 27 + len(segments) + sum(segments) > len(tail):
        return "its last Ogg page is incomplete"
    return "" if tail[at + 5] & 4 else "the last page of its Ogg stream is missing"


def describe_non_sound(path: Path, file: BinaryIO, problem: str) -> str:
    """Return an error message for a file that libsndfile rejected with the message `problem`."""
    file.seek(0)
    start = file.read(512)
    for signature, kind in _NOT_SOUND.items():
        if start.lower().startswith(signature.lower()):
            return f"{path}: this is {kind}, not sound; put the sound file itself there"
    if _is_text(start):
        return f"{path}: this is text ({start[:20]!r}), not sound; put the sound file itself there"
    if start[:4] in (b"RIFF", b"FORM", b"OggS", b"fLaC", b"caff", b".snd", b"RF64", b"riff"):
        return (
            f"{path}: the header is damaged or of an unknown kind ({problem}); download it again or convert it to WAV"
        )
    return (f"{path}: the file has no header of a known sound format (it starts with {start[:8]!r}); "
            "if these are raw samples, save them as WAV with their rate")


def _is_text(start: bytes) -> bool:
    try:
        return start.decode("utf-8").isprintable() or all(
            c.isprintable() or c in "\t\r\n" for c in start.decode("utf-8")
        )
    except UnicodeDecodeError:
        return False
