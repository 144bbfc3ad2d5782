"""Calibrate probabilities: scale and shift the logit of each tag so that probabilities match observed frequencies.

Conventions: `probs` is (clips, tags), within [0, 1]; `targ` (clips, tags), 0 and 1. A calibration is fitted on
predictions of clips that the model was not trained on, and maps each tag by a rising function of its own: the order of
clips within a tag is preserved, that of tags within a clip, on which lwlrap depends, may change for better or worse.

Methods
-------
temperature
    Divide each tag's logit by one number, that of the lowest binary log loss.
platt
    Slope and shift of each tag's logit, a logistic regression of scikit-learn against Platt's softened targets, (n + 1)
    / (n + 2) and 1 / (n + 2), without which a perfectly separated tag would get probabilities of 0 and 1.
shared
    As platt, but one slope and one shift for the pairs of all clips and tags: the order of tags within a clip is
    preserved as well, so lwlrap does not change, and two numbers need few clips. Every run is calibrated so.

A tag of no clip or of every clip gives no information and is not changed, except by "shared".
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from fatai.errors import CheckpointError, DataError, OptionError, ShapeError
from fatai.io.atomic import write_text
from fatai.io.json import read_json_limited
from fatai.io.lazy import special
from fatai.metrics._validation import CheckedInputs, as_array, check_inputs, check_probabilities
from fatai.metrics.thresholds import Thresholds, f1_thresholds
from fatai.registry import did_you_mean

__all__ = ["CALIBRATION", "Calibration", "cross_calibrate", "cross_decide"]

CALIBRATION = "calibration.json"
"""Name of the file in a run folder."""

FLOOR = 1e-7
"""Minimum distance from 0 and 1 of probabilities that are fitted, or rescaled, which makes logits finite."""

FINE_FLOOR = 1e-100
"""That of probabilities that are calibrated and not rescaled: the order of improbable tags is preserved."""

_MIN_SLOPE, _MAX_SLOPE = 1e-2, 1e2
_FLAT = 1e-6  # range of logits that are taken as equal
_MAX_JSON_BYTES = 1 << 26
_FORMAT = "fatai calibration 1"

_FindThresholds: TypeAlias = Callable[[Any, Any], Thresholds]


@dataclass(frozen=True)
class Calibration:
    """Map the probability p of each tag to sigmoid(slope * logit(p) + shift); optionally, p is rescaled before.

    Parameters
    ----------
    tags
        Name of each tag, without duplicates.
    slope, shift
        One number per tag, slopes above 0. The temperature is 1 / slope.
    low, high
        One number per tag, low below high: the range that is rescaled to [0, 1] first, with lower and higher values
        clipped. Empty leaves probabilities as they are.
    thresholds
        Calibrated probability of each tag from which on it is predicted; None without thresholds.

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
                f"a calibration has {len(self.tags)} tags, {len(set(self.tags))} of them different; "
                "expected each tag once"
            )
        for field in ("slope", "shift", "low", "high"):
            self._check_field(field)
        if min(self.slope) <= 0:
            raise DataError(
                f"slope is {min(self.slope)}; expected numbers above 0, which preserve the order within a tag"
            )
        if len(self.low) != len(self.high) or any(a >= b for a, b in zip(self.low, self.high, strict=True)):
            raise DataError("low and high do not fit each other; expected both or neither, each low below its high")
        if self.thresholds is not None and self.thresholds.tags != self.tags:
            raise DataError("the thresholds have other tags than the calibration; expected the same, in the same order")

    def _check_field(self, field: str) -> None:
        values = getattr(self, field)
        if len(values) != len(self.tags) and not (field in ("low", "high") and not values):
            raise DataError(f"{field} has {len(values)} numbers; expected one for each of the {len(self.tags)} tags")
        if not np.isfinite(values).all():
            raise DataError(f"{field} has a value that is not finite; expected numbers")

    @classmethod
    def fit(
        cls, probs: Any, targ: Any, tags: Sequence[str] | None = None, *, method: str = "platt", stretch: bool = False,
    ) -> Calibration:
        """Fit a calibration to predictions of clips that the model was not trained on.

        Parameters
        ----------
        probs, targ
            Shape (clips, tags).
        tags
            Names of the columns; their indices if None.
        method
            "platt", "temperature" or "shared"; the latter two are safer for few clips.
        stretch
            True rescales each tag's range among these clips to [0, 1] first, as the gold plan does with mean ranks.

        Raises
        ------
        OptionError
            If there is no such method.
        ShapeError, DataError
            If the tables do not fit each other, or `probs` exceeds [0, 1].
        """
        if method not in (*_METHODS, "shared"):
            known = [*_METHODS, "shared"]
            raise OptionError(f"no calibration method named {method!r}; {did_you_mean(method, known)}")
        checked = check_inputs(probs, targ)
        values = check_probabilities(checked.scores)
        names = tuple(str(i) for i in range(values.shape[1])) if tags is None else tuple(tags)
        low, high = _range(values) if stretch else ((), ())
        logits, present = _logits(values, low, high), checked.present
        if method == "shared":
            pairs = [_fit_column("platt", logits.ravel(), present.ravel())] * len(names)
        else:
            pairs = [_fit_column(method, z, y) for z, y in zip(logits.T, present.T, strict=True)]
        return cls(names, tuple(slope for slope, _ in pairs), tuple(shift for _, shift in pairs), low, high)

    def apply(self, probs: Any) -> np.ndarray:
        """Return calibrated probabilities.

        Parameters
        ----------
        probs
            Shape (clips, tags), within [0, 1], columns in the order of `tags`.

        Returns
        -------
        Shape (clips, tags), float64, within [0, 1].

        Raises
        ------
        ShapeError, DataError
            If `probs` has another number of columns, or exceeds [0, 1].
        """
        values = check_probabilities(as_array(probs))
        if values.ndim != 2 or values.shape[1] != len(self.tags):
            raise ShapeError(
                f"probs has shape {values.shape}; expected (clips, {len(self.tags)}), a column for each tag"
            )
        logits = _logits(values, self.low, self.high, FLOOR if self.low else FINE_FLOOR)
        return _sigmoid(np.array(self.slope) * logits + np.array(self.shift))

    @property
    def method(self) -> str:
        """The method whose result has this form: "shared", "temperature" or "platt"."""
        if len(set(zip(self.slope, self.shift, strict=True))) == 1:
            return "shared"
        return "platt" if any(self.shift) else "temperature"

    def select(self, tags: Sequence[str]) -> Calibration:
        """Return the calibration of some tags, in the given order; a missing tag raises a `DataError`."""
        missing = [tag for tag in tags if tag not in self.tags]
        if missing:
            suggestion = did_you_mean(missing[0], self.tags)
            raise DataError(f"the calibration has no tag {missing[0]!r} ({len(missing)} missing); {suggestion}")
        at = [self.tags.index(tag) for tag in tags]

        def pick(values: tuple[float, ...]) -> tuple[float, ...]:
            return tuple(values[i] for i in at) if values else ()

        thresholds = None if self.thresholds is None else Thresholds(tuple(tags), pick(self.thresholds.values))
        return Calibration(
            tuple(tags), pick(self.slope), pick(self.shift), pick(self.low), pick(self.high), thresholds
        )

    def to_dict(self) -> dict[str, Any]:
        """Return lists, numbers and text for JSON; a threshold of infinity becomes None."""
        lists = {name: list(getattr(self, name)) for name in ("tags", "slope", "shift", "low", "high")}
        return {
            "format": _FORMAT,
            **lists,
            "thresholds": None if self.thresholds is None else self.thresholds.to_list(),
        }

    @classmethod
    def from_dict(cls, data: Any) -> Calibration:
        """Convert the result of `to_dict`; every value is checked, and an invalid one raises a `DataError`."""
        return cls(**_parse(data))

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file atomically; a threshold of infinity becomes null."""
        write_text(path, json.dumps(self.to_dict(), allow_nan=False, indent=1) + "\n")

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read a file of `to_json`; every value is checked, since the file may be untrusted.

        Raises
        ------
        CheckpointError
            If the file is missing or is not a calibration; the message has the reason.
        """
        file = Path(path)
        if not file.is_file():
            raise CheckpointError(
                f"{path}: no such file; expected a calibration, as fatai-submit calibrate writes it into a run"
            )
        try:
            return cls.from_dict(read_json_limited(file, _MAX_JSON_BYTES))
        except (OSError, ValueError, OverflowError) as e:
            raise CheckpointError(f"{path} is not a calibration: {e}") from None


def cross_calibrate(probs: Any, targ: Any, folds: Any, *, method: str = "platt", stretch: bool = False) -> np.ndarray:
    """Calibrate the clips of each fold by a calibration fitted on the other folds.

    Parameters
    ----------
    probs, targ
        Shape (clips, tags).
    folds
        Shape (clips,): fold of each clip, at least two different ones.
    method, stretch
        As in `Calibration.fit`, whose errors are raised.

    Returns
    -------
    Shape (clips, tags), float64, within [0, 1].
    """
    checked = check_inputs(probs, targ)
    calibrated = np.empty(checked.scores.shape)
    for held_out in _held_out(folds, checked):
        fitted = Calibration.fit(
            checked.scores[~held_out], checked.present[~held_out], method=method, stretch=stretch
        )
        calibrated[held_out] = fitted.apply(checked.scores[held_out])
    return calibrated


def cross_decide(probs: Any, targ: Any, folds: Any, *, thresholds: _FindThresholds = f1_thresholds) -> np.ndarray:
    """Decide the tags of the clips of each fold by thresholds that were found on the other folds.

    Parameters
    ----------
    probs, targ, folds
        As in `cross_calibrate`, whose result may be `probs`.
    thresholds
        Finds thresholds from probabilities and labels, such as `fatai.metrics.thresholds.f1_thresholds`.

    Returns
    -------
    The decided tags, bool, shape (clips, tags).
    """
    checked = check_inputs(probs, targ)
    decided = np.zeros(checked.scores.shape, dtype=bool)
    for held_out in _held_out(folds, checked):
        found = thresholds(checked.scores[~held_out], checked.present[~held_out])
        decided[held_out] = found.apply(checked.scores[held_out])
    return decided


def _held_out(folds: Any, checked: CheckedInputs) -> Iterator[np.ndarray]:
    """Yield the clips that each fold holds out, bool (clips,); raise unless there are two folds and one per clip."""
    fold_of_clip = np.asarray(folds)
    numbers = np.unique(fold_of_clip)
    if fold_of_clip.shape != (len(checked.scores),) or len(numbers) < 2:
        raise ShapeError(
            f"folds has shape {fold_of_clip.shape} and {len(numbers)} different values; expected a number for each of "
            f"the {len(checked.scores)} clips, and two folds or more"
        )
    yield from (fold_of_clip == number for number in numbers)


def _range(values: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the minimum and maximum of each tag of (clips, tags); 0 and 1 for a constant tag."""
    low, high = values.min(axis=0), values.max(axis=0)
    flat = low >= high
    return tuple(np.where(flat, 0.0, low).tolist()), tuple(np.where(flat, 1.0, high).tolist())


def _logits(
    values: np.ndarray, low: Sequence[float], high: Sequence[float], floor: float = FLOOR
) -> np.ndarray:
    """Rescale probabilities (clips, tags) if there is a range, and return their logits."""
    if low:
        values = (values - np.array(low)) / (np.array(high) - np.array(low))
    clipped = np.clip(values, floor, min(1 - floor, np.nextafter(1.0, 0.0)))
    return np.log(clipped) - np.log1p(-clipped)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    """Return the sigmoid without scipy, which predictions need not import."""
    small = np.exp(-np.abs(values))
    return np.where(values >= 0, 1.0, small) / (1.0 + small)


def _fit_column(method: str, z: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return slope and shift for logits and flags, each of shape (n,); 1 and 0 if all flags are equal."""
    return _METHODS[method](z, y) if y.any() and not y.all() else (1.0, 0.0)


def _fit_temperature(z: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return slope and shift (0) for logits and flags (clips,) of one tag."""
    from scipy.optimize import minimize_scalar

    # The loss is convex in the slope, so it has one minimum in its logarithm.
    result = minimize_scalar(
        lambda log_slope: _log_loss(np.exp(log_slope) * z, y),
        bounds=(np.log(_MIN_SLOPE), np.log(_MAX_SLOPE)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(result.x)), 0.0


def _fit_platt(z: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return slope and shift for logits and flags (clips,) of one tag."""
    n_present = int(y.sum())
    soft = np.where(y, (n_present + 1) / (n_present + 2), 1 / (len(y) - n_present + 2))
    slope = 1.0  # of equal logits, which only determine a shift
    if np.ptp(z) > _FLAT:
        slope, shift = _logistic_regression(z, soft)
        if _MIN_SLOPE <= slope <= _MAX_SLOPE:
            return slope, shift
    # A slope below 0 would reverse the order of the clips. The loss is convex, so its minimum within the bounds lies at
    # the nearer bound.
    slope = float(np.clip(slope, _MIN_SLOPE, _MAX_SLOPE))
    return slope, _fit_shift(slope * z, soft)


def _logistic_regression(z: np.ndarray, soft: np.ndarray) -> tuple[float, float]:
    """Return slope and shift of an unpenalized logistic regression of soft targets (clips,) on logits (clips,)."""
    from sklearn.linear_model import LogisticRegression

    # A soft target t is a positive example of weight t and a negative one of weight 1 - t.
    fitted = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-8).fit(
        np.tile(z, 2)[:, None], np.repeat([1, 0], len(z)), sample_weight=np.concatenate([soft, 1 - soft])
    )
    return float(fitted.coef_[0, 0]), float(fitted.intercept_[0])


def _fit_shift(z: np.ndarray, soft: np.ndarray) -> float:
    """Return the shift of logits (clips,) at which their mean probability is that of soft targets (clips,)."""
    from scipy.optimize import brentq

    mean = special.logit(soft.mean())
    low, high = mean - z.max() - 1, mean - z.min() + 1
    return float(brentq(lambda shift: (special.expit(z + shift) - soft).mean(), low, high))


_METHODS = {"platt": _fit_platt, "temperature": _fit_temperature}


def _log_loss(z: np.ndarray, y: np.ndarray) -> float:
    """Return the mean binary log loss of logits (clips,) against targets (clips,)."""
    return float(-(y * special.log_expit(z) + (1 - y) * special.log_expit(-z)).mean())


def _parse(data: Any) -> dict[str, Any]:
    """Return the arguments of a `Calibration` from the content of a JSON file."""
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        raise DataError(f"expected an object with \"format\": \"{_FORMAT}\"")
    expected = {"format", "tags", "slope", "shift", "low", "high", "thresholds"}
    if set(data) != expected:
        raise DataError(f"its keys are {sorted(data)[:10]}; expected {sorted(expected)}")
    if not isinstance(data["tags"], list) or not all(isinstance(tag, str) and tag for tag in data["tags"]):
        raise DataError("tags is not a list of names")
    tags = tuple(data["tags"])
    thresholds = data["thresholds"]
    return {
        "tags": tags, **{key: _parse_numbers(key, data[key]) for key in ("slope", "shift", "low", "high")},
        "thresholds": None if thresholds is None else Thresholds.from_list(tags, thresholds),
    }


def _parse_numbers(key: str, values: Any) -> tuple[float, ...]:
    if not isinstance(values, list) or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        raise DataError(f"{key} is not a list of numbers")
    return tuple(float(v) for v in values)
