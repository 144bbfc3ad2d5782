"""Which clips make a batch: by length, by class, by source.

Everything here is a torch sampler: `len()` of it is one epoch, every iteration draws a new epoch from `generator`, or, without one, from
torch's own random state. `LengthGroupedBatchSampler` yields batches (lists of positions) for `DataLoader(batch_sampler=...)`, the others positions for
`DataLoader(sampler=...)`; `SampledDL` takes either into fastai, and `ShardedSampler` gives each of several processes its part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from fastai.data.core import TfmdDL
from torch import Generator
from torch.utils.data import Sampler

from fatai.errors import OptionError, ShapeError

__all__ = ["BalancedSampler", "LengthGroupedBatchSampler", "MIXTURE_WEIGHTS", "MixtureSampler", "SampledDL", "ShardedSampler", "padding_fraction"]

MIXTURE_WEIGHTS: dict[str, dict[str, float]] = {
    "auxiliary_016": {"noisy": 0.20, "curated": 0.80},
    "auxiliary_019": {"noisy": 0.20, "curated": 0.80},
    "corr_noisy_003": {"noisy": 0.10, "corrected": 0.20, "curated": 0.70},
    "corr_noisy_004": {"noisy": 0.07, "corrected": 0.33, "curated": 0.60},
    "corr_noisy_007": {"noisy": 0.01, "corrected": 0.42, "curated": 0.57},
    "corrections_002": {"noisy": 0.33, "curated": 0.67},
    "corrections_003": {"noisy": 0.33, "curated": 0.67},
}
"""Shares of the sources in the experiments of the 1st place of Freesound Audio Tagging 2019 (argus-freesound); an epoch is 32,768 draws."""


def _drawn(generator: Generator | None) -> Generator:
    """The generator, or a new one whose seed comes from torch's random state."""
    return (
        generator
        if generator is not None
        else Generator().manual_seed(int(torch.empty((), dtype=torch.int64).random_()))
    )


class LengthGroupedBatchSampler(Sampler[list[int]]):
    """Batches of clips of similar length, so that little of a batch is padding; every clip once an epoch.

    Clips are shuffled and split into pools of `pool` batches; each pool is sorted by length and cut into batches, and the batches are
    shuffled. All have `bs` clips, except for a smaller one at the end. So a pool pads at most bs x (its longest - its shortest): sorted,
    the batches' ranges don't overlap. A larger pool pads less, a smaller one mixes more.

    Parameters
    ----------
    lengths
        Of each clip, in any unit, shape (clips,).
    bs
        Clips in a batch.
    pool
        Batches in a pool; None sorts all clips together.
    shuffle
        False gives the same batches each time, the longest first, so that memory that doesn't suffice shows at once.
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
        n = len(self.lengths)
        if not self.shuffle:
            yield from (b.tolist() for b in self.lengths.argsort(descending=True, stable=True).split(self.bs))
            return
        drawn = _drawn(self.generator)
        order = torch.randperm(n, generator=drawn)
        pools = order.split(self.bs * self.pool) if self.pool is not None else (order,)
        batches = [b for p in pools for b in p[self.lengths[p].argsort()].split(self.bs)]
        # Only the very last batch may be smaller: loaders that count to bs would otherwise cut the order at the wrong places.
        whole = [b for b in batches if len(b) == self.bs]
        rest = [b for b in batches if len(b) < self.bs]
        yield from (whole[i].tolist() for i in torch.randperm(len(whole), generator=drawn).tolist())
        yield from (b.tolist() for b in rest)


def padding_fraction(lengths: Sequence[float] | np.ndarray, batches: Sequence[Sequence[int]]) -> float:
    """Part of all batches that is padding, if each is filled up to its longest clip.

    Examples
    --------
    >>> padding_fraction([1, 3, 4, 4], [[0, 1], [2, 3]])  # 2 of 2 x 3 + 2 x 4
    0.14285714285714285
    """
    of = np.asarray(lengths, dtype=float)
    room = sum(of[list(b)].max() * len(b) for b in batches)
    return float(sum((of[list(b)].max() - of[list(b)]).sum() for b in batches) / room) if room else 0.0


class BalancedSampler(Sampler[int]):
    """One clip of each tag in turn, so that rare tags come as often as frequent ones, up to a limit.

    Tags are gone through in a new random order each round, the clips of each tag in a random order of their own that starts again when all
    were drawn, as PANNs do it. A clip is drawn at most `max_repeats` times an epoch, also if it has several tags; a tag all of whose clips
    were drawn so often is passed over. Clips without a tag are not drawn.

    Parameters
    ----------
    targ
        Shape (clips, tags); a tag counts where it is above 0.
    n
        Draws in an epoch; None takes the number of clips that have a tag.
    max_repeats
        At least 1, at which every clip with a tag is drawn just once.

    Raises
    ------
    OptionError
        More draws than `max_repeats` of every clip make up.
    """

    def __init__(
        self, targ: np.ndarray, *, n: int | None = None, max_repeats: int = 5, generator: Generator | None = None
    ):
        positive = np.asarray(targ) > 0
        if positive.ndim != 2:
            raise ShapeError(f"targ has shape {positive.shape}; expected (clips, tags)")
        tagged = int(positive.any(1).sum())
        self.n = tagged if n is None else n
        if max_repeats < 1 or not 0 <= self.n <= tagged * max_repeats:
            raise OptionError(
                f"n={n}, max_repeats={max_repeats}; expected at least 1 repeat, and at most {tagged} clips with tags x "
                f"max_repeats = {tagged * max(0, max_repeats)} draws"
            )
        self.clips_of = [np.flatnonzero(column) for column in positive.T if column.any()]
        self.max_repeats, self.generator = max_repeats, generator

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        drawn = _drawn(self.generator)
        left: dict[int, int] = {int(c): self.max_repeats for clips in self.clips_of for c in clips}
        queues: list[list[int]] = [[] for _ in self.clips_of]
        tags: list[int] = []
        for _ in range(self.n):
            clip = None
            while clip is None:
                tags = tags or torch.randperm(len(self.clips_of), generator=drawn).tolist()
                clip = self._next(tags.pop(), queues, left, drawn)
            left[clip] -= 1
            yield clip

    def _next(self, tag: int, queues: list[list[int]], left: dict[int, int], drawn: Generator) -> int | None:
        """The next clip of a tag that may still be drawn; None if there is none."""
        while queues[tag]:
            clip = queues[tag].pop()
            if left[clip]:
                return clip
        free = [int(c) for c in self.clips_of[tag] if left[int(c)]]
        if not free:
            return None
        queues[tag] = [free[i] for i in torch.randperm(len(free), generator=drawn).tolist()]
        return queues[tag].pop()


class MixtureSampler(Sampler[int]):
    """Random draws, with replacement, from several sources with given shares, as the 1st place mixed curated and noisy clips.

    Parameters
    ----------
    sources
        The source of each clip, shape (clips,).
    shares
        Probability of each source; together 1. `MIXTURE_WEIGHTS` has those of the 1st place.
    n
        Draws in an epoch.

    Raises
    ------
    OptionError
        Shares that don't add up to 1, or of a source that has no clips.
    """

    def __init__(
        self, sources: Sequence[str], shares: Mapping[str, float], *, n: int = 32768, generator: Generator | None = None
    ):
        at: dict[str, list[int]] = {}
        for i, source in enumerate(sources):
            at.setdefault(source, []).append(i)
        if any(not share >= 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
            raise OptionError(
                f"shares {dict(shares)} add up to {sum(shares.values()):g}; expected parts of at least 0 that make 1"
            )
        absent = [name for name, share in shares.items() if share > 0 and name not in at]
        if absent:
            raise OptionError(
                f"no clip comes from {absent[0]!r}, which is to have a share of {shares[absent[0]]:g}; there are clips from "
                f"{', '.join(sorted(at))}"
            )
        self.clips = [torch.tensor(at.get(name, []), dtype=torch.int64) for name in shares]
        self.shares, self.n, self.generator = torch.tensor(list(shares.values()), dtype=torch.float64), n, generator

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        drawn = _drawn(self.generator)
        source = torch.multinomial(self.shares, self.n, replacement=True, generator=drawn) if self.n else torch.empty(0)
        picked = torch.empty(self.n, dtype=torch.int64)
        for k, clips in enumerate(self.clips):
            mine = (source == k).nonzero().flatten()
            if len(mine):
                picked[mine] = clips[torch.randint(len(clips), (len(mine),), generator=drawn)]
        yield from picked.tolist()


class ShardedSampler(Sampler[Any]):
    """What process `rank` of `world_size` takes of a sampler: every `world_size`-th draw or batch, equally many in each process.

    All processes have to draw the same epoch, so the sampler needs a generator with the same seed in each. The first draws fill up a
    last round that is not whole, as in torch's DistributedSampler.
    """

    def __init__(self, sampler: Sampler[Any], rank: int, world_size: int):
        if not 0 <= rank < world_size:
            raise OptionError(f"rank={rank}, world_size={world_size}; expected a rank from 0 to world_size - 1")
        if getattr(sampler, "generator", None) is None:
            raise OptionError(
                "without a generator, each process draws something else; give the sampler torch.Generator().manual_seed(0)"
            )
        self.sampler, self.rank, self.world_size = sampler, rank, world_size

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.world_size)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        epoch = list(self.sampler)
        short = len(self) * self.world_size - len(epoch)
        yield from (epoch + (epoch * self.world_size)[:short])[self.rank::self.world_size]


class SampledDL(TfmdDL):
    """fastai's loader with an order that a sampler draws: `dls.train.new(cls=SampledDL, sampler=...)`.

    No draw is dropped but one that would be the last batch alone, which batch norm cannot train on. A sampler of batches has to have the
    same batch size, as `LengthGroupedBatchSampler` with `bs=dls.bs`.
    """

    def __init__(self, dataset: Any, *, sampler: Sampler[Any], **kwargs: Any):
        self.sampler = sampler
        bs = getattr(sampler, "bs", None)
        if bs is not None and bs != kwargs.get("bs"):
            raise OptionError(
                f"the sampler makes batches of {bs}, the loader of {kwargs.get('bs')}; give both the same bs"
            )
        n = len(dataset) if bs is not None else len(sampler)  # type: ignore[arg-type]
        of_a_batch = kwargs.get("bs") or 1
        if bs is None and n > of_a_batch > 1 and n % of_a_batch == 1:
            n -= 1
        super().__init__(dataset, **{**kwargs, "shuffle": False, "drop_last": False, "n": n})

    def get_idxs(self) -> list[int]:
        drawn = list(self.sampler)
        return (
            [i for batch in drawn for i in batch] if getattr(self.sampler, "bs", None) is not None else drawn[: self.n]
        )

    def new(self, dataset: Any = None, cls: Any = None, **kwargs: Any) -> Any:
        """Another loader like this one; of another data set it is a plain one."""
        if dataset is None or dataset is self.dataset:
            return super().new(
                dataset, cls, **{"sampler": self.sampler, **kwargs} if cls in (None, SampledDL) else kwargs
            )
        return super().new(dataset, cls or TfmdDL, **kwargs)
