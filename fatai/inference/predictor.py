"""Predict clips with a network: cut each clip into views, predict the views in batches, average them per clip.

Each clip is read once, all its views are cut from it, and views of several clips share a batch. The prediction of a
clip depends on its sound alone: neither on the other clips, nor on its position among them, nor on the number of
workers.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fatai.callbacks.failure import split_on_oom, translate_errors
from fatai.data.config import ClipConfig
from fatai.data.transforms import WaveToSpec
from fatai.distributed import SINGLE_PROCESS, ProcessGroup
from fatai.errors import AudioError, OptionError
from fatai.inference.views import ClipViews, Views
from fatai.io.progress import track
from fatai.registry import did_you_mean
from fatai.training.precision import autocast_for, fast_layout

__all__ = ["AVERAGES", "ClipPredictions", "Predictor"]

AVERAGES = ("probs", "logits")
"""What is averaged over the views of a clip: probabilities (most systems), or logits (the gold-only plan)."""
_MAX_WAITING = 8  # batches' worth of samples that may wait for views of the same length


class ClipPredictions(NamedTuple):
    """Predictions of clips, in their order.

    Attributes
    ----------
    probs
        Float64 (clips, outputs), averaged over the views of each clip; a row of NaN for a clip that cannot be read.
    errors
        Position of each unreadable clip to the message that says why.
    """

    probs: np.ndarray
    errors: dict[int, str]


@dataclass(frozen=True, eq=False)
class Predictor:
    """Predict clips with one network by test-time augmentation.

    Memory holds one clip and a few batches of views at a time.

    Parameters
    ----------
    model
        Maps spectrograms (views, channels, mels, frames) to logits (views, n_outputs). It is run in evaluation mode and
        left in the mode it was in.
    settings
        How clips are read.
    views
        The views of a clip, from `build_views` or `VIEWS.build(...)`.
    n_outputs
        Columns of the model's output: the number of tags.
    to_spec
        The map from waves to spectrograms; None builds it from `settings`.
    activation
        Map from logits to probabilities, both (views, n_outputs).
    precision
        A name of `fatai.training.precision.PRECISIONS`; lower than "fp32" is faster on devices that have it.
    device
        Where the network runs; None takes the device of its parameters.
    bs
        Views per batch; lower it when memory is short.
    num_workers
        Processes that read clips; 0 reads in this process.
    seed
        Seed of random views; a clip has the same views for the same seed, wherever it stands in the list.
    average
        "probs" averages the probabilities of the views; "logits" averages their logits and takes the probabilities of
        that.
    group
        Processes that split the clips; each gets the predictions of all clips.

    Raises
    ------
    OptionError
        If `average` is not one of `AVERAGES`.
    """

    model: nn.Module
    settings: ClipConfig
    views: Views
    n_outputs: int
    _: KW_ONLY
    to_spec: WaveToSpec | None = None
    activation: Callable[[Tensor], Tensor] = torch.sigmoid
    precision: str = "fp32"
    device: torch.device | str | None = None
    bs: int = 64
    num_workers: int = 0
    seed: int = 0
    average: str = "probs"
    group: ProcessGroup = SINGLE_PROCESS

    def __post_init__(self) -> None:
        if self.average not in AVERAGES:
            raise OptionError(f"average is {self.average!r}; {did_you_mean(self.average, AVERAGES)}")
        if self.to_spec is None:
            object.__setattr__(self, "to_spec", WaveToSpec(self.settings))
        device = next((p.device for p in self.model.parameters()), "cpu") if self.device is None else self.device
        object.__setattr__(self, "device", torch.device(device))

    def predict(
        self,
        clips: Sequence[str | Path | np.ndarray],
        *,
        on_views: Callable[[np.ndarray, np.ndarray], None] | None = None,
        desc: str = "predicting",
    ) -> ClipPredictions:
        """Predict clips by the mean over their views.

        Parameters
        ----------
        clips
            Paths, or arrays (samples,) at the settings' rate.
        on_views
            Called with each batch of views: their index, int64 (views, 4), with the columns clip, number of the view
            within the clip, first sample and end (exclusive); and their probabilities, float32 (views, n_outputs).
            Every process then predicts all clips.
        desc
            Text beside the progress bar.
        """
        if self.group.world_size > 1 and on_views is None:
            return self._predict_sharded(clips, desc)
        return self._predict(clips, on_views, desc)

    def _predict(
        self,
        clips: Sequence[str | Path | np.ndarray],
        on_views: Callable[[np.ndarray, np.ndarray], None] | None,
        desc: str,
    ) -> ClipPredictions:
        means, errors = _ClipMeans(len(clips), self.n_outputs), dict[int, str]()
        with self._evaluating():
            dataset = _ViewDataset(clips, self.settings, self.views, self.seed)
            loader: DataLoader = DataLoader(dataset, batch_size=None, num_workers=self.num_workers)
            for waves, index in _view_batches(track(loader, desc, total=len(clips)), self.bs, errors):
                # In float64: in float32 the sigmoids of logits above 17 are all 1, and tie.
                logits = split_on_oom(self._logits, waves).cpu().double()
                probs = self.activation(logits)
                if on_views is not None:
                    on_views(index, probs.float().numpy())
                means.add(index[:, 0], probs if self.average == "probs" else logits)
        averaged = means.values()
        return ClipPredictions((averaged if self.average == "probs" else self.activation(averaged)).numpy(), errors)

    def _predict_sharded(self, clips: Sequence[str | Path | np.ndarray], desc: str) -> ClipPredictions:
        """Predict every `size`-th clip in each process and exchange the predictions."""
        mine = range(self.group.rank, len(clips), self.group.world_size)
        part = self._predict([clips[i] for i in mine], None, desc)
        probs = torch.zeros(len(clips), self.n_outputs, dtype=torch.float64)
        probs[self.group.rank::self.group.world_size] = torch.from_numpy(part.probs)
        parts = self.group.all_gather({mine[k]: error for k, error in part.errors.items()})
        errors = dict(sorted(pair for part_errors in parts for pair in part_errors.items()))
        return ClipPredictions(self.group.all_reduce(probs).numpy(), errors)

    def _logits(self, waves: Tensor) -> Tensor:
        """Return logits (views, n_outputs), float32, of waves (views, samples)."""
        assert self.to_spec is not None
        return self.model(self.to_spec.spec(waves.to(self.device, non_blocking=True))).float()

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        assert isinstance(self.device, torch.device)
        was_training = self.model.training
        fast_layout(self.model, self.device, self.precision).eval()
        try:
            with (
                torch.inference_mode(),
                autocast_for(self.device, self.precision),
                translate_errors(f"a batch of {self.bs} views"),
            ):
                yield
        finally:
            self.model.train(was_training)


class _ViewDataset(Dataset):
    """Views of each clip, or the message that says why the clip cannot be read."""

    def __init__(self, clips: Sequence[str | Path | np.ndarray], settings: ClipConfig, views: Views, seed: int):
        self.clips, self.settings, self.views, self.seed = clips, settings, views, seed

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, i: int) -> ClipViews | str:
        try:
            wave = self._read(self.clips[i])
        except AudioError as e:
            return str(e)
        # Seeded by the sound, not by the position: a clip has the same views in any order and beside any other clips.
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + zlib.crc32(wave.numpy().data)) % 2**63)
        return self.views(wave, self.settings, generator)

    def _read(self, clip: str | Path | np.ndarray) -> Tensor:
        if not isinstance(clip, np.ndarray):
            return self.settings.read(clip)
        wave = torch.from_numpy(np.ascontiguousarray(clip, dtype=np.float32))
        return self.settings.trim(wave)


class _ClipMeans:
    """Means of rows (clips, outputs), in float64 on the CPU."""

    def __init__(self, n_clips: int, n_outputs: int):
        self._sums = torch.zeros(n_clips, n_outputs, dtype=torch.float64)
        self._counts = torch.zeros(n_clips, dtype=torch.float64)

    def add(self, clips: np.ndarray, rows: Tensor) -> None:
        """Add rows (views, outputs) to the clips at the positions `clips` (views,)."""
        positions = torch.from_numpy(clips)
        self._sums.index_add_(0, positions, rows)
        self._counts.index_add_(0, positions, torch.ones(len(positions), dtype=torch.float64))

    def values(self) -> Tensor:
        """Return the means (clips, outputs); NaN for clips without rows."""
        return self._sums / self._counts[:, None]


class _ViewBatch(NamedTuple):
    """Waves (views, samples) and their positions (views, 4): clip, view number, first sample, end (exclusive)."""

    waves: Tensor
    positions: np.ndarray


class _LengthBuckets:
    """Views that wait for others of their length.

    A batch has at most `bs` views, fewer of long ones: no more samples than `bs` views of the shortest length so far.
    When more than a few batches wait, the fullest goes.
    """

    def __init__(self, bs: int):
        self._bs, self._shortest, self._waiting_samples = bs, 0, 0
        self._buckets: dict[int, list[tuple[Tensor, tuple[int, int, int, int]]]] = {}

    def add(self, view: Tensor, index: tuple[int, int, int, int]) -> _ViewBatch | None:
        """Add a view (samples,) and return the batch that is ready thereby, if any."""
        samples = len(view)
        self._shortest = min(self._shortest or samples, samples)
        # A copy: a view that waits must not keep the whole of a long clip in memory.
        self._buckets.setdefault(samples, []).append((view.clone(), index))
        self._waiting_samples += samples
        if len(self._buckets[samples]) >= max(1, self._bs * self._shortest // samples):
            return self._pop(samples)
        if self._waiting_samples > _MAX_WAITING * self._bs * self._shortest:
            return self._pop(max(self._buckets, key=lambda length: length * len(self._buckets[length])))
        return None

    def flush(self) -> Iterator[_ViewBatch]:
        """Yield what still waits, the shortest views first."""
        for samples in sorted(self._buckets):
            yield self._pop(samples)

    def _pop(self, samples: int) -> _ViewBatch:
        views = self._buckets.pop(samples)
        self._waiting_samples -= samples * len(views)
        return _ViewBatch(torch.stack([view for view, _ in views]), np.array([index for _, index in views]))


def _view_batches(items: Iterable[ClipViews | str], bs: int, errors: dict[int, str]) -> Iterator[_ViewBatch]:
    """Pack views of equal length into batches; messages of unreadable clips go to `errors`, by position."""
    buckets = _LengthBuckets(bs)
    for i, clip in enumerate(items):
        if isinstance(clip, str):
            errors[i] = clip
            continue
        for number, (view, (start, stop)) in enumerate(zip(clip.views(), clip.windows, strict=True)):
            if batch := buckets.add(view, (i, number, start, stop)):
                yield batch
    yield from buckets.flush()
