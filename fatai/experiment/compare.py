"""Several runs side by side: lwlrap with its interval, how far behind the best one, time, parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fatai.errors import CheckpointError, OptionError
from fatai.ensemble.members import align_out_of_fold, load_members
from fatai.inference.ground_truth import Table
from fatai.experiment.build import recipe_parameters
from fatai.experiment.recipe import load_recipe
from fatai.metrics.bootstrap import Difference, Interval, score_difference, score_interval
from fatai.io.json import read_json_limited

__all__ = ["Comparison", "ComparedRun", "compare_runs"]

_PARTS = {"oof": "oof.csv", "test": "test.csv"}


@dataclass(frozen=True)
class ComparedRun:
    """A run: its score, how much better than the best one (None for that one itself), seconds (None if unknown), parameters of a fold."""

    name: str
    score: Interval
    against_best: Difference | None
    seconds: float | None
    parameters: int


@dataclass(frozen=True)
class Comparison:
    """Runs, the best first, on the clips that all of them predicted."""

    rows: tuple[ComparedRun, ...]
    clips: int

    def __str__(self) -> str:
        wide = max(len("run"), *(len(row.name) for row in self.rows))
        level = f"{100 * self.rows[0].score.level:g} %"
        lines = [f"{'run':<{wide}}  lwlrap  {level + ' interval':<14}  {'less than the best':<26}  minutes  parameters"]
        for row in self.rows:
            minutes = "-" if row.seconds is None else f"{row.seconds / 60:.1f}"
            less = "" if row.against_best is None else _less(row.against_best)
            lines.append(
                f"{row.name:<{wide}}  {row.score.value:.4f}  {_ends(row.score):<14}  {less:<26}  {minutes:>7}  {row.parameters:>10,d}"
            )
        return "\n".join([*lines, f"{self.clips} clips; * the difference's interval leaves out 0"])


def compare_runs(runs: Sequence[str | Path], truth: Table, *, part: str = "oof", draws: int = 1000) -> Comparison:
    """Score finished runs on the same clips, and each against the best by a paired bootstrap over clips.

    Parameters
    ----------
    runs
        Run folders.
    truth
        Table of the clips' tags, as in `Predictions.score`.
    part
        "oof" (the clips that were held out in training) or "test".
    draws
        Of the bootstrap.

    Raises
    ------
    CheckpointError
        If one is no finished run.
    """
    if part not in _PARTS:
        raise OptionError(f"part is {part!r}; expected oof or test")
    folders = [Path(run) for run in runs]
    for folder in folders:
        lacking = [name for name in ("recipe.toml", _PARTS[part]) if not (folder / name).is_file()]
        if lacking:
            raise CheckpointError(f"{folder} holds no {lacking[0]}; expected the folder of a finished run")
    members = load_members(folders, "runs", part=_PARTS[part])
    parts = [member.predictions for member in members]
    known = align_out_of_fold(parts, truth, parts[0].tags)
    scores = [score_interval(probs, known.targ, draws=draws) for probs in known.probs]
    order = sorted(range(len(folders)), key=lambda k: -scores[k].value)
    best = known.probs[order[0]]
    return Comparison(
        tuple(
            ComparedRun(
                members[k].name,
                scores[k],
                None if k == order[0] else score_difference(known.probs[k], best, known.targ, draws=draws),
                _seconds(folders[k]),
                recipe_parameters(load_recipe(folders[k] / "recipe.toml"), len(parts[0].tags)),
            )
            for k in order
        ),
        len(known.fnames),
    )


def _ends(of: Interval | Difference) -> str:
    return f"{of.low:.3f} to {of.high:.3f}"


def _less(difference: Difference) -> str:
    return f"{-difference.value:.4f}, {-difference.high + 0:.3f} to {-difference.low + 0:.3f}{' *' if difference.sure else ''}"


def _seconds(run: Path) -> float | None:
    """How long a run took, as its manifest says."""
    try:
        seconds = read_json_limited(run / "manifest.json")["seconds"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(seconds) if isinstance(seconds, (int, float)) else None
