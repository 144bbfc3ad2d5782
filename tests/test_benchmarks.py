"""Benchmarks: those that train with a few steps on the bundled sample, to a table whose scores are scores; and that none is forgotten."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

TRIED = {
    "augmentation": (["--epochs", "1"], 7),
    "noisy": (["--steps", "2", "--few", "40", "--only", "curated only", "ninth", "1st: Lsoft, a fifth noisy"], 6),
    "systems": (["--passes", "1", "--only", "ninth", "first_place, curated", "--more", "ninth"], 16),
    "suspects": (["--steps", "2"], 1),
}


def test_the_makefile_runs_every_benchmark_or_names_it():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for file in (ROOT / "benchmarks").glob("*.py"):
        if "def main(" in file.read_text(encoding="utf-8"):
            assert re.search(rf"\b{file.stem}\b", makefile), f"benchmarks/{file.name} is in no list of the Makefile"


@pytest.mark.slow
@pytest.mark.parametrize("name", TRIED)
def test_a_benchmark_trains_and_writes_its_table(name, tmp_path, capsys):
    options, n_rows = TRIED[name]
    work = [] if name == "suspects" else ["--work", str(tmp_path / "work")]
    importlib.import_module(f"benchmarks.{name}").main(
        ["--seeds", "3", *options, *work, "--out", str(tmp_path / "table.md")]
    )
    told = (tmp_path / "table.md").read_text()
    assert f"python -m benchmarks.{name} sample --seeds 3" in told and "nan" not in told
    heads = re.compile(r"\|(---| \||.*(OOF|test) lwlrap| seed| test clips)")
    rows = [line for line in told.splitlines() if line.startswith("|") and not heads.match(line)]
    assert len(rows) == n_rows, told
    for row in rows:
        scores = [float(value) for value in re.findall(r"\| (\d\.\d{3}) ", row)]
        assert all(0.1 < score <= 1 for score in scores) and (scores or name == "suspects"), row
