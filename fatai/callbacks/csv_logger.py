"""history.csv: a row for every epoch that has ended; the file is complete at any moment."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path

from fastai.callback.progress import CSVLogger
from fastai.torch_core import rank_distrib

from fatai.callbacks.base import ResumableCallback, is_training
from fatai.io.atomic import write_text
from fatai.io.json import read_text_limited

__all__ = ["EpochCSVLogger"]


class EpochCSVLogger(ResumableCallback, CSVLogger):
    """Write stage, epoch, losses, metrics and seconds of every epoch to a CSV file.

    Unlike fastai's `CSVLogger` it replaces the file atomically after each epoch, keeps no file open and does not touch
    the learner's logger, so that a fit that is interrupted or resumed leaves each epoch in it once. Pass it to the fit,
    not to the learner.

    Parameters
    ----------
    fname
        Path of the file.
    stage
        Name of the stage, the first column.
    append
        True to keep the rows of earlier stages.
    """

    # Without this state, an epoch that is trained again after a kill would get a second row.
    resume_state = ("text",)

    def __init__(self, fname: str | Path, stage: str = "fit", *, append: bool = False):
        super().__init__(fname, append=append)
        self.stage, self.text = stage, ""

    def before_fit(self) -> None:
        """Read the rows to keep."""
        self.run = is_training(self.learn)
        if not self.run:
            return
        if not self.append and not rank_distrib():
            self.fname.unlink(missing_ok=True)
        self.text = read_text_limited(self.fname) if self.fname.exists() else ""
        self.started = time.monotonic()

    def after_epoch(self) -> None:
        """Add a row."""
        # The recorder's own last column is a clock time as text.
        names = [name for name in self.recorder.metric_names if name != "time"]
        values = dict(zip(names, self.recorder.log, strict=False))
        row = {"stage": self.stage, **{k: f"{v:.6f}" if isinstance(v, float) else v for k, v in values.items()}}
        row["seconds"] = f"{time.monotonic() - self.started:.1f}"
        self.started = time.monotonic()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not self.text:
            writer.writerow(row)
        writer.writerow(row.values())
        self.text += text.getvalue()
        self.after_resume()

    def after_resume(self) -> None:
        """Write the rows."""
        if not rank_distrib():
            write_text(self.fname, self.text)

    def after_fit(self) -> None:
        """Do nothing; fastai's logger closes its file here."""
