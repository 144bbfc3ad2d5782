"""The label loop of one tag: answers of a user, a probe that is trained on them, its score, and the next questions."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fatai.inference.search.index import SoundIndex
from fatai.inference.search.labels import LabeledWindows, WindowLabelFile, label_windows
from fatai.inference.search.questions import (
    HOLDOUT,
    WindowProbe,
    feature_statistics,
    fit_probe,
    held_out_score,
    next_questions,
)
from fatai.io.atomic import write_text

__all__ = ["LabelLoop", "TrainingRound"]


@dataclass(frozen=True)
class TrainingRound:
    """What a probe was trained on and how it scores.

    Attributes
    ----------
    answers
        Windows that are known to have or to lack the tag, held-out ones among them.
    present, absent
        Those that the probe was fitted on, with and without the tag; 0 if there are not both, so that there is none.
    ap
        Average precision on the answered windows of held-out sounds; None unless there are some with and some without
        the tag.
    held_out_present, held_out_absent
        Their numbers.
    seconds
        Duration of the training.
    """

    answers: int
    present: int
    absent: int
    ap: float | None
    held_out_present: int
    held_out_absent: int
    seconds: float


class LabelLoop:
    """Ask about one tag, train on the answers, and ask again.

    Parameters
    ----------
    index
        The windows.
    tag
        The tag.
    labels
        File of window labels to continue and to write; it need not exist.
    examples
        Features of sounds that have the tag, shape (examples, features).
    holdout
        Fraction of held-out sounds, and of questions about them.
    user
        Name written to each row of the labels.

    Attributes
    ----------
    rounds
        The training rounds so far.
    probe
        The last probe; None before there are answers of both kinds.
    """

    def __init__(
        self,
        index: SoundIndex,
        tag: str,
        labels: str | os.PathLike[str],
        *,
        examples: np.ndarray | None = None,
        holdout: float = HOLDOUT,
        user: str = "",
    ):
        self.index, self.tag, self.examples, self.holdout = index, tag, examples, holdout
        self.file = WindowLabelFile(labels, user)
        self.rounds: list[TrainingRound] = []
        self.probe: WindowProbe | None = None
        self._statistics = feature_statistics(index)
        self.fit()

    def labeled(self) -> LabeledWindows:
        """Read the file of labels, and return those of windows of the index."""
        return label_windows(self.index, self.file.read())

    def fit(self) -> LabeledWindows:
        """Fit the probe on the answers so far, and return them."""
        labeled, own = self.labeled(), {} if self.examples is None else {self.tag: self.examples}
        self.probe = fit_probe(
            self.index, labeled, tags=[self.tag], holdout=self.holdout, examples=own, statistics=self._statistics
        )
        return labeled

    def train(self) -> TrainingRound:
        """Fit the probe, score it on held-out windows, and append the round to `rounds` and to its file."""
        started = time.monotonic()
        labeled = self.fit()
        score = held_out_score(self.index, labeled, self.probe, self.tag, holdout=self.holdout)
        entry = TrainingRound(
            len(labeled.of(self.tag)[0]),
            0 if self.probe is None else self.probe.n_present[self.tag],
            0 if self.probe is None else self.probe.n_absent[self.tag],
            None if score.ap is None else round(score.ap, 4), score.n_present, score.n_absent,
            round(time.monotonic() - started, 2),
        )
        self.rounds.append(entry)
        table = pd.DataFrame([asdict(entry) for entry in self.rounds])
        write_text(self.rounds_path, table.to_csv(index=False, lineterminator="\n"))
        return entry

    @property
    def rounds_path(self) -> Path:
        """File of the training rounds of this session, beside the labels: a row for each."""
        return self.file.path.with_suffix(".rounds.csv")

    def questions(self, n: int = 20) -> pd.DataFrame:
        """Return the windows to ask about next, as `next_questions` does."""
        return next_questions(
            self.index, self.labeled(), self.tag, n, probe=self.probe, examples=self.examples, holdout=self.holdout
        )
