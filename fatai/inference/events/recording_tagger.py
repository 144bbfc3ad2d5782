"""The events of a recording of any length, from the probabilities of its steps, whatever predicts them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fatai.audio.stream import Sound, count_channels
from fatai.data.config import ClipConfig
from fatai.inference.events.progress_log import TaggingResult, tag_files
from fatai.inference.events.segments import ChannelEvent, SoundEvent, Step, expand_threshold, merge_steps
from fatai.metrics.calibration import Calibration

__all__ = ["RecordingTagger"]


class RecordingTagger(ABC):
    """Detect sound events in recordings of any length.

    Parameters
    ----------
    tags
        Names of the tags.
    settings
        How recordings are read; with `channel="each"` every channel of a recording is tagged.
    step_s
        Seconds from one window to the next.
    silence_db
        Level in dB of full scale below which a window counts as silence.
    calibration
        Calibration of the probabilities; those of other tags are left out.
    """

    def __init__(
        self, tags: Sequence[str], settings: ClipConfig, *, step_s: float, silence_db: float,
        calibration: Calibration | None,
    ):
        self.tags, self.settings, self.step_s, self.silence_db = tuple(tags), settings, step_s, silence_db
        self.calibration = None if calibration is None else calibration.select(self.tags)

    @abstractmethod
    def channel_steps(
        self, sound: Sound, sr: int | None, channel: str | int, name: str | None = None
    ) -> Iterator[Step]:
        """Yield the probabilities (tags,) of every step of one channel; arguments are those of `frame_probs`."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return all that determines the events, besides their thresholds, as JSON values."""

    @property
    def window_s(self) -> float:
        """Length of a window in seconds."""
        return self.settings.crop_s

    @property
    def thresholds(self) -> dict[str, float] | None:
        """Thresholds of the calibration by tag, at most 1, the default of `tag(threshold=...)`; None if it has none."""
        found = None if self.calibration is None else self.calibration.thresholds
        if found is None:
            return None
        return {tag: min(value, 1.0) for tag, value in zip(found.tags, found.values, strict=True)}

    def tag(
        self,
        sound: Sound,
        sr: int | None = None,
        *,
        threshold: float | Mapping[str, float] | None = None,
        top: int | None = None,
    ) -> list[SoundEvent]:
        """Detect the events of a recording; `pd.DataFrame(events)` is a table of them.

        Parameters
        ----------
        sound
            A path, the bytes of a sound file, or samples of shape (samples,) or (channels, samples), full scale [-1,
            1].
        sr
            Rate of samples in Hz; None means that of the networks. Files have their own.
        threshold
            Lowest probability of a detected tag, one for all or one per tag by name; None takes the thresholds of the
            calibration, or else 0.5. Higher values give fewer false events.
        top
            Tags detected at a time at most, the likeliest; None is all that reach their threshold.

        Returns
        -------
        The events, sorted by start.

        Raises
        ------
        AudioError
            If the file cannot be read to its end; the message names it.
        ShapeError, OptionError
            If the samples or an option are invalid.
        """
        events = self.events(sound, sr, threshold=threshold, top=top)
        return sorted(events, key=lambda event: (event.start_s, event.end_s, event.tag, getattr(event, "channel", 0)))

    def events(
        self,
        sound: Sound,
        sr: int | None = None,
        *,
        threshold: float | Mapping[str, float] | None = None,
        top: int | None = None,
    ) -> Iterator[SoundEvent]:
        """Yield the events of a recording, each as soon as it is over; arguments are those of `tag`.

        With `channel="each"` those of the first channel come first.
        """
        thresholds = self.tag_thresholds(threshold)
        if self.settings.channel != "each":
            return merge_steps(self.frame_probs(sound, sr), self.tags, thresholds, top)
        return (
            ChannelEvent(event.start_s, event.end_s, event.tag, event.prob, channel)
            for channel in range(1, count_channels(sound) + 1)
            for event in merge_steps(self.channel_steps(sound, sr, channel), self.tags, thresholds, top)
        )

    def tag_thresholds(self, threshold: float | Mapping[str, float] | None = None) -> np.ndarray:
        """Return one threshold for each tag, shape (tags,), of what `tag` takes as `threshold`."""
        by_default = 0.5 if self.thresholds is None else self.thresholds
        return expand_threshold(by_default if threshold is None else threshold, self.tags)

    def frame_probs(self, sound: Sound, sr: int | None = None, *, name: str | None = None) -> Iterator[Step]:
        """Yield the probabilities (tags,) of every step of a recording, the mean over the windows that cover it.

        Parameters
        ----------
        sound, sr
            As in `tag`.
        name
            What warnings call the sound, as in `stream_audio`; by default its path.
        """
        if self.settings.channel != "each":
            yield from self.channel_steps(sound, sr, self.settings.channel, name)
            return
        channels = [self.channel_steps(sound, sr, k, name) for k in range(1, count_channels(sound) + 1)]
        for steps in zip(*channels, strict=True):
            probs = np.mean([step.probs for step in steps], axis=0)
            yield Step(steps[0].start_s, steps[0].end_s, probs, all(step.is_silent for step in steps))

    def tag_files(
        self,
        paths: Iterable[str | Path],
        out: str | Path,
        *,
        threshold: float | Mapping[str, float] | None = None,
        top: int | None = None,
    ) -> TaggingResult:
        """Tag many files into one log, `out`; a killed run continues where it stopped.

        The log has a line of JSON for each file, written when the whole file is tagged. Files that have one are
        skipped; unreadable files are tried again.

        Parameters
        ----------
        paths
            The files.
        out
            The log, which `read_event_log` reads.
        threshold, top
            As in `tag`.

        Returns
        -------
        Counts of the files, and the errors of unreadable ones.

        Raises
        ------
        DataError
            If `out` is not a log, or was started with other networks or settings.
        """
        thresholds = self.tag_thresholds(threshold).tolist()
        settings = {**self.identity(), "threshold": thresholds, "top": top}
        return tag_files(lambda path: self.tag(path, threshold=threshold, top=top), paths, out, settings)
