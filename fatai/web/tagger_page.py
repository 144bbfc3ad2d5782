"""The page of the tagger, of the local server or of a folder without one."""

from __future__ import annotations

from typing import Any

from fasthtml.common import H1, A, Button, Div, Header, Input, Label, Main, Output, P, Section, Span

from fatai.inference.events.recording_tagger import RecordingTagger
from fatai.web.server import read_package_text, render_page
from fatai.web.tagging import MIN_PROB
from fatai.web.uploads import Limits

__all__ = ["tagger_files", "tagger_page"]


def tagger_page(
    title: str, tagger: RecordingTagger, limits: Limits, *, script: str, note: str, policy: str | None = None
) -> str:
    """Render the page as HTML.

    Parameters
    ----------
    title
        Title of the page.
    tagger
        Its tags, windows and thresholds are shown.
    limits
        Limits of sounds, which the page checks.
    script
        Name of the script that has `tagSound`.
    note
        A sentence on where the sounds go.
    policy
        As in `render_page`.
    """
    return render_page(
        title,
        Header(H1(title), P(f"{len(tagger.tags)} tags, predicted in windows of {tagger.window_s:g} s")),
        Main(
            _upload_section(limits, note),
            P(id="message", role="status", aria_live="polite"),
            _tools_section(tagger),
            Div(id="sounds"),
        ),
        scripts=("common.js", "tagger.js", script),
        style="tagger.css",
        policy=policy,
        max_bytes=limits.upload_bytes,
        max_seconds=limits.sound_s,
        max_files=limits.files,
    )


def tagger_files(*scripts: str) -> dict[str, str]:
    """Return the texts of the files of the page by name: the shared ones, and scripts of this package by their path."""
    return {
        **{name: read_package_text("fatai.report", f"templates/{name}") for name in ("common.css", "common.js")},
        **{
            path.rpartition("/")[2]: read_package_text("fatai.web", path)
            for path in ("tagger.css", "tagger.js", *scripts)
        },
    }


def _upload_section(limits: Limits, note: str) -> Any:
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
        P(f"{allowed}. {note}", cls="muted"),
        id="drop",
    )


def _tools_section(tagger: RecordingTagger) -> Any:
    level = "50 %" if tagger.thresholds is None else "the threshold of each tag"
    return Section(
        Label(
            "show tags with a probability of at least ",
            Input(type="range", id="threshold", min=f"{100 * MIN_PROB:g}", max="100", value="50"),
            Output(level, id="level"),
        ),
        Span(A("download CSV", id="csv", href="#", download="tags.csv", cls="button")),
        id="tools",
        cls="row",
        hidden=True,
    )
