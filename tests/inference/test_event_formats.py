"""Every format of events, letter by letter."""

import csv
import json

import pytest

from fatai.errors import DataError, OptionError
from fatai.inference.events.formats import write_events
from fatai.inference.events.progress_log import FileEvents
from fatai.inference.events.segments import SoundEvent

BARK = FileEvents(
    "in/a.wav", [SoundEvent(0.0, 1.5, "Bark", 0.98765), SoundEvent(3600.0004, 3601.25, "Sea, waves", 0.5)]
)
QUIET = FileEvents("in/sub/b.flac", [])


def written(tmp_path, results, file_format, **options):
    write_events(tmp_path / "out" / "events", results, file_format, **options)
    return (tmp_path / "out" / "events").read_bytes().decode()


def test_csv(tmp_path):
    assert written(tmp_path, [BARK, QUIET], "csv") == (
        "file,start_s,end_s,tag,prob\n"
        "in/a.wav,0.000,1.500,Bark,0.9877\n"
        'in/a.wav,3600.000,3601.250,"Sea, waves",0.5000\n'
    )


def test_json_includes_recordings_without_events(tmp_path):
    assert json.loads(written(tmp_path, [BARK, QUIET], "json")) == {"files": [
        {"file": "in/a.wav", "events": [{"start_s": 0.0, "end_s": 1.5, "tag": "Bark", "prob": 0.9877},
                                        {"start_s": 3600.0, "end_s": 3601.25, "tag": "Sea, waves", "prob": 0.5}]},
        {"file": "in/sub/b.flac", "events": []},
    ]}
    assert json.loads(written(tmp_path, [], "json")) == {"files": []}


def test_audacity_has_start_end_and_label_separated_by_tabs(tmp_path):
    assert written(tmp_path, [BARK], "audacity") == "0.000\t1.500\tBark 0.99\n3600.000\t3601.250\tSea, waves 0.50\n"
    assert written(tmp_path, [QUIET], "audacity") == ""


def test_raven_has_a_selection_table(tmp_path):
    assert written(tmp_path, [BARK], "raven", high_hz=16000) == (
        "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tBegin Path\tTag\t"
        "Probability\n"
        "1\tSpectrogram 1\t1\t0.000\t1.500\t0.0\t16000.0\tin/a.wav\tBark\t0.9877\n"
        "2\tSpectrogram 1\t1\t3600.000\t3601.250\t0.0\t16000.0\tin/a.wav\tSea, waves\t0.5000\n"
    )


@pytest.mark.parametrize("file_format", ["audacity", "raven"])
def test_several_recordings_have_files_in_the_same_folders(tmp_path, file_format):
    write_events(tmp_path / "out", [BARK, QUIET], file_format, root="in")
    assert sorted(str(f.relative_to(tmp_path)) for f in tmp_path.rglob("*.txt")) == [
        "out/a.wav.txt",
        "out/sub/b.flac.txt",
    ]
    assert (tmp_path / "out/a.wav.txt").read_text() == written(tmp_path / "alone", [BARK], file_format)


@pytest.mark.parametrize("results", [[BARK, QUIET], []])
def test_a_single_file_for_several_recordings_is_an_error(tmp_path, results):
    with pytest.raises(OptionError, match="takes the events of one recording per file, got (2|none)"):
        write_events(tmp_path / "x", results, "audacity")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_outside_of_the_folder(tmp_path):
    with pytest.raises(DataError, match="evil.wav is not below in"):
        write_events(tmp_path / "out", [FileEvents("in/../../evil.wav", [])], "audacity", root="in")
    assert list(tmp_path.iterdir()) == []


def test_odd_names_and_tags_keep_their_columns(tmp_path):
    odd = FileEvents("a\tb\n\udcff.wav", [SoundEvent(0, 1, 'Bark\t"\nnew', 0.5)])
    write_events(tmp_path / "e.csv", [odd], "csv")
    with open(tmp_path / "e.csv", encoding="utf-8", errors="surrogateescape", newline="") as f:
        assert list(csv.reader(f))[1] == ["a\tb\n\udcff.wav", "0.000", "1.000", 'Bark\t"\nnew', "0.5000"]
    write_events(tmp_path / "e.txt", [odd], "audacity")
    assert (tmp_path / "e.txt").read_text() == '0.000\t1.000\tBark " new 0.50\n'
    write_events(tmp_path / "r.txt", [odd], "raven")
    assert [line.count(b"\t") for line in (tmp_path / "r.txt").read_bytes().splitlines()] == [9, 9]
    write_events(tmp_path / "e.json", [odd], "json")
    assert json.loads((tmp_path / "e.json").read_text())["files"][0]["file"] == odd.file


def test_an_unknown_format_is_an_error(tmp_path):
    with pytest.raises(OptionError, match="'audacty'; did you mean audacity"):
        write_events(tmp_path / "x", [BARK], "audacty")
