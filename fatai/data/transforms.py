"""Transforms from files to batches: load a clip, crop it, convert batches to spectrograms.

Conventions: a wave is float32 in [-1, 1], shape (samples,), with a batch in front (batch, samples); `ClipConfig` holds
the sample rate, crop length and padding. Item transforms run on the CPU, `WaveToSpec` on the batch's device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.data.all import Transform
from torch import Tensor

from fatai.data.cache import CachedClip, ClipCache
from fatai.data.config import ClipConfig
from fatai.data.spectrograms import ClipSpectrograms
from fatai.data.tensors import TensorFrames, TensorSpec, TensorWave

__all__ = ["CenterCrop", "LoadClip", "RandomCrop", "WaveToSpec"]


def _read_crop(clip: CachedClip, start: int, size: int, config: ClipConfig) -> TensorWave | TensorFrames:
    """Read part of a cached clip; a wave that is shorter than a crop is padded."""
    crop = clip.crop(start, size)
    return TensorWave(config.fit(crop), sr=config.sr) if clip.is_wave else TensorFrames(crop)


class LoadClip(Transform):
    """Load a path, or an array of samples at the rate of `config`, as a trimmed `TensorWave`.

    A path in the cache is opened as a `CachedClip`, without decoding.

    Parameters
    ----------
    config
        Sample rate and trimming.
    cache
        Paths in it are not decoded; None decodes every file.
    """

    input_types = (str, Path, np.ndarray)

    def __init__(self, config: ClipConfig, cache: ClipCache | None = None):
        super().__init__()
        config.check_one_wave()
        self.config, self.cache = config, cache

    def _load(self, path: str) -> TensorWave | CachedClip:
        if self.cache is not None and path in self.cache:
            return self.cache.clip(path)
        return TensorWave(self.config.read(path), sr=self.config.sr)

    def encodes(self, path: str):
        """Load or open a file."""
        return self._load(path)

    def encodes(self, path: Path):  # type: ignore[no-redef]  # noqa: F811 - fastai dispatches on the annotation
        """Load or open a file."""
        return self._load(str(path))

    def encodes(self, samples: np.ndarray):  # type: ignore[no-redef]  # noqa: F811
        """Trim an array of samples, shape (samples,)."""
        wave = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
        return TensorWave(self.config.trim(wave), sr=self.config.sr)


class RandomCrop(Transform):
    """Crop `crop_s` seconds at a random start, in training only; shorter clips are padded first.

    Parameters
    ----------
    config
        Crop length and padding.
    """

    order, split_idx = 6, 0

    def __init__(self, config: ClipConfig):
        super().__init__()
        self.config = config

    def start(self, spare: int) -> int:
        """Draw the start of a crop, from 0 to `spare` inclusive, the samples or frames by which the clip is longer."""
        return int(torch.randint(spare + 1, ()))

    def encodes(self, wave: TensorWave):
        """Crop a wave (samples,) to (crop_samples,)."""
        padded, size = self.config.fit(wave), self.config.crop_samples
        start = self.start(padded.shape[-1] - size)
        return padded[..., start:start + size]

    def encodes(self, clip: CachedClip):  # type: ignore[no-redef]  # noqa: F811 - fastai dispatches on the annotation
        """Crop a cached clip to (crop_samples,) or (rows, crop_frames)."""
        size = min(len(clip), self.config.crop_samples if clip.is_wave else self.config.crop_frames)
        return _read_crop(clip, self.start(len(clip) - size), size, self.config)


class CenterCrop(RandomCrop):
    """Crop the middle `crop_s` seconds, in validation and where the split is not known."""

    order, split_idx = 6, 1

    def start(self, spare: int) -> int:
        """Return half of `spare`, the samples or frames by which the clip is longer."""
        return spare // 2

    def __call__(self, x: Any, split_idx: int | None = None, **kwargs: Any) -> Any:
        """Crop also where the split is not known: in the first item that fastai asks for and `DataBlock.summary`."""
        return super().__call__(x, split_idx=self.split_idx if split_idx is None else split_idx, **kwargs)


class WaveToSpec(Transform, ClipSpectrograms):
    """Convert waves (batch, samples), or cached features (batch, mels, frames), to a `TensorSpec` on their device.

    Parameters
    ----------
    config
        Front end and channels.

    Attributes
    ----------
    deferred
        True leaves the next batch of waves as it is, for augmentations that render it after they have changed it.
    """

    order = 0
    deferred = False

    def __init__(self, config: ClipConfig):
        Transform.__init__(self)
        ClipSpectrograms.__init__(self, config)

    def encodes(self, wave: TensorWave):
        """Convert waves to spectrograms (batch, channels, mels, frames) that carry their waves."""
        if self.deferred:
            self.deferred = False  # for one batch: an error in training must not change what other loops get
            return wave
        return TensorSpec(self.spec(wave.as_subclass(Tensor)), front_end=self.config.front_end, wave=wave)

    def encodes(self, frames: TensorFrames):  # type: ignore[no-redef]  # noqa: F811 - fastai dispatches on the annotation
        """Convert cached features to spectrograms (batch, channels, mels, frames)."""
        self.deferred = False
        spec = self.run(self.module[1], frames.as_subclass(Tensor))
        return TensorSpec(spec, front_end=self.config.front_end)
