"""Where the time of an epoch goes: decoding, resampling, front end, network; and what would make it shorter."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from fatai.data.config import ClipConfig
from fatai.data.datasets.fat2019 import FATDataset, load_dataset
from fatai.data.tables import check_readable
from fatai.errors import DataError
from fatai.experiment.recipe import Recipe, load_recipe
from fatai.audio.io import load_audio
from fatai.audio.waveform import trim_silence
from fatai.training.learner import named_loss, named_model
from fatai.training.precision import autocast_for, fast_layout

__all__ = ["StepProfile", "profile_step"]


@dataclass(frozen=True)
class StepProfile:
    """Milliseconds for each clip of a training step, on one thread of reading.

    Attributes
    ----------
    decode, resample, trim
        Of a whole clip; `resample` is 0 where files have the front end's rate.
    front_end, model
        Of a crop within a batch: the spectrogram, and the network forward and backward.
    clips
        Training clips of the data set.
    cache
        What the recipe caches.
    """

    decode: float
    resample: float
    trim: float
    front_end: float
    model: float
    clips: int
    cache: str = "none"

    @property
    def reading(self) -> float:
        """Of a whole clip, without a cache."""
        return self.decode + self.resample + self.trim

    @property
    def epoch_s(self) -> float:
        """Seconds of an epoch that reads in the main process, without a cache."""
        return self.clips * (self.reading + self.front_end + self.model) / 1000

    def advice(self) -> str:
        """Which setting to change first."""
        whole = self.reading + self.front_end + self.model
        if self.model >= 0.9 * whole:
            return f"the network takes {self.model / whole:.0%}: a narrower one (--width), shorter crops (--crop-s) or a GPU would help"
        cached = f"(the recipe has {self.cache!r})"
        if self.front_end > 0.1 * whole and self.front_end >= self.reading:
            return f"the front end takes {self.front_end / whole:.0%}: set clips.cache = 'features' {cached}"
        if self.cache == "none":
            what = "resampling" if self.resample > self.decode else "reading"
            return f"{what} takes {self.reading / whole:.0%}: set clips.cache = 'wave' or 'features' {cached}, or raise --num-workers"
        return f"reading would take {self.reading / whole:.0%}; the cache does that once"

    def to_text(self) -> str:
        rows = [
            ("decode", self.decode), ("resample", self.resample), ("trim", self.trim), ("front end", self.front_end),
            ("network", self.model),
        ]
        whole = sum(ms for _, ms in rows)
        lines = [f"{what:10s} {ms:8.2f} ms a clip  {ms / whole:4.0%}" for what, ms in rows]
        return "\n".join(
            [*lines, f"an epoch of {self.clips} clips, uncached, without workers: {self.epoch_s:.0f} s", self.advice()]
        )


def profile_step(
    data: str | Path | FATDataset,
    recipe: str | Path | Recipe = "ninth",
    *,
    clips: int = 16,
    rounds: int = 3,
    device: str | None = None,
) -> StepProfile:
    """Measure a data set with a recipe on this machine, for a few clips.

    Parameters
    ----------
    clips
        How many are read, and how many make the batch; evenly picked from the curated part.
    rounds
        Each number is the median of so many.

    Raises
    ------
    DataError
        If no clip can be read.
    """
    data = data if isinstance(data, FATDataset) else load_dataset(data)
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    settings = recipe.settings()
    paths = _some([Path(p) for p in data.curated["path"]], clips)
    own = _ms(lambda: [load_audio(path, None) for path in paths], rounds)
    loaded = _ms(lambda: [load_audio(path, settings.sr) for path in paths], rounds)
    waves = [load_audio(path, settings.sr) for path in paths]
    trim_db = settings.trim_db
    trim = 0.0 if trim_db is None else _ms(lambda: [trim_silence(wave, trim_db) for wave in waves], rounds)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    batch = torch.stack([settings.fit(wave)[:settings.crop_samples] for wave in waves]).to(where)
    front_end, model = _network_ms(settings, recipe, batch, len(data.tags), where, rounds)
    each = 1 / len(paths)
    resample = max(0.0, loaded - own)
    return StepProfile(
        own * each,
        resample * each,
        trim * each,
        front_end * each,
        model * each,
        clips=len(data.curated),
        cache=recipe.clips.cache,
    )


def _some(paths: Sequence[Path], n: int) -> list[Path]:
    """`n` of the files that open, evenly picked."""
    good, faults = check_readable(paths[:: max(1, len(paths) // (2 * n))])
    opened = [p for p, opens in zip(paths[:: max(1, len(paths) // (2 * n))], good) if opens][:n]
    if not opened:
        raise DataError(f"none of the clips can be read; the first: {faults[0] if faults else 'there are none'}")
    return opened


def _ms(work: Callable[[], object], rounds: int) -> float:
    """Median milliseconds, after one round that isn't counted."""
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - started))
    return median(times[1:])


def _network_ms(
    settings: ClipConfig, recipe: Recipe, batch: torch.Tensor, n_tags: int, device: torch.device, rounds: int,
) -> tuple[float, float]:
    """Milliseconds of the front end, and of a training step of the network without its optimiser, for the whole batch."""
    module = torch.nn.Sequential(settings.front_end.build(), settings.channels_module()).to(device).eval()

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def spectrogram() -> torch.Tensor:
        with torch.no_grad():
            made = module(batch)
        finish()
        return made

    spec = spectrogram()
    network = recipe.model
    model = named_model(
        network.arch, n_tags, spec.shape[1], settings.front_end, width=network.width, options=network.options
    ).to(device)
    fast_layout(model, device, recipe.precision).train()
    loss, targ = named_loss("bce", model), torch.zeros(len(batch), n_tags, device=device)

    def step() -> None:
        with autocast_for(device, recipe.precision):
            logits = model(spec)
        loss(logits, targ).backward()
        finish()

    return _ms(spectrogram, rounds), _ms(step, rounds)
