"""False alarms: events that are detected in sounds without any tag, per hour and tag, and thresholds that limit them.

Conventions: `probs` is (steps, tags), within [0, 1], the steps of all sounds one after another; `starts` is bool
(steps,), True at the first step of each sound. An event is a row of neighboring steps that reach the threshold.
"""

from __future__ import annotations

import numpy as np

from fatai.errors import OptionError, ShapeError

__all__ = ["count_events", "limit_false_alarms"]


def count_events(probs: np.ndarray, starts: np.ndarray, thresholds: np.ndarray | float) -> np.ndarray:
    """Count the events of each tag, integers (tags,).

    Parameters
    ----------
    probs, starts
        As in the module's conventions.
    thresholds
        Lowest probability of an event, one for all tags or (tags,).

    Raises
    ------
    ShapeError
        If the shapes do not match.

    Examples
    --------
    >>> count_events(np.array([[0.9], [0.6], [0.1], [0.7]]), np.array([True, False, False, False]), 0.5).tolist()
    [2]
    """
    before = _before(probs, starts)
    limits = np.broadcast_to(np.asarray(thresholds, dtype=np.float64), probs.shape[1:])
    return ((probs >= limits) & (before < limits)).sum(axis=0)


def _before(probs: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the probability of the step before each step, -1 where a sound begins."""
    if probs.ndim != 2 or starts.shape != (len(probs),):
        raise ShapeError(
            f"probs has shape {probs.shape} and starts {starts.shape}; expected (steps, tags) and (steps,)"
        )
    before = np.concatenate([np.full((1, probs.shape[1]), -1.0), probs[:-1]])[:len(probs)]
    return np.where(starts[:, None], -1.0, before)


def limit_false_alarms(probs: np.ndarray, starts: np.ndarray, hours: float, max_per_hour: float) -> np.ndarray:
    """Return the lowest threshold of each tag at which, and above which, there are at most so many events per hour.

    Parameters
    ----------
    probs, starts
        As in the module's conventions.
    hours
        Length of the sounds.
    max_per_hour
        Highest number of events of a tag per hour, at least 0.

    Returns
    -------
    float64 (tags,), in [0, 1]. At a threshold of 1 a tag that reaches it has more events all the same.

    Raises
    ------
    OptionError
        If `hours` is not above 0, or `max_per_hour` is below 0.

    Examples
    --------
    >>> steps, starts = np.array([[0.9], [0.6], [0.1], [0.7]]), np.array([True, False, False, False])
    >>> limit_false_alarms(steps, starts, 1, 1).round(3).tolist()   # at 0.7 there are two, above it one
    [0.7]
    >>> int(count_events(steps, starts, limit_false_alarms(steps, starts, 1, 1))[0])
    1
    """
    if not hours > 0 or not max_per_hour >= 0:
        raise OptionError(f"hours is {hours} and max_per_hour {max_per_hour}; expected above 0, and at least 0")
    allowed, before = int(max_per_hour * hours + 1e-9), _before(probs, starts)
    limits = np.zeros(probs.shape[1])
    for k in range(probs.shape[1]):
        # An event begins where a step reaches the threshold and the one before it does not.
        rises = probs[:, k] > before[:, k]
        high, low = np.sort(probs[rises, k]), np.sort(before[rises, k])
        values = np.unique(probs[:, k])
        n_events = (len(high) - np.searchsorted(high, values)) - (len(low) - np.searchsorted(low, values))
        too_many = values[n_events > allowed]
        if len(too_many):
            limits[k] = min(np.nextafter(too_many[-1], 2.0), 1.0)
    return limits
