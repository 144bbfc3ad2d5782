"""What random changes and losses do for the score: one small model and budget, two folds, several seeds.

    python -m benchmarks.augmentation [DATA] [--seeds 0 1 2] [--epochs 110] [--work FOLDER] [--out benchmarks/results/augmentation.md]

DATA is a folder in the competition's layout with truth/test.csv, of which only the score of the test part is made. Trained on the curated
part alone; the last epoch counts, so nothing is chosen by a score. A seed decides folds, weights and draws. Every finished row is a line of
FOLDER/rows.jsonl, and rows that are there are not trained again: several processes may share the work, each with seeds of its own.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastai.callback.schedule  # noqa: F401 - gives learners fit_one_cycle
import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.torch_core import set_seed

import fatai.inference.tta  # noqa: F401 - gives learners tta
from benchmarks.rounds import report
from benchmarks.trials import parser, read_with_truth, spread, trials
from fatai.augment.spec_augment import SpecAugment
from fatai.augment.mixup import LinearMixUp, OneOfMixers, MixUpOr
from fatai.augment.wave import AddNoise, Gain, Shift
from fatai.data.blocks import FATDataLoaders
from fatai.data.datasets.fat2019 import FATDataset
from fatai.data.folds import make_folds
from fatai.data.labels import multi_hot
from fatai.data.tables import check_readable
from fatai.ensemble.ensemble import ensemble
from fatai.inference.predictions import Predictions
from fatai.models import count_parameters, create_model
from fatai.metrics.ranking import lwlrap
from fatai.training.learner import fat_learner

SETTINGS: dict[str, Any] = {"arch": "m3", "width": 0.125, "crop_s": 1.0, "bs": 16, "lr": 3e-3, "views": 4, "folds": 2}


def wave_effects() -> list[Callback]:
    return [Gain(), Shift(), AddNoise()]


def everything() -> list[Callback]:
    return [*wave_effects(), OneOfMixers(["mixup", "mixup_or"], domain="wave", p=0.5), SpecAugment()]


# Name, loss, random changes; everything at its defaults.
WAYS: dict[str, tuple[str, Callable[[], list[Callback]]]] = {
    "none": ("bce", list),
    "SpecAugment": ("bce", lambda: [SpecAugment()]),
    "linear mixup": ("bce", lambda: [LinearMixUp()]),
    "OR mixup": ("bce", lambda: [MixUpOr()]),
    "waveform effects": ("bce", wave_effects),
    "all": ("bce", everything),
    "none, LSEP": ("lsep", list),
}
ABOUT = (
    "Every change at its defaults: SpecAugment with 2 masks of each kind in every clip; linear mixup with one Beta(0.4, 0.4) a batch; OR "
    "mixup and each of the waveform effects (gain, shift, noise) in half of the clips. \"all\" is waveform effects, then in half of the "
    "clips one of the two mixups, then SpecAugment. The loss is BCE unless LSEP is named."
)


def trained(
    table: pd.DataFrame, oof_score: np.ndarray, data: FATDataset, way: str, seed: int, epochs: int, cache_dir: Path,
) -> tuple[Predictions, Predictions, int]:
    """Predictions for the clips held out and for the test part, and the number of optimiser steps."""
    loss, changes = WAYS[way]
    set_seed(seed, reproducible=True)
    dls = FATDataLoaders.from_df(
        table[~oof_score],
        vocab=data.tags,
        fn_col="fname",
        path_col="path",
        label_col="labels",
        valid_pct=0,
        crop_s=SETTINGS["crop_s"],
        bs=SETTINGS["bs"],
        num_workers=0,
        check_files=False,
        cache="wave",
        cache_dir=cache_dir,
    )
    learn = fat_learner(dls, SETTINGS["arch"], width=SETTINGS["width"], loss_func=loss, augment=changes(), metrics=[])
    with learn.no_logging(), learn.no_bar():
        learn.fit_one_cycle(epochs, SETTINGS["lr"])
    views = {"how": "even", "n": SETTINGS["views"]}
    return learn.tta(items=table[oof_score], **views), learn.tta(items=data.test, **views), epochs * len(dls.train)


def trial(data: FATDataset, way: str, seed: int, epochs: int, cache_dir: Path) -> dict[str, Any]:
    """Scores of one way with one seed, over all folds."""
    started = time.monotonic()
    good, _ = check_readable([Path(p) for p in data.curated["path"]])
    table = data.curated[good].reset_index(drop=True)
    targ = multi_hot(table["labels"], data.tags)
    folds = make_folds(targ, splitter="stratified", n=SETTINGS["folds"], seed=seed)
    oof, of_test, steps = np.zeros(targ.shape), [], 0
    for fold in range(SETTINGS["folds"]):
        held, test, steps = trained(table, folds == fold, data, way, 100 * seed + fold, epochs, cache_dir)
        oof[folds == fold] = held.probs
        of_test.append(test)
    test = ensemble(of_test, how="mean").score(data.path / "truth" / "test.csv")
    return {
        "clips": len(table),
        "steps": steps,
        "oof": lwlrap(oof, targ),
        "test": test,
        "seconds": round(time.monotonic() - started, 1),
    }


def verdict(gain: dict[str, list[float]], seeds: int) -> str:
    """Whether the full set beats none, in words."""
    means = {what: statistics.mean(values) for what, values in gain.items()}
    both = " and ".join(f"{mean:+.3f} {what}" for what, mean in means.items())
    reached = [what for what, mean in means.items() if mean >= 0.02]
    told = {2: "it beats none by 0.02 or more in both", 1: f"it beats none by 0.02 or more {''.join(reached)} only"}
    in_words = told.get(len(reached), "less than the 0.02 asked for")
    return f"Against none, all together gives {both} in the mean of {seeds} seeds: {in_words}."


def written(rows: dict[tuple[str, int], dict[str, Any]], seeds: list[int]) -> str:
    def scores(way: str, part: str) -> list[float]:
        return [rows[way, seed][part] for seed in seeds]

    def gains(way: str, part: str) -> list[float]:
        return [a - b for a, b in zip(scores(way, part), scores("none", part), strict=True)]

    some = next(iter(rows.values()))
    s = SETTINGS
    model = create_model(s["arch"], 10, 1, width=s["width"])
    lines = [
        f"{some['data']}, {some['clips']} curated clips, {s['folds']} folds, {len(seeds)} seeds; {s['arch']} at width {s['width']} "
        f"({count_parameters(model):,} parameters), crops of {s['crop_s']:g} s, batches of {s['bs']}, one-cycle to {s['lr']:g}, "
        f"{some['epochs']} epochs = {some['steps']} optimiser steps a fold, {s['views']} views. Mean ± standard deviation over seeds; "
        f"gains against none, seed by seed. {sum(r['seconds'] for r in rows.values()) / 60:.0f} minutes of "
        f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)} in all.",
        "",
        ABOUT,
        "",
        "| | OOF lwlrap | gain | test lwlrap | gain | s a fold |",
        "|---|---|---|---|---|---|",
    ]
    for way in WAYS:
        seconds = statistics.mean(scores(way, "seconds")) / s["folds"]
        cells = []
        for part in ("oof", "test"):
            cells += [spread(scores(way, part)), "" if way == "none" else spread(gains(way, part), signed=True)]
        lines.append(f"| {way} | {' | '.join(cells)} | {seconds:.0f} |")
    lsep = {part: statistics.mean(gains("none, LSEP", part)) for part in ("oof", "test")}
    lines += [
        "", verdict({"out of fold": gains("all", "oof"), "on the test part": gains("all", "test")}, len(seeds)),
        f"LSEP instead of BCE gives {lsep['oof']:+.3f} out of fold and {lsep['test']:+.3f} on the test part.",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    args = parser(__doc__, "augmentation", "epochs", 110).parse_args(argv)
    warnings.simplefilter("ignore")
    data = read_with_truth(args.data, "test")
    same = {"epochs": args.epochs, "settings": SETTINGS, "data": data.path.name}
    rows = trials(
        args.work / "rows.jsonl",
        WAYS,
        args.seeds,
        same,
        lambda way, seed: trial(data, way, seed, args.epochs, args.work / "cache"),
    )
    command = f"python -m benchmarks.augmentation {data.path.name} --seeds {' '.join(map(str, args.seeds))} --epochs {args.epochs}"
    report("Random changes and losses", command, written(rows, args.seeds), args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
