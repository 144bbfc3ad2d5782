"""Compare runs: lwlrap with its interval, difference from the best run, time, parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fatai.ensemble.members import align_out_of_fold, load_members
from fatai.errors import CheckpointError, OptionError
from fatai.experiment.build import recipe_parameters
from fatai.experiment.manifest import noted_seconds
from fatai.experiment.recipe import load_recipe
from fatai.inference.ground_truth import Table
from fatai.metrics.bootstrap import Difference, Interval, score_difference, score_interval
from fatai.metrics.classification import main_metric

__all__ = ["Comparison", "ComparedRun", "compare_runs"]

_PARTS = {"oof": "oof.csv", "test": "test.csv"}


@dataclass(frozen=True)
class ComparedRun:
    """A run in a comparison.

    Attributes
    ----------
    score
        Its lwlrap, or with one tag its average precision, with an interval.
    against_best
        Difference from the best run; None for the best run itself.
    seconds
        Duration; None if unknown.
    parameters
        Parameters of the network of a fold.
    """

    name: str
    score: Interval
    against_best: Difference | None
    seconds: float | None
    parameters: int


@dataclass(frozen=True)
class Comparison:
    """Runs, the best first.

    Attributes
    ----------
    rows
        The runs.
    clips
        Number of clips that all runs predicted, on which they are scored.
    metric
        "lwlrap", or with one tag, for which that is always 1, "map".
    """

    rows: tuple[ComparedRun, ...]
    clips: int
    metric: str = "lwlrap"

    def __str__(self) -> str:
        wide = max(len("run"), *(len(row.name) for row in self.rows))
        level = f"{100 * self.rows[0].score.confidence_level:g} %"
        lines = [
            f"{'run':<{wide}}  {self.metric:<6}  {level + ' interval':<14}  {'less than the best':<26}  "
            "minutes  parameters"
        ]
        for row in self.rows:
            minutes = "-" if row.seconds is None else f"{row.seconds / 60:.1f}"
            less = "" if row.against_best is None else _less(row.against_best)
            lines.append(
                f"{row.name:<{wide}}  {row.score.value:.4f}  {_ends(row.score):<14}  {less:<26}  {minutes:>7}  "
                f"{row.parameters:>10,d}"
            )
        return "\n".join([*lines, f"{self.clips} clips; * the difference's interval leaves out 0"])


def compare_runs(runs: Sequence[str | Path], truth: Table, *, part: str = "oof", n_resamples: int = 1000) -> Comparison:
    """Score finished runs on the same clips, and compare each with the best by a paired bootstrap over clips.

    Parameters
    ----------
    runs
        Run folders.
    truth
        Table of the clips' tags, as in `Predictions.score`.
    part
        "oof" (clips held out in training) or "test".
    n_resamples
        Resamples of the bootstrap; more make the intervals more precise.

    Raises
    ------
    CheckpointError
        If one is not a finished run.
    """
    if part not in _PARTS:
        raise OptionError(f"part is {part!r}; expected oof or test")
    folders = [Path(run) for run in runs]
    for folder in folders:
        missing = [name for name in ("recipe.toml", _PARTS[part]) if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(f"{folder} holds no {missing[0]}; expected the folder of a finished run")
    members = load_members(folders, "runs", part=_PARTS[part])
    parts = [member.predictions for member in members]
    aligned = align_out_of_fold(parts, truth, parts[0].tags)
    metric = main_metric(len(parts[0].tags))
    scores = [score_interval(probs, aligned.targ, metric, n_resamples=n_resamples) for probs in aligned.probs]
    order = sorted(range(len(folders)), key=lambda k: -scores[k].value)
    best = aligned.probs[order[0]]

    def row(k: int) -> ComparedRun:
        difference = None
        if k != order[0]:
            difference = score_difference(aligned.probs[k], best, aligned.targ, metric, n_resamples=n_resamples)
        n_parameters = recipe_parameters(load_recipe(folders[k] / "recipe.toml"), len(parts[0].tags))
        return ComparedRun(members[k].name, scores[k], difference, noted_seconds(folders[k]), n_parameters)

    return Comparison(tuple(row(k) for k in order), len(aligned.fnames), metric)


def _ends(of: Interval | Difference) -> str:
    return f"{of.low:.3f} to {of.high:.3f}"


def _less(difference: Difference) -> str:
    mark = " *" if difference.is_significant else ""
    value = _negative(difference.value, 4)
    return f"{value}, {_negative(difference.high, 3)} to {_negative(difference.low, 3)}{mark}"


def _negative(value: float, digits: int) -> str:
    """Format `-value`; adding 0 after rounding removes the minus of -0.000."""
    return f"{round(-value, digits) + 0.0:.{digits}f}"
