"""A CSV of sound files in place of the competition's folder."""

import shutil
from pathlib import Path

import pytest

from fatai.data.audit.dataset import check_dataset
from fatai.data.datasets.fat2019 import load_dataset
from fatai.data.tables import read_sound_table, standardize_columns
from fatai.errors import DataError
from fatai.inference.ground_truth import read_truth
from fatai.inference.predictions import Predictions


@pytest.fixture
def sound_table(tmp_path):
    """Sounds in a folder beside the table, and one below another; no sound file is opened."""
    for name in ("audio/a.wav", "audio/b.wav", "late/c.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "labels.csv").write_text('file,site,tags\na.wav,x,"dog,rain"\naudio/b.wav,y,rain\nc.wav,y,cat\n')
    return tmp_path


def test_sounds_are_found_where_they_are_named_and_in_folders_below(sound_table):
    data = load_dataset(sound_table / "labels.csv")
    assert data.curated["fname"].tolist() == ["a.wav", "audio/b.wav", "c.wav"]
    assert data.curated["path"].tolist() == [
        str(sound_table / "audio/a.wav"),
        str(sound_table / "audio/b.wav"),
        str(sound_table / "late/c.wav"),
    ]
    assert data.curated["labels"].tolist() == [["dog", "rain"], ["rain"], ["cat"]]
    assert data.curated["site"].tolist() == ["x", "y", "y"]
    assert data.tags == ("cat", "dog", "rain")
    assert (data.noisy, data.sample, len(data.test), len(data.missing)) == (None, None, 0, 0)


@pytest.mark.parametrize("columns, expected", [
    (["fname", "labels"], ["fname", "labels"]),
    (["path", "class"], ["fname", "labels"]),
    (["tags", "File"], ["labels", "fname"]),
    (["filename", "fold", "target", "category"], ["fname", "fold", "target", "labels"]),
    (["a", "b"], ["a", "b"]),
    (["path", "file", "label", "tags"], ["path", "fname", "labels", "tags"]),
])
def test_columns_have_synonyms(columns, expected):
    assert standardize_columns(columns) == expected


def test_a_missing_file_is_moved_to_missing_with_a_warning(sound_table):
    (sound_table / "late/c.wav").unlink()
    with pytest.warns(UserWarning, match=r"labels.csv: rows without a sound file: 1 curated \(c.wav\)"):
        data = load_dataset(sound_table / "labels.csv")
    assert data.missing["fname"].tolist() == ["c.wav"] and len(data.curated) == 2


def test_corrections_are_applied(sound_table):
    (sound_table / "corrections.csv").write_text("fname,labels\na.wav,rain\nc.wav,remove\n")
    data = load_dataset(sound_table / "labels.csv", sound_table / "corrections.csv")
    labels = dict(zip(data.curated["fname"], data.curated["labels"], strict=True))
    assert labels == {"a.wav": ["rain"], "audio/b.wav": ["rain"]}


@pytest.mark.parametrize("table, message", [
    ("sound,what\na.wav,dog\n", r"no column of tags: it has sound, what; call one labels \(or label, tags"),
    ("a,b\na.wav,dog\n", r"no column of file names: it has a, b; call one fname"),
    ("file,tags\n", r"a header but no rows"),
    ("file,tags\nz.wav,dog\n", r"none of the 1 sound files in .*labels.csv, such as z.wav, is in"),
    ("file,tags\n../a.wav,dog\n", r"'../a.wav', which is outside"),
    ("file,tags\n/a.wav,dog\n", r"'/a.wav', which is outside"),
])
def test_an_invalid_table_raises_with_the_problem(sound_table, table, message):
    (sound_table / "labels.csv").write_text(table)
    with (
        pytest.raises(DataError, match=message),
        pytest.warns(UserWarning) if "z.wav" in table else pytest.MonkeyPatch.context(),
    ):
        load_dataset(sound_table / "labels.csv")


def test_check_dataset_reads_the_files_of_a_table(tmp_path, sample):
    rows = (sample / "train_curated.csv").read_text().splitlines()[1:4]
    (tmp_path / "labels.csv").write_text("\n".join(["file,tags", *rows, "z.wav,Rain"]) + "\n")
    (tmp_path / "audio").mkdir()
    for row in rows:
        shutil.copy(sample / "train_curated" / row.split(",")[0], tmp_path / "audio")
    report = check_dataset(tmp_path / "labels.csv", threads=1)
    assert report.files["fname"].tolist() == [row.split(",")[0] for row in rows] and (report.files["error"] == "").all()
    assert [(f.kind, f.fname) for f in report.findings if f.kind == "missing"] == [("missing", "z.wav")]


def test_a_name_that_two_files_have_needs_its_folder(sound_table):
    shutil.copy(sound_table / "audio/a.wav", sound_table / "late/a.wav")
    with pytest.raises(DataError, match=r"'a.wav', which exists 2 times .* include the folder in the name"):
        read_sound_table(sound_table / "labels.csv")


def test_the_table_is_also_the_ground_truth_of_scores(sound_table):
    truth = read_truth(sound_table / "labels.csv", ("cat", "dog", "rain"))
    assert {fname: flags.tolist() for fname, flags in truth.items()} == {
        "a.wav": [False, True, True], "audio/b.wav": [False, False, True], "c.wav": [True, False, False],
    }


def test_a_folder_with_a_table_of_another_name_raises_with_the_advice_to_pass_the_table(sound_table):
    with pytest.raises(DataError, match=r"its tables are labels.csv.*pass its path instead of the folder"):
        load_dataset(sound_table)


def test_the_sounds_of_a_table_are_predicted(tiny_run, tmp_path, sample, main_with):
    names = [Path(shutil.copy(sound, tmp_path)).name for sound in sorted((sample / "test").iterdir())[:3]]
    (tmp_path / "mine.csv").write_text("file,tags\n" + "".join(f"{name},x\n" for name in names))
    ended = main_with("predict", tiny_run.out, tmp_path / "mine.csv", "--out", tmp_path / "tags.csv")
    assert ended.returncode == 0, ended.stderr
    assert Predictions.from_csv(tmp_path / "tags.csv").fnames == tuple(names)
