"""Taggers that read recordings in different ways, averaged step by step."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import zip_longest
from typing import Any

import numpy as np
from torch import nn

from fatai.audio.stream import Sound
from fatai.errors import OptionError
from fatai.inference.events.recording_tagger import RecordingTagger
from fatai.inference.events.segments import Step
from fatai.inference.events.tagger import SlidingWindowTagger
from fatai.metrics.calibration import Calibration

__all__ = ["AveragedTagger", "common_step"]


def common_step(step_s: float, rates: Iterable[int]) -> float:
    """Return the seconds nearest to a step that are a whole number of samples at every rate in Hz.

    Rounded at each rate by itself, steps would drift apart in long recordings.

    Examples
    --------
    >>> common_step(0.25, [44_100, 32_000]), common_step(0.333, [44_100, 32_000])
    (0.25, 0.33)
    """
    unit = math.gcd(*rates)  # steps per second, at most
    return max(1, round(step_s * unit)) / unit


class AveragedTagger(RecordingTagger):
    """Detect sound events with several taggers of the same tags and steps, whose probabilities are averaged.

    Each part streams the recording by itself, at its own rate and with windows of its own length.

    Parameters
    ----------
    parts
        The taggers, without calibrations if there are several.
    weights
        Weight of each in the average, at least 0 and not all 0.
    calibration
        Calibration of the averages; silence stays at 0. That of a single part is its own.

    Raises
    ------
    OptionError
        If there are no parts, they have different tags or steps, or the weights do not fit.
    """

    def __init__(
        self, parts: Sequence[SlidingWindowTagger], weights: Sequence[float], calibration: Calibration | None = None
    ):
        if len({(part.tags, Fraction(part.step, part.settings.sr)) for part in parts}) != 1:
            raise OptionError("the taggers have different tags or steps; expected at least one, and the same of all")
        self.parts, self.part_weights = tuple(parts), np.asarray(weights, dtype=float)
        if self.part_weights.shape != (len(parts),) or (self.part_weights < 0).any() or not self.part_weights.any():
            raise OptionError(
                f"there are {len(parts)} taggers and the weights {self.part_weights.tolist()[:5]}; expected one number "
                "for each, at least 0, and not all 0"
            )
        first = max(parts, key=lambda part: part.settings.sr)  # samples and pictures need the highest rate
        super().__init__(
            first.tags, first.settings, step_s=first.step_s, silence_db=first.silence_db,
            calibration=parts[0].calibration if len(parts) == 1 else calibration,
        )

    @property
    def networks(self) -> list[nn.Module]:
        """The networks of all parts."""
        return [network for part in self.parts for network in part.networks]

    @property
    def window_s(self) -> float:
        """Length of the longest window in seconds."""
        return max(part.window_s for part in self.parts)

    def only_part(self) -> SlidingWindowTagger:
        """Return the tagger if there is one only; raises `OptionError` otherwise."""
        if len(self.parts) > 1:
            raise OptionError(
                f"the runs of this ensemble read sound in {len(self.parts)} different ways; expected runs that read it "
                "alike: take one of them"
            )
        return self.parts[0]

    def channel_steps(
        self, sound: Sound, sr: int | None, channel: str | int, name: str | None = None
    ) -> Iterator[Step]:
        """Yield the steps of one channel: the weighted mean of the parts, then calibrated."""
        streams = [part.channel_steps(sound, sr or self.settings.sr, channel, name) for part in self.parts]
        if len(streams) == 1:
            yield from streams[0]
            return
        for steps in zip_longest(*streams):  # at another rate, the end of a recording may fall into one more step
            found = [(step, weight) for step, weight in zip(steps, self.part_weights, strict=True) if step is not None]
            weights = [weight for _, weight in found]
            probs = np.average([step.probs for step, _ in found], axis=0, weights=weights if any(weights) else None)
            is_silent = all(step.is_silent for step, _ in found)
            if self.calibration is not None and probs.any() and not is_silent:
                probs = self.calibration.apply(probs[None])[0]
            yield Step(found[0][0].start_s, max(step.end_s for step, _ in found), probs, is_silent)

    def identity(self) -> dict[str, Any]:
        """Return all that determines the events, besides their thresholds, as JSON values."""
        if len(self.parts) == 1:
            return self.parts[0].identity()
        parts = [part.identity() for part in self.parts]
        text = json.dumps([parts, self.part_weights.tolist(), repr(self.calibration)], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        return {"networks": digest[:16], "step_s": self.step_s, "silence_db": self.silence_db}
