"""The profile of training steps: times and advice."""

import pytest

from fatai.data.datasets.fat2019 import FATDataset, load_dataset
from fatai.diagnostics.profile import StepProfile, profile_step
from fatai.errors import DataError


def profile(**ms):
    steps = {"decode_ms": 1.0, "resample_ms": 0.0, "trim_ms": 0.0, "front_end_ms": 1.0, "model_ms": 8.0}
    return StepProfile(**{**steps, "n_clips": 1000, **ms})


def test_an_epoch_is_the_sum_over_its_clips():
    assert profile().read_ms == 1.0 and profile().epoch_s == pytest.approx(10.0)
    assert "an epoch of 1000 clips, without cache and workers: 10 s" in profile().to_text()


@pytest.mark.parametrize("ms, words", [
    ({"model_ms": 100.0}, "the network takes 98%"),
    ({"front_end_ms": 9.0}, "set clips.cache = 'features'"),
    ({"decode_ms": 9.0}, "reading takes 50%: set clips.cache"),
    ({"decode_ms": 1.0, "resample_ms": 9.0}, "resampling takes 53%"),
    ({"decode_ms": 9.0, "cache": "wave"}, "the cache reads each clip only once"),
])
def test_the_advice_names_the_most_expensive_step(ms, words):
    assert words in profile(**ms).advice()


def test_a_dataset_is_measured(sample, tiny_recipe):
    found = profile_step(sample, tiny_recipe, n_clips=4, n_repeats=9)
    assert found.n_clips == 120 and min(found.decode_ms, found.front_end_ms, found.model_ms) > 0
    assert found.resample_ms < found.decode_ms + found.trim_ms, "the sample has the front end's rate"


def test_a_dataset_without_a_readable_clip_is_refused(sample, tmp_path):
    data = load_dataset(sample)
    curated = data.curated.assign(path=str(tmp_path / "nowhere.wav"))
    with pytest.raises(DataError, match="none of the clips can be read"):
        profile_step(FATDataset(data.path, curated, None, data.test, data.tags, data.sample, ()), "quick")
