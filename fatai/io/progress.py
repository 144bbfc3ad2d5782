"""Progress of long work: a bar on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

__all__ = ["track"]

T = TypeVar("T")

# Seconds between two plain lines: a log stays short, and a reader still sees that something goes on.
_EVERY_S = 15.0


def track(items: Iterable[T], what: str, *, total: int | None = None) -> Iterator[T]:
    """Yield `items` and tell on standard error how far they are.

    Parameters
    ----------
    what
        The work, as it stands in front of the bar: "reading clips".
    total
        Number of items, where `items` has no length.
    """
    if total is None:
        total = len(items) if isinstance(items, Sized) else None
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track as rich_track

        yield from rich_track(items, description=what, total=total, console=Console(stderr=True), transient=True)
        return
    last = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - last > _EVERY_S:
            last = time.monotonic()
            print(f"{what}: {done} of {total}" if total else f"{what}: {done}", file=sys.stderr, flush=True)
        yield item
