"""Download of one file: resumed after interruptions, retried, verified by checksum."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fatai import __version__
from fatai.errors import DataError, FataiError, StorageError
from fatai.io.atomic import translate_os_errors
from fatai.io.progress import track

__all__ = ["cache_folder", "fetch", "file_digest", "is_url"]

_BLOCK = 1 << 20
_TIMEOUT_S = 60.0
_USER_AGENT = f"fatai/{__version__}"


def is_url(path: str | Path) -> bool:
    """Return true for URLs of fsspec, such as "s3://bucket/a.wav"."""
    return "://" in str(path)


def cache_folder(name: str) -> Path:
    """Return the folder `fatai/NAME` in the user's cache, which is `$XDG_CACHE_HOME` or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fatai" / name


def fetch(
    url: str,
    path: str | Path,
    *,
    checksum: str = "",
    max_bytes: int | None = None,
    tries: int = 5,
    wait_s: float = 2.0,
) -> Path:
    """Download a file; one that exists is only verified.

    Partial downloads are kept in `path` + ".part", and the next call resumes them if the server supports it. `path`
    itself is a complete and verified file, or none.

    Parameters
    ----------
    url
        Address of the file, http or https.
    path
        Path to write.
    checksum
        Such as "md5:0cc175b9c0f1b6a831c399e269772661", of any algorithm of hashlib; "" verifies the length only.
    max_bytes
        A file with more bytes is refused before they are written; None for any size that the disk has room for.
    tries, wait_s
        Attempts if the connection fails, and the seconds before the second one, doubled each time.

    Returns
    -------
    `path`.

    Raises
    ------
    DataError
        If `url` is not http or https, the server refuses or cannot be reached, the file is larger than `max_bytes`, or
        the checksum differs (the file is removed).
    StorageError
        If the file cannot be written, or is larger than the free space of the disk.
    """
    path = Path(path)
    if urlsplit(url).scheme not in ("http", "https"):
        raise DataError(f"{url} is no web address; expected one that starts with https://")
    if path.is_file():
        _verify(path, checksum, url)
        return path
    part = path.with_name(path.name + ".part")
    with translate_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    _download(url, part, max_bytes, tries, wait_s)
    _verify(part, checksum, url)
    with translate_os_errors(path):
        part.replace(path)
    return path


def _download(url: str, part: Path, max_bytes: int | None, tries: int, wait_s: float) -> None:
    for attempt in range(tries):
        if attempt:
            time.sleep(wait_s * 2 ** (attempt - 1))
        problem = _attempt(url, part, max_bytes)
        if not problem:
            return
    n_tries = f"{tries} tries" if tries > 1 else "one try"
    raise DataError(
        f"{url} could not be downloaded in {n_tries} ({problem}); check the connection and start again: "
        f"{part.stat().st_size if part.exists() else 0:,} bytes are kept"
    )


def _attempt(url: str, part: Path, max_bytes: int | None) -> str:
    """Append the missing bytes to `part`; return "" when it is complete, otherwise why the connection failed."""
    size = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": _USER_AGENT, **({"Range": f"bytes={size}-"} if size else {})}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S) as response:
            return _receive(response, part, size, max_bytes)
    except FataiError:
        raise
    except urllib.error.HTTPError as e:
        return _http_problem(e, url, part, size)
    except (OSError, HTTPException) as e:
        return str(e) or type(e).__name__


def _receive(response: Any, part: Path, size: int, max_bytes: int | None) -> str:
    """Write the response's body to `part`, which has `size` bytes; return "" or a problem."""
    # A server that cannot resume sends the whole file, with another status.
    content_range = str(response.headers.get("Content-Range", ""))
    is_resumed = response.status == 206 and content_range.startswith(f"bytes {size}-")
    length = response.headers.get("Content-Length")
    size = size if is_resumed else 0
    if length is not None:
        _check_size(part, size + int(length), max_bytes)
        _check_room(part, int(length))
    n_blocks = None if length is None else -(-int(length) // _BLOCK)
    received = 0
    with _appending(part, "ab" if is_resumed else "wb") as write:
        for block in track(_blocks(response), f"downloading {part.stem}", total=n_blocks):
            received += len(block)
            _check_size(part, size + received, max_bytes)
            write(block)
    return "" if length is None or received == int(length) else f"received {received:,} of {int(length):,} bytes"


@contextmanager
def _appending(part: Path, mode: str) -> Iterator[Callable[[bytes], None]]:
    """Open `part` and give a function that writes to it, whose errors are those of the disk, not of the network."""
    def write(block: bytes) -> None:
        with translate_os_errors(part):
            file.write(block)
            file.flush()

    with translate_os_errors(part):
        file = part.open(mode)
    try:
        yield write
    finally:
        file.close()


def _check_size(part: Path, n_bytes: int, max_bytes: int | None) -> None:
    """Raise `DataError` if a file is larger than it may be."""
    if max_bytes is not None and n_bytes > max_bytes:
        raise DataError(f"{part.stem} has {n_bytes:,} bytes or more; expected at most {max_bytes:,}")


def _check_room(part: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if n_bytes > free:
        raise StorageError(
            f"{part.stem} needs {n_bytes:,} more bytes, and {part.parent} has {free:,} free; make room, then start "
            "again"
        )


def _http_problem(e: urllib.error.HTTPError, url: str, part: Path, size: int) -> str:
    if e.code == 416:
        # No bytes are left to send; or the file on the server is another one, which the checksum will detect.
        total = str(e.headers.get("Content-Range", "")).rpartition("/")[2]
        if total == str(size):
            return ""
        part.unlink()
        return "the file on the server changed"
    if e.code < 500 and e.code != 429:
        raise DataError(f"{url}: the server returned {e.code} {e.reason}; the file may have moved") from None
    return f"{e.code} {e.reason}"


def _blocks(response: Any) -> Iterator[bytes]:
    while block := response.read(_BLOCK):
        yield block


def file_digest(path: Path, algorithm: str) -> str:
    """Compute the hexadecimal digest of a file by an algorithm of hashlib, one block at a time."""
    digest = hashlib.new(algorithm)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _verify(path: Path, checksum: str, url: str) -> None:
    if not checksum:
        return
    algorithm, _, expected = checksum.partition(":")
    found = file_digest(path, algorithm)
    if found != expected.lower():
        path.unlink()
        raise DataError(f"{url}: the {algorithm} is {found}, expected {expected}; the file was removed, start again")
