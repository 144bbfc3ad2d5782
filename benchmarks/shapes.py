"""Recipe `default` on data of odd shapes: few tags, few clips, many tags, very short and long clips, other rates.

    python -m benchmarks.shapes DATA [--only NAME ...] [--steps 0] [--folds 0] [--seed 2019] [--work FOLDER]
                                     [--out benchmarks/results/shapes.md]

DATA is ESC-10, as benchmarks.esc10 takes it. Every shape is made from its clips in FOLDER and trained by recipe
`default` with what that decides from the clips; `--steps` limits the steps of each network, `--folds` the folds that
are trained (0 keeps them). Scores are out of fold, chance is the mean score of random predictions. Finished runs are
not trained again and interrupted ones continued: several processes may share the work, each with its own names.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.esc10 import read_list
from benchmarks.timing import write_report
from fatai.audio.io import load_audio, save_audio
from fatai.audio.waveform import resample
from fatai.data.datasets.fat2019 import FATDataset, load_dataset
from fatai.data.labels import multi_hot
from fatai.experiment.adapt import adapt_recipe
from fatai.experiment.overrides import Overrides
from fatai.experiment.recipe import Recipe, load_recipe
from fatai.experiment.run import run_recipe
from fatai.inference.predictions import Predictions
from fatai.io.atomic import write_text
from fatai.metrics.classification import main_metric, main_score

_SR = 44_100
_SPEEDS = (0.5, 0.7, 1.0, 1.4, 2.0)
_CHANCE_DRAWS = 200
_LIMITED_EPOCHS = 15


class Clip(NamedTuple):
    """A clip of a shape: its samples, their rate in Hz, and its tag, "" for none."""

    wave: Tensor
    sr: int
    tag: str


Clips = dict[str, list[Path]]
"""Files of each tag of ESC-10."""


def _one_tag(files: Clips) -> Iterator[Clip]:
    first, *others = files
    yield from (Clip(_wave(path), _SR, first) for path in files[first])
    yield from (Clip(_wave(path), _SR, "") for tag in others for path in files[tag][:5])


def _two_tags(files: Clips) -> Iterator[Clip]:
    yield from _part(dict(list(files.items())[:2]), 40)


def _few_clips(files: Clips) -> Iterator[Clip]:
    yield from _part(files, 3)


def _many_tags(files: Clips) -> Iterator[Clip]:
    for tag, paths in files.items():
        for k, path in enumerate(paths[:40]):
            speed = _SPEEDS[k % len(_SPEEDS)]
            yield Clip(resample(_wave(path), round(_SR * speed), _SR), _SR, f"{tag} x {speed:g}")


def _very_short(files: Clips) -> Iterator[Clip]:
    n = round(0.2 * _SR)
    for clip in _part(files, 16):
        power = clip.wave.square().cumsum(0)
        start = int((power[n:] - power[:-n]).argmax())
        yield clip._replace(wave=clip.wave[start:start + n])


def _very_long(files: Clips) -> Iterator[Clip]:
    for clip in _part(files, 8):
        yield clip._replace(wave=clip.wave.repeat(math.ceil(60 * _SR / len(clip.wave)))[:60 * _SR])


def _telephone(files: Clips) -> Iterator[Clip]:
    for clip in _part(files, 16):
        yield clip._replace(wave=resample(clip.wave, _SR, 16_000), sr=16_000)


def _ultrasound(files: Clips) -> Iterator[Clip]:
    for clip in _part(files, 16):
        yield clip._replace(sr=250_000)


def _part(files: Clips, n: int) -> Iterator[Clip]:
    """Yield the first clips of each tag."""
    yield from (Clip(_wave(path), _SR, tag) for tag, paths in files.items() for path in paths[:n])


def _wave(path: Path) -> Tensor:
    return load_audio(path, _SR)


SHAPES: dict[str, tuple[Callable[[Clips], Iterator[Clip]], str]] = {
    "one tag": (_one_tag, "40 clips of a tag and 45 without one"),
    "two tags": (_two_tags, "40 clips each"),
    "3 clips a tag": (_few_clips, "10 tags"),
    "50 tags of 8 clips": (_many_tags, "a tag and one of five speeds, as tape has them"),
    "clips of 0.2 s": (_very_short, "the loudest part of 16 clips of each tag"),
    "clips of 60 s": (_very_long, "8 clips of each tag, repeated"),
    "16 kHz": (_telephone, "16 clips of each tag"),
    "250 kHz": (_ultrasound, "16 clips of each tag, 5.7 times as fast: up to 125 kHz"),
}
"""Shapes by name: how their clips are made from ESC-10, and in words."""


def lay_out(files: Clips, name: str, folder: Path) -> Path:
    """Write the clips of a shape and the table of their tags, unless they are there; return the table."""
    table = folder / "clips.csv"
    if table.exists():
        return table
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for k, clip in enumerate(SHAPES[name][0](files)):
        save_audio(folder / f"{k:03d}.wav", clip.wave, clip.sr)
        rows.append({"fname": f"{k:03d}.wav", "labels": clip.tag})
    write_text(table, pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
    return table


def limited(recipe: Recipe, steps: int, n_folds: int) -> Recipe:
    """Return a recipe with so many steps of each network, in 15 epochs, and so many of its folds; 0 keeps either."""
    values: dict[str, Any] = {}
    if steps:
        n = math.ceil(steps / _LIMITED_EPOCHS) * recipe.stages[0].bs
        values = {
            "stages.epochs": _LIMITED_EPOCHS, "stages.no_aug_epochs": 1, "stages.sampling_options": {"n": n},
        }
    run_folds = tuple(range(min(n_folds, recipe.folds.n))) if n_folds else None
    return recipe.override(Overrides(run_folds=run_folds, values=values))


def chance(targ: np.ndarray) -> float:
    """Return the mean score of random predictions; `targ` has shape (clips, tags)."""
    rng = np.random.default_rng(0)
    return float(np.mean([main_score(rng.random(targ.shape), targ) for _ in range(_CHANCE_DRAWS)]))


def row(data: FATDataset, name: str, recipe: Recipe, out: Path, cache: Path) -> str:
    """Train a run, or continue it, and return its row of the table."""
    is_started, start = out.exists(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        run_recipe(data, recipe, out, resume=True, num_workers=0, cache_dir=cache, log=lambda line: None)
    minutes = "-" if is_started else f"{(time.process_time() - start) / 60:.1f}"
    oof = Predictions.from_csv(out / "oof.csv")
    labels = data.curated.set_index("fname")["labels"]
    targ = multi_hot([labels[fname] for fname in oof.fnames], data.tags)
    decided = json.loads((out / "manifest.json").read_text()).get("decided") or {}
    shown = [key for key in decided if key.split(" = ")[0].split(".")[-1] in ("sr", "crop_s", "splitter", "n", "bs")]
    metric = "lwlrap" if main_metric(len(data.tags)) == "lwlrap" else "average precision"
    return (
        f"| {name}: {SHAPES[name][1]} | {len(targ)} | {'; '.join(shown)} | {metric} | "
        f"{main_score(oof.probs, targ):.3f} | {chance(targ):.3f} | {minutes} |"
    )


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and write its report."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("data", type=Path)
    options.add_argument("--only", nargs="+", choices=SHAPES, default=list(SHAPES), metavar="NAME")
    options.add_argument("--steps", type=int, default=0)
    options.add_argument("--folds", type=int, default=0)
    options.add_argument("--seed", type=int, default=2019)
    options.add_argument("--work", type=Path, default=Path("runs") / "shapes")
    options.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "shapes.md")
    args = options.parse_args(argv)
    warnings.simplefilter("ignore")
    listed = read_list(args.data)
    files = {
        tag: [args.data / "audio" / fname for fname in part["fname"]] for tag, part in listed.groupby("labels")
    }
    rows = []
    for name in args.only:
        folder = args.work / name.replace(" ", "_")
        data = load_dataset(lay_out(files, name, folder))
        adapted = adapt_recipe(load_recipe("default").override(seed=args.seed), data)
        recipe = limited(adapted, args.steps, args.folds)
        rows.append(row(data, name, recipe, folder / f"run_{args.seed}", args.work / "cache"))
        print(rows[-1], flush=True)
    steps = f"{args.steps} steps a network instead of what it decides" if args.steps else "the steps that it decides"
    folds = f"{args.folds} of the folds" if args.folds else "all folds"
    lines = [
        f"Clips of ESC-10, seed {args.seed}, {steps}, {folds}, on {torch.get_num_threads()} thread(s). Scores are out "
        "of fold, over the clips of these folds; chance is the mean score of random predictions of all clips.",
        "",
        "| shape | clips | decided | score | out of fold | chance | CPU minutes |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]
    command = f"python -m benchmarks.shapes ESC-10 --steps {args.steps} --folds {args.folds} --seed {args.seed}"
    write_report("Recipe default on data of odd shapes", command, "\n".join(lines), args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
