"""Whole files or none: a file is written beside its name, then renamed over it."""

from __future__ import annotations

import errno
import glob
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from fatai.errors import FataiError, StorageError
from fatai.io.retries import retry

__all__ = ["remove_temp_files", "translate_os_errors", "open_atomic", "write_file", "write_text"]

_REMEDIES = {
    "the disk is full; make room, then start again: what was finished is kept": (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
    ),
    "the folder may not be written to; choose another, or change its permissions": (
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
    ),
    "the name is longer than names of files may be; choose a shorter one": (errno.ENAMETOOLONG,),
    "something of that name is in the way; choose another one": (
        errno.EEXIST,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENOTEMPTY,
        errno.ELOOP,
    ),
}


@contextmanager
def write_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a name beside `path` to write to; the file takes the name `path` when the block ends well.

    A block that raises, or a process that is killed, leaves what was at `path` before: nobody ever reads half a file.
    Missing folders are made. A link is followed, so the file that it points to is replaced, not the link. The suffix is kept,
    because some writers choose the format by it. Nothing is forced to the disk: this guards against a killed run, not against a power cut.

    Raises
    ------
    StorageError
        If the disk is full, the folder may not be written to, `path` is a device, a pipe or a folder, or the file system fails; the message
        says what to do.

    Examples
    --------
    >>> import tempfile
    >>> name = Path(tempfile.mkdtemp(), "scores.csv")
    >>> with write_file(name) as beside:
    ...     _ = beside.write_text("fname,Bark")
    >>> name.read_text()
    'fname,Bark'
    """
    whole = Path(os.path.realpath(path))
    # In the same folder, since a rename is atomic only within one file system; the stem is cut because names end at 255 bytes.
    beside = whole.parent / f".{whole.stem[:40]}.{secrets.token_hex(6)}.part{whole.suffix}"
    with translate_os_errors(whole):
        if whole.exists() and not whole.is_file():
            # To rename over a device would end it, for all that use it.
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    try:
        with translate_os_errors(whole):
            whole.parent.mkdir(parents=True, exist_ok=True)
            yield beside
            retry(lambda: os.replace(beside, whole))
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


@contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Turn what the system says while a block writes `path` into a `StorageError` that says what to do."""
    try:
        yield
    except FataiError:
        raise
    except Exception as e:
        code = _errno_of(e)
        if code in (None, errno.ENOENT):  # the block wrote nothing: its own fault
            raise
        assert code is not None
        remedy = next(
            (remedy for remedy, codes in _REMEDIES.items() if code in codes), "the file system fails; try again later"
        )
        raise StorageError(f"{path}: cannot be written ({os.strerror(code)}): {remedy}") from e


def _errno_of(e: Exception) -> int | None:
    """Number of the system's error that a writer ended with; writers in C and Rust tell it in words, or not at all."""
    if isinstance(e, OSError) and e.errno is not None:
        return e.errno
    told = re.search(r"\(os error (\d+)\)", str(e))
    if told:
        return int(told[1])
    return errno.ENOSPC if isinstance(e, OSError) and re.search(r"\d+ requested and \d+ written", str(e)) else None


@contextmanager
def open_atomic(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """A UTF-8 file to write, which becomes `path` when the block ends; newlines are written as they are on every system.

    Of names that are not UTF-8 on the disk the bytes are told, `caf\\udce9.wav`: what is written can be read everywhere.
    """
    with write_file(path) as beside, open(beside, "w", encoding="utf-8", errors="backslashreplace", newline="") as f:
        yield f


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` by `open_atomic`, whole or not at all."""
    with open_atomic(path) as f:
        f.write(text)


def remove_temp_files(path: str | os.PathLike[str]) -> None:
    """Remove what killed processes left beside `path` while they wrote it; nobody else may be writing it now."""
    whole = Path(os.path.realpath(path))
    for part in whole.parent.glob(f".{glob.escape(whole.stem[:40])}.*.part{glob.escape(whole.suffix)}"):
        part.unlink(missing_ok=True)
