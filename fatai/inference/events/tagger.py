"""Detect sound events in recordings of any length with a sliding window.

The recording is streamed through windows as long as the crops that the networks were trained on, each of which overlaps
the one before. Memory holds one batch of windows, whatever the length of the recording.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fatai.audio.stream import Sound, stream_audio
from fatai.audio.waveform import SILENCE_DB, is_silent
from fatai.data.config import ClipConfig
from fatai.data.spectrograms import ClipSpectrograms
from fatai.errors import OptionError
from fatai.inference.events.recording_tagger import RecordingTagger
from fatai.inference.events.segments import (
    OverlapAverager,
    Step,
)
from fatai.inference.events.windows import Window, cut_windows
from fatai.io.ahead import read_ahead
from fatai.metrics.calibration import Calibration
from fatai.models.batch_norm import fold_batch_norm
from fatai.threads import may_read_ahead
from fatai.training.autocast import autocast_for

__all__ = ["SlidingWindowTagger"]

MIN_FOLDED_WINDOWS = 64
"""After this number of windows of a recording, batch norms are folded into the layers before them."""
_SAMPLES_AHEAD = 1 << 20  # that are decoded while the networks run


class _Predicted(NamedTuple):
    """Starts and ends of windows, their probabilities (windows, tags), and which of them have sound."""

    starts: list[int]
    ends: list[int]
    probs: np.ndarray
    audible: list[bool]


class SlidingWindowTagger(RecordingTagger):
    """Detect sound events in recordings of any length with one or several networks, whose probabilities are averaged.

    Parameters
    ----------
    networks
        Each maps spectrograms (windows, channels, mels, frames) to logits (windows, tags).
    tags
        Names of the outputs.
    settings
        How the networks' training clips were read. Unlike clips, recordings are not trimmed. With `channel="each"`
        every channel of a recording is tagged; its events are `ChannelEvent`s, and probabilities of steps are means
        over the channels.
    step_s
        Seconds from one window to the next, and so the resolution of events in time; None is half a window. Smaller
        steps take longer.
    silence_db
        A window whose peak besides a constant offset is below this level (dB of full scale) counts as silence: all
        probabilities are 0, and no network is run. A recording of nothing but silence has no events; there is a
        warning, and the probabilities of its steps are the prior. Networks trained on trimmed clips never saw
        background noise alone and mistake it for padded clips; raise this above the peaks of a recording's background
        to avoid such false detections.
    bs
        Windows per batch.
    precision
        A name of `fatai.training.autocast.PRECISIONS`.
    calibration
        Calibration of the probabilities of a window; silence stays at 0.
    activation
        Map from logits to probabilities, both (windows, tags).
    prior
        Fraction of the training clips with each tag, shape (tags,); None if it is not known.
    weights
        Weight of each network in the average, at least 0 and not all 0; None for equal ones.

    Raises
    ------
    OptionError
        If there is no network, the weights do not fit, or `step_s` or `bs` is out of range.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        tags: Sequence[str],
        settings: ClipConfig,
        *,
        step_s: float | None = None,
        silence_db: float = SILENCE_DB,
        bs: int = 16,
        precision: str = "fp32",
        calibration: Calibration | None = None,
        activation: Callable[[Tensor], Tensor] = torch.sigmoid,
        prior: np.ndarray | None = None,
        weights: Sequence[float] | None = None,
    ):
        if not networks:
            raise OptionError("there are no networks; expected at least one")
        self.weights = np.full(len(networks), 1.0) if weights is None else np.asarray(weights, dtype=float)
        if self.weights.shape != (len(networks),) or (self.weights < 0).any() or not self.weights.sum() > 0:
            raise OptionError(
                f"there are {len(networks)} networks and the weights {self.weights.tolist()[:5]}; expected one number "
                "for each, at least 0, and not all 0"
            )
        super().__init__(
            tags, settings, step_s=settings.crop_s / 2 if step_s is None else step_s, silence_db=silence_db,
            calibration=calibration,
        )
        if not 0.01 <= self.step_s <= settings.crop_s:
            raise OptionError(
                f"step_s is {step_s}; expected 0.01 to {settings.crop_s:g} seconds, the length of a window"
            )
        if bs < 1:
            raise OptionError(f"bs is {bs}; expected at least one window in a batch")
        self.networks = [network.eval() for network in networks]
        self.bs, self.precision, self.activation, self.prior = bs, precision, activation, prior
        self._folded: list[nn.Module] | None = None
        self.device = next((p.device for p in networks[0].parameters()), torch.device("cpu"))
        # The loops for long recordings are compiled, which loads numba.
        self._to_spec = ClipSpectrograms(settings)

    @property
    def step(self) -> int:
        """Samples from one window to the next."""
        return max(1, round(self.step_s * self.settings.sr))

    def channel_steps(
        self, sound: Sound, sr: int | None, channel: str | int, name: str | None = None
    ) -> Iterator[Step]:
        """Yield the steps of one channel; those before the first sound when it comes, or at the end if none comes."""
        n_waiting, last = 0, None
        blocks = stream_audio(sound, self.settings.sr, sr_from=sr, channel=channel, name=name)
        for step, has_begun in self._steps(read_ahead(blocks, len, _SAMPLES_AHEAD) if may_read_ahead() else blocks):
            if not has_begun:
                n_waiting, last = n_waiting + 1, step
                continue
            yield from self._silent_steps(n_waiting)
            n_waiting = 0
            yield step
        if last is not None and n_waiting:
            self._warn_of_silence(sound, channel, name)
            for step in self._silent_steps(n_waiting, self.prior):
                yield step._replace(end_s=min(step.end_s, last.end_s), is_silent=True)

    def _silent_steps(self, n: int, probs: np.ndarray | None = None) -> Iterator[Step]:
        """Yield the first `n` steps of a recording with the same probabilities (tags,), by default 0."""
        probs, rate = np.zeros(len(self.tags)) if probs is None else probs, self.settings.sr
        return (Step(k * self.step / rate, (k + 1) * self.step / rate, probs) for k in range(n))

    def _warn_of_silence(self, sound: Sound, channel: str | int, name: str | None) -> None:
        name = name or (os.fspath(sound) if isinstance(sound, (str, os.PathLike)) else "the given sound")
        part = f", channel {channel}" if isinstance(channel, int) else ""
        probs = "the training prior" if self.prior is not None else "0, since no training prior is stored"
        warnings.warn(
            f"{name}{part}: silent (no peak reaches {self.silence_db:g} dB of full scale); there are no events, and "
            f"the probability of each tag is {probs}; amplify a recording that is quiet",
            stacklevel=3,
        )

    def _steps(self, blocks: Iterable[Tensor]) -> Iterator[tuple[Step, bool]]:
        """Yield the steps of blocks of samples (n,), and whether any window up to then had sound."""
        rate, size = self.settings.sr, self.settings.crop_samples
        averager, end, has_begun = OverlapAverager(self.step), 0, False
        for starts, ends, probs, audible in self._predict_windows(cut_windows(blocks, self.settings, self.step)):
            for start, end, row, is_audible in zip(starts, ends, probs, audible, strict=True):
                yield from ((Step(a / rate, b / rate, p), has_begun) for a, b, p in averager.before(start))
                averager.add(start, min(end, start + size), row)
                has_begun = has_begun or is_audible
        yield from ((Step(a / rate, b / rate, p), has_begun) for a, b, p in averager.rest(end))

    def identity(self) -> dict[str, Any]:
        """Return all that determines the events, besides their thresholds, as JSON values."""
        # The settings hold the channel.
        digest = weights_digest(self.networks, self._settings_text())
        return {"networks": digest[:16], "step_s": self.step_s, "silence_db": self.silence_db}

    def _settings_text(self) -> str:
        text = repr((self.tags, self.settings, self.calibration))
        return text if len(set(self.weights)) == 1 else f"{text} {self.weights.tolist()}"

    def _predict_windows(self, windows: Iterable[Window]) -> Iterator[_Predicted]:
        """Yield the predictions of batches of windows."""
        batch: list[Window] = []
        n_before = 0
        for window in windows:
            batch.append(window)
            if len(batch) == self.bs:
                yield self._predict_batch(batch, n_before)
                n_before, batch = n_before + len(batch), []
        if batch:
            yield self._predict_batch(batch, n_before)

    def _predict_batch(self, batch: list[Window], n_before: int) -> _Predicted:
        """Predict a batch of windows of a recording that follow `n_before` others."""
        wave = torch.stack([window.wave for window in batch])
        probs = np.zeros((len(batch), len(self.tags)))
        audible = torch.tensor([not is_silent(window, self.silence_db) for window in wave])
        if audible.any():
            mean = self._mean_probs(wave[audible], n_before)
            probs[audible.numpy()] = mean if self.calibration is None else self.calibration.apply(mean)
        return _Predicted([window.start for window in batch], [window.end for window in batch], probs, audible.tolist())

    def _mean_probs(self, wave: Tensor, n_before: int) -> np.ndarray:
        """Return probabilities (windows, tags), float64, of waves (windows, samples), averaged over the networks."""
        with torch.inference_mode(), autocast_for(self.device, self.precision):
            spec = self._to_spec.spec(wave.to(self.device))
            # Not in half precision, where rounding other weights changes probabilities by up to 0.02.
            may_fold = n_before >= MIN_FOLDED_WINDOWS and not torch.is_autocast_enabled(self.device.type)
            if self._folded is None and may_fold:
                self._folded = [fold_batch_norm(network, spec[:1]) for network in self.networks]
            networks = self._folded if self._folded is not None and may_fold else self.networks
            probs = [self.activation(network(spec).float()).cpu().double() for network in networks]
        return np.average(torch.stack(probs).numpy(), axis=0, weights=self.weights)


def weights_digest(networks: Iterable[nn.Module], text: str) -> str:
    """Return the SHA-256, as hexadecimal digits, of a text and of all weights."""
    digest = hashlib.sha256(text.encode())
    for network in networks:
        for name, tensor in network.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
