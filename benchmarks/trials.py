"""Trials of several variants with several seeds: stored as they finish, reported as mean and standard deviation."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from fatai.data.datasets.fat2019 import FATDataset, fat_sample, load_dataset

Row = dict[str, Any]


def parser(text: str | None, name: str, budget: str, amount: int, ways: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return a parser with the options of a benchmark.

    These are DATA, --seeds, the budget of a trial, --only (some of `ways`), --work and --out; `text` is the
    description.
    """
    options = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("data", type=Path, nargs="?", default=fat_sample())
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument(f"--{budget}", type=int, default=amount)
    if ways:
        options.add_argument("--only", nargs="+", choices=ways, default=ways, help="rows of the table; all by default")
    options.add_argument("--work", type=Path, default=Path("runs") / name)
    options.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / f"{name}.md")
    return options


def read_with_truth(folder: Path, *parts: str) -> FATDataset:
    """Load a dataset with the truth of some parts; end the program if a truth is missing."""
    for part in parts:
        if not (folder / "truth" / f"{part}.csv").is_file():
            raise SystemExit(f"{folder} has no truth/{part}.csv; expected the true labels, to score with")
    return load_dataset(folder)


def trials(
    file: Path, ways: Iterable[str], seeds: Sequence[int], same: Row, trial: Callable[[str, int], Row],
) -> dict[tuple[str, int], Row]:
    """Return a row for each variant and seed.

    Rows of the same settings are read from `file`; the others are computed and added to it as they finish.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = {key: row for key, row in _known(file, same).items() if key[0] in ways and key[1] in seeds}
    for seed in seeds:
        for way in ways:
            if (way, seed) not in rows:
                rows[way, seed] = done = {"way": way, "seed": seed, **same, **trial(way, seed)}
                with file.open("a") as f:
                    f.write(json.dumps(done) + "\n")
                took = "" if done["seconds"] is None else f", {done['seconds']:.0f} s"
                print(f"seed {seed}, {way}: OOF {done['oof']:.4f}, test {done['test']:.4f}{took}", flush=True)
    return rows


def _known(file: Path, same: Row) -> dict[tuple[str, int], Row]:
    """Read the rows of the same settings; an incomplete last line of a killed process is ignored."""
    rows = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if all(found.get(key) == value for key, value in same.items()):
            rows[found["way"], found["seed"]] = found
    return rows


def spread(values: list[float], signed: bool = False) -> str:
    """Format mean ± standard deviation."""
    mean = f"{statistics.mean(values):{'+' if signed else ''}.3f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.3f}"
