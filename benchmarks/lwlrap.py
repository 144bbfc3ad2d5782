"""lwlrap of a test set: fatai's against the competition's own way, clip by clip.

The plain way sorts one clip after the other, as the competition's published evaluation does; own code. Both get the
same scores without ties and must agree to 1e-9; then rounds of the two alternate, and the median round counts.

    python -m benchmarks.lwlrap [--rounds 9] [--clips 5000] [--tags 80] [--out benchmarks/results/lwlrap.md]

The cost of an interval over clips is measured too. Times are those of the thread, so that other work on the machine is
not counted.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"  # read when the libraries below are loaded

import numpy as np  # noqa: E402

from benchmarks.timing import alternate, write_report  # noqa: E402
from fatai.metrics.bootstrap import score_interval  # noqa: E402
from fatai.metrics.ranking import lwlrap  # noqa: E402


def plain_way(scores: np.ndarray, targ: np.ndarray) -> float:
    """Compute lwlrap of scores and targets (clips, tags), sorting clip after clip; ties are ordered by column."""
    precision = np.zeros(targ.shape)
    for clip in range(len(targ)):
        present, of_clip = precision_of_clip(scores[clip], targ[clip])
        precision[clip, present] = of_clip
    counts = np.sum(targ > 0, axis=0)
    weights = counts / float(np.sum(counts))
    return float(np.sum(np.sum(precision, axis=0) / np.maximum(1, counts) * weights))


def precision_of_clip(scores: np.ndarray, targ: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the present tags and the precision at each, by the steps of the competition's code."""
    present = np.flatnonzero(targ > 0)
    if not len(present):
        return present, np.zeros(0)
    order = np.argsort(scores)[::-1]
    ranks = np.zeros(len(scores), dtype=int)
    ranks[order] = range(len(scores))
    hit = np.zeros(len(scores), dtype=bool)
    hit[ranks[present]] = True
    hits = np.cumsum(hit)
    return present, hits[ranks[present]] / (1 + ranks[present].astype(float))


def case(clips: int, tags: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scores without ties and targets, both (clips, tags).

    Each clip has 1 tag, every seventh 2, about as in the competition (1.15 on average).
    """
    rng = np.random.default_rng(2019)
    targ = np.zeros((clips, tags))
    for clip in range(clips):
        targ[clip, rng.choice(tags, 2 if clip % 7 == 0 else 1, replace=False)] = 1
    order = rng.permutation(clips * tags).reshape(clips, tags) / (clips * tags)
    return (order + targ) / 2, targ


def main(argv: list[str] | None = None) -> str:
    """Run the benchmark, write its report and return the table."""
    parser = argparse.ArgumentParser(description="lwlrap of a test set, against the competition's way, clip by clip.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clips", type=int, default=5000)
    parser.add_argument("--tags", type=int, default=80)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "lwlrap.md")
    args = parser.parse_args(argv)
    scores, targ = case(args.clips, args.tags)
    difference = abs(plain_way(scores, targ) - lwlrap(scores, targ))
    if difference > 1e-9:
        raise SystemExit(f"the two ways differ by {difference}")
    plain_s, ours_s, interval_s = alternate(
        args.rounds, lambda: plain_way(scores, targ), lambda: lwlrap(scores, targ), lambda: score_interval(scores, targ)
    )
    table = "\n".join(
        [
            f"{args.clips:,} clips x {args.tags} tags; median of {args.rounds} alternating rounds, one thread of "
            f"{platform.machine()}; numpy {np.__version__}. Difference of the two scores: {difference:.0e}.",
            "",
            "| | ms | times as fast |",
            "|---|---|---|",
            f"| clip by clip | {1e3 * plain_s:.1f} | 1 |",
            f"| fatai | {1e3 * ours_s:.3f} | {plain_s / ours_s:.0f} |",
            f"| fatai, with an interval from 1,000 resamples | {1e3 * interval_s:.1f} | {plain_s / interval_s:.1f} |",
        ]
    )
    return write_report("lwlrap of a test set", "python -m benchmarks.lwlrap", table, args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
