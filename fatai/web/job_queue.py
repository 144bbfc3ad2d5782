"""One thread that works, and a line of bounded length before it."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from fatai.web.security import HTTPError

__all__ = ["JobQueue"]

Answer = TypeVar("Answer")

_LOOK_S = 0.25  # how often it is looked whether a client has gone
_GONE = 499  # what servers write for a client that did not wait


class JobQueue:
    """Requests that wait for one worker thread.

    Parameters
    ----------
    most
        Requests that may be in the line, the one that is worked on included; one more is refused with 503.
    per_client
        How many of them one client's address may have; one more is refused with 429.
    """

    def __init__(self, most: int, per_client: int):
        self.most, self.per_client, self.done = most, per_client, 0
        self._clients: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="worker")

    @property
    def waiting(self) -> int:
        """Requests in the line."""
        return self._clients.total()

    @contextmanager
    def place(self, client: str) -> Iterator[None]:
        """Stand in the line; raises `HTTPError` where there is no room."""
        with self._lock:
            if self.waiting >= self.most:
                raise HTTPError(
                    503, f"the server is busy with {self.most} uploads; try again in a little while", Retry_After="5"
                )
            if self._clients[client] >= self.per_client:
                sentence = f"{self.per_client} of your uploads are waiting already; send more when they are answered"
                raise HTTPError(429, sentence, Retry_After="5")
            self._clients[client] += 1
        try:
            yield
        finally:
            with self._lock:
                self._clients[client] -= 1
                self._clients += Counter()  # forgets those who have gone
                self.done += 1

    async def work(self, job: Callable[[], Answer], gone: Callable[[], Awaitable[bool]]) -> Answer:
        """What `job` returns or raises, done by the worker; work that has not begun when the client is `gone` is not done at all."""
        future = self._worker.submit(job)
        asked = asyncio.wrap_future(future)
        try:
            while not (await asyncio.wait([asked], timeout=_LOOK_S))[0]:
                if not future.running() and await gone():
                    raise HTTPError(_GONE, "the client did not wait for its answer")
            return asked.result()
        finally:
            future.cancel()

    def close(self) -> None:
        """Finish what is being worked on and forget the rest."""
        self._worker.shutdown(cancel_futures=True)
