"""The rules by which training settings follow from the clips."""

import numpy as np
import pytest

from fatai.audio.io import save_audio
from fatai.errors import DataError
from fatai.registry import FRONT_ENDS
from fatai.training import defaults


@pytest.mark.parametrize("seconds, expected", [
    ([5.0] * 4, 2.0), ([2.0], 2.0), ([1.5] * 9 + [60.0], 1.5), ([0.2] * 3, 0.5), ([60.0] * 3, 2.0),
    ([0.3, 0.4, 5.0, 6.0], 2.0), ([1.99] * 4, 1.95),
])
def test_crops_are_two_seconds_or_as_long_as_most_clips(seconds, expected):
    assert defaults.crop_seconds(np.array(seconds)).value == expected


@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 32_000, 96_000, 250_000])
def test_a_front_end_has_the_band_of_the_files_and_the_same_durations(rate):
    settings = FRONT_ENDS.build("ninth", **defaults.front_end_settings(np.array([rate] * 3)).value).settings
    assert settings.sr == rate and settings.max_hz == rate / 2
    assert settings.n_fft / rate == pytest.approx(1920 / 44_100, rel=0.01)
    assert settings.hop_length / rate == pytest.approx(690 / 44_100, rel=0.01)
    assert settings.n_mels == 64 and settings.top_db == 80


def test_files_at_the_rates_of_music_keep_the_published_front_end():
    for rates in ([44_100], [48_000] * 3, [8000, 44_100, 44_100]):
        assert defaults.front_end_settings(np.array(rates)).value == {}


@pytest.mark.parametrize("n_clips, width, bs", [(20, 0.25, 8), (160, 0.25, 16), (2001, 0.5, 32), (20_000, 1.0, 64)])
def test_width_and_batch_grow_with_the_number_of_clips(n_clips, width, bs):
    assert defaults.network_width(n_clips).value == width and defaults.batch_size(n_clips).value == bs


@pytest.mark.parametrize("n_clips, bs, epochs", [
    (160, 16, 200),  # the floor: 2,000 steps of 10 an epoch
    (3, 8, 2000),  # less than a batch: an epoch is one step
    (1000, 16, 60),  # 60 passes are 3,720 steps
    (100_000, 64, 8),  # the ceiling: 12,000 steps of 1,562 an epoch
])
def test_small_data_sets_get_steps_and_large_ones_fewer_passes(n_clips, bs, epochs):
    assert defaults.fit_epochs(n_clips, bs).value == epochs


@pytest.mark.parametrize("n_clips, bs, n_drawn", [(160, 16, 1600), (3, 8, 800), (1599, 16, 1600), (1600, 16, None)])
def test_an_epoch_has_a_hundred_steps_at_least(n_clips, bs, n_drawn):
    assert defaults.epoch_clips(n_clips, bs).value == n_drawn
    assert defaults.fit_epochs(n_clips, bs, 100 * bs).value == max(20, round(60 * n_clips / bs / 100))


@pytest.mark.parametrize("per_tag, expected", [(3, 2), (8, 2), (9, 3), (14, 4), (34, 4), (75, 4), (1, 2)])
def test_folds_follow_from_the_rarest_tag(per_tag, expected):
    targ = np.concatenate([np.repeat(np.eye(3)[:1], per_tag, 0), np.repeat(np.eye(3)[1:2], 100, 0)])
    assert defaults.fold_count(targ).value == expected, "the third tag has no clip and does not count"


def test_copies_then_several_tags_decide_the_splitter():
    one, several = np.eye(2), np.ones((3, 2))
    assert [defaults.split_method(t, n).value for t, n in ((one, 0), (several, 0), (several, 2), (one, 1))] == [
        "stratified", "multilabel", "group", "group"]


def test_facts_are_read_from_the_headers_of_readable_clips(tmp_path):
    for k, (rate, seconds) in enumerate([(8000, 0.5), (16_000, 2.0)]):
        save_audio(tmp_path / f"{k}.wav", np.zeros(round(rate * seconds), dtype=np.float32), rate)
    (tmp_path / "2.wav").write_bytes(b"RIFF")
    facts = defaults.clip_facts([tmp_path / f"{k}.wav" for k in range(3)])
    assert facts.seconds.tolist() == [0.5, 2.0] and facts.rates.tolist() == [8000, 16_000]
    assert len(defaults.clip_facts([tmp_path / "0.wav"] * 1001).rates) == 334, "one in three"
    with pytest.raises(DataError, match="none of 1 clips can be read"):
        defaults.clip_facts([tmp_path / "2.wav"])
