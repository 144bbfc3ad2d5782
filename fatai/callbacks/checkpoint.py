"""Which weights of a fit are kept: those of the best epoch, snapshots at the end of cosine cycles.

They lie in `learn.path / learn.model_dir` as safetensors. Both callbacks are to be given to the fit, not to the learner, as fastai's own
trackers: among the learner's callbacks they would also act on every `validate()`.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from fastai.callback.core import Callback
from fastai.callback.tracker import TrackerCallback
from fastai.learner import Learner
from fastai.torch_core import distrib_barrier, get_model, rank_distrib

from fatai.errors import OptionError
from fatai.registry import did_you_mean
from fatai.models.checkpoint import load_weights, save_weights
from fatai.callbacks.schedulers import restarts

__all__ = ["SaveBestModel", "SaveSnapshots"]


class SaveBestModel(TrackerCallback):
    """The weights of the best epoch, put back at the fit's end.

    `path_of_best` is their file, None before the first; `best` their score. A score that is no number is never the best, and without any
    the last weights stay, with a warning.

    Parameters
    ----------
    monitor
        A column of the table of epochs: a metric, of which more is better, or a loss.
    fname
        Files are `fname_<n>.safetensors`, n counting the bests; an older one goes when the next epoch ends, so that a fit killed at any
        moment finds the one that its state speaks of.
    min_delta
        How much better it has to be.
    reset_on_fit
        Whether each fit has a best of its own. Without, one callback given to several fits keeps the best of all.
    load
        Whether to put the best weights back at the end; `load_best` does it at any time.

    Raises
    ------
    OptionError
        When the fit begins: a column that the table hasn't got.
    """

    order = TrackerCallback.order + 1
    kept_on_resume = ("number",)

    def __init__(
        self,
        monitor: str = "lwlrap",
        *,
        fname: str = "best",
        min_delta: float = 0.0,
        reset_on_fit: bool = True,
        load: bool = True,
    ):
        super().__init__(monitor=monitor, min_delta=min_delta, reset_on_fit=reset_on_fit)
        self.fname, self.load_at_end, self.number = fname, load, 0
        self.folder = Path()

    def before_fit(self) -> None:
        self.run = not hasattr(self.learn, "lr_finder") and not hasattr(self.learn, "gather_preds")
        if not self.run:
            return
        self.folder = _folder(self.learn)
        columns = list(self.recorder.metric_names[1:])
        if self.monitor not in columns:
            raise OptionError(
                f"monitor is {self.monitor!r}, no column of the table of epochs; {did_you_mean(self.monitor, columns)}"
            )
        if self.reset_on_fit:
            self.number = 0
        super().before_fit()

    @property
    def path_of_best(self) -> Path | None:
        """The file of the best weights so far."""
        return _file(self.folder, self.fname, self.number) if self.number else None

    def after_epoch(self) -> None:
        if not rank_distrib():
            _remove_others(self.folder, self.fname, self.number)
        super().after_epoch()
        if self.new_best:
            self.number += 1
            _save(self.learn, _file(self.folder, self.fname, self.number))

    def after_fit(self) -> None:
        if self.run and self.load_at_end:
            self.load_best(self.learn)
        super().after_fit()

    def load_best(self, learn: Learner) -> None:
        """Put the best weights into a learner's model, at any time."""
        if self.path_of_best is None:
            warnings.warn(f"in no epoch was {self.monitor} a number; the last weights stay", stacklevel=2)
            return
        distrib_barrier()
        load_weights(self.path_of_best, get_model(learn.model))


class SaveSnapshots(Callback):
    """The weights at the end of each cycle of `cosine_restarts`, for a mean of their predictions, as the 4th place took it.

    `paths` lists their files, `fname_<epochs done>.safetensors`, the first cycle first.

    Parameters
    ----------
    cycle, mult
        Those of the schedule.

    Raises
    ------
    OptionError
        When the fit begins: it is shorter than one cycle.
    """

    order = TrackerCallback.order + 1

    def __init__(self, cycle: int = 64, *, mult: int = 1, fname: str = "snapshot"):
        restarts(cycle, cycle, mult)  # refuses what is no cycle
        self.cycle, self.mult, self.fname = cycle, mult, fname
        self.ends: list[int] = []
        self.folder = Path()

    def before_fit(self) -> None:
        self.run = not hasattr(self.learn, "lr_finder") and not hasattr(self.learn, "gather_preds")
        if self.run:
            self.folder = _folder(self.learn)
            self.ends = restarts(self.learn.n_epoch, self.cycle, self.mult)
            if not self.ends:
                raise OptionError(
                    f"a fit of {self.learn.n_epoch} epochs ends before the first cycle of {self.cycle}: take a shorter cycle"
                )

    def after_epoch(self) -> None:
        if self.learn.epoch + 1 in self.ends:
            _save(self.learn, _file(self.folder, self.fname, self.learn.epoch + 1))

    @property
    def paths(self) -> list[Path]:
        """Files of the snapshots taken so far."""
        return [path for path in (_file(self.folder, self.fname, end) for end in self.ends) if path.exists()]


def _folder(learn: Learner) -> Path:
    return Path(learn.path) / learn.model_dir


def _file(folder: Path, fname: str, number: int) -> Path:
    return folder / f"{fname}_{number}.safetensors"


def _save(learn: Learner, path: Path) -> None:
    if not rank_distrib():
        save_weights(path, get_model(learn.model), {})


def _remove_others(folder: Path, fname: str, number: int) -> None:
    """Files of bests that were surpassed, or that an earlier fit left."""
    for path in folder.glob("*.safetensors"):
        found = re.fullmatch(re.escape(fname) + r"_(\d+)", path.stem)
        if found and int(found[1]) != number:
            path.unlink(missing_ok=True)
