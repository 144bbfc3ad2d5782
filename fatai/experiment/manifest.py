"""manifest.json: what made a run, enough to know it and to make it again."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from fatai import __version__
from fatai.io.atomic import write_text
from fatai.data.datasets.fat2019 import FATDataset
from fatai.data.own_table import is_sound_table
from fatai.errors import CheckpointError
from fatai.experiment.recipe import Recipe
from fatai.io.json import read_json_limited

__all__ = ["data_digest", "noted_data", "read_manifest", "write_folds", "write_manifest"]

_PACKAGES = ("fatai", "fastai", "torch", "numpy", "pandas", "librosa", "soundfile", "soxr", "scikit-learn", "timm")


def write_manifest(
    out: Path,
    data: FATDataset,
    recipe: Recipe,
    digest: str,
    command: str,
    made_with: dict[str, Any],
    results: dict[str, Any] | None = None,
) -> None:
    """Write manifest.json into a run folder.

    `made_with` holds the options besides the recipe that decide about what the run makes; `results` is None while the run goes on.
    """
    plain = {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "command": command,
        "made_with": {"data": str(data.path), **made_with},
        "tags": list(data.tags),
        "data": {"folder": data.path.name, "digest": digest, "curated": len(data.curated), "test": len(data.test)},
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in _PACKAGES}},
        "machine": {"system": platform.platform(), "device": _device(), "threads": torch.get_num_threads()},
        "finished": None if results is None else datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **(results or {}),
    }
    write_text(out / "manifest.json", json.dumps(plain, indent=2) + "\n")


def write_folds(
    out: Path, fnames: Sequence[str], folds: Sequence[int] | np.ndarray, labels: Sequence[Sequence[str]]
) -> None:
    """Note in a run folder which fold holds out each clip, and the labels it was trained with: a run can be judged without its data."""
    table = pd.DataFrame({"fname": fnames, "fold": folds, "labels": [",".join(tags) for tags in labels]})
    write_text(out / "folds.csv", table.to_csv(index=False, lineterminator="\n"))


def read_manifest(out: Path) -> dict[str, Any] | None:
    """The manifest of a run folder; None if there is none. Raises `CheckpointError` if it can't be read."""
    path = out / "manifest.json"
    if not path.exists():
        return None
    try:
        plain = read_json_limited(path)
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{path} cannot be read ({e}); expected the JSON of a run") from None
    if not isinstance(plain, dict) or not isinstance(plain.get("data"), dict):
        raise CheckpointError(f"{path} is no manifest of a run; expected a JSON object with the data's digest")
    return plain


def noted_data(run: Path) -> Path | None:
    """The data that a run was made of, a folder or a CSV, if they are still where its manifest says; None if not."""
    made = (read_manifest(run) or {}).get("made_with")
    told = made.get("data") if isinstance(made, dict) else None
    path = Path(told) if isinstance(told, str) else None
    return path if path is not None and (is_sound_table(path) or (path / "train_curated.csv").is_file()) else None


def data_digest(data: FATDataset) -> str:
    """SHA-256 over the names, sizes and labels of the clips: changes when the data do, without reading all sound."""
    digest = hashlib.sha256()
    for part in (data.curated, data.noisy, data.test):
        if part is None:
            continue
        labels = part["labels"] if "labels" in part.columns else [()] * len(part)
        for fname, path, cell in zip(part["fname"], part["path"], labels):
            size = Path(path).stat().st_size if Path(path).is_file() else -1
            digest.update(f"{fname}\0{size}\0{','.join(cell)}\n".encode())
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return __version__ if package == "fatai" else "not installed"


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
