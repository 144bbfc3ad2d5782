"""A CSV of sound files in place of the competition's folder."""

import shutil
from pathlib import Path

import pytest

from fatai.cli.paths import read_sound_list, sounds_by_name
from fatai.data.audit.dataset import check_dataset
from fatai.data.datasets.fat2019 import load_dataset
from fatai.data.table_columns import TableColumns, standardize_columns
from fatai.data.tables import read_sound_table
from fatai.errors import DataError
from fatai.experiment.manifest import noted_columns
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
    ("sound,who,what\na.wav,me,dog\n", r"no column of tags: it has sound, who, what; call one labels \(or label, tags"),
    ("a,b\nx,dog\n", r"no column of file names: it has a, b; call one fname .* or name it with --file-col"),
    ("file,tags\n", r"a header but no rows"),
    ("file,tags\nz.wav,dog\n", r"none of the 1 sound files in .*labels.csv, such as z.wav, is in"),
    ("file,tags\n../a.wav,dog\n", r"'../a.wav', which is outside"),
    ("file,tags\naudio/../../a.wav,dog\n", r"'audio/../../a.wav', which is outside"),
    ("file,tags\n..\\a.wav,dog\n", r"which is outside"),
    ("file,tags\n,dog\n", r"row 1 \(line 2\) has no file name"),
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


def test_a_folder_of_classes_is_the_ground_truth_of_scores(tmp_path):
    for name in ("cat/a.wav", "cat/b.wav", "rain/c.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    truth = read_truth(tmp_path, ("cat", "rain"))
    assert {name: flags.tolist() for name, flags in truth.items()} == {
        "cat/a.wav": [True, False], "cat/b.wav": [True, False], "rain/c.wav": [False, True],
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


def tags_by_file(data, root):
    """Tags of each file that was found, by its path below the root."""
    return {
        str(Path(path).relative_to(root)): labels
        for path, labels in zip(data.curated["path"], data.curated["labels"], strict=True)
    }


DOG_AND_CAT = {"audio/a.wav": ["dog"], "late/c.wav": ["cat"]}


@pytest.mark.parametrize("text", [
    "file\ttags\na.wav\tdog\nc.wav\tcat\n",
    "file,cat,dog\na.wav,0,1\nc.wav,1,0\n",
    "file,cat,dog\na.wav,False,True\nc.wav,True,\n",
    ",cat,dog\naudio/a.wav,0.0,1.0\nlate/c.wav,1.0,0.0\n",
    ",file,tags\n0,a.wav,dog\n1,c.wav,cat\n",
    "file,tags\na,dog\nc,cat\n",
    "file,tags\nA.WAV,dog\nc.mp3,cat\n",
    "file,tags\naudio\\a.wav,dog\n.\\late\\c.wav,cat\n",
    "file,tags\nD:\\rec\\audio\\a.wav,dog\nD:\\rec\\c.wav,cat\n",
    "file,tags\n/home/me/audio/a.wav,dog\n/home/me/late/c.wav,cat\n",
    "file,tags\nlate/../audio/a.wav,dog\n./late/c.wav,cat\n",
    "who,species,recording\nme,dog,a.wav\nme,cat,c.wav\n",
    "file,what\na.wav,dog\nc.wav,cat\n",
    "file,tags\na.wav,['dog']\nc.wav,\"['cat', 'cat']\"\n",
])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_shape_of_a_table_gives_the_same_clips(sound_table, text):
    (sound_table / "mine.tsv").write_text(text)
    data = load_dataset(sound_table / "mine.tsv")
    assert tags_by_file(data, sound_table) == DOG_AND_CAT and data.tags == ("cat", "dog")


def test_absolute_paths_lead_anywhere(sound_table, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "d.wav"
    other.write_bytes(b"")
    (sound_table / "mine.csv").write_text(f"file,tags\n{sound_table}/audio/a.wav,dog\n{other},cat\n")
    assert load_dataset(sound_table / "mine.csv").curated["path"].tolist() == [
        str(sound_table / "audio/a.wav"), str(other)
    ]


@pytest.mark.parametrize("text, notice, labels", [
    ("file,tags\na.wav,dog\na.wav,loud\nc.wav,cat\n", "3 rows are 2 files; the tags .* were joined: a.wav",
     [["dog", "loud"], ["cat"]]),
    ("file,tags\na.wav,dog\naudio/a.wav,loud\n", "2 rows are 1 files", [["dog", "loud"]]),
    ("file,tags\na.wav,dog|loud\nc.wav,cat\n", r"separated by \|", [["dog", "loud"], ["cat"]]),
    ("file,tags\na.wav,1.0\nc.wav,\n", "numbers of the column tags are tags without .0", [["1"], []]),
    ("file,dog,cat\na.wav,1,0\nc.wav,0,0\n", "columns of 0 and 1 are the tags: dog, cat; no clip has the tags cat",
     [["dog"], []]),
    ("file,tags\na.wav,1\nc.wav,0\n", "taken as two tags", [["1"], ["0"]]),
    ("file,present\na.wav,1\nc.wav,0\n", "are the tags: present", [["present"], []]),
    ("file,tags,weight\na.wav,dog,2\n", "not used in a table of sounds: weight", [["dog"]]),
    ("file,tags,loud,near\na.wav,dog,1,0\nc.wav,cat,0,1\n", "columns of 0 and 1 are no tags: loud, near",
     [["dog"], ["cat"]]),
    ("primary_label,secondary_labels,filename\ndog,['loud'],a.wav\n", "columns primary_label and secondary_labels",
     [["dog", "loud"]]),
    ("file,tags\na.wav,NaN\nc.wav,cat\n", r"count as empty.*NaN \(1\)", [[], ["cat"]]),
    ("file,tags\nA.wav,dog\n", "1 names differ from their files .* such as A.wav", [["dog"]]),
])
def test_what_is_not_plain_is_told(sound_table, text, notice, labels):
    (sound_table / "mine.csv").write_text(text)
    with pytest.warns(UserWarning, match=notice):
        data = load_dataset(sound_table / "mine.csv")
    assert data.curated["labels"].tolist() == labels


def test_columns_and_separator_can_be_given(sound_table):
    (sound_table / "mine.csv").write_text("a,b,file,tags\na.wav,dog/loud,x,y\n")
    data = load_dataset(sound_table / "mine.csv", columns=TableColumns("a", ("b",), "/"))
    assert data.curated[["fname", "labels"]].to_numpy().tolist() == [["a.wav", ["dog", "loud"]]]
    assert TableColumns.from_dict(data.columns.to_dict()) == data.columns
    with pytest.raises(DataError, match=r"no column 'c'; known: a, b, file, tags"):
        load_dataset(sound_table / "mine.csv", columns=TableColumns("c"))


def test_a_folder_without_its_file_in_the_name_is_not_matched_to_another_clip(sound_table):
    (sound_table / "mine.csv").write_text("file,tags\nx/a.wav,dog\ny/a.wav,cat\nlate/c.wav,cat\n")
    with pytest.warns(UserWarning, match=r"2 curated \(x/a.wav, y/a.wav\)"):
        assert tags_by_file(load_dataset(sound_table / "mine.csv"), sound_table) == {"late/c.wav": ["cat"]}


def test_a_folder_for_each_tag_is_a_data_set(tmp_path):
    for name in ("dog/a.wav", "dog/site/b.wav", "cat/c.wav", "cat/._c.wav", "__MACOSX/cat/c.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    data = load_dataset(tmp_path)
    assert tags_by_file(data, tmp_path) == {"cat/c.wav": ["cat"], "dog/a.wav": ["dog"], "dog/site/b.wav": ["dog"]}
    assert len(check_dataset(tmp_path, threads=1).files) == 3


def test_folders_of_parts_are_no_tags(tmp_path):
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.wav").write_bytes(b"")
    with pytest.raises(DataError, match="folders test, train, which are parts and no tags"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("load", [load_dataset, check_dataset])
def test_a_file_that_is_no_table_is_called_a_file(tmp_path, load):
    (tmp_path / "labels.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"labels.xlsx is neither a folder nor a table of sounds; expected a .csv"):
        load(tmp_path / "labels.xlsx")


@pytest.mark.parametrize("load", [load_dataset, check_dataset])
def test_a_missing_table_is_not_called_a_folder(tmp_path, load):
    with pytest.raises(DataError, match=r"^there is no table .*none.csv; expected one with a column of files and"):
        load(tmp_path / "none.csv")


def test_only_a_name_that_leads_out_is_outside(tmp_path):
    (tmp_path / "train_curated" / "x").mkdir(parents=True)
    (tmp_path / "train_curated" / "a.wav").write_bytes(b"")
    (tmp_path / "train_curated.csv").write_text("fname,labels\nx/../a.wav,dog\n")
    assert len(load_dataset(tmp_path).curated) == 1
    (tmp_path / "train_curated.csv").write_text("fname,labels\nx/../../a.wav,dog\n")
    with pytest.raises(DataError, match="which is outside"):
        load_dataset(tmp_path)


def test_truth_may_have_a_row_for_each_tag(sound_table):
    (sound_table / "labels.csv").write_text("file,tags\na.wav,dog\na.wav,cat\n")
    with pytest.warns(UserWarning, match="2 rows are 1 files"):
        truth = read_truth(sound_table / "labels.csv", ("cat", "dog"))
    assert {name: flags.tolist() for name, flags in truth.items()} == {"a.wav": [True, True]}


def test_truth_is_read_from_the_shapes_of_tables(sound_table):
    (sound_table / "labels.csv").write_text("recording,species,who\na.wav,dog,me\nc.wav,cat,me\n")
    with pytest.warns(UserWarning, match="files are those of the column recording"):
        truth = read_truth(sound_table / "labels.csv", ("cat", "dog"))
    assert {name: flags.tolist() for name, flags in truth.items()} == {"a.wav": [False, True], "c.wav": [True, False]}


def test_sounds_to_predict_need_no_tags(sound_table):
    (sound_table / "mine.csv").write_text("recording,site\na.wav,x\nc.wav,y\nz.wav,y\n")
    with pytest.warns(UserWarning, match="1 rows without a sound file are left out: z.wav"):
        named = sounds_by_name([sound_table / "mine.csv"], None)
    assert named == [("a.wav", str(sound_table / "audio/a.wav")), ("c.wav", str(sound_table / "late/c.wav"))]
    (sound_table / "list.txt").write_text(f"{sound_table}/audio/a.wav\n", encoding="utf-8-sig")
    assert read_sound_list(sound_table / "list.txt") == [("a.wav", sound_table / "audio/a.wav")]


def test_spellings_that_differ_little_are_found_whatever_their_counts(sound_table):
    for name in "efgh":
        (sound_table / f"{name}.wav").write_bytes(b"")
    rows = "a.wav,Dog bark\nc.wav,dog_bark\ne.wav,Rooster\nf.wav,Roaster\ng.wav,Site 1\nh.wav,Site 2\nb.wav,NaN\n"
    (sound_table / "labels.csv").write_text("file,tags\n" + rows)
    with pytest.warns(UserWarning, match=r"NaN \(1\)"):
        findings = check_dataset(sound_table / "labels.csv", threads=1).findings
    details = [f.detail for f in findings if f.kind == "label"]
    assert details == [
        "the tags 'Dog bark' (1 clips) and 'dog_bark' (1) differ little: are they the same?",
        "the tags 'Roaster' (1 clips) and 'Rooster' (1) differ little: are they the same?",
    ]
    assert [(f.fname, f.detail) for f in findings if f.kind == "no_label"] == [
        ("b.wav", "its cell of labels is empty, or says NaN, None or null")
    ]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tags_may_be_called_like_columns(main_with, tmp_path, sample):
    names = (sample / "train_curated.csv").read_text().splitlines()[1:13]
    tags = ["fname", "labels", "path", "fold"]
    for name in names:
        shutil.copy(sample / "train_curated" / name.split(",")[0], tmp_path)
    rows = [f"{name.split(',')[0]},{tags[k % 4]}" for k, name in enumerate(names)]
    (tmp_path / "mine.csv").write_text("\n".join(["a,b", *rows]) + "\n")
    out = tmp_path / "run"
    ended = main_with("run", tmp_path / "mine.csv", "--recipe", "quick", "--epochs", "1", "--folds", "2", "--bs", "4",
                      "--arch", "m1", "--width", "0.125", "--crop-s", "0.5", "--out", out, "--file-col", "a",
                      "--tags-col", "b")
    assert ended.returncode == 0 and "report is made without" not in ended.stderr + ended.stdout, ended.stderr
    predicted = Predictions.from_csv(out / "oof.csv")
    assert predicted.tags == ("fname", "fold", "labels", "path") and len(predicted) == 12
    pairs = predicted.align_with(load_dataset(tmp_path / "mine.csv", columns=noted_columns(out)).curated[
        ["fname", "labels"]
    ])
    assert pairs.targ.sum(0).tolist() == [3, 3, 3, 3]
