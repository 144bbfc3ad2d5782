"""One address to one file: resumed where it was cut off, tried again, checked."""

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
_AGENT = f"fatai/{__version__}"


def fetch(url: str, path: str | Path, *, checksum: str = "", tries: int = 5, wait_s: float = 2.0) -> Path:
    """Download `url` to `path`; a file that is there already is only checked.

    What has arrived lies in `path` + ".part" until it is whole, and the next call goes on from there, if the server can.

    Parameters
    ----------
    checksum
        Such as "md5:0cc175b9c0f1b6a831c399e269772661", of any algorithm of hashlib; "" checks nothing but the length.
    tries, wait_s
        Attempts after a connection failed, and the seconds before the second one, doubled each time.

    Raises
    ------
    DataError
        An address that is not http or https, a server that refuses, a file of another checksum (which is removed).
    """
    path = Path(path)
    if urlsplit(url).scheme not in ("http", "https"):
        raise DataError(f"{url} is no web address; expected one that starts with https://")
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        _arrive(url, part, tries, wait_s)
        part.replace(path)
    _verify(path, checksum, url)
    return path


def _arrive(url: str, part: Path, tries: int, wait_s: float) -> None:
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
    """Add to `part` what is missing; "" when it is whole, otherwise why the connection failed."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(
        url, headers={"User-Agent": _AGENT, **({"Range": f"bytes={have}-"} if have else {})}
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            # A server that cannot go on from there sends all of it, with another status.
            resumed = response.status == 206 and str(response.headers.get("Content-Range", "")).startswith(
                f"bytes {have}-"
            )
            length = response.headers.get("Content-Length")
            with part.open("ab" if resumed else "wb") as file:
                got = sum(file.write(block) for block in track(_blocks(response), f"downloading {part.stem}"))
            return "" if length is None or got == int(length) else f"{got:,} of {int(length):,} bytes came"
    except urllib.error.HTTPError as e:
        if e.code == 416:
            # Nothing is left to send; or the file on the server is another one, which the checksum will tell.
            total = str(e.headers.get("Content-Range", "")).rpartition("/")[2]
            if total == str(have):
                return ""
            part.unlink()
            return "the file on the server changed"
        if e.code < 500 and e.code != 429:
            raise DataError(f"{url}: the server answers {e.code} {e.reason}; the file may have moved") from None
        return f"{e.code} {e.reason}"
    except (OSError, HTTPException) as e:
        return str(e) or type(e).__name__


def _blocks(response: Any) -> Iterator[bytes]:
    while block := response.read(_BLOCK):
        yield block


def file_digest(path: Path, algorithm: str) -> str:
    """Hexadecimal digest of a file, read a block at a time, by an algorithm of hashlib."""
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
        raise DataError(
            f"{url}: what arrived has the {algorithm} {found}, expected {expected}; it was removed, start again"
        )
