"""Progress of long loops: rich's bar on a terminal, a plain line every 15 seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterable, Iterator, Sized
from typing import TypeVar

__all__ = ["track"]

T = TypeVar("T")

_LINE_EVERY_S = 15.0


def track(items: Iterable[T], desc: str, *, total: int | None = None) -> Generator[T, None, None]:
    """Yield `items` and show the progress on standard error.

    Parameters
    ----------
    items
        Any iterable; it is consumed one item at a time.
    desc
        Text in front of the bar: "reading clips".
    total
        Number of items, for an iterable without a length.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if sys.stderr.isatty():
        from rich import progress
        from rich.console import Console

        yield from progress.track(items, desc, total=total, console=Console(stderr=True), transient=True)
    else:
        yield from _with_plain_lines(items, desc, total)


def _with_plain_lines(items: Iterable[T], desc: str, total: int | None) -> Iterator[T]:
    last = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - last > _LINE_EVERY_S:
            last = time.monotonic()
            print(f"{desc}: {done} of {total}" if total else f"{desc}: {done}", file=sys.stderr, flush=True)
        yield item
