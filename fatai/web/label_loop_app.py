"""The label loop on a local server: answers are written at once, and the page trains on them and asks again."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Sequence
from typing import Any

from fasthtml.common import FastHTML
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from fatai.audio.segments import split_segment
from fatai.inference.search.labels import window_label_csv, window_name
from fatai.report.label_review import page_files, review_page
from fatai.report.window_page import window_media
from fatai.report.window_review import WindowReview
from fatai.web.review_app import read_json, require_token, with_error_responses
from fatai.web.security import HTTPError
from fatai.web.server import create_app

__all__ = ["label_loop_app"]


class _Answers:
    """Answers of a page, on top of what was known of its windows before."""

    def __init__(self, review: WindowReview):
        self.review, self.tag, self._before = review, review.loop.tag, dict[str, Any]()
        self._lock = threading.Lock()

    def answer(self, window: str, labels: Sequence[str] | None) -> int:
        """Write the tags of a window, among them or not that of the loop; None withdraws the answer."""
        with self._lock:
            self._check(window)
            known = self.review.loop.file.decisions()
            before = self._before.setdefault(window, known.get(window))
            if labels is None:
                return self.review.loop.file.write(window, *(
                    (None,) if before is None else (before["labels"], before["absent"])
                ))
            present = [*labels, *(tag for tag in (before or {}).get("labels", ()) if tag not in (*labels, self.tag))]
            absent = [tag for tag in (before or {}).get("absent", ()) if tag not in (*present, self.tag)]
            return self.review.loop.file.write(
                window, present, absent if self.tag in present else [*absent, self.tag]
            )

    def _check(self, window: str) -> None:
        """Raise `HTTPError` if a window is not one of the index."""
        segment, index = split_segment(window), self.review.loop.index
        rows = index.rows_of(segment.path, segment.start_s, segment.end_s)
        table = index.table(rows)
        if window not in [window_name(row.file, row.start, row.end) for row in table.itertuples()]:
            raise HTTPError(422, f"{window[:80]!r} is no window of this index; reload the page")


def label_loop_app(review: WindowReview) -> FastHTML:
    """Create the application; it must be served behind `fatai.web.security.SecurityMiddleware`, as `serve` does.

    Its routes are `/`, the page; `/data`, the windows to ask about and the answers; `/clip/ROW`, picture and sound of a
    window; `/decide` and `/train`, which need the token of the page; and `/labels.csv`.
    """
    answers, token, training = _Answers(review), secrets.token_urlsafe(32), asyncio.Lock()

    async def index(request: Request) -> Response:
        return HTMLResponse(review_page(review.title, token=token, mode="windows"))

    async def data(request: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(review.to_dict))

    async def clip(request: Request) -> Response:
        row, n = request.path_params["row"], len(review.loop.index)
        if row >= n:
            return HTTPError(404, f"there is no window {row}; the index has {n}").response()
        window = review.loop.index.table([row]).iloc[0]
        return JSONResponse(await asyncio.to_thread(window_media, window["file"], window["start"], window["end"], 500))

    async def decide(request: Request) -> Response:
        require_token(request, token)
        window, labels = _parse_answer(await read_json(request))
        return JSONResponse({"file": window, "decided": await asyncio.to_thread(answers.answer, window, labels)})

    async def train(request: Request) -> Response:
        require_token(request, token)
        async with training:
            await asyncio.to_thread(review.train)
        return JSONResponse(await asyncio.to_thread(review.to_dict))

    async def download(request: Request) -> Response:
        text = window_label_csv(review.loop.file.read())
        return Response(
            text, media_type="text/csv", headers={"content-disposition": 'attachment; filename="labels.csv"'}
        )

    def route(path: str, handle: Any, **options: Any) -> Route:
        return Route(path, with_error_responses(handle, review.loop.file.path), **options)

    return create_app(
        [
            Route("/", index),
            route("/data", data),
            Route("/clip/{row:int}", clip),
            route("/decide", decide, methods=["POST"]),
            route("/train", train, methods=["POST"]),
            route("/labels.csv", download),
        ],
        page_files(),
    )


def _parse_answer(answer: Any) -> tuple[str, list[str] | None]:
    """Return the window and its tags of `{"file": WINDOW, "labels": [TAG, ...]}`; without `labels` None."""
    if not isinstance(answer, dict) or not isinstance(answer.get("file"), str):
        raise HTTPError(422, 'an answer is {"file": window, "labels": [tags]}; leave labels out to withdraw it')
    labels = answer.get("labels")
    if "labels" in answer and not (isinstance(labels, list) and all(isinstance(tag, str) for tag in labels)):
        raise HTTPError(422, "labels must be a list of tags")
    return answer["file"], labels
