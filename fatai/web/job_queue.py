"""A bounded queue of jobs for one worker thread."""

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

Result = TypeVar("Result")

_POLL_S = 0.25  # seconds between checks that a client is still connected
CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that closed the connection before the response


class JobQueue:
    """Requests that wait for one worker thread.

    Parameters
    ----------
    max_jobs
        Maximum number of requests in the queue, including the running one; a further one is refused with 503.
    max_per_client
        Maximum number of requests from one client address; a further one is refused with 429.

    Attributes
    ----------
    n_done
        Number of requests that have left the queue.
    """

    def __init__(self, max_jobs: int, max_per_client: int):
        self.max_jobs, self.max_per_client, self.n_done = max_jobs, max_per_client, 0
        self._clients: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="worker")

    @property
    def n_waiting(self) -> int:
        """Number of requests in the queue, including the running one."""
        return self._clients.total()

    @contextmanager
    def slot(self, client: str) -> Iterator[None]:
        """Occupy a slot in the queue for a client address; raise `HTTPError` if none is free."""
        with self._lock:
            if self.n_waiting >= self.max_jobs:
                raise HTTPError(
                    503, f"the server is busy with {self.max_jobs} uploads; try again in a few seconds", Retry_After="5"
                )
            if self._clients[client] >= self.max_per_client:
                message = f"{self.max_per_client} of your uploads are waiting already; send more when they are done"
                raise HTTPError(429, message, Retry_After="5")
            self._clients[client] += 1
        try:
            yield
        finally:
            with self._lock:
                self._clients[client] -= 1
                self._clients += Counter()  # drops clients whose count is 0
                self.n_done += 1

    async def run(self, job: Callable[[], Result], is_disconnected: Callable[[], Awaitable[bool]]) -> Result:
        """Run a job in the worker thread and return its result or raise its exception.

        Parameters
        ----------
        job
            A function without arguments.
        is_disconnected
            Checked while the job waits; a job whose client has disconnected is not started.

        Raises
        ------
        HTTPError
            499 if the client has disconnected.
        """
        future = self._worker.submit(job)
        waiting = asyncio.wrap_future(future)
        try:
            while not (await asyncio.wait([waiting], timeout=_POLL_S))[0]:
                if not future.running() and await is_disconnected():
                    raise HTTPError(CLIENT_CLOSED_REQUEST, "the client closed the connection before the response")
            return waiting.result()
        finally:
            future.cancel()

    def close(self) -> None:
        """Finish the running job and cancel the others."""
        self._worker.shutdown(cancel_futures=True)
