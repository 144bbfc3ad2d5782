"""Merge probabilities of short time steps into sound events.

Conventions: `probs` is (tags,), within [0, 1]; times are seconds from the start of the recording.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fatai.errors import OptionError
from fatai.registry import did_you_mean

__all__ = ["SoundEvent"]


@dataclass(frozen=True, slots=True)
class SoundEvent:
    """A tag detected from `start_s` to `end_s` (seconds); `prob` is the highest probability of its steps."""

    start_s: float
    end_s: float
    tag: str
    prob: float


@dataclass(frozen=True, slots=True)
class ChannelEvent(SoundEvent):
    """A sound event in one channel of a recording; `channel` is its number, from 1."""

    channel: int = 1


class Step(NamedTuple):
    """A short stretch of time, in seconds, and the probabilities (tags,) in it.

    `is_silent` is true in a recording that is silent throughout, whose probabilities are a guess without events.
    """

    start_s: float
    end_s: float
    probs: np.ndarray
    is_silent: bool = False


class OverlapAverager:
    """Average overlapping windows, in the order of time, to probabilities of the steps that they cover.

    The probability of a step is the mean over the windows that cover it, weighted by how much of the step each covers.
    So an event is located where most windows with its tag overlap. Memory holds only the steps under the current
    window.

    Parameters
    ----------
    step
        Length of a step in samples.
    """

    def __init__(self, step: int):
        self._step, self._first = step, 0
        self._sums: deque[tuple[float, np.ndarray]] = deque()

    def add(self, start: int, stop: int, probs: np.ndarray) -> None:
        """Add the probabilities (tags,) of samples `start` to `stop` (exclusive).

        `start` must not decrease from call to call.
        """
        for index in range(start // self._step, -(-stop // self._step)):
            covered = min(stop, (index + 1) * self._step) - max(start, index * self._step)
            i = index - self._first
            if i == len(self._sums):
                self._sums.append((0.0, np.zeros(len(probs))))
            weight, total = self._sums[i]
            self._sums[i] = (weight + covered, total + covered * probs)

    def before(self, sample: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield start, stop and probabilities (tags,) of the steps that end at `sample` or before, and drop them."""
        while self._sums and (self._first + 1) * self._step <= sample:
            yield self._pop()

    def rest(self, end: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield start, stop and probabilities (tags,) of the remaining steps; the last one stops at sample `end`."""
        while self._sums:
            start, stop, probs = self._pop()
            yield start, min(stop, end), probs

    def _pop(self) -> tuple[int, int, np.ndarray]:
        weight, total = self._sums.popleft()
        self._first += 1
        return (self._first - 1) * self._step, self._first * self._step, total / weight


def expand_threshold(threshold: float | Mapping[str, float], tags: Sequence[str]) -> np.ndarray:
    """Return one threshold per tag, float64 (tags,), from a single number or from a number per tag by name.

    Raises
    ------
    OptionError
        If a tag is unknown or missing, or a number is outside [0, 1].

    Examples
    --------
    >>> expand_threshold({"Bark": 0.5, "Meow": 0.2}, ["Meow", "Bark"])
    array([0.2, 0.5])
    """
    if isinstance(threshold, Mapping):
        _check_tags(threshold, tags)
        values = np.array([float(threshold[tag]) for tag in tags])
    else:
        values = np.full(len(tags), float(threshold))
    if not ((values >= 0) & (values <= 1)).all():
        raise OptionError(f"threshold is {threshold}; expected numbers within [0, 1]")
    return values


def _check_tags(threshold: Mapping[str, float], tags: Sequence[str]) -> None:
    for tag in threshold:
        if tag not in tags:
            raise OptionError(f"threshold has the unknown tag {tag!r}; {did_you_mean(tag, list(tags))}")
    missing = [tag for tag in tags if tag not in threshold]
    if missing:
        raise OptionError(
            f"threshold lacks the tag {missing[0]!r}; expected one number for each of the {len(tags)} tags, or one for "
            "all"
        )


def merge_steps(
    steps: Iterable[Step], tags: Sequence[str], threshold: np.ndarray, top: int | None = None
) -> Iterator[SoundEvent]:
    """Merge neighboring steps in which a tag reaches its threshold into one event.

    Parameters
    ----------
    steps
        In the order of time, without gaps.
    tags
        Name of each column of the probabilities.
    threshold
        Lowest probability of a detected tag, shape (tags,).
    top
        Tags detected at a time at most, the likeliest; None is all that reach their threshold.

    Yields
    ------
    Events as soon as they are over, so in the order of their ends.

    Raises
    ------
    OptionError
        If `top` is below 1.
    """
    if top is not None and top < 1:
        raise OptionError(f"top is {top}; expected at least one tag, or None for all that reach their threshold")
    ongoing: dict[int, SoundEvent] = {}
    for start_s, end_s, probs, is_silent in steps:
        likeliest = np.argsort(-probs, kind="stable")[:top]
        detected = {int(i) for i in likeliest if probs[i] >= threshold[i] and not is_silent}
        for i in [i for i in ongoing if i not in detected]:
            yield ongoing.pop(i)
        for i in detected:
            before = ongoing.get(i)
            first_s, highest = (before.start_s, before.prob) if before else (start_s, 0.0)
            ongoing[i] = SoundEvent(first_s, end_s, tags[i], max(highest, float(probs[i])))
    yield from ongoing.values()
