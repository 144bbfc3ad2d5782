"""Effect of augmentations and losses on the score: one small model and budget, two folds, several seeds.

    python -m benchmarks.augmentation [DATA] [--seeds 0 1 2] [--epochs 110] [--work FOLDER] [--out FILE]

DATA is a folder in the competition's layout with truth/test.csv, which is used only to score the test part. Models are
trained on the curated part alone; the last epoch is used, so nothing is chosen by a score. A seed determines folds,
weights and draws. Every finished row is a line of FOLDER/rows.jsonl and is not computed again: several processes may
share the work, each with its own seeds.
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

from benchmarks.timing import write_report
from benchmarks.trials import parser, read_with_truth, spread, trials
from fatai.augment.mixup import LinearMixUp, MixUpOr, OneOfMixers
from fatai.augment.spec_augment import SpecAugment
from fatai.augment.wave import AddNoise, Gain, Shift
from fatai.data.blocks import FATDataLoaders
from fatai.data.datasets.fat2019 import FATDataset
from fatai.data.folds import make_folds
from fatai.data.labels import multi_hot
from fatai.data.tables import check_readable
from fatai.ensemble.ensemble import ensemble
from fatai.inference.learner import fat_learner
from fatai.inference.predictions import Predictions
from fatai.metrics.ranking import lwlrap
from fatai.models import count_parameters, create_model

SETTINGS: dict[str, Any] = {"arch": "m3", "width": 0.125, "crop_s": 1.0, "bs": 16, "lr": 3e-3, "views": 4, "folds": 2}


def wave_effects() -> list[Callback]:
    """Return the effects on waveforms."""
    return [Gain(), Shift(), AddNoise()]


def everything() -> list[Callback]:
    """Return all augmentations."""
    return [*wave_effects(), OneOfMixers(["mixup", "mixup_or"], domain="wave", p=0.5), SpecAugment()]


# Name, loss, augmentations; all at their defaults.
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
    "Every augmentation at its defaults: SpecAugment with 2 masks of each kind in every clip; linear mixup with one "
    "Beta(0.4, 0.4) a batch; OR mixup and each of the waveform effects (gain, shift, noise) in half of the clips. "
    "\"all\" is waveform effects, then in half of the clips one of the two mixups, then SpecAugment. The loss is BCE "
    "unless LSEP is named."
)


def train(
    table: pd.DataFrame, is_valid: np.ndarray, data: FATDataset, way: str, seed: int, epochs: int, cache_dir: Path,
) -> tuple[Predictions, Predictions, int]:
    """Train a fold; return predictions of validation and test clips, and the number of optimizer steps."""
    loss, changes = WAYS[way]
    set_seed(seed, reproducible=True)
    dls = FATDataLoaders.from_df(
        table[~is_valid],
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
    views = {"views": "even", "n": SETTINGS["views"]}
    return learn.tta(items=table[is_valid], **views), learn.tta(items=data.test, **views), epochs * len(dls.train)


def trial(data: FATDataset, way: str, seed: int, epochs: int, cache_dir: Path) -> dict[str, Any]:
    """Return the scores of one variant with one seed, over all folds."""
    start = time.monotonic()
    readable, _ = check_readable([Path(p) for p in data.curated["path"]])
    table = data.curated[readable].reset_index(drop=True)
    targ = multi_hot(table["labels"], data.tags)
    folds = make_folds(targ, splitter="stratified", n=SETTINGS["folds"], seed=seed)
    oof, test_parts, steps = np.zeros(targ.shape), [], 0
    for fold in range(SETTINGS["folds"]):
        valid, test, steps = train(table, folds == fold, data, way, 100 * seed + fold, epochs, cache_dir)
        oof[folds == fold] = valid.probs
        test_parts.append(test)
    test = ensemble(test_parts, how="mean").score(data.path / "truth" / "test.csv")
    return {
        "clips": len(table),
        "steps": steps,
        "oof": lwlrap(oof, targ),
        "test": test,
        "seconds": round(time.monotonic() - start, 1),
    }


def verdict(gain: dict[str, list[float]], seeds: int) -> str:
    """Return a sentence on whether all augmentations together are better than none."""
    means = {part: statistics.mean(values) for part, values in gain.items()}
    both = " and ".join(f"{mean:+.3f} {part}" for part, mean in means.items())
    reached = [part for part, mean in means.items() if mean >= 0.02]
    sentences = {
        2: "it beats none by 0.02 or more in both",
        1: f"it beats none by 0.02 or more {''.join(reached)} only",
    }
    result = sentences.get(len(reached), "less than the required 0.02")
    return f"Against none, all together gives {both} in the mean of {seeds} seeds: {result}."


def markdown(rows: dict[tuple[str, int], dict[str, Any]], seeds: list[int]) -> str:
    """Return the report as Markdown."""
    def scores(way: str, part: str) -> list[float]:
        return [rows[way, seed][part] for seed in seeds]

    def gains(way: str, part: str) -> list[float]:
        return [a - b for a, b in zip(scores(way, part), scores("none", part), strict=True)]

    some = next(iter(rows.values()))
    s = SETTINGS
    model = create_model(s["arch"], 10, 1, width=s["width"])
    lines = [
        f"{some['data']}, {some['clips']} curated clips, {s['folds']} folds, {len(seeds)} seeds; {s['arch']} at width "
        f"{s['width']} ({count_parameters(model):,} parameters), crops of {s['crop_s']:g} s, batches of {s['bs']}, "
        f"one-cycle to {s['lr']:g}, {some['epochs']} epochs = {some['steps']} optimizer steps a fold, {s['views']} "
        "views. Mean ± standard deviation over seeds; gains against none, seed by seed. "
        f"{sum(r['seconds'] for r in rows.values()) / 60:.0f} minutes of {torch.get_num_threads()} "
        f"thread{'s' * (torch.get_num_threads() > 1)} in all.",
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
    """Run the benchmark and write its report."""
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
    seeds = " ".join(map(str, args.seeds))
    command = f"python -m benchmarks.augmentation {data.path.name} --seeds {seeds} --epochs {args.epochs}"
    write_report("Augmentations and losses", command, markdown(rows, args.seeds), args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
