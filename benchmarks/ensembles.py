"""Every ensemble method over several runs: out of fold, nested, and on the test clips.

    python -m benchmarks.ensembles RUN... --truth DATA/train_curated.csv --test-truth DATA/truth/test.csv [--out FILE]

A run is a folder of `fatai-submit run`. Without runs it generates five of random numbers, which have no relation to
sound but show which methods find what was planted: models of unequal strength with partly common errors, one whose
probabilities of some tags are too high, one of ranks.

The 1st place's network takes minutes on a GPU and hours on two cores, since it is fitted again for every fold. Unless
--published-mlp is given it has an eighth of the units, twenty times the learning rate and at most 40 short epochs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from benchmarks.timing import write_report
from fatai.ensemble.ensemble import EnsembleResult, ensemble_report
from fatai.inference.predictions import Predictions
from fatai.registry import ENSEMBLES

# The three settings of the 1st place's second level.
FIRST_PLACE = [
    {"reduction": 16, "dropout": 0.051, "lr": 4.6e-5, "patience": 5, "factor": 0.658},
    {"reduction": 2, "dropout": 0.484, "lr": 3.9e-5, "patience": 9, "factor": 0.795},
    {"reduction": 1, "dropout": 0.166, "lr": 2.6e-5, "patience": 7, "factor": 0.554},
]


def methods(published_mlp: bool) -> dict[str, dict[str, Any]]:
    """Return the methods: name in the table to arguments of `ensemble_report`.

    Weights given by hand are left out.
    """
    named = {how: {"how": how} for how in ENSEMBLES.names() if how not in ("weighted", "mlp")}
    searched = {
        f"{how} of {average}": {"how": how, "average": average}
        for how in ("cobyla", "forward")
        for average in ("gmean", "rank_clip")
    }
    across = {"logreg across tags": {"how": "logreg", "across_tags": True, "C": 0.01}}
    small: dict[str, Any] = {} if published_mlp else {"base": 64, "samples_per_epoch": 4096, "max_epochs": 40}
    second = {
        f"mlp, setting {i}": {"how": "mlp", **setting, **small, "lr": setting["lr"] * (1 if published_mlp else 20)}
        for i, setting in enumerate(FIRST_PLACE, start=1)
    }
    return {**named, **searched, **across, **second}


def first_place(runs: list[Path], truth: Any, mlps: list[EnsembleResult]) -> EnsembleResult:
    """Return the 1st place's ensemble: the geometric mean of all runs and the MLPs over them.

    The out-of-fold predictions of an MLP are its nested ones.
    """
    members = [Predictions.from_csv(run / "test.csv") for run in runs] + [mlp.predictions for mlp in mlps]
    oof = [Predictions.from_csv(run / "oof.csv") for run in runs] + [
        mlp.oof for mlp in mlps if mlp.oof is not None
    ]
    return ensemble_report(members, "gmean", oof=oof, truth=truth)


def table(runs: list[Path], truth: Any, test_truth: Any, published_mlp: bool) -> str:
    """Return Markdown: a row for each run and each method; methods are sorted by the test score."""
    results, seconds = {}, {}
    for name, options in methods(published_mlp).items():
        started = time.perf_counter()
        results[name] = ensemble_report(runs, truth=truth, **options)
        seconds[name] = time.perf_counter() - started
        print(f"{name}: nested {results[name].predictions.oof_score:.4f}, {seconds[name]:.1f} s", file=sys.stderr)
    second = [name for name in results if name.startswith("mlp")]
    results["gmean with the three mlp"] = first_place(runs, truth, [results[name] for name in second])
    seconds["gmean with the three mlp"] = sum(seconds[name] for name in second)
    scores = results["mean"].member_scores or ()
    tests = [Predictions.from_csv(run / "test.csv") for run in runs]
    # The run that one would submit alone: the best out of fold.
    single = tests[int(np.argmax(scores))]
    rows = [
        _row(f"run {run.name}", score, test, test_truth, None, None)
        for run, score, test in zip(runs, scores, tests, strict=True)
    ]
    preds = {name: b.predictions for name, b in results.items()}
    order = sorted(
        preds,
        key=lambda name: -(preds[name].oof_score or 0) if test_truth is None else -preds[name].score(test_truth),
    )
    rows += [_row(name, preds[name].oof_score, preds[name], test_truth, single, seconds[name]) for name in order]
    head = ["| | out of fold, nested | test | against the best run out of fold | s |", "|---|---|---|---|---|"]
    return "\n".join(head + rows)


def _row(
    name: str, oof: float | None, test: Predictions, truth: Any, single: Predictions | None, seconds: float | None
) -> str:
    tested = "" if truth is None else f"{test.score(truth):.4f}"
    gain = "" if truth is None or single is None else str(test.compare(single, truth))
    score, time_s = "" if oof is None else f"{oof:.4f}", "" if seconds is None else f"{seconds:.1f}"
    return f"| {name} | {score} | {tested} | {gain} | {time_s} |"


def draw_runs(
    folder: Path, *, clips: int = 800, test_clips: int = 800, n_tags: int = 20, n_folds: int = 5
) -> list[Path]:
    """Write five run folders of random numbers, and beside them truth.csv and test_truth.csv."""
    rng = np.random.default_rng(2019)
    tags = [f"tag{i:02d}" for i in range(n_tags)]
    targ = {part: np.eye(n_tags)[rng.integers(n_tags, size=n)] for part, n in (("oof", clips), ("test", test_clips))}
    names = {part: [f"{part}{i:04d}.wav" for i in range(len(t))] for part, t in targ.items()}
    for part, file in (("oof", "truth.csv"), ("test", "test_truth.csv")):
        pd.DataFrame({"fname": names[part], "labels": [tags[i] for i in targ[part].argmax(1)]}).to_csv(
            folder / file, index=False
        )
    common = {part: rng.normal(size=t.shape) for part, t in targ.items()}
    runs = []
    for k, strength in enumerate((3.0, 2.8, 2.6, 2.2, 1.0)):
        run = folder / f"run{k}"
        run.mkdir()
        high = rng.normal(scale=1.5 if k == 1 else 0.2, size=n_tags)
        for part, t in targ.items():
            # Each fold's model has its own errors; a test prediction is the mean over all of them.
            z = strength * t + common[part] + rng.normal(size=t.shape) + high - 4
            by_fold = [expit(z + 0.7 * rng.normal(size=t.shape)) for _ in range(1 if part == "oof" else n_folds)]
            probs = np.mean(by_fold, axis=0)
            if k == 2:
                probs = (probs.argsort(0).argsort(0) + 0.5) / len(probs)
            Predictions(names[part], tags, probs).to_csv(run / f"{part}.csv")
        pd.DataFrame({"fname": names["oof"], "fold": np.arange(clips) % n_folds}).to_csv(run / "folds.csv", index=False)
        runs.append(run)
    return runs


def main(argv: list[str] | None = None) -> str:
    """Run the benchmark, write its report and return the table."""
    parser = argparse.ArgumentParser(
        description="Every ensemble over several runs: out of fold, nested, and on the test clips."
    )
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--truth", type=Path, help="labels of the training clips")
    parser.add_argument("--test-truth", type=Path, help="labels of the test clips, if they are known")
    parser.add_argument(
        "--published-mlp", action="store_true", help="the 1st place's network in its size and with its rates"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "ensembles.md")
    args = parser.parse_args(argv)
    if len(args.runs) == 1 or args.runs and args.truth is None:
        parser.error("give two runs or more and --truth, or nothing at all")
    command = "python -m benchmarks.ensembles" + (" --published-mlp" if args.published_mlp else "")
    size = "as published" if args.published_mlp else "smaller and faster than published"
    about = f"The mlp is {size}. Seconds count all fits, nested ones too."
    if args.runs:
        text = table(args.runs, args.truth, args.test_truth, args.published_mlp)
        command += f" {' '.join(run.name for run in args.runs)} --truth {args.truth.name}"
        command += f" --test-truth {args.test_truth.name}" if args.test_truth else ""
        return write_report("Ensembles", command, f"{len(args.runs)} runs. {about}\n\n{text}", args.out)
    with tempfile.TemporaryDirectory() as folder:
        runs = draw_runs(Path(folder))
        text = table(runs, Path(folder, "truth.csv"), Path(folder, "test_truth.csv"), args.published_mlp)
    about = (
        "Random numbers, no sound: they show that methods find what was planted, not how well they work on sounds. "
        f"{about}"
    )
    return write_report(
        "Ensembles of random runs", command, f"{about}\n\n{text}", args.out.with_name(f"{args.out.stem}_drawn.md")
    )


if __name__ == "__main__":
    main(sys.argv[1:])
