"""Features, and probabilities of tags where there are any, of windows of sound by a frozen network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fatai.audio.stream import Sound, stream_audio
from fatai.data.config import ClipConfig
from fatai.data.spectrograms import ClipSpectrograms
from fatai.errors import OptionError
from fatai.inference.events.tagger import weights_digest
from fatai.inference.events.windows import cut_windows
from fatai.models.base import SpectrogramModel, in_float32
from fatai.models.multi_task import TwoHeadModel
from fatai.training.autocast import autocast_for

__all__ = ["EncodedWindows", "WindowEncoder"]


class EncodedWindows(NamedTuple):
    """Features (windows, features) and probabilities (windows, tags) of windows, both float32."""

    features: np.ndarray
    probs: np.ndarray


@dataclass(frozen=True)
class WindowEncoder:
    """A frozen network that maps windows to features and to probabilities of its tags.

    Parameters
    ----------
    model
        A `SpectrogramModel`, as all of `MODELS` are, with or without a second head.
    settings
        How its training clips were read; a window is as long as their crop. Recordings are not trimmed.
    tags
        Names of its outputs; empty for a network whose outputs have no use, such as published weights.
    precision
        A name of `fatai.training.autocast.PRECISIONS`.

    Raises
    ------
    OptionError
        If the model has no features, or `channel` of the settings is "each".
    """

    model: nn.Module
    settings: ClipConfig
    tags: Sequence[str] = ()
    precision: str = "fp32"

    def __post_init__(self) -> None:
        inner = self._inner
        if not isinstance(inner, SpectrogramModel):
            raise OptionError(
                f"the model is a {type(inner).__name__}; expected a SpectrogramModel, which has embed(spec)"
            )
        self.settings.check_one_wave()
        self.model.eval()
        object.__setattr__(self, "tags", tuple(self.tags))

    @property
    def _inner(self) -> nn.Module:
        return self.model.model if isinstance(self.model, TwoHeadModel) else self.model

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    @cached_property
    def _to_spec(self) -> ClipSpectrograms:
        return ClipSpectrograms(self.settings)

    @cached_property
    def n_features(self) -> int:
        """Number of features of a window."""
        return self.encode(torch.zeros(1, self.settings.crop_samples)).features.shape[1]

    def digest(self) -> str:
        """Return the SHA-256 of weights, clip settings and tags, in hexadecimal."""
        return weights_digest([self.model], repr((self.settings, self.tags)))

    def encode(self, waves: Tensor) -> EncodedWindows:
        """Compute features and probabilities of waves (windows, samples) at `settings.sr` Hz."""
        inner = self._inner
        assert isinstance(inner, SpectrogramModel)
        with torch.inference_mode(), autocast_for(self.device, self.precision):
            features = inner.embed(self._to_spec.spec(waves.to(self.device)))
            if self.tags:
                logits = in_float32(inner.classify, features)[:, :len(self.tags)]
            else:
                logits = features.new_zeros(len(features), 0)
        return EncodedWindows(features.float().cpu().numpy(), logits.float().sigmoid().cpu().numpy())

    def encode_sound(self, sound: Sound, sr: int | None = None) -> EncodedWindows:
        """Encode the windows of a whole sound, one after another: an example to search for.

        Parameters
        ----------
        sound, sr
            As in `SlidingWindowTagger.tag`; errors are the same.
        """
        blocks = stream_audio(sound, self.settings.sr, sr_from=sr, channel=self.settings.channel)
        windows = cut_windows(blocks, self.settings, self.settings.crop_samples)
        parts = [self.encode(window.wave[None]) for window in windows]
        return EncodedWindows(*(np.concatenate(values) for values in zip(*parts, strict=True)))
