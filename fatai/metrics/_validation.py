"""Scores and truth as the arrays that every measure reads, checked once.

`probs` is (clips, tags), any scores of which higher means more likely, so that logits serve as well as probabilities; `targ` is
(clips, tags) and holds 0 and 1 only. Both may be numpy arrays, data frames, nested lists or torch tensors on any device.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fatai.errors import DataError, ShapeError

__all__ = ["CheckedInputs", "check_inputs"]


class CheckedInputs(NamedTuple):
    """Scores without NaN and flags of the present tags, both (clips, tags), and where in the flattened tables a tag is present."""

    scores: np.ndarray
    present: np.ndarray
    places: np.ndarray


def check_inputs(probs: Any, targ: Any) -> CheckedInputs:
    """What `probs` and `targ` hold; errors are those that `fatai.metrics.ranking.lwlrap` lists."""
    scores, present = _as_array(probs), _as_array(targ)
    if scores.ndim != 2 or scores.shape != present.shape:
        raise ShapeError(f"probs has shape {scores.shape} and targ {present.shape}; expected both as (clips, tags)")
    if scores.dtype.kind not in "fiub" or present.dtype.kind not in "fiub":
        raise DataError(f"probs is of type {scores.dtype} and targ of {present.dtype}; expected numbers")
    # The least of numbers among which one is NaN is NaN.
    if scores.dtype.kind == "f" and scores.size and np.isnan(scores.min()):
        clip, tag = np.argwhere(np.isnan(scores))[0]
        raise DataError(f"probs holds NaN at clip {clip}, tag {tag}: a score that is no number has no rank")
    flags = present if present.dtype == bool else present != 0
    places = np.flatnonzero(flags)
    odd = np.flatnonzero(present.ravel()[places] != 1)
    if len(odd):
        clip, tag = np.divmod(places[odd[0]], present.shape[1])
        raise DataError(
            f"targ holds {present[clip, tag]} at clip {clip}, tag {tag}; expected 0 or 1: decide what counts as present, "
            "for instance targ > 0.5"
        )
    return CheckedInputs(scores, flags, places)


def _as_array(values: Any) -> np.ndarray:
    """An array of what may be a tensor on any device, of any dtype; this room works without torch."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()
    return np.asarray(values)
