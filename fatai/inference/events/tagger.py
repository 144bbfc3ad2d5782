"""Detect sound events in recordings of any length with a sliding window.

The recording is streamed through windows as long as the crops that the networks were trained on, each of which overlaps
the one before. Memory holds one batch of windows, whatever the length of the recording.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fatai.audio.stream import Sound, stream_audio
from fatai.audio.waveform import peak_db
from fatai.data.config import ClipConfig
from fatai.data.transforms import WaveToSpec
from fatai.errors import OptionError
from fatai.inference.events.progress_log import TaggingResult, tag_files
from fatai.inference.events.segments import OverlapAverager, SoundEvent, Step, expand_threshold, merge_steps
from fatai.metrics.calibration import Calibration
from fatai.training.precision import autocast_for

__all__ = ["SlidingWindowTagger"]


class _Window(NamedTuple):
    """Samples (crop_samples,) of a recording from `start`; `end` is where they, or the recording before them, stop."""

    start: int
    end: int
    wave: Tensor


class SlidingWindowTagger:
    """Detect sound events in recordings of any length with one or several networks, whose probabilities are averaged.

    Parameters
    ----------
    networks
        Each maps spectrograms (windows, channels, mels, frames) to logits (windows, tags).
    tags
        Names of the outputs.
    settings
        How the networks' training clips were read. Unlike clips, recordings are not trimmed.
    step_s
        Seconds from one window to the next, and so the resolution of events in time; None is half a window. Smaller
        steps take longer.
    silence_db
        A window whose peak is below this level (dB of full scale) counts as silence: all probabilities are 0, and no
        network is run. Networks trained on trimmed clips never saw background noise alone and mistake it for padded
        clips; raise this above the peaks of a recording's background to avoid such false detections.
    bs
        Windows per batch.
    precision
        A name of `fatai.training.precision.PRECISIONS`.
    calibration
        Calibration of the probabilities of a window; silence stays at 0.
    activation
        Map from logits to probabilities, both (windows, tags).

    Raises
    ------
    OptionError
        If there is no network, or `step_s` or `bs` is out of range.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        tags: Sequence[str],
        settings: ClipConfig,
        *,
        step_s: float | None = None,
        silence_db: float = -60.0,
        bs: int = 16,
        precision: str = "fp32",
        calibration: Calibration | None = None,
        activation: Callable[[Tensor], Tensor] = torch.sigmoid,
    ):
        if not networks:
            raise OptionError("there are no networks; expected at least one")
        self.step_s = settings.crop_s / 2 if step_s is None else step_s
        if not 0.01 <= self.step_s <= settings.crop_s:
            raise OptionError(
                f"step_s is {step_s}; expected 0.01 to {settings.crop_s:g} seconds, the length of a window"
            )
        if bs < 1:
            raise OptionError(f"bs is {bs}; expected at least one window in a batch")
        self.networks, self.tags, self.settings = [network.eval() for network in networks], tuple(tags), settings
        self.silence_db, self.bs, self.precision, self.activation = silence_db, bs, precision, activation
        self.calibration = None if calibration is None else calibration.select(self.tags)
        self.device = next((p.device for p in networks[0].parameters()), torch.device("cpu"))
        self._to_spec = WaveToSpec(settings)

    @property
    def window_s(self) -> float:
        """Length of a window in seconds."""
        return self.settings.crop_s

    def tag(
        self,
        sound: Sound,
        sr: int | None = None,
        *,
        threshold: float | Mapping[str, float] = 0.5,
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
            Lowest probability of a detected tag, one for all or one per tag by name. Higher values give fewer false
            events.
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
        return sorted(events, key=lambda event: (event.start_s, event.end_s, event.tag))

    def events(
        self,
        sound: Sound,
        sr: int | None = None,
        *,
        threshold: float | Mapping[str, float] = 0.5,
        top: int | None = None,
    ) -> Iterator[SoundEvent]:
        """Yield the events of a recording, each as soon as it is over; arguments are those of `tag`."""
        return merge_steps(self.frame_probs(sound, sr), self.tags, expand_threshold(threshold, self.tags), top)

    def frame_probs(self, sound: Sound, sr: int | None = None) -> Iterator[Step]:
        """Yield the probabilities (tags,) of every step of a recording, the mean over the windows that cover it.

        Parameters
        ----------
        sound, sr
            As in `tag`.
        """
        rate, size = self.settings.sr, self.settings.crop_samples
        averager, end = OverlapAverager(self._step), 0
        for starts, ends, probs in self._predict_windows(self._windows(stream_audio(sound, rate, sr_from=sr))):
            for start, end, row in zip(starts, ends, probs, strict=True):
                yield from (Step(a / rate, b / rate, p) for a, b, p in averager.before(start))
                averager.add(start, min(end, start + size), row)
        yield from (Step(a / rate, b / rate, p) for a, b, p in averager.rest(end))

    def tag_files(
        self,
        paths: Iterable[str | Path],
        out: str | Path,
        *,
        threshold: float | Mapping[str, float] = 0.5,
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
        thresholds = expand_threshold(threshold, self.tags).tolist()
        settings = {**self._identity(), "threshold": thresholds, "top": top}
        return tag_files(lambda path: self.tag(path, threshold=threshold, top=top), paths, out, settings)

    def _identity(self) -> dict[str, Any]:
        """Return all that determines the events, besides their thresholds."""
        digest = weights_digest(self.networks, repr((self.tags, self.settings, self.calibration)))
        return {"networks": digest[:16], "step_s": self.step_s, "silence_db": self.silence_db}

    @property
    def _step(self) -> int:
        return max(1, round(self.step_s * self.settings.sr))

    def _windows(self, blocks: Iterable[Tensor]) -> Iterator[_Window]:
        """Cut blocks of samples (n,) into windows; the last window ends where the recording does."""
        size, step = self.settings.crop_samples, self._step
        # `buffer` starts at sample `first`, no later than the last window; the next window starts `offset` samples
        # later.
        buffer, first, offset = torch.zeros(0), 0, 0
        for block in blocks:
            buffer = torch.cat([buffer, block])
            while len(buffer) >= offset + size:
                yield _Window(first + offset, first + offset + size, buffer[offset:offset + size])
                buffer, first, offset = buffer[offset:], first + offset, step
        if offset == 0:
            yield _Window(0, len(buffer), self.settings.fit(buffer))
        elif len(buffer) > size:
            yield _Window(first + len(buffer) - size, first + len(buffer), buffer[-size:])

    def _predict_windows(self, windows: Iterable[_Window]) -> Iterator[tuple[list[int], list[int], np.ndarray]]:
        """Yield starts and ends of the windows of a batch, and their probabilities (windows, tags)."""
        batch: list[_Window] = []
        for window in windows:
            batch.append(window)
            if len(batch) == self.bs:
                yield self._predict_batch(batch)
                batch = []
        if batch:
            yield self._predict_batch(batch)

    def _predict_batch(self, batch: list[_Window]) -> tuple[list[int], list[int], np.ndarray]:
        wave = torch.stack([window.wave for window in batch])
        probs = np.zeros((len(batch), len(self.tags)))
        audible = peak_db(wave) >= self.silence_db
        if audible.any():
            mean = self._mean_probs(wave[audible])
            probs[audible.numpy()] = mean if self.calibration is None else self.calibration.apply(mean)
        return [window.start for window in batch], [window.end for window in batch], probs

    def _mean_probs(self, wave: Tensor) -> np.ndarray:
        """Return probabilities (windows, tags), float64, of waves (windows, samples), averaged over the networks."""
        with torch.inference_mode(), autocast_for(self.device, self.precision):
            spec = self._to_spec.spec(wave.to(self.device))
            probs = [self.activation(network(spec).float()).cpu().double() for network in self.networks]
        return torch.stack(probs).mean(0).numpy()


def weights_digest(networks: Iterable[nn.Module], text: str) -> str:
    """Return the SHA-256, as hexadecimal digits, of a text and of all weights."""
    digest = hashlib.sha256(text.encode())
    for network in networks:
        for name, tensor in network.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
