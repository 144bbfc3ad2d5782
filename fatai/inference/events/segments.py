"""Probabilities of short steps of time to events: from when to when each tag is heard.

Conventions: `probs` is (tags,), within [0, 1]; times are seconds from the start of the sound.
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
    """A tag that is heard from `start_s` to `end_s`; `prob` is the highest probability of its steps."""

    start_s: float
    end_s: float
    tag: str
    prob: float


class Step(NamedTuple):
    """A short stretch of time and the probabilities (tags,) of what is heard in it."""

    start_s: float
    end_s: float
    probs: np.ndarray


class OverlapAverager:
    """Probabilities of overlapping windows, in the order of time, to those of the steps that they cover.

    A step's probability is the mean over the windows that cover it, weighted by how much of the step each covers. So a tag that is heard
    in a window is placed in time where most windows with that tag meet. Holds no more steps than lie under a window.

    Parameters
    ----------
    step
        Length of a step in samples.
    """

    def __init__(self, step: int):
        self._step, self._first = step, 0
        self._sums: deque[tuple[float, np.ndarray]] = deque()

    def add(self, start: int, stop: int, probs: np.ndarray) -> None:
        """Probabilities of the samples from `start` to before `stop`, which starts no earlier than those before."""
        for index in range(start // self._step, -(-stop // self._step)):
            covered = min(stop, (index + 1) * self._step) - max(start, index * self._step)
            at = index - self._first
            if at == len(self._sums):
                self._sums.append((0.0, np.zeros(len(probs))))
            weight, total = self._sums[at]
            self._sums[at] = (weight + covered, total + covered * probs)

    def before(self, sample: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """Start, stop and probabilities of the steps that end at `sample` or before, each once."""
        while self._sums and (self._first + 1) * self._step <= sample:
            yield self._next()

    def rest(self, end: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """All that remain; the last one stops at `end`, where the sound does."""
        while self._sums:
            start, stop, probs = self._next()
            yield start, min(stop, end), probs

    def _next(self) -> tuple[int, int, np.ndarray]:
        weight, total = self._sums.popleft()
        self._first += 1
        return (self._first - 1) * self._step, self._first * self._step, total / weight


def threshold_of(threshold: float | Mapping[str, float], tags: Sequence[str]) -> np.ndarray:
    """Lowest probability at which each tag counts as heard, shape (tags,); from one number, or from one for each tag by name.

    Examples
    --------
    >>> threshold_of({"Bark": 0.5, "Meow": 0.2}, ["Meow", "Bark"])
    array([0.2, 0.5])
    """
    if isinstance(threshold, Mapping):
        for tag in threshold:
            if tag not in tags:
                raise OptionError(f"threshold names the tag {tag!r}; {did_you_mean(tag, list(tags))}")
        lacking = [tag for tag in tags if tag not in threshold]
        if lacking:
            raise OptionError(
                f"threshold lacks the tag {lacking[0]!r}; give one number for each of the {len(tags)} tags, or one for all"
            )
        values = np.array([float(threshold[tag]) for tag in tags])
    else:
        values = np.full(len(tags), float(threshold))
    if not ((values >= 0) & (values <= 1)).all():
        raise OptionError(f"threshold is {threshold}; expected numbers within [0, 1]")
    return values


def merge_steps(
    steps: Iterable[Step], tags: Sequence[str], threshold: np.ndarray, top: int | None = None
) -> Iterator[SoundEvent]:
    """Events: neighbouring steps in which a tag reaches its threshold become one.

    Parameters
    ----------
    steps
        In the order of time, without gaps.
    threshold
        Shape (tags,).
    top
        In each step no more than so many tags are heard, the likeliest.

    Yields
    ------
    Events as soon as they are over, so in the order of their ends.
    """
    if top is not None and top < 1:
        raise OptionError(f"top is {top}; expected at least one tag, or None for all that reach their threshold")
    going: dict[int, SoundEvent] = {}
    for start_s, end_s, probs in steps:
        loudest = np.argsort(-probs, kind="stable")[:top]
        heard = {int(i) for i in loudest if probs[i] >= threshold[i]}
        for i in [i for i in going if i not in heard]:
            yield going.pop(i)
        for i in heard:
            before = going.get(i)
            since, best = (before.start_s, before.prob) if before else (start_s, 0.0)
            going[i] = SoundEvent(since, end_s, tags[i], max(best, float(probs[i])))
    yield from going.values()
