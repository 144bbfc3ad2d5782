"""All systems in one size: every recipe on curated clips and with its own use of noisy ones, and ensembles of them.

    python -m benchmarks.systems DATA [--seeds 0 1] [--passes 40] [--only NAME ...] [--more NAME [--by WHAT ...]]
                                      [--work FOLDER] [--out benchmarks/results/systems.md]

DATA is a folder in the competition's layout with noisy clips and truth/test.csv, which is used only for scores. All
recipes are scaled by the rule of `small`, so that all see as many clips in training (`--passes` times the curated ones
of a fold), and use the same two folds and seeds. The best epoch of a recipe is selected on validation clips, as
published; nothing is chosen by the test part, and the best ensemble is the best out of fold. `--more` names a system
that is also tried with more clips seen, more folds and a wider network (or `--by` some of these), one at a time, to
find what limits its score. Two baselines without a network, statistics of MFCCs with a logistic regression and a random
forest (`benchmarks.mfcc`), are fitted on the same folds and are in no ensemble. Every finished run is a line of
FOLDER/rows.jsonl and a run folder beside it; finished runs are not trained again and interrupted ones continued:
several processes may share the work, each with its own names.
"""

from __future__ import annotations

import contextlib
import io
import shlex
import statistics
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.mfcc import BASELINES, fit_baseline
from benchmarks.timing import write_report
from benchmarks.trials import Row, parser, read_with_truth, spread, trials
from fatai.data.datasets.fat2019 import FATDataset
from fatai.ensemble.ensemble import EnsembleResult, ensemble_report
from fatai.ensemble.members import align_out_of_fold
from fatai.experiment.build import recipe_parameters
from fatai.experiment.clip_tables import folded_table
from fatai.experiment.recipe import Recipe, load_recipe
from fatai.experiment.run import run_recipe
from fatai.experiment.run_folder import predict_with_run
from fatai.experiment.scaling import SCALES, Scale, scale_recipe
from fatai.inference.predictions import Predictions
from fatai.metrics.bootstrap import Interval, score_interval
from fatai.metrics.per_class import confusions
from fatai.metrics.ranking import lwlrap
from fatai.report.sections.training import clip_lengths

# Rows of the table: a recipe, as it is or on curated clips alone.
WAYS: dict[str, tuple[str, bool]] = {
    "ninth": ("ninth", False),
    "ninth_full": ("ninth_full", False),
    "ninth_full, curated": ("ninth_full", True),
    "fastai_kernel": ("fastai_kernel", False),
    "panns_logreg": ("panns_logreg", False),
    "kaggle_fat_36th": ("kaggle_fat_36th", False),
    "kaggle_fat_36th, curated": ("kaggle_fat_36th", True),
    "first_place": ("first_place", False),
    "first_place, curated": ("first_place", True),
    "first_place_skip": ("first_place_skip", False),
    "third_place_2d": ("third_place_2d", False),
    "third_place_1d": ("third_place_1d", False),
    "third_place_noisy": ("third_place_noisy", False),
    "gold_plan": ("gold_plan", False),
    "gold_plan, curated": ("gold_plan", True),
}
ENSEMBLES: dict[str, dict[str, Any]] = {
    "mean of all": {"how": "mean"},
    "geometric mean of all": {"how": "gmean"},
    "ranks within clips of all": {"how": "rank_clip"},
    "searched weights (cobyla)": {"how": "cobyla", "average": "gmean"},
    "selected one by one (forward)": {"how": "forward", "average": "gmean"},
}
MORE: dict[str, dict[str, Any]] = {
    "three times the passes": {"passes": 3},
    "five folds": {"folds": 2.5},
    "twice as wide": {"width": 2},
}
"""Factors of the size of a system that `--more` tries."""
_LENGTHS_S = (0.0, 1.0, 2.0, 4.0)  # bounds of the groups of test clips by length
_TIMED = 24  # test clips that are predicted again to measure time


def on_curated(recipe: Recipe) -> Recipe:
    """Restrict a recipe to curated clips.

    Its stages before the first with noisy clips are kept; without such a stage, the first one without its noisy clips
    and with its curated loss.
    """
    stages = [stage.model_dump() for stage in recipe.stages]
    first = next((k for k, stage in enumerate(stages) if stage["noisy_labels"] is not None), len(stages))
    kept = stages[:first] or stages[:1]
    default_split = type(recipe.stages[0])().noisy_fold_split
    for stage in kept:
        if stage["loss"] == "split":
            stage.update(loss=stage["loss_options"]["curated_loss"], loss_options={})
        if stage["sampling"] == "mixture":
            stage.update(sampling="shuffle", sampling_options={})
        stage.update(noisy_labels=None, noisy_sample_weight=1.0, noisy_fold_split=default_split)
    kept[-1]["checkpoint"] = "best" if kept[-1]["checkpoint"] == "best_overall" else kept[-1]["checkpoint"]
    return Recipe.model_validate({**recipe.model_dump(), "stages": tuple(kept)})


def recipe_of(way: str, data: FATDataset, seed: int, size: Scale) -> Recipe:
    """Return a row's recipe in its size, with the folds of all rows, every one of them trained."""
    way, _, more = way.partition(" with ")
    if more:
        size = replace(
            size, **{key: type(getattr(size, key))(getattr(size, key) * factor) for key, factor in MORE[more].items()}
        )
    name, curated_only = WAYS[way]
    recipe = load_recipe(name)
    if curated_only:
        recipe = on_curated(recipe)
    assert data.noisy is not None
    plain = scale_recipe(recipe, size, len(data.noisy), len(data.curated)).model_dump()
    plain["folds"] = {**plain["folds"], "splitter": "multilabel", "seed": seed, "run_folds": None}
    return Recipe.model_validate({**plain, "seed": 100 * seed + 1})


def folder_of(work: Path, way: str, seed: int) -> Path:
    """Return the run folder of a row."""
    return work / f"{way.replace(', ', '_').replace(' ', '_')}_{seed}"


def trial(data: FATDataset, way: str, seed: int, size: Scale, work: Path) -> Row:
    """Train a run, or continue it, and score it.

    Seconds are those of this process; None for a run that another process started.
    """
    recipe, out = recipe_of(way, data, seed, size), folder_of(work, way, seed)
    is_started = out.exists()
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        run_recipe(data, recipe, out, resume=True, num_workers=0, cache_dir=work / "cache", log=lambda line: None)
    trained = time.process_time()
    predict_with_run(out, data.test.head(_TIMED), num_workers=0)
    seconds = time.process_time() - trained
    oof, test = intervals(data, Predictions.from_csv(out / "oof.csv"), Predictions.from_csv(out / "test.csv"))
    return {
        "oof": oof.value,
        "oof_low": oof.low,
        "oof_high": oof.high,
        "test": test.value,
        "test_low": test.low,
        "test_high": test.high,
        "seconds": None if is_started else round(trained - start, 1),
        "ms_a_clip": round(1000 * seconds / _TIMED, 1),
        "parameters": recipe_parameters(recipe, len(data.tags)),
    }


def baseline_trial(data: FATDataset, name: str, seed: int, size: Scale) -> Row:
    """Fit a baseline on the folds of the recipes and score it."""
    table, _, folds = folded_table(data, recipe_of("ninth", data, seed, size))
    oof, test, fit_s, test_s = fit_baseline(name, table, folds, data.test, data.tags, seed)
    scores = zip(("oof", "test"), intervals(data, oof, test), strict=True)
    row = {
        key: value for part, found in scores
        for key, value in ((part, found.value), (f"{part}_low", found.low), (f"{part}_high", found.high))
    }
    ms_a_clip = round(1000 * test_s / len(data.test), 1)
    return {**row, "seconds": round(fit_s, 1), "ms_a_clip": ms_a_clip, "parameters": None}


def intervals(data: FATDataset, oof: Predictions, test: Predictions) -> tuple[Interval, Interval]:
    """Return the scores out of fold and on the test part."""
    found = []
    for part, truth in ((oof, data.path / "train_curated.csv"), (test, data.path / "truth" / "test.csv")):
        known = align_out_of_fold([part], truth, part.tags)
        found.append(score_interval(known.probs[0], known.targ))
    return found[0], found[1]


def ensembles_of(data: FATDataset, runs: list[Path]) -> dict[str, EnsembleResult]:
    """Return the ensembles of some runs by name."""
    return {
        name: ensemble_report(list(runs), truth=data.path / "train_curated.csv", **options)
        for name, options in ENSEMBLES.items()
    }


def _between(low: list[float], high: list[float]) -> str:
    return f"{statistics.mean(low):.3f} to {statistics.mean(high):.3f}"


def _minutes(seconds: list[float | None]) -> str:
    """Format the mean of the known times."""
    known = [value for value in seconds if value is not None]
    return f"{statistics.mean(known) / 60:.1f}" if known else "-"


def table_of_runs(rows: dict[tuple[str, int], Row], ways: list[str], seeds: list[int]) -> list[str]:
    """Return a row for each system, the best on the test part first."""
    def values(way: str, key: str) -> list[float]:
        return [rows[way, seed][key] for seed in seeds]

    lines = [
        "| system | OOF lwlrap | 95 % | test lwlrap | 95 % | parameters | training, minutes | prediction, ms a clip |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way in sorted(ways, key=lambda way: -statistics.mean(values(way, "test"))):
        cells = [way]
        for part in ("oof", "test"):
            cells += [spread(values(way, part)), _between(values(way, f"{part}_low"), values(way, f"{part}_high"))]
        parameters = rows[way, seeds[0]]["parameters"]
        cells += ["-" if parameters is None else f"{parameters:,}", _minutes(values(way, "seconds"))]
        lines.append(f"| {' | '.join(cells)} | {statistics.mean(values(way, 'ms_a_clip')):.0f} |")
    return lines


def ensembles_of_seeds(
    data: FATDataset, ways: list[str], seeds: list[int], work: Path
) -> dict[str, list[EnsembleResult]]:
    """Return the ensembles of all systems by name.

    They combine the runs of each seed and, with several seeds, all runs together.
    """
    found: dict[str, list[EnsembleResult]] = {}
    for together in [*([seed] for seed in seeds), *([seeds] if len(seeds) > 1 else [])]:
        runs = [folder_of(work, way, seed) for seed in together for way in ways]
        for name, result in ensembles_of(data, runs).items():
            found.setdefault(f"{name}, seeds together" if len(together) > 1 else name, []).append(result)
    return found


def table_of_ensembles(data: FATDataset, results: dict[str, list[EnsembleResult]]) -> list[str]:
    """Return a row for each ensemble, in their order."""
    lines = ["| ensemble | OOF lwlrap, nested | 95 % | test lwlrap | 95 % |", "|---|---|---|---|---|"]
    for name, found in results.items():
        scores = [intervals(data, result.oof, result.predictions) for result in found if result.oof is not None]
        cells = [name]
        for part in zip(*scores, strict=True):
            cells += [spread([i.value for i in part]), _between([i.low for i in part], [i.high for i in part])]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def table_of_limits(data: FATDataset, results: list[EnsembleResult]) -> list[str]:
    """Return the test lwlrap of an ensemble by number of tags and by length of clips, and its confusions."""
    truth = data.path / "truth" / "test.csv"
    known = [align_out_of_fold([result.predictions], truth, data.tags) for result in results]
    path_of = dict(zip(data.test["fname"], data.test["path"], strict=True))
    seconds = clip_lengths([path_of[fname] for fname in known[0].fnames])
    n_tags = known[0].targ.sum(1)
    parts = {"one tag": n_tags == 1, "two tags or more": n_tags > 1}
    for low, high in zip(_LENGTHS_S, (*_LENGTHS_S[1:], np.inf), strict=True):
        parts[f"{low:g} s and longer" if high == np.inf else f"{low:g} to {high:g} s"] = (seconds >= low) & (
            seconds < high
        )
    lines = ["| test clips | number | lwlrap |", "|---|---|---|"]
    for name, chosen in parts.items():
        if chosen.any():
            scores = [lwlrap(part.probs[0][chosen], part.targ[chosen]) for part in known]
            lines.append(f"| {name} | {chosen.sum()} | {spread(scores)} |")
    mistakes = confusions(
        np.concatenate([part.probs[0] for part in known]), np.concatenate([part.targ for part in known]), data.tags
    )
    confused = (f"{row.above} above {row.tag} in {row.clips} of {row.total}" for row in mistakes.head(6).itertuples())
    return [
        *lines,
        "",
        "Absent tags most often ranked above a present one (of the clips with the present and without the absent "
        f"tag): {'; '.join(confused)}.",
    ]


def table_of_more(rows: dict[tuple[str, int], Row], ways: list[str], seeds: list[int]) -> list[str]:
    """Return a row for a system as in the table of all, and for each way in which it had more."""
    lines = ["| system | OOF lwlrap | test lwlrap | training, minutes |", "|---|---|---|---|"]
    for way in ways:
        oof, test, seconds = ([rows[way, seed][key] for seed in seeds] for key in ("oof", "test", "seconds"))
        lines.append(f"| {way} | {spread(oof)} | {spread(test)} | {_minutes(seconds)} |")
    return lines


def markdown(data: FATDataset, rows: dict[tuple[str, int], Row], seeds: list[int], size: Scale, work: Path) -> str:
    """Return the report as Markdown."""
    done = list(dict.fromkeys(way for way, _ in rows if all((way, seed) in rows for seed in seeds)))
    ways, more = [way for way in WAYS if way in done], [way for way in done if " with " in way]
    about = (
        f"{data.path.name}: {len(data.curated)} curated, {0 if data.noisy is None else len(data.noisy)} noisy and "
        f"{len(data.test)} test clips. Networks a quarter as wide as published; {size.passes} times the curated clips "
        f"of a fold seen by every recipe, in batches of {size.bs} at most, stages in the published proportions; two "
        f"folds, the same for all; {size.n_views} views at most. "
        f"{'One seed' if len(seeds) == 1 else f'Mean ± standard deviation over {len(seeds)} seeds'}; the intervals "
        "(means of their ends) show the range for other clips of the same kind. Time of one run on "
        f"{torch.get_num_threads()} CPU thread(s), both folds. No pretrained weights are used: the frozen "
        "network of panns_logreg is random and gold_plan trains from scratch; as published, both "
        "start from weights trained on AudioSet."
    )
    baselines = [name for name in BASELINES if name in done]
    lines = [about, "", *table_of_runs(rows, [*ways, *baselines], seeds)]
    if len(ways) > 1:
        results = ensembles_of_seeds(data, ways, seeds, work)
        results = dict(
            sorted(results.items(), key=lambda item: -statistics.mean(b.predictions.oof_score or 0 for b in item[1]))
        )
        best = next(iter(results))
        lines += ["", *table_of_ensembles(data, results), "", f"Where the first of these ({best}) loses:", ""]
        lines += table_of_limits(data, results[best])
    if more:
        lines += ["", *table_of_more(rows, [more[0].partition(" with ")[0], *more], seeds)]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and write its report."""
    options = parser(__doc__, "systems", "passes", 40, [*WAYS, *BASELINES])
    options.set_defaults(seeds=[0, 1])
    options.add_argument("--more", choices=list(WAYS), help="a system of which more is tried, too")
    options.add_argument(
        "--by", nargs="+", choices=list(MORE), default=list(MORE), help="what --more tries; all of it by default"
    )
    args = options.parse_args(argv)
    warnings.simplefilter("ignore")
    data = read_with_truth(args.data, "test")
    small = SCALES["small"]
    assert small is not None
    size = replace(small, passes=args.passes)
    same = {"passes": args.passes, "data": data.path.name}
    ways = [*args.only, *(f"{args.more} with {more}" for more in args.by if args.more)]

    def run(way: str, seed: int) -> Row:
        return baseline_trial(data, way, seed, size) if way in BASELINES else trial(data, way, seed, size, args.work)

    rows = trials(args.work / "rows.jsonl", ways, args.seeds, same, run)
    command = (
        f"python -m benchmarks.systems {data.path.name} --seeds {' '.join(map(str, args.seeds))} --passes {args.passes}"
    )
    command += f" --more {args.more}" if args.more else ""
    command += f" --by {shlex.join(args.by)}" if args.more and args.by != list(MORE) else ""
    command += f" --only {shlex.join(args.only)}" if set(args.only) != {*WAYS, *BASELINES} else ""
    write_report("The systems, small", command, markdown(data, rows, args.seeds, size, args.work), args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
