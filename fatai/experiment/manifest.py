"""manifest.json of a run folder: the options, data, versions and machine that reproducing the run needs."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from fatai import __version__
from fatai.audio.segments import file_of
from fatai.data.datasets.fat2019 import FATDataset
from fatai.data.table_columns import TableColumns
from fatai.data.tables import is_class_folder, is_sound_table
from fatai.errors import CheckpointError
from fatai.experiment.recipe import Recipe
from fatai.io.atomic import write_text
from fatai.io.json import read_json_limited

__all__ = ["read_manifest"]

_EDGE = 1 << 14  # bytes at either end of a sound that its digest reads
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
        **({} if recipe.decided is None else {"decided": recipe.decided}),
        "command": command,
        "run_options": {"data": str(data.path), **_columns(data), **run_options},
        "tags": list(data.tags),
        "data": {
            "folder": data.path.name, "digest": digest, "modified": times_digest(data), "curated": len(data.curated),
            "test": len(data.test),
        },
        **environment_notes(),
        "finished": None if results is None else datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **(results or {}),
    }
    write_text(out / "manifest.json", json.dumps(manifest, indent=2) + "\n")


def environment_notes() -> dict[str, dict[str, Any]]:
    """Return the sections `versions` and `machine` of a manifest: what computes in this process."""
    return {
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in _PACKAGES}},
        "machine": {"system": platform.platform(), "device": _device(), "threads": torch.get_num_threads()},
    }


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
    if path is None:
        return None
    is_data = is_sound_table(path) or (path / "train_curated.csv").is_file() or is_class_folder(path)
    return path if is_data else None


def noted_seconds(run: Path) -> float | None:
    """Return the duration of the calls that ended of a run, as it notes it; None if it notes none."""
    try:
        seconds = read_json_limited(run / "manifest.json")["seconds"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(seconds) if isinstance(seconds, (int, float)) else None


def noted_columns(run: Path) -> TableColumns:
    """Return how the table of sounds of a run was read."""
    return columns_of(read_manifest(run) or {})


def columns_of(manifest: Mapping[str, Any]) -> TableColumns:
    """Return how the table of sounds of a run was read, as its manifest notes it."""
    options = manifest.get("run_options")
    return TableColumns.from_dict(options.get("columns") if isinstance(options, dict) else None)


def data_digest(data: FATDataset) -> str:
    """Return a SHA-256 over names, labels, file sizes and both ends of the files of all clips; copies have the same."""
    digest = hashlib.sha256()
    for part in _parts(data):
        labels = part["labels"] if "labels" in part.columns else [()] * len(part)
        files = map(file_of, part["path"])
        for fname, path, tags in zip(part["fname"], files, labels, strict=True):
            size = Path(path).stat().st_size if Path(path).is_file() else -1
            digest.update(f"{fname}\0{size}\0{','.join(tags)}\n".encode())
            if size > 0:
                digest.update(_ends(Path(path), size))
    return digest.hexdigest()


def times_digest(data: FATDataset) -> str:
    """Return a SHA-256 over the times at which the files of all clips were modified, which copies do not share."""
    digest = hashlib.sha256()
    for part in _parts(data):
        for path in map(Path, map(file_of, part["path"])):
            digest.update(f"{path.stat().st_mtime_ns if path.is_file() else -1}\n".encode())
    return digest.hexdigest()


def _parts(data: FATDataset) -> list[pd.DataFrame]:
    return [part for part in (data.curated, data.noisy, data.test, data.background) if part is not None]


def _ends(path: Path, size: int) -> bytes:
    """Return the digest of the first and the last bytes of a file; of nothing if it cannot be opened."""
    digest = hashlib.sha256()
    with suppress(OSError), path.open("rb") as file:
        digest.update(file.read(_EDGE))
        file.seek(max(0, size - _EDGE))
        digest.update(file.read(_EDGE))
    return digest.digest()


def _columns(data: FATDataset) -> dict[str, Any]:
    given = data.columns.to_dict()
    return {"columns": given} if given else {}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return __version__ if package == "fatai" else "not installed"


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
