"""What each part of a recipe gives: the recipe as it is, without each part, and with others, out of fold.

    python -m benchmarks.ingredients DATA [--recipe default] [--seeds 0 1 2] [--epochs 0] [--only NAME ...]
                                          [--work FOLDER] [--out benchmarks/results/ingredients.md]

DATA is a folder in the competition's layout. Every variant is trained with the same folds and seeds; `--epochs`
replaces those of the recipe (0 keeps them). Differences are taken out of fold, clip by clip; a test part with
truth/test.csv is scored beside, and nothing is chosen by it. Every finished run is a line of FOLDER/rows.jsonl and a
run folder beside it; finished runs are not trained again and interrupted ones continued: several processes may share
the work, each with its own names.
"""

from __future__ import annotations

import contextlib
import io
import re
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import write_report
from benchmarks.trials import Row, parser, spread, trials
from fatai.data.datasets.fat2019 import FATDataset, load_dataset
from fatai.ensemble.members import align_out_of_fold
from fatai.experiment.build import recipe_parameters
from fatai.experiment.overrides import Overrides
from fatai.experiment.recipe import Recipe, load_recipe
from fatai.experiment.run import run_recipe
from fatai.inference.predictions import Predictions
from fatai.metrics.bootstrap import score_difference
from fatai.metrics.ranking import lwlrap

AS_IT_IS = "as it is"
ALTERNATIVES: dict[str, Mapping[str, Any]] = {
    "with log-mel alone": {"clips.channels": "mono"},
    "with the log-mel three times": {"clips.channels": "repeat3"},
    "with deltas": {"clips.channels": "deltas"},
    "with ramps of frequency and time": {"clips.channels": "coord"},
    "with mixup p = 1": {"stages.mixup.p": 1.0},
    "with between-class mixing": {"stages.mixup.name": "between_class"},
    "with smoothed labels": {"stages.loss": "smooth_positives"},
    "half as wide": {"model.width": 0.5},
    "with crops of 1 s": {"clips.crop_s": 1.0},
    "with crops of 3 s": {"clips.crop_s": 3.0},
}
"""Settings that replace those of the recipe."""
ADDED = ("speed_perturb", "pitch", "reverb", "time_reverse", "cutout")
"""Augmentations that are tried in addition."""


def variants(recipe: Recipe) -> dict[str, Recipe]:
    """Return the recipe as it is, without each of its parts, with other settings and with further augmentations.

    What a recipe already has is not among the alternatives.
    """
    changes = dict(_changes(recipe))
    found = {name: recipe.override(Overrides(values=values)) for name, values in changes.items()}
    return {name: changed for name, changed in found.items() if name == AS_IT_IS or changed != recipe}


def _changes(recipe: Recipe) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the name of each variant and the settings that it replaces."""
    yield AS_IT_IS, {}
    stage = recipe.stages[0].model_dump()
    augment = list(stage["augment"])
    for k, entry in enumerate(augment):
        yield f"without {entry['name']}", {"stages.augment": [*augment[:k], *augment[k + 1:]]}
    for key in ("mixup", "ema_decay", "no_aug_epochs"):
        if stage.get(key):
            yield f"without {key}", {f"stages.{key}": None}
    for factor in (0.5, 2):
        lengths = {key: stage[key] for key in ("epochs", "no_aug_epochs") if stage[key]}
        yield f"{factor:g} times the epochs", {f"stages.{k}": max(1, int(n * factor)) for k, n in lengths.items()}
    for name, values in ALTERNATIVES.items():
        if stage["mixup"] or not any(key.startswith("stages.mixup.") for key in values):
            yield name, values
    for name in ADDED:
        if name not in [entry["name"] for entry in augment]:
            yield f"with {name}", {"stages.augment": [*augment, {"name": name}]}


def folder_of(work: Path, way: str, seed: int) -> Path:
    """Return the run folder of a variant."""
    return work / f"{re.sub(r'[^a-z0-9.]+', '_', way.lower())}_{seed}"


def trial(data: FATDataset, recipe: Recipe, way: str, seed: int, work: Path) -> Row:
    """Train a run, or continue it, and score it; seconds are None for a run that another process started."""
    out = folder_of(work, way, seed)
    is_started, start = out.exists(), time.process_time()
    recipe = recipe.override(Overrides(values={"noisy_decision": False}))  # curated clips alone, in all variants
    with contextlib.redirect_stdout(io.StringIO()):
        run_recipe(data, recipe, out, resume=True, num_workers=0, cache_dir=work / "cache", log=lambda line: None)
    seconds = time.process_time() - start
    truth = data.path / "truth" / "test.csv"
    return {
        "oof": _score(out / "oof.csv", data.path / "train_curated.csv"),
        "test": _score(out / "test.csv", truth) if truth.is_file() else float("nan"),
        "seconds": None if is_started else round(seconds, 1),
        "parameters": recipe_parameters(recipe, len(data.tags)),
    }


def _score(predictions: Path, truth: Path) -> float:
    part = Predictions.from_csv(predictions)
    known = align_out_of_fold([part], truth, part.tags)
    return lwlrap(known.probs[0], known.targ)


def gains(data: FATDataset, way: str, seeds: list[int], work: Path) -> list[tuple[float, float, float]]:
    """Return the difference from the recipe as it is and its interval, out of fold, for each seed."""
    found = []
    for seed in seeds:
        parts = [Predictions.from_csv(folder_of(work, name, seed) / "oof.csv") for name in (way, AS_IT_IS)]
        known = align_out_of_fold(parts, data.path / "train_curated.csv", data.tags)
        difference = score_difference(known.probs[0], known.probs[1], known.targ)
        found.append((difference.value, difference.low, difference.high))
    return found


def markdown(data: FATDataset, name: str, rows: dict[tuple[str, int], Row], seeds: list[int], work: Path) -> str:
    """Return the report as Markdown, the best out of fold first."""
    ways = [way for way in dict.fromkeys(way for way, _ in rows) if all((way, seed) in rows for seed in seeds)]

    def values(way: str, key: str) -> list[float]:
        return [rows[way, seed][key] for seed in seeds if rows[way, seed][key] is not None]

    has_test = all(row["test"] == row["test"] for row in rows.values())
    lines = [
        f"{data.path.name}: {len(data.curated)} curated clips, recipe {name}. Mean ± standard deviation over "
        f"{len(seeds)} seed(s); gains are out of fold against the recipe as it is, with the mean of the 95 % intervals "
        f"over clips. CPU minutes of a whole run, on {torch.get_num_threads()} thread(s).",
        "",
        f"| variant | OOF lwlrap | gain | 95 % |{' test lwlrap |' if has_test else ''} CPU minutes |",
        f"|---|---|---|---|{'---|' if has_test else ''}---|",
    ]
    for way in sorted(ways, key=lambda way: -statistics.mean(values(way, "oof"))):
        gain, low, high = zip(*gains(data, way, seeds, work), strict=True)
        cells = [way, spread(values(way, "oof"))]
        if way == AS_IT_IS:
            cells += ["-", "-"]
        else:
            interval = f"{statistics.mean(low):+.3f} to {statistics.mean(high):+.3f}"
            cells += [spread(list(gain), signed=True), interval]
        cells += [spread(values(way, "test"))] if has_test else []
        seconds = values(way, "seconds")
        cells.append(f"{statistics.mean(seconds) / 60:.1f}" if seconds else "-")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and write its report."""
    options = parser(__doc__, "ingredients", "epochs", 0)
    options.add_argument("--recipe", default="default")
    options.add_argument("--only", nargs="+", help="variants beside the recipe as it is; all by default")
    args = options.parse_args(argv)
    warnings.simplefilter("ignore")
    data, recipe = load_dataset(args.data), load_recipe(args.recipe)
    known = variants(recipe.override(epochs=args.epochs) if args.epochs else recipe)
    ways = [AS_IT_IS, *(args.only if args.only is not None else [way for way in known if way != AS_IT_IS])]
    for way in ways:
        if way not in known:
            raise SystemExit(f"--only {way!r} is not a variant; expected some of: {', '.join(known)}")
    same = {"recipe": args.recipe, "epochs": args.epochs, "data": data.path.name}
    rows = trials(
        args.work / "rows.jsonl", ways, args.seeds, same,
        lambda way, seed: trial(data, known[way].override(seed=seed), way, seed, args.work),
    )
    command = (
        f"python -m benchmarks.ingredients {data.path.name} --seeds {' '.join(map(str, args.seeds))} "
        f"--recipe {args.recipe}"
    )
    text = markdown(data, args.recipe, rows, args.seeds, args.work)
    write_report(f"The parts of {args.recipe}", command, text, args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
