"""Odd sounds and tables, made by scripts that lie beside the project on some machines."""

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.weights import SHARED

TOOLS = SHARED / "tools"
BARK = "61b7f0d9.ogg"


def make_odd_sounds(sample: Path, folder: Path) -> Path:
    """Write one bark in 66 odd files, and a hidden file; skip the test without the script."""
    _run("odd_sounds.py", sample / "train_curated" / BARK, folder)
    return folder


def make_odd_tables(folder: Path) -> Path:
    """Write 45 odd tables of the same 18 clips, and the clips; skip the test without the script."""
    if not (SHARED / "data" / "esc10").is_dir():
        pytest.skip(f"there is no {SHARED / 'data' / 'esc10'}")
    _run("odd_tables.py", SHARED / "data" / "esc10", folder)
    return folder


def _run(script: str, source: Path, folder: Path) -> None:
    if not (TOOLS / script).is_file():
        pytest.skip(f"there is no {TOOLS / script}")
    subprocess.run([sys.executable, TOOLS / script, source, folder], check=True, capture_output=True)
