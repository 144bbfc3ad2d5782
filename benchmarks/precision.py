"""lwlrap after equal training in float32 and with `precision="auto"`, and the seconds of each.

    python -m benchmarks.precision [DATA] [--seeds 0 1 2 3 4 5] [--epochs 40] [--work FOLDER] [--out FILE]

Trains the recipe `quick` on the bundled sample, or on DATA with its truth/test.csv, once for each seed and precision,
in turn, and scores the validation clips and the test part. Finished runs are lines of FOLDER/rows.jsonl and not
computed again.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import warnings
from pathlib import Path

import torch

from benchmarks.timing import write_report
from benchmarks.trials import Row, parser, read_with_truth, spread, trials
from fatai.experiment.recipe import load_recipe
from fatai.experiment.run import run_recipe
from fatai.training.autocast import best_dtype

WAYS = ("fp32", "auto")
SCORES = ("oof", "test")


def trial(folder: Path, way: str, seed: int, epochs: int) -> Row:
    """Train once; return the lwlrap of validation and test clips, and the seconds."""
    with tempfile.TemporaryDirectory() as out, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recipe = load_recipe("quick").override(precision=way, seed=seed, epochs=epochs)
        result = run_recipe(folder, recipe, Path(out) / "run", log=lambda line: None)
        assert result.test is not None
        return {
            "oof": result.oof_score,
            "test": result.test.score(folder / "truth" / "test.csv"),
            "seconds": round(result.seconds, 1),
        }


def differences(rows: dict[tuple[str, int], Row], seeds: list[int], score: str) -> tuple[float, float]:
    """Return the mean over the seeds of auto - fp32, and its standard error."""
    each = [rows["auto", seed][score] - rows["fp32", seed][score] for seed in seeds]
    return statistics.mean(each), statistics.stdev(each) / math.sqrt(len(each)) if len(each) > 1 else math.nan


def markdown(rows: dict[tuple[str, int], Row], seeds: list[int], about: str) -> str:
    """Return the report as Markdown."""
    lines = [about, "", "| seed | precision | out of fold | test | seconds |", "|---|---|---|---|---|"]
    for seed in seeds:
        for way in WAYS:
            row = rows[way, seed]
            lines.append(f"| {seed} | {way} | {row['oof']:.4f} | {row['test']:.4f} | {row['seconds']:.0f} |")
    for way in WAYS:
        cells = [spread([rows[way, seed][score] for seed in seeds]) for score in SCORES]
        lines.append(
            f"| mean ± sd | {way} | {' | '.join(cells)} | "
            f"{statistics.mean(rows[way, seed]['seconds'] for seed in seeds):.0f} |"
        )
    found = {score: differences(rows, seeds, score) for score in SCORES}
    lines += ["", "auto - fp32, mean over the seeds and its standard error: " + "; ".join(
        f"{score} {mean:+.4f} ± {error:.4f}" for score, (mean, error) in found.items()) + "."]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and write its report."""
    options = parser(__doc__, "precision", "epochs", 40)
    options.set_defaults(seeds=list(range(6)))
    args = options.parse_args(argv)
    data = read_with_truth(args.data, "test")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    same = {"epochs": args.epochs, "data": data.path.name, "auto": str(best_dtype(device))}
    rows = trials(
        args.work / "rows.jsonl", WAYS, args.seeds, same, lambda way, seed: trial(data.path, way, seed, args.epochs)
    )
    about = (
        f"Recipe quick on {data.path.name}: {len(data.curated)} clips in 2 folds, {len(data.test)} test clips, "
        f"{args.epochs} epochs; auto is {best_dtype(device)} on {device}. Seconds of the wall clock, on a machine with "
        "other load."
    )
    command = f"python -m benchmarks.precision --seeds {' '.join(map(str, args.seeds))} --epochs {args.epochs}"
    write_report("lwlrap after equal training", command, markdown(rows, args.seeds, about), args.out)


if __name__ == "__main__":
    main()
