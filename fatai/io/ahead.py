"""Compute the next items of an iterable in a thread, while the current one is used."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

__all__ = ["read_ahead"]

T = TypeVar("T")


def read_ahead(items: Iterable[T], size: Callable[[T], int], max_size: int) -> Iterator[T]:
    """Yield items in their order; a thread computes those that come next.

    It pays where the items are decoded by libraries that release the interpreter's lock, and a core is free for them.
    The thread ends with the iterator, also where that is closed before its end.

    Parameters
    ----------
    items
        Consumed by the thread alone.
    size
        Size of an item, for `max_size`.
    max_size
        Items that wait have at most this size together; a larger one waits alone.

    Raises
    ------
    BaseException
        Whatever `items` raises, after the items before.

    Examples
    --------
    >>> list(read_ahead(iter(["one", "two", "three"]), len, 6))
    ['one', 'two', 'three']
    """
    queue = _Queue(items, size, max_size)
    try:
        yield from queue
    finally:
        queue.close()


class _Queue(Generic[T]):
    """Items that a thread has computed and nobody has taken."""

    def __init__(self, items: Iterable[T], size: Callable[[T], int], max_size: int):
        self._items, self._size, self._max_size = iter(items), size, max_size
        self._waiting: deque[tuple[T, int]] = deque()
        self._waiting_size, self._is_over, self._is_closed = 0, False, False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._fill, name="read ahead", daemon=True)
        self._thread.start()

    def _fill(self) -> None:
        try:
            for item in self._items:
                if not self._put(item, self._size(item)):
                    break
        except BaseException as e:  # raised again where the items are taken
            self._error = e
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def _put(self, item: T, size: int) -> bool:
        """Append an item as soon as there is room; return False if the queue is closed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_closed or not self._waiting or self._waiting_size + size <= self._max_size
            )
            self._waiting.append((item, size))
            self._waiting_size += size
            self._changed.notify_all()
            return not self._is_closed

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_over)
                if not self._waiting:
                    break
                item, size = self._waiting.popleft()
                self._waiting_size -= size
                self._changed.notify_all()
            yield item
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the thread after the item that it computes."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()
