"""The competition's layout: parts that are read, parts that are optional, and errors."""

import shutil
import warnings

import pytest

from fatai.data.datasets.fat2019 import CORRUPTED_FILES, fat_sample, load_dataset
from fatai.errors import DataError, LabelError, OptionError


def touch(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")


@pytest.fixture
def data(tmp_path):
    """A layout of empty files: no sound file is opened."""
    (tmp_path / "train_curated.csv").write_text('fname,labels,site\na.wav,"Purr,Bark",x\nb.wav,Meow,y\nc.wav,Bark,x\n')
    touch(tmp_path / "train_curated", ["a.wav", "b.wav", "c.wav"])
    (tmp_path / "train_noisy.csv").write_text("fname,labels\nn.wav,Bark\nm.wav,Meow\n")
    touch(tmp_path / "train_noisy", ["n.wav", "m.wav"])
    (tmp_path / "sample_submission.csv").write_text("fname,Purr,Bark,Meow\nt.wav,0,0,0\ns.wav,0,0,0\n")
    touch(tmp_path / "test", ["s.wav", "t.wav", "more.wav"])
    return tmp_path


@pytest.fixture
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_all_parts_are_read_in_the_order_of_their_tables(data, no_warnings):
    found = load_dataset(data)
    assert found.tags == ("Purr", "Bark", "Meow")
    assert found.curated["fname"].tolist() == ["a.wav", "b.wav", "c.wav"]
    assert found.curated["labels"].tolist() == [["Purr", "Bark"], ["Meow"], ["Bark"]]
    assert found.curated["path"].tolist()[0] == str(data / "train_curated" / "a.wav")
    assert found.curated["site"].tolist() == ["x", "y", "x"]
    assert set(found.curated["part"]) == {"curated"} and set(found.noisy["part"]) == {"noisy"}
    assert found.noisy["fname"].tolist() == ["n.wav", "m.wav"]
    assert found.test["fname"].tolist() == ["t.wav", "s.wav"] and found.test["path"].tolist()[1] == str(
        data / "test" / "s.wav"
    )
    assert found.sample == data / "sample_submission.csv" and len(found.missing) == 0
    assert str(found) == f"{data}: 3 curated, 2 noisy, 2 test clips, 3 tags"


def test_noisy_and_test_parts_may_be_absent(data, no_warnings):
    for name in ("train_noisy", "test"):
        shutil.rmtree(data / name)
    for name in ("train_noisy.csv", "sample_submission.csv"):
        (data / name).unlink()
    found = load_dataset(str(data))
    assert found.noisy is None and found.sample is None
    assert len(found.test) == 0 and list(found.test.columns) == ["fname", "path"]
    assert found.tags == ("Bark", "Meow", "Purr")


def test_without_a_sample_submission_the_tags_are_the_sorted_labels_and_the_test_is_the_folder(data, no_warnings):
    (data / "sample_submission.csv").unlink()
    (data / "test" / "notes.txt").write_text("")
    found = load_dataset(data)
    assert found.tags == ("Bark", "Meow", "Purr") and found.test["fname"].tolist() == ["more.wav", "s.wav", "t.wav"]


def test_tags_of_the_noisy_part_are_in_the_vocabulary(data):
    (data / "sample_submission.csv").unlink()
    (data / "train_noisy.csv").write_text("fname,labels\nn.wav,Yowl\n")
    assert load_dataset(data).tags == ("Bark", "Meow", "Purr", "Yowl")


def test_rows_without_a_file_are_moved_to_missing_with_a_warning(data):
    (data / "train_curated" / "b.wav").unlink()
    (data / "test" / "t.wav").unlink()
    with pytest.warns(UserWarning, match=r"1 curated \(b\.wav\); 1 test \(t\.wav\)"):
        found = load_dataset(data)
    assert found.curated["fname"].tolist() == ["a.wav", "c.wav"] and found.curated.index.tolist() == [0, 1]
    assert found.test["fname"].tolist() == ["t.wav", "s.wav"]
    assert found.missing["fname"].tolist() == ["b.wav", "t.wav"]
    assert found.missing["part"].tolist() == ["curated", "test"]


def test_a_folder_of_the_name_of_a_file_is_no_file(data):
    (data / "train_curated" / "b.wav").unlink()
    (data / "train_curated" / "b.wav").mkdir()
    with pytest.warns(UserWarning, match="b.wav"):
        assert len(load_dataset(data).curated) == 2


def test_files_in_folders_below_are_found(data, no_warnings):
    (data / "train_noisy.csv").write_text("fname,labels\nrain/1.wav,Bark\n")
    touch(data / "train_noisy" / "rain", ["1.wav"])
    assert load_dataset(data).noisy["path"].tolist() == [str(data / "train_noisy" / "rain" / "1.wav")]


def test_a_noisy_table_without_its_sounds_is_left_out_with_a_warning(data):
    shutil.rmtree(data / "train_noisy")
    with pytest.warns(UserWarning, match=r"train_noisy\.csv exists, but not the folder train_noisy/"):
        assert load_dataset(data).noisy is None


def test_noisy_sounds_without_their_table_are_left_out_with_a_warning(data):
    (data / "train_noisy.csv").unlink()
    with pytest.warns(UserWarning, match=r"no table train_noisy\.csv"):
        assert load_dataset(data).noisy is None


def test_a_sample_submission_without_test_sounds_still_gives_the_tags(data):
    shutil.rmtree(data / "test")
    with pytest.warns(UserWarning, match="nothing to predict"):
        found = load_dataset(data)
    assert found.tags == ("Purr", "Bark", "Meow") and len(found.test) == 0


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*nowhere; expected a folder with a folder of sounds for each tag"):
        load_dataset(tmp_path / "nowhere")


def test_a_folder_with_other_tables_raises_with_their_names_and_advice(tmp_path):
    (tmp_path / "labels.csv").write_text("fname,labels\n")
    with pytest.raises(
        DataError, match=r"no train_curated\.csv \(its tables are labels\.csv\).*pass its path instead of the folder"
    ):
        load_dataset(tmp_path)


def test_no_curated_folder(data):
    shutil.rmtree(data / "train_curated")
    with pytest.raises(DataError, match="exists, but not the folder .*train_curated; expected"):
        load_dataset(data)


def test_no_curated_file_at_all(data):
    for file in (data / "train_curated").iterdir():
        file.unlink()
    with pytest.warns(UserWarning), pytest.raises(DataError, match="no curated clip left"):
        load_dataset(data)


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("train_curated.csv", "fname,labels\n", DataError, "a header but no rows"),
        ("train_curated.csv", "file,labels\na.wav,Bark\n", DataError,
         r"train_curated\.csv has no column 'fname': rename one, or pass the names to from_csv; known: file, labels$"),
        (
            "train_curated.csv",
            "fname,labels\na.wav,Brk\n",
            LabelError,
            r"curated\.csv, row 1 \(line 2\), a\.wav: unknown tag 'Brk'; .*Bark",
        ),
        (
            "train_noisy.csv",
            "fname,labels\nn.wav,Mew\n",
            LabelError,
            r"train_noisy\.csv, row 1.*n\.wav.*did you mean Meow",
        ),
        ("train_curated.csv", "fname,labels\n../test/s.wav,Bark\n", DataError, "is outside"),
        ("train_curated.csv", "fname,labels\n/etc/passwd,Bark\n", DataError, "is outside"),
        ("train_curated.csv", "fname,labels\nC:\\a.wav,Bark\n", DataError, "is outside"),
        ("sample_submission.csv", "Purr,fname,Bark\n0,t.wav,0\n", DataError, "first column of .* is 'Purr'"),
        ("sample_submission.csv", "fname\nt.wav\n", DataError, "only the column fname"),
        ("sample_submission.csv", "fname,Purr,Bark,Purr,Meow\nt.wav,0,0,0,0\n", DataError, "column 'Purr' twice"),
        ("sample_submission.csv", "fname,Purr,Bark,Meow\nt.wav,0,0,0\nt.wav,0,0,0\n", DataError, r"two rows of t\.wav"),
    ],
)
def test_invalid_tables_raise_with_the_problem(data, name, text, error, message):
    (data / name).write_text(text)
    with pytest.raises(error, match=message):
        load_dataset(data)


def test_corrections_apply_to_both_parts_and_unused_ones_are_reported(data, tmp_path):
    csv = tmp_path / "corrections.csv"
    csv.write_text("fname,labels\nb.wav,remove\nn.wav,Purr\nelse.wav,remove\n")
    with pytest.warns(UserWarning, match=r"1 of 3 corrections .* match no clip and have no effect: else\.wav"):
        found = load_dataset(data, corrections=csv)
    assert found.curated["fname"].tolist() == ["a.wav", "c.wav"]
    assert found.noisy["labels"].tolist() == [["Purr"], ["Meow"]]


def test_corrections_with_an_unknown_tag_raise(data, tmp_path):
    csv = tmp_path / "corrections.csv"
    csv.write_text("fname,labels\nb.wav,Mow\n")
    with pytest.raises(LabelError, match="corrections.csv, row 1.*did you mean Meow"):
        load_dataset(data, corrections=csv)


@pytest.fixture
def with_corrupted(tmp_path):
    names = ["a.wav", *CORRUPTED_FILES]
    (tmp_path / "train_curated.csv").write_text("fname,labels\n" + "".join(f"{n},Bark\n" for n in names))
    (tmp_path / "train_curated").mkdir()
    touch(tmp_path / "train_curated", names)
    tags = "Bark,Bass_drum,Chink_and_clink,Dishes_and_pots_and_pans,Marimba_and_xylophone"
    (tmp_path / "sample_submission.csv").write_text(f"fname,{tags}\n")
    return tmp_path


def test_the_corrupted_six_are_kept_by_default(with_corrupted):
    assert len(load_dataset(with_corrupted).curated) == 7


def test_the_corrupted_six_may_be_dropped_as_the_9th_place_did(with_corrupted):
    found = load_dataset(with_corrupted, corrupted_files="drop")
    assert found.curated["fname"].tolist() == ["a.wav"] and found.noisy is None


def test_the_corrupted_six_may_join_the_noisy_pool_as_at_the_36th_place(with_corrupted):
    found = load_dataset(with_corrupted, corrupted_files="noisy")
    assert found.curated["fname"].tolist() == ["a.wav"] and tuple(found.noisy["fname"]) == CORRUPTED_FILES
    assert set(found.noisy["part"]) == {"noisy"} and "train_curated" in found.noisy["path"].iloc[0]


def test_three_of_the_corrupted_six_may_be_relabeled_as_the_1st_place_did(with_corrupted):
    table = load_dataset(with_corrupted, corrupted_files="relabel").curated
    assert dict(zip(table["fname"], table["labels"], strict=True)) == {
        "a.wav": ["Bark"], "f76181c4.wav": ["Bass_drum"], "c7db12aa.wav": ["Marimba_and_xylophone"],
        "7752cc8a.wav": ["Dishes_and_pots_and_pans", "Chink_and_clink"],
    }


def test_an_unknown_action_for_the_corrupted_six_raises(data):
    with pytest.raises(OptionError, match="keep, drop, noisy, relabel"):
        load_dataset(data, corrupted_files="delete")


def test_the_bundled_sample_is_read_without_a_warning(no_warnings):
    found = load_dataset(fat_sample())
    assert (len(found.curated), len(found.noisy), len(found.test), len(found.tags)) == (120, 72, 60, 10)


def test_a_missing_sample_raises_with_advice(monkeypatch, tmp_path):
    monkeypatch.setattr("fatai.data.datasets.fat2019.__file__", str(tmp_path / "fat2019.py"))
    with pytest.raises(DataError, match="reinstall fatai"):
        fat_sample()
