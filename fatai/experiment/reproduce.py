"""Reproduce a run from its folder, and compare the files with the original.

On the same machine, with the same versions, data and numbers of threads, workers and processes, weights and predictions
are the same bytes. Otherwise the comparison lists what was different, and the difference of the scores.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fatai.data.datasets.fat2019 import load_dataset
from fatai.errors import CheckpointError, DataError
from fatai.experiment.ensemble_folder import is_ensemble_folder, main_run
from fatai.experiment.launch import start_processes
from fatai.experiment.manifest import noted_columns, noted_data, read_manifest
from fatai.experiment.recipe import load_recipe
from fatai.experiment.run import run_recipe
from fatai.experiment.run_result import Report
from fatai.inference.predictions import Predictions
from fatai.threads import set_threads

__all__ = ["ReproductionResult", "compare_files", "reproduce_run"]

# Files that follow from recipe and data alone; the others hold times and machines.
_COMPARED = (
    "recipe.toml",
    "folds.csv",
    "noisy_*.csv",
    "oof.csv",
    "test.csv",
    "submission.csv",
    "fold_*/model.safetensors",
    "fold_*/judged_*.csv",
    "fold_*/oof.csv",
    "fold_*/test.csv",
    "reference/*",
)
_SAME = "same bytes"


@dataclass(frozen=True)
class ReproductionResult:
    """Comparison of a run with its reproduction.

    Attributes
    ----------
    run, reproduced
        The two run folders.
    files
        Each compared file by its path in the folder: "same bytes", or how the two differ.
    environment
        Differences in versions, machine, data, options and recipe, one sentence each.
    scores
        lwlrap (of one tag mAP) of each fold and of "oof", of the run and of the reproduction; NaN where there is none.
    """

    run: Path
    reproduced: Path
    files: dict[str, str]
    environment: tuple[str, ...]
    scores: dict[str, tuple[float, float]]

    @property
    def same(self) -> bool:
        """True if all files are the same bytes."""
        return all(difference == _SAME for difference in self.files.values())

    def __str__(self) -> str:
        wide = max(map(len, self.files), default=0)
        lines = [f"{name:<{wide}}  {difference}" for name, difference in self.files.items()]
        lines += ["", "score       then     now"]
        lines += [f"{name:<9} {then:.4f}  {now:.4f}" for name, (then, now) in self.scores.items()]
        if self.same:
            lines += ["", f"{self.reproduced} is the same as {self.run}, byte for byte"]
        else:
            lines += ["", "The files differ. What else differs:"]
        if self.environment or not self.same:
            lines += [f"  {line}" for line in self.environment] or [
                "  nothing that is noted: versions, machine, data and recipe are the same"
            ]
        return "\n".join(lines)


def reproduce_run(
    run: str | Path,
    data: str | Path | None = None,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    log: Callable[[str], None] = print,
    report: Report | None = None,
) -> ReproductionResult:
    """Train a run again with the recipe and options that its folder notes, and compare the files.

    Parameters
    ----------
    run
        The folder of a finished run.
    data
        The data; None takes the path that the run notes.
    out
        The folder of the new run; None appends "-reproduced" to the name of the old one.
    resume
        Continue a reproduction that was begun in `out`.
    log, report
        As in `fatai.experiment.run.run_recipe`; several processes draw the command's own report.

    Raises
    ------
    CheckpointError
        If `run` is not a finished run.
    DataError
        If the data are not at the path that the run notes.
    """
    run = Path(run)
    manifest = _finished_manifest(run)
    options = _run_options(run, manifest)
    found = noted_data(run) if data is None else Path(data)
    if found is None:
        raise DataError(
            f"the data of {run} are no longer at {options['data']!r}; give their path: "
            f"fatai-submit reproduce {run} DATA"
        )
    reproduced = run.with_name(f"{run.name}-reproduced") if out is None else Path(out)
    threads = int(manifest["machine"].get("threads", torch.get_num_threads()))
    if options["nproc"] > 1:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        arguments = _arguments(run, found, reproduced, options, resume)
        arguments += noted_columns(run).arguments()
        start_processes(options["nproc"], arguments, f"the run in {reproduced}")
    else:
        set_threads(threads)
        recipe = load_recipe(run / "recipe.toml")
        corrupted_files = recipe.clips.corrupted_files
        run_recipe(
            load_dataset(
                found, options["corrections"], corrupted_files=corrupted_files, columns=noted_columns(run)
            ),
            recipe,
            reproduced,
            run_folds=options["run_folds"],
            predict_test=options["predict_test"],
            corrections=options["corrections"],
            num_workers=options["num_workers"],
            resume=resume,
            command=f"fatai-submit reproduce {run}",
            log=log,
            report=report,
        )
    return compare_files(run, reproduced)


def compare_files(run: str | Path, other: str | Path) -> ReproductionResult:
    """Compare the files and manifests of two finished runs; raises `CheckpointError` if one is not finished."""
    run, other = Path(run), Path(other)
    manifests = [_finished_manifest(folder) for folder in (run, other)]
    names = dict.fromkeys(
        str(f.relative_to(folder))
        for folder in (run, other)
        for pattern in _COMPARED
        for f in sorted(folder.glob(pattern))
    )
    files = {name: _difference(run / name, other / name) for name in names}
    before, after = (_environment(manifest) for manifest in manifests)
    environment = [
        f"{key} was {before.get(key, 'not noted')} and is {after.get(key, 'not noted')}"
        for key in {**before, **after} if before.get(key) != after.get(key)
    ]
    environment += load_recipe(other / "recipe.toml").differences(load_recipe(run / "recipe.toml"))
    return ReproductionResult(run, other, files, tuple(environment), _scores(*manifests))


def _finished_manifest(run: Path) -> dict[str, Any]:
    if is_ensemble_folder(run):
        raise CheckpointError(f"{run} is an ensemble; give one of its runs, such as {main_run(run)}")
    manifest = read_manifest(run)
    if manifest is None or not manifest.get("finished") or not (run / "recipe.toml").is_file():
        raise CheckpointError(
            f"{run} is not a finished run; expected recipe.toml and a manifest.json with the time of its end, as "
            "fatai-submit run writes them"
        )
    return manifest


def _run_options(run: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the options that a manifest notes, validated: the folder may be untrusted."""
    options = manifest.get("run_options")
    if not isinstance(options, dict):
        raise CheckpointError(
            f"{run}/manifest.json has no run_options: the run is of an earlier version of fatai; repeat its command "
            f"({manifest.get('command') or 'not noted'}) and compare"
        )
    run_folds, workers, corrections = (options.get(key) for key in ("run_folds", "num_workers", "corrections"))
    is_valid = (
        isinstance(options.get("data"), str)
        and isinstance(options.get("predict_test"), bool)
        and isinstance(options.get("nproc"), int)
        and (run_folds is None or isinstance(run_folds, list) and all(isinstance(fold, int) for fold in run_folds))
        and (workers is None or isinstance(workers, int))
        and (corrections is None or isinstance(corrections, str))
        and 1 <= options["nproc"] <= 4096
    )
    if not is_valid:
        raise CheckpointError(
            f"{run}/manifest.json has {options} as run_options; expected data, run_folds, predict_test, num_workers, "
            "nproc and corrections as fatai-submit run writes them"
        )
    return options


def _arguments(run: Path, data: Path, out: Path, options: dict[str, Any], resume: bool) -> list[str]:
    """Return the command line that trains the run again."""
    arguments = ["run", str(data), "--recipe", str(run / "recipe.toml"), "--out", str(out)]
    if not options["predict_test"]:
        arguments.append("--no-predict")
    for fold in options["run_folds"] or ():
        arguments += ["--fold", str(fold)]
    if options["num_workers"] is not None:
        arguments += ["--num-workers", str(options["num_workers"])]
    if options["corrections"] is not None:
        arguments += ["--corrections", options["corrections"]]
    return arguments + (["--resume"] if resume else [])


def _environment(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return what may explain different files: versions, machine, data, seed and options."""
    options = manifest.get("run_options") or {}
    return {
        **{f"version of {name}": version for name, version in manifest.get("versions", {}).items()},
        **manifest.get("machine", {}),
        "digest of the data": manifest["data"].get("digest"),
        "seed": manifest.get("seed"),
        **{name: options.get(name) for name in ("run_folds", "num_workers", "nproc")},
    }


def _difference(one: Path, other: Path) -> str:
    for path in (one, other):
        if not path.is_file():
            return f"not in {path.parent if path.parent.name[:5] != 'fold_' else path.parent.parent}"
    if one.read_bytes() == other.read_bytes():
        return _SAME
    if one.suffix == ".csv" and one.stem in ("oof", "test", "submission") or one.stem.startswith("judged_"):
        then, now = Predictions.from_csv(one), Predictions.from_csv(other)
        if (then.fnames, then.tags) == (now.fnames, now.tags):
            return f"probabilities differ by at most {np.abs(then.probs - now.probs).max():.2g}"
        return "other clips or tags"
    return "other bytes"


def _scores(then: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Return pairs of scores, lwlrap or, of one tag, mAP, by the name of the fold, and "oof"."""
    def flat(manifest: dict[str, Any]) -> dict[str, float]:
        scores = manifest.get("map", manifest.get("lwlrap", {}))
        return {**{f"fold {k}": v for k, v in scores.get("folds", {}).items()}, "oof": scores.get("oof", float("nan"))}

    before, after = flat(then), flat(now)
    return {name: (before.get(name, float("nan")), after.get(name, float("nan"))) for name in {**before, **after}}
