"""The web tagger: a page that displays the tags of uploaded or recorded sounds over time."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from fasthtml.common import FastHTML
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from fatai.export.hub import shown_name
from fatai.inference.events.recording_tagger import RecordingTagger
from fatai.web.job_queue import JobQueue
from fatai.web.security import HTTPError
from fatai.web.server import create_app
from fatai.web.tagger_page import tagger_files, tagger_page
from fatai.web.tagging import tag_upload
from fatai.web.uploads import Limits, Upload, receive_uploads

__all__ = ["tagger_app"]

_SCRIPT = "tag_on_server.js"


def tagger_app(tagger: RecordingTagger, title: str, limits: Limits | None = None) -> FastHTML:
    """Create the application; it must be served behind `fatai.web.security.SecurityMiddleware`, as `serve` does.

    Its routes are `/`, the page; `/tag` for uploads; and `/health` with the length of the queue.

    Parameters
    ----------
    tagger
        Tags the sounds, one after the other.
    title
        Title of the page.
    limits
        Limits of uploads; None takes the defaults.
    """
    limits = limits or Limits()
    queue = JobQueue(limits.waiting, limits.per_client)

    async def tag(request: Request) -> Response:
        try:
            with queue.slot(request.client.host if request.client else ""):
                async with receive_uploads(request, limits) as uploads:
                    sounds = [await _tag_queued(queue, tagger, upload, limits, request) for upload in uploads]
        except HTTPError as e:
            return e.response()
        return _response(sounds)

    async def health(request: Request) -> Response:
        return JSONResponse({
            "status": "ok", "waiting": queue.n_waiting, "max_waiting": queue.max_jobs, "done": queue.n_done,
            "tags": len(tagger.tags),
        })

    async def index(request: Request) -> Response:
        return HTMLResponse(tagger_page(title, tagger, limits, script=_SCRIPT, note="Uploads are not stored."))

    routes = [Route("/", index), Route("/tag", tag, methods=["POST"]), Route("/health", health)]
    return create_app(routes, tagger_files(_SCRIPT), on_shutdown=queue.close)


async def _tag_queued(
    queue: JobQueue, tagger: RecordingTagger, upload: Upload, limits: Limits, request: Request
) -> dict[str, Any]:
    """Tag an upload in the queue; return an error as values too, since other uploads of the request may succeed."""
    try:
        return await queue.run(partial(tag_upload, tagger, upload, limits), request.is_disconnected)
    except HTTPError as e:
        return {"file": upload.name, "error": e.message, "status": e.status}


def _response(sounds: list[dict[str, Any]]) -> JSONResponse:
    """Return the results; if the only sound failed, its error and status."""
    status = 200 if any("error" not in sound for sound in sounds) else sounds[0]["status"]
    if len(sounds) == 1 and status != 200:
        return JSONResponse({"error": sounds[0]["error"]}, status)
    return JSONResponse({"sounds": sounds}, status)


def page_title(run: str | Path) -> str:
    """Return the title of the page of a run."""
    return f"fatai: {shown_name(run)}"
