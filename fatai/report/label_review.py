"""The review of label issues, as data and as a page in one file.

A label issue is a clip and a tag, found by `fatai.noisy_labels.label_issues`: a given tag that looks wrong, or another
that looks missing. The page goes through them tag by tag, the most suspect first. A decision on a clip applies to all
its issues.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fatai.audio.io import load_audio
from fatai.data.datasets.fat2019 import FATDataset, load_dataset, noisy_clip_names
from fatai.ensemble.members import run_table
from fatai.errors import AudioError, DataError
from fatai.experiment.manifest import noted_columns, noted_data, read_manifest
from fatai.inference.predictions import Predictions
from fatai.io.atomic import write_text
from fatai.noisy_labels.label_issues import find_label_issues
from fatai.report.decisions import Decisions
from fatai.report.media import audio_uri, overview_image

__all__ = [
    "LabelIssue",
    "Review",
    "ReviewClip",
    "RunIssues",
    "clip_media",
    "label_issues_of_run",
    "load_review",
    "page_files",
    "review_page",
    "write_review",
]

_N_SCORES = 6  # the likeliest tags shown of a clip, besides those given
_SR = 44100
_STYLES, _SCRIPTS = ("common.css", "review.css"), ("common.js", "review.js")


@dataclass(frozen=True)
class ReviewClip:
    """A clip under review.

    Attributes
    ----------
    fname, path
        Name and file.
    labels
        The tags given.
    scores
        Name and probability of the likeliest tags and of those given.
    """

    fname: str
    path: Path
    labels: tuple[str, ...]
    scores: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class LabelIssue:
    """A tag of a clip that looks wrong or missing.

    Attributes
    ----------
    clip
        Number of the clip in the review.
    tag, kind, prob
        The tag, "wrong" or "missing", and its probability.
    instead
        For a wrong tag the one that is likelier; else empty.
    """

    clip: int
    tag: str
    kind: str
    prob: float
    instead: str


@dataclass(frozen=True)
class Review:
    """The clips and their issues, which are ordered by tag as in the vocabulary, the most suspect of a tag first."""

    title: str
    tags: tuple[str, ...]
    clips: tuple[ReviewClip, ...]
    issues: tuple[LabelIssue, ...]

    @property
    def given(self) -> dict[str, tuple[str, ...]]:
        """The tags given to each clip, by its name."""
        return {clip.fname: clip.labels for clip in self.clips}

    def to_dict(self) -> dict[str, Any]:
        """Return values for JSON, without the sounds of the clips."""
        names = json.dumps([self.title, *self.given])
        return {
            "title": self.title,
            "tags": self.tags,
            "id": hashlib.sha256(names.encode()).hexdigest()[:16],
            "clips": [
                {"file": c.fname, "labels": c.labels, "scores": [(tag, round(p, 4)) for tag, p in c.scores]}
                for c in self.clips
            ],
            "issues": [{**asdict(issue), "prob": round(issue.prob, 4)} for issue in self.issues],
        }


class RunIssues(NamedTuple):
    """Label issues of a run.

    Attributes
    ----------
    issues
        As `find_label_issues` returns them, the most suspect first.
    n_clips
        Number of clips that were compared.
    labels
        Table of these clips: `fname`, `labels`, `path`.
    predictions
        The predictions that they were compared with.
    dataset
        The data of the run.
    """

    issues: pd.DataFrame
    n_clips: int
    labels: pd.DataFrame
    predictions: Predictions
    dataset: FATDataset


def label_issues_of_run(
    run: str | Path, data: str | Path | None = None, *, predictions: str | Path | None = None, n: int | None = None,
) -> RunIssues:
    """Find the labels that the out-of-fold predictions of a run contradict.

    Parameters
    ----------
    run
        The run folder.
    data
        The data folder; by default the one in the run's manifest, if it still exists.
    predictions
        A CSV to use instead of the run's oof.csv, for instance of noisy clips; its models must not have been trained on
        these clips.
    n
        Maximum number of clips, the most suspect ones; None for all.

    Raises
    ------
    DataError
        If there are no predictions, no data, no clip that both have, or no issue.
    """
    predicted = Predictions.from_csv(predictions or run_table(Path(run), "oof.csv"))
    dataset = load_dataset(_data_of(Path(run)) if data is None else data, columns=noted_columns(Path(run)))
    labels = _predicted_labels(dataset, predicted)
    pairs = predicted.align_with(labels[["fname", "labels"]], partial=True)
    known = set(labels["fname"])
    fnames = [fname for fname in predicted.fnames if fname in known]
    issues = find_label_issues(pairs.probs, pairs.targ, predicted.tags, fnames, trained_on=fnames, out_of_fold=True)
    if n is not None:
        issues = issues[issues["fname"].isin(issues["fname"].drop_duplicates().head(n))]
    if not len(issues):
        raise DataError(
            f"the predictions of {predictions or run} contradict no label of {len(fnames)} clips; "
            "there is nothing to review"
        )
    return RunIssues(issues, len(fnames), labels, predicted, dataset)


def load_review(
    run: str | Path, data: str | Path | None = None, *, predictions: str | Path | None = None, n: int | None = None,
) -> Review:
    """Load the review of a run; parameters and errors are those of `label_issues_of_run`."""
    found = label_issues_of_run(run, data, predictions=predictions, n=n)
    fnames, tags = list(dict.fromkeys(found.issues["fname"])), found.predictions.tags
    number, order = {fname: k for k, fname in enumerate(fnames)}, {tag: k for k, tag in enumerate(tags)}
    by_tag = found.issues.sort_values("tag", key=lambda column: column.map(order), kind="stable")
    issues = tuple(
        LabelIssue(number[row.fname], row.tag, row.kind, float(row.prob), row.instead) for row in by_tag.itertuples()
    )
    title = f"{Path(run).resolve().name} on {found.dataset.path.resolve().name}"
    return Review(title, tags, _review_clips(fnames, found), issues)


def _review_clips(fnames: Iterable[str], found: RunIssues) -> tuple[ReviewClip, ...]:
    table = found.labels.set_index("fname")
    rows = dict(zip(found.predictions.fnames, found.predictions.probs, strict=True))
    clips = []
    for fname in fnames:
        labels = tuple(table.at[fname, "labels"])
        scores = _top_scores(rows[fname], found.predictions.tags, labels)
        clips.append(ReviewClip(fname, Path(table.at[fname, "path"]), labels, scores))
    return tuple(clips)


def _top_scores(probs: np.ndarray, tags: Sequence[str], labels: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """Return the likeliest tags and those given with their probabilities, from probabilities of shape (tags,)."""
    order = [int(k) for k in np.argsort(-probs, kind="stable")]
    return tuple((tags[k], float(probs[k])) for rank, k in enumerate(order) if rank < _N_SCORES or tags[k] in labels)


def _predicted_labels(dataset: FATDataset, predicted: Predictions) -> pd.DataFrame:
    """Return the labelled clips of both parts that are predicted, each name once."""
    parts = [dataset.curated]
    if dataset.noisy is not None:
        parts.append(dataset.noisy.assign(fname=noisy_clip_names(dataset)))
    table = pd.concat([part[["fname", "labels", "path"]] for part in parts], ignore_index=True).drop_duplicates("fname")
    known = table[table["fname"].isin(predicted.fnames)]
    if not len(known):
        raise DataError(
            f"{dataset.path} has none of the {len(predicted.fnames)} clips of the predictions; "
            "give the folder that the run trained on"
        )
    return known


def _data_of(run: Path) -> Path:
    """Return the data that a run was trained on, from its manifest."""
    found = noted_data(run)
    if found is None:
        data = (read_manifest(run) or {}).get("data", {})
        name, digest = data.get("folder"), data.get("digest")
        raise DataError(
            f"the manifest of {run} names no data that exist (folder {name or 'unknown'}"
            f"{', digest ' + str(digest)[:12] if digest else ''}); give them with --data"
        )
    return found


def clip_media(clip: ReviewClip, max_s: float, columns: int = 500) -> dict[str, Any]:
    """Encode the sound and spectrogram of a clip for a page.

    Parameters
    ----------
    clip
        The clip.
    max_s
        Seconds from the beginning that are encoded.
    columns
        Maximum width of the picture in pixels.

    Returns
    -------
    `seconds` encoded, `total_seconds` of the file, `picture` with its `ticks`, and `sound`; or `error` if the file
    cannot be read.
    """
    try:
        wave = load_audio(clip.path, _SR)
    except AudioError as e:
        return {"error": str(e).replace(str(clip.path), clip.fname)}
    start = wave[:max(1, round(max_s * _SR))]
    image = overview_image(start, _SR, columns)
    return {
        "seconds": round(len(start) / _SR, 3),
        "total_seconds": round(len(wave) / _SR, 3),
        "picture": image.uri,
        "ticks": image.ticks,
        "sound": audio_uri(start, _SR, max_s=max_s),
    }


def write_review(
    run: str | Path,
    out: str | Path,
    data: str | Path | None = None,
    *,
    corrections: str | Path | None = None,
    n: int | None = 100,
    max_s: float = 10.0,
    predictions: str | Path | None = None,
) -> Review:
    """Write the review as one self-contained HTML file, which offers the corrections as a download.

    Parameters
    ----------
    run, data, n, predictions
        As in `label_issues_of_run`, with its errors.
    out
        File to write.
    corrections
        Corrections to begin with; the file need not exist.
    max_s
        Seconds of each clip that are embedded.
    """
    review = load_review(run, data, predictions=predictions, n=n)
    decided = Decisions(corrections or Path(run) / "corrections.csv", review.tags, review.given).read()
    values = review.to_dict()
    for clip, shown in zip(review.clips, values["clips"], strict=True):
        shown.update(clip_media(clip, max_s))
    write_text(out, review_page(review.title, {**values, "decided": decided}))
    return review


def page_files() -> dict[str, str]:
    """Return the style sheets and scripts of the page, by their names."""
    return {name: page_text(name) for name in (*_STYLES, *_SCRIPTS)}


def review_page(title: str, data: Mapping[str, Any] | None = None, token: str = "", mode: str = "labels") -> str:
    """Render the page; with `data` it is self-contained, without it loads them from the server that issued `token`.

    The `mode` is "labels" for a `Review`, or "windows" for a `WindowReview`.
    """
    style, script = ("".join(page_text(name) for name in names) for names in (_STYLES, _SCRIPTS))
    environment = Environment(loader=PackageLoader("fatai.report"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("review.html").render(
        title=title,
        mode=mode,
        data=data,
        token=token,
        styles=_STYLES,
        scripts=_SCRIPTS,
        style=Markup(style),
        script=Markup(script),
        policy=script_policy(style, script),
    )


def script_policy(style: str, script: str = "") -> str:
    """Return a content security policy for a page in one file with this inline style and, unless empty, script."""
    policy = f"default-src 'none'; img-src data:; media-src data:; style-src '{_digest(style)}'"
    return f"{policy}; script-src '{_digest(script)}'" if script else policy


def page_text(name: str) -> str:
    """Read a style sheet or script of the pages."""
    return (files("fatai.report") / "templates" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """Return the hash by which a content security policy allows an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
