"""Effect of noisy clips on the score: every protocol with one small model and budget, two folds, several seeds.

    python -m benchmarks.noisy DATA [--seeds 0 1 2] [--steps 500] [--few 80] [--only NAME ...] [--work FOLDER] [--out
    FILE]

DATA is a folder in the competition's layout with truth/test.csv and truth/train_noisy.csv, which are used only for
scores. The models of the curated part predict the noisy clips for all protocols; every later stage has the same number
of optimizer steps, starts from new weights unless its protocol continues from the curated ones, and is scored with its
last epoch, so nothing is chosen by a score. Some protocols are then tried with few curated clips, drawn by the seed, so
that many noisy clips come from recordings that no curated clip is cut from. Every finished row is a line of
FOLDER/rows.jsonl and is not computed again: several processes may share the work, each with its own seeds.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import time
import warnings
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.timing import write_report
from benchmarks.trials import Row, parser, read_with_truth, spread, trials
from fatai.data.datasets.fat2019 import FATDataset
from fatai.data.labels import multi_hot, read_labels
from fatai.ensemble.ensemble import ensemble
from fatai.experiment.build import recipe_network
from fatai.experiment.clip_tables import folded_table, noisy_table
from fatai.experiment.fold import FoldContext, _noisy_predictions_path, _round_path, train_fold
from fatai.experiment.recipe import Recipe, load_recipe
from fatai.experiment.run_folder import WEIGHTS
from fatai.experiment.self_training import SelfTrainingRounds
from fatai.metrics.ranking import lwlrap
from fatai.models import count_parameters
from fatai.noisy_labels.selection import LabelSelection

WIDTH, CROP_S, BS, LR, VIEWS, FOLDS = 0.125, 1.0, 16, 3e-3, 4, 2
CONTINUE = {"lr": 1e-3}
HALF_NOISY: dict[str, Any] = {"sampling": "mixture", "sampling_options": {"weights": {"curated": 0.5, "noisy": 0.5}}}

# Stages after the curated one; the counts of clips are the published fractions of 19,815 noisy clips, times 640. The
# 3rd place's replacenan does what its relabelall does and isn't here twice.
PROTOCOLS: dict[str, list[dict[str, Any]]] = {
    "curated only": [],
    "curated, then curated": [{"reinit": False, **CONTINUE}],
    "all as given": [{"noisy_labels": {"method": "as_given"}}],
    "ninth": [{"noisy_labels": {"method": "ninth_place_low_loss", "n": 160, "per_tag": 20}}],
    "ninth, then curated": [
        {"noisy_labels": {"method": "ninth_place_low_loss", "n": 160, "per_tag": 20}},
        {"reinit": False, **CONTINUE},
    ],
    "3rd: scoring, a half": [{"noisy_labels": {"method": "scoring", "k": 320}}],
    "3rd: fullmatch": [{"noisy_labels": {"method": "fullmatch"}}],
    "3rd: relabelall": [{"noisy_labels": {"method": "relabelall"}}],
    "3rd: relabelall-merge": [{"noisy_labels": {"method": "relabelall-merge"}}],
    "3rd: ladder, then pseudo-labels": [
        {"noisy_labels": {"method": "scoring", "k": 100}, "noisy_fold_split": "own"},
        {"noisy_labels": {"method": "scoring", "k": 200}, "noisy_fold_split": "own"},
        {"noisy_labels": {"method": "third_place_pseudo_labels", "k": 320}},
    ],
    "gold plan": [
        {
            "noisy_labels": {"method": "gold_plan_confidence"},
            "noisy_sample_weight": 0.5,
            "noisy_fold_split": "own",
            "reinit": False,
            **CONTINUE,
        },
        {"noisy_labels": {"method": "gold_plan_confidence"}, "reinit": False, **CONTINUE},
    ],
    "36th: soft labels": [{"noisy_labels": {"method": "kaggle_fat_soft_labels"}}],
    "1st: Lsoft, a fifth noisy": [
        {"noisy_labels": {"method": "first_place_corrections"}, "sampling": "mixture", "loss": "split"}
    ],
    "4th: second head": [{"noisy_labels": {"method": "fourth_place_second_head"}, **HALF_NOISY}],
    "4th: sharpened pseudo-labels": [
        {"noisy_labels": {"method": "fourth_place_pseudo_labels", "weight": 1.0}, **HALF_NOISY}
    ],
}
WITH_FEW = (
    "curated only",
    "curated, then curated",
    "all as given",
    "ninth",
    "ninth, then curated",
    "3rd: scoring, a half",
    "3rd: fullmatch",
    "1st: Lsoft, a fifth noisy",
    "4th: sharpened pseudo-labels",
)


def recipe_of(stages: list[dict[str, Any]], seed: int, steps: int, n_curated: int) -> Recipe:
    """Return a recipe with the curated stage and later ones; epochs are set when the clips of a stage are known."""
    plain = (
        load_recipe("quick")
        .override(width=WIDTH, crop_s=CROP_S, n_views=VIEWS, n_folds=FOLDS, bs=BS, lr=LR, seed=100 * seed)
        .model_dump()
    )
    plain["clips"]["cache"] = "wave"
    plain["folds"]["seed"] = seed
    curated = {**plain["stages"][0], "checkpoint": "last", "epochs": round(steps * BS / n_curated)}
    later = [{**curated, "reinit": True, "name": f"stage_{k}", **stage} for k, stage in enumerate(stages, start=1)]
    return Recipe.model_validate({**plain, "stages": (curated, *later)})


class Budget(SelfTrainingRounds):
    """Self-training whose stages all have the same number of steps, however many clips were selected."""

    def __init__(self, context: FoldContext, steps: int, n_curated: int):
        super().__init__(context, range(FOLDS))
        self.steps, self.n_curated = steps, n_curated
        self.selections: list[LabelSelection] = []

    def _fold_selections(self, number: int) -> dict[int, LabelSelection]:
        parts = super()._fold_selections(number)
        if parts and self.selection is not None:
            self.selections.append(self.selection)
        clips = self.n_curated + (len(parts[0]) if parts else 0)
        stage = self.rounds[number].start
        stages = list(self.context.recipe.stages)
        stages[stage] = stages[stage].model_copy(update={"epochs": max(1, round(self.steps * BS / clips))})
        self.context = replace(self.context, recipe=self.context.recipe.model_copy(update={"stages": tuple(stages)}))
        return parts


def trial(data: FATDataset, way: str, seed: int, steps: int, work: Path, few: int | None = None) -> dict[str, Any]:
    """Return the scores of one protocol with one seed, over all folds; with `few`, from that many curated clips."""
    start = time.monotonic()
    if few is not None:
        data, work = (
            replace(data, curated=data.curated.sample(few, random_state=seed).sort_index()),
            work / f"few_{few}",
        )
    plain = recipe_of([], seed, steps, len(data.curated) // FOLDS)
    table, _, folds = folded_table(data, plain)
    n_curated = len(table) // FOLDS
    recipe = recipe_of(PROTOCOLS[way], seed, steps, n_curated)
    out = work / f"{way.replace(':', '').replace(' ', '_')}_{seed}"
    shutil.rmtree(out, ignore_errors=True)
    noisy, _ = noisy_table(data, recipe_of([{"noisy_labels": {"method": "as_given"}}], seed, steps, n_curated))
    context = FoldContext(
        data, recipe, out, "", noisy=noisy, num_workers=0, cache_dir=work / "cache", log=lambda line: None
    )
    _copy_curated_models(data, table, folds, seed, steps, n_curated, work, out, noisy)
    rounds = Budget(context, steps, n_curated)
    with redirect_stdout(StringIO()):
        rounds.train_before_last(table, folds)
        results = list(rounds.train_last(table, folds).values())
    targ = multi_hot(table["labels"], data.tags)
    oof = np.zeros(targ.shape)
    for k, result in enumerate(results):
        oof[folds == k] = result.oof.probs
    test = ensemble([result.test for result in results], how="mean")
    shutil.rmtree(out)
    return {
        "oof": lwlrap(oof, targ),
        "test": test.score(data.path / "truth" / "test.csv"),
        "seconds": round(time.monotonic() - start, 1),
        **(labels_kept(data, rounds.selections[-1]) if rounds.selections else {}),
    }


def _copy_curated_models(
    data: FATDataset,
    table: pd.DataFrame,
    folds: np.ndarray,
    seed: int,
    steps: int,
    n_curated: int,
    work: Path,
    out: Path,
    noisy: Any,
) -> None:
    """Copy the curated models and their predictions of noisy clips into a new run.

    They are trained if no other protocol has done it before.
    """
    recipe = recipe_of([{"noisy_labels": {"method": "ninth_place_low_loss"}}], seed, steps, n_curated)
    curated = work / f"curated_{seed}"
    context = FoldContext(
        data, recipe, curated, "", noisy=noisy, num_workers=0, cache_dir=work / "cache", log=lambda line: None
    )
    for k in range(FOLDS):
        with redirect_stdout(StringIO()):
            train_fold(context, k, table.assign(is_valid=folds == k))
        source, target = curated / f"fold_{k}", out / f"fold_{k}"
        target.mkdir(parents=True)
        shutil.copy(source / _noisy_predictions_path(0), target)
        shutil.copy(source / _round_path(0), target / _round_path(0))
        if out.name.startswith("curated_only"):
            shutil.copy(source / _round_path(0), target / WEIGHTS)


def labels_kept(data: FATDataset, selection: LabelSelection) -> dict[str, Any]:
    """Return the number of clips that a method kept, and the precision and recall of the labels that it trains on."""
    truth = read_labels(data.path / "truth" / "train_noisy.csv").set_index("fname")["labels"]
    known = set(data.noisy["fname"])
    true = {(fname, tag) for fname, tags in truth.items() if fname in known for tag in tags}
    n_tags = len(data.tags)
    kept = {
        (fname, data.tags[k % n_tags])
        for fname, targ in zip(selection.fnames, selection.targ, strict=True)
        for k in np.flatnonzero(targ > 0.5)
    }
    return {
        "clips": len(set(selection.fnames)),
        "precision": len(kept & true) / max(1, len(kept)),
        "recall": len(kept & true) / len(true),
    }


Rows = dict[tuple[str, int], Row]


def markdown(rows: Rows, with_few: Rows, seeds: list[int], data: FATDataset, steps: int, few: int) -> str:
    """Return the report as Markdown."""
    model = recipe_network(recipe_of([], 0, steps, 1), len(data.tags), 1)
    about = (
        f"{data.path.name}: {len(data.curated)} curated and {len(data.noisy)} noisy clips, {FOLDS} folds, {len(seeds)} "
        f"seeds. m3 at width {WIDTH} ({count_parameters(model):,} parameters), crops of {CROP_S:g} s, batches of {BS}, "
        f"one-cycle to {LR:g} ({CONTINUE['lr']:g} where a stage continues from earlier weights), about {steps} "
        f"optimizer steps in every stage, {VIEWS} views. Mean ± standard deviation over seeds; gains against curated "
        "only, seed by seed. Precision: the fraction of the labels trained on that are true; recall: the fraction "
        "of the true labels that are trained on. "
        f"{sum(r['seconds'] for r in (*rows.values(), *with_few.values())) / 60:.0f} "
        f"minutes of {torch.get_num_threads()} thread(s) in all."
    )
    caution = (
        "Where noisy clips are other cuts of the recordings of curated clips, a noisy clip may come from a recording "
        "of the validation fold: gains out of fold are then too good, and the test part, which has other recordings, "
        "is decisive. For the test part, the models of all folds together have been trained on every curated "
        "recording, and noisy clips add worse copies of them; with few curated clips they add recordings."
    )
    return "\n".join(
        [about, "", caution, "", *table(rows, seeds), "", f"## With {few} curated clips", "", *table(with_few, seeds)]
    )


def table(rows: Rows, seeds: list[int]) -> list[str]:
    """Return a row for each protocol that all seeds have tried, and the names of those that beat curated clips."""
    ways = [way for way in PROTOCOLS if all((way, seed) in rows for seed in seeds)]

    def values(way: str, key: str) -> list[float]:
        return [rows[way, seed][key] for seed in seeds]

    def gains(way: str, key: str = "test") -> list[float]:
        return [a - b for a, b in zip(values(way, key), values("curated only", key), strict=True)]

    lines = [
        "| protocol | OOF lwlrap | gain | test lwlrap | gain | clips | precision | recall |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way in ways:
        cells = []
        for part in ("oof", "test"):
            cells += [spread(values(way, part)), "" if way == "curated only" else spread(gains(way, part), signed=True)]
        for key, form in (("clips", ".0f"), ("precision", ".2f"), ("recall", ".2f")):
            cells.append("" if way.startswith("curated") else f"{statistics.mean(values(way, key)):{form}}")
        lines.append(f"| {way} | {' | '.join(cells)} |")
    better = [way for way in ways if not way.startswith("curated") and statistics.mean(gains(way)) >= 0.02]
    named = f": {'; '.join(better)}" if better else ""
    return [*lines, "", f"{len(better)} protocols beat curated only by at least 0.02 test lwlrap in the mean{named}."]


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and write its report."""
    options = parser(__doc__, "noisy", "steps", 500, list(PROTOCOLS))
    options.add_argument("--few", type=int, default=80, help="curated clips of the second table")
    args = options.parse_args(argv)
    warnings.simplefilter("ignore")
    data = read_with_truth(args.data, "test", "train_noisy")
    same = {"steps": args.steps, "data": data.path.name}
    file = args.work / "rows.jsonl"

    def run(ways: list[str], few: int | None) -> Rows:
        settings = {**same, "curated": few or len(data.curated)}
        return trials(
            file, ways, args.seeds, settings, lambda way, seed: trial(data, way, seed, args.steps, args.work, few)
        )

    rows, with_few = run(args.only, None), run([way for way in WITH_FEW if way in args.only], args.few)
    seeds = " ".join(map(str, args.seeds))
    command = f"python -m benchmarks.noisy {data.path.name} --seeds {seeds} --steps {args.steps} --few {args.few}"
    write_report("Noisy clips", command, markdown(rows, with_few, args.seeds, data, args.steps, args.few), args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
