"""What a run will take, before it is begun: stages, epochs, steps, parameters, and time and memory from a short measurement."""

from __future__ import annotations

import re
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fastai.callback.core import Callback, CancelFitException, CancelValidException

from fatai.data.datasets.fat2019 import FATDataset
from fatai.errors import OptionError
from fatai.experiment.clips import clips_and_steps
from fatai.experiment.fold import FoldContext, fold_learner, sample_weight_callbacks
from fatai.experiment.manifest import data_digest
from fatai.experiment.build import recipe_parameters
from fatai.experiment.recipe import Recipe
from fatai.experiment.run import folded_table, noisy_table
from fatai.experiment.schema import Stage
from fatai.experiment.stage import curated_alone, prepare_stage
from fatai.callbacks.callbacks import PlainProgress
from fatai.inference.learner import FatLearner

__all__ = ["RunEstimate", "StageEstimate", "estimate_run", "seconds_of"]

_VALIDATION = 1 / 3  # of a training step: a forward pass without the backward one, which is twice as much
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0}


@dataclass(frozen=True)
class StageEstimate:
    """A stage in one fold: epochs, steps of an epoch, clips of an epoch at most, clips in a batch, seconds at most."""

    name: str
    epochs: int
    steps: int
    clips: int
    bs: int
    seconds: float


@dataclass(frozen=True)
class RunEstimate:
    """What a run will take at most: stages may end early, and noisy methods may choose fewer clips.

    Attributes
    ----------
    predicting
        Seconds of one fold's predictions: held-out, test and noisy clips.
    memory
        Peak in bytes while measuring: of the GPU, or of this process.
    """

    recipe: str
    parameters: int
    folds: int
    stages: tuple[StageEstimate, ...]
    predicting: float
    memory: int
    device: str

    @property
    def seconds(self) -> float:
        """Of all folds."""
        return self.folds * (sum(stage.seconds for stage in self.stages) + self.predicting)

    def __str__(self) -> str:
        wide = max(len("predicting"), *(len(stage.name) for stage in self.stages))
        rows = [f"{'stage':<{wide}}  epochs  steps  clips   bs   time of a fold"]
        for s in self.stages:
            rows.append(
                f"{s.name:<{wide}}  {s.epochs:6d} {s.steps:6d} {s.clips:6d} {s.bs:4d}  {_clock(s.seconds):>15s}"
            )
        rows.append(f"{'predicting':<{wide}}  {'':24s}  {_clock(self.predicting):>15s}")
        heading = f"{self.recipe}: {self.parameters:,d} parameters, {self.folds} folds, on {self.device}"
        return "\n".join(
            [heading, *rows, f"all folds: at most {_clock(self.seconds)}, {self.memory / 2**30:.1f} GiB of memory"]
        )


def estimate_run(
    data: FATDataset, recipe: Recipe, *, predict_test: bool = True, num_workers: int | None = None, steps: int = 3
) -> RunEstimate:
    """Count the stages of a recipe on some data, and measure `steps` steps of each kind and the prediction of a few clips.

    Nothing is written but below a temporary folder.
    """
    table, _, folds = folded_table(data, recipe)
    noisy, _ = noisy_table(data, recipe)
    trained = sorted(set(folds.tolist())) if recipe.folds.run_folds is None else list(recipe.folds.run_folds)
    own = table.assign(is_valid=folds == trained[0])
    n_noisy, n_held = 0 if noisy is None else len(noisy), int(own["is_valid"].sum())
    with tempfile.TemporaryDirectory() as scratch:
        job = FoldContext(
            data, recipe, Path(scratch), data_digest(data), noisy=noisy, num_workers=num_workers, say=lambda line: None
        )
        learn = fold_learner(job, trained[0], own)
        _forget_memory(learn)
        measured: dict[str, float] = {}
        listening = _tta_seconds(learn, recipe, own)
        stages = []
        for stage in recipe.stages:
            clips, count = clips_and_steps(stage, len(table) - n_held, n_noisy, recipe.folds.n)
            if stage.linear_probe is not None:
                stages.append(StageEstimate(stage.name, 1, count, clips, stage.bs, clips * listening))
                continue
            key = repr((stage.bs, stage.mixup, stage.augment, stage.item_tfms, stage.loss))
            if key not in measured:
                measured[key] = _step_seconds(job, learn, stage, steps)
            seconds = stage.epochs * measured[key] * (count + _VALIDATION * n_held / stage.bs)
            stages.append(StageEstimate(stage.name, stage.epochs, count, clips, stage.bs, seconds))
        judged = n_noisy * sum(recipe.predicts_noisy_after(k) for k in range(len(recipe.rounds())))
        listened = n_held + judged + (len(data.test) if predict_test else 0)
        predicting = listened * listening
        memory = _peak_memory(learn)
    return RunEstimate(
        recipe.name,
        recipe_parameters(recipe, len(data.tags)),
        len(trained),
        tuple(stages),
        predicting,
        memory,
        str(learn.dls.device),
    )


class _Stopwatch(Callback):
    """Notes when batches end, and ends the fit after so many."""

    order = 80

    def __init__(self, batches: int):
        self.batches, self.ends = batches, [time.perf_counter()]

    def before_validate(self) -> None:
        raise CancelValidException

    def after_batch(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        if len(self.ends) > self.batches:
            raise CancelFitException


def _step_seconds(job: FoldContext, learn: FatLearner, stage: Stage, steps: int) -> float:
    watch = _Stopwatch(steps + 1)
    cbs = [cb for cb in prepare_stage(learn, curated_alone(stage)) if hasattr(cb, "active")]
    lines = [cb for cb in learn.cbs if isinstance(cb, PlainProgress)]
    with learn.removed_cbs(lines), learn.no_bar(), learn.no_logging():
        learn.fit(steps + 1, 1e-9, cbs=[*cbs, *sample_weight_callbacks(job, learn, None), watch])
    took = [after - before for before, after in zip(watch.ends, watch.ends[1:])]
    return statistics.median(took[1:] or took)  # the first one also sets up


def _tta_seconds(learn: FatLearner, recipe: Recipe, table: Any, clips: int = 6) -> float:
    tta, items = recipe.tta, table.iloc[:clips]

    def heard(part: Any) -> float:
        begun = time.perf_counter()
        learn.tta(items=part, views=tta.views, n=tta.n, average=tta.average, desc="measuring", **tta.options)
        return (time.perf_counter() - begun) / len(part)

    heard(items.iloc[:1])
    return heard(items)


def _forget_memory(learn: FatLearner) -> None:
    if learn.dls.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak_memory(learn: FatLearner) -> int:
    if learn.dls.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def fits_budget(seconds: float, budget_s: float) -> str:
    """Whether something fits into a budget of time, in a sentence.

    Examples
    --------
    >>> fits_budget(5400, 32400)
    'fits the budget of 9:00:00: 17% of it'
    """
    share = seconds / budget_s
    return f"{'fits' if share <= 1 else 'does not fit'} the budget of {_clock(budget_s)}: {share:.0%} of it"


def seconds_of(text: str) -> float:
    """A length of time as people write it.

    Examples
    --------
    >>> seconds_of("9h"), seconds_of("1h30m"), seconds_of("90s")
    (32400.0, 5400.0, 90.0)
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms])", text)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not parts or "".join(number + unit for number, unit in parts) != text or not seconds > 0:
        raise OptionError(f"the budget is {text!r}; expected hours, minutes or seconds such as 9h, 90m or 1h30m")
    return seconds


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
