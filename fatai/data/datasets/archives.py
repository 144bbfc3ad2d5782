"""Zip archives, also split ones, to files in given places: no path leads elsewhere, no link is made, no size is exceeded."""

from __future__ import annotations

import io
import shutil
import stat
import struct
import zipfile
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from fatai.io.atomic import write_file
from fatai.errors import DataError
from fatai.io.progress import track

__all__ = ["unpack"]

_BLOCK = 1 << 20
_BUFFER = 1 << 16
_END_RECORD = 22  # bytes behind the directory, without the comment


class _Joined(io.RawIOBase):
    """Several files read as one, without copying them."""

    def __init__(self, parts: Sequence[Path]):
        self._files = [p.open("rb") for p in parts]
        self.starts = [0]
        for path in parts:
            self.starts.append(self.starts[-1] + path.stat().st_size)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self.starts[-1])[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        k = bisect_right(self.starts, self._at) - 1
        if k >= len(self._files):
            return 0
        self._files[k].seek(self._at - self.starts[k])
        view = memoryview(buffer)[:self.starts[k + 1] - self._at]
        got = self._files[k].readinto(view)
        self._at += got
        return got

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()


def unpack(parts: Sequence[str | Path], place: Callable[[str], Path | None], *, most_bytes: int) -> int:
    """Write the files of an archive to where `place` says.

    Parameters
    ----------
    parts
        One archive, or the parts of a split one in order: .z01, .z02, ..., .zip.
    place
        Maps a name in the archive to the path to write, or to None for a file that is not wanted.
    most_bytes
        What all wanted files together may hold.

    Returns
    -------
    Number of files that are in their places. One that has its size already is not written again.

    Raises
    ------
    DataError
        A damaged archive, a name that leads out of it, a link, or more than `most_bytes`.
    """
    paths = [Path(p) for p in parts]
    try:
        with _Joined(paths) as source, zipfile.ZipFile(io.BufferedReader(source, _BUFFER)) as archive:
            _correct_offsets(archive, source)
            wanted = [
                (info, target)
                for info in archive.infolist()
                if not info.is_dir() and (target := _target(info, place, paths[-1]))
            ]
            total = sum(info.file_size for info, _ in wanted)
            if total > most_bytes:
                raise DataError(
                    f"{paths[-1].name} would unpack to {total:,} bytes, more than the {most_bytes:,} that it should hold; "
                    "it is not the archive that was expected"
                )
            for info, target in track(wanted, f"unpacking {paths[-1].stem}"):
                if not (target.is_file() and target.stat().st_size == info.file_size):
                    with archive.open(info) as packed, write_file(target) as beside, beside.open("wb") as out:
                        # zipfile itself stops at the size that the directory promises, and compares the checksum.
                        shutil.copyfileobj(packed, out, _BLOCK)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as e:
        raise DataError(f"{paths[-1].name} is damaged or no zip archive ({e}); remove it and download it again") from e
    return len(wanted)


def _correct_offsets(archive: zipfile.ZipFile, joined: _Joined) -> None:
    """In a split archive, offsets count from the part that a file starts in; zipfile takes all for counted from the directory's part."""
    parts = len(joined.starts) - 1
    if parts == 1:
        return
    at = joined.tell()
    joined.seek(-_END_RECORD - len(archive.comment), io.SEEK_END)
    directory_part = struct.unpack("<H", (joined.read(_END_RECORD) or b"")[6:8])[0]
    joined.seek(at)  # where the buffer above it believes to be
    base = joined.starts[directory_part if directory_part < parts else parts - 1]
    for info in archive.infolist():
        if info.volume >= parts:
            raise DataError(
                f"the archive says that {info.filename} is in part {info.volume + 1}, of {parts}; get all parts"
            )
        info.header_offset += joined.starts[info.volume] - base
        if hasattr(info, "_end_offset"):  # where newer Pythons think that the next file begins
            info._end_offset = None


def _target(info: zipfile.ZipInfo, place: Callable[[str], Path | None], archive: Path) -> Path | None:
    name = info.filename
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts or "\\" in name or ":" in name:
        raise DataError(
            f"{archive.name} holds the name {name!r}, which leads out of its folder; such an archive is not unpacked"
        )
    if stat.S_ISLNK(info.external_attr >> 16):
        raise DataError(f"{archive.name} holds a link, {name!r}; such an archive is not unpacked")
    return place(name)
