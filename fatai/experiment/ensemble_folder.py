"""The folder of an ensemble as a model: which of its runs are averaged, and with which weights.

The file is written by `fatai.experiment.ensemble_run.run_ensemble`, and may be untrusted: members are names of folders
inside the ensemble's own, and every value is checked.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fatai.errors import CheckpointError, DataError
from fatai.io.atomic import write_text
from fatai.io.json import read_json_limited

__all__ = ["ENSEMBLE", "EnsembleFolder", "is_ensemble_folder", "main_run"]

ENSEMBLE = "ensemble.json"
"""Name of the file in the folder of an ensemble."""

CLIPWISE = ("mean", "gmean", "rank_clip")
"""Averages of `ENSEMBLES` that treat each clip on its own, so that they can predict new clips."""

_FORMAT = "fatai ensemble 1"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_MAX_MEMBERS = 1000


@dataclass(frozen=True)
class EnsembleFolder:
    """Runs whose predictions are averaged.

    Attributes
    ----------
    folder
        The folder of the ensemble; each member is a run folder in it.
    members
        Names of the run folders, without duplicates.
    weights
        One number >= 0 for each member, not all 0.
    how
        The average, a name of `CLIPWISE`.

    Raises
    ------
    DataError
        If a value is not valid.
    """

    folder: Path
    members: tuple[str, ...]
    weights: tuple[float, ...]
    how: str = "mean"

    def __post_init__(self) -> None:
        if not 0 < len(set(self.members)) == len(self.members) == len(self.weights) <= _MAX_MEMBERS:
            raise DataError(
                f"there are {len(self.members)} members and {len(self.weights)} weights; expected one weight for each "
                "member, and no member twice"
            )
        if not all(_NAME.fullmatch(name) for name in self.members):
            raise DataError(f"the members are {list(self.members)[:5]}; expected names of folders")
        if not all(math.isfinite(w) and w >= 0 for w in self.weights) or not sum(self.weights) > 0:
            raise DataError(f"the weights are {list(self.weights)[:5]}; expected numbers >= 0, not all 0")
        if self.how not in CLIPWISE:
            raise DataError(f"the average is {self.how!r}; expected {', '.join(CLIPWISE)}")

    @property
    def runs(self) -> dict[Path, float]:
        """The run folders with a weight above 0, the one with the highest weight first, and their weights."""
        pairs = zip(self.members, self.weights, strict=True)
        ordered = sorted(((name, w) for name, w in pairs if w > 0), key=lambda pair: -pair[1])
        return {self.folder / name: weight for name, weight in ordered}

    def save(self) -> Path:
        """Write the file into the folder and return its path."""
        values = {"format": _FORMAT, "how": self.how, "members": list(self.members), "weights": list(self.weights)}
        write_text(self.folder / ENSEMBLE, json.dumps(values, indent=1) + "\n")
        return self.folder / ENSEMBLE

    @classmethod
    def open(cls, folder: str | Path) -> EnsembleFolder:
        """Read the file of a folder.

        Raises
        ------
        CheckpointError
            If it is missing or not valid; the message has the reason.
        """
        path = Path(folder, ENSEMBLE)
        try:
            values = read_json_limited(path)
            return cls(Path(folder), *_parse(values))
        except (OSError, ValueError) as e:
            raise CheckpointError(f"{path} is not the file of an ensemble: {e}") from None


def is_ensemble_folder(folder: str | Path) -> bool:
    """Return True if a folder has the file of an ensemble."""
    return Path(folder, ENSEMBLE).is_file()


def main_run(folder: str | Path) -> Path:
    """Return the run with the highest weight of an ensemble; another folder as it is."""
    return next(iter(EnsembleFolder.open(folder).runs)) if is_ensemble_folder(folder) else Path(folder)


def _parse(values: Any) -> tuple[tuple[str, ...], tuple[float, ...], str]:
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        raise DataError(f'expected an object with "format": "{_FORMAT}"')
    members, weights, how = values.get("members"), values.get("weights"), values.get("how")
    if not isinstance(members, list) or not all(isinstance(name, str) for name in members):
        raise DataError("members is not a list of names")
    if not isinstance(weights, list) or not _are_numbers(weights) or not isinstance(how, str):
        raise DataError("weights is not a list of numbers, or how is not a name")
    return tuple(members), tuple(map(float, weights)), how


def _are_numbers(values: list[Any]) -> bool:
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
