"""The page of a run on a local server while it trains: `fatai-submit run --watch PORT`.

The server is a process of its own that reads the files of the run, so that it takes nothing from the training. It ends
when the process that has started it closes its standard input, as the end of that process does, however it comes.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fasthtml.common import FastHTML
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from fatai.errors import OptionError
from fatai.web.server import create_app, serve

__all__ = ["POLICY", "Watch", "watching"]

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; media-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of the pages, which hold their scripts and styles."""

_HOST = "127.0.0.1"
_PAGES = ("history.html", "report.html")
_OPEN_S = 15.0  # after a request, in which a page counts as open; it asks every five seconds
_LAST_S = 8.0  # that an open page has at most to fetch the finished state
_WAITING = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="2"><meta name="color-scheme" content="light dark">
<title>fatai: a run begins</title><link rel="icon" href="data:,">
<style>body { font: 16px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 64rem; }</style></head>
<body><main><h1>The run begins</h1><p>Its page appears here once the data are read.</p></main></body>
</html>
"""


class Watch:
    """The pages of a run or an ensemble: history.html and report.html of its folder, and of those of members.

    Parameters
    ----------
    run
        The folder; it may not exist yet.
    """

    def __init__(self, run: Path):
        self.run, self.requested_at = run.resolve(), float("-inf")

    def app(self) -> FastHTML:
        """Create the application; it must be served behind `fatai.web.security.SecurityMiddleware`, as `serve` does."""
        return create_app(
            [Route("/", self._history), Route("/{name}", self._page), Route("/{member}/{name}", self._page)], {}
        )

    def wait_for_open_page(self) -> None:
        """Return once a page that is open has been asked for again, or after some seconds; at once if none is."""
        now = time.monotonic()
        while self.requested_at < now and now - self.requested_at < _OPEN_S and time.monotonic() - now < _LAST_S:
            time.sleep(0.1)

    def _history(self, request: Request) -> Response:
        return self._respond(self.run / _PAGES[0])

    def _page(self, request: Request) -> Response:
        member, name = request.path_params.get("member", "."), request.path_params["name"]
        path = (self.run / member / name).resolve()
        is_inside = path.parent == self.run or path.parent.parent == self.run
        if name not in _PAGES or not is_inside:
            return HTMLResponse("<!doctype html><title>404</title>There is no such page.", 404)
        return self._respond(path)

    def _respond(self, path: Path) -> Response:
        self.requested_at = time.monotonic()
        try:
            return HTMLResponse(path.read_bytes())
        except FileNotFoundError:
            return HTMLResponse(_WAITING)


@contextmanager
def watching(run: Path, port: int) -> Iterator[str]:
    """Serve the page of a run during the block, and yield its address; the server can be reached from this machine.

    Parameters
    ----------
    run
        The folder of the run; it may not exist yet.
    port
        Port to listen at; 0 takes any free one.

    Raises
    ------
    OptionError
        If the port is in use.
    """
    command = [sys.executable, "-m", "fatai.web.watch", str(run), str(port)]
    # In a session of its own it gets no Ctrl-C, and serves until the run has stopped.
    server = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True
    )
    assert server.stdin is not None and server.stdout is not None
    try:
        answer = server.stdout.readline().strip()
        if not answer.startswith("http://"):
            raise OptionError(answer or "the server of --watch did not start; see the error above")
        yield answer
    finally:
        server.stdin.close()
        try:
            server.wait(timeout=2 * _LAST_S)
        except subprocess.TimeoutExpired:
            server.kill()
        server.stdout.close()


def _main(run: Path, port: int) -> None:
    """Serve the page of a run until standard input ends."""
    watch = Watch(run)

    def until_the_run_ends() -> None:
        sys.stdin.read()
        watch.wait_for_open_page()

    try:
        serve(
            watch.app(), _HOST, port, log=lambda address: print(address, flush=True), policy=POLICY,
            until=until_the_run_ends, option="--watch",
        )
    except OptionError as e:
        print(e, flush=True)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]))
