"""One tag, present or absent, is scored like two tags; the sounds lie beside the project on some machines."""

import json
import subprocess
import sys

import pytest
from helpers.weights import SHARED

MAKER, SOUNDS = SHARED / "tools" / "presence.py", SHARED / "data" / "esc10"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MAKER.is_file() or not SOUNDS.is_dir(), reason=f"needs {MAKER} and {SOUNDS}"),
]


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """Out-of-fold score of a run on the table of one tag and of one on that of two, and what the first one printed."""
    folder = tmp_path_factory.mktemp("presence")
    subprocess.run([sys.executable, MAKER, SOUNDS, folder], check=True)
    found = []
    for table in ("one", "two"):
        out = folder / table
        command = f"run {folder / table}.csv --recipe quick --epochs 12 --folds 2 --bs 8 --out {out}".split()
        done = subprocess.run([sys.executable, "-m", "fatai.cli", *command], capture_output=True, text=True, check=True)
        found.append((json.loads((out / "manifest.json").read_text()), done.stdout, (out / "report.html").read_text()))
    return found


def test_one_tag_is_found_as_well_as_two(scores):
    (one, printed, report), (two, _, _) = scores
    assert two["lwlrap"]["oof"] > 0.95
    assert one["map"]["oof"] > 0.95 and "lwlrap" not in one
    assert "average precision" in printed and "lwlrap 1.0" not in printed
    assert "not applicable" in report and "No tag costs anything" not in report
