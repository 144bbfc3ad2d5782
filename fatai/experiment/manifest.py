"""manifest.json of a run folder: the options, data, versions and machine that reproducing the run needs."""

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
from fatai.data.datasets.fat2019 import FATDataset
from fatai.data.tables import is_sound_table
from fatai.errors import CheckpointError
from fatai.experiment.recipe import Recipe
from fatai.io.atomic import write_text
from fatai.io.json import read_json_limited

__all__ = ["read_manifest"]

_PACKAGES = ("fatai", "fastai", "torch", "numpy", "pandas", "librosa", "soundfile", "soxr", "scikit-learn", "timm")


def write_manifest(
    out: Path,
    data: FATDataset,
    recipe: Recipe,
    digest: str,
    command: str,
    run_options: dict[str, Any],
    results: dict[str, Any] | None = None,
) -> None:
    """Write manifest.json into a run folder.

    Parameters
    ----------
    digest
        Of the data, from `data_digest`.
    command
        The command line that the user typed.
    run_options
        Options besides the recipe that change what the run writes.
    results
        Scores and times; None while the run is not finished.
    """
    manifest = {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "command": command,
        "run_options": {"data": str(data.path), **run_options},
        "tags": list(data.tags),
        "data": {"folder": data.path.name, "digest": digest, "curated": len(data.curated), "test": len(data.test)},
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in _PACKAGES}},
        "machine": {"system": platform.platform(), "device": _device(), "threads": torch.get_num_threads()},
        "finished": None if results is None else datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **(results or {}),
    }
    write_text(out / "manifest.json", json.dumps(manifest, indent=2) + "\n")


def write_folds(
    out: Path, fnames: Sequence[str], folds: Sequence[int] | np.ndarray, labels: Sequence[Sequence[str]]
) -> None:
    """Write folds.csv: each clip with its fold and labels, so that a run can be scored without its data.

    Parameters
    ----------
    fnames, folds, labels
        Name, fold number and tags of each clip, each of shape (clips,).
    """
    table = pd.DataFrame({"fname": fnames, "fold": folds, "labels": [",".join(tags) for tags in labels]})
    write_text(out / "folds.csv", table.to_csv(index=False, lineterminator="\n"))


def read_manifest(out: Path) -> dict[str, Any] | None:
    """Read the manifest of a run folder; None if there is none.

    Raises
    ------
    CheckpointError
        If it cannot be read or is not the manifest of a run.
    """
    path = out / "manifest.json"
    if not path.exists():
        return None
    try:
        manifest = read_json_limited(path)
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{path} cannot be read ({e}); expected the JSON file of a run") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("data"), dict):
        raise CheckpointError(f"{path} is not the manifest of a run; expected a JSON object with a table `data`")
    return manifest


def noted_data(run: Path) -> Path | None:
    """Return the path of the data that a run was trained on, or None if it is not noted or no longer exists."""
    options = (read_manifest(run) or {}).get("run_options")
    data = options.get("data") if isinstance(options, dict) else None
    path = Path(data) if isinstance(data, str) else None
    return path if path is not None and (is_sound_table(path) or (path / "train_curated.csv").is_file()) else None


def data_digest(data: FATDataset) -> str:
    """Return a SHA-256 over names, file sizes and labels of all clips; it changes with the data and reads no sound."""
    digest = hashlib.sha256()
    for part in (data.curated, data.noisy, data.test):
        if part is None:
            continue
        labels = part["labels"] if "labels" in part.columns else [()] * len(part)
        for fname, path, tags in zip(part["fname"], part["path"], labels, strict=True):
            size = Path(path).stat().st_size if Path(path).is_file() else -1
            digest.update(f"{fname}\0{size}\0{','.join(tags)}\n".encode())
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return __version__ if package == "fatai" else "not installed"


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
