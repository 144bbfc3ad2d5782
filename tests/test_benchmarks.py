"""Benchmarks: those that train write a table of scores after a few steps; the Makefile lists all of them."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

TRAINED = {
    "augmentation": (["--epochs", "1"], 7),
    "noisy": (["--steps", "2", "--few", "40", "--only", "curated only", "ninth", "1st: Lsoft, a fifth noisy"], 6),
    "systems": (["--passes", "1", "--only", "ninth", "first_place, curated", "--more", "ninth"], 16),
    "label_issues": (["--steps", "2"], 1),
}


def test_the_makefile_lists_every_benchmark():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for file in (ROOT / "benchmarks").glob("*.py"):
        if "def main(" in file.read_text(encoding="utf-8"):
            assert re.search(rf"\b{file.stem}\b", makefile), f"benchmarks/{file.name} is in no list of the Makefile"


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_a_benchmark_trains_and_writes_its_table(name, tmp_path, capsys):
    options, n_rows = TRAINED[name]
    work = [] if name == "label_issues" else ["--work", str(tmp_path / "work")]
    importlib.import_module(f"benchmarks.{name}").main(
        ["--seeds", "3", *options, *work, "--out", str(tmp_path / "table.md")]
    )
    text = (tmp_path / "table.md").read_text()
    assert f"python -m benchmarks.{name} sample --seeds 3" in text and "nan" not in text
    heads = re.compile(r"\|(---| \||.*(OOF|test) lwlrap| seed| test clips)")
    rows = [line for line in text.splitlines() if line.startswith("|") and not heads.match(line)]
    assert len(rows) == n_rows, text
    for row in rows:
        scores = [float(value) for value in re.findall(r"\| (\d\.\d{3}) ", row)]
        assert all(0.1 < score <= 1 for score in scores) and (scores or name == "label_issues"), row
