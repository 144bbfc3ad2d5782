"""Scores of a trial while it trains: reported to the search, which may end the trial."""

from __future__ import annotations

from collections.abc import Sequence

from fastai.callback.core import Callback

from fatai.experiment.recipe import Recipe
from fatai.experiment.study import RunningTrial

__all__ = ["PrunedError", "ReportScore"]

REPORTS = 10
"""Intermediate scores of a trial in each fold."""


class PrunedError(Exception):
    """The trial is worse than the others at this point."""


class ReportScore(Callback):
    """Pass the score of the held-out clips to a trial, ten times in each fold, and end the trial if it is pruned.

    `done` and `total` are the epochs that the trial has trained before this fit and trains altogether.
    """

    order = 80  # after the recorder; before `ResumeTraining`, so that a state is only written after its report

    def __init__(self, trial: RunningTrial, done: int, total: int, n_folds: int, metric: str):
        self.trial, self.metric = trial, metric
        self.done, self.total, self.n_reports = done, total, REPORTS * n_folds

    def before_fit(self) -> None:
        """Print no lines for each epoch."""
        self.learn.logger = _print_nothing

    def after_epoch(self) -> None:
        """Report, if a tenth of a fold is done since the last time."""
        before, after = (self.n_reports * (self.done + self.epoch + k) // self.total for k in (0, 1))
        scores = dict(zip(self.recorder.metric_names[1:], self.recorder.values[-1], strict=False))
        if after > before and self.metric in scores and self.trial.report(after, float(scores[self.metric])):
            # fastai reads the text of whatever a callback raises.
            raise PrunedError(f"trial {self.trial.number} is pruned")


def _print_nothing(values: Sequence[object]) -> None:
    pass


def epochs_before(recipe: Recipe, n_folds: int, fold: int, stage: int) -> int:
    """Return how many epochs all folds have trained before a fit, each round in all folds before the next one."""
    epochs, now = trained_epochs(recipe), next(numbers for numbers in recipe.rounds() if stage in numbers)
    in_fold = fold * sum(epochs[now.start:now.stop]) + sum(epochs[now.start:stage])
    return n_folds * sum(epochs[:now.start]) + in_fold


def trained_epochs(recipe: Recipe) -> list[int]:
    """Return the epochs of each stage, 0 for those that are solved."""
    return [0 if stage.linear_probe is not None else stage.epochs for stage in recipe.stages]
