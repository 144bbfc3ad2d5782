"""What the first and the last bytes of a sound file tell without a decoder: whether it is whole, and what it is if it is no sound."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fatai.errors import AudioError

__all__ = ["check_container", "chunks", "why_not_sound"]

_OGG_TAIL = (
    1 << 17
)  # a page is at most 65,307 bytes, so the last whole one always starts within this many bytes of the end
_UNKNOWN_SIZE = 0xFFFFFFFF  # what a recorder that writes to a pipe puts where it cannot go back to fill in the size
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
    """Raise if the file ends before its container says so; libsndfile itself reads what there is and keeps silent."""
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
    """What a RIFF or AIFF file of `size` bytes lacks, reading from its 12th byte; empty if nothing."""
    for name, start, claimed in chunks(file, size, order):
        held = size - start
        if name == wanted:
            return (
                f"its header promises {claimed:,} bytes of sound, {held:,} are there"
                if _UNKNOWN_SIZE > claimed > held
                else ""
            )
    return f"it ends inside its header, after {size:,} bytes"


def chunks(file: BinaryIO, size: int, order: str) -> Iterator[tuple[bytes, int, int]]:
    """Name, first byte and promised length of the chunks of a RIFF ("<") or AIFF (">") file of `size` bytes; `file` is at that byte."""
    start = 20
    while start <= size:
        file.seek(start - 8)
        name, claimed = struct.unpack(f"{order}4sI", file.read(8))
        yield name, start, claimed
        start += claimed + claimed % 2 + 8


def _missing_from_ogg(file: BinaryIO, size: int) -> str:
    """What an Ogg file of `size` bytes lacks; empty if its last page is whole and marked as the last."""
    file.seek(max(0, size - _OGG_TAIL))
    tail = file.read()
    at = tail.rfind(b"OggS")
    segments = tail[at + 27:at + 27 + tail[at + 26]] if at + 27 <= len(tail) else b""
    if at + 27 > len(tail) or len(segments) < tail[at + 26] or at + 27 + len(segments) + sum(segments) > len(tail):
        return "its last Ogg page is not whole"
    return "" if tail[at + 5] & 4 else "the last page of its Ogg stream is not there"


def why_not_sound(path: Path, file: BinaryIO, problem: str) -> str:
    """Sentence on a file that libsndfile refused with `problem`."""
    file.seek(0)
    start = file.read(512)
    for mark, thing in _NOT_SOUND.items():
        if start.lower().startswith(mark.lower()):
            return f"{path}: this is {thing}, not sound; put the sound file itself there"
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
