"""Listings of folders: hidden files, and files of formats that need ffmpeg, in every function and command."""

import warnings

import numpy as np
import pandas as pd
import pytest
import soundfile

from fatai.audio.folders import find_sounds, is_hidden
from fatai.cli.paths import sound_files
from fatai.data.audit.dataset import check_dataset
from fatai.data.blocks import FATDataLoaders
from fatai.data.datasets.fat2019 import load_dataset
from fatai.data.tables import read_class_folder, read_sound_table
from fatai.errors import DataError

HIDDEN = (
    "._a.wav", ".DS_Store", ".hidden/b.wav", "__MACOSX/._a.wav", "__MACOSX/x/c.wav", "Thumbs.db", "desktop.ini",
    "@eaDir/a.wav", "dog/._d.wav", "dog/.git/e.wav", "dog/__MACOSX/f.wav", "dog/Thumbs.db",
)
UNREAD = r"2 files \(.m4a, .webm\) were not read: convert them, e.g. `ffmpeg -i a.m4a a.wav`, or install ffmpeg"


@pytest.fixture(autouse=True)
def no_ffmpeg(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("PATH", str(tmp_path_factory.mktemp("empty_path")))


@pytest.fixture
def root(tmp_path, rng):
    """A function that makes a folder with sounds, and files that are not sounds, under the given names."""

    def made(*names):
        folder = tmp_path / "sounds"
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".wav" and not path.name.startswith("."):
                soundfile.write(path, 0.1 * rng.standard_normal(22050), 44100)
            else:
                path.write_bytes(b"\0\0\0\x20ftypM4A " + bytes(99))
        return folder

    return made


def test_hidden_files_and_folders_are_left_out(root):
    folder = root("a.wav", "dog/b.wav", "a.b/c.WAV", *HIDDEN)
    names = [path.relative_to(folder).as_posix() for path in find_sounds(folder)]
    assert names == ["a.b/c.WAV", "a.wav", "dog/b.wav"]
    assert [path.name for path in find_sounds(folder, below=False)] == ["a.wav"]
    assert sorted(name for name, _ in sound_files([folder])) == sorted(names)


def test_a_folder_below_a_hidden_one_is_not_hidden_itself(root, tmp_path):
    folder = root("a.wav")
    (tmp_path / ".cache").mkdir()
    moved = folder.rename(tmp_path / ".cache" / "sounds")
    assert len(find_sounds(moved)) == 1 and is_hidden(".cache/a.wav") and not is_hidden("../a.wav")


@pytest.mark.parametrize("listing", [
    find_sounds, lambda folder: sound_files([folder]), lambda folder: FATDataLoaders.from_folder(folder, bs=1),
    read_class_folder, check_dataset,
], ids=["find_sounds", "sound_files", "from_folder", "read_class_folder", "check_dataset"])
def test_files_that_need_ffmpeg_are_counted_with_a_remedy(root, listing):
    folder = root("cat/a.wav", "dog/b.wav", "dog/a.m4a", "cat/c.WEBM", "cat/._x.m4a")
    with pytest.warns(UserWarning, match=UNREAD):
        listing(folder)


def test_a_test_part_without_table_counts_them_too(root):
    folder = root("train_curated/a.wav", "test/b.wav", "test/a.m4a", "test/c.webm", "test/._b.wav")
    (folder / "train_curated.csv").write_text("fname,labels\na.wav,Bark\n")
    with pytest.warns(UserWarning, match=UNREAD):
        assert load_dataset(folder).test["fname"].tolist() == ["b.wav"]


def test_the_notice_comes_once(root):
    folder = root("a.wav", "b.m4a")
    with pytest.warns(UserWarning, match=r"1 file \(.m4a\) was not read: convert it, e.g. `ffmpeg -i b.m4a b.wav`"):
        find_sounds(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find_sounds(folder)


def test_a_folder_of_such_files_alone_is_an_error_with_the_remedy(root):
    with pytest.raises(DataError, match="no sound files below"), pytest.warns(UserWarning, match=UNREAD):
        sound_files([root("a.m4a", "b.webm")])


def test_a_command_prints_the_notice(root, tiny_run, main_with):
    folder = root("b.wav", "a.m4a", "c.webm")
    done = main_with("predict", tiny_run.out, folder)
    assert done.returncode == 0 and "2 files (.m4a, .webm) were not read: convert them" in done.stderr
    assert done.stdout.startswith("b.wav: ") and done.stdout.count("\n") == 1


def test_the_first_level_below_the_root_is_the_tag(root):
    folder = root("cat/a.wav", "dog/site 1/b.wav", "dog/site 2/deep/c.wav", "cat/.x/d.wav", "__MACOSX/cat/a.wav")
    dls = FATDataLoaders.from_folder(folder, bs=1, valid_pct=0)
    files = dls.files(0)
    found = {name: list(tags) for name, tags in zip(files["fname"], files["labels"], strict=True)}
    assert found == {"cat/a.wav": ["cat"], "dog/site 1/b.wav": ["dog"], "dog/site 2/deep/c.wav": ["dog"]}
    assert tuple(dls.tags) == ("cat", "dog")


def test_a_table_finds_sounds_that_need_ffmpeg_but_prefers_others(root):
    folder = root("x/a.wav", "x/a.m4a", "y/b.m4a", "__MACOSX/b.m4a")
    table = pd.DataFrame({"file": ["a", "b", "b.m4a"], "tags": ["Bark", "Meow", "Meow"]})
    table.to_csv(folder / "t.csv", index=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        paths = [path.replace("\\", "/") for path in read_sound_table(folder / "t.csv")["path"]]
    assert [path.split("sounds/")[1] for path in paths] == ["x/a.wav", "y/b.m4a"]


def test_a_hidden_table_does_not_hide_a_folder_of_classes(root):
    from fatai.data.tables import is_class_folder

    folder = root("cat/a.wav", "dog/b.wav")
    (folder / "._labels.csv").write_bytes(np.arange(9, dtype=np.uint8).tobytes())
    assert is_class_folder(folder)
