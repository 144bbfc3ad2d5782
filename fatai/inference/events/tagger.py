"""Sound of any length to events: what is heard, from when to when.

The sound is streamed through windows as long as the crops that the networks were trained on, each of which overlaps the one before. Memory
holds one batch of windows, whatever the length of the sound.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fatai.data.transforms import WaveToSpec
from fatai.data.config import ClipConfig
from fatai.errors import OptionError
from fatai.inference.events.progress_log import TaggingResult, tag_files
from fatai.inference.events.segments import Step, OverlapAverager, SoundEvent, merge_steps, threshold_of
from fatai.metrics.calibration import Calibration
from fatai.audio.stream import Sound, stream_audio
from fatai.audio.waveform import peak_db
from fatai.training.precision import autocast_for

__all__ = ["SlidingWindowTagger"]


class SlidingWindowTagger:
    """Tags sound of any length with one or several networks, averaged.

    Parameters
    ----------
    networks
        Each maps a spectrogram to logits (windows, tags).
    tags
        What the logits mean.
    settings
        How the networks' clips were read. Silence around a clip is trimmed there; a long sound is not trimmed.
    step_s
        Seconds from one window to the next, and so the finest that events are told apart in time; None is half a window.
    silence_db
        A window whose loudest sample stays below this level (dB of full scale) is silence: no tag is heard, no network asked. Networks
        that learnt from trimmed clips never heard a background alone, and take it for what they saw padded; raise this above the peaks
        of a recording's background to be spared their guesses.
    bs
        Windows in a batch.
    precision
        A name of `fatai.training.precision.PRECISIONS`.
    calibration
        What the probabilities of a window are calibrated by; silence is left at 0.
    activation
        Logits to probabilities.
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
            raise OptionError("there are no networks; a tagger needs at least one")
        step_s = settings.crop_s / 2 if step_s is None else step_s
        if not 0.01 <= step_s <= settings.crop_s:
            raise OptionError(
                f"step_s is {step_s}; expected 0.01 to {settings.crop_s:g} seconds, the length of a window"
            )
        if bs < 1:
            raise OptionError(f"bs is {bs}; expected at least one window in a batch")
        self.networks, self.tags, self.settings = [network.eval() for network in networks], tuple(tags), settings
        self.step_s, self.silence_db, self.bs, self.precision, self.activation = (
            step_s,
            silence_db,
            bs,
            precision,
            activation,
        )
        self.calibration = None if calibration is None else calibration.select(self.tags)
        self.device = next((p.device for p in networks[0].parameters()), torch.device("cpu"))
        self._to_spec = WaveToSpec(settings)

    @property
    def window_s(self) -> float:
        """Seconds of a window."""
        return self.settings.crop_s

    def tag(
        self,
        sound: Sound,
        sr: int | None = None,
        *,
        threshold: float | Mapping[str, float] = 0.5,
        top: int | None = None,
    ) -> list[SoundEvent]:
        """Events, by their starts; `pd.DataFrame(events)` is a table of them.

        Parameters
        ----------
        sound
            A path, the bytes of a sound file, or samples of shape (samples,) or (channels, samples).
        sr
            Rate of samples in Hz; None means that of the networks. Files say theirs themselves.
        threshold
            Lowest probability at which a tag counts as heard, one for all or by tag.
        top
            No more than so many tags are heard at a time, the likeliest.

        Raises
        ------
        AudioError
            If the sound cannot be read to its end; the message names the file.
        ShapeError, OptionError
            If the samples or an option are not what they should be.
        """
        return sorted(
            self.events(sound, sr, threshold=threshold, top=top),
            key=lambda event: (event.start_s, event.end_s, event.tag),
        )

    def events(
        self,
        sound: Sound,
        sr: int | None = None,
        *,
        threshold: float | Mapping[str, float] = 0.5,
        top: int | None = None,
    ) -> Iterator[SoundEvent]:
        """As `tag`, but one event after another, each as soon as it is over."""
        return merge_steps(self.steps(sound, sr), self.tags, threshold_of(threshold, self.tags), top)

    def steps(self, sound: Sound, sr: int | None = None) -> Iterator[Step]:
        """The probabilities of every step of the sound, the mean over the windows that cover it."""
        rate, size = self.settings.sr, self.settings.crop_samples
        means, end = OverlapAverager(self._step), 0
        for starts, ends, probs in self._answers(self._windows(stream_audio(sound, rate, sr_from=sr))):
            for start, end, row in zip(starts, ends, probs):
                yield from (Step(a / rate, b / rate, p) for a, b, p in means.before(start))
                means.add(start, min(end, start + size), row)
        yield from (Step(a / rate, b / rate, p) for a, b, p in means.rest(end))

    def tag_files(
        self,
        paths: Iterable[str | Path],
        out: str | Path,
        *,
        threshold: float | Mapping[str, float] = 0.5,
        top: int | None = None,
    ) -> TaggingResult:
        """Tag many files into one journal, `out`; a killed run goes on where it stopped.

        The journal has a line of JSON for each file, written when the whole file is tagged. Files that have one are skipped; those that
        could not be read are tried again.

        Raises
        ------
        DataError
            If `out` is no journal, or was begun with other networks or settings.
        """
        made_by = {**self._identity(), "threshold": threshold_of(threshold, self.tags).tolist(), "top": top}
        return tag_files(lambda path: self.tag(path, threshold=threshold, top=top), paths, out, made_by)

    def _identity(self) -> dict[str, Any]:
        """What decides the events besides their thresholds."""
        digest = weights_digest(self.networks, repr((self.tags, self.settings, self.calibration)))
        return {"networks": digest[:16], "step_s": self.step_s, "silence_db": self.silence_db}

    @property
    def _step(self) -> int:
        return max(1, round(self.step_s * self.settings.sr))

    def _windows(self, blocks: Iterable[Tensor]) -> Iterator[tuple[int, int, Tensor]]:
        """First sample, end of the sound in the window, and samples (size,); the last window ends where the sound does."""
        size, step = self.settings.crop_samples, self._step
        # `held` starts at sample `first`, no later than the last window that was given away; the next one starts `ahead` behind it.
        held, first, ahead = torch.zeros(0), 0, 0
        for block in blocks:
            held = torch.cat([held, block])
            while len(held) >= ahead + size:
                yield first + ahead, first + ahead + size, held[ahead:ahead + size]
                held, first, ahead = held[ahead:], first + ahead, step
        if ahead == 0:
            yield 0, len(held), self.settings.fit(held)
        elif len(held) > size:
            yield first + len(held) - size, first + len(held), held[-size:]

    def _answers(self, windows: Iterable[tuple[int, int, Tensor]]) -> Iterator[tuple[list[int], list[int], np.ndarray]]:
        """Starts and ends of the windows of a batch, and their probabilities (windows, tags)."""
        batch: list[tuple[int, int, Tensor]] = []
        for window in windows:
            batch.append(window)
            if len(batch) == self.bs:
                yield self._answer(batch)
                batch = []
        if batch:
            yield self._answer(batch)

    def _answer(self, batch: list[tuple[int, int, Tensor]]) -> tuple[list[int], list[int], np.ndarray]:
        starts, ends, waves = zip(*batch)
        wave = torch.stack(waves)
        probs = np.zeros((len(batch), len(self.tags)))
        heard = peak_db(wave) >= self.silence_db
        if heard.any():
            with torch.inference_mode(), autocast_for(self.device, self.precision):
                spec = self._to_spec.spec(wave[heard].to(self.device))
                each = [self.activation(network(spec).float()).double().cpu() for network in self.networks]
            said = torch.stack(each).mean(0).numpy()
            probs[heard.numpy()] = said if self.calibration is None else self.calibration.apply(said)
        return list(starts), list(ends), probs


def weights_digest(networks: Iterable[nn.Module], told: str) -> str:
    """SHA-256 of a text and of all weights."""
    digest = hashlib.sha256(told.encode())
    for network in networks:
        for name, tensor in network.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
