"""Choose where clips are read from in training: memory of the device, a cache on disk, or the sound files."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from fatai.audio.io import audio_info
from fatai.data.cache_writer import CACHES, default_cache_folder
from fatai.data.config import ClipConfig
from fatai.data.resident import memory_budget
from fatai.errors import AudioError, OptionError
from fatai.registry import did_you_mean

__all__ = ["CacheChoice", "choose_cache"]

_DISK_FRACTION = 0.5
_N_SAMPLED = 200  # clips whose lengths are read for an estimate


class CacheChoice(NamedTuple):
    """A key of `CACHES` other than "auto", and a sentence that says why it was chosen."""

    cache: str
    reason: str

    @property
    def kind(self) -> str | None:
        """Kind of the cache on disk, "wave" or "features"; None without one."""
        return {"none": None, "device": "wave", "device_features": "features"}.get(self.cache, self.cache)

    @property
    def in_memory(self) -> bool:
        """True if clips are held in the memory of the device."""
        return self.cache.startswith("device")


def find_cache_choice(
    paths: Sequence[str | Path], config: ClipConfig, cache: str, folder: str | Path | None, device: str | torch.device
) -> CacheChoice:
    """Return the choice for a key of `CACHES`, as `choose_cache` for "auto"; `OptionError` for any other text."""
    if cache not in CACHES:
        raise OptionError(f"there is no cache of kind {cache!r}; {did_you_mean(cache, list(CACHES))}")
    return choose_cache(paths, config, device, folder=folder) if cache == "auto" else CacheChoice(cache, CACHES[cache])


def check_memory(choice: CacheChoice, n_bytes: int, device: str | torch.device) -> CacheChoice:
    """Return a choice of a cache in memory if `n_bytes` fit there, else that on disk, with a warning."""
    memory = memory_budget(device)
    if n_bytes <= memory:
        return choice
    place = torch.device(device)
    reason = f"the clips take {_size(n_bytes)}, and up to {_size(memory)} may be held in the memory of {place}"
    warnings.warn(f"{reason}: they are read from the cache on disk instead", stacklevel=5)
    assert choice.kind is not None
    return CacheChoice(choice.kind, reason)


def choose_cache(
    paths: Sequence[str | Path],
    config: ClipConfig,
    device: str | torch.device = "cpu",
    *,
    folder: str | Path | None = None,
) -> CacheChoice:
    """Choose where clips are read from, as cache "auto" does.

    Waves are held in memory if they take at most a third of the free memory, or half of that of a GPU; otherwise they
    are cached on disk if they take at most half of the free space; otherwise the files are decoded. Spectrograms are
    never chosen, since a crop of them differs from the spectrogram of a crop: a result must not depend on how much
    memory happens to be free.

    Parameters
    ----------
    paths
        The sound files. The lengths of some of them are read from their headers.
    config
        Loading of clips.
    device
        Device of the batches.
    folder
        Parent folder of caches; None is the user's cache folder.

    Returns
    -------
    The choice; its `reason` has the sizes.
    """
    needed, memory = _estimated_bytes(paths, config), memory_budget(device)
    where = "the memory of the GPU" if torch.device(device).type == "cuda" else "memory"
    sizes = f"the waves take about {_size(needed)}, and up to {_size(memory)} may be held in {where}"
    if needed <= memory:
        return CacheChoice("device", sizes)
    disk = _disk_budget(Path(folder) if folder is not None else default_cache_folder())
    return CacheChoice("wave" if needed <= disk else "none", f"{sizes}, up to {_size(disk)} on disk")


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 2**30:.1f} GB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MB"


def _disk_budget(folder: Path) -> int:
    """Return the bytes that a cache may take on the disk of a folder, which need not exist; 0 if they are unknown."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return int(shutil.disk_usage(folder).free * _DISK_FRACTION)
    except OSError:
        return 0


def _estimated_bytes(paths: Sequence[str | Path], config: ClipConfig) -> int:
    """Estimate the size of the waves of all clips from the headers of some of them."""
    sampled = paths[:: max(1, len(paths) // _N_SAMPLED)]
    with ThreadPoolExecutor() as pool:
        seconds = [s for s in pool.map(_seconds, sampled) if s is not None]
    return round(sum(seconds) / max(1, len(seconds)) * len(paths) * config.sr * 2)


def _seconds(path: str | Path) -> float | None:
    """Return the length of a clip by its header; None where it cannot be read."""
    try:
        return audio_info(path).seconds
    except AudioError:
        return None
