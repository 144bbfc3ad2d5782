"""Once more, after errors of a network file system that pass by themselves."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["PASSING", "retry"]

T = TypeVar("T")

PASSING = frozenset(
    getattr(errno, name)
    for name in ("EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EREMOTEIO")
    if hasattr(errno, name)
)
"""What a server that is busy, or comes back, answers; a disk that is broken says EIO too, but says it every time."""
TRIES, WAIT_S = 4, 0.25


def retry(action: Callable[[], T], *, tries: int = TRIES, wait_s: float = WAIT_S) -> T:
    """What `action` returns, tried up to `tries` times while it ends with an error that passes; `wait_s` seconds are doubled each time.

    The last error is raised, and any other at once.

    Examples
    --------
    >>> answers = iter([OSError(errno.ESTALE, "Stale file handle"), OSError(errno.EIO, "Input/output error"), None])
    >>> def read():
    ...     if answer := next(answers):
    ...         raise answer
    ...     return "sound"
    >>> retry(read, wait_s=0)
    'sound'
    """
    for attempt in range(tries):
        if attempt:
            time.sleep(wait_s * 2 ** (attempt - 1))
        try:
            return action()
        except OSError as e:
            if e.errno not in PASSING or attempt == tries - 1:
                raise
    raise AssertionError("unreachable: the last attempt returns or raises")
