"""Extraction of zip archives, also split ones, without paths outside the folder, links, or more bytes than expected."""

from __future__ import annotations

import io
import shutil
import stat
import struct
import zipfile
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from fatai.errors import DataError
from fatai.io.atomic import write_file
from fatai.io.progress import track

__all__ = ["unpack"]

_BLOCK = 1 << 20
_BUFFER = 1 << 16
_END_RECORD = 22  # bytes behind the directory, without the comment


class _ConcatFile(io.RawIOBase):
    """Several files read as one, without copying them."""

    def __init__(self, parts: Sequence[Path]):
        self._files = [p.open("rb") for p in parts]
        self.starts = [0]
        for path in parts:
            self.starts.append(self.starts[-1] + path.stat().st_size)
        self._offset = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._offset = max(0, offset + (0, self._offset, self.starts[-1])[whence])
        return self._offset

    def tell(self) -> int:
        return self._offset

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        k = bisect_right(self.starts, self._offset) - 1
        if k >= len(self._files):
            return 0
        self._files[k].seek(self._offset - self.starts[k])
        view = memoryview(buffer)[:self.starts[k + 1] - self._offset]
        n_read = self._files[k].readinto(view)
        self._offset += n_read
        return n_read

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()


def unpack(parts: Sequence[str | Path], target_path: Callable[[str], Path | None], *, max_bytes: int) -> int:
    """Extract the files of an archive; a file that exists with the right size is not written again.

    Parameters
    ----------
    parts
        One archive, or the parts of a split one in order: .z01, .z02, ..., .zip.
    target_path
        Maps a name in the archive to the path to write, or to None to skip the file.
    max_bytes
        Maximum total size of the extracted files.

    Returns
    -------
    Number of files that `target_path` selects.

    Raises
    ------
    DataError
        If the archive is damaged, larger than `max_bytes`, or contains a link or a name outside its folder.
    """
    paths = [Path(p) for p in parts]
    try:
        with _ConcatFile(paths) as source, zipfile.ZipFile(io.BufferedReader(source, _BUFFER)) as archive:
            _correct_offsets(archive, source)
            wanted = _select(archive, target_path, paths[-1], max_bytes)
            for info, target in track(wanted, f"unpacking {paths[-1].stem}"):
                _extract(archive, info, target)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as e:
        raise DataError(f"{paths[-1].name} is damaged or no zip archive ({e}); remove it and download it again") from e
    return len(wanted)


def _select(
    archive: zipfile.ZipFile, target_path: Callable[[str], Path | None], path: Path, max_bytes: int
) -> list[tuple[zipfile.ZipInfo, Path]]:
    """Return the entries to extract with their targets, after all checks."""
    wanted = [
        (info, target)
        for info in archive.infolist()
        if not info.is_dir() and (target := _checked_target(info, target_path, path))
    ]
    total = sum(info.file_size for info, _ in wanted)
    if total > max_bytes:
        raise DataError(
            f"{path.name} would unpack to {total:,} bytes; expected at most {max_bytes:,}: it is not the right archive"
        )
    return wanted


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    if target.is_file() and target.stat().st_size == info.file_size:
        return
    with archive.open(info) as packed, write_file(target) as temporary, temporary.open("wb") as out:
        # zipfile itself stops at the size that the directory states, and compares the checksum.
        shutil.copyfileobj(packed, out, _BLOCK)


def _correct_offsets(archive: zipfile.ZipFile, source: _ConcatFile) -> None:
    """Correct the offsets of a split archive: they count from an entry's part, zipfile assumes the directory's part."""
    n_parts = len(source.starts) - 1
    if n_parts == 1:
        return
    position = source.tell()
    source.seek(-_END_RECORD - len(archive.comment), io.SEEK_END)
    directory_part = struct.unpack("<H", (source.read(_END_RECORD) or b"")[6:8])[0]
    source.seek(position)  # the position that the buffer above it assumes
    base = source.starts[directory_part if directory_part < n_parts else n_parts - 1]
    for info in archive.infolist():
        if info.volume >= n_parts:
            raise DataError(
                f"{info.filename} is in part {info.volume + 1} of the archive, not in the {n_parts} here; get all parts"
            )
        info.header_offset += source.starts[info.volume] - base
        if hasattr(info, "_end_offset"):  # start of the next file in newer Pythons, no longer valid
            info._end_offset = None


def _checked_target(
    info: zipfile.ZipInfo, target_path: Callable[[str], Path | None], archive: Path
) -> Path | None:
    name = info.filename
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts or "\\" in name or ":" in name:
        raise DataError(f"{archive.name} contains the name {name!r}, which is outside its folder; it is not unpacked")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise DataError(f"{archive.name} contains a link, {name!r}; it is not unpacked")
    return target_path(name)
