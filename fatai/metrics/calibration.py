"""Probabilities that mean what they say: each tag's logit stretched and shifted until it fits what was seen.

Conventions: `probs` is (clips, tags), within [0, 1]; `targ` (clips, tags), 0 and 1. A calibration is fitted on predictions of clips that
the model was not trained on, and maps each tag by a rising function of its own: the order of clips within a tag stays, that of tags
within a clip, which lwlrap reads, may change for better or worse.

Ways to fit
-----------
temperature
    One number for each tag, by which its logit is divided; the least binary log loss.
platt
    Slope and shift of each tag's logit; the least binary log loss against Platt's softened targets, (n + 1) / (n + 2) and 1 / (n + 2),
    without which a tag that separates perfectly would be sure of everything.

A tag that no clip or every clip has tells nothing, and is left as it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, log_expit, logit

from fatai.io.atomic import write_text
from fatai.errors import CheckpointError, DataError, OptionError, ShapeError
from fatai.registry import did_you_mean
from fatai.metrics._validation import check_inputs
from fatai.metrics.thresholds import Thresholds
from fatai.io.json import read_json_limited

__all__ = ["CALIBRATION", "Calibration", "cross_calibrated"]

CALIBRATION = "calibration.json"
"""Name of the file in a run folder."""

_FLOOR = 1e-7  # probabilities are kept so far from 0 and 1 that their logit is finite
_LEAST_SLOPE, _GREATEST_SLOPE = 1e-2, 1e2
_MAX_JSON_BYTES = 1 << 26
_FORMAT = "fatai calibration 1"


@dataclass(frozen=True)
class Calibration:
    """For each tag, sigmoid(slope * logit(p) + shift), of a probability that may be stretched first.

    Parameters
    ----------
    tags
        Name of each tag; no name twice.
    slope, shift
        One number for each tag, slopes above 0. A temperature is 1 / slope.
    low, high
        What is stretched to 0 and 1 before, for each tag, low below high; empty leaves probabilities as they are. Values outside become
        0 and 1.
    thresholds
        Above which calibrated probability a tag is said to be there; None if that was not asked.

    Raises
    ------
    DataError
        If the numbers do not fit the tags, or are out of range.

    Examples
    --------
    >>> halved = Calibration(("Bark",), slope=(0.5,), shift=(0.0,))
    >>> halved.apply([[0.9], [0.5]]).round(4).tolist()   # logit(0.9) = ln 9, and 3 : 1 is 0.75
    [[0.75], [0.5]]
    """

    tags: tuple[str, ...]
    slope: tuple[float, ...]
    shift: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    thresholds: Thresholds | None = None

    def __post_init__(self) -> None:
        if not self.tags or len(set(self.tags)) < len(self.tags):
            raise DataError(
                f"a calibration has {len(self.tags)} tags, {len(set(self.tags))} of them different; expected each tag once"
            )
        for field in ("slope", "shift", "low", "high"):
            values = getattr(self, field)
            if len(values) != len(self.tags) and not (field in ("low", "high") and not values):
                raise DataError(
                    f"{field} holds {len(values)} numbers; expected one for each of the {len(self.tags)} tags"
                )
            if not np.isfinite(values).all():
                raise DataError(f"{field} holds a value that is not finite; expected numbers")
        if min(self.slope) <= 0:
            raise DataError(
                f"slope holds {min(self.slope)}; expected numbers above 0, so that the order within a tag stays"
            )
        if len(self.low) != len(self.high) or any(low >= high for low, high in zip(self.low, self.high)):
            raise DataError("low and high do not go together; expected both or neither, each low below its high")
        if self.thresholds is not None and self.thresholds.tags != self.tags:
            raise DataError("the thresholds name other tags than the calibration; expected the same, in the same order")

    @classmethod
    def fit(
        cls, probs: Any, targ: Any, tags: Sequence[str] | None = None, *, how: str = "platt", stretch: bool = False,
    ) -> Calibration:
        """Learn from predictions of clips that the model was not trained on.

        Parameters
        ----------
        probs, targ
            Shape (clips, tags).
        tags
            Names of the columns; their numbers if None.
        how
            "platt" or "temperature".
        stretch
            Whether each tag's range among these clips is stretched to [0, 1] first, as the gold plan does with mean ranks.

        Raises
        ------
        OptionError
            If there is no such `how`.
        ShapeError, DataError
            If the tables do not fit each other, or `probs` leaves [0, 1].
        """
        if how not in _FITS:
            raise OptionError(f"no way to calibrate is named {how!r}; {did_you_mean(how, list(_FITS))}")
        both = check_inputs(probs, targ)
        values = _probabilities(both.scores)
        names = tuple(str(i) for i in range(values.shape[1])) if tags is None else tuple(tags)
        low, high = _range(values) if stretch else ((), ())
        logits = _logits(values, low, high)
        pairs = [_FITS[how](z, y) if y.any() and not y.all() else (1.0, 0.0) for z, y in zip(logits.T, both.present.T)]
        return cls(names, tuple(slope for slope, _ in pairs), tuple(shift for _, shift in pairs), low, high)

    def apply(self, probs: Any) -> np.ndarray:
        """Calibrated probabilities, float64, of a table (clips, tags) whose columns are in the order of `tags`."""
        values = _probabilities(np.asarray(probs, dtype=np.float64))
        if values.ndim != 2 or values.shape[1] != len(self.tags):
            raise ShapeError(
                f"probs has shape {values.shape}; expected (clips, {len(self.tags)}), a column for each tag"
            )
        return expit(np.array(self.slope) * _logits(values, self.low, self.high) + np.array(self.shift))

    def select(self, tags: Sequence[str]) -> Calibration:
        """The same for `tags` alone, in the order given; one that is not there is a `DataError`."""
        lacking = [tag for tag in tags if tag not in self.tags]
        if lacking:
            raise DataError(
                f"the calibration lacks the tag {lacking[0]!r} ({len(lacking)} such); {did_you_mean(lacking[0], self.tags)}"
            )
        at = [self.tags.index(tag) for tag in tags]

        def of(values: tuple[float, ...]) -> tuple[float, ...]:
            return tuple(values[i] for i in at) if values else ()

        chosen = None if self.thresholds is None else Thresholds(tuple(tags), of(self.thresholds.values))
        return Calibration(tuple(tags), of(self.slope), of(self.shift), of(self.low), of(self.high), chosen)

    def to_plain(self) -> dict[str, Any]:
        """Lists, numbers and text, as JSON holds them; a threshold that nothing reaches is None."""
        lists = {name: list(getattr(self, name)) for name in ("tags", "slope", "shift", "low", "high")}
        return {
            "format": _FORMAT,
            **lists,
            "thresholds": None if self.thresholds is None else self.thresholds.to_list(),
        }

    @classmethod
    def from_plain(cls, held: Any) -> Calibration:
        """What `to_plain` made, with every value checked; raises `DataError`."""
        return cls(**_checked(held))

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file, whole or not at all; a threshold that nothing reaches is null."""
        write_text(path, json.dumps(self.to_plain(), allow_nan=False, indent=1) + "\n")

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read what `to_json` wrote; every value is checked, since the file may come from a stranger.

        Raises
        ------
        CheckpointError
            If the file is missing or is no calibration; the message says what is wrong.
        """
        file = Path(path)
        if not file.is_file():
            raise CheckpointError(
                f"{path}: no such file; expected a calibration, as fatai-submit calibrate writes it into a run"
            )
        try:
            return cls.from_plain(read_json_limited(file, _MAX_JSON_BYTES))
        except (OSError, ValueError, OverflowError) as e:
            raise CheckpointError(f"{path} is no calibration: {e}") from None


def cross_calibrated(probs: Any, targ: Any, folds: Any, *, how: str = "platt", stretch: bool = False) -> np.ndarray:
    """Calibrated probabilities of each clip, float64 (clips, tags), fitted on the folds that do not hold it.

    Parameters
    ----------
    folds
        Number of each clip's fold, (clips,), two or more different ones. The other parameters are those of `Calibration.fit`.
    """
    both, fold = check_inputs(probs, targ), np.asarray(folds)
    numbers = np.unique(fold)
    if fold.shape != (len(both.scores),) or len(numbers) < 2:
        raise ShapeError(
            f"folds has shape {fold.shape} and {len(numbers)} different values; expected a number for each of the "
            f"{len(both.scores)} clips, and two folds or more"
        )
    calibrated = np.empty(both.scores.shape)
    for number in numbers:
        held = fold == number
        fitted = Calibration.fit(both.scores[~held], both.present[~held], how=how, stretch=stretch)
        calibrated[held] = fitted.apply(both.scores[held])
    return calibrated


def _probabilities(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise DataError("probs leaves [0, 1]; expected probabilities: take the sigmoid of logits first")
    return values


def _range(values: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Least and greatest value of each tag; of a tag that is always the same, 0 and 1."""
    low, high = values.min(axis=0), values.max(axis=0)
    flat = low >= high
    return tuple(np.where(flat, 0.0, low).tolist()), tuple(np.where(flat, 1.0, high).tolist())


def _logits(values: np.ndarray, low: Sequence[float], high: Sequence[float]) -> np.ndarray:
    if low:
        values = (values - np.array(low)) / (np.array(high) - np.array(low))
    return logit(np.clip(values, _FLOOR, 1 - _FLOOR))


def _fit_temperature(z: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and shift (0) for logits and flags of one tag."""
    from scipy.optimize import minimize_scalar

    # In the slope the loss is convex, so in its logarithm it has one valley.
    found = minimize_scalar(
        lambda log_slope: _log_loss(np.exp(log_slope) * z, y),
        bounds=(np.log(_LEAST_SLOPE), np.log(_GREATEST_SLOPE)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x)), 0.0


def _fit_platt(z: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    from scipy.optimize import minimize

    n_present = int(y.sum())
    softened = np.where(y, (n_present + 1) / (n_present + 2), 1 / (len(y) - n_present + 2))

    def loss(pair: np.ndarray) -> tuple[float, np.ndarray]:
        scaled = pair[0] * z + pair[1]
        over = expit(scaled) - softened
        return _log_loss(scaled, softened), np.array([(over * z).mean(), over.mean()])

    # A slope below 0 would turn the tag's order round.
    found = minimize(
        loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(_LEAST_SLOPE, _GREATEST_SLOPE), (None, None)]
    )
    return float(found.x[0]), float(found.x[1])


_FITS = {"platt": _fit_platt, "temperature": _fit_temperature}


def _log_loss(z: np.ndarray, y: np.ndarray) -> float:
    return float(-(y * log_expit(z) + (1 - y) * log_expit(-z)).mean())


def _checked(held: Any) -> dict[str, Any]:
    """Arguments of a `Calibration` from what a JSON file held."""
    if not isinstance(held, dict) or held.get("format") != _FORMAT:
        raise DataError(f"expected an object with \"format\": \"{_FORMAT}\"")
    expected = {"format", "tags", "slope", "shift", "low", "high", "thresholds"}
    if set(held) != expected:
        raise DataError(f"its keys are {sorted(held)[:10]}; expected {sorted(expected)}")
    if not isinstance(held["tags"], list) or not all(isinstance(tag, str) and tag for tag in held["tags"]):
        raise DataError("tags is no list of names")
    tags = tuple(held["tags"])
    thresholds = held["thresholds"]
    return {
        "tags": tags, **{key: _numbers(key, held[key]) for key in ("slope", "shift", "low", "high")},
        "thresholds": None if thresholds is None else Thresholds.from_list(tags, thresholds),
    }


def _numbers(key: str, values: Any) -> tuple[float, ...]:
    if not isinstance(values, list) or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        raise DataError(f"{key} is no list of numbers")
    return tuple(float(v) for v in values)
