"""The trials of a search in a file that several processes share: an Optuna study, resumable after a kill.

A running trial holds a lock on its folder, which the system ends with its process. A trial that is not finished and not
locked was interrupted: its settings are tried again, in the same folder, before anything new. Each trial draws from a
generator of its own, seeded by its number without counting interrupted ones, so that a search by one process ends the
same whether or not it was interrupted.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fatai.errors import CheckpointError, MissingDependencyError, StorageError
from fatai.experiment.search_space import SearchDimension, SearchSpace
from fatai.io.atomic import translate_os_errors
from fatai.io.lock import has_locks, lock_output

__all__ = ["RunningTrial", "Trial", "TuneStudy"]

_WAIT_S = 60.0  # for another process that asks for its next trial


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise MissingDependencyError("tune needs the package optuna: pip install 'fatai[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@dataclass(frozen=True)
class Trial:
    """A trial of a search.

    Attributes
    ----------
    number
        From 0; the recipe itself has the lowest.
    state
        "complete", "pruned" (ended early, since it was worse than the others at that point), "failed" (settings that
        cannot be trained), "interrupted" (its process ended; repeated as another trial) or "running".
    score
        Of the inner held-out clips if complete, else None.
    labels
        Its values by key, as in `SearchSpace`.
    seconds
        Duration if it has ended.
    course
        Scores while it was trained, by step.
    note
        Why it failed.
    """

    number: int
    state: Literal["complete", "pruned", "failed", "interrupted", "running"]
    score: float | None
    labels: dict[str, Any]
    seconds: float | None
    course: dict[int, float]
    note: str = ""


class RunningTrial:
    """A trial that this process runs.

    Attributes
    ----------
    number, labels
        As of `Trial`.
    folder
        For its files; that of the interrupted trial that it repeats.
    """

    def __init__(self, trial: Any, folder: Path, labels: dict[str, Any]):
        self._trial, self.number, self.folder, self.labels = trial, trial.number, folder, labels

    def report(self, step: int, score: float) -> bool:
        """Store an intermediate score; return True if the trial should end, being worse than others at this step."""
        if score != score:
            return False
        with _quiet():  # a repeated trial may have this one already
            self._trial.report(score, step)
        return bool(self._trial.should_prune())

    def note_estimate(self, seconds: float) -> None:
        """Store how long the trial was expected to take."""
        self._trial.set_user_attr("estimate_s", seconds)


class TuneStudy:
    """The trials below a folder.

    Parameters
    ----------
    out
        The folder; the trials are in study.jsonl.
    space
        What is searched.
    identity
        Digests of what must be the same in all processes of a search, by name.
    seed
        Of the draws.

    Raises
    ------
    CheckpointError
        If the folder holds another search; the message lists what differs.
    MissingDependencyError
        If Optuna is not installed.
    """

    def __init__(self, out: Path, space: SearchSpace, identity: Mapping[str, Any], *, seed: int = 0):
        optuna = _optuna()
        self.out, self.space, self.seed = out, space, seed
        with translate_os_errors(out), self._locked():
            (out / "trials").mkdir(parents=True, exist_ok=True)
            file = str(out / "study.jsonl")
            with _quiet():
                backend = optuna.storages.journal.JournalFileBackend(
                    file, lock_obj=optuna.storages.journal.JournalFileOpenLock(file)
                )
                self._study = optuna.create_study(
                    storage=optuna.storages.JournalStorage(backend), study_name="tune", direction="maximize",
                    load_if_exists=True, pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2),
                )
            self._check_identity(dict(identity))

    def _check_identity(self, identity: dict[str, Any]) -> None:
        stored = self._study.user_attrs.get("identity")
        if stored is None:
            self._study.set_user_attr("identity", identity)
            self._study.enqueue_trial(self.space.base())
            return
        changed = [name for name in {**stored, **identity} if stored.get(name) != identity.get(name)]
        if changed:
            raise CheckpointError(
                f"{self.out} holds a search with another {' and '.join(changed)}; give the same to continue or to join "
                "it, or choose another folder"
            )

    def _locked(self) -> AbstractContextManager[None]:
        """Let no other process ask for a trial during the block; wait for one that does."""
        return _wait_for_lock(self.out / "study.jsonl.turn")

    @contextmanager
    def next_trial(self, n_trials: int | None = None) -> Iterator[RunningTrial | None]:
        """Give the next trial, or None if there are `n_trials`; interrupted ones don't count.

        The trial is interrupted if the block ends by an exception, or before `finish`.
        """
        with self._locked():
            self._repeat_interrupted()
            if n_trials is not None and self._n_begun() >= n_trials:
                trial = None
            else:
                trial = self._ask()
                lock = lock_output(trial.folder)
                lock.__enter__()
        if trial is None:
            yield None
            return
        try:
            yield trial
        finally:
            try:
                if self._is_running(trial):
                    self._interrupt(self._study.trials[trial.number])
            finally:
                lock.__exit__(None, None, None)

    def finish(
        self, trial: RunningTrial, score: float | None = None, *, pruned: bool = False, note: str = ""
    ) -> None:
        """Store the end of a trial: its score, or that it was pruned, or failed with a reason."""
        state = _optuna().trial.TrialState
        if note:
            trial._trial.set_user_attr("note", note)
        if score is not None and score == score:
            self._study.tell(trial._trial, score)
        else:
            self._study.tell(trial._trial, state=state.PRUNED if pruned else state.FAIL)

    def trials(self) -> tuple[Trial, ...]:
        """Return all trials that have begun."""
        return tuple(_trial(frozen) for frozen in self._study.trials if frozen.state.name != "WAITING")

    def best(self) -> Trial | None:
        """Return the complete trial with the highest score, of equal ones the first; None if there is none."""
        complete = [trial for trial in self.trials() if trial.score is not None]
        return max(complete, key=lambda trial: trial.score or 0.0, default=None)

    def others_running(self) -> bool:
        """Return True if another process runs a trial."""
        with self._locked():
            running = [trial for trial in self._study.trials if trial.state.name == "RUNNING"]
            return any(_is_locked(self._folder(trial)) for trial in running)

    def searched_s(self) -> float:
        """Return for how many seconds at least one trial ran; interrupted ones are not counted."""
        spans = [
            (t.datetime_start, t.datetime_complete) for t in self._study.trials
            if t.state.is_finished() and t.datetime_start and not t.user_attrs.get("interrupted")
        ]
        total, end = 0.0, None
        for start, stop in sorted(spans):
            begin = start if end is None else max(start, end)
            total += max(0.0, (stop - begin).total_seconds())
            end = stop if end is None else max(end, stop)
        return total

    def estimate_ratios(self) -> list[float]:
        """Return for each complete trial, but repeated ones, the time that it took, relative to what was expected."""
        return [
            t.duration.total_seconds() / t.user_attrs["estimate_s"] for t in self._study.trials
            if t.state.name == "COMPLETE" and t.user_attrs.get("estimate_s") and "folder" not in t.user_attrs
        ]

    def importances(self) -> dict[str, float]:
        """Return how much of the variance of the scores is due to each key (fANOVA), highest first.

        Empty with fewer than four complete trials, or if all have the same score.
        """
        complete = [trial for trial in self.trials() if trial.score is not None]
        if len(complete) < 4 or len({trial.score for trial in complete}) == 1:
            return {}
        importance = _optuna().importance
        with _quiet():
            evaluator = importance.FanovaImportanceEvaluator(seed=0)
            found = importance.get_param_importances(self._study, evaluator=evaluator)
        return {key: float(share) for key, share in found.items()}

    def _ask(self) -> RunningTrial:
        optuna, n_interrupted = _optuna(), sum(bool(t.user_attrs.get("interrupted")) for t in self._study.trials)
        with _quiet():
            trial = self._study.ask()
            self._study.sampler = optuna.samplers.TPESampler(
                seed=self.seed + trial.number - n_interrupted, n_startup_trials=8, constant_liar=True
            )
            labels = {dimension.key: _suggest(trial, dimension) for dimension in self.space.dimensions}
        frozen = self._study.trials[trial.number]
        for step, score in frozen.user_attrs.get("course", []):
            trial.report(score, step)
        return RunningTrial(trial, self._folder(frozen), labels)

    def _repeat_interrupted(self) -> None:
        if not has_locks():
            return  # nothing shows whether the process still runs
        for trial in self._study.trials:
            if trial.state.name == "RUNNING" and not _is_locked(self._folder(trial)):
                self._interrupt(trial)

    def _interrupt(self, trial: Any) -> None:
        """Mark a trial as interrupted, and put its settings and its scores so far first in the queue."""
        self._study._storage.set_trial_user_attr(trial._trial_id, "interrupted", True)
        self._study.tell(trial.number, state=_optuna().trial.TrialState.FAIL)
        course = sorted(trial.intermediate_values.items())
        attributes = {"folder": self._folder(trial).name, "course": course}
        self._study.enqueue_trial(trial.params or trial.system_attrs.get("fixed_params", {}), user_attrs=attributes)

    def _folder(self, trial: Any) -> Path:
        return self.out / "trials" / trial.user_attrs.get("folder", f"{trial.number:04d}")

    def _is_running(self, trial: RunningTrial) -> bool:
        return self._study.trials[trial.number].state.name == "RUNNING"

    def _n_begun(self) -> int:
        return sum(trial.state != "interrupted" for trial in self.trials())


def _suggest(trial: Any, dimension: SearchDimension) -> Any:
    """Draw the value of a dimension."""
    if dimension.choices is not None:
        return trial.suggest_categorical(dimension.key, dimension.choices)
    if dimension.whole:
        return trial.suggest_int(dimension.key, int(dimension.low), int(dimension.high), log=dimension.log)
    return trial.suggest_float(dimension.key, dimension.low, dimension.high, log=dimension.log)


_STATES: dict[str, Any] = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}


def _trial(frozen: Any) -> Trial:
    interrupted = frozen.user_attrs.get("interrupted")
    return Trial(
        frozen.number,
        "interrupted" if interrupted else _STATES[frozen.state.name],
        frozen.value if frozen.state.name == "COMPLETE" else None,
        dict(frozen.params),
        None if frozen.duration is None or interrupted else frozen.duration.total_seconds(),
        dict(sorted(frozen.intermediate_values.items())),
        str(frozen.user_attrs.get("note", "")),
    )


def _is_locked(folder: Path) -> bool:
    """Return True if a process holds the lock of a folder."""
    try:
        with lock_output(folder):
            return False
    except StorageError:
        return True


@contextmanager
def _wait_for_lock(path: Path) -> Iterator[None]:
    until = time.monotonic() + _WAIT_S
    while True:
        lock = lock_output(path)
        try:
            lock.__enter__()
            break
        except StorageError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Ignore Optuna's warnings about parts of it that may still change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
