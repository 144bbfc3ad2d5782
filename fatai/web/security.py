"""Access control and response headers of the local servers.

Any page that is open in a browser can send requests to 127.0.0.1, and a page whose host name is made to resolve to
127.0.0.1 (DNS rebinding) can read the responses. So every request must name a host of this server, and a request that
changes something must come from a page of this server.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["POLICY", "HTTPError", "SecurityMiddleware", "is_loopback", "json_error"]

# One name or address and an optional port; no user, path or fragment, which URL parsers read differently.
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of pages whose files are beside them."""

_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "cache-control": "no-store",
}


class HTTPError(Exception):
    """An error that is returned to the client as a status code and a message.

    Parameters
    ----------
    status
        HTTP status code.
    message
        One sentence for the user of the page.
    headers
        Response headers; underscores in the names become hyphens.
    """

    def __init__(self, status: int, message: str, **headers: str):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers

    def response(self) -> JSONResponse:
        """Return the response to send."""
        return json_error(self.status, self.message, **self.headers)


def json_error(status: int, message: str, **headers: str) -> JSONResponse:
    """Return the response `{"error": message}`; underscores in the names of headers become hyphens."""
    return JSONResponse({"error": message}, status, {name.replace("_", "-"): value for name, value in headers.items()})


def is_loopback(host: str) -> bool:
    """Return true if a server at `host` can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class SecurityMiddleware:
    """ASGI middleware that refuses requests for other hosts and from other pages with 4xx, and sets security headers.

    Parameters
    ----------
    app
        The application behind it.
    host
        The address that the server is bound to. On loopback only the names of loopback are accepted as host of a
        request, elsewhere also `host` itself and IP addresses.
    policy
        Content-Security-Policy of the responses.
    """

    def __init__(self, app: ASGIApp, host: str = _LOOPBACK[0], policy: str = POLICY):
        self.app, self.host, self._local = app, host.lower(), is_loopback(host)
        self._headers = {"content-security-policy": policy, **_HEADERS}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request of the ASGI server."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            error = self._check(scope["method"], Headers(scope=scope))
            await (error.response() if error else self.app)(scope, receive, _with_headers(send, self._headers))
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _check(self, method: str, headers: Headers) -> HTTPError | None:
        host = headers.get("host", "")
        if not self._is_allowed(host):
            return HTTPError(
                400, f"this server does not serve the host {host[:80]!r}; open the address that it printed"
            )
        if method in ("GET", "HEAD"):
            return None
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        if origin not in (None, f"http://{host}", f"https://{host}") or site not in ("none", "same-origin"):
            return HTTPError(403, "only pages of this server may send data to it; open the address that it printed")
        return None

    def _is_allowed(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if not match:
            return False
        name = match[1].strip("[]").lower()
        return name in _LOOPBACK or not self._local and (name == self.host or _is_address(name))


def _is_address(name: str) -> bool:
    # A host name of others can be made to resolve to this machine, an address cannot.
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _with_headers(send: Send, added: Mapping[str, str]) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in added.items():
                headers[name] = value
        await send(message)

    return send_with_headers
