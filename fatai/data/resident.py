"""`ResidentClips`: the clips of a cache as one flat tensor in the memory of a device, from which batches are gathered.

Waves are int16 like those on disk, half the size of single precision: the crops are those of the disk cache to the last
bit, which half precision would not give. Features are half precision.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

from fatai.data.cache import INT16_STEP, ClipCache
from fatai.data.config import ClipConfig
from fatai.data.tensors import TensorFrames, TensorWave

__all__ = ["ResidentClips", "available_memory"]

_MEMORY_FRACTION = {"cpu": 1 / 3, "cuda": 1 / 2}


class ResidentClips:
    """Clips of one kind in the memory of a device.

    Parameters
    ----------
    cache
        The clips on disk. Those that could not be read have no values.
    config
        Crop length and padding.
    device
        Device of the tensor.

    Attributes
    ----------
    values
        int16 (samples of all clips,), or float16 (frames of all clips, rows).
    lengths
        Samples or frames of each clip.
    crop_size
        Samples or frames of a crop.
    """

    def __init__(self, cache: ClipCache, config: ClipConfig, device: str | torch.device = "cpu"):
        self.cache, self.config = cache, config
        self.is_wave = cache.kind == "wave"
        self.crop_size = config.crop_samples if self.is_wave else config.crop_frames
        self.lengths: list[int] = cache.lengths.tolist()
        self._offsets: list[int] = np.concatenate([[0], np.cumsum(cache.lengths)]).tolist()
        shape = (self._offsets[-1],) if self.is_wave else (self._offsets[-1], cache.rows)
        self.values = torch.empty(shape, dtype=torch.int16 if self.is_wave else torch.float16, device=device)
        for i, (start, length) in enumerate(zip(self._offsets, self.lengths, strict=False)):
            if length:
                self.values[start:start + length].copy_(torch.from_numpy(np.array(cache.clip(i).values)))

    @classmethod
    def load(cls, cache: ClipCache, config: ClipConfig, device: str | torch.device = "cpu") -> ResidentClips:
        """Return the clips of a cache; other loaders of the same files in this process share their memory."""
        device = torch.device(device)
        key = (str(device), str(cache.folder), config, tuple(cache.paths), tuple(cache.names))
        found = _LOADED.get(key)
        if found is None:
            found = _LOADED[key] = cls(cache, config, device)
        return found

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes."""
        return self.values.nbytes

    def positions(self, paths: Sequence[str | Path]) -> list[int] | None:
        """Return the position of each clip, or None unless all of them are in memory."""
        try:
            found = [self.cache.position(path) for path in paths]
        except KeyError:
            return None
        return found if all(self.lengths[i] for i in found) else None

    def spare(self, i: int) -> int:
        """Return the samples or frames by which clip `i` is longer than a crop, at least 0."""
        return max(0, self.lengths[i] - self.crop_size)

    def crops(self, clips: Sequence[int], starts: Sequence[int]) -> TensorWave | TensorFrames:
        """Gather a crop of each clip; waves that are shorter than a crop are padded.

        Parameters
        ----------
        clips
            Positions of the clips of the batch.
        starts
            First sample or frame of each crop within its clip, from 0 to `spare`.

        Returns
        -------
        On the device of the clips, float32: waves (batch, crop_samples), or features (batch, rows, crop_frames).
        """
        first = [self._offsets[i] + start for i, start in zip(clips, starts, strict=True)]
        if self.is_wave:
            return TensorWave(self._waves(clips, first), sr=self.config.sr)
        return TensorFrames(self._frames(first))

    def _waves(self, clips: Sequence[int], first: Sequence[int]) -> Tensor:
        size, values = self.crop_size, self.values
        wave = torch.empty(len(first), size, device=values.device)
        whole = [k for k, i in enumerate(clips) if self.lengths[i] >= size]
        for k in set(range(len(clips))) - set(whole):
            start, length = first[k], self.lengths[clips[k]]
            wave[k] = self.config.fit(values[start:start + length] * INT16_STEP)
        if values.device.type == "cpu":
            for k in whole:  # one by one: a crop is still in the core's cache when it is scaled
                wave[k].copy_(values[first[k]:first[k] + size]).mul_(INT16_STEP)
        elif whole:
            rows = torch.tensor(whole).to(values.device, non_blocking=True)
            wave[rows] = self._gather([first[k] for k in whole]).float().mul_(INT16_STEP)
        return wave

    def _frames(self, first: Sequence[int]) -> Tensor:
        if self.values.device.type != "cpu":
            return self._gather(first).float()
        frames = torch.empty(len(first), self.values.shape[1], self.crop_size)
        # Contiguous, unlike a gathered batch: its channels are repeated in a fifth of the time.
        for k, start in enumerate(first):
            frames[k].copy_(self.values[start:start + self.crop_size].T)
        return frames

    def _gather(self, first: Sequence[int]) -> Tensor:
        """Return the values of crops of the full size: (batch, samples) or (batch, rows, frames)."""
        index = torch.tensor(first).to(self.values.device, non_blocking=True)
        return self.values.unfold(0, self.crop_size, 1)[index]


# Loaders of several folds share their clips: the values live as long as one of them.
_LOADED: weakref.WeakValueDictionary[tuple, ResidentClips] = weakref.WeakValueDictionary()


def memory_budget(device: str | torch.device) -> int:
    """Return the bytes that clips may take on a device: part of its free memory, shared by the processes there."""
    device = torch.device(device)
    fraction = _MEMORY_FRACTION["cuda" if device.type == "cuda" else "cpu"]
    processes = 1 if device.type == "cuda" else int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return int(available_memory(device) * fraction / processes)


def available_memory(device: str | torch.device = "cpu", group: str | Path = "/sys/fs/cgroup") -> int:
    """Return the free memory of a device in bytes; on the CPU within the limit of the container.

    Parameters
    ----------
    device
        A CUDA device, or any other, for which the memory of the machine counts.
    group
        Folder of the control group; systems without one have no limit.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    try:
        limit, used = (int((Path(group) / name).read_text()) for name in ("memory.max", "memory.current"))
        parts = dict(line.split() for line in (Path(group) / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no control group, or a limit of "max"
        return free
    cached = int(parts.get("inactive_file", 0))  # of files that were read, such as sounds: given up when needed
    return max(0, min(free, limit - used + cached))
