"""A page of windows of sound with players and spectrograms, in one self-contained file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from fatai.audio.io import load_audio
from fatai.errors import AudioError
from fatai.io.atomic import write_text
from fatai.report.html import page_environment
from fatai.report.label_review import page_text, script_policy
from fatai.report.media import OverviewImage, audio_uri, overview_image

__all__ = ["window_media", "write_window_page"]

_SR = 44100
_COLUMNS = 400


def window_media(path: str, start_s: float, end_s: float, columns: int = _COLUMNS) -> dict[str, Any]:
    """Encode the sound and spectrogram of a window for a page.

    Parameters
    ----------
    path
        The sound file; only the window is decoded where its format permits.
    start_s, end_s
        The window, in seconds.
    columns
        Maximum width of the picture in pixels.

    Returns
    -------
    `seconds`, `picture` with its `ticks`, and `sound`; or `error` if the file cannot be read.
    """
    try:
        wave = load_audio(path, _SR, offset_s=start_s, duration_s=end_s - start_s)
    except AudioError as e:
        return {"error": str(e)}
    image = overview_image(wave, _SR, columns)
    return {
        "seconds": round(len(wave) / _SR, 3),
        "picture": image.uri,
        "ticks": image.ticks,
        "sound": audio_uri(wave, _SR, max_s=end_s - start_s),
    }


def write_window_page(out: str | Path, title: str, table: pd.DataFrame, notes: Sequence[str] = ()) -> None:
    """Write windows as one HTML file, with a player and a spectrogram for each.

    Parameters
    ----------
    out
        File to write.
    title
        Title of the page.
    table
        Columns `file`, `start`, `end` and `score`, the best first.
    notes
        Sentences below the title.
    """
    windows = [_window(row.file, row.start, row.end, row.score) for row in table.itertuples()]
    style = page_text("common.css") + page_text("windows.css")
    page = page_environment().get_template("windows.html").render(
        title=title, notes=notes, windows=windows, style=Markup(style), policy=script_policy(style)
    )
    write_text(out, page)


def _window(file: str, start_s: float, end_s: float, score: float) -> dict[str, Any]:
    """Return what the page shows of a window: its place, and its media unless it cannot be read."""
    media, name = window_media(file, start_s, end_s), Path(file).name
    if "picture" in media:
        label = f"spectrogram of {name}, {start_s:.2f} to {end_s:.2f} s"
        media["drawing"] = OverviewImage(media["picture"], media["ticks"]).svg(media["seconds"], label)
    return {"name": name, "file": file, "start": start_s, "end": end_s, "score": score, **media}
