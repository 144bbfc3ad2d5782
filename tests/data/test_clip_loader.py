"""Clips in memory: the same batches as from disk, to the last bit; item by item where anything but a crop happens."""

import pickle

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch
from fastai.torch_core import set_seed

from fatai.augment.item import ItemAugmentations
from fatai.augment.wave import Gain
from fatai.callbacks.sample_weights import SampleWeights
from fatai.data import cache_choice, resident
from fatai.data.blocks import FATDataLoaders
from fatai.data.cache import ClipCache
from fatai.data.cache_choice import choose_cache
from fatai.data.clip_loader import ClipDL
from fatai.data.config import ClipConfig
from fatai.data.resident import ResidentClips, available_memory
from fatai.data.samplers import BalancedSampler, SampledDL
from fatai.data.tensors import TensorSpec
from fatai.errors import CacheError, OptionError
from fatai.inference.learner import fat_learner
from fatai.training.data_parallel import DistributedCallback


@pytest.fixture(scope="module")
def loaders(sample, tmp_path_factory):
    """A function that makes loaders of the sample for a cache; its clips are both shorter and longer than a crop."""
    folder = tmp_path_factory.mktemp("cache")

    def make(cache, crop_s=0.5, **options):
        set_seed(0)
        return FATDataLoaders.from_path(
            sample, channels="mono", crop_s=crop_s, bs=16, valid_pct=0.25, seed=0, check_files=False, cache=cache,
            cache_dir=folder, **options,
        )

    return make


def batches(loader, seed=1):
    set_seed(seed)
    return [(*map(torch.Tensor.clone, batch),) for batch in loader]


def assert_same(some, others):
    assert len(some) == len(others) > 0
    for batch, other in zip(some, others, strict=True):
        assert len(batch) == len(other)
        for x, y in zip(batch, other, strict=True):
            assert type(x) is type(y) and torch.equal(x.as_subclass(torch.Tensor), y.as_subclass(torch.Tensor))


@pytest.mark.parametrize(
    ("disk", "memory", "pad_mode"),
    [("wave", "device", "constant_center"), ("wave", "device", "wrap_right"),
     ("features", "device_features", "constant_center")],
)
def test_batches_from_memory_are_those_from_disk(loaders, disk, memory, pad_mode):
    expected, got = (loaders(cache, pad_mode=pad_mode) for cache in (disk, memory))
    assert got.train.gathers and got.valid.gathers and not expected.train.gathers
    for epoch in range(2):
        assert_same(batches(expected.train, epoch), batches(got.train, epoch))
    assert_same(batches(expected.valid), batches(got.valid))
    if memory == "device":
        spec = got.one_batch()[0]
        assert isinstance(spec, TensorSpec) and spec.wave.sr == 44100


def test_validation_on_16_bit_files_is_that_of_decoded_files(tmp_path, rng):
    for k in range(8):
        sf.write(tmp_path / f"{k}.wav", rng.uniform(-0.5, 0.5, 9000 * (k + 1)), 44100, subtype="PCM_16")
    table = pd.DataFrame({"fname": [f"{k}.wav" for k in range(8)], "labels": list("abababab"), "is_valid": [0, 1] * 4})

    def valid(cache):
        dls = FATDataLoaders.from_df(
            table, tmp_path, valid_col="is_valid", crop_s=0.5, bs=2, cache=cache, cache_dir=tmp_path / "c"
        )
        return batches(dls.valid)

    assert_same(valid("none"), valid("device"))


def test_a_sampler_draws_the_same_clips_and_crops(loaders):
    def sampled(cache):
        dls = loaders(cache)
        targ = np.eye(len(dls.tags))[[i % len(dls.tags) for i in range(len(dls.train_ds))]]
        return dls.train.new(cls=SampledDL, sampler=BalancedSampler(targ, n=40), bs=16)

    got = sampled("device")
    assert got.gathers
    assert_same(batches(sampled("wave")), batches(got))


def test_a_crop_starts_where_it_was_drawn(tmp_path):
    ramp = np.arange(0, 25000, 5, dtype=np.int16)  # so that a value is its position, whatever is rounded
    sf.write(tmp_path / "a.wav", ramp, 44100)
    config = ClipConfig(crop_s=0.05, trim_db=None)
    cache = ClipCache.open_or_build([tmp_path / "a.wav"], config, kind="wave", folder=tmp_path / "c")
    clips = ResidentClips(cache, config)
    spare = 5000 - 2205
    assert clips.spare(0) == spare
    wave = clips.crops([0, 0, 0], [0, 7, spare])
    assert wave.shape == (3, 2205)
    assert torch.round((wave[:, 0] - wave[0, 0]) * 32768 / 5).tolist() == [0, 7, spare]


def test_predictions_on_training_clips_are_in_the_order_of_the_table(loaders):
    dls = loaders("device")
    learn = fat_learner(dls, arch="m1", width=0.125)
    unshuffled = dls.train.new(shuffle=False, drop_last=False)
    assert unshuffled.gathers
    targ = torch.cat([y for _, y in unshuffled]).as_subclass(torch.Tensor)
    expected = torch.tensor([[tag in labels for tag in dls.tags] for labels in dls.files(0)["labels"]]).float()
    assert torch.equal(targ, expected)
    with learn.no_bar():
        assert torch.equal(learn.get_preds(ds_idx=0)[1].as_subclass(torch.Tensor), expected)


def test_a_fit_with_weights_and_targets_is_the_same_to_the_last_bit(loaders):
    def weights_after_fit(cache):
        dls = loaders(cache)
        names = list(dls.files(0)["fname"])
        soft = {name: np.full(len(dls.tags), 0.25) for name in names[::3]}
        cb = SampleWeights({name: 0.5 for name in names[::2]}, targets=soft)
        set_seed(3)
        learn = fat_learner(dls, arch="m1", width=0.125, cbs=[cb, Gain()], loss_func="bce")
        with learn.no_bar(), learn.no_logging():
            learn.fit(2, 1e-3)
        return dls, [p.detach().clone() for p in learn.model.parameters()]

    (_, expected), (dls, got) = weights_after_fit("wave"), weights_after_fit("device")
    assert dls.train.gathers and all(map(torch.equal, expected, got))


def test_item_transforms_are_applied_to_cached_waves_and_refused_on_features(loaders):
    dls, on_disk = loaders("device"), loaders("wave")
    learn = fat_learner(dls, arch="m1", width=0.125)
    louder = ItemAugmentations(Gain(gain_db=(20, 20), p=1))
    learn.add_cb(louder)
    peak = batches(dls.valid)[0][0].wave.abs().max()
    louder.attach()
    assert not dls.train.gathers and dls.valid.gathers
    on_disk.train.after_item.add(louder._transform)
    got = batches(dls.train)
    assert_same(batches(on_disk.train), got)
    assert got[0][0].wave.abs().max() > 2 * peak
    louder.detach()
    assert dls.train.gathers
    learn = fat_learner(loaders("device_features"), arch="m1", width=0.125, cbs=ItemAugmentations(Gain()))
    learn.cbs[-1].attach()
    with pytest.raises(OptionError, match="item transforms augment waves, but the cache holds features"):
        learn.dls.train.one_batch()


def test_a_loader_that_makes_items_in_another_way_is_left_to_it(loaders):
    dls = loaders("device")
    assert not dls.train.new(create_item=lambda i: dls.train_ds[i]).gathers
    assert not dls.train.new(bs=None, drop_last=False, shuffle=False).gathers
    other = dls.test_dl(dls.files(1))
    assert other.clips is None and len(list(other)) == len(dls.valid)


def test_workers_are_not_started_and_clips_are_not_exported(loaders):
    dls = loaders("device", num_workers=2)
    assert dls.train.fake_l.num_workers == 0
    empty = dls.new_empty()
    assert all(loader.clips is None for loader in empty.loaders) and empty.cache == dls.cache
    assert len(pickle.dumps(empty)) < dls.train.clips.nbytes / 10


def test_loaders_of_the_same_files_share_their_memory(loaders):
    first, second = loaders("device"), loaders("device")
    assert first.train.clips is second.train.clips is first.valid.clips and second.train.gathers
    assert loaders("device", crop_s=0.4).train.clips is not first.train.clips


def test_processes_gather_their_part_of_every_batch(loaders):
    whole = batches(loaders("device").valid)
    parts = []
    for rank in range(2):
        learn = fat_learner(loaders("device"), arch="m1", width=0.125)
        callback = DistributedCallback(Group(rank))
        callback.learn = learn
        callback._shard(learn.dls.valid)
        assert learn.dls.valid.gathers
        parts.append(batches(learn.dls.valid))
        callback._restore()
    for batch, mine, yours in zip(whole, *parts, strict=True):
        for x, a, b in zip(batch, mine, yours, strict=True):
            assert torch.equal(x, torch.cat([a, b]))


class Group:
    """Two processes, of which each is asked alone; both draw the same order."""

    world_size = 2

    def __init__(self, rank):
        self.rank, self.is_main = rank, rank == 0

    def broadcast(self, value):
        return value

    def split_counts(self, n):
        return [n - n // 2, n // 2]


def test_clips_that_do_not_fit_are_read_from_disk(loaders, monkeypatch):
    monkeypatch.setattr(cache_choice, "memory_budget", lambda device: 1000)
    with pytest.warns(UserWarning, match=r"the clips take \d+ MB.*memory of cpu: they are read from the cache on disk"):
        dls = loaders("device")
    assert dls.cache.cache == "wave" and dls.train.clips is None
    with pytest.raises(OptionError, match="no cache of kind 'devise'; did you mean device"):
        loaders("devise")


@pytest.mark.parametrize(
    ("memory", "disk", "cache"), [(2**30, 0, "device"), (1000, 2**30, "wave"), (1000, 1000, "none")]
)
def test_auto_takes_the_first_place_that_is_large_enough(loaders, monkeypatch, memory, disk, cache):
    monkeypatch.setattr(cache_choice, "memory_budget", lambda device: memory)
    monkeypatch.setattr(cache_choice, "_disk_budget", lambda folder: disk)
    dls = loaders("auto")
    assert dls.cache.cache == cache and "the waves take about" in dls.cache.reason
    assert dls.train.gathers == (cache == "device")


def test_auto_goes_on_without_a_cache_where_none_can_be_written(sample, tmp_path):
    (tmp_path / "file").touch()
    options = {"crop_s": 0.5, "check_files": False, "cache_dir": tmp_path / "file"}
    dls = FATDataLoaders.from_path(sample, cache="auto", **options)
    assert dls.cache.cache == "none" and "cannot be built" in dls.cache.reason
    with pytest.raises(CacheError):
        FATDataLoaders.from_path(sample, cache="device", **options)


def test_the_estimated_size_is_that_of_the_waves(tmp_path, monkeypatch):
    for k in range(6):
        sf.write(tmp_path / f"{k}.wav", np.zeros(22050 * (k + 1) // 2), 22050)
    (tmp_path / "broken.wav").touch()
    monkeypatch.setattr(cache_choice, "memory_budget", lambda device: 0)
    # Seven clips of 1.75 s on average, at 44.1 kHz and two bytes.
    choice = choose_cache(sorted(tmp_path.glob("*.wav")), ClipConfig(), folder=tmp_path / "not" / "there")
    assert choice.cache == "wave" and f"about {7 * 1.75 * 44100 * 2 / 2**20:.0f} MB" in choice.reason


def test_available_memory_is_that_of_the_container(tmp_path):
    of_machine = available_memory(group=tmp_path)  # no such files
    assert of_machine > 2**20
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("100\n")
    (tmp_path / "memory.stat").write_text("anon 60\nfile 40\ninactive_file 0\n")
    assert available_memory(group=tmp_path) > of_machine / 2
    (tmp_path / "memory.max").write_text("1100\n")
    assert available_memory(group=tmp_path) == 1000
    (tmp_path / "memory.stat").write_text("anon 60\nfile 40\ninactive_file 30\n")
    assert available_memory(group=tmp_path) == 1030, "what is kept of files that were read is given up when needed"


def test_processes_of_a_machine_share_its_memory(monkeypatch):
    monkeypatch.setattr(resident, "available_memory", lambda device: 1200)
    assert resident.memory_budget("cpu") == 400
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert resident.memory_budget("cpu") == 100


def test_the_loader_is_fastais_where_nothing_is_in_memory(loaders):
    assert isinstance(loaders("none").train, ClipDL) and not loaders("none").train.gathers
