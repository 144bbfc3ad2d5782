"""Base of the local pages: an application that loads nothing from elsewhere, its files and its port."""

from __future__ import annotations

import errno
import secrets
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from fasthtml.common import Body, FastHTML, Head, Html, Link, Meta, Script, Title, to_xml
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fatai.errors import OptionError
from fatai.web.security import POLICY, SecurityMiddleware, json_error

__all__ = ["create_app", "read_package_text", "render_page", "serve"]

_MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript"}


def create_app(
    routes: Sequence[Route], assets: Mapping[str, str], *, on_shutdown: Callable[[], None] | None = None
) -> FastHTML:
    """Create an application without the default headers, sessions and key file of FastHTML.

    Those would load scripts from other servers and write into the current folder.

    Parameters
    ----------
    routes
        Routes of the pages.
    assets
        Text of .js and .css files by name, served as `/NAME`.
    on_shutdown
        Called when the server ends.
    """

    def asset(request: Request) -> Response:
        name = request.url.path[1:]
        return Response(assets[name], media_type=_MEDIA_TYPES[name[name.rindex("."):]])

    return FastHTML(
        routes=[*routes, *(Route(f"/{name}", asset) for name in assets)],
        default_hdrs=False,
        sess_cls=None,
        htmx=False,
        surreal=False,
        secret_key=secrets.token_hex(16),
        on_shutdown=None if on_shutdown is None else [on_shutdown],
        exception_handlers={404: _not_found, 405: _method_not_allowed, 500: _server_error},
    )


async def _not_found(request: Request, exc: Exception) -> Response:
    return json_error(404, "there is no such page; open the address that the server printed")


async def _method_not_allowed(request: Request, exc: Exception) -> Response:
    return json_error(405, f"{request.method[:20]} is not allowed for this address")


async def _server_error(request: Request, exc: Exception) -> Response:
    return json_error(500, "the server failed to process the request; see the error message in its terminal")


def render_page(
    title: str, *content: Any, scripts: Sequence[str], style: str, policy: str | None = None, **data: Any
) -> str:
    """Render a page as HTML, whose files are beside it.

    Parameters
    ----------
    title
        Title of the page.
    content
        FastHTML elements of the body.
    scripts, style
        Names of assets; the common style is always included.
    policy
        Content-Security-Policy of a page that is served without headers; None leaves it to the server.
    data
        Values of `data-*` attributes of the body, for the scripts.
    """
    head = Head(
        Meta(charset="utf-8"),
        *([] if policy is None else [Meta(http_equiv="Content-Security-Policy", content=policy)]),
        Meta(name="viewport", content="width=device-width, initial-scale=1"),
        Title(title),
        Link(rel="icon", href="data:,"),
        Link(rel="stylesheet", href="common.css"),
        Link(rel="stylesheet", href=style),
        *(Script(src=script, defer=True) for script in scripts),
    )
    body = Body(*content, **{f"data_{name}": str(value) for name, value in data.items()})
    return to_xml(Html(head, body, lang="en"))


def read_package_text(package: str, name: str) -> str:
    """Read a text file of a package."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def serve(
    app: Any,
    host: str,
    port: int,
    log: Callable[[str], None] = print,
    *,
    policy: str = POLICY,
    until: Callable[[], None] | None = None,
    option: str = "--port",
) -> None:
    """Serve an application until it is interrupted.

    Parameters
    ----------
    app
        An ASGI application; `SecurityMiddleware` is put before it.
    host
        Address to bind to; "127.0.0.1" can be reached from this machine only.
    port
        0 takes any free port.
    log
        Called with the address of the page, and without `until` with how the server is ended.
    policy
        Content-Security-Policy of the pages.
    until
        Waits in a thread, and the server ends when it returns.
    option
        Name of the option of the port, for the error message.

    Raises
    ------
    OptionError
        If the port is in use, or the address does not belong to this machine.
    """
    import uvicorn

    with _bind(host, port, option) as listener:
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listener.getsockname()[1]}/"
        log(address if until else f"{address}  (press Ctrl-C to stop)")
        config = uvicorn.Config(
            SecurityMiddleware(app, host, policy),
            log_level="warning",
            server_header=False,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=3,
        )
        server = uvicorn.Server(config)
        if until:
            threading.Thread(target=_end_after, args=(until, server), daemon=True).start()
        server.run(sockets=[listener])


def _end_after(until: Callable[[], None], server: Any) -> None:
    until()
    server.should_exit = True


def _bind(host: str, port: int, option: str) -> socket.socket:
    """Return a server socket; clients that connect before the server runs wait for it."""
    is_ipv6 = ":" in host
    try:
        return socket.create_server(
            (host, port),
            family=socket.AF_INET6 if is_ipv6 else socket.AF_INET,
            backlog=128,
            dualstack_ipv6=is_ipv6 and socket.has_dualstack_ipv6(),
        )
    except (OSError, OverflowError) as e:
        if isinstance(e, socket.gaierror) or getattr(e, "errno", None) == errno.EADDRNOTAVAIL:
            raise OptionError(
                f"cannot listen at {host}, which is not an address of this machine; choose another --host, such as "
                "127.0.0.1 (this machine alone) or 0.0.0.0 (all its addresses)"
            ) from None
        reason = getattr(e, "strerror", None) or e
        raise OptionError(
            f"cannot listen at {host}, port {port} ({reason}); choose another {option}, or 0 for any free one"
        ) from None
