"""Who may ask a server on this machine, and what its answers allow a browser to do.

Any page that is open in a browser can send requests to 127.0.0.1, and one whose name was made to point there can read the answers. So every
request has to name a host that this server has, and one that changes something has to come from a page of this server.
"""

from __future__ import annotations

import ipaddress
import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Guard", "HTTPError", "is_loopback", "json_error"]

# One name or address and perhaps a port; nothing of a user, a path or a fragment that readers of addresses disagree on.
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "cache-control": "no-store",
}


class HTTPError(Exception):
    """A request that is answered with a status of HTTP and a sentence."""

    def __init__(self, status: int, sentence: str, **headers: str):
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers

    def response(self) -> JSONResponse:
        """The answer."""
        return json_error(self.status, self.sentence, **self.headers)


def json_error(status: int, sentence: str, **headers: str) -> JSONResponse:
    """An answer that is one sentence, `{"error": sentence}`; underscores in the names of headers are hyphens."""
    return JSONResponse({"error": sentence}, status, {name.replace("_", "-"): value for name, value in headers.items()})


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens at `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """ASGI middleware: refuses other hosts' and other pages' requests with 4xx, and adds the headers that keep a page to itself.

    Parameters
    ----------
    host
        Where the server listens. On loopback only loopback's names are answered, elsewhere also this one and plain addresses.
    """

    def __init__(self, app: ASGIApp, host: str = _LOOPBACK[0]):
        self.app, self.host, self._local = app, host.lower(), is_loopback(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            refused = self._refused(scope["method"], Headers(scope=scope))
            await (refused.response() if refused else self.app)(scope, receive, _with_headers(send))
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _refused(self, method: str, headers: Headers) -> HTTPError | None:
        host = headers.get("host", "")
        if not self._known(host):
            return HTTPError(
                400, f"this server does not answer for the host {host[:80]!r}; open it by the address that it printed"
            )
        if method in ("GET", "HEAD"):
            return None
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        if origin not in (None, f"http://{host}", f"https://{host}") or site not in ("none", "same-origin"):
            return HTTPError(
                403, "only pages of this server may send it something; open it by the address that it printed"
            )
        return None

    def _known(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if not match:
            return False
        name = match[1].strip("[]").lower()
        return name in _LOOPBACK or not self._local and (name == self.host or _is_address(name))


def _is_address(name: str) -> bool:
    # A strange name can be made to point here, an address cannot.
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
        await send(message)

    return sending
