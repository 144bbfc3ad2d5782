"""The label review on a local server: each decision is written at once, and sounds are read when they are displayed."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from fasthtml.common import FastHTML
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from fatai.errors import FataiError, StorageError
from fatai.io.json import parse_json
from fatai.report.decisions import Decisions
from fatai.report.label_review import Review, clip_media, page_files, review_page
from fatai.web.security import HTTPError
from fatai.web.server import create_app

__all__ = ["review_app"]

_MAX_BODY_BYTES = 1 << 16  # of a decision
_MAX_CLIP_S = 60.0  # of a clip that is sent to the page


def review_app(review: Review, corrections: str | Path) -> FastHTML:
    """Create the application; it must be served behind `fatai.web.security.SecurityMiddleware`, as `serve` does.

    Its routes are `/`, the page; `/data`, the clips to review and the decisions; `/clip/K`, picture and sound of a
    clip; `/decide`, which takes decisions with the token of the page; and `/corrections.csv`.

    Parameters
    ----------
    review
        The clips to review.
    corrections
        File that decisions are written to; it may not exist yet.

    Raises
    ------
    DataError, LabelError
        If `corrections` exists but is not a file of corrections with the tags of the review.
    """
    decisions, token = Decisions(corrections, review.tags, review.given), secrets.token_urlsafe(32)
    decisions.read()

    async def index(request: Request) -> Response:
        return HTMLResponse(review_page(review.title, token=token))

    async def data(request: Request) -> Response:
        return JSONResponse({**review.to_dict(), "decided": await asyncio.to_thread(decisions.read)})

    async def clip(request: Request) -> Response:
        k = request.path_params["k"]
        if k >= len(review.clips):
            return HTTPError(404, f"there is no clip {k}; the review has {len(review.clips)}").response()
        return JSONResponse(await asyncio.to_thread(clip_media, review.clips[k], _MAX_CLIP_S))

    async def decide(request: Request) -> Response:
        require_token(request, token)
        fname, change = _parse_decision(await read_json(request), decisions)
        return JSONResponse({"file": fname, "decided": await asyncio.to_thread(change)})

    async def download(request: Request) -> Response:
        text = decisions.path.read_text(encoding="utf-8") if decisions.path.is_file() else "fname,labels\n"
        return Response(
            text, media_type="text/csv", headers={"content-disposition": 'attachment; filename="corrections.csv"'}
        )

    return create_app(
        [
            Route("/", index),
            Route("/data", data),
            Route("/clip/{k:int}", clip),
            Route("/decide", with_error_responses(decide, decisions.path), methods=["POST"]),
            Route("/corrections.csv", download),
        ],
        page_files(),
    )


def with_error_responses(route: Callable[[Request], Awaitable[Response]], path: Path) -> Callable[..., Any]:
    """Return a route whose errors are responses that the page shows; `path` is the file of decisions."""
    async def handled(request: Request) -> Response:
        try:
            return await route(request)
        except HTTPError as e:
            return e.response()
        except OSError as e:  # before FataiError, of which that of a full disk is one too
            return _write_error(e, path).response()
        except FataiError as e:
            return HTTPError(422, str(e)).response()

    return handled


def require_token(request: Request, token: str) -> None:
    """Raise `HTTPError` unless a request has the token of the page."""
    if not hmac.compare_digest(request.headers.get("x-fatai-token", "").encode(), token.encode()):
        raise HTTPError(403, "this page belongs to a server that has ended; reload it")


def _write_error(error: OSError, path: Path) -> HTTPError:
    if isinstance(error, StorageError):
        return HTTPError(500, str(error))
    return HTTPError(500, f"{path} cannot be written: {error.strerror}; change its permissions")


def _parse_decision(decision: Any, decisions: Decisions) -> tuple[str, Callable[[], int]]:
    """Return the file name and the change that `{"file": NAME, "labels": [TAG, ...] or null}` asks for.

    Without `labels` a decision is withdrawn.
    """
    if not isinstance(decision, dict) or not isinstance(decision.get("file"), str):
        raise HTTPError(
            422, 'a decision is {"file": name, "labels": [tags] or null}; leave labels out to withdraw a decision'
        )
    if "labels" not in decision:
        return decision["file"], partial(decisions.undo, decision["file"])
    labels = decision["labels"]
    if labels is not None and not (isinstance(labels, list) and all(isinstance(tag, str) for tag in labels)):
        raise HTTPError(422, "labels must be a list of tags, or null to remove the clip")
    return decision["file"], partial(decisions.decide, decision["file"], labels)


async def read_json(request: Request) -> Any:
    """Read a decision; raises `HTTPError` if it is too long or no JSON."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY_BYTES:
            raise HTTPError(413, f"the decision has more than {_MAX_BODY_BYTES:,} bytes")
    try:
        return parse_json(body)
    except ValueError:
        raise HTTPError(422, "the decision is not JSON") from None
