"""The clip cache: equal to the decoded files, never stale, whole after a kill, one cache from two processes."""

import os
import pickle
import shutil
import time

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch
from fastai.torch_core import set_seed
from helpers.processes import new_processes

from fatai.audio.front_ends import front_end
from fatai.audio.io import load_audio
from fatai.audio.waveform import trim_silence
from fatai.data import cache_writer
from fatai.data.blocks import FATDataLoaders
from fatai.data.cache import CachedClip, ClipCache, default_cache_folder
from fatai.data.config import ClipConfig
from fatai.data.tensors import TensorSpec, TensorWave
from fatai.data.transforms import RandomCrop
from fatai.errors import AudioError, CacheError, OptionError

SR = 44100


def clip(path, seed, seconds=0.5, sr=SR, level=0.1):
    wave = (np.random.default_rng(seed).standard_normal(int(seconds * sr)) * level).clip(-1, 1)
    sf.write(path, wave, sr, subtype="PCM_16")
    return str(path)


@pytest.fixture
def files(tmp_path):
    """Five clips of 0.2 to 1 s, one of another rate, one in stereo."""
    (tmp_path / "in").mkdir()
    paths = [clip(tmp_path / "in" / f"{k}.wav", k, seconds) for k, seconds in enumerate((0.2, 0.5, 1.0))]
    paths.append(clip(tmp_path / "in" / "3.wav", 3, 0.5, sr=22050))
    stereo = np.random.default_rng(4).uniform(-0.5, 0.5, (SR // 2, 2))
    sf.write(tmp_path / "in" / "4.wav", stereo, SR, subtype="PCM_16")
    return [*paths, str(tmp_path / "in" / "4.wav")]


@pytest.fixture
def config():
    return ClipConfig(crop_s=0.4)


def tree(folder):
    """Map every file below a folder to its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def record_computed(monkeypatch):
    """Return a list that is extended by the name of every clip that is computed."""
    computed, real = [], cache_writer.compute_values

    def spy(config, module, path):
        computed.append(os.path.basename(path))
        return real(config, module, path)

    monkeypatch.setattr(cache_writer, "compute_values", spy)
    return computed


def test_a_cached_wave_is_the_trimmed_file_to_the_last_bit(files, config, tmp_path):
    cache = ClipCache.open_or_build(files, config, kind="wave", folder=tmp_path / "c")
    for i in (0, 1, 2):
        wave = trim_silence(load_audio(files[i], SR), 60)
        assert cache.length(i) == len(wave) and torch.equal(cache.crop(i), wave)
        assert torch.equal(cache.crop(i, 100, 50), wave[100:150])
    # Resampled, or the mean of two channels: no longer multiples of 1/32768, so up to half a step away.
    for i in (3, 4):
        wave = trim_silence(load_audio(files[i], SR), 60)
        assert cache.length(i) == len(wave) and (cache.crop(i) - wave).abs().max() <= 0.5 / 32768 + 1e-9


def test_cached_features_are_the_whole_clips_to_the_precision_of_16_bits(files, config, tmp_path):
    cache = ClipCache.open_or_build(files, config, kind="features", folder=tmp_path / "c")
    module = front_end("ninth").build()
    for i, path in enumerate(files):
        # A clip shorter than a crop is padded first, as it would be without a cache.
        whole = module(config.fit(trim_silence(load_audio(path, SR), 60))[None])[0]
        assert cache.length(i) == whole.shape[-1]
        torch.testing.assert_close(cache.crop(i), whole, rtol=2 ** -11, atol=1e-6)
    torch.testing.assert_close(
        cache.crop(2, 5, 7), whole_crop(module, config, files[2])[:, 5:12], rtol=2**-11, atol=1e-6
    )


def whole_crop(module, config, path):
    return module(trim_silence(load_audio(path, SR), 60)[None])[0]


def test_full_scale_is_clipped_not_wrapped(tmp_path, config):
    sf.write(tmp_path / "a.wav", np.array([1.5, -1.5, 1.0, 0.5] * 1000, np.float32), SR, subtype="FLOAT")
    cache = ClipCache.open_or_build([tmp_path / "a.wav"], config, kind="wave", folder=tmp_path / "c")
    assert cache.crop(0, 0, 4).tolist() == [32767 / 32768, -1.0, 32767 / 32768, 0.5]


def test_a_crop_maps_the_file_and_stays_inside_the_clip(files, config, tmp_path):
    cache = ClipCache.open_or_build(files, config, kind="wave", folder=tmp_path / "c")
    assert isinstance(cache.clip(files[1]).values, np.memmap)
    for start, size in ((-1, 5), (0, len(cache.clip(1)) + 1), (5, -2)):
        with pytest.raises(OptionError, match=f"the crop is from {start} to"):
            cache.crop(1, start, size)
    assert cache.nbytes == sum(p.stat().st_size for p in (tmp_path / "c").rglob("*.i16"))


def test_a_second_opening_computes_nothing(files, config, tmp_path, monkeypatch):
    first = ClipCache.open_or_build(files, config, folder=tmp_path / "c")
    computed = record_computed(monkeypatch)
    again = ClipCache.open_or_build(files, config, folder=tmp_path / "c")
    assert computed == [] and again.folder == first.folder and again.lengths.tolist() == first.lengths.tolist()
    fewer = ClipCache.open_or_build(files[::-2], config, folder=tmp_path / "c")
    assert computed == [] and fewer.lengths.tolist() == first.lengths[::-2].tolist()


def test_only_a_changed_file_is_computed_again_and_its_old_clip_is_gone(files, config, tmp_path, monkeypatch):
    old = ClipCache.open_or_build(files, config, kind="wave", folder=tmp_path / "c")
    before = old.crop(1)
    computed = record_computed(monkeypatch)
    # The worst case: same size, and modification time restored.
    stat = os.stat(files[1])
    clip(files[1], 99)
    os.utime(files[1], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert os.stat(files[1]).st_size == stat.st_size
    new = ClipCache.open_or_build(files, config, kind="wave", folder=tmp_path / "c")
    assert computed == ["1.wav"] and not torch.equal(new.crop(1), before)
    assert len(list((tmp_path / "c").rglob("*.i16"))) == len(files)
    with pytest.raises(CacheError, match="1.wav: its cached wave .* open it again"):
        old.crop(1)


@pytest.mark.parametrize("change", [
    {"trim_db": None}, {"trim_db": 40.0}, {"crop_s": 0.5}, {"pad_mode": "wrap_right"},
    {"front_end": front_end("ninth", n_mels=32)}, {"front_end": front_end("ninth", top_db=60.0)},
])
def test_other_configs_have_another_folder(files, tmp_path, change):
    config = ClipConfig(**{"crop_s": 0.4, **change})
    one = ClipCache.open_or_build(files[:1], ClipConfig(crop_s=0.4), folder=tmp_path / "c")
    other = ClipCache.open_or_build(files[:1], config, folder=tmp_path / "c")
    assert one.folder != other.folder and one.folder.parent == other.folder.parent == tmp_path / "c"


def test_waves_are_shared_by_all_front_ends_of_a_rate_and_channels_are_not_cached(files, tmp_path):
    folders = {ClipCache.open_or_build(files[:1], s, kind="wave", folder=tmp_path / "c").folder
               for s in (ClipConfig(), ClipConfig(front_end("ninth", n_mels=32), crop_s=1))}
    assert len(folders) == 1
    folders = {
        ClipCache.open_or_build(files[:1], ClipConfig(channels=c), folder=tmp_path / "c").folder
        for c in ("mono", "deltas")
    }
    assert len(folders) == 1


def test_a_file_that_lost_bytes_is_written_again(files, config, tmp_path, monkeypatch):
    fresh = ClipCache.open_or_build(files, config, folder=tmp_path / "c")
    good = tree(fresh.folder)
    names = sorted(fresh.folder.rglob("*.f16"))
    names[0].write_bytes(names[0].read_bytes()[:-3])
    names[1].write_bytes(b"")
    (names[2].parent / ".half.part.f16").write_bytes(b"abc")
    computed = record_computed(monkeypatch)
    ClipCache.open_or_build(files, config, folder=tmp_path / "c")
    assert len(computed) == 2 and tree(fresh.folder) == good


def test_unreadable_and_missing_files_are_listed_as_errors(files, config, tmp_path):
    (tmp_path / "in" / "1.wav").write_bytes(b"RIFF")
    os.unlink(files[2])
    cache = ClipCache.open_or_build(files, config, kind="wave", folder=tmp_path / "c")
    assert set(cache.errors) == {1, 2} and "cut short" in cache.errors[1] and "cannot be found" in cache.errors[2]
    assert cache.lengths[[1, 2]].tolist() == [0, 0] and cache.crop(3).numel() > 0
    with pytest.raises(AudioError, match="cannot be found"):
        cache.length(2)


def test_what_cannot_be_cached_raises_with_advice(files, tmp_path):
    with pytest.raises(OptionError, match="there is no cache of kind 'feature'; did you mean features"):
        ClipCache.open_or_build(files, ClipConfig(), kind="feature", folder=tmp_path)
    loud = ClipConfig(front_end("ninth", log="none", normalize="none", norm=None))
    sf.write(tmp_path / "loud.wav", np.sin(np.arange(SR) * 0.2), SR)
    with pytest.raises(CacheError, match=r"expected at most 65,504, the largest 16-bit float: choose cache='wave'"):
        ClipCache.open_or_build([tmp_path / "loud.wav"], loud, folder=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="choose another cache_dir"):
        ClipCache.open_or_build(files, ClipConfig(), folder=tmp_path / "file")


def test_the_number_of_threads_does_not_change_a_byte(files, config, tmp_path):
    before = torch.get_num_threads()
    for threads in (1, 4):
        ClipCache.open_or_build(files, config, folder=tmp_path / str(threads), threads=threads)
    assert tree(tmp_path / "1") == tree(tmp_path / "4") and torch.get_num_threads() == before


def test_the_default_folder_is_in_the_cache_home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "fatai" / "clips"


def test_a_cache_can_be_pickled_for_workers(files, config, tmp_path):
    cache = ClipCache.open_or_build(files, config, folder=tmp_path / "c")
    copy = pickle.loads(pickle.dumps(cache))
    assert torch.equal(copy.crop(2, 3, 4), cache.crop(2, 3, 4)) and files[0] in copy and "other.wav" not in copy


def test_cached_clips_of_arrays_are_scaled_alike():
    assert CachedClip(np.arange(4, dtype="<i2") * 8192).crop(1, 2).tolist() == [0.25, 0.5]
    assert CachedClip(np.arange(6, dtype="<f2").reshape(3, 2)).crop(1).tolist() == [[2.0, 4.0], [3.0, 5.0]]


# In data loaders


def load(files, **options):
    df = pd.DataFrame({"name": files, "tag": ["a", "b", "a", "b", "a"], "valid": [False] * 3 + [True] * 2})
    options = {"channels": "mono", **options}
    return FATDataLoaders.from_df(df, path_col="name", valid_col="valid", crop_s=0.4, bs=3, num_workers=0, **options)


def test_loaders_with_a_wave_cache_give_the_batches_of_the_files(files, tmp_path):
    batches = []
    for options in ({}, {"cache": "wave", "cache_dir": tmp_path / "c"}):
        set_seed(3)  # before the loaders: they draw their shuffle's seed when they are made
        dls = load(files, **options)
        batches.append((dls.train.one_batch(), dls.valid.one_batch()))
    for (plain, targ), (cached, same) in zip(*batches, strict=True):
        assert isinstance(cached, TensorSpec) and isinstance(cached.wave, TensorWave) and cached.wave.sr == SR
        assert torch.equal(targ, same)
        torch.testing.assert_close(cached.wave, plain.wave, rtol=0, atol=0.6 / 32768)


def test_loaders_with_a_feature_cache_give_crops_of_the_clips_features(files, tmp_path):
    dls = load(files, cache="features", cache_dir=tmp_path / "c", channels="deltas")
    spec, _ = dls.valid.one_batch()
    size = dls.clip_config.crop_frames
    assert isinstance(spec, TensorSpec) and spec.shape == (2, 3, 64, size)
    assert spec.front_end == dls.clip_config.front_end
    for row, path in zip(spec.as_subclass(torch.Tensor), files[3:], strict=True):
        whole = whole_crop(front_end("ninth").build(), dls.clip_config, path)
        start = (whole.shape[-1] - size) // 2
        torch.testing.assert_close(row[0], whole[:, start:start + size], rtol=2 ** -11, atol=1e-6)
    crops = [RandomCrop(dls.clip_config)(dls.train_ds[2][0], split_idx=0) for _ in range(5)]
    assert {c.shape for c in crops} == {(64, size)} and len({float(c.sum()) for c in crops}) > 1


def test_a_clip_no_longer_than_a_crop_is_the_same_with_and_without_features(files, tmp_path):
    short = [files[0]] * 5
    plain, cached = (
        load(short, **options).valid.one_batch()[0]
        for options in ({}, {"cache": "features", "cache_dir": tmp_path / "c"})
    )
    torch.testing.assert_close(
        cached.as_subclass(torch.Tensor), plain.as_subclass(torch.Tensor), rtol=2**-11, atol=1e-6
    )


def test_files_outside_the_cache_are_decoded(files, tmp_path):
    dls = load(files[:5], cache="features", cache_dir=tmp_path / "c")
    other = clip(tmp_path / "other.wav", 50, 1.0)
    spec = dls.test_dl([other]).one_batch()[0]
    expected = load(files).test_dl([other]).one_batch()[0]
    torch.testing.assert_close(spec, expected)


def test_a_file_damaged_in_the_middle_is_left_out(files, tmp_path):
    flac = tmp_path / "in" / "5.flac"
    sf.write(flac, np.random.default_rng(1).uniform(-0.5, 0.5, SR), SR, subtype="PCM_16")
    data = bytearray(flac.read_bytes())
    middle = len(data) // 2
    data[middle:middle + 3000] = bytes(3000)
    flac.write_bytes(data)
    with pytest.raises(AudioError):
        load_audio(flac, SR)
    with pytest.warns(UserWarning, match="1 of 5 training files cannot be read and are left out"):
        dls = load([*files[:4], str(flac)], cache="wave", cache_dir=tmp_path / "c")
    assert dls.unreadable == ("5.flac",) and len(dls.files(1)) == 1


# Killed, and two at once

def build(folder, files, pipe):
    pipe.send("ready")
    ClipCache.open_or_build(files, ClipConfig(crop_s=0.4), kind="features", folder=folder, threads=2)
    pipe.send("done")


def start(folder, files):
    """Start a process that builds a cache; return it when it begins, and the pipe that it writes to at the end."""
    processes = new_processes()
    receiving, sending = processes.Pipe(duplex=False)
    process = processes.Process(target=build, args=(folder, files, sending))
    process.start()
    sending.close()
    assert receiving.poll(120) and receiving.recv() == "ready"
    return process, receiving


@pytest.fixture
def many(tmp_path):
    (tmp_path / "many").mkdir()
    return [clip(tmp_path / "many" / f"{k}.wav", k, 0.3 + 0.05 * (k % 40)) for k in range(200)]


def test_two_processes_at_once_leave_one_good_cache(many, tmp_path):
    several = [start(tmp_path / "both", many) for _ in range(2)]
    for process, pipe in several:
        assert pipe.poll(120) and pipe.recv() == "done"
        process.join(120)
        assert process.exitcode == 0
    ClipCache.open_or_build(many, ClipConfig(crop_s=0.4), folder=tmp_path / "one")
    assert tree(tmp_path / "both") == tree(tmp_path / "one") and len(list((tmp_path / "both").rglob("*.f16"))) == 200


def killed(tmp_path, many, fractions):
    """Kill builds when these fractions of the clips are written; return how many were incomplete."""
    fresh = tmp_path / "fresh"
    ClipCache.open_or_build(many, ClipConfig(crop_s=0.4), kind="features", folder=fresh, threads=2)
    good, partial = tree(fresh), 0
    assert len(good) == len(many) + 2  # the clips, the settings, the lock
    for k, fraction in enumerate(fractions):
        process, _ = start(tmp_path / f"k{k}", many)
        while process.is_alive() and len(list((tmp_path / f"k{k}").rglob("*.f16"))) < fraction * len(many):
            time.sleep(0.001)
        process.kill()
        process.join()
        n_written = len(list((tmp_path / f"k{k}").rglob("*.f16")))
        partial += 0 < n_written < len(many)
        cache = ClipCache.open_or_build(many, ClipConfig(crop_s=0.4), folder=tmp_path / f"k{k}")
        assert tree(tmp_path / f"k{k}") == good and not cache.errors
        shutil.rmtree(tmp_path / f"k{k}")
    return partial


def test_a_killed_build_is_continued_to_the_same_bytes(many, tmp_path):
    killed(tmp_path, many, [0.1])


@pytest.mark.slow
def test_ten_kills_at_random_moments_leave_caches_that_rebuild_to_the_same_bytes(many, tmp_path):
    assert killed(tmp_path, many, np.random.default_rng().uniform(0, 0.9, 10)) >= 1
