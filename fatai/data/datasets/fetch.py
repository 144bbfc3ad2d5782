"""Download of one file: resumed after interruptions, retried, verified by checksum."""

from __future__ import annotations

import hashlib
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fatai import __version__
from fatai.errors import DataError
from fatai.io.progress import track

__all__ = ["fetch", "file_digest"]

_BLOCK = 1 << 20
_TIMEOUT_S = 60.0
_USER_AGENT = f"fatai/{__version__}"


def fetch(url: str, path: str | Path, *, checksum: str = "", tries: int = 5, wait_s: float = 2.0) -> Path:
    """Download a file; one that exists is only verified.

    Partial downloads are kept in `path` + ".part", and the next call resumes them if the server supports it.

    Parameters
    ----------
    url
        Address of the file, http or https.
    path
        Path to write.
    checksum
        Such as "md5:0cc175b9c0f1b6a831c399e269772661", of any algorithm of hashlib; "" verifies the length only.
    tries, wait_s
        Attempts if the connection fails, and the seconds before the second one, doubled each time.

    Returns
    -------
    `path`.

    Raises
    ------
    DataError
        If `url` is not http or https, the server refuses, or the checksum differs (the file is removed).
    """
    path = Path(path)
    if urlsplit(url).scheme not in ("http", "https"):
        raise DataError(f"{url} is no web address; expected one that starts with https://")
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        _download(url, part, tries, wait_s)
        part.replace(path)
    _verify(path, checksum, url)
    return path


def _download(url: str, part: Path, tries: int, wait_s: float) -> None:
    for attempt in range(tries):
        if attempt:
            time.sleep(wait_s * 2 ** (attempt - 1))
        problem = _attempt(url, part)
        if not problem:
            return
    raise DataError(
        f"{url} could not be downloaded in {tries} tries ({problem}); check the connection and start again: "
        f"{part.stat().st_size if part.exists() else 0:,} bytes are kept"
    )


def _attempt(url: str, part: Path) -> str:
    """Append the missing bytes to `part`; return "" when it is complete, otherwise why the connection failed."""
    size = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": _USER_AGENT, **({"Range": f"bytes={size}-"} if size else {})}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S) as response:
            return _receive(response, part, size)
    except urllib.error.HTTPError as e:
        return _http_problem(e, url, part, size)
    except (OSError, HTTPException) as e:
        return str(e) or type(e).__name__


def _receive(response: Any, part: Path, size: int) -> str:
    """Write the response's body to `part`, which has `size` bytes; return "" or a problem."""
    # A server that cannot resume sends the whole file, with another status.
    content_range = str(response.headers.get("Content-Range", ""))
    is_resumed = response.status == 206 and content_range.startswith(f"bytes {size}-")
    length = response.headers.get("Content-Length")
    with part.open("ab" if is_resumed else "wb") as file:
        received = sum(file.write(block) for block in track(_blocks(response), f"downloading {part.stem}"))
    return "" if length is None or received == int(length) else f"received {received:,} of {int(length):,} bytes"


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
