"""Where the time of an epoch goes."""

import pytest

from fatai.data.datasets.fat2019 import FATDataset, load_dataset
from fatai.errors import DataError
from fatai.diagnostics.profile import StepProfile, profile_step


def split(**ms):
    return StepProfile(
        **{"decode": 1.0, "resample": 0.0, "trim": 0.0, "front_end": 1.0, "model": 8.0, "clips": 1000, **ms}
    )


def test_an_epoch_is_the_sum_over_its_clips():
    assert split().reading == 1.0 and split().epoch_s == pytest.approx(10.0)
    assert "an epoch of 1000 clips, uncached, without workers: 10 s" in split().to_text()


@pytest.mark.parametrize("ms, words", [
    ({"model": 100.0}, "the network takes 98%"),
    ({"front_end": 9.0}, "set clips.cache = 'features'"),
    ({"decode": 9.0}, "reading takes 50%: set clips.cache"),
    ({"decode": 1.0, "resample": 9.0}, "resampling takes 53%"),
    ({"decode": 9.0, "cache": "wave"}, "the cache does that once"),
])
def test_the_setting_to_change_is_the_one_that_costs_most(ms, words):
    assert words in split(**ms).advice()


def test_a_data_set_is_measured(sample, tiny_recipe):
    found = profile_step(sample, tiny_recipe, clips=4, rounds=1)
    assert found.clips == 120 and min(found.decode, found.front_end, found.model) > 0
    assert found.resample < found.decode + found.trim, "the sample has the front end's rate"


def test_a_data_set_without_a_readable_clip_is_refused(sample, tmp_path):
    data = load_dataset(sample)
    curated = data.curated.assign(path=str(tmp_path / "nowhere.wav"))
    with pytest.raises(DataError, match="none of the clips can be read"):
        profile_step(FATDataset(data.path, curated, None, data.test, data.tags, data.sample, ()), "quick")
