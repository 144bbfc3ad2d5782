"""Check the inputs of every metric once.

`probs` is (clips, tags), any scores of which a higher one is more likely, so logits serve as well as probabilities;
`targ` is (clips, tags) of 0 and 1. Both may be numpy arrays, data frames, nested lists or torch tensors on any device.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fatai.errors import DataError, ShapeError

__all__ = ["CheckedInputs", "as_array", "check_flags", "check_inputs", "check_probabilities"]


class CheckedInputs(NamedTuple):
    """Checked scores and targets.

    Attributes
    ----------
    scores
        Shape (clips, tags), numbers without NaN.
    present
        Shape (clips, tags), bool: the tags of each clip.
    positives
        Shape (n,): flat indices of the True entries of `present`, rising.
    """

    scores: np.ndarray
    present: np.ndarray
    positives: np.ndarray


def check_inputs(probs: Any, targ: Any) -> CheckedInputs:
    """Convert `probs` and `targ`, both (clips, tags), to arrays; errors are those of `fatai.metrics.ranking.lwlrap`."""
    scores, present = as_array(probs), as_array(targ)
    if scores.ndim != 2 or scores.shape != present.shape:
        raise ShapeError(f"probs has shape {scores.shape} and targ {present.shape}; expected both as (clips, tags)")
    if scores.dtype.kind not in "fiub" or present.dtype.kind not in "fiub":
        raise DataError(f"probs is of type {scores.dtype} and targ of {present.dtype}; expected numbers")
    # The minimum of numbers with a NaN is NaN.
    if scores.dtype.kind == "f" and scores.size and np.isnan(scores.min()):
        clip, tag = np.argwhere(np.isnan(scores))[0]
        raise DataError(f"probs has NaN at clip {clip}, tag {tag}; expected numbers, since NaN has no rank")
    return CheckedInputs(scores, *check_flags(present, "targ"))


def check_flags(values: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return 0 and 1 of shape (clips, tags) as bool, and the flat indices of those that are 1, rising.

    Raises
    ------
    DataError
        If `values`, which the message calls `name`, has other numbers.
    """
    flags = values if values.dtype == bool else values != 0
    positives = np.flatnonzero(flags)
    invalid = np.flatnonzero(values.ravel()[positives] != 1)
    if len(invalid):
        clip, tag = np.divmod(positives[invalid[0]], values.shape[1])
        raise DataError(
            f"{name} has {values[clip, tag]} at clip {clip}, tag {tag}; expected 0 or 1: choose a threshold, "
            f"for instance {name} > 0.5"
        )
    return flags, positives


def check_probabilities(values: np.ndarray) -> np.ndarray:
    """Return values of any shape as float64; raise a `DataError` unless all are within [0, 1]."""
    values = values.astype(np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise DataError("probs exceeds [0, 1]; expected probabilities: take the sigmoid of logits first")
    return values


def as_array(values: Any) -> np.ndarray:
    """Convert anything array-like, also a tensor of any dtype on any device; torch need not be installed."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()
    return np.asarray(values)
