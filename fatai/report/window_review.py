"""The review of windows of recordings that may have a tag, as data and as a page in one file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fatai.inference.search.label_loop import LabelLoop
from fatai.inference.search.labels import window_name
from fatai.io.atomic import write_text
from fatai.report.label_review import review_page
from fatai.report.window_page import window_media

__all__ = ["WindowReview", "write_window_review"]


@dataclass
class WindowReview:
    """The questions of a label loop.

    Parameters
    ----------
    loop
        The label loop.
    n
        Number of windows to ask about at a time.
    tags
        More tags to choose from, besides those of the network and of the labels.
    """

    loop: LabelLoop
    n: int = 20
    tags: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.questions = self.loop.questions(self.n)

    @property
    def title(self) -> str:
        """Title of the page."""
        return f"{self.loop.tag} in {self.loop.index.folder.resolve().name}"

    def train(self) -> None:
        """Train on the answers so far and take new questions."""
        self.loop.train()
        self.questions = self.loop.questions(self.n)

    def vocabulary(self) -> list[str]:
        """Return the tags to choose from, that of the loop first."""
        table = self.loop.file.read()
        given = sorted({tag for name in ("labels", "absent") for row in table[name] for tag in row})
        return list(dict.fromkeys([self.loop.tag, *self.tags, *self.loop.index.tags, *given]))

    def to_dict(self) -> dict[str, Any]:
        """Return values for JSON, without sounds: windows, their questions, answers and rounds of training."""
        loop, clips, issues, decided = self.loop, [], [], {}
        known = {
            window_name(row["file"], row["start"], row["end"]): row for row in loop.file.read().to_dict("records")
        }
        for k, question in enumerate(self.questions.itertuples()):
            name = window_name(question.file, question.start, question.end)
            row = known.get(name)
            given = [] if row is None else [tag for tag in row["labels"] if tag != loop.tag]
            is_known = row is not None and loop.tag in (*row["labels"], *row["absent"])
            if row is not None and is_known:
                decided[name] = row["labels"]
            clips.append({
                "file": name, "name": f"{Path(question.file).name}, {question.start:.2f} to {question.end:.2f} s",
                "row": int(question.Index), "path": question.file, "start": question.start, "end": question.end,
                "labels": given, "scores": [],
            })
            score = 0.0 if question.score != question.score else round(question.score, 4)
            issues.append({"clip": k, "tag": loop.tag, "kind": "window", "prob": score, "instead": question.why})
        names = {clip["file"] for clip in clips}
        others = [
            ["" if row[key] != row[key] else row[key] for key in ("file", "start", "end")]
            + [",".join(row["labels"]), ",".join(row["absent"]), row["user"]]
            for name, row in known.items() if name not in names or name not in decided
        ]
        identity = json.dumps([self.title, *sorted(names)])
        return {
            "title": self.title, "tag": loop.tag, "tags": self.vocabulary(), "user": loop.file.user,
            "id": hashlib.sha256(identity.encode()).hexdigest()[:16], "clips": clips, "issues": issues,
            "decided": decided, "others": others, "rounds": [asdict(entry) for entry in loop.rounds],
        }


def write_window_review(review: WindowReview, out: str | Path) -> None:
    """Write the questions as one self-contained HTML file, which offers the answers as a download, labels.csv."""
    values = review.to_dict()
    for clip in values["clips"]:
        clip.update(window_media(clip["path"], clip["start"], clip["end"], 500))
    write_text(out, review_page(review.title, values, mode="windows"))
