"""The web tagger: a page that displays the tags of uploaded or recorded sounds over time."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from fasthtml.common import H1, A, Button, Div, FastHTML, Header, Input, Label, Main, Output, P, Section, Span
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from fatai.inference.events.tagger import SlidingWindowTagger
from fatai.web.job_queue import JobQueue
from fatai.web.security import HTTPError
from fatai.web.server import create_app, read_package_text, render_page
from fatai.web.tagging import MIN_PROB, tag_upload
from fatai.web.uploads import Limits, Upload, receive_uploads

__all__ = ["tagger_app"]


def tagger_app(tagger: SlidingWindowTagger, title: str, limits: Limits | None = None) -> FastHTML:
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
        return _index(title, tagger, limits)

    routes = [Route("/", index), Route("/tag", tag, methods=["POST"]), Route("/health", health)]
    return create_app(routes, {
        **{name: read_package_text("fatai.report", f"templates/{name}") for name in ("common.css", "common.js")},
        **{name: read_package_text("fatai.web", name) for name in ("tagger.js", "tagger.css")},
    }, on_shutdown=queue.close)


async def _tag_queued(
    queue: JobQueue, tagger: SlidingWindowTagger, upload: Upload, limits: Limits, request: Request
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


def _index(title: str, tagger: SlidingWindowTagger, limits: Limits) -> HTMLResponse:
    return render_page(
        title,
        Header(H1(title), P(f"{len(tagger.tags)} tags, predicted in windows of {tagger.window_s:g} s")),
        Main(
            _upload_section(limits),
            P(id="message", role="status", aria_live="polite"),
            _tools_section(),
            Div(id="sounds"),
        ),
        scripts=("common.js", "tagger.js"),
        style="tagger.css",
        max_bytes=limits.upload_bytes,
        max_seconds=limits.sound_s,
        max_files=limits.files,
    )


def _upload_section(limits: Limits) -> Any:
    allowed = f"Sounds of up to {limits.sound_s:g} seconds and {limits.upload_mb:g} MB, {limits.files} at a time"
    return Section(
        P("Drop sounds here, or"),
        Div(
            Label(
                "choose files",
                Input(type="file", id="files", multiple=True, accept="audio/*,.flac,.ogg,.aif,.aiff,.caf,.au"),
                cls="button primary",
            ),
            Button("record", id="record", type="button"),
            cls="row",
        ),
        P(f"{allowed}. Uploads are not stored.", cls="muted"),
        id="drop",
    )


def _tools_section() -> Any:
    return Section(
        Label(
            "show tags with a probability of at least ",
            Input(type="range", id="threshold", min=f"{100 * MIN_PROB:g}", max="100", value="50"),
            Output("50 %", id="level"),
        ),
        Span(A("download CSV", id="csv", href="#", download="tags.csv", cls="button")),
        id="tools",
        cls="row",
        hidden=True,
    )


def page_title(run: str | Path) -> str:
    """Return the title of the page of a run."""
    return f"fatai: {Path(run).resolve().name}"
