"""What every page served here has: an application that fetches nothing from elsewhere, its files, its port."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

from fasthtml.common import Body, FastHTML, Head, Html, Link, Meta, Script, Title, to_xml
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from fatai.errors import OptionError
from fatai.web.security import Guard, json_error

__all__ = ["application", "page", "serve", "text_of"]

_KINDS = {".css": "text/css", ".js": "text/javascript"}


def application(
    routes: Sequence[Route], held: dict[str, str], *, on_shutdown: Callable[[], None] | None = None
) -> FastHTML:
    """An application of some routes and of `/NAME` for each of `held`, names of .js and .css files to their text.

    FastHTML's own headers, sessions and key file are off: they would fetch scripts from elsewhere and write into the current folder.
    """

    def file(request: Request) -> Response:
        name = request.url.path[1:]
        return Response(held[name], media_type=_KINDS[name[name.rindex("."):]])

    async def unknown(request: Request, exc: Exception) -> Response:
        return json_error(404, "there is no such page here; open the address that the server printed")

    async def not_so(request: Request, exc: Exception) -> Response:
        return json_error(405, f"{request.method[:20]} is not what this address takes")

    async def failed(request: Request, exc: Exception) -> Response:
        return json_error(500, "the server failed on this; what went wrong stands where it was started")

    app = FastHTML(
        routes=[*routes, *(Route(f"/{name}", file) for name in held)],
        default_hdrs=False,
        sess_cls=None,
        htmx=False,
        surreal=False,
        secret_key=secrets.token_hex(16),
        on_shutdown=None if on_shutdown is None else [on_shutdown],
        exception_handlers={404: unknown, 405: not_so, 500: failed},
    )
    return app


def page(title: str, *content: Any, scripts: Sequence[str], style: str, **data: Any) -> HTMLResponse:
    """A page whose body carries `data` in attributes, with its scripts and the looks of every page and its own."""
    head = Head(
        Meta(charset="utf-8"),
        Meta(name="viewport", content="width=device-width, initial-scale=1"),
        Title(title),
        Link(rel="icon", href="data:,"),
        Link(rel="stylesheet", href="/look.css"),
        Link(rel="stylesheet", href=f"/{style}"),
        *(Script(src=f"/{script}", defer=True) for script in scripts),
    )
    body = Body(*content, **{f"data_{name}": str(value) for name, value in data.items()})
    return HTMLResponse(to_xml(Html(head, body, lang="en")))


def text_of(package: str, name: str) -> str:
    """A file of a package."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def serve(app: Any, host: str, port: int, say: Callable[[str], None] = print) -> None:
    """Serve an application until it is interrupted; port 0 is any free one. `say` is told the address.

    Raises
    ------
    OptionError
        If the port is taken, or there is no such address on this machine.
    """
    import uvicorn

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(128)  # whoever comes as soon as the address is told waits until the server answers
        except (OSError, OverflowError) as e:
            raise OptionError(
                f"cannot listen at {host}, port {port} ({e}); choose another --port, or 0 for any free one"
            ) from None
        shown = f"[{host}]" if ":" in host else host
        say(f"http://{shown}:{listener.getsockname()[1]}/  (Ctrl-C ends it)")
        config = uvicorn.Config(
            Guard(app, host),
            log_level="warning",
            server_header=False,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=3,
        )
        uvicorn.Server(config).run(sockets=[listener])
