"""Published weights and recordings that lie beside the project on some machines; they are no part of it."""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[3] / "shared"


def published_mn04() -> Path:
    """Return the folder of the published weights of mn04 and their reference outputs; skip the test without them."""
    folder = SHARED / "weights" / "mn04"
    if not (folder / "mn04_as_mAP_432.pt").is_file() or not (SHARED / "data" / "esc10").is_dir():
        pytest.skip("no published weights of mn04 and clips of ESC-10 beside the project")
    return folder


def esc10_clip(name: str) -> Path:
    """Return a clip of ESC-10 by its file name."""
    return SHARED / "data" / "esc10" / "audio" / name
