"""Statistics of a data set's spectrograms."""

import shutil

import numpy as np
import pytest
import torch

from fatai.audio.front_ends import front_end
from fatai.audio.io import load_audio
from fatai.audio.waveform import trim_silence
from fatai.data.datasets.fat2019 import load_dataset
from fatai.data.stats import data_stats
from fatai.errors import DataError, OptionError


@pytest.fixture(scope="module")
def few(sample, tmp_path_factory):
    """Six curated clips of the sample."""
    data = tmp_path_factory.mktemp("few")
    (data / "train_curated").mkdir()
    table = load_dataset(sample).curated.head(6)
    for path in table["path"]:
        shutil.copy(path, data / "train_curated")
    cells = zip(table["fname"], table["labels"], strict=True)
    rows = [f'{fname},"{",".join(labels)}"' for fname, labels in cells]
    (data / "train_curated.csv").write_text("\n".join(["fname,labels", *rows]) + "\n")
    return data


def test_statistics_are_those_of_all_frames_at_once(few):
    module = front_end("ninth", normalize="none", mean=0.0, std=1.0).build()
    waves = [trim_silence(load_audio(p), 60) for p in sorted((few / "train_curated").iterdir())]
    frames = torch.cat([module(wave[None])[0] for wave in waves], 1).double().numpy()
    stats = data_stats(few, "ninth")
    assert stats.frames == frames.shape[1]
    np.testing.assert_allclose([stats.mean, stats.std], [frames.mean(), frames.std()], rtol=1e-6)
    np.testing.assert_allclose(stats.bin_mean, frames.mean(1), rtol=1e-5)
    np.testing.assert_allclose(stats.bin_std, frames.std(1), rtol=1e-5)


def test_broken_clips_are_skipped_and_paths_are_accepted(few, tmp_path):
    good = sorted((few / "train_curated").iterdir())[0]
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    assert data_stats([good, tmp_path / "broken.wav"]).frames == data_stats([good]).frames > 0
    with pytest.raises(DataError, match="none of the 1 clips can be read"):
        data_stats([tmp_path / "broken.wav"])


def test_an_unknown_part_is_named(few):
    with pytest.raises(OptionError, match="parts holds valid; expected curated"):
        data_stats(few, parts=["valid"])
