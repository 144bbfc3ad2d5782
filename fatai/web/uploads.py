"""Sounds that a browser sends: bounded, and on the disk only under names that are made up here.

An upload is `multipart/form-data`, its files in fields of any name. What a file is called comes along as a word to show, never as a path.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import unicodedata
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from fatai.errors import OptionError
from fatai.web.security import HTTPError

__all__ = ["Limits", "Upload", "received"]

_DRAINED = 4  # so many times the allowed bytes are read and thrown away, since a browser only then reads the answer


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes
    ----------
    upload_mb
        Megabytes of one request.
    sound_s
        Seconds of one sound.
    files
        Sounds in one request.
    waiting, per_client
        Requests in the line, of all clients and of one.
    receive_s
        Seconds in which a request must have arrived.
    """

    upload_mb: float = 32.0
    sound_s: float = 600.0
    files: int = 8
    waiting: int = 96
    per_client: int = 64
    receive_s: float = 60.0

    def __post_init__(self) -> None:
        for name in ("upload_mb", "sound_s", "files", "waiting", "per_client", "receive_s"):
            if not getattr(self, name) > 0:
                raise OptionError(f"the limit {name} is {getattr(self, name)}; expected a number above 0")

    @property
    def upload_bytes(self) -> int:
        return round(self.upload_mb * 1e6)


@dataclass(frozen=True)
class Upload:
    """A file that was sent: how it is called, and where its bytes are for the moment."""

    name: str
    path: Path


@asynccontextmanager
async def received(request: Request, limits: Limits) -> AsyncIterator[list[Upload]]:
    """The files of a request, in a folder that is removed with all in it when the block ends, however it ends.

    Raises
    ------
    HTTPError
        408, 413, 415 or 422, with what is wrong with the request.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise HTTPError(
            415,
            f"the upload is of the type {kind[:80] or 'unknown'!r}; send multipart/form-data with a sound file in it",
        )
    with tempfile.TemporaryDirectory(prefix="fatai-") as folder:
        try:
            uploads = await asyncio.wait_for(_stored(request, limits, Path(folder)), limits.receive_s)
        except asyncio.TimeoutError:
            raise HTTPError(
                408, f"the upload did not arrive within {limits.receive_s:g} seconds; send a shorter one"
            ) from None
        yield uploads


async def _stored(request: Request, limits: Limits, folder: Path) -> list[Upload]:
    form = await _parsed(request, limits)
    try:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if not files:
            raise HTTPError(422, "the upload holds no whole file; send at least one sound")
        uploads = [Upload(shown_name(file.filename or ""), folder / str(k)) for k, file in enumerate(files)]
        for file, upload in zip(files, uploads, strict=True):
            await asyncio.to_thread(_copy, file, upload.path)
        return uploads
    finally:
        await form.close()


async def _parsed(request: Request, limits: Limits) -> FormData:
    """Bytes beyond a megabyte of a file go to unnamed temporary files."""
    stream = _bounded(request, limits)
    try:
        # One file more than allowed is let in, so that "too many" can be told from other faults.
        form = await MultiPartParser(
            request.headers, stream, max_files=limits.files + 1, max_fields=limits.files
        ).parse()
    except (
        MultiPartException,
        ValueError,
    ) as e:  # the parser's own errors, which not every Starlette translates, are the latter
        fault = getattr(e, "message", str(e)).rstrip(".")
        if "Too many" in fault:
            raise HTTPError(413, _too_many(limits)) from None
        raise HTTPError(422, f"the upload is not whole or not multipart/form-data ({fault}); send it again") from None
    except ClientDisconnect:
        raise HTTPError(499, "the client went away") from None
    if sum(isinstance(value, UploadFile) for _, value in form.multi_items()) > limits.files:
        await form.close()
        raise HTTPError(413, _too_many(limits))
    return form


def _too_many(limits: Limits) -> str:
    return f"the upload holds more than {limits.files} files; send no more than {limits.files} at once"


async def _bounded(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    """The body, up to the limit; what comes behind it is read for a while, then refused."""
    held, most = 0, limits.upload_bytes
    claimed = request.headers.get("content-length", "")
    size = f"{int(claimed) / 1e6:,.1f} MB" if claimed.isascii() and claimed.isdigit() and len(claimed) < 16 else "more"
    fault = HTTPError(
        413,
        f"the upload is of {size}; at most {limits.upload_mb:g} MB are taken: cut the sound, or send FLAC, Ogg or MP3",
    )
    async for chunk in request.stream():
        held += len(chunk)
        if held <= most:
            yield chunk
        elif held > _DRAINED * most:
            raise fault
    if held > most:
        raise fault


def _copy(file: UploadFile, path: Path) -> None:
    with path.open("wb") as f:
        shutil.copyfileobj(file.file, f)


def shown_name(given: str) -> str:
    """The last part of a name that a client sent, printable and at most 120 characters long.

    Examples
    --------
    >>> shown_name("../../etc/passwd"), shown_name("C:\\\\sounds\\\\a.wav"), shown_name("..")
    ('passwd', 'a.wav', 'sound')
    """
    last = PureWindowsPath(given).name
    printable = "".join(c if unicodedata.category(c)[0] not in "CZ" else " " for c in last).strip()
    return printable[-120:] if printable.strip(".") else "sound"
