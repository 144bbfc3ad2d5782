"""Copies of a sound under two names: found by their bytes, named where a split separates them, kept together."""

import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from fatai.data.blocks import FATDataLoaders
from fatai.data.copies import sound_groups
from fatai.data.datasets.fat2019 import load_dataset
from fatai.errors import DataError
from fatai.experiment.clip_tables import folded_table

COPIES = r"1 sound \(0.wav = copy.wav\).*too high"


@pytest.fixture
def folder(tmp_path):
    """Eight sounds of one length, and a copy of the first."""
    for k in range(8):
        sf.write(tmp_path / f"{k}.wav", np.random.default_rng(k).uniform(-0.5, 0.5, 4410), 44_100)
    shutil.copy(tmp_path / "0.wav", tmp_path / "copy.wav")
    names = [*(f"{k}.wav" for k in range(8)), "copy.wav"]
    table = pd.DataFrame({"fname": names, "labels": ["Bark", "Purr"] * 4 + ["Bark"]})
    table["is_valid"] = table["fname"] == "copy.wav"
    table.to_csv(tmp_path / "labels.csv", index=False)
    return tmp_path


def loaders(make, *args, **options):
    return make(*args, crop_s=0.1, bs=4, num_workers=0, **options)


def test_files_with_the_same_bytes_are_one_group(folder):
    names = ["0.wav", "1.wav", "copy.wav", "absent.wav"]
    groups = sound_groups([folder / name for name in names])
    assert groups[0] == groups[2] and len(set(groups)) == 3
    # Files that differ in one byte alone, far from the end, are no copies.
    data = bytearray(100_000)
    (folder / "a").write_bytes(data)
    data[50] = 1
    (folder / "b").write_bytes(data)
    assert len(set(sound_groups([folder / "a", folder / "b"]))) == 2


@pytest.mark.parametrize("source", ["from_df", "from_csv"])
def test_loaders_warn_about_copies_on_both_sides(folder, source):
    with pytest.warns(UserWarning, match=COPIES):
        if source == "from_df":
            loaders(FATDataLoaders.from_df, pd.read_csv(folder / "labels.csv"), folder, valid_col="is_valid")
        else:
            loaders(FATDataLoaders.from_csv, folder, "labels.csv", valid_col="is_valid")


def test_copies_on_one_side_are_fine(folder):
    table = pd.read_csv(folder / "labels.csv").assign(is_valid=[False, True, *[False] * 7])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaders(FATDataLoaders.from_df, table, folder, valid_col="is_valid")


def data_of(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_dataset(folder / "labels.csv")


def splitter(recipe, **folds):
    values = recipe.model_dump()
    return type(recipe).model_validate({**values, "folds": {**values["folds"], **folds}})


def test_runs_warn_about_copies_in_two_folds_and_keep_them_together_on_request(folder, tiny_recipe):
    data = data_of(folder)
    seeds = (s for s in range(50) if separated(data, splitter(tiny_recipe, splitter="kfold", n=2, seed=s)))
    apart = splitter(tiny_recipe, splitter="kfold", n=2, seed=next(seeds))
    with pytest.warns(UserWarning, match=COPIES):
        folded_table(data, apart)
    for seed in range(5):
        together = splitter(tiny_recipe, splitter="group", group_col="sound", n=2, seed=seed)
        assert not separated(data, together)
    assert folded_table(data, together)[0]["sound"].nunique() == 8
    with pytest.raises(DataError, match="has no column 'sound'"):
        folded_table(data, splitter(tiny_recipe, splitter="predefined", group_col="sound", n=2))


def separated(data, recipe):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table, _, folds = folded_table(data, recipe)
    fold_of = dict(zip(table["fname"], folds, strict=True))
    return fold_of["0.wav"] != fold_of["copy.wav"]


def test_runs_warn_about_a_noisy_copy_of_a_held_out_clip(folder, tiny_recipe):
    for part, names in (("curated", [f"{k}.wav" for k in range(8)]), ("noisy", ["copy.wav"])):
        (folder / f"train_{part}").mkdir()
        for name in names:
            shutil.move(folder / name, folder / f"train_{part}" / name)
        labels = ["Bark", "Purr"] * 4 if part == "curated" else ["Purr"]
        pd.DataFrame({"fname": names, "labels": labels}).to_csv(folder / f"train_{part}.csv", index=False)
    stages = tuple({**s, "noisy_labels": {"method": "as_given"}} for s in tiny_recipe.model_dump()["stages"])
    noisy = type(tiny_recipe).model_validate({**tiny_recipe.model_dump(), "stages": stages})
    data = load_dataset(folder)
    with pytest.warns(UserWarning, match=COPIES):
        folded_table(data, splitter(noisy, n=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        folded_table(data, splitter(tiny_recipe, n=2))
