"""Samplers: no clip is lost, padding and repeats are bounded, weights are kept."""

from collections import Counter

import numpy as np
import pytest
import torch
from fastai.interpret import Interpretation
from fastai.torch_core import set_seed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, RandomSampler

from fatai.data.blocks import FATDataLoaders
from fatai.data.labels import multi_hot
from fatai.data.samplers import (
    MIXTURE_WEIGHTS,
    BalancedSampler,
    LengthGroupedBatchSampler,
    MixtureSampler,
    SampledDL,
    ShardedSampler,
    padding_fraction,
)
from fatai.errors import OptionError, ShapeError
from fatai.inference.learner import fat_learner


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 1000), min_size=1, max_size=200),
    st.integers(1, 20),
    st.sampled_from([None, 1, 3]),
    st.booleans(),
)
def test_every_clip_comes_once_and_only_the_last_batch_is_smaller(lengths, bs, pool, shuffle):
    sampler = LengthGroupedBatchSampler(lengths, bs, pool=pool, shuffle=shuffle)
    batches = list(sampler)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    assert len(batches) == len(sampler) and all(len(b) == bs for b in batches[:-1])
    pools = 1 if pool is None or not shuffle else -(-len(lengths) // (bs * pool))
    padding = sum(max(lengths[i] for i in b) * len(b) - sum(lengths[i] for i in b) for b in batches)
    assert padding <= pools * bs * (max(lengths) - min(lengths))


def test_grouping_leaves_little_padding_where_random_batches_are_half_empty(rng):
    lengths = np.exp(rng.uniform(np.log(0.3), np.log(30), 2000))
    random = [b.tolist() for b in torch.randperm(2000).split(32)]
    # Log-uniform lengths: their mean is 29.7 / ln 100 = 6.4 s, the longest of 32 nearly always close to 26 s.
    assert padding_fraction(lengths, random) > 0.7
    assert padding_fraction(lengths, list(LengthGroupedBatchSampler(lengths, 32, pool=None))) < 0.05
    assert padding_fraction(lengths, list(LengthGroupedBatchSampler(lengths, 32))) < 0.2


def test_an_epoch_has_its_own_order_and_a_seed_repeats_it():
    sampler = LengthGroupedBatchSampler(range(100), 8, pool=4, generator=seeded(1))
    first, second = list(sampler), list(sampler)
    assert first != second and {frozenset(b) for b in first} != {frozenset(b) for b in second}
    assert list(LengthGroupedBatchSampler(range(100), 8, pool=4, generator=seeded(1))) == first
    torch.manual_seed(5)
    a = list(LengthGroupedBatchSampler(range(100), 8))
    torch.manual_seed(5)
    assert list(LengthGroupedBatchSampler(range(100), 8)) == a


def test_unshuffled_the_longest_come_first():
    assert list(LengthGroupedBatchSampler([3, 9, 5, 9, 1], 2, shuffle=False)) == [[1, 3], [2, 0], [4]]


def test_balanced_draws_take_tags_in_turn():
    targ = np.zeros((110, 2))
    targ[:100, 0], targ[100:, 1] = 1, 1
    draws = list(BalancedSampler(targ, n=20, max_repeats=5))
    # Two tags in turn: ten draws each, and no clip twice, since the rare tag has just ten.
    assert sum(i >= 100 for i in draws) == 10 and max(Counter(draws).values()) == 1


def test_repeats_are_capped_and_the_rest_comes_from_other_tags():
    targ = np.zeros((110, 2))
    targ[:100, 0], targ[100:, 1] = 1, 1
    count = Counter(BalancedSampler(targ, n=110, max_repeats=3))
    assert max(count.values()) == 3 and sum(count[i] for i in range(100, 110)) == 30
    assert max(count[i] for i in range(100)) == 1  # 80 draws from 100 clips
    once = list(BalancedSampler(targ, max_repeats=1))
    assert sorted(once) == list(range(110))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=30),
    st.integers(1, 4),
    st.floats(0, 1),
)
def test_balanced_draws_are_tagged_and_capped(rows, max_repeats, fraction):
    targ = np.array(rows, dtype=float)
    tagged = set(np.flatnonzero(targ.any(1)).tolist())
    n = int(fraction * len(tagged) * max_repeats)
    draws = list(BalancedSampler(targ, n=n, max_repeats=max_repeats))
    assert len(draws) == n and set(draws) <= tagged and max(Counter(draws).values(), default=0) <= max_repeats


def test_weights_of_a_mixture_are_kept():
    sources = ["noisy"] * 300 + ["corrected"] * 20 + ["curated"] * 80
    mixture = MixtureSampler(sources, MIXTURE_WEIGHTS["corr_noisy_003"], generator=seeded(0))
    assert len(mixture) == 32768
    count = Counter(sources[i] for i in mixture)
    for source, weight in (("noisy", 0.1), ("corrected", 0.2), ("curated", 0.7)):
        # Five standard deviations of a binomial count.
        assert abs(count[source] - 32768 * weight) < 5 * (32768 * weight * (1 - weight)) ** 0.5
    assert len(set(MixtureSampler(sources, {"corrected": 1.0}, n=1000))) == 20


def test_without_a_cap_tags_are_drawn_alike_and_clips_of_a_tag_alike():
    targ = np.zeros((13, 3))
    targ[:10, 0], targ[10:12, 1] = 1, 1  # no clip has the third tag, one clip has none
    count = Counter(BalancedSampler(targ, n=30_000, max_repeats=None, generator=seeded(0)))
    expected = [15_000 / 10] * 10 + [15_000 / 2] * 2
    for clip, mean in enumerate(expected):
        # Five standard deviations of a binomial count.
        assert abs(count[clip] - mean) < 5 * (mean * (1 - mean / 30_000)) ** 0.5
    assert set(count) == set(range(12)) and len(BalancedSampler(targ, max_repeats=None)) == 12
    with pytest.raises(OptionError, match="0 clips with tags"):
        BalancedSampler(np.zeros((3, 2)), n=1, max_repeats=None)


@pytest.mark.parametrize("name", list(MIXTURE_WEIGHTS))
def test_published_weights_add_up(name):
    weights = MIXTURE_WEIGHTS[name]
    assert sum(weights.values()) == pytest.approx(1) and set(weights) <= {"noisy", "corrected", "curated"}


def test_shards_split_an_epoch():
    def shard(rank):
        return list(ShardedSampler(LengthGroupedBatchSampler(range(50), 4, generator=seeded(3)), rank, 2))

    whole = list(LengthGroupedBatchSampler(range(50), 4, generator=seeded(3)))
    assert len(whole) == 13 and len(shard(0)) == len(shard(1)) == 7
    assert [b for pair in zip(shard(0), shard(1), strict=True) for b in pair] == [*whole, whole[0]]
    tiny = [list(ShardedSampler(MixtureSampler(["a"], {"a": 1}, n=1, generator=seeded(0)), r, 3)) for r in range(3)]
    assert tiny == [[0], [0], [0]]


def test_torchs_loader_accepts_the_samplers():
    data = torch.arange(10)
    batches = list(DataLoader(data, batch_sampler=LengthGroupedBatchSampler(range(10), 4)))  # type: ignore[arg-type]
    assert sorted(torch.cat(batches).tolist()) == list(range(10)) and [len(b) for b in batches] == [4, 4, 2]
    assert len(list(DataLoader(data, sampler=MixtureSampler(["a"] * 10, {"a": 1.0}, n=6), batch_size=3))) == 2  # type: ignore[arg-type]


def test_fastais_loader_accepts_the_samplers_with_and_without_workers(sample):
    dls = FATDataLoaders.from_path(sample, crop_s=0.2, bs=16, seed=0, num_workers=0)
    n = len(dls.train_ds)
    targ = np.stack([np.asarray(dls.train_ds[i][1]) for i in range(n)])
    lengths = np.arange(n)
    for workers in (0, 2):
        loader = dls.train.new(
            cls=SampledDL, sampler=LengthGroupedBatchSampler(lengths, 16, generator=seeded(0)), num_workers=workers
        )
        expected = [targ[b] for b in LengthGroupedBatchSampler(lengths, 16, generator=seeded(0))]
        batches = [y for _, y in loader]
        assert len(loader) == len(batches) == -(-n // 16)
        for targets, reference in zip(batches, expected, strict=True):
            np.testing.assert_array_equal(np.asarray(targets), reference)
    short = dls.train.new(cls=SampledDL, sampler=BalancedSampler(targ, n=40))
    assert sum(len(y) for _, y in short) == 40 and len(short.new()) == 3
    assert type(short.new(dls.valid_ds)).__name__ == "ClipDL"


@pytest.mark.parametrize("kind", ["shuffle", "balanced", "mixture"])
def test_draws_of_all_epochs_depend_on_the_loader_alone(sample, kind):
    dls = FATDataLoaders.from_path(sample, crop_s=0.2, bs=16, seed=0, num_workers=0)
    n = len(dls.train_ds)

    def epochs(numbers):
        sampler = {
            "shuffle": lambda: RandomSampler(range(n), num_samples=2 * n),
            "balanced": lambda: BalancedSampler(np.eye(2)[np.arange(n) % 2], n=n),
            "mixture": lambda: MixtureSampler(["a"] * n, {"a": 1.0}, n=n),
        }[kind]()
        set_seed(3)
        loader, drawn = dls.train.new(cls=SampledDL, sampler=sampler), []
        for _ in range(3):
            torch.rand(numbers)  # as many as the crops of a process take
            state = torch.get_rng_state()
            loader.randomize()
            drawn.append(loader.get_idxs())
            assert torch.equal(torch.get_rng_state(), state)
        return drawn

    first, second = epochs(1), epochs(100)
    assert first == second and first[0] != first[1] != first[2]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LengthGroupedBatchSampler([[1]], 2), ShapeError, "one number for each clip"),
        (lambda: LengthGroupedBatchSampler([1], 0), OptionError, "bs=0"),
        (lambda: BalancedSampler(np.ones(3)), ShapeError, r"expected \(clips, tags\)"),
        (
            lambda: BalancedSampler(np.ones((3, 2)), n=7, max_repeats=2),
            OptionError,
            "at most 3 clips with tags x max_repeats = 6 draws",
        ),
        (lambda: MixtureSampler(["a"], {"a": 0.5}), OptionError, "add up to 0.5"),
        (lambda: MixtureSampler(["a"], {"a": 0.5, "b": 0.5}), OptionError, "no clip is of the source 'b'"),
        (
            lambda: ShardedSampler(LengthGroupedBatchSampler([1], 1, generator=seeded(0)), 2, 2),
            OptionError,
            "rank=2, world_size=2",
        ),
        (lambda: ShardedSampler(LengthGroupedBatchSampler([1], 1), 0, 2), OptionError, "has no generator, so each"),
    ],
)
def test_invalid_arguments_raise(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_batch_sampler_of_another_batch_size_raises(small_dls):
    with pytest.raises(OptionError, match="batches of 5, the loader of 16"):
        small_dls.train.new(cls=SampledDL, sampler=LengthGroupedBatchSampler([1] * len(small_dls.train_ds), 5))


@pytest.mark.parametrize("draws, batches", [(32, [16, 16]), (33, [16, 16]), (34, [16, 16, 2]), (1, [1])])
def test_no_last_batch_is_a_single_clip(small_dls, draws, batches):
    sources = ["curated"] * len(small_dls.train_ds)
    loader = small_dls.train.new(cls=SampledDL, sampler=MixtureSampler(sources, {"curated": 1.0}, n=draws), bs=16)
    assert [len(targ) for _, targ in loader] == batches and len(loader) == len(batches)


@pytest.mark.parametrize("make", [
    lambda n: BalancedSampler(np.ones((n, 1)), n=2 * n, generator=seeded(0)),
    lambda n: LengthGroupedBatchSampler(np.arange(n, 0, -1), 16, generator=seeded(0)),
    lambda n: MixtureSampler(["curated"] * n, {"curated": 1.0}, n=17, generator=seeded(0)),
], ids=["balanced", "lengths", "mixture"])
def test_without_shuffling_a_sampled_loader_has_each_row_once_in_the_order_of_the_table(own_dls, make):
    """`get_preds(ds_idx=0)` and `Interpretation` name their rows by that order."""
    n = len(own_dls.train_ds)
    sampled = own_dls.train.new(cls=SampledDL, sampler=make(n))
    ordered = sampled.new(shuffle=False, drop_last=False)
    assert ordered.get_idxs() == list(range(n)) and len(ordered) == -(-n // 16)
    assert sampled.get_idxs() != list(range(n)) and ordered.new(shuffle=True).get_idxs() != list(range(n))
    own_dls.loaders[0] = sampled
    learn = fat_learner(own_dls, "m1", width=0.125, precision="fp32")
    with learn.no_bar():
        _, targ = learn.get_preds(ds_idx=0)
        interp = Interpretation.from_learner(learn, ds_idx=0)
    expected = multi_hot(own_dls.files(0)["labels"], own_dls.tags)
    np.testing.assert_array_equal(np.asarray(targ), expected)
    assert len(interp.losses) == n
    np.testing.assert_array_equal(np.asarray(interp[[0, n - 1]][2]), expected[[0, n - 1]])
