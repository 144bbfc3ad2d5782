"""The review of suspect labels: which clips, in which order, with what beside them; as data and as a page that is one file.

A suspect is a clip and a tag, as `fatai.noisy_labels.label_issues` finds them: a given tag that looks wrong, or one that looks missing. They are gone
through tag by tag, the most suspect first. What is decided of a clip holds for all of its suspects.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fatai.io.atomic import write_text
from fatai.data.datasets.fat2019 import FATDataset, load_dataset
from fatai.errors import AudioError, DataError
from fatai.inference.predictions import Predictions
from fatai.experiment.manifest import noted_data, read_manifest
from fatai.report.media import sound
from fatai.report.decisions import Decisions
from fatai.report.whole_picture import whole_picture
from fatai.audio.io import load_audio
from fatai.noisy_labels.label_issues import find_label_issues

__all__ = ["Review", "ReviewClip", "Suspect", "media_of", "page_files", "review_of_run", "review_page", "write_review"]

_SCORES = 6  # the likeliest tags that are shown of a clip, besides those given
_SR = 44100
_STYLES, _SCRIPTS = ("look.css", "review.css"), ("sight.js", "review.js")


@dataclass(frozen=True)
class ReviewClip:
    """A clip in doubt: its name and file, the tags given, and the model's probabilities of the likeliest tags and those given."""

    fname: str
    path: Path
    labels: tuple[str, ...]
    scores: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Suspect:
    """A reason to look at clip number `clip`: a `tag` that looks "wrong" or "missing", and for a wrong one what it may be instead."""

    clip: int
    tag: str
    kind: str
    prob: float
    instead: str


@dataclass(frozen=True)
class Review:
    """All that there is to look at; `find_label_issues` are tag by tag in the order of the vocabulary, the most suspect of each first."""

    title: str
    tags: tuple[str, ...]
    clips: tuple[ReviewClip, ...]
    find_label_issues: tuple[Suspect, ...]

    @property
    def given(self) -> dict[str, tuple[str, ...]]:
        """The tags given to each clip, by its name."""
        return {clip.fname: clip.labels for clip in self.clips}

    def plain(self) -> dict[str, Any]:
        """Values for JSON; the clips without their sounds."""
        names = json.dumps([self.title, *self.given])
        return {
            "title": self.title,
            "tags": self.tags,
            "id": hashlib.sha256(names.encode()).hexdigest()[:16],
            "clips": [
                {"file": c.fname, "labels": c.labels, "scores": [(tag, round(p, 4)) for tag, p in c.scores]}
                for c in self.clips
            ],
            "suspects": [{**asdict(suspect), "prob": round(suspect.prob, 4)} for suspect in self.suspects],
        }


def review_of_run(
    run: str | Path, data: str | Path | None = None, *, predictions: str | Path | None = None, n: int | None = None,
) -> Review:
    """The clips of a run whose labels its out-of-fold predictions doubt.

    Parameters
    ----------
    data
        The data folder; by default the one that the run's manifest names, if it is still there.
    predictions
        A CSV that judges instead of the run's oof.csv, for instance of noisy clips; from models that did not train on these.
    n
        No more clips than these, the most suspect ones; None for all.

    Raises
    ------
    DataError
        If there are no predictions, no data, no clip that both know, or nothing that is suspect.
    """
    judge = Predictions.from_csv(predictions or Path(run) / "oof.csv")
    layout = load_dataset(_data_of(Path(run)) if data is None else data)
    table = _labelled(layout, judge)
    both = judge.align_with(table[["fname", "labels"]], partial=True)
    fnames = [fname for fname in judge.fnames if fname in set(table["fname"])]
    found = find_label_issues(both.probs, both.targ, judge.tags, fnames, trained_on=fnames, out_of_fold=True)
    if n is not None:
        found = found[found["fname"].isin(found["fname"].drop_duplicates().head(n))]
    if not len(found):
        raise DataError(
            f"nothing is suspect among the {len(fnames)} clips that {predictions or run} judges; there is nothing to review"
        )
    shown = list(dict.fromkeys(found["fname"]))
    clips = _clips(shown, table.set_index("fname"), dict(zip(fnames, both.probs)), judge.tags)
    number, rank = {fname: k for k, fname in enumerate(shown)}, {tag: k for k, tag in enumerate(judge.tags)}
    found = found.sort_values("tag", key=lambda tags: tags.map(rank), kind="stable")
    return Review(f"{Path(run).resolve().name} on {layout.path.resolve().name}", judge.tags, clips, tuple(
        Suspect(number[row.fname], row.tag, row.kind, float(row.prob), row.instead) for row in found.itertuples()
    ))


def _clips(
    shown: Iterable[str], table: pd.DataFrame, probs: Mapping[str, np.ndarray], tags: Sequence[str],
) -> tuple[ReviewClip, ...]:
    clips = []
    for fname in shown:
        labels, row = tuple(table.at[fname, "labels"]), probs[fname]
        order = [tags[int(k)] for k in np.argsort(-row, kind="stable")]
        scores = [tag for k, tag in enumerate(order) if k < _SCORES or tag in labels]
        at = dict(zip(tags, row.tolist()))
        clips.append(ReviewClip(fname, Path(table.at[fname, "path"]), labels, tuple((tag, at[tag]) for tag in scores)))
    return tuple(clips)


def _labelled(layout: FATDataset, judge: Predictions) -> pd.DataFrame:
    """Labelled clips of both parts that are judged, each name once."""
    parts = [layout.curated] if layout.noisy is None else [layout.curated, layout.noisy]
    table = pd.concat([part[["fname", "labels", "path"]] for part in parts], ignore_index=True).drop_duplicates("fname")
    known = table[table["fname"].isin(judge.fnames)]
    if not len(known):
        raise DataError(
            f"{layout.path} has none of the {len(judge.fnames)} clips that are judged; give the folder that the run trained on"
        )
    return known


def _data_of(run: Path) -> Path:
    """The data that a run trained on, by its manifest."""
    found = noted_data(run)
    if found is None:
        data = (read_manifest(run) or {}).get("data", {})
        name, digest = data.get("folder"), data.get("digest")
        raise DataError(f"{run} does not say where its data are (their folder was called {name or 'what is not known'}"
                        f"{', digest ' + str(digest)[:12] if digest else ''}); give it with --data")
    return found


def media_of(clip: ReviewClip, most_s: float, columns: int = 500) -> dict[str, Any]:
    """What is seen and heard of a clip: `seconds` shown, `of` how many, `picture` with `ticks`, `sound`; or the `fault` of its file."""
    try:
        wave = load_audio(clip.path, _SR)
    except AudioError as e:
        return {"fault": str(e).replace(str(clip.path), clip.fname)}
    kept = wave[:max(1, round(most_s * _SR))]
    seen = whole_picture(kept, _SR, columns)
    return {
        "seconds": round(len(kept) / _SR, 3), "of": round(len(wave) / _SR, 3), "picture": seen.uri, "ticks": seen.ticks,
        "sound": sound(kept, _SR, most_s=most_s),
    }


def write_review(
    run: str | Path,
    out: str | Path,
    data: str | Path | None = None,
    *,
    corrections: str | Path | None = None,
    n: int | None = 100,
    most_s: float = 10.0,
    predictions: str | Path | None = None,
) -> Review:
    """Write the review as one HTML file that needs no network; it hands out the corrections as a download.

    Parameters
    ----------
    corrections
        Corrections to begin with: a file, which need not be there.
    most_s
        Seconds of each clip that are in the page.

    Other arguments and errors are those of `review_of_run`.
    """
    review = review_of_run(run, data, predictions=predictions, n=n)
    decided = Decisions(corrections or Path(run) / "corrections.csv", review.tags, review.given).read()
    plain = review.plain()
    for clip, shown in zip(review.clips, plain["clips"], strict=True):
        shown.update(media_of(clip, most_s))
    write_text(out, review_page(review, {**plain, "decided": decided}))
    return review


def page_files() -> dict[str, str]:
    """The style sheets and scripts of the page, by their names."""
    return {name: _text(name) for name in (*_STYLES, *_SCRIPTS)}


def review_page(review: Review, data: Mapping[str, Any] | None = None, token: str = "") -> str:
    """The page; with `data` all is in it, without it comes from the server that has given out `token`."""
    style, script = ("".join(_text(name) for name in names) for names in (_STYLES, _SCRIPTS))
    page = Environment(loader=PackageLoader("fatai.report"), autoescape=True, undefined=StrictUndefined).get_template(
        "review.html"
    )
    return page.render(
        title=review.title,
        data=data,
        token=token,
        styles=_STYLES,
        scripts=_SCRIPTS,
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; img-src data:; media-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'",
    )


def _text(name: str) -> str:
    return (files("fatai.report") / "templates" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """As a content security policy names a script or style that may stand in the page."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
