"""A run made again from what its folder says, and compared with what it was.

On the same machine, with the same versions, data and number of threads, workers and processes, weights and predictions come out as the same
bytes. Where they don't, what was different is told, and how far the scores are apart.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fatai.errors import CheckpointError, DataError
from fatai.inference.predictions import Predictions
from fatai.experiment.manifest import noted_data, read_manifest
from fatai.experiment.launch import start_processes
from fatai.experiment.recipe import load_recipe
from fatai.experiment.run import run_recipe

__all__ = ["ReproductionResult", "compare_files", "reproduce_run"]

# What a run makes of its recipe and data alone; clocks and machines stand in the other files.
_MADE = (
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
)


@dataclass(frozen=True)
class ReproductionResult:
    """Two runs side by side.

    Attributes
    ----------
    files
        Every file that one of them made, and what is to be said of it: "same bytes", or how they differ.
    around
        What was not the same around them: versions, machine, data, recipe; a sentence each.
    scores
        Fold, or "oof", and its lwlrap then and now; NaN where there is none.
    """

    run: Path
    again: Path
    files: dict[str, str]
    around: tuple[str, ...]
    scores: dict[str, tuple[float, float]]

    @property
    def same(self) -> bool:
        """Whether all files are the same bytes."""
        return all(told == "same bytes" for told in self.files.values())

    def __str__(self) -> str:
        wide = max(map(len, self.files), default=0)
        lines = [f"{name:<{wide}}  {told}" for name, told in self.files.items()]
        lines += ["", "lwlrap      then     now"] + [
            f"{name:<9} {then:.4f}  {now:.4f}" for name, (then, now) in self.scores.items()
        ]
        different = [f"  {line}" for line in self.around] or [
            "  nothing that is known: versions, machine, data and recipe are the same"
        ]
        lines += ["", f"{self.again} is {self.run}, byte for byte" if self.same else "They differ. What was different:"]
        return "\n".join(lines + ([] if self.same and not self.around else different))


def reproduce_run(
    run: str | Path, data: str | Path | None = None, out: str | Path | None = None, *, resume: bool = False,
    say: Callable[[str], None] = print,
) -> ReproductionResult:
    """Make a run again with its recipe, seed, folds, workers, threads and processes, and compare.

    Parameters
    ----------
    run
        The folder of a finished run.
    data
        The data; None takes the folder that the run was made of.
    out
        The folder of the new run; None takes the old one's name with "-repeat" behind it.
    resume
        Go on with a repetition that was begun in `out`.

    Raises
    ------
    CheckpointError
        If `run` is no finished run.
    DataError
        If its data aren't where they were.
    """
    run = Path(run)
    manifest = _finished_manifest(run)
    made = _how_it_was_made(run, manifest)
    found = noted_data(run) if data is None else Path(data)
    if found is None:
        raise DataError(
            f"the data of {run} are not in {made['data']!r} any more (seen from here); say where they are: repeat {run} DATA"
        )
    again = run.with_name(f"{run.name}-repeat") if out is None else Path(out)
    threads = int(manifest["machine"].get("threads", torch.get_num_threads()))
    if made["processes"] > 1:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        start_processes(made["processes"], _arguments(run, found, again, made, resume), f"the run in {again}")
    else:
        torch.set_num_threads(threads)
        run_recipe(
            found,
            run / "recipe.toml",
            again,
            only=made["only"],
            predict_test=made["predict_test"],
            corrections=made["corrections"],
            num_workers=made["num_workers"],
            resume=resume,
            command=f"fatai-submit reproduce {run}",
            say=say,
        )
    return compare_files(run, again)


def compare_files(run: str | Path, again: str | Path) -> ReproductionResult:
    """Compare the files of two runs, and what their manifests say of their making; raises `CheckpointError` if one isn't finished."""
    run, again = Path(run), Path(again)
    then, now = _finished_manifest(run), _finished_manifest(again)
    names = dict.fromkeys(
        str(f.relative_to(folder)) for folder in (run, again) for pattern in _MADE for f in sorted(folder.glob(pattern))
    )
    files = {name: _difference(run / name, again / name) for name in names}
    flat_then, flat_now = (dict(_around(manifest)) for manifest in (then, now))
    around = [
        f"{key} was {flat_then.get(key, 'not noted')} and is {flat_now.get(key, 'not noted')}"
        for key in {**flat_then, **flat_now} if flat_then.get(key) != flat_now.get(key)
    ]
    around += load_recipe(again / "recipe.toml").differences(load_recipe(run / "recipe.toml"))
    return ReproductionResult(run, again, files, tuple(around), _scores(then, now))


def _finished_manifest(run: Path) -> dict[str, Any]:
    manifest = read_manifest(run)
    if manifest is None or not manifest.get("finished") or not (run / "recipe.toml").is_file():
        raise CheckpointError(
            f"{run} is no finished run; expected recipe.toml and a manifest.json that says when it ended, as "
            "fatai-submit run makes them"
        )
    return manifest


def _how_it_was_made(run: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """The options that a manifest noted, checked: the folder may come from a stranger."""
    made = manifest.get("made_with")
    if not isinstance(made, dict):
        raise CheckpointError(
            f"{run}/manifest.json doesn't note how the run was made; it is of an earlier fatai: give its command again "
            f"({manifest.get('command') or 'none is noted'}) and compare"
        )
    only, workers, corrections = made.get("only"), made.get("num_workers"), made.get("corrections")
    fits = (
        isinstance(made.get("data"), str)
        and isinstance(made.get("predict_test"), bool)
        and isinstance(made.get("processes"), int)
        and (only is None or isinstance(only, list) and all(isinstance(fold, int) for fold in only))
        and (workers is None or isinstance(workers, int))
        and (corrections is None or isinstance(corrections, str))
        and 1 <= made["processes"] <= 4096
    )
    if not fits:
        raise CheckpointError(
            f"{run}/manifest.json notes {made} as made_with; expected data, only, predict_test, num_workers, processes "
            "and corrections as fatai-submit run writes them"
        )
    return made


def _arguments(run: Path, data: Path, again: Path, made: dict[str, Any], resume: bool) -> list[str]:
    """The command that makes a run again."""
    told = [
        "run" if made["predict_test"] else "train",
        str(data),
        "--recipe",
        str(run / "recipe.toml"),
        "--out",
        str(again),
    ]
    for fold in made["only"] or ():
        told += ["--fold", str(fold)]
    if made["num_workers"] is not None:
        told += ["--num-workers", str(made["num_workers"])]
    if made["corrections"] is not None:
        told += ["--corrections", made["corrections"]]
    return told + (["--resume"] if resume else [])


def _around(manifest: dict[str, Any]) -> list[tuple[str, Any]]:
    """What may explain a difference."""
    told = [(f"version of {name}", version) for name, version in manifest.get("versions", {}).items()]
    told += list(manifest.get("machine", {}).items())
    told += [("digest of the data", manifest["data"].get("digest")), ("seed", manifest.get("seed"))]
    made = manifest.get("made_with") or {}
    return told + [(name, made.get(name)) for name in ("only", "num_workers", "processes")]


def _difference(one: Path, other: Path) -> str:
    for path in (one, other):
        if not path.is_file():
            return f"not in {path.parent if path.parent.name[:5] != 'fold_' else path.parent.parent}"
    if one.read_bytes() == other.read_bytes():
        return "same bytes"
    if one.suffix == ".csv" and one.stem in ("oof", "test", "submission") or one.stem.startswith("judged_"):
        then, now = Predictions.from_csv(one), Predictions.from_csv(other)
        if (then.fnames, then.tags) == (now.fnames, now.tags):
            return f"probabilities differ by at most {np.abs(then.probs - now.probs).max():.2g}"
        return "other clips or tags"
    return "other bytes"


def _scores(then: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[float, float]]:
    def flat(manifest: dict[str, Any]) -> dict[str, float]:
        told = manifest.get("lwlrap", {})
        return {**{f"fold {k}": v for k, v in told.get("folds", {}).items()}, "oof": told.get("oof", float("nan"))}

    before, after = flat(then), flat(now)
    return {name: (before.get(name, float("nan")), after.get(name, float("nan"))) for name in {**before, **after}}
