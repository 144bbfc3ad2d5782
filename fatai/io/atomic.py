"""Atomic writes and retries: a file is written under a temporary name in its folder, then renamed."""

from __future__ import annotations

import errno
import glob
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO, TypeVar

from fatai.errors import FataiError, StorageError

__all__ = ["open_atomic", "remove_temp_files", "retry", "translate_os_errors", "write_file", "write_text"]

T = TypeVar("T")

_REMEDIES = {
    "the disk is full; make room, then start again: what was finished is kept": (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
    ),
    "the folder is not writable; choose another, or change its permissions": (errno.EROFS, errno.EACCES, errno.EPERM),
    "the file name is too long; choose a shorter one": (errno.ENAMETOOLONG,),
    "something else has this name; choose another one": (
        errno.EEXIST,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENOTEMPTY,
        errno.ELOOP,
    ),
}

TRANSIENT_ERRORS = frozenset(
    getattr(errno, name)
    for name in ("EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EREMOTEIO")
    if hasattr(errno, name)
)
"""Errors of a busy or restarting file server; a broken disk gives EIO too, but at every attempt."""
MAX_TRIES, WAIT_S = 4, 0.25


def retry(action: Callable[[], T], *, max_tries: int = MAX_TRIES, wait_s: float = WAIT_S) -> T:
    """Call `action` and return its result; repeat the call after a transient error of a network file system.

    Parameters
    ----------
    action
        Function without arguments.
    max_tries
        Number of calls, after which the last error is raised. Other errors than `TRANSIENT_ERRORS` are raised at once.
    wait_s
        Seconds before the second call; doubled before each further one.

    Examples
    --------
    >>> outcomes = iter([OSError(errno.ESTALE, "Stale file handle"), OSError(errno.EIO, "Input/output error"), None])
    >>> def read():
    ...     if error := next(outcomes):
    ...         raise error
    ...     return "sound"
    >>> retry(read, wait_s=0)
    'sound'
    """
    for attempt in range(max_tries):
        if attempt:
            time.sleep(wait_s * 2 ** (attempt - 1))
        try:
            return action()
        except OSError as e:
            if e.errno not in TRANSIENT_ERRORS or attempt == max_tries - 1:
                raise
    raise AssertionError("unreachable: the last attempt returns or raises")


@contextmanager
def write_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name to write to; the file is renamed to `path` when the block ends without an error.

    If the block raises or the process is killed, the former file at `path` stays as it was: a partial file is never
    visible. Missing folders are created. A link is followed: the file that it points to is replaced. The suffix is
    kept, because some writers choose the format by it. Nothing is synced to the disk: this protects against a killed
    process, not against a power cut.

    Parameters
    ----------
    path
        Regular file to create or to replace.

    Raises
    ------
    StorageError
        If the disk is full, the folder is not writable, `path` is a device, a pipe or a folder, or the file system
        fails; the message has a remedy.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "scores.csv")
    >>> with write_file(path) as temp:
    ...     _ = temp.write_text("fname,Bark")
    >>> path.read_text()
    'fname,Bark'
    """
    target = Path(os.path.realpath(path)) if os.path.islink(path) else Path(path).absolute()
    # In the same folder, since a rename is atomic only within one file system; the stem is cut because names end at 255
    # bytes.
    temp = target.parent / f".{target.stem[:40]}.{secrets.token_hex(6)}.part{target.suffix}"
    with translate_os_errors(target):
        if target.exists() and not target.is_file():
            # A rename over a device would remove the device for every program.
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    try:
        with translate_os_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            yield temp
            retry(lambda: os.replace(temp, target))
    except BaseException:
        with suppress(OSError):
            temp.unlink(missing_ok=True)
        raise


@contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Re-raise an error of the operating system while the block writes `path` as a `StorageError` with a remedy."""
    try:
        yield
    except FataiError:
        raise
    except Exception as e:
        code = _errno_of(e)
        if code in (None, errno.ENOENT):  # the block wrote no file: an error of the caller
            raise
        assert code is not None
        default = "the file system fails; try again later"
        remedy = next((remedy for remedy, codes in _REMEDIES.items() if code in codes), default)
        raise StorageError(f"{path}: cannot be written ({os.strerror(code)}): {remedy}") from e


def _errno_of(e: Exception) -> int | None:
    """Return the error number of the system; libraries in C and Rust give it as text, or not at all."""
    if isinstance(e, OSError) and e.errno is not None:
        return e.errno
    match = re.search(r"\(os error (\d+)\)", str(e))
    if match:
        return int(match[1])
    return errno.ENOSPC if isinstance(e, OSError) and re.search(r"\d+ requested and \d+ written", str(e)) else None


@contextmanager
def open_atomic(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    r"""Open a UTF-8 text file for writing that becomes `path` when the block ends; newlines are not translated.

    File names that are not UTF-8 are written with their bytes escaped, as in `caf\udce9.wav`: the text is always valid
    UTF-8. Raises as `write_file` does.
    """
    with write_file(path) as temp, open(temp, "w", encoding="utf-8", errors="backslashreplace", newline="") as f:
        yield f


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` by `open_atomic`: the complete file, or none."""
    with open_atomic(path) as f:
        f.write(text)


def remove_temp_files(path: str | os.PathLike[str]) -> None:
    """Remove the temporary files of killed processes beside `path`; call it only when no process is writing `path`."""
    target = Path(os.path.realpath(path))
    for part in target.parent.glob(f".{glob.escape(target.stem[:40])}.*.part{glob.escape(target.suffix)}"):
        part.unlink(missing_ok=True)
