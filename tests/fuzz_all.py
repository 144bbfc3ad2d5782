"""Run all fuzz tests and print the counts; the exit code is 1 if there is a fault."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from fuzz.trial import Report, files_through_commands, sounds_through_commands


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="use every N-th file of each kind")
    every, report, started = parser.parse_args().every, Report(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run = sounds_through_commands(Path(folder), report, every=every)
        files_through_commands(Path(folder), run, report, every=every)
    print(report)
    print(f"{time.monotonic() - started:.0f} s")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
