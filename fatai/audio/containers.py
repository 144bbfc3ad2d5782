"""Find the samples of sound files, cut ones too, and files that are not sound, by their bytes, without a decoder."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from fatai.errors import AudioError

__all__ = [
    "MendedFile",
    "SoundData",
    "chunks",
    "describe_non_sound",
    "find_sound_data",
    "flac_ends",
    "missing_from_ogg",
]

# A page has at most 65,307 bytes, so the last complete one always starts within this many bytes of the end.
_OGG_TAIL = 1 << 17
_UNKNOWN_SIZE = 0xFFFFFFFF  # written by recorders to a pipe, where the size cannot be filled in afterwards
_UNKNOWN_SIZE_64 = 0xFFFFFFFFFFFFFFFF  # the same in CAF
_MAX_FMT = 1 << 16  # the longest chunk "fmt " in bytes, with the coefficients of an ADPCM coding
# A frame of 65,535 stereo samples of 24 bits, uncompressed, is shorter.
_FLAC_TAIL = 1 << 19
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


@dataclass(frozen=True)
class SoundData:
    """Where the encoded samples of a file are.

    Attributes
    ----------
    start, length
        Offset and number of their bytes that are in the file.
    declared
        Number of bytes that the header declares; None if it declares none.
    fmt
        Content of the chunk "fmt " of a RIFF file, otherwise empty.
    header
        Bytes to read in place of those before `start`, with the right length; empty if those of the file are right.
    """

    start: int
    length: int
    declared: int | None
    fmt: bytes = b""
    header: bytes = b""

    @property
    def mismatch(self) -> str:
        """Say how the declared length differs from the bytes that are there; empty if they agree."""
        if self.declared in (None, self.length):
            return ""
        return f"its header declares {self.declared:,} bytes of sound, {self.length:,} are there"


def find_sound_data(path: Path | str, file: BinaryIO) -> SoundData | None:
    """Find the encoded samples of a file whose header declares their length; None for other formats.

    The declared length is a hint: recorders that were stopped or wrote to a pipe leave 0 or a high number there, and 32
    bits hold the length modulo 4 GB.

    Raises
    ------
    AudioError
        If the file ends inside its header.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(12)
    if start[:4] in (b"RIFF", b"RF64") and start[8:] in (b"WAVE", b""):
        found = _riff_data(file, size)
    elif start[:4] == b"FORM" and start[8:] in (b"AIFF", b"AIFC", b""):
        found = _chunk_data(file, size, chunks(file, size, ">"), b"SSND", ">I")
    elif start[:4] == b"caff":
        found = _chunk_data(file, size, _long_chunks(file, size, ">4sQ", 8), b"data", ">Q")
    elif start == b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb":
        found = _chunk_data(file, size, _long_chunks(file, size, "<4s12xQ", 40), b"data", "<Q")
    elif start[:4] == b".snd":
        found = _au_data(file, size, start)
    else:
        return None
    if found is None:
        raise AudioError(
            f"{path}: the file is cut short (it ends inside its header, after {size:,} bytes); download or copy it "
            "again"
        )
    return found


def _length_there(file: BinaryIO, start: int, declared: int, size: int, order: str) -> int:
    """Return the number of bytes of samples at `start`, whose number is declared modulo 4 GB, or as 0 or too high."""
    there = size - start
    if declared >= there or declared == 0 and not _are_chunks(file, start, size, order):
        return there
    return declared + (there - declared >> 32 << 32)


def _riff_data(file: BinaryIO, size: int) -> SoundData | None:
    """Find the samples of a WAV file; None if it ends before them."""
    fmt, long_size, end, unpadded = b"", None, 12, False
    for name, start, declared in chunks(file, size, "<"):
        unpadded = unpadded or start - 8 != end
        end = start + declared + declared % 2
        if name == b"fmt ":
            fmt = file.read(min(declared, _MAX_FMT))
        elif name == b"ds64":
            long_size = int.from_bytes(file.read(16)[8:], "little")
        elif name == b"data":
            known = (long_size or None) if declared == _UNKNOWN_SIZE else declared
            length = size - start if known is None else _length_there(file, start, known, size, "<")
            mended = unpadded or known != length
            return SoundData(start, length, known, fmt, _riff_header(fmt, length) if mended and fmt else b"")
    return None


def _riff_header(fmt: bytes, length: int) -> bytes:
    """Return the header of a WAV file of `length` bytes of samples; that of an RF64 file if they exceed 4 GB."""
    block = int.from_bytes(fmt[12:14], "little") or 1
    length -= length % block
    rest = b"fmt " + struct.pack("<I", len(fmt)) + fmt + bytes(len(fmt) % 2) + b"data"
    if length + len(rest) + 8 < _UNKNOWN_SIZE:
        return b"RIFF" + struct.pack("<I", length + len(rest) + 8) + b"WAVE" + rest + struct.pack("<I", length)
    sizes = struct.pack("<IQQQI", 28, length + len(rest) + 44, length, length // block, 0)
    return b"RF64\xff\xff\xff\xffWAVEds64" + sizes + rest + b"\xff\xff\xff\xff"


def _chunk_data(
    file: BinaryIO, size: int, found: Iterator[tuple[bytes, int, int]], wanted: bytes, code: str
) -> SoundData | None:
    """Find the samples in the chunk `wanted`, whose length, of the type `code`, is right before them."""
    start, declared = next(((start, declared) for name, start, declared in found if name == wanted), (0, 0))
    if not start:
        return None
    if declared in (_UNKNOWN_SIZE, _UNKNOWN_SIZE_64):
        return SoundData(start, size - start, None)
    is_short = code == ">I"
    length = _length_there(file, start, declared, size, ">") if is_short else min(declared, size - start)
    if declared == length:
        return SoundData(start, length, declared)
    file.seek(0)
    width, whole = struct.calcsize(code), length + (24 if code == "<Q" else 0)  # W64 counts the chunk's header
    header = file.read(start - width) + struct.pack(code, min(whole, _UNKNOWN_SIZE) if is_short else whole)
    return SoundData(start, length, declared, header=header)


def _au_data(file: BinaryIO, size: int, header: bytes) -> SoundData | None:
    """Find the samples of an AU file; None if it ends before them."""
    start, declared = struct.unpack(">II", header[4:]) if len(header) == 12 else (size + 1, 0)
    if not 24 <= start <= size:
        return None
    if declared == _UNKNOWN_SIZE:
        return SoundData(start, size - start, None)
    length = min(declared, size - start) or size - start
    file.seek(12)
    mended = header[:8] + struct.pack(">I", length & _UNKNOWN_SIZE) + file.read(start - 12)
    return SoundData(start, length, declared, header=mended if declared != length else b"")


def _are_chunks(file: BinaryIO, start: int, size: int, order: str) -> bool:
    """Return whether all bytes from `start` on are whole chunks of a RIFF or AIFF file."""
    while start + 8 <= size:
        file.seek(start)
        name, length = struct.unpack(f"{order}4sI", file.read(8))
        start += 8 + length + length % 2
        if not _is_chunk_name(name):
            return False
    return start - size in (0, 1)


def _is_chunk_name(name: bytes) -> bool:
    return len(name) == 4 and all(0x20 <= byte < 0x7F for byte in name)


class MendedFile(io.RawIOBase):
    """A readable file of `data.header` and the samples in another file, whose own header is wrong."""

    def __init__(self, file: BinaryIO, data: SoundData):
        self._file, self._data, self._at = file, data, 0

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position and return it; one before the start is the start."""
        end = len(self._data.header) + self._data.length
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: end}[whence])
        return self._at

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as there are bytes; return their number."""
        view, header, data = memoryview(buffer).cast("B"), self._data.header, self._data
        part = header[self._at:self._at + len(view)]
        if not part:
            at = self._at - len(header)
            self._file.seek(data.start + at)
            part = self._file.read(max(0, min(len(view), data.length - at)))
        view[:len(part)] = part
        self._at += len(part)
        return len(part)


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
        start += declared + 8
        if declared % 2:
            start += _is_padded(file, start - 8)


def _is_padded(file: BinaryIO, end: int) -> bool:
    """Return whether a byte of padding follows a chunk of odd length, which some recorders leave out."""
    file.seek(end)
    after = file.read(5)
    return after[1:] in (b"data", b"SSND") or not _is_chunk_name(after[:4])


def _long_chunks(file: BinaryIO, size: int, code: str, start: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the chunks of a CAF or W64 file, the first one at `start`, as `chunks` does; their lengths have 64 bits."""
    width, is_w64 = struct.calcsize(code), code[0] == "<"
    while start + width <= size:
        file.seek(start)
        name, declared = struct.unpack(code, file.read(width))
        declared -= width if is_w64 else 0  # W64 counts the chunk's header and begins chunks at multiples of 8
        if declared < 0:
            return
        yield name, start + width, declared
        start += width + declared + (-declared % 8 if is_w64 else 0)


def missing_from_ogg(file: BinaryIO) -> str:
    """Describe the missing end of an Ogg file; empty if its last page is complete and flagged as the last."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - _OGG_TAIL))
    tail = file.read()
    at = tail.rfind(b"OggS")
    segments = tail[at + 27:at + 27 + tail[at + 26]] if at + 27 <= len(tail) else b""
    if at + 27 > len(tail) or len(segments) < tail[at + 26] or at + 27 + len(segments) + sum(segments) > len(tail):
        return "its last Ogg page is incomplete"
    return "" if tail[at + 5] & 4 else "the last page of its Ogg stream is missing"


def flac_ends(file: BinaryIO, *, n: int = 8) -> Iterator[SoundData]:
    """Yield `n` ways to read a FLAC file without what is not there, the longest one first.

    The first one ends with the file, the others before one of its last frames; their headers declare as many samples.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    header = file.read(26)
    if header[:4] != b"fLaC" or len(header) < 26:
        return
    for k, (at, first, samples) in enumerate(islice(_last_flac_frames(file, header, size), n)):
        ends = [(first, at)] if k else [(first + samples, size), (first, at)]
        for total, end in ends:
            if total:
                bits = int.from_bytes(header[18:], "big") >> 36 << 36 | total
                yield SoundData(26, end - 26, None, header=header[:18] + bits.to_bytes(8, "big"))


def _last_flac_frames(file: BinaryIO, header: bytes, size: int) -> Iterator[tuple[int, int, int]]:
    """Yield offset, first sample and number of samples of the last frames of a FLAC file, the last one first.

    They are found by their headers, which have a checksum; once in some hundred files, other bytes look like one.
    """
    start = max(len(header), size - _FLAC_TAIL)
    file.seek(start)
    tail = file.read()
    at = len(tail)
    while (at := tail.rfind(b"\xff", 0, at)) >= 0:
        frame = _flac_frame(tail[at:at + 16], int.from_bytes(header[8:10], "big"))
        if frame:
            yield start + at, *frame


def _flac_frame(header: bytes, block: int) -> tuple[int, int] | None:
    """Return first sample and number of samples of the frame with this header; None if it is no header.

    Parameters
    ----------
    header
        16 bytes that begin with 0xFF.
    block
        Samples of the frames before it, where all have the same number.
    """
    if len(header) < 6 or header[1] not in (0xF8, 0xF9):
        return None
    code, at = header[2] >> 4, 5
    number, more = header[4], 0
    if number >= 0xC0:  # as UTF-8 codes a character, in up to seven bytes
        more = 8 - (number ^ 0xFF).bit_length() - 1
        number &= (1 << max(0, 6 - more)) - 1
        for byte in header[5:5 + more]:
            number = number << 6 | byte & 0x3F
        at += more
    n_bytes = {6: 1, 7: 2}.get(code, 0)
    stored = int.from_bytes(header[at:at + n_bytes], "big") + 1
    at += n_bytes + {12: 1, 13: 2, 14: 2}.get(header[2] & 15, 0)
    if code == 0 or at >= len(header) or _crc8(header[:at]) != header[at]:
        return None
    samples = stored if n_bytes else 192 if code == 1 else 576 << code - 2 if code < 6 else 256 << code - 8
    return (number if header[1] & 1 else number * block), samples


def _crc8(content: bytes) -> int:
    """Return the checksum of a FLAC frame's header, polynomial x^8 + x^2 + x + 1."""
    crc = 0
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ (7 if crc & 0x80 else 0)) & 0xFF
    return crc


def describe_non_sound(path: Path | str, file: BinaryIO, problem: str) -> str:
    """Return an error message for a file that libsndfile rejected with the message `problem`."""
    file.seek(0)
    start = file.read(512)
    for signature, kind in _NOT_SOUND.items():
        if start.lower().startswith(signature.lower()):
            return f"{path}: this is {kind}, not sound; put the sound file itself there"
    if _is_text(start):
        return f"{path}: this is text ({start[:20]!r}), not sound; put the sound file itself there"
    if start[:4] == b"OggS" and (missing := missing_from_ogg(file)):
        return f"{path}: the file is cut short inside its header ({missing}); download or copy it again"
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
