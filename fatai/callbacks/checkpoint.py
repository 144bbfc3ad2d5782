"""Save weights during a fit: those of the best epoch, also over several stages, or at the end of cosine cycles.

Files are written to `learn.path / learn.model_dir` as safetensors. These callbacks must be passed to the fit, not to
the learner, like fastai's own trackers: among the learner's callbacks they would also act on every `validate()`.
"""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import Any

from fastai.callback.core import Callback
from fastai.callback.tracker import SaveModelCallback, TrackerCallback
from fastai.learner import Learner
from fastai.torch_core import distrib_barrier, get_model, rank_distrib
from safetensors.torch import load_file, save_file

from fatai.callbacks.base import ResumableCallback, is_training
from fatai.callbacks.schedulers import cycle_ends
from fatai.errors import CheckpointError, OptionError
from fatai.io.atomic import write_file
from fatai.models.checkpoint import load_weights, read_metadata, save_weights
from fatai.registry import did_you_mean

__all__ = ["BestOfStages", "SaveBestModel", "SaveSnapshots"]

# Key of the score in the metadata of the files that `BestOfStages` writes.
_SCORE = "best"
_DEFAULT_MONITORS = ("lwlrap", "map")


class SaveBestModel(ResumableCallback, SaveModelCallback):
    """Save the weights of the best epoch, and load them at the end of the fit.

    It differs from fastai's `SaveModelCallback` in that it writes safetensors, never loads the file of an earlier fit,
    and can be resumed. Of epochs with equal scores the one with the lowest validation loss is the best, of equal losses
    the last one. A score that is NaN is never the best; if all are, the last weights are kept, with a warning.

    Parameters
    ----------
    monitor
        A column of the table of epochs: a metric, of which higher is better, or a loss, of which lower is. None takes
        lwlrap, or, if that is no column, as with one tag, the mean average precision.
    fname
        Files are `fname_<n>.safetensors`, n counting the best epochs; an older file is removed when the next epoch
        ends, so that a fit killed at any moment finds the one that its resume state refers to.
    min_delta
        Smallest difference that counts as an improvement; raise it if scores fluctuate.
    reset_on_fit
        True to start each fit without a best score. With False one callback passed to several fits keeps the best of
        all.
    load
        True to load the best weights at the end; `load_best` does so at any time.

    Attributes
    ----------
    best : float
        Best score so far.
    best_loss : float
        Validation loss of the best epoch.
    number : int
        Number of epochs so far that were the best when they ended.

    Raises
    ------
    OptionError
        When the fit begins: `monitor` is no column of the table.
    """

    resume_state = ("number", "best_loss")

    def __init__(
        self,
        monitor: str | None = None,
        *,
        fname: str = "best",
        min_delta: float = 0.0,
        reset_on_fit: bool = True,
        load: bool = True,
    ):
        super().__init__(
            monitor=_DEFAULT_MONITORS[0] if monitor is None else monitor, fname=fname, min_delta=min_delta,
            reset_on_fit=reset_on_fit,
        )
        self.load_at_end, self.number, self.best_loss = load, 0, math.inf
        self.is_default = monitor is None
        self.folder = Path()

    def before_fit(self) -> None:
        """Check the monitored column, before anything is trained."""
        self.run = is_training(self.learn)
        if not self.run:
            return
        self.folder = _folder(self.learn)
        columns = list(self.recorder.metric_names[1:])
        if self.is_default:
            self.monitor = next((name for name in _DEFAULT_MONITORS if name in columns), _DEFAULT_MONITORS[0])
        if self.monitor not in columns:
            raise OptionError(
                f"monitor is {self.monitor!r}, not a column of the epochs' table; {did_you_mean(self.monitor, columns)}"
            )
        if self.reset_on_fit:
            self.number, self.best_loss = 0, math.inf
        super().before_fit()

    @property
    def path_of_best(self) -> Path | None:
        """File of the best weights so far; None before the first."""
        return _file(self.folder, self.fname, self.number) if self.number else None

    def after_epoch(self) -> None:
        """Save the weights if the score is the best so far."""
        if not rank_distrib():
            _remove_others(self.folder, self.fname, self.number)
        # Not SaveModelCallback's, which prints a line for each best epoch.
        TrackerCallback.after_epoch(self)
        values = dict(zip(self.recorder.metric_names[1:], self.recorder.values[-1], strict=False))
        loss = float(values.get("valid_loss", math.inf))
        tied = values[self.monitor] == self.best and loss <= self.best_loss
        self.new_best: bool = self.new_best or tied
        if self.new_best:
            self.best_loss = math.inf if math.isnan(loss) else loss
            self.number += 1
            _save(self.learn, _file(self.folder, self.fname, self.number))

    def after_fit(self) -> None:
        """Load the best weights."""
        if self.run and self.load_at_end:
            self.load_best(self.learn)
        TrackerCallback.after_fit(self)

    def load_best(self, learn: Learner) -> None:
        """Load the best weights so far into the model of a learner; warn if there are none."""
        if self.path_of_best is None:
            warnings.warn(f"{self.monitor} was NaN in every epoch; the last weights are kept", stacklevel=2)
            return
        distrib_barrier()
        load_weights(self.path_of_best, get_model(learn.model))


class BestOfStages(SaveBestModel):
    """Like `SaveBestModel`, over several stages, each of which may be fitted by another learner in another process.

    Parameters
    ----------
    before
        File with the best weights of earlier stages and their score; None, or a file that does not exist, where there
        are none.
    after
        File to write the best weights so far to when the fit ends; None if no later stage needs them.
    **kwargs
        As in `SaveBestModel`; with `load` the best weights of this and of earlier stages are loaded at the end.

    Raises
    ------
    CheckpointError
        When the fit begins: `before` holds no score.
    """

    def __init__(self, before: Path | None, after: Path | None, **kwargs: Any):
        super().__init__(**kwargs)
        self.before, self.after = before, after

    def before_fit(self) -> None:
        """Start from the best score of the earlier stages."""
        super().before_fit()
        if self.run and self.before is not None and self.before.exists():
            try:
                self.best = float(read_metadata(self.before)[_SCORE])
                self.best_loss = -math.inf  # of equal scores that of the earlier stage stays the best
            except (KeyError, ValueError) as e:
                raise CheckpointError(
                    f"{self.before} holds no score of its weights ({e!r}); delete the fold's folder to start it again"
                ) from None

    @property
    def path_of_best(self) -> Path | None:
        """File of the best weights of this stage, or else of those before it."""
        earlier = self.before if self.before is not None and self.before.exists() else None
        return super().path_of_best or earlier

    def after_fit(self) -> None:
        """Write the best weights for the next stage."""
        best = self.path_of_best
        if self.run and self.after is not None and best is not None and not rank_distrib():
            with write_file(self.after) as beside:
                save_file(load_file(best), str(beside), metadata={_SCORE: repr(float(self.best))})
        super().after_fit()


class SaveSnapshots(Callback):
    """Save the weights at the end of each cycle of `cosine_restarts`, to average predictions as the 4th place did.

    Files are `fname_<epochs done>.safetensors`.

    Parameters
    ----------
    cycle, mult
        Those of the schedule.
    fname
        Beginning of the file names.

    Raises
    ------
    OptionError
        If `cycle` or `mult` is below 1; when the fit begins, if it is shorter than one cycle.
    """

    order = TrackerCallback.order + 1

    def __init__(self, cycle: int = 64, *, mult: int = 1, fname: str = "snapshot"):
        cycle_ends(cycle, cycle, mult)  # raises for values out of range
        self.cycle, self.mult, self.fname = cycle, mult, fname
        self.ends: list[int] = []
        self.folder = Path()

    def before_fit(self) -> None:
        """Compute the epochs at which cycles end."""
        self.run = is_training(self.learn)
        if not self.run:
            return
        self.folder = _folder(self.learn)
        self.ends = cycle_ends(self.learn.n_epoch, self.cycle, self.mult)
        if not self.ends:
            raise OptionError(
                f"a fit of {self.learn.n_epoch} epochs is shorter than the first cycle of {self.cycle}: shorten it"
            )

    def after_epoch(self) -> None:
        """Save the weights at the end of a cycle."""
        if self.learn.epoch + 1 in self.ends:
            _save(self.learn, _file(self.folder, self.fname, self.learn.epoch + 1))

    @property
    def paths(self) -> list[Path]:
        """Files of the snapshots taken so far, first cycle first."""
        return [path for path in (_file(self.folder, self.fname, end) for end in self.ends) if path.exists()]


def _folder(learn: Learner) -> Path:
    return Path(learn.path) / learn.model_dir


def _file(folder: Path, fname: str, number: int) -> Path:
    return folder / f"{fname}_{number}.safetensors"


def _save(learn: Learner, path: Path) -> None:
    if not rank_distrib():
        save_weights(path, get_model(learn.model), {})


def _remove_others(folder: Path, fname: str, number: int) -> None:
    """Remove files of epochs that are no longer the best, or that an earlier fit left."""
    for path in folder.glob("*.safetensors"):
        found = re.fullmatch(re.escape(fname) + r"_(\d+)", path.stem)
        if found and int(found[1]) != number:
            path.unlink(missing_ok=True)
