"""Estimate what a run will take before it starts: steps, parameters, and time and memory from a short measurement."""

from __future__ import annotations

import math
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from fastai.callback.core import Callback, CancelFitException, CancelValidException

from fatai.callbacks.progress import PlainProgress
from fatai.data.datasets.fat2019 import FATDataset
from fatai.errors import OptionError
from fatai.experiment.adapt import adapt_recipe
from fatai.experiment.background import readable_background
from fatai.experiment.build import recipe_parameters
from fatai.experiment.clip_tables import folded_table, noisy_table
from fatai.experiment.fold import FoldContext, fold_learner, sample_weight_callbacks
from fatai.experiment.frozen_features import shares_features
from fatai.experiment.launch import no_log
from fatai.experiment.linear_head import last_layer
from fatai.experiment.manifest import data_digest
from fatai.experiment.noisy_decision import max_tried
from fatai.experiment.recipe import Recipe
from fatai.experiment.schema import Stage
from fatai.experiment.stage import curated_only, prepare_stage
from fatai.inference.learner import FatLearner
from fatai.threads import available_cores

__all__ = ["Costs", "RunEstimate", "StageEstimate", "estimate_run", "fits_budget", "measure_costs", "seconds_of"]

VALIDATION = 1 / 3  # of a training step: a forward pass, without the backward pass, which takes twice as long
_LOW_LOAD = 0.25  # part of the cores, up to which other programs do not matter
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0}


@dataclass(frozen=True)
class Costs:
    """Measured times in seconds.

    Attributes
    ----------
    step_s
        Of an optimizer step of each stage.
    clip_s
        Of the prediction of a clip.
    load
        Load average of the machine before the measurement: how many processes were computing.
    """

    step_s: tuple[float, ...]
    clip_s: float
    load: float = 0.0


@dataclass(frozen=True)
class StageEstimate:
    """Upper bounds for a stage in one fold.

    Attributes
    ----------
    epochs, steps, clips
        Epochs, and optimizer steps and clips of an epoch.
    bs
        Clips per batch.
    seconds
        Time for all epochs, validation included.
    """

    name: str
    epochs: int
    steps: int
    clips: int
    bs: int
    seconds: float


@dataclass(frozen=True)
class RunEstimate:
    """Upper bounds for a run: stages may end early, and noisy-label methods may select fewer clips.

    Not counted is the fit of logistic regressions, which takes seconds.

    Attributes
    ----------
    parameters, folds
        Parameters of the network and number of folds to train.
    stages
        Estimates of the stages in one fold.
    predict_s
        Seconds for the predictions of one fold: held-out and test clips, and noisy clips that a stage selects from.
    memory
        Peak in bytes while measuring: of the GPU, or of this process.
    device
        Name of the device.
    decides_on_noisy
        Whether one fold, or all of them, are trained again with noisy clips.
    decide_s
        Seconds for the predictions of noisy clips that one fold then selects from.
    embed_s
        Seconds in which linear probes embed every clip once for all folds; 0 for other recipes.
    load
        As in `Costs`.
    """

    recipe: str
    parameters: int
    folds: int
    stages: tuple[StageEstimate, ...]
    predict_s: float
    memory: int
    device: str
    decides_on_noisy: bool = False
    decide_s: float = 0.0
    embed_s: float = 0.0
    load: float = 0.0

    @property
    def seconds(self) -> float:
        """Seconds for all folds, one after another; twice as many where noisy clips may be used after a trial."""
        return self.seconds_with(1)

    def seconds_with(self, n_processes: int) -> float:
        """Return the seconds for all folds, so many of them side by side.

        The fold that decides on noisy clips is trained alone; every process embeds clips for itself.
        """
        fold_s = sum(stage.seconds for stage in self.stages) + self.predict_s
        rounds = math.ceil(self.folds / n_processes)
        if not self.decides_on_noisy:
            return rounds * fold_s + self.embed_s
        alone = int(n_processes > 1)
        return (2 * rounds + alone) * fold_s + (rounds + alone) * self.decide_s

    def __str__(self) -> str:
        wide = max(len("predicting"), *(len(stage.name) for stage in self.stages))
        rows = [f"{'stage':<{wide}}  epochs  steps  clips   bs   time of a fold"]
        for s in self.stages:
            rows.append(
                f"{s.name:<{wide}}  {s.epochs:6d} {s.steps:6d} {s.clips:6d} {s.bs:4d}  {clock(s.seconds):>15s}"
            )
        rows.append(f"{'predicting':<{wide}}  {'':24s}  {clock(self.predict_s):>15s}")
        if self.embed_s:
            rows.append(f"{'embedding':<{wide}}  {'once for all folds':24s}  {clock(self.embed_s):>15s}")
        heading = f"{self.recipe}: {self.parameters:,d} parameters, {self.folds} folds, on {self.device}"
        if self.decides_on_noisy:
            rows.append("then one fold again, to decide on noisy clips, and all of them if these help")
        if load := load_note(self.load):
            rows.append(load)
        return "\n".join(
            [heading, *rows, f"all folds: at most {clock(self.seconds)}, {self.memory / 2**30:.1f} GiB of memory"]
        )


def estimate_run(
    data: FATDataset, recipe: Recipe, *, predict_test: bool = True, num_workers: int | None = None, steps: int = 3
) -> RunEstimate:
    """Estimate a run of a recipe: count its steps, and measure a few of them and the prediction of a few clips.

    Only temporary files are written.

    Parameters
    ----------
    predict_test, num_workers
        As in `fatai.experiment.run.run_recipe`.
    steps
        Steps to measure for each kind of stage; more are more precise.
    """
    load, n_test = load_average(), len(data.test) if predict_test else 0
    with _first_fold(data, recipe, num_workers) as fold:
        _reset_peak_memory(fold.learn)
        recipe, clip_s, is_shared = fold.context.recipe, _tta_seconds(fold), fold.shares_features(n_test)
        stages = tuple(_stage_estimates(fold, 0.0 if is_shared else clip_s, steps))
        memory = _peak_memory(fold.learn)
    n_valid, noisy = int(fold.table["is_valid"].sum()), fold.context.noisy
    predict_s = clip_s * predicted_clips(recipe, n_valid, 0 if noisy is None else len(noisy), n_test)
    embed_s, decide_s = 0.0, 0.0
    if is_shared:
        predict_s, embed_s = 0.0, clip_s * fold.embedded_clips(n_test)
    if recipe.noisy_decision and data.noisy is not None:
        decide_s = clip_s * max_tried(len(data.noisy), len(fold.table))
    return RunEstimate(
        recipe.name, recipe_parameters(recipe, len(data.tags)), fold.n_folds, stages, predict_s, memory,
        str(fold.learn.dls.device), decide_s > 0, decide_s, embed_s, load,
    )


def measure_costs(data: FATDataset, recipe: Recipe, *, num_workers: int | None = None, steps: int = 4) -> Costs:
    """Measure a step of each stage of a recipe and the prediction of a clip, with its first fold.

    Parameters
    ----------
    num_workers, steps
        As in `estimate_run`.
    """
    load = load_average()
    with _first_fold(data, recipe, num_workers) as fold:
        clip_s, measured = _tta_seconds(fold), _StepTimes(fold.context, fold.learn, steps)
        stages = fold.context.recipe.stages
        step_s = tuple(0.0 if stage.linear_probe is not None else measured(stage) for stage in stages)
    return Costs(step_s, clip_s, load)


class _FirstFold(NamedTuple):
    """The first fold that a run trains, in a temporary folder; `table` has its curated clips with `is_valid`."""

    context: FoldContext
    learn: FatLearner
    table: pd.DataFrame
    n_folds: int

    def embedded_clips(self, n_test: int) -> int:
        """Return how many clips linear probes embed: all curated ones, those of the test, and the background."""
        background = self.context.data.background
        return len(self.table) + n_test + (0 if background is None else len(background))

    def shares_features(self, n_test: int) -> bool:
        """Return True if all folds share the features of their clips, which then fit into memory."""
        if not shares_features(self.context.recipe):
            return False
        return self.context.features.fits(last_layer(self.learn.model), self.embedded_clips(n_test))


@contextmanager
def _first_fold(data: FATDataset, recipe: Recipe, num_workers: int | None) -> Iterator[_FirstFold]:
    """Give the first fold of a recipe that is adapted to the data."""
    data = readable_background(data)
    recipe = adapt_recipe(recipe, data)
    table, _, folds = folded_table(data, recipe)
    noisy, _ = noisy_table(data, recipe)
    run_folds = sorted(set(folds.tolist())) if recipe.folds.run_folds is None else list(recipe.folds.run_folds)
    table = table.assign(is_valid=folds == run_folds[0])
    with tempfile.TemporaryDirectory() as scratch:
        context = FoldContext(
            data, recipe, Path(scratch), data_digest(data), noisy=noisy, num_workers=num_workers, log=no_log
        )
        yield _FirstFold(context, fold_learner(context, run_folds[0], table), table, len(run_folds))


def load_average() -> float:
    """Return the load average of the machine over the last minute: how many processes were computing."""
    import psutil

    return float(psutil.getloadavg()[0])


def load_note(load: float) -> str:
    """Return what the load of the machine means for a measurement; empty if it was low.

    Examples
    --------
    >>> load_note(0.1)
    ''
    """
    cores = available_cores()
    if load < _LOW_LOAD * cores:
        return ""
    return (
        f"measured at a load of {load:.1f} on {cores} core{'s' * (cores > 1)}: other programs made it slower, and "
        "without them it takes less"
    )


class _StepTimes:
    """Measure the step of a stage; stages with the same kind of step are measured once."""

    def __init__(self, context: FoldContext, learn: FatLearner, steps: int):
        self.context, self.learn, self.steps = context, learn, steps
        self._measured: dict[str, float] = {}

    def __call__(self, stage: Stage) -> float:
        key = repr((stage.bs, stage.mixup, stage.augment, stage.item_tfms, stage.loss))
        if key not in self._measured:
            self._measured[key] = _step_seconds(self.context, self.learn, stage, self.steps)
        return self._measured[key]


def _stage_estimates(fold: _FirstFold, embed_s: float, steps: int) -> Iterator[StageEstimate]:
    """Yield the estimate of each stage in one fold; linear probes embed a clip in `embed_s` seconds."""
    context, files = fold.context, fold.learn.dls.files  # whose tables have the background, too, or an inner split
    n_train, n_valid, n_noisy = len(files(0)), len(files(1)), 0 if context.noisy is None else len(context.noisy)
    measured = _StepTimes(context, fold.learn, steps)
    for stage in context.recipe.stages:
        clips, n_steps = clips_and_steps(stage, n_train, n_noisy, context.recipe.folds.n)
        if stage.linear_probe is not None:
            yield StageEstimate(stage.name, 1, n_steps, clips, stage.bs, clips * embed_s)
            continue
        seconds = stage.epochs * measured(stage) * (n_steps + VALIDATION * n_valid / stage.bs)
        yield StageEstimate(stage.name, stage.epochs, n_steps, clips, stage.bs, seconds)


def predicted_clips(recipe: Recipe, n_valid: int, n_noisy: int, n_test: int) -> int:
    """Return how many clips a fold predicts: held-out ones, noisy ones once per selection, and those of the test."""
    selections = sum(recipe.predicts_noisy_after(k) for k in range(len(recipe.rounds())))
    return n_valid + n_noisy * selections + n_test


def max_clips(stage: Stage, n_curated: int, n_noisy: int, n_folds: int) -> int:
    """Return the largest number of clips in an epoch of a stage.

    Parameters
    ----------
    n_curated
        Curated clips that a fold trains on.
    n_noisy
        Noisy clips, or clips without labels, in all.
    n_folds
        Number of folds.

    Examples
    --------
    >>> noisy = Stage(noisy_labels={"method": "ninth_place_low_loss", "n": 50})
    >>> max_clips(noisy, 100, 400, 5), max_clips(Stage(), 100, 400, 5)
    (150, 100)
    """
    if stage.noisy_labels is None:
        return n_curated + (n_noisy if stage.teacher_clips is not None else 0)
    wanted = stage.noisy_labels.get("n", stage.noisy_labels.get("k", n_noisy)) if stage.selects_noisy else n_noisy
    # The 3rd place's last step also uses the clips beyond its best k, with predicted labels.
    selected = n_noisy if stage.noisy_labels["method"] == "third_place_pseudo_labels" else min(n_noisy, wanted)
    fraction = {"all": 1.0, "own": 1 / n_folds, "others": 1 - 1 / n_folds}[stage.noisy_fold_split]
    return n_curated + round(fraction * selected)


def clips_and_steps(stage: Stage, n_curated: int, n_noisy: int, n_folds: int) -> tuple[int, int]:
    """Return the largest numbers of clips and optimizer steps in an epoch; parameters as in `max_clips`."""
    clips = max_clips(stage, n_curated, n_noisy, n_folds)
    bs = max(1, min(stage.bs, clips))
    if stage.sampling == "shuffle" and not stage.sampling_options:
        return clips, clips // bs
    drawn = int(stage.sampling_options.get("n", clips))
    return drawn, -(-drawn // bs)


class _StepTimer(Callback):
    """Record when batches end, and end the fit after `batches` of them."""

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


def _step_seconds(context: FoldContext, learn: FatLearner, stage: Stage, steps: int) -> float:
    """Return the median time of a training step of a stage."""
    timer = _StepTimer(steps + 1)
    cbs = [cb for cb in prepare_stage(learn, curated_only(stage)) if hasattr(cb, "active")]
    lines = [cb for cb in learn.cbs if isinstance(cb, PlainProgress)]
    with learn.removed_cbs(lines), learn.no_bar(), learn.no_logging():
        learn.fit(steps + 1, 1e-9, cbs=[*cbs, *sample_weight_callbacks(context, learn, None), timer])
    seconds = [after - before for before, after in pairwise(timer.ends)]
    return statistics.median(seconds[1:] or seconds)  # the first step also sets things up


def _tta_seconds(fold: _FirstFold, clips: int = 6) -> float:
    """Return the time that predicting a clip takes, from a few of the table."""
    learn, tta, items = fold.learn, fold.context.recipe.tta, fold.table.iloc[:clips]

    def measure(part: pd.DataFrame) -> float:
        start = time.perf_counter()
        learn.tta(items=part, views=tta.views, n=tta.n, average=tta.average, desc="measuring", **tta.options)
        return (time.perf_counter() - start) / len(part)

    measure(items.iloc[:1])
    return measure(items)


def _reset_peak_memory(learn: FatLearner) -> None:
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
    """Return a sentence that says if a duration fits a limit.

    Examples
    --------
    >>> fits_budget(5400, 32400)
    'fits the budget of 9:00:00: 17% of it'
    """
    fraction = seconds / budget_s
    return f"{'fits' if fraction <= 1 else 'does not fit'} the budget of {clock(budget_s)}: {fraction:.0%} of it"


def seconds_of(text: str) -> float:
    """Parse a duration written as hours, minutes and seconds.

    Raises
    ------
    OptionError
        If `text` is not of this form or the duration is 0.

    Examples
    --------
    >>> seconds_of("9h"), seconds_of("1h30m"), seconds_of("90s")
    (32400.0, 5400.0, 90.0)
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms])", text)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not parts or "".join(number + unit for number, unit in parts) != text or not seconds > 0:
        raise OptionError(f"the duration is {text!r}; expected hours, minutes or seconds such as 9h, 90m or 1h30m")
    return seconds


def clock(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds.

    Examples
    --------
    >>> clock(5403.2)
    '1:30:03'
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
