"""ESC-10 with few clips of each class: a linear probe on a frozen network, by the published five folds.

    python -m benchmarks.few_shot DATA [--recipe probe] [--weights mn04_as] [--draws 5] [--work FOLDER] [--out FILE]

DATA as in `benchmarks.esc10`. Of the four training folds 1, 2, 4, 8, 16 and all 32 clips of each class are drawn, the
fold that is left is predicted, and the accuracy is that of the clips of all folds. C is fixed: inner folds need several
clips of each class.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

from benchmarks.esc10 import accuracy, lay_out
from benchmarks.timing import write_report
from fatai.data.datasets.fat2019 import load_dataset
from fatai.data.labels import multi_hot
from fatai.experiment.overrides import Overrides
from fatai.experiment.recipe import load_recipe
from fatai.experiment.run import recipe_learner
from fatai.inference.learning_curve import few_shot_curve

COUNTS = (1, 2, 4, 8, 16)
C = 0.01


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and write its report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--recipe", default="probe")
    parser.add_argument("--weights", default="mn04_as")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("runs") / "few_shot")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "few_shot.md")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    start = time.process_time()
    data = load_dataset(lay_out(args.data, args.work / "data"))
    learn = recipe_learner(data, load_recipe(args.recipe).override(Overrides(weights=args.weights)), num_workers=0)
    embeddings = learn.embed(data.curated, n=1)
    embedded = time.process_time() - start
    targ, folds = multi_hot(data.curated["labels"], data.tags), data.curated["fold"].to_numpy()
    curve = few_shot_curve(
        embeddings.values, targ, folds, counts=COUNTS, C=C, n_draws=args.draws, score=accuracy
    )
    lines = [
        f"Recipe {args.recipe}, weights {args.weights}, {len(targ)} clips, C {C:g}, {args.draws} draws of each count. "
        f"{embedded:.0f} CPU seconds for the features, {time.process_time() - start - embedded:.0f} for all fits.",
        "",
        "| clips of each class | accuracy |",
        "|---|---|",
        *(f"| {n:g} | {score:.3f} |" for n, score in zip(curve.counts, curve.scores, strict=True)),
    ]
    command = f"python -m benchmarks.few_shot {args.data.name}"
    write_report("ESC-10 with few clips of each class", command, "\n".join(lines), args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
