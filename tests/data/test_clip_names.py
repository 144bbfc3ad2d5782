"""Files of one name in several folders are several clips everywhere: tables, weights, targets, views, corrections."""

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch

from fatai.callbacks.sample_weights import SampleWeights
from fatai.cli.paths import sound_files
from fatai.data.blocks import FATDataLoaders
from fatai.data.clip_names import match_clips, unique_names
from fatai.data.datasets.fat2019 import load_dataset
from fatai.data.tables import standardize_table
from fatai.errors import DataError, OptionError
from fatai.experiment.fold import FoldContext, fold_learner, sample_weight_callbacks
from fatai.inference.tta import names_and_paths
from fatai.noisy_labels.methods import select_noisy_labels
from fatai.noisy_labels.selection import attach_predictions

TAGS = ["Bark", "Purr"]


@pytest.fixture
def data(tmp_path):
    """A data set whose curated and noisy clips have the same names and opposite labels."""
    for part, labels in (("curated", ["Bark", "Purr"]), ("noisy", ["Purr", "Bark"])):
        folder = tmp_path / f"train_{part}"
        folder.mkdir()
        table = pd.DataFrame({"fname": ["1.wav", "2.wav"], "labels": labels})
        table.to_csv(tmp_path / f"train_{part}.csv", index=False)
        for k, name in enumerate(table["fname"]):
            sf.write(folder / name, np.random.default_rng(k).uniform(-0.5, 0.5, 22_050), 44_100)
    return tmp_path


def loaders(table, **options):
    options = {"crop_s": 0.25, "bs": 2, "num_workers": 0, "check_files": False, "valid_pct": 0, **options}
    return FATDataLoaders.from_df(table, **options)


class FakeLearner:
    def __init__(self, dls):
        self.dls = dls


def weights_of(dls, *args, **options):
    callback = SampleWeights(*args, **options)
    callback.learn = FakeLearner(dls)
    return callback


@pytest.mark.parametrize(("paths", "expected"), [
    (["a/1.wav", "b/2.wav"], ["1.wav", "2.wav"]),
    (["/x/a/1.wav", "/x/b/1.wav"], ["a/1.wav", "b/1.wav"]),
    (["/x/a/c/1.wav", "/x/b/c/1.wav", "/x/a/2.wav"], ["a/c/1.wav", "b/c/1.wav", "2.wav"]),
    (["1.wav", "a/1.wav"], ["1.wav", "a/1.wav"]),
    (["/x/a/1.wav", "/x/a/1.wav"], ["1.wav", "1.wav"]),
    (["/x/a/1.wav", "/x/b/1.wav", "/x/a/1.wav"], ["a/1.wav", "b/1.wav", "a/1.wav"]),
])
def test_equal_names_become_the_shortest_unique_paths(paths, expected):
    assert unique_names([path.split("/")[-1] for path in paths], paths) == expected


def test_a_shortest_path_is_not_the_name_of_another_clip():
    names = unique_names(["1.wav", "1.wav", "a/1.wav"], ["/x/a/1.wav", "/x/b/1.wav", "/y/2.wav"])
    assert names == ["x/a/1.wav", "b/1.wav", "a/1.wav"]


def test_a_clip_is_found_by_its_path_its_name_or_the_end_of_its_path():
    names, paths = ["1.wav", "b/1.wav"], ["/x/a/1.wav", "/x/b/1.wav"]
    assert match_clips(["/x/b/1.wav", "1.wav", "x/a/1.wav", "3.wav"], names, paths) == {
        "/x/b/1.wav": [1], "1.wav": [0], "x/a/1.wav": [0]}
    with pytest.raises(OptionError, match=r"1.wav is the name of 2 clips, /x/a/1.wav and /x/b/1.wav"):
        match_clips(["1.wav"], ["a", "b"], paths)


@pytest.mark.parametrize("columns", [{"fn_col": "file"}, {"fn_col": "name", "path_col": "file"}])
def test_tables_call_files_of_one_name_by_their_shortest_unique_path(tmp_path, columns):
    files = [str(tmp_path / folder / "1.wav") for folder in "ab"]
    df = pd.DataFrame({"file": files, "name": ["1.wav", "1.wav"], "labels": TAGS})
    options = {"path_col": None, "label_col": "labels", "valid_col": None, "suff": "", "label_delim": None, **columns}
    table = standardize_table(df, tmp_path, **options)
    assert table["fname"].tolist() == ["a/1.wav", "b/1.wav"] and table["path"].tolist() == files


@pytest.mark.parametrize("as_table", [False, True])
def test_clips_to_predict_have_unique_names(as_table):
    items = ["a/1.wav", "b/1.wav", "b/2.wav"]
    items = pd.DataFrame({"fname": ["1.wav", "1.wav", "2.wav"], "path": items}) if as_table else items
    assert names_and_paths(items) == (["a/1.wav", "b/1.wav", "2.wav"], ["a/1.wav", "b/1.wav", "b/2.wav"])


def test_sounds_of_two_folders_are_called_by_folder_and_name(data):
    found = sound_files([data / "train_curated", data / "train_noisy"])
    assert [name for name, _ in found] == [f"train_{part}/{n}.wav" for part in ("curated", "noisy") for n in (1, 2)]


def test_loaders_of_both_parts_keep_the_labels_and_flags_of_each_clip(data):
    table = FATDataLoaders.from_path(
        data, noisy=True, valid_pct=0, crop_s=0.25, bs=2, num_workers=0, check_files=False
    ).files(0)
    rows = {row.fname: (row.labels, row.noisy) for row in table.itertuples()}
    assert rows == {
        "train_curated/1.wav": (["Bark"], False), "train_curated/2.wav": (["Purr"], False),
        "train_noisy/1.wav": (["Purr"], True), "train_noisy/2.wav": (["Bark"], True),
    }


@pytest.mark.parametrize("key", ["{root}/train_noisy/1.wav", "train_noisy/1.wav"])
def test_weights_flags_and_targets_are_those_of_the_named_file_alone(data, key):
    key = key.format(root=data)
    dls = FATDataLoaders.from_path(
        data, noisy=True, valid_pct=0, crop_s=0.25, bs=2, num_workers=0, check_files=False
    )
    names = dls.files(0)["fname"].tolist()
    callback = weights_of(dls, {key: 0.25}, noisy=[key], targets={key: [0.3, 0.7]})
    weight, noisy = callback.values()
    row = names.index("train_noisy/1.wav")
    assert [k for k, w in enumerate(weight) if w == 0.25] == [row] == noisy.nonzero().flatten().tolist()
    targets = callback._target_rows()
    torch.testing.assert_close(targets[row], torch.tensor([0.3, 0.7]))
    assert sum(target is not None for target in targets) == 1


def test_weights_of_a_name_that_two_clips_have_are_refused(data):
    names = ["train_curated/1.wav", "train_noisy/1.wav"]
    table = pd.DataFrame({"fname": names, "labels": TAGS, "is_valid": [False, True]})
    dls = loaders(table, path=data, valid_col="is_valid")
    for options in ({"weights": {"1.wav": 0.5}}, {"noisy": ["1.wav"]}):
        with pytest.raises(OptionError, match=r"1.wav is the name of 2 clips, .*curated/1.wav and .*noisy/1.wav"):
            weights_of(dls, **options).values()


@pytest.mark.parametrize("method", ["kaggle_fat_soft_labels", "fourth_place_second_head"])
def test_curated_clips_never_get_the_targets_of_noisy_ones_of_the_same_name(data, tiny_recipe, method, tmp_path):
    dataset = load_dataset(data)
    selection = select_noisy_labels(dataset.noisy, dataset.tags, method)
    stages = tuple({**s, "noisy_labels": {"method": method}} for s in tiny_recipe.model_dump()["stages"])
    recipe = type(tiny_recipe).model_validate({**tiny_recipe.model_dump(), "stages": stages})
    context = FoldContext(dataset, recipe, tmp_path / "run", "", noisy=dataset.noisy, num_workers=0)
    learn = fold_learner(context, 0, dataset.curated.assign(is_valid=False), selection)
    (callback,) = sample_weight_callbacks(context, learn, selection)
    callback.learn = learn
    for path, target in zip(learn.dls.files(0)["path"], callback._target_rows(), strict=True):
        is_noisy, is_bark = "train_noisy" in path, ("train_noisy" in path) != path.endswith("1.wav")
        if method == "fourth_place_second_head":
            assert target[2 * is_noisy:][:2].argmax() == (0 if is_bark else 1), path
        elif is_noisy:
            assert target.argmax() == (0 if is_bark else 1), path
        else:
            assert target is None


def test_noisy_clips_are_matched_to_predictions_by_path():
    table = pd.DataFrame({"fname": ["1.wav", "1.wav"], "path": ["/x/a/1.wav", "/x/b/1.wav"], "labels": TAGS})
    found = attach_predictions(table, TAGS, [[0.9, 0.1], [0.2, 0.8]], ["/x/b/1.wav", "a/1.wav"])
    assert found.fnames == ("a/1.wav", "b/1.wav") and found.probs.tolist() == [[0.2, 0.8], [0.9, 0.1]]
    with pytest.raises(OptionError, match="1.wav is the name of 2 clips"):
        attach_predictions(table, TAGS, [[0.9, 0.1]], ["1.wav"])


def test_only_the_same_file_counts_as_trained_on():
    table = pd.DataFrame({"fname": ["1.wav"], "path": ["/x/noisy/1.wav"], "labels": ["Bark"]})
    attach_predictions(table, TAGS, [[0.9, 0.1]], ["1.wav"], trained_on=["/x/curated/1.wav"])
    with pytest.raises(DataError, match=r"trained on 1.wav"):
        attach_predictions(table, TAGS, [[0.9, 0.1]], ["1.wav"], trained_on=["/x/noisy/1.wav"])


def test_corrections_of_a_shared_name_are_of_the_curated_clip(data):
    fixes = data / "fixes.csv"
    fixes.write_text('fname,labels\n1.wav,"Bark,Purr"\ntrain_noisy/2.wav,remove\n')
    with pytest.warns(UserWarning, match=r"1 names, such as 1.wav, are in both parts.*write train_noisy/1.wav"):
        corrected = load_dataset(data, fixes)
    assert dict(zip(corrected.curated["fname"], corrected.curated["labels"], strict=True)) == {
        "1.wav": ["Bark", "Purr"], "2.wav": ["Purr"]}
    assert dict(zip(corrected.noisy["fname"], corrected.noisy["labels"], strict=True)) == {"1.wav": ["Purr"]}
