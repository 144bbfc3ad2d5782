"""Timing of several implementations in alternating rounds, so that other load slows down all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from fatai.io.atomic import write_text


def alternate(rounds: int, *ways: Callable[[], object], min_s: float = 0.05) -> list[float]:
    """Return the median seconds per call of each function, over alternating rounds.

    In each round every function is called for at least `min_s` seconds. Seconds are those of the thread, so that other
    work on the machine is not counted; the functions must therefore run in this thread alone.
    """
    repeats = [max(1, round(min_s / min(_seconds(way) for _ in range(2)))) for way in ways]
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds):
        for way, n, of_way in zip(ways, repeats, times, strict=True):
            of_way.append(statistics.median(_seconds(way) for _ in range(n)))
    return [statistics.median(of_way) for of_way in times]


def write_report(title: str, command: str, table: str, path: Path) -> str:
    """Print a table and write it, with its command, to a file; return it."""
    print(table)
    write_text(path, f"# {title}\n\n    {command}\n\n{table}\n")
    return table


def _seconds(way: Callable[[], object]) -> float:
    start = time.thread_time()
    way()
    return time.thread_time() - start
