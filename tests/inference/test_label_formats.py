"""Labels of windows from and to Raven, Audacity, Label Studio and OpenSoundscape."""

import json
import math

import pandas as pd
import pytest
from helpers.tone_index import write_tones

from fatai.errors import DataError, OptionError
from fatai.inference.search.label_formats import LABEL_FORMATS, read_label_file, write_label_files
from fatai.inference.search.labels import window_label_table


@pytest.fixture
def recordings(tmp_path):
    return [str(path) for path in write_tones(tmp_path, 2, seconds=4)]


def rows(table):
    columns = ["file", "start", "end", "labels", "absent"]
    return [tuple(row) for row in table[columns].itertuples(index=False, name=None)]


@pytest.mark.parametrize("file_format", LABEL_FORMATS)
def test_what_is_written_is_read_again(recordings, tmp_path, file_format):
    a, b = recordings
    table = window_label_table([
        {"file": a, "start": 0.5, "end": 1.5, "labels": ["Rooster", "Dog bark"], "absent": ["Rain"]},
        {"file": a, "start": 2.0, "end": 3.25, "labels": ["Rain"], "absent": ["Rooster"]},
        {"file": b, "start": 0.0, "end": 1.0, "absent": ["Rooster"]},
    ])
    is_complete = file_format in ("csv", "opensoundscape")
    out = tmp_path / {"label-studio": "out.json", "raven": "", "audacity": ""}.get(file_format, "out.csv")
    if is_complete:
        write_label_files(table, out, file_format)
    else:
        with pytest.warns(UserWarning, match="1 windows without a tag are left out"):
            assert write_label_files(table, out, file_format) == 1
    file = {"raven": tmp_path / "low0.Table.1.selections.txt", "audacity": tmp_path / "low0.txt"}.get(file_format, out)
    again = read_label_file(file)
    expected = rows(table) if is_complete else [(*row[:4], []) for row in rows(table)[:2]]
    assert [(*row[:3], sorted(row[3]), sorted(row[4])) for row in rows(again)] == [
        (*row[:3], sorted(row[3]), sorted(row[4])) for row in expected
    ]


def test_one_hot_clips_of_opensoundscape_say_what_is_absent_and_what_is_not_known(recordings, tmp_path):
    (tmp_path / "one_hot.csv").write_text(
        "file,start_time,end_time,Rain,Rooster\nlow0.wav,0.0,3.0,0,1.0\nhigh1.wav,3.0,4.0,NaN,False\n"
    )
    assert rows(read_label_file(tmp_path / "one_hot.csv")) == [
        (recordings[0], 0.0, 3.0, ["Rooster"], ["Rain"]), (recordings[1], 3.0, 4.0, [], ["Rooster"])
    ]
    (tmp_path / "one_hot.csv").write_text("file,start_time,end_time,Rain\nlow0.wav,0.0,3.0,0.7\n")
    with pytest.raises(DataError, match=r"one_hot.csv, row 1 \(line 2\): Rain is '0.7'; expected 1, 0 or nothing"):
        read_label_file(tmp_path / "one_hot.csv")


def test_exports_of_label_studio_are_read_whatever_the_address_of_the_sound(recordings, tmp_path):
    region = {"type": "labels", "from_name": "label", "to_name": "audio",
              "value": {"start": 1.25, "end": 2.5, "channel": 0, "labels": ["Rooster"]}, "original_length": 4.0}
    choice = {"type": "choices", "from_name": "kind", "to_name": "audio", "value": {"choices": ["Rain"]}}
    tasks = [
        {"id": 1, "data": {"audio": "/data/upload/3/0a1b2c3d-low0.wav"},
         "annotations": [{"completed_by": {"id": 7, "email": "anna@x.org"}, "result": [region]}]},
        {"id": 2, "data": {"audio": "/data/local-files/?d=high1.wav"},
         "annotations": [{"completed_by": 2, "result": [choice]}]},
    ]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    table = read_label_file(tmp_path / "export.json")
    assert rows(table)[0] == (recordings[0], 1.25, 2.5, ["Rooster"], [])
    assert table["file"][1] == recordings[1] and math.isnan(table["start"][1]) and table["labels"][1] == ["Rain"]
    assert table["user"].tolist() == ["anna@x.org", "2"]
    short = [{"audio": "https://x.org/sounds/low0.wav", "id": 1, "annotator": 4,
              "label": [{"start": 0.5, "end": 1, "channel": 0, "labels": ["Rooster", "Rain"]}]}]
    (tmp_path / "min.json").write_text(json.dumps(short))
    assert rows(read_label_file(tmp_path / "min.json")) == [(recordings[0], 0.5, 1.0, ["Rooster", "Rain"], [])]


@pytest.mark.parametrize("text", ["{}", "[1]", '[{"id": 1}]', "not json", '[{"audio": "a", "l": [{"start": "x"}]}]'])
def test_other_json_is_refused_by_its_name(tmp_path, text):
    (tmp_path / "export.json").write_text(text)
    with pytest.raises(DataError, match=r"export\.json is no export of Label Studio"):
        read_label_file(tmp_path / "export.json")


def test_tables_of_sounds_are_labels_of_whole_files(recordings, tmp_path):
    (tmp_path / "sounds.csv").write_text("file,tags\nlow0.wav,Rain\n")
    table = read_label_file(tmp_path / "sounds.csv")
    assert table["file"][0] == recordings[0] and math.isnan(table["start"][0]) and table["labels"][0] == ["Rain"]
    with pytest.raises(DataError, match="of the whole file; this format needs start and end"):
        write_label_files(table, tmp_path / "x", "raven")
    with pytest.raises(OptionError, match="did you mean raven"):
        write_label_files(table, tmp_path / "x", "ravn")


def test_recordings_of_one_name_would_overwrite_each_other(tmp_path):
    table = window_label_table(
        {"file": f"{folder}/rec.wav", "start": 0.0, "end": 1.0, "labels": ["Rain"]} for folder in "ab"
    )
    with pytest.raises(DataError, match="2 recordings are called rec"):
        write_label_files(table, tmp_path / "x", "audacity")


def test_the_command_merges_users_and_lists_conflicts(main_with, recordings, tmp_path):
    for user, cells in (("anna", "Rain,"), ("ben", ",Rain")):
        (tmp_path / f"{user}.csv").write_text(
            f"file,start,end,labels,absent\nlow0.wav,0,1,{cells}\nlow0.wav,1,2,Rooster,\n"
        )
    ended = main_with("labels", tmp_path / "anna.csv", tmp_path / "ben.csv", "--out", tmp_path / "all.csv",
                      "--conflicts", tmp_path / "conflicts.csv")
    assert ended.returncode == 0 and "1 windows with labels of 2 files\n1 tags of windows are left out" in ended.stdout
    assert pd.read_csv(tmp_path / "conflicts.csv")[["tag", "present", "absent"]].values.tolist() == [
        ["Rain", "anna", "ben"]
    ]
    assert pd.read_csv(tmp_path / "all.csv")["user"].tolist() == ["anna ben"]
    ended = main_with("labels", tmp_path / "all.csv", "--format", "raven", "--out", tmp_path / "raven")
    assert ended.returncode == 0 and (tmp_path / "raven" / "low0.Table.1.selections.txt").is_file()
