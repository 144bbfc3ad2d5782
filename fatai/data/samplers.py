"""Samplers of training clips: batches of similar length, balanced tags, mixtures of sources, shards of processes.

All are torch samplers: `len()` is the number of draws or batches in an epoch, and every iteration draws a new epoch
from `generator`, or without one from torch's global random state. `LengthGroupedBatchSampler` yields batches (lists of
positions) for `DataLoader(batch_sampler=...)`, the others positions for `DataLoader(sampler=...)`; `SampledDL` uses
either in fastai, and `ShardedSampler` splits either over processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Generator
from torch.utils.data import Sampler, WeightedRandomSampler

from fatai.data.clip_loader import ClipDL
from fatai.errors import OptionError, ShapeError

__all__ = [
    "MIXTURE_WEIGHTS",
    "BalancedSampler",
    "LengthGroupedBatchSampler",
    "MixtureSampler",
    "SampledDL",
    "ShardedSampler",
    "padding_fraction",
]

MIXTURE_WEIGHTS: dict[str, dict[str, float]] = {
    "auxiliary_016": {"noisy": 0.20, "curated": 0.80},
    "auxiliary_019": {"noisy": 0.20, "curated": 0.80},
    "corr_noisy_003": {"noisy": 0.10, "corrected": 0.20, "curated": 0.70},
    "corr_noisy_004": {"noisy": 0.07, "corrected": 0.33, "curated": 0.60},
    "corr_noisy_007": {"noisy": 0.01, "corrected": 0.42, "curated": 0.57},
    "corrections_002": {"noisy": 0.33, "curated": 0.67},
    "corrections_003": {"noisy": 0.33, "curated": 0.67},
}
"""Weights of the sources in the experiments of the 1st place (argus-freesound); an epoch is 32,768 draws."""


def _seeded(generator: Generator | None) -> Generator:
    """Return the generator, or a new one that is seeded from torch's global random state."""
    if generator is not None:
        return generator
    return Generator().manual_seed(int(torch.empty((), dtype=torch.int64).random_()))


class LengthGroupedBatchSampler(Sampler[list[int]]):
    """Batches of clips of similar length, to reduce padding; each clip occurs once per epoch.

    Clips are shuffled and split into pools of `pool` batches; each pool is sorted by length and cut into batches, and
    the batches are shuffled. All have `bs` clips, except for a smaller one at the end. A pool adds at most bs x (its
    longest - its shortest) of padding, since the length ranges of its sorted batches don't overlap.

    Parameters
    ----------
    lengths
        Length of each clip in any unit, shape (clips,).
    bs
        Batch size.
    pool
        Batches in a pool: more reduce padding, fewer mix clips better. None sorts all clips together.
    shuffle
        False yields the same batches each time, the longest first, so that insufficient memory shows at once.
    generator
        Source of the draws; None uses torch's global random state.

    Raises
    ------
    ShapeError
        If `lengths` is not one-dimensional.
    OptionError
        If `bs` or `pool` is below 1.
    """

    def __init__(
        self, lengths: Sequence[float] | np.ndarray, bs: int, *, pool: int | None = 16, shuffle: bool = True,
        generator: Generator | None = None,
    ):
        self.lengths = torch.as_tensor(np.asarray(lengths))
        if self.lengths.ndim != 1:
            raise ShapeError(f"lengths have shape {tuple(self.lengths.shape)}; expected one number for each clip")
        if bs < 1 or (pool is not None and pool < 1):
            raise OptionError(f"bs={bs}, pool={pool}; expected at least 1 clip in a batch and 1 batch in a pool")
        self.bs, self.pool, self.shuffle, self.generator = bs, pool, shuffle, generator

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.bs)

    def __iter__(self) -> Iterator[list[int]]:
        if not self.shuffle:
            yield from (b.tolist() for b in self.lengths.argsort(descending=True, stable=True).split(self.bs))
            return
        generator = _seeded(self.generator)
        order = torch.randperm(len(self.lengths), generator=generator)
        pools = order.split(self.bs * self.pool) if self.pool is not None else (order,)
        batches = [b for p in pools for b in p[self.lengths[p].argsort()].split(self.bs)]
        # Only the very last batch may be smaller: loaders that count to bs would otherwise cut at the wrong positions.
        full = [b for b in batches if len(b) == self.bs]
        rest = [b for b in batches if len(b) < self.bs]
        yield from (full[i].tolist() for i in torch.randperm(len(full), generator=generator).tolist())
        yield from (b.tolist() for b in rest)


def padding_fraction(lengths: Sequence[float] | np.ndarray, batches: Sequence[Sequence[int]]) -> float:
    """Compute the fraction of padding if each batch is padded to its longest clip.

    Parameters
    ----------
    lengths
        Length of each clip, shape (clips,).
    batches
        Positions of the clips of each batch.

    Returns
    -------
    A fraction from 0 to 1; 0 without batches.

    Examples
    --------
    >>> padding_fraction([1, 3, 4, 4], [[0, 1], [2, 3]])  # 2 of 2 x 3 + 2 x 4
    0.14285714285714285
    """
    values = np.asarray(lengths, dtype=float)
    total = sum(values[list(b)].max() * len(b) for b in batches)
    return float(sum((values[list(b)].max() - values[list(b)]).sum() for b in batches) / total) if total else 0.0


class BalancedSampler(Sampler[int]):
    """Draws that balance tags, so that rare tags occur as often as frequent ones, up to a maximum number of repeats.

    With `max_repeats`, the tags take turns in a new random order each round, and the clips of each tag in a random
    order of their own that restarts when it is used up, as in PANNs. A clip is drawn at most `max_repeats` times per
    epoch, also if it has several tags; a tag without a clip left is skipped. With `max_repeats=None` the draws are
    independent, by torch's WeightedRandomSampler: a uniform tag, then a uniform clip of it. Clips without a tag are not
    drawn.

    Parameters
    ----------
    targ
        Multi-hot targets, shape (clips, tags); a tag counts where it is above 0.
    n
        Draws in an epoch; None takes the number of clips that have a tag.
    max_repeats
        At least 1, where every clip with a tag is drawn exactly once. Lower it if rare clips are overfitted; None sets
        no maximum.
    generator
        Source of the draws; None uses torch's global random state.

    Raises
    ------
    ShapeError
        If `targ` is not two-dimensional.
    OptionError
        If `n` is more than `max_repeats` draws of every clip, or no clip has a tag.
    """

    def __init__(
        self, targ: np.ndarray, *, n: int | None = None, max_repeats: int | None = 5, generator: Generator | None = None
    ):
        positive = np.asarray(targ) > 0
        if positive.ndim != 2:
            raise ShapeError(f"targ has shape {positive.shape}; expected (clips, tags)")
        n_tagged = int(positive.any(1).sum())
        self.n = n_tagged if n is None else n
        self.max_repeats, self.generator = max_repeats, generator
        self._check_draws(n, n_tagged)
        used = positive[:, positive.any(0)]
        self.clips_of_tag = [np.flatnonzero(column) for column in used.T]
        self.weights = (used / np.maximum(used.sum(0), 1)).sum(1)

    def _check_draws(self, n: int | None, n_tagged: int) -> None:
        if self.max_repeats is None:
            if self.n < 0 or (self.n and not n_tagged):
                raise OptionError(f"n={n} draws of {n_tagged} clips with tags; expected n >= 0 and at least one clip")
        elif self.max_repeats < 1 or not 0 <= self.n <= n_tagged * self.max_repeats:
            raise OptionError(
                f"n={n}, max_repeats={self.max_repeats}; expected at least 1 repeat, and at most {n_tagged} clips with "
                f"tags x max_repeats = {n_tagged * max(0, self.max_repeats)} draws"
            )

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        generator = _seeded(self.generator)
        if self.max_repeats is not None:
            yield from self._capped_draws(self.max_repeats, generator)
        elif self.n:
            yield from WeightedRandomSampler(self.weights.tolist(), self.n, generator=generator)

    def _capped_draws(self, max_repeats: int, generator: Generator) -> Iterator[int]:
        remaining = {int(c): max_repeats for clips in self.clips_of_tag for c in clips}
        queues: list[list[int]] = [[] for _ in self.clips_of_tag]
        tags: list[int] = []
        for _ in range(self.n):
            clip = None
            while clip is None:
                tags = tags or torch.randperm(len(self.clips_of_tag), generator=generator).tolist()
                clip = self._next_clip(tags.pop(), queues, remaining, generator)
            remaining[clip] -= 1
            yield clip

    def _next_clip(
        self, tag: int, queues: list[list[int]], remaining: dict[int, int], generator: Generator
    ) -> int | None:
        """Return the next clip of a tag with draws remaining; None if there is none."""
        while queues[tag]:
            clip = queues[tag].pop()
            if remaining[clip]:
                return clip
        free = [int(c) for c in self.clips_of_tag[tag] if remaining[int(c)]]
        if not free:
            return None
        queues[tag] = [free[i] for i in torch.randperm(len(free), generator=generator).tolist()]
        return queues[tag].pop()


class MixtureSampler(Sampler[int]):
    """Draws with replacement from several sources with given weights, as the 1st place mixed curated and noisy clips.

    Parameters
    ----------
    sources
        Source of each clip, shape (clips,).
    weights
        Probability of each source; they add up to 1. `MIXTURE_WEIGHTS` has those of the 1st place.
    n
        Draws in an epoch.
    generator
        Source of the draws; None uses torch's global random state.

    Raises
    ------
    OptionError
        If the weights don't add up to 1, or a source with a weight has no clips.
    """

    def __init__(
        self,
        sources: Sequence[str],
        weights: Mapping[str, float],
        *,
        n: int = 32768,
        generator: Generator | None = None,
    ):
        clips_of: dict[str, list[int]] = {}
        for i, source in enumerate(sources):
            clips_of.setdefault(source, []).append(i)
        if any(not weight >= 0 for weight in weights.values()) or abs(sum(weights.values()) - 1) > 1e-6:
            raise OptionError(
                f"weights {dict(weights)} add up to {sum(weights.values()):g}; expected numbers of at least 0 that "
                "add up to 1"
            )
        absent = [name for name, weight in weights.items() if weight > 0 and name not in clips_of]
        if absent:
            raise OptionError(
                f"no clip is of the source {absent[0]!r}, which has a weight of {weights[absent[0]]:g}; there are "
                f"clips of {', '.join(sorted(clips_of))}"
            )
        self.clips = [torch.tensor(clips_of.get(name, []), dtype=torch.int64) for name in weights]
        self.weights, self.n, self.generator = torch.tensor(list(weights.values()), dtype=torch.float64), n, generator

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        generator = _seeded(self.generator)
        if not self.n:
            return
        source = torch.multinomial(self.weights, self.n, replacement=True, generator=generator)
        draws = torch.empty(self.n, dtype=torch.int64)
        for k, clips in enumerate(self.clips):
            rows = (source == k).nonzero().flatten()
            if len(rows):
                draws[rows] = clips[torch.randint(len(clips), (len(rows),), generator=generator)]
        yield from draws.tolist()


class ShardedSampler(Sampler[Any]):
    """The draws or batches of one process: every `world_size`-th of a sampler, equally many in each process.

    As in torch's DistributedSampler, the first draws are repeated if the last round is incomplete.

    Parameters
    ----------
    sampler
        A sampler with a generator of the same seed in each process, since all must draw the same epoch.
    rank, world_size
        Number of this process, from 0, and number of processes.

    Raises
    ------
    OptionError
        If `rank` is out of range, or the sampler has no generator.
    """

    def __init__(self, sampler: Sampler[Any], rank: int, world_size: int):
        if not 0 <= rank < world_size:
            raise OptionError(f"rank={rank}, world_size={world_size}; expected a rank from 0 to world_size - 1")
        if getattr(sampler, "generator", None) is None:
            raise OptionError(
                "the sampler has no generator, so each process would draw another epoch; expected one such as "
                "torch.Generator().manual_seed(0)"
            )
        self.sampler, self.rank, self.world_size = sampler, rank, world_size

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.world_size)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        epoch = list(self.sampler)
        missing = len(self) * self.world_size - len(epoch)
        yield from (epoch + (epoch * self.world_size)[:missing])[self.rank::self.world_size]


class SampledDL(ClipDL):
    """A fastai loader whose order is drawn by a sampler: `dls.train.new(cls=SampledDL, sampler=...)`.

    A sampler without a generator of its own draws from the loader's, as fastai's shuffling does: crops and
    augmentations, whose random numbers differ from process to process, do not change the clips of later epochs.

    `loader.new(shuffle=False)` has each row once, in the order of the table, as `get_preds` and `Interpretation` of
    fastai need it. Otherwise, only a draw that would be the last batch by itself is dropped, since batch norm cannot
    train on a single clip.

    Parameters
    ----------
    dataset
        The data set.
    sampler
        A sampler of positions; or of batches, such as `LengthGroupedBatchSampler`, with the batch size of the loader.
    shuffle
        False leaves the sampler out.
    kwargs
        As in fastai's `TfmdDL`.

    Raises
    ------
    OptionError
        If the sampler's batch size differs from the loader's.
    """

    def __init__(self, dataset: Any, *, sampler: Sampler[Any], shuffle: bool = True, **kwargs: Any):
        self.sampler = sampler
        sampler_bs, bs = self._sampler_bs, kwargs.get("bs")
        if sampler_bs is not None and sampler_bs != bs:
            raise OptionError(f"the sampler yields batches of {sampler_bs}, the loader of {bs}; expected the same bs")
        all_rows = sampler_bs is not None or not shuffle
        n = len(dataset) if all_rows else len(sampler)  # type: ignore[arg-type]
        if not all_rows and bs is not None and n > bs > 1 and n % bs == 1:
            n -= 1
        super().__init__(dataset, **{**kwargs, "shuffle": shuffle, "drop_last": False, "n": n})

    @property
    def _sampler_bs(self) -> int | None:
        """Batch size of a batch sampler, None of other samplers."""
        return self.sampler.bs if isinstance(self.sampler, LengthGroupedBatchSampler) else None

    def get_idxs(self) -> list[int]:
        """Draw the positions of an epoch; all of them in order if `shuffle` is False."""
        if not self.shuffle:
            return list(range(self.n))
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(self.rng.getrandbits(64))  # fastai renews `rng` in every epoch
            draws = list(self.sampler)
        return draws[: self.n] if self._sampler_bs is None else [i for batch in draws for i in batch]

    def new(self, dataset: Any = None, cls: Any = None, **kwargs: Any) -> Any:
        """Create a loader like this one; for another data set, without the sampler."""
        if dataset is not None and dataset is not self.dataset:
            return super().new(dataset, cls or ClipDL, **kwargs)
        options = {"sampler": self.sampler, **kwargs} if cls in (None, SampledDL) else kwargs
        return super().new(dataset, cls, **options)
