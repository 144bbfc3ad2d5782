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
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fatai.audio.waveform import is_silent
from fatai.callbacks.out_of_memory import split_on_oom, translate_errors
from fatai.data.config import ClipConfig
from fatai.data.spectrograms import ClipSpectrograms
from fatai.distributed import SINGLE_PROCESS, ProcessGroup
from fatai.errors import AudioError, OptionError
from fatai.inference.views import ClipViews, Views
from fatai.io.ahead import read_ahead
from fatai.io.progress import track
from fatai.models import count_parameters
from fatai.models.batch_norm import fold_batch_norm
from fatai.registry import did_you_mean
from fatai.threads import may_read_ahead, network_threads
from fatai.training.autocast import autocast_for, fast_layout

__all__ = ["AVERAGES", "ClipPredictions", "Predictor"]

SHORT_S = 0.1
"""Clips with no more sound than this, in seconds and after trimming, are named in a warning: few tags show in it."""
AVERAGES = ("probs", "logits")
"""What is averaged over the views of a clip: probabilities (most systems), or logits (the gold-only plan)."""
MIN_FOLDED_CLIPS = 32
"""From this number of clips on, batch norms are folded into other layers, which takes as long as a few views."""
_BATCHES_AHEAD = 2  # batches' worth of samples that are decoded ahead
_MAX_WAITING = 8  # batches' worth of samples that may wait for views of the same length


class ClipPredictions(NamedTuple):
    """Predictions of clips, in their order.

    Attributes
    ----------
    probs
        Float64 (clips, outputs), averaged over the views of each clip; a row of NaN for a clip that cannot be read.
    errors
        Position of each unreadable clip to the message that says why.
    silent
        Positions of silent clips, as `is_silent` finds them; their rows are what the network makes of silence.
    short
        Positions of clips with at most `SHORT_S` of sound.
    """

    probs: np.ndarray
    errors: dict[int, str]
    silent: tuple[int, ...] = ()
    short: tuple[int, ...] = ()


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
        A name of `fatai.training.autocast.PRECISIONS`; lower than "fp32" is faster on devices that have it.
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
    to_spec: ClipSpectrograms | None = None
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
            object.__setattr__(self, "to_spec", ClipSpectrograms(self.settings))
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
        means, errors, marks = _ClipMeans(len(clips), self.n_outputs), dict[int, str](), _Marks([], [])
        with self._evaluating():
            dataset = _ViewDataset(clips, self.settings, self.views, self.seed)
            loader: DataLoader = DataLoader(dataset, batch_size=None, num_workers=self.num_workers)
            items = track(self._ahead(loader), desc, total=len(clips))
            # Not in half precision, where rounding other weights changes probabilities by up to 0.02.
            is_fp32 = not torch.is_autocast_enabled(torch.device(self.device or "cpu").type)
            may_fold = is_fp32 and len(clips) >= MIN_FOLDED_CLIPS
            model = None if may_fold else self.model
            for waves, index in _view_batches(items, self.bs, errors, marks):
                if model is None:
                    model = fold_batch_norm(self.model, self._spec(waves[:1]))
                # In float64: in float32 the sigmoids of logits above 17 are all 1, and tie.
                logits = split_on_oom(partial(self._logits, model), waves).cpu().double()
                probs = self.activation(logits)
                if on_views is not None:
                    on_views(index, probs.float().numpy())
                means.add(index[:, 0], probs if self.average == "probs" else logits)
        averaged = means.values()
        probs = averaged if self.average == "probs" else self.activation(averaged)
        return ClipPredictions(probs.numpy(), errors, tuple(marks.silent), tuple(marks.short))

    def _ahead(self, loader: DataLoader) -> Iterable[_Clip | str]:
        """Return the clips of a loader, decoded by a thread while the network runs, where a core is free for it."""
        if self.num_workers or len(loader) < 2 or not may_read_ahead():
            return loader
        return read_ahead(loader, _n_samples, _BATCHES_AHEAD * self.bs * self.settings.crop_samples)

    def _predict_sharded(self, clips: Sequence[str | Path | np.ndarray], desc: str) -> ClipPredictions:
        """Predict every `size`-th clip in each process and exchange the predictions."""
        mine = range(self.group.rank, len(clips), self.group.world_size)
        part = self._predict([clips[i] for i in mine], None, desc)
        probs = torch.zeros(len(clips), self.n_outputs, dtype=torch.float64)
        probs[self.group.rank::self.group.world_size] = torch.from_numpy(part.probs)
        parts = self.group.all_gather(
            (
                {mine[k]: e for k, e in part.errors.items()},
                [mine[k] for k in part.silent],
                [mine[k] for k in part.short],
            )
        )
        errors = dict(sorted(pair for part_errors, _, _ in parts for pair in part_errors.items()))
        silent, short = (tuple(sorted(i for part in parts for i in part[k])) for k in (1, 2))
        return ClipPredictions(self.group.all_reduce(probs).numpy(), errors, silent, short)

    def _logits(self, model: nn.Module, waves: Tensor) -> Tensor:
        """Return logits (views, n_outputs), float32, of waves (views, samples)."""
        return model(self._spec(waves)).float()

    def _spec(self, waves: Tensor) -> Tensor:
        """Return spectrograms (views, channels, mels, frames), on the device, of waves (views, samples)."""
        assert self.to_spec is not None
        return self.to_spec.spec(waves.to(self.device, non_blocking=True))

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        assert isinstance(self.device, torch.device)
        was_training = self.model.training
        fast_layout(self.model, self.device, self.precision).eval()
        try:
            with (
                torch.inference_mode(),
                network_threads(count_parameters(self.model)),
                autocast_for(self.device, self.precision),
                translate_errors(f"a batch of {self.bs} views"),
            ):
                yield
        finally:
            self.model.train(was_training)


class _Marks(NamedTuple):
    """Positions of silent and of short clips."""

    silent: list[int]
    short: list[int]


class _Clip(NamedTuple):
    """The views of each wave of a clip, several with `channel="each"`, and whether it is silent or short."""

    waves: list[ClipViews]
    is_silent: bool
    is_short: bool


def _n_samples(clip: _Clip | str) -> int:
    return 0 if isinstance(clip, str) else sum(views.wave.numel() for views in clip.waves)


class _ViewDataset(Dataset):
    """Views of each clip, or the message that says why the clip cannot be read."""

    def __init__(self, clips: Sequence[str | Path | np.ndarray], settings: ClipConfig, views: Views, seed: int):
        self.clips, self.settings, self.views, self.seed = clips, settings, views, seed

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, i: int) -> _Clip | str:
        try:
            waves = self._read(self.clips[i])
        except AudioError as e:
            return str(e)
        is_short = max(map(len, waves)) <= SHORT_S * self.settings.sr
        return _Clip([self._views(wave) for wave in waves], all(map(is_silent, waves)), is_short)

    def _views(self, wave: Tensor) -> ClipViews:
        # Seeded by the sound, not by the position: a clip has the same views in any order and beside any other clips.
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + zlib.crc32(wave.numpy().data)) % 2**63)
        return self.views(wave, self.settings, generator)

    def _read(self, clip: str | Path | np.ndarray) -> list[Tensor]:
        if not isinstance(clip, np.ndarray):
            return self.settings.read_each(clip)
        wave = torch.from_numpy(np.ascontiguousarray(clip, dtype=np.float32))
        return [self.settings.trim(wave)]


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


def _view_batches(
    items: Iterable[_Clip | str], bs: int, errors: dict[int, str], marks: _Marks
) -> Iterator[_ViewBatch]:
    """Pack views of equal length into batches.

    Messages of unreadable clips go to `errors`, by position, and positions of silent and short clips to `marks`.
    """
    buckets = _LengthBuckets(bs)
    for i, clip in enumerate(items):
        if isinstance(clip, str):
            errors[i] = clip
            continue
        if clip.is_silent:
            marks.silent.append(i)
        elif clip.is_short:
            marks.short.append(i)
        views = (pair for wave in clip.waves for pair in zip(wave.views(), wave.windows, strict=True))
        for number, (view, (start, stop)) in enumerate(views):
            if batch := buckets.add(view, (i, number, start, stop)):
                yield batch
    yield from buckets.flush()
