"""The review of suspect labels on a server of this machine: every decision is written at once, sounds are read when they are looked at."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from functools import partial
from pathlib import Path
from typing import Any

from fasthtml.common import FastHTML
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from fatai.errors import FataiError, StorageError
from fatai.report.label_review import Review, media_of, page_files, review_page
from fatai.report.decisions import Decisions
from fatai.io.json import parse_json
from fatai.web.security import HTTPError
from fatai.web.server import application

__all__ = ["review_app"]

_BODY = 1 << 16  # bytes of a decision
_MOST_S = 60.0  # seconds of a clip that are sent


def review_app(review: Review, corrections: str | Path) -> FastHTML:
    """The application; `fatai.web.security.Guard` has to stand before it. What is decided goes into `corrections`, which need not be there.

    Its addresses: `/` the page, `/data` what is to be reviewed and what was decided, `/clip/K` picture and sound of a clip, `/decide` takes
    decisions, with the token that the page holds, `/corrections.csv` hands the file out.

    Raises
    ------
    DataError, LabelError
        If `corrections` is there, but is not a file of corrections with these tags.
    """
    decisions, token = Decisions(corrections, review.tags, review.given), secrets.token_urlsafe(32)
    decisions.read()

    async def index(request: Request) -> Response:
        return HTMLResponse(review_page(review, token=token))

    async def data(request: Request) -> Response:
        return JSONResponse({**review.plain(), "decided": await asyncio.to_thread(decisions.read)})

    async def clip(request: Request) -> Response:
        k = request.path_params["k"]
        if k >= len(review.clips):
            return HTTPError(404, f"there is no clip {k}; the review has {len(review.clips)}").response()
        return JSONResponse(await asyncio.to_thread(media_of, review.clips[k], _MOST_S))

    async def decide(request: Request) -> Response:
        try:
            if not hmac.compare_digest(request.headers.get("x-fatai-token", "").encode(), token.encode()):
                raise HTTPError(403, "this page is not of the server that runs now; reload it")
            fname, change = _decision(await _small_json(request), decisions)
            count = await asyncio.to_thread(change)
        except HTTPError as e:
            return e.response()
        except OSError as e:  # before the errors of a user, of which that of a full disk is one
            told = (
                str(e)
                if isinstance(e, StorageError)
                else f"{decisions.path} cannot be written: {e.strerror}; change its permissions"
            )
            return HTTPError(500, told).response()
        except FataiError as e:
            return HTTPError(422, str(e)).response()
        return JSONResponse({"file": fname, "decided": count})

    async def download(request: Request) -> Response:
        text = decisions.path.read_text(encoding="utf-8") if decisions.path.is_file() else "fname,labels\n"
        return Response(
            text, media_type="text/csv", headers={"content-disposition": 'attachment; filename="corrections.csv"'}
        )

    return application(
        [
            Route("/", index),
            Route("/data", data),
            Route("/clip/{k:int}", clip),
            Route("/decide", decide, methods=["POST"]),
            Route("/corrections.csv", download),
        ],
        page_files(),
    )


def _decision(said: Any, decisions: Decisions) -> tuple[str, Any]:
    """The clip and what to do: `{"file": NAME, "labels": [TAG, ...] or null}` decides, without `labels` a decision is taken back."""
    if not isinstance(said, dict) or not isinstance(said.get("file"), str):
        raise HTTPError(
            422, 'a decision is {"file": name, "labels": [tags] or null}, or without labels to take it back'
        )
    if "labels" not in said:
        return said["file"], partial(decisions.forget, said["file"])
    labels = said["labels"]
    if labels is not None and not (isinstance(labels, list) and all(isinstance(tag, str) for tag in labels)):
        raise HTTPError(422, "labels has to be a list of tags, or null to remove the clip")
    return said["file"], partial(decisions.decide, said["file"], labels)


async def _small_json(request: Request) -> Any:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _BODY:
            raise HTTPError(413, f"a decision of more than {_BODY:,} bytes is not taken")
    try:
        return parse_json(body)
    except ValueError:
        raise HTTPError(422, "the decision is not JSON") from None
