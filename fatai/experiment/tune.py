"""Search the settings of a recipe within a time: trials on inner folds, a score on outer clips that no trial used.

The clips are split twice. One outer fold is held out of the whole search. The others are split into inner folds; a
trial trains a changed recipe on them, and its score is that of their held-out clips together. The first trial is the
recipe as it is, so that the best one is never worse by this measure. After the search the recipe and the best trial's
are trained on all clips but the outer ones, and compared on those: the score of the best trial itself is too high,
since it was chosen by it.
"""

from __future__ import annotations

import csv
import gc
import json
import shutil
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from fastai.callback.core import Callback

from fatai.data.datasets.fat2019 import FATDataset, load_dataset
from fatai.data.labels import multi_hot
from fatai.errors import CheckpointError, FataiError, OptionError, StorageError
from fatai.experiment.adapt import adapt_recipe
from fatai.experiment.background import readable_background
from fatai.experiment.build import pin_network
from fatai.experiment.estimate import clock, estimate_run
from fatai.experiment.fold import FoldContext
from fatai.experiment.launch import no_log
from fatai.experiment.manifest import data_digest
from fatai.experiment.recipe import Recipe, load_recipe
from fatai.experiment.run import run_recipe
from fatai.experiment.search_space import SearchSpace, default_space, load_space
from fatai.experiment.search_split import OUTER_FOLD, SearchSplit
from fatai.experiment.self_training import SelfTrainingRounds
from fatai.experiment.study import RunningTrial, Trial, TuneStudy
from fatai.experiment.trial_scores import REPORTS, PrunedError, ReportScore, epochs_before, trained_epochs
from fatai.io.atomic import open_atomic, write_text
from fatai.io.lock import lock_output
from fatai.metrics.bootstrap import Difference, Interval, score_difference, score_interval
from fatai.metrics.classification import main_metric

__all__ = ["OuterScores", "TuneResult", "tune_recipe"]

@dataclass(frozen=True)
class OuterScores:
    """Scores of the recipe and of the tuned one on the clips that the search never used.

    Attributes
    ----------
    clips
        Their number.
    base, tuned
        Scores with intervals over clips.
    difference
        Tuned minus base, with an interval of a paired bootstrap; None if the recipe itself was best.
    """

    clips: int
    base: Interval
    tuned: Interval
    difference: Difference | None


@dataclass(frozen=True)
class TuneResult:
    """Result of a search.

    Attributes
    ----------
    out
        Its folder.
    base, tuned
        The recipe, and the best one found; the same if no trial was better.
    space
        What was searched.
    trials
        All that have begun, by number.
    best
        The trial of `tuned`; None before a trial is complete.
    importances
        Share of the variance of the scores that is due to each key.
    metric
        "lwlrap", or with one tag "map".
    outer
        Scores on the outer clips; None if the search was stopped before.
    """

    out: Path
    base: Recipe
    tuned: Recipe
    space: SearchSpace
    trials: tuple[Trial, ...]
    best: Trial | None
    importances: dict[str, float] = field(default_factory=dict)
    metric: str = "lwlrap"
    outer: OuterScores | None = None


TuneReport: TypeAlias = Callable[[TuneResult], Path]
"""Draws the page of a search and returns its path, as `fatai.report.tuning.tune_report`."""


def tune_recipe(
    data: str | Path | FATDataset,
    recipe: str | Path | Recipe = "default",
    out: str | Path = "runs/tune",
    *,
    budget_s: float = 7200.0,
    n_trials: int | None = None,
    space: str | Path | SearchSpace | None = None,
    n_inner: int = 3,
    seed: int = 0,
    num_workers: int | None = None,
    cache_dir: str | Path | None = None,
    log: Callable[[str], None] = print,
    report: TuneReport | None = None,
) -> TuneResult:
    """Search the settings of a recipe, and write the best one as tuned.toml.

    `out` also gets trials.csv, space.toml, the page of `report`, the runs base/ and tuned/ on the outer clips, and
    their scores as outer.json. The same call with the same `out` continues a search that was stopped, or joins one that
    runs in another process; several machines can share a folder. On the same machine, a search by one process that was
    stopped and continued ends as an unbroken one with the same number of trials.

    Parameters
    ----------
    data
        A folder in the competition's layout, a table of sounds, or the result of `load_dataset`.
    recipe
        The recipe to begin with; settings that it leaves to the data are decided first.
    budget_s
        Seconds for the search and the two runs after it, counted over all calls for `out`. A trial that would not end
        in time is not begun.
    n_trials
        Number of trials after which the search ends before that; None sets no limit.
    space
        What is searched, or a TOML file of it; None takes `default_space`.
    n_inner
        Number of inner folds, at least 2; recipes with predefined folds use theirs.
    seed
        Of the search; the recipe has its own.
    num_workers, cache_dir
        As in `fatai.experiment.run.run_recipe`. Decoded sounds are cached for all trials.
    log
        Function for lines of progress.
    report
        Draws the page, such as `fatai.report.tuning.tune_report`; None draws none.

    Raises
    ------
    OptionError
        If the budget is too short for the recipe itself, or a number is out of range.
    CheckpointError
        If `out` holds another search, or anything else.
    MissingDependencyError
        If Optuna is not installed.
    """
    if n_inner < 2 or not budget_s > 0 or (n_trials is not None and n_trials < 1):
        raise OptionError(
            f"n_inner is {n_inner}, budget_s {budget_s:g} and n_trials {n_trials}; expected at least 2 inner folds, "
            "and a budget and a number of trials above 0"
        )
    search = _open_search(data, recipe, Path(out), space, n_inner, seed, num_workers, cache_dir, log)
    try:
        search.run(budget_s, n_trials)
        outer = search.score_outer()
    except BaseException:
        # Also after Ctrl-C or SIGTERM, what was found is kept.
        _write_result(search, None, report)
        raise
    return _write_result(search, outer, report)


def _open_search(
    data: str | Path | FATDataset, recipe: str | Path | Recipe, out: Path,
    space: str | Path | SearchSpace | None, n_inner: int, seed: int, num_workers: int | None,
    cache_dir: str | Path | None, log: Callable[[str], None],
) -> _Search:
    base = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    data = data if isinstance(data, FATDataset) else load_dataset(data, corrupted_files=base.clips.corrupted_files)
    data = readable_background(data)
    base = _with_all_folds(adapt_recipe(pin_network(base), data))
    if not isinstance(space, SearchSpace):
        space = default_space(base) if space is None else load_space(space, base)
    if not space.dimensions:
        raise OptionError(f"nothing of the recipe {base.name} is searched by default; give a search space")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "study.jsonl").exists())):
        raise CheckpointError(f"{out} exists and holds no search; choose another folder")
    split = SearchSplit.make(data, base, n_inner)
    identity = {
        "recipe": base.digest(), "data": data_digest(data), "search space": space.to_toml(), "seed": seed,
        "number of inner folds": split.inner.n,
    }
    study = TuneStudy(out, space, identity, seed=seed)
    write_text(out / "space.toml", space.to_toml())
    return _Search(data, base, out, space, split, study, num_workers, cache_dir, log)


def _with_all_folds(recipe: Recipe) -> Recipe:
    """Return a recipe that trains all of its folds, since the search makes others."""
    return recipe.model_copy(update={"folds": recipe.folds.model_copy(update={"run_folds": None})})


@dataclass
class _Search:
    """A search that this process takes part in."""

    data: FATDataset
    base: Recipe
    out: Path
    space: SearchSpace
    split: SearchSplit
    study: TuneStudy
    num_workers: int | None
    cache_dir: str | Path | None
    log: Callable[[str], None]

    @property
    def metric(self) -> str:
        return main_metric(len(self.data.tags))

    def recipe_of(self, trial: Trial | RunningTrial | None) -> Recipe:
        """Return the recipe of a trial; the base for the base's own values."""
        if trial is None or trial.labels == self.space.base():
            return self.base
        recipe = self.base.override(values=self.space.values(trial.labels))
        notes = {
            "name": f"{self.base.name}_tuned", "summary": f"{self.base.name} with the settings of a search",
            "source": f"{self.base.name}, tuned", "reference_score": "",
        }
        return recipe.model_copy(update={**notes, "decided": None})

    def run(self, budget_s: float, n_trials: int | None) -> None:
        """Run trials until the time or their number is reached."""
        until = time.monotonic() + budget_s - self.study.searched_s()
        self.log(
            f"{self.base.name}: {len(self.split.inner.table)} clips in {self.split.inner.n} inner folds, "
            f"{len(self.split.outer)} outer clips; searching {', '.join(d.key for d in self.space.dimensions)}"
        )
        while True:
            with self.study.next_trial(n_trials) as trial:
                if trial is None:
                    return
                if not self._fits(trial, until - time.monotonic(), budget_s):
                    return
                self._run_trial(trial)
            self._log_trial(trial.number, until - time.monotonic())
            self.write_tables()

    def _fits(self, trial: RunningTrial, left: float, budget_s: float) -> bool:
        """Return True if a trial, and then the runs on the outer clips, would end within `left` seconds."""
        try:
            estimate = self._estimate_s(trial)
        except FataiError:
            return True  # the trial itself fails with the reason
        reserve = self._reserve_s() or estimate / (self.split.inner.n - 1)
        if estimate + reserve > left and trial.labels == self.space.base():
            raise OptionError(
                f"{clock(max(left, 0))} of the budget of {clock(budget_s)} are left, but {self.base.name} alone takes "
                f"about {clock(estimate)} on the inner folds and {clock(reserve)} on the outer clips; give more time, "
                "or a smaller recipe"
            )
        if estimate + reserve > left:
            self.log(
                f"the next trial would take about {clock(estimate)}, and the runs on the outer clips "
                f"{clock(reserve)}; {clock(max(left, 0))} are left: the search ends"
            )
        return estimate + reserve <= left

    def _estimate_s(self, trial: RunningTrial) -> float:
        """Return the expected duration of a trial from a few steps, corrected by how long others took."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            recipe = self._inner_recipe(trial)
            measured = estimate_run(self.split.inner.data, recipe, predict_test=False, num_workers=self.num_workers)
        trial.note_estimate(measured.seconds)
        ratios = self.study.estimate_ratios()
        return measured.seconds * (statistics.median(ratios) if ratios else 1.0)

    def _trial_seconds(self) -> list[float]:
        """Return the durations of the base and of the best trial if it is another; empty before one is complete."""
        complete = [trial for trial in self.study.trials() if trial.state == "complete"]
        best = self.study.best()
        if best is None:
            return []
        return [trial.seconds or 0.0 for trial in ([best] if best == complete[0] else [complete[0], best])]

    def _reserve_s(self) -> float:
        """Return the expected time of the runs on the outer clips.

        A trial trains n times on (n - 1) / n of the inner clips, such a run once on all of them.
        """
        return sum(self._trial_seconds()) / (self.split.inner.n - 1)

    def _inner_recipe(self, trial: RunningTrial) -> Recipe:
        # A trial makes no decision on noisy clips.
        return self.recipe_of(trial).override(n_folds=self.split.inner.n, values={"noisy_decision": False})

    def _run_trial(self, trial: RunningTrial) -> None:
        """Train a trial and store its end; files of an ended trial are removed."""
        try:
            self.study.finish(trial, self._score(trial))
        except PrunedError:
            self.study.finish(trial, pruned=True)
        except FataiError as e:
            if trial.labels == self.space.base():
                raise  # the recipe itself cannot be trained
            self.study.finish(trial, note=str(e)[:500])
        shutil.rmtree(trial.folder, ignore_errors=True)
        gc.collect()  # learners are in circles of references

    def _score(self, trial: RunningTrial) -> float:
        """Train a trial on all inner folds and score their held-out clips."""
        inner, recipe = self.split.inner, self._inner_recipe(trial)
        trial.folder.mkdir(parents=True, exist_ok=True)
        total = inner.n * sum(trained_epochs(recipe))

        def report_score(fold: int, stage: int) -> list[Callback]:
            done = epochs_before(recipe, inner.n, fold, stage)
            return [ReportScore(trial, done, total, inner.n, self.metric)]

        context = FoldContext(
            inner.data, recipe, trial.folder, inner.digest, noisy=inner.noisy, predict_test=False,
            num_workers=self.num_workers, cache_dir=self.cache_dir, log=no_log, stage_cbs=report_score,
        )
        rounds = SelfTrainingRounds(context, range(inner.n))
        rounds.train_before_last(inner.table, inner.folds)
        results = rounds.train_last(inner.table, inner.folds)
        return inner.score({fold: result.oof for fold, result in results.items() if result.oof is not None})

    def _log_trial(self, number: int, left: float) -> None:
        trial, best = self.study.trials()[number], self.study.best()
        done = max(trial.course, default=0) / (REPORTS * self.split.inner.n)
        ended = {
            "complete": f"{self.metric} {trial.score or 0:.4f}",
            "pruned": f"pruned after {done:.0%} of its training",
            "failed": f"failed: {trial.note}",
        }
        so_far = "" if best is None or best.score is None else f", best {best.score:.4f} (trial {best.number})"
        self.log(
            f"trial {number}: {ended.get(trial.state, trial.state)}{so_far}; {clock(trial.seconds or 0)}, "
            f"{clock(max(left, 0))} left"
        )

    def write_tables(self) -> None:
        """Write trials.csv, and the best recipe so far as tuned.toml."""
        keys = [dimension.key for dimension in self.space.dimensions]
        with open_atomic(self.out / "trials.csv") as f:
            writer = csv.writer(f, lineterminator="\n")
            writer.writerow(["number", "state", "score", "seconds", *keys, "note"])
            for t in self.study.trials():
                seconds = "" if t.seconds is None else f"{t.seconds:.1f}"
                values = [t.labels.get(key, "") for key in keys]
                writer.writerow([t.number, t.state, "" if t.score is None else t.score, seconds, *values, t.note])
        best = self.study.best()
        if best is not None:
            write_text(self.out / "tuned.toml", self.recipe_of(best).resolved())

    def score_outer(self) -> OuterScores | None:
        """Train the recipe and the best one on all but the outer clips, and score them on those.

        Of several processes the last one to end does so; the others return None.
        """
        best = self.study.best()
        if best is None or self.study.others_running():
            self.log(f"{self.out}: another process still searches; it scores the result on the outer clips")
            return None
        try:
            with lock_output(self.out / "outer"):
                return self._score_outer(best)
        except StorageError as e:
            self.log(f"{self.out}: {e}")
            return None

    def _score_outer(self, best: Trial) -> OuterScores:
        probs = self._outer_probs(self.base, "base")
        is_base = best.labels == self.space.base()
        tuned_probs = probs if is_base else self._outer_probs(self.recipe_of(best), f"trial_{best.number:04d}")
        targ = multi_hot(self.split.outer["labels"], self.data.tags)
        scores = OuterScores(
            len(targ),
            score_interval(probs, targ, self.metric),
            score_interval(tuned_probs, targ, self.metric),
            None if is_base else score_difference(tuned_probs, probs, targ, self.metric),
        )
        notes = {"metric": self.metric, "trial": best.number, **asdict(scores)}
        write_text(self.out / "outer.json", json.dumps(notes, indent=2) + "\n")
        self.log(f"outer clips ({scores.clips}, not used by the search): {self.base.name} {scores.base}")
        if scores.difference is not None:
            self.log(f"outer clips: tuned (trial {best.number}) {scores.tuned}; {scores.difference}")
        return scores

    def _outer_probs(self, recipe: Recipe, name: str) -> np.ndarray:
        """Return the probabilities of the outer clips, shape (clips, tags), by a model of the others."""
        self.log(f"training {recipe.name} on all clips but the outer ones")
        # A decision on noisy clips would be made on the outer clips.
        recipe = recipe.override(n_folds=self.split.n_outer, values={"noisy_decision": False})
        result = run_recipe(
            self.data, recipe, self.out / "outer" / name, run_folds=[OUTER_FOLD],
            predict_test=False, resume=True, num_workers=self.num_workers, cache_dir=self.cache_dir,
            log=no_log,
        )
        return result.oof.select(tuple(self.split.outer["fname"])).probs

    def result(self, outer: OuterScores | None) -> TuneResult:
        """Return what was found."""
        best = self.study.best()
        return TuneResult(
            self.out, self.base, self.recipe_of(best), self.space, self.study.trials(), best,
            self.study.importances(), self.metric, outer,
        )


def _write_result(search: _Search, outer: OuterScores | None, report: TuneReport | None) -> TuneResult:
    search.write_tables()
    result = search.result(outer)
    if report is not None:
        search.log(f"page: {report(result)}")
    if result.best is not None:
        search.log(f"best recipe: {search.out / 'tuned.toml'}; train it with: fatai-submit run DATA --recipe "
                   f"{search.out / 'tuned.toml'}")
    return result
