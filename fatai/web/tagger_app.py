"""The web tagger: a sound goes in, its tags come out as bars over time."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from fasthtml.common import H1, A, Button, Div, FastHTML, Header, Input, Label, Main, Output, P, Section, Span
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from fatai.inference.events.tagger import SlidingWindowTagger
from fatai.web.security import HTTPError
from fatai.web.tagging import LEAST_PROB, tag_upload
from fatai.web.job_queue import JobQueue
from fatai.web.server import application, page, text_of
from fatai.web.uploads import Limits, Upload, received

__all__ = ["tagger_app"]


def tagger_app(tagger: SlidingWindowTagger, title: str, limits: Limits | None = None) -> FastHTML:
    """The application; `fatai.web.security.Guard` has to stand before it.

    Its addresses: `/` the page, `/tag` for uploads, `/health` tells how long the line is.
    """
    limits = limits or Limits()
    line = JobQueue(limits.waiting, limits.per_client)

    async def tag(request: Request) -> Response:
        try:
            with line.place(request.client.host if request.client else ""):
                async with received(request, limits) as uploads:
                    sounds = [await _answer(line, tagger, upload, limits, request) for upload in uploads]
        except HTTPError as e:
            return e.response()
        # One sound that is refused is the answer; of several, the others are worth having.
        status = 200 if any("error" not in sound for sound in sounds) else sounds[0]["status"]
        return JSONResponse(
            {"sounds": sounds} if len(sounds) > 1 or status == 200 else {"error": sounds[0]["error"]}, status
        )

    async def health(request: Request) -> Response:
        return JSONResponse(
            {"status": "ok", "waiting": line.waiting, "most": line.most, "done": line.done, "tags": len(tagger.tags)}
        )

    async def index(request: Request) -> Response:
        return _index(title, tagger, limits)

    routes = [Route("/", index), Route("/tag", tag, methods=["POST"]), Route("/health", health)]
    return application(routes, {
        **{name: text_of("fatai.report", f"templates/{name}") for name in ("look.css", "sight.js")},
        "tagger.js": text_of("fatai.web", "tagger.js"), "tagger.css": text_of("fatai.web", "tagger.css"),
    }, on_shutdown=line.close)


async def _answer(
    line: JobQueue, tagger: SlidingWindowTagger, upload: Upload, limits: Limits, request: Request
) -> dict[str, Any]:
    try:
        return await line.work(partial(tag_upload, tagger, upload, limits), request.is_disconnected)
    except HTTPError as e:
        return {"file": upload.name, "error": e.sentence, "status": e.status}


def _index(title: str, tagger: SlidingWindowTagger, limits: Limits) -> HTMLResponse:
    taken = f"Sounds of up to {limits.sound_s:g} seconds and {limits.upload_mb:g} MB, {limits.files} at a time"
    return page(
        title,
        Header(H1(title), P(f"{len(tagger.tags)} tags, heard in windows of {tagger.window_s:g} s")),
        Main(
            Section(
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
                P(f"{taken}. They are forgotten when they are answered.", cls="quiet"),
                id="drop",
            ),
            P(id="told", role="status", aria_live="polite"),
            Section(
                Label(
                    "show what is at least ",
                    Input(type="range", id="threshold", min=f"{100 * LEAST_PROB:g}", max="100", value="50"),
                    Output("50 %", id="level"),
                    " likely",
                ),
                Span(A("download CSV", id="csv", href="#", download="tags.csv", cls="button")),
                id="tools",
                cls="row",
                hidden=True,
            ),
            Div(id="sounds"),
        ),
        scripts=("sight.js", "tagger.js"),
        style="tagger.css",
        bytes=limits.upload_bytes,
        seconds=limits.sound_s,
        files=limits.files,
    )


def named(run: str | Path) -> str:
    """What the page of a run is called."""
    return f"fatai: {Path(run).resolve().name}"
