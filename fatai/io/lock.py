"""Locks on outputs: of two commands that write the same file or folder, the second is refused."""

from __future__ import annotations

import hashlib
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fatai.errors import StorageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["has_locks", "lock_output"]

_held: set[Path] = set()  # by this process, which the system would let lock a file twice
_held_lock = threading.Lock()


def has_locks() -> bool:
    """Return True if this system has such locks; Windows has none."""
    return fcntl is not None


@contextmanager
def lock_output(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let nobody else lock the same file or folder during the block.

    The lock is a file beside `path`, `.NAME.fatai.lock`, which is removed at the end. It does not depend on this file
    being removed: the system ends the lock of a killed process. Where the system or the file system has no locks, and
    where nothing can be written, nothing is locked.

    Parameters
    ----------
    path
        File or folder to write; it need not exist.

    Raises
    ------
    StorageError
        If it is locked; the message names the process.
    """
    target = Path(os.path.realpath(path))
    lock = target.parent / f".{_short(target.name)}.fatai.lock"
    new_folders = [folder for folder in target.parents if not os.path.exists(folder)]
    with _held_lock:
        if lock in _held:
            raise _in_use(path, "this process")
        file = _acquire(lock, path) if fcntl and _is_lockable(target) else None
        if file is not None:
            _held.add(lock)
    try:
        yield
    finally:
        if file is not None:
            with _held_lock, suppress(OSError):
                _held.remove(lock)
                lock.unlink(missing_ok=True)  # before it is closed, or a lock of another process would be removed
            os.close(file)
        with suppress(OSError):
            for folder in new_folders:
                folder.rmdir()  # those that are still empty


def _is_lockable(target: Path) -> bool:
    """Return false for the root and for devices, which have no lock beside them."""
    return bool(target.name) and (os.path.isfile(target) or os.path.isdir(target) or not os.path.exists(target))


def _short(name: str) -> str:
    """Return a name, or a digest if it leaves no room for a suffix in the 255 bytes of file systems."""
    encoded = os.fsencode(name)
    return name if len(encoded) < 240 else hashlib.blake2b(encoded, digest_size=16).hexdigest()


def _in_use(path: str | os.PathLike[str], owner: str) -> StorageError:
    return StorageError(
        f"{os.fspath(path)} is being written by another command ({owner}); wait until that has ended, or choose "
        "another name"
    )


def _acquire(lock: Path, path: str | os.PathLike[str]) -> int | None:
    """Return the descriptor of a locked file, None where there are no locks; raises `StorageError` if it is locked."""
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError:
            return None
        try:
            # Unlike flock, lockf is not inherited by workers, which may outlive a killed process for seconds.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file), os.stat(lock)):
                os.ftruncate(file, 0)
                os.write(file, f"process {os.getpid()} on {platform.node()}".encode())
                return file
            os.close(file)
        except (BlockingIOError, PermissionError):
            owner = os.read(file, 200).decode(errors="replace")
            os.close(file)
            raise _in_use(path, owner or "just started") from None
        except FileNotFoundError:  # its owner has just ended and removed it
            os.close(file)
        except OSError:
            os.close(file)
            return None
