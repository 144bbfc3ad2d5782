"""Sound files at addresses of fsspec ("https://...", "s3://...", "memory://..."), read in ranges of bytes.

A block of a long file is fetched when the decoder needs it, and a few blocks are kept, so memory does not grow with the
file and a section costs about its own bytes. From a server that sends whole files only, the file is copied once to a
temporary file.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import time
import warnings
import weakref
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from fatai.errors import AudioError
from fatai.io.fetch import is_url

__all__ = ["RemoteFile", "sound_path"]

MAX_COPY = 4 << 30
"""Most bytes of a file that is copied whole."""

_BLOCK = 1 << 20  # bytes of a request; for fewer, the time that a server takes to answer dominates
_WHOLE = 2 * _BLOCK  # a file up to here is one request
_N_BLOCKS = 8  # that are kept
_TRIES = 3
_WAIT_S = 0.5
_notified: set[str] = set()  # servers


def sound_path(path: str | os.PathLike[str]) -> Path | str:
    """Return a URL as it is, since a `Path` would join its slashes, and anything else as a `Path`."""
    return str(path) if is_url(os.fspath(path)) else Path(path)


class RemoteFile(io.RawIOBase):
    """A file at a URL, with the interface of an unbuffered file that is open for reading.

    A decoder calls it from C, where an exception would be lost. So after an error reads return nothing, as at the end
    of a file, and `check` raises the error.

    Parameters
    ----------
    url
        An address that fsspec knows.

    Raises
    ------
    AudioError
        If there is no such file, it is empty, or its file system needs a package that is not installed.
    """

    def __init__(self, url: str):
        self.url, self._at, self._problem = url, 0, ""
        self._file: Any = None
        size: int | None = None
        try:
            self._file, size = _open_ranges(url)
        except Exception as e:  # each file system has its own
            self._problem = _reason(e)
        self.check()
        self.size = size or 0
        if self._file is None and size != 0:
            self._copy()
            self.check()
        if self.size == 0:
            raise AudioError(f"{url}: the file is empty (0 bytes); download or copy it again")

    def check(self) -> None:
        """Raise `AudioError` if the file could not be read at some point."""
        if self._problem:
            raise AudioError(f"{self.url} cannot be read: {self._problem}")

    def local_path(self) -> Path:
        """Return the path of a copy of the whole file, for programs that read no address."""
        return _copied(self.url).path

    def seekable(self) -> bool:
        """Return True."""
        return True

    def readable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position and return it; one before the start is the start."""
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as there are bytes; return their number."""
        view = memoryview(buffer).cast("B")
        n = 0
        while n < len(view) and self._at < self.size:
            # One block at a time, so that no more than the kept blocks are in memory however much is asked for.
            part = self._read(self._at, min(self.size, self._at + len(view) - n, (self._at // _BLOCK + 1) * _BLOCK))
            if not part:
                break
            view[n:n + len(part)] = part
            n, self._at = n + len(part), self._at + len(part)
        return n

    def close(self) -> None:
        """Close the file."""
        if self._file is not None and not self.closed:
            self._file.close()
        super().close()

    def _read(self, start: int, stop: int) -> bytes:
        for attempt in range(_TRIES):
            if self._problem:
                return b""
            try:
                self._file.seek(start)
                part = bytes(self._file.read(stop - start))
                if part:
                    return part
                self._problem = f"it ended after {start:,} of {self.size:,} bytes"
            except ValueError:  # fsspec's for a server that does not send ranges
                self._copy()
            except Exception as e:  # each file system has its own; one that leaves here is lost in the decoder
                if attempt + 1 == _TRIES:
                    self._problem = _reason(e)
                else:
                    time.sleep(_WAIT_S * 2**attempt)
        return b""

    def _copy(self) -> None:
        """Go on with a copy of the whole file."""
        try:
            copied = _copied(self.url)
            if self._file is not None:
                self._file.close()
            self._file, self.size = copied.path.open("rb"), copied.path.stat().st_size
        except AudioError as e:
            self._problem = str(e)


def _open_ranges(url: str) -> tuple[Any, int | None]:
    """Open a file for reading ranges, and return it and its size in bytes; None for what there is not."""
    import fsspec

    files, name = fsspec.core.url_to_fs(url)
    info = files.info(name)
    size = info.get("size")
    if not size or not info.get("partial", True):  # the latter is fsspec's, of a web server that says so
        return None, size
    block = size if size <= _WHOLE else _BLOCK
    options = {"cache_type": "blockcache", "cache_options": {"maxblocks": _N_BLOCKS}}
    return files.open(name, "rb", block_size=block, size=size, **options), size


class _Copy:
    """A whole file in a temporary folder, which is removed with this object."""

    def __init__(self, url: str):
        self._folder = tempfile.mkdtemp(prefix="fatai-")
        self._remove = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self.path = Path(self._folder, "sound" + Path(url.partition("?")[0]).suffix[:16])
        try:
            self._fetch(url)
        except BaseException:
            self._remove()
            raise

    def _fetch(self, url: str) -> None:
        import fsspec

        files, name = fsspec.core.url_to_fs(url)
        n_bytes = 0
        with _stream(files, name) as source, self.path.open("wb") as copy:
            while block := source.read(_BLOCK):
                n_bytes += len(block)
                free = shutil.disk_usage(self._folder).free
                if n_bytes > MAX_COPY or len(block) > free:
                    limit = f"{MAX_COPY:,} bytes are copied" if n_bytes > MAX_COPY else f"{free:,} bytes are free"
                    raise OSError(f"the server sends only whole files, and at most {limit}; download it first")
                copy.write(block)


def _stream(files: Any, name: str) -> BinaryIO:
    """Open a file to be read from its start to its end."""
    protocols = (files.protocol,) if isinstance(files.protocol, str) else files.protocol
    if "http" in protocols:
        return files.open(name, "rb", block_size=0)  # type: ignore[no-any-return]
    return files.open(name, "rb")  # type: ignore[no-any-return]


@lru_cache(maxsize=1)
def _copied(url: str) -> _Copy:
    """Copy a file, unless it is the last one that was copied, which is opened once for each view of it."""
    _notify(url, url.partition("://")[2].partition("/")[0])
    try:
        return _Copy(url)
    except Exception as e:  # each file system has its own
        raise AudioError(_reason(e)) from None


def _notify(url: str, server: str) -> None:
    if server in _notified:
        return
    _notified.add(server)
    warnings.warn(
        f"{url}: copied whole to a temporary file, as are others of {server}, since the server sends no ranges or the "
        "format needs it; WAV, FLAC or Ogg files on a server with ranges are read as they are needed",
        stacklevel=4,
    )


def _reason(error: BaseException) -> str:
    return "there is no such file" if isinstance(error, FileNotFoundError) else str(error) or type(error).__name__
