"""Sounds uploaded by a browser: limited in size, and stored in temporary files under generated names.

An upload is `multipart/form-data` with files in fields of any name. The file name of the client is only displayed,
never used as a path.
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
from fatai.web.job_queue import CLIENT_CLOSED_REQUEST
from fatai.web.security import HTTPError

__all__ = ["Limits", "Upload", "receive_uploads"]

_DRAIN_FACTOR = 4  # up to this multiple of the limit is read and discarded, since browsers read no response before


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes
    ----------
    upload_mb
        Maximum megabytes of one request; raise it for uncompressed recordings.
    sound_s
        Maximum seconds of one sound.
    files
        Maximum number of sounds in one request.
    waiting, per_client
        Maximum number of requests in the queue, of all clients and of one.
    receive_s
        Maximum seconds until a request has arrived.

    Raises
    ------
    OptionError
        If a limit is not positive.
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
        """Maximum bytes of one request."""
        return round(self.upload_mb * 1e6)


@dataclass(frozen=True)
class Upload:
    """An uploaded file: the name to display and the path of its temporary copy."""

    name: str
    path: Path


@asynccontextmanager
async def receive_uploads(request: Request, limits: Limits) -> AsyncIterator[list[Upload]]:
    """Store the files of a request in a temporary folder, which is removed at the end of the block.

    Raises
    ------
    HTTPError
        408, 413, 415, 422 or 499, with a message that names the problem of the request.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "multipart/form-data":
        raise HTTPError(
            415,
            f"the upload has the type {media_type[:80] or 'unknown'!r}; send multipart/form-data with a sound file",
        )
    with tempfile.TemporaryDirectory(prefix="fatai-") as folder:
        try:
            uploads = await asyncio.wait_for(_store(request, limits, Path(folder)), limits.receive_s)
        except asyncio.TimeoutError:
            raise HTTPError(
                408, f"the upload did not arrive within {limits.receive_s:g} seconds; send a shorter one"
            ) from None
        yield uploads


async def _store(request: Request, limits: Limits, folder: Path) -> list[Upload]:
    form = await _parse(request, limits)
    try:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if not files:
            raise HTTPError(422, "the upload holds no complete file; send at least one sound")
        uploads = [Upload(display_name(file.filename or ""), folder / str(k)) for k, file in enumerate(files)]
        for file, upload in zip(files, uploads, strict=True):
            await asyncio.to_thread(_copy, file, upload.path)
        return uploads
    finally:
        await form.close()


async def _parse(request: Request, limits: Limits) -> FormData:
    """Parse a request; bytes beyond a megabyte of a file go to unnamed temporary files."""
    # One file more than allowed is accepted by the parser, to tell "too many" from other errors.
    parser = MultiPartParser(
        request.headers, _limited(request, limits), max_files=limits.files + 1, max_fields=limits.files
    )
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError) as e:
        # The second are the parser's own errors, which not every version of Starlette translates.
        error = getattr(e, "message", str(e)).rstrip(".")
        if "Too many" in error:
            raise _too_many_files(limits) from None
        raise HTTPError(422, f"the upload is incomplete or not multipart/form-data ({error}); send it again") from None
    except ClientDisconnect:
        raise HTTPError(CLIENT_CLOSED_REQUEST, "the client closed the connection") from None
    if sum(isinstance(value, UploadFile) for _, value in form.multi_items()) > limits.files:
        await form.close()
        raise _too_many_files(limits)
    return form


def _too_many_files(limits: Limits) -> HTTPError:
    return HTTPError(413, f"the upload holds more than {limits.files} files; send at most {limits.files} at once")


async def _limited(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    """Yield the body up to the limit; read and discard some more, then raise `HTTPError`."""
    n_bytes, max_bytes = 0, limits.upload_bytes
    async for chunk in request.stream():
        n_bytes += len(chunk)
        if n_bytes <= max_bytes:
            yield chunk
        elif n_bytes > _DRAIN_FACTOR * max_bytes:
            raise _too_large(request, limits)
    if n_bytes > max_bytes:
        raise _too_large(request, limits)


def _too_large(request: Request, limits: Limits) -> HTTPError:
    length = request.headers.get("content-length", "")
    known = length.isascii() and length.isdigit() and len(length) < 16
    size = f"{int(length) / 1e6:,.1f} MB" if known else "more"
    return HTTPError(
        413, f"the upload has {size}; expected at most {limits.upload_mb:g} MB: cut the sound, or send FLAC, Ogg or MP3"
    )


def _copy(file: UploadFile, path: Path) -> None:
    with path.open("wb") as f:
        shutil.copyfileobj(file.file, f)


def display_name(filename: str) -> str:
    r"""Return the last part of a file name from a client, printable and at most 120 characters long.

    Examples
    --------
    >>> display_name("../../etc/passwd"), display_name("C:\\sounds\\a.wav"), display_name("..")
    ('passwd', 'a.wav', 'sound')
    """
    last = PureWindowsPath(filename).name
    printable = "".join(c if unicodedata.category(c)[0] not in "CZ" else " " for c in last).strip()
    return printable[-120:] if printable.strip(".") else "sound"
