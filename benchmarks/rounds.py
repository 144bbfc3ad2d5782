"""SelfTrainingRounds of several ways of doing the same, in turn, so that what else the machine does slows down all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from fatai.io.atomic import write_text


def alternate(rounds: int, *ways: Callable[[], object], least_s: float = 0.05) -> list[float]:
    """Median seconds of one call of each way, over rounds in each of which every way is called until `least_s` are over.

    Seconds of the thread, not of the wall: what else runs on the machine is not counted. So the ways must work in this thread alone.
    """
    repeats = [max(1, round(least_s / min(_seconds(way) for _ in range(2)))) for way in ways]
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds):
        for way, n, of_way in zip(ways, repeats, times, strict=True):
            of_way.append(statistics.median(_seconds(way) for _ in range(n)))
    return [statistics.median(of_way) for of_way in times]


def report(title: str, command: str, table: str, path: Path) -> str:
    """Print the table and write it, with its command, to a file."""
    print(table)
    write_text(path, f"# {title}\n\n    {command}\n\n{table}\n")
    return table


def _seconds(way: Callable[[], object]) -> float:
    start = time.thread_time()
    way()
    return time.thread_time() - start
