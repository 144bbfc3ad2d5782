"""Which runs may be resumed: those whose sounds are as they were."""

import os
import shutil

import pytest

from fatai.data.datasets.fat2019 import load_dataset
from fatai.errors import CheckpointError
from fatai.experiment.manifest import data_digest, write_manifest
from fatai.experiment.run import _can_resume


@pytest.fixture
def begun(sample, tiny_recipe, tmp_path):
    """Return a data set with a sound of over 100 kB, that sound, and a run on it that has begun."""
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(sample, data, ignore=shutil.ignore_patterns("truth"))
    sound = min((data / "train_curated").iterdir())
    sound.write_bytes(sound.read_bytes() + bytes(100_000))
    out.mkdir()
    (out / "recipe.toml").write_text(tiny_recipe.resolved())
    dataset = load_dataset(data)
    write_manifest(out, dataset, tiny_recipe, data_digest(dataset), "run", {})
    return dataset, sound, out


def change(sound, at, keeps_time):
    """Change one byte of a file, at equal size, and keep the time of its last modification or not."""
    content, time = bytearray(sound.read_bytes()), sound.stat().st_mtime_ns
    content[at] ^= 1
    sound.write_bytes(content)
    os.utime(sound, ns=(time, time if keeps_time else time + 1))


@pytest.mark.parametrize(("at", "keeps_time"), [(0, True), (-1, True), (50_000, False)])
def test_a_run_is_not_resumed_after_a_sound_has_changed_at_equal_size(begun, tiny_recipe, at, keeps_time):
    dataset, sound, out = begun
    assert _can_resume(out, tiny_recipe, dataset, data_digest(dataset))
    change(sound, at, keeps_time)
    with pytest.raises(CheckpointError, match="a run of other data: .*sounds"):
        _can_resume(out, tiny_recipe, dataset, data_digest(dataset))


def test_the_digest_of_the_data_is_that_of_its_copies(begun, tmp_path):
    dataset, sound, _ = begun
    before = data_digest(dataset)
    os.utime(sound, (1, 1))
    shutil.copytree(dataset.path, tmp_path / "copy")
    assert data_digest(dataset) == before == data_digest(load_dataset(tmp_path / "copy"))
