"""history.csv: a row for every epoch that has ended, whole at any moment."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path

from fastai.callback.core import Callback
from fastai.learner import Recorder
from fastai.torch_core import rank_distrib

from fatai.io.atomic import write_text
from fatai.io.json import read_text_limited

__all__ = ["EpochCSVLogger"]


class EpochCSVLogger(Callback):
    """Write stage, epoch, losses, metrics and seconds of every epoch to a CSV as the epochs end.

    Parameters
    ----------
    path
        Of the file.
    stage
        Name of the stage, the first column.
    append
        Whether rows of earlier stages stay.
    """

    order = Recorder.order + 10
    # An epoch that a killed fit trains again doesn't get a second row.
    kept_on_resume = ("text",)

    def __init__(self, path: str | Path, stage: str = "fit", *, append: bool = False):
        self.path, self.stage, self.append, self.text = Path(path), stage, append, ""

    def before_fit(self) -> None:
        self.run = not hasattr(self.learn, "lr_finder") and not hasattr(self.learn, "gather_preds")
        if not self.run:
            return
        if not self.append and not rank_distrib():
            self.path.unlink(missing_ok=True)
        self.text = read_text_limited(self.path) if self.path.exists() else ""
        self.started = time.monotonic()

    def after_epoch(self) -> None:
        names = self.recorder.metric_names
        # The recorder's own last column is a clock time as text.
        values = dict(zip([n for n in names if n != "time"], self.recorder.log))
        row = {"stage": self.stage, **{k: f"{v:.6f}" if isinstance(v, float) else v for k, v in values.items()}}
        row["seconds"] = f"{time.monotonic() - self.started:.1f}"
        self.started = time.monotonic()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not self.text:
            writer.writerow(row)
        writer.writerow(row.values())
        self.text += text.getvalue()
        self.resumed()

    def resumed(self) -> None:
        """Write the rows that are known."""
        if not rank_distrib():
            write_text(self.path, self.text)
