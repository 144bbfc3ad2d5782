"""Profile training steps (decoding, resampling, front end, network), with advice to shorten an epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from fatai.audio.io import load_audio
from fatai.audio.waveform import trim_silence
from fatai.data.config import ClipConfig
from fatai.data.datasets.fat2019 import FATDataset, load_dataset
from fatai.data.tables import check_readable
from fatai.errors import DataError
from fatai.experiment.adapt import adapt_recipe
from fatai.experiment.recipe import Recipe, load_recipe
from fatai.training.autocast import autocast_for, fast_layout
from fatai.training.learner import named_loss
from fatai.training.network import named_model

__all__ = ["StepProfile", "profile_step"]


@dataclass(frozen=True)
class StepProfile:
    """Milliseconds per clip of a training step, with one process that loads data.

    Attributes
    ----------
    decode_ms, resample_ms, trim_ms
        Of a whole clip; `resample_ms` is 0 where files have the sample rate of the front end.
    front_end_ms, model_ms
        Of a crop in a batch: the spectrogram, and the network forward and backward.
    n_clips
        Number of training clips.
    cache
        The setting `clips.cache` of the recipe.
    """

    decode_ms: float
    resample_ms: float
    trim_ms: float
    front_end_ms: float
    model_ms: float
    n_clips: int
    cache: str = "none"

    @property
    def read_ms(self) -> float:
        """Milliseconds to load a whole clip without a cache."""
        return self.decode_ms + self.resample_ms + self.trim_ms

    @property
    def clip_ms(self) -> float:
        """Milliseconds of all steps together."""
        return self.read_ms + self.front_end_ms + self.model_ms

    @property
    def epoch_s(self) -> float:
        """Seconds of an epoch that loads data in the main process, without a cache."""
        return self.n_clips * self.clip_ms / 1000

    def advice(self) -> str:
        """Return a sentence that names the setting to change first."""
        total = self.clip_ms
        if self.model_ms >= 0.9 * total:
            return (
                f"the network takes {self.model_ms / total:.0%}: a narrower one (--width), shorter crops (--crop-s) or "
                "a GPU would help"
            )
        current = f"(the recipe has {self.cache!r})"
        if self.front_end_ms > 0.1 * total and self.front_end_ms >= self.read_ms:
            return f"the front end takes {self.front_end_ms / total:.0%}: set clips.cache = 'features' {current}"
        if self.cache == "none":
            step = "resampling" if self.resample_ms > self.decode_ms else "reading"
            return (
                f"{step} takes {self.read_ms / total:.0%}: set clips.cache = 'auto' {current}, or raise "
                "--num-workers"
            )
        return f"reading would take {self.read_ms / total:.0%}, but the cache reads each clip only once"

    def to_text(self) -> str:
        """Return a table of the steps, the time of an epoch and the advice."""
        rows = [
            ("decode", self.decode_ms),
            ("resample", self.resample_ms),
            ("trim", self.trim_ms),
            ("front end", self.front_end_ms),
            ("network", self.model_ms),
        ]
        total = sum(ms for _, ms in rows)
        lines = [f"{step:10s} {ms:8.2f} ms per clip  {ms / total:4.0%}" for step, ms in rows]
        epoch = f"an epoch of {self.n_clips} clips, without cache and workers: {self.epoch_s:.0f} s"
        return "\n".join([*lines, epoch, self.advice()])


def profile_step(
    data: str | Path | FATDataset,
    recipe: str | Path | Recipe = "default",
    *,
    n_clips: int = 16,
    n_repeats: int = 3,
    device: str | None = None,
) -> StepProfile:
    """Measure the steps of a recipe on some clips of a dataset, on this machine.

    Parameters
    ----------
    data
        A dataset or its folder.
    recipe
        A recipe, its name or its file; what it leaves to the data is decided from them.
    n_clips
        Number of clips that are loaded and form the batch, evenly picked from the curated part.
    n_repeats
        Each time is the median of this many measurements; raise it on a busy machine.
    device
        Device of front end and network; None takes a GPU if there is one.

    Raises
    ------
    DataError
        If no clip can be read.
    """
    data = data if isinstance(data, FATDataset) else load_dataset(data)
    recipe = adapt_recipe(recipe if isinstance(recipe, Recipe) else load_recipe(recipe), data)
    settings = recipe.settings()
    paths = _readable_paths([Path(p) for p in data.curated["path"]], n_clips)
    decode = _median_ms(lambda: [load_audio(path, None) for path in paths], n_repeats)
    load = _median_ms(lambda: [load_audio(path, settings.sr) for path in paths], n_repeats)
    waves = [load_audio(path, settings.sr) for path in paths]
    front_end, model = _network_ms(recipe, settings, waves, len(data.tags), device, n_repeats)
    return StepProfile(
        decode / len(paths),
        max(0.0, load - decode) / len(paths),
        _trim_ms(waves, settings.trim_db, n_repeats) / len(paths),
        front_end / len(paths),
        model / len(paths),
        n_clips=len(data.curated),
        cache=recipe.clips.cache,
    )


def _readable_paths(paths: Sequence[Path], n: int) -> list[Path]:
    """Return up to `n` readable files, evenly picked."""
    picked = paths[:: max(1, len(paths) // (2 * n))]
    readable, errors = check_readable(picked)
    found = [path for path, is_readable in zip(picked, readable, strict=True) if is_readable][:n]
    if not found:
        raise DataError(f"none of the clips can be read; the first: {errors[0] if errors else 'there are none'}")
    return found


def _median_ms(run: Callable[[], object], n_repeats: int) -> float:
    """Return the median milliseconds of a function, after one call to warm up."""
    times = []
    for _ in range(n_repeats + 1):
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return median(times[1:])


def _trim_ms(waves: Sequence[Tensor], trim_db: float | None, n_repeats: int) -> float:
    return 0.0 if trim_db is None else _median_ms(lambda: [trim_silence(wave, trim_db) for wave in waves], n_repeats)


def _network_ms(
    recipe: Recipe, settings: ClipConfig, waves: Sequence[Tensor], n_tags: int, device_name: str | None, n_repeats: int
) -> tuple[float, float]:
    """Return milliseconds of front end and network (forward, backward) for the whole batch, without the optimizer."""
    device = torch.device(device_name or ("cuda" if torch.cuda.is_available() else "cpu"))
    batch = torch.stack([settings.fit(wave)[:settings.crop_samples] for wave in waves]).to(device)
    module = torch.nn.Sequential(settings.front_end.build(), settings.channels_module()).to(device).eval()

    def front_end() -> Tensor:
        with torch.no_grad():
            spec = module(batch)
        _synchronize(device)
        return spec

    spec = front_end()
    network = recipe.model
    model = named_model(
        network.arch, n_tags, spec.shape[1], settings, width=network.width, options=network.options
    ).to(device)
    fast_layout(model, device, recipe.precision).train()
    loss, targ = named_loss("bce", model), torch.zeros(len(batch), n_tags, device=device)

    def step() -> None:
        with autocast_for(device, recipe.precision):
            logits = model(spec)
        loss(logits, targ).backward()
        _synchronize(device)

    return _median_ms(front_end, n_repeats), _median_ms(step, n_repeats)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
