"""An ensemble list and a data folder to a folder of runs and one submission."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fatai.io.atomic import write_text
from fatai.data.datasets.fat2019 import FATDataset, load_dataset
from fatai.errors import DataError
from fatai.ensemble.ensemble import EnsembleResult, ensemble_report
from fatai.ensemble.members import PredictionSource
from fatai.inference.predictions import Predictions
from fatai.experiment.ensemble_recipe import EnsembleRecipe, StackerConfig, load_ensemble
from fatai.experiment.manifest import data_digest, read_manifest
from fatai.experiment.overrides import Overrides
from fatai.experiment.recipe import Recipe, load_recipe
from fatai.experiment.run import draw_report, run_recipe
from fatai.experiment.scaling import SCALES, scaled
from fatai.distributed import init

__all__ = ["EnsembleRunResult", "member_recipes", "run_ensemble"]

_NAMES = ("name", "source", "reference_score")  # what a recipe is called doesn't change what it trains


@dataclass(frozen=True)
class EnsembleRunResult:
    """What was made: the folder, the runs in the order of the list, the blend with its nested out-of-fold score, the seconds it took."""

    out: Path
    runs: tuple[Path, ...]
    blended: EnsembleResult
    seconds: float

    @property
    def test(self) -> Predictions:
        """The blend's predictions of the test clips."""
        return self.blended.predictions


def member_recipes(
    listed: EnsembleRecipe,
    *,
    scale: str = "full",
    overrides: Overrides | None = None,
    n_noisy: int | None = None,
    n_curated: int | None = None,
) -> dict[str, Recipe]:
    """The recipe of every member by its name, in a size of `SCALES` and with `overrides` as in `Recipe.override`."""
    return {
        m.name: scaled(m.changed_recipe(), scale, n_noisy, n_curated).override(overrides) for m in listed.members
    }


def run_ensemble(
    data: str | Path,
    listed: str | Path | EnsembleRecipe,
    out: str | Path,
    *,
    scale: str = "full",
    overrides: Overrides | None = None,
    reuse: Sequence[str | Path] = (),
    resume: bool = False,
    corrections: str | Path | None = None,
    num_workers: int | None = None,
    command: str = "",
    say: Callable[[str], None] = print,
) -> EnsembleRunResult:
    """Train or take over every run of a list, blend their test predictions, and tell how good the blend is out of fold.

    `out` gets a run folder for each member that was trained, `test.csv`, `oof.csv` (nested), `blend.txt`, `report.html` and, where there is
    a sample submission, `submission.csv`.

    Parameters
    ----------
    data
        A folder in the competition's layout, with a test part.
    listed
        A list, its name ("ensembles/third_place"), or a path that ends in .toml.
    scale, overrides
        As in `member_recipes`.
    reuse
        Finished runs that take the place of members with the same recipe and data.
    resume
        Go on with the ensemble that was begun in `out`: its finished runs are taken as they are.
    corrections, num_workers, command, say
        As in `run_recipe`.

    Raises
    ------
    DataError
        If `out` holds something, without `resume`, or there is nothing to predict.
    CheckpointError
        If a run in `out` is one of another recipe or of other data.
    """
    started = time.monotonic()
    listed = listed if isinstance(listed, EnsembleRecipe) else load_ensemble(listed)
    out = Path(out)
    group = init()
    if group.is_main and not resume and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(
            f"{out} exists already and is not empty; choose another folder, or go on with the ensemble there: --resume"
        )
    read = load_dataset(data, corrections)
    if not len(read.test):
        raise DataError(
            f"{data} has no test part, of which an ensemble would blend predictions; train its recipes one by one"
        )
    group.barrier()
    tell = say if group.is_main else (lambda line: None)
    runs: list[Path] = []
    for name, recipe in member_recipes(
        listed,
        scale=scale,
        overrides=overrides,
        n_noisy=None if read.noisy is None else len(read.noisy),
        n_curated=len(read.curated),
    ).items():
        own = load_dataset(data, corrections, corrupted=recipe.clips.corrupted_files)
        found = _reusable(reuse, recipe, own)
        tell(
            f"member {len(runs) + 1} of {len(listed.members)}: {name}"
            + ("" if found is None else f", taken from {found}")
        )
        if found is None:
            run_recipe(
                own,
                recipe,
                out / name,
                resume=resume,
                num_workers=num_workers,
                corrections=corrections,
                command=command,
                say=say,
            )
        runs.append(found or out / name)
    group.barrier()
    blended = _blend(listed, runs, read, scale, tell)
    if not group.is_main:
        return EnsembleRunResult(out, tuple(runs), blended, time.monotonic() - started)
    out.mkdir(parents=True, exist_ok=True)
    blended.predictions.to_csv(out / "test.csv")
    if blended.oof is not None:
        blended.oof.to_csv(out / "oof.csv")
    write_text(out / "blend.txt", f"{blended}\n")
    say(str(blended))
    if read.sample is not None:
        blended.predictions.to_submission(out / "submission.csv", sample=read.sample)
        say(f"submission: {out / 'submission.csv'}, {listed.how} of {len(blended.members)}")
    draw_report(out, read, say)
    return EnsembleRunResult(out, tuple(runs), blended, time.monotonic() - started)


def _blend(
    listed: EnsembleRecipe, runs: list[Path], data: FATDataset, scale: str, say: Callable[[str], None]
) -> EnsembleResult:
    """Members and stackers as one, judged by the curated clips that all of them held out."""
    truth = data.curated[["fname", "labels"]]
    tests: list[PredictionSource] = list(runs)
    oofs: list[PredictionSource] = [Predictions.from_csv(run / "oof.csv") for run in runs]
    for stacker in listed.stackers:
        say(f"stacking: {stacker.name}")
        stacked = ensemble_report(runs, stacker.how, truth=truth, **_options(stacker, scale))
        assert stacked.oof is not None
        tests.append(stacked.predictions)
        oofs.append(stacked.oof)
    weights = list(listed.weights) if isinstance(listed.weights, tuple) else listed.weights
    if not listed.stackers:
        return ensemble_report(runs, listed.how, weights, truth=truth, **listed.options)
    blended = ensemble_report(tests, listed.how, weights, oof=oofs, truth=truth, **listed.options)
    return replace(blended, members=(*blended.members[:len(runs)], *(stacker.name for stacker in listed.stackers)))


def _options(stacker: StackerConfig, scale: str) -> dict[str, Any]:
    """A stacker's options; in a smaller size its network is narrower, as those of the members are, and draws as much less."""
    size = SCALES[scale]
    if size is None or stacker.how != "mlp":
        return stacker.options
    base, draws = stacker.options.get("base", 512), stacker.options.get("draws", 32_768)
    return {**stacker.options, "base": max(1, round(base * size.width)), "draws": round(draws * size.width**2),
            "max_epochs": max(1, size.passes)}


def _reusable(runs: Sequence[str | Path], recipe: Recipe, data: FATDataset) -> Path | None:
    """The first finished run of the same recipe and data."""
    for run in map(Path, runs):
        if not (run / "recipe.toml").is_file():
            continue
        manifest = read_manifest(run)
        if manifest is None or not manifest.get("finished") or manifest["data"].get("digest") != data_digest(data):
            continue
        differs = recipe.differences(load_recipe(run / "recipe.toml"))
        if all(line.split(" ", 1)[0] in _NAMES for line in differs):
            return run
    return None
