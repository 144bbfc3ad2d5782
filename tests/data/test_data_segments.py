"""Rows with times are segments of files: read, located, kept together in folds, trained on, predicted and checked."""

import warnings

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from fatai.audio.io import audio_info, load_audio
from fatai.audio.segments import Segment, file_of, segment_path, split_segment
from fatai.cli.paths import sounds_by_name
from fatai.data.audit.dataset import check_dataset
from fatai.data.blocks import FATDataLoaders
from fatai.data.copies import sound_groups
from fatai.data.datasets.fat2019 import load_dataset
from fatai.data.segments import add_segments, has_segments, segment_columns
from fatai.data.tables import read_sound_files, read_sound_table
from fatai.errors import AudioError, DataError
from fatai.experiment.clip_tables import folded_table
from fatai.experiment.recipe import load_recipe

SR = 8000


@pytest.fixture
def recordings(tmp_path):
    """Three recordings of 4 s: tones of 500 Hz in the first second, 1000 in the second, and so on."""
    (tmp_path / "audio").mkdir()
    t = np.arange(SR) / SR
    wave = np.concatenate([0.5 * np.sin(2 * np.pi * 500 * k * t) for k in (1, 2, 3, 4)])
    for k in range(3):
        soundfile.write(tmp_path / "audio" / f"rec{k}.wav", wave / (k + 1), SR)
    return tmp_path


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def read(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_sound_table(path)


def loudest_hz(wave):
    return np.abs(np.fft.rfft(wave)).argmax() * SR / len(wave)


def test_times_of_0_and_1_are_no_tags(tmp_path):
    write(tmp_path / "t.csv", "file,start_time,end_time,Bark,Meow\na.wav,0,1,1,0\nb.wav,0,1,0,1\n")
    assert read(tmp_path / "t.csv")["labels"].tolist() == [["Bark"], ["Meow"]]


# ---- paths ------------------------------------------------------------------------------------------------------


def test_a_segment_is_written_as_a_media_fragment_and_read_back():
    assert segment_path("a b/rec.wav", 0, 1.5) == "a b/rec.wav#t=0,1.5"
    assert split_segment("a b/rec.wav#t=0,1.5") == Segment("a b/rec.wav", 0.0, 1.5)
    for name in ("rec.wav", "rec#t=1.wav", "rec.wav#t=2,1", "#t=1,2"):
        assert split_segment(name) == Segment(name)
    assert file_of("x.wav#t=3,4") == "x.wav"


def test_a_file_that_is_called_like_a_segment_is_that_file(tmp_path):
    path = tmp_path / "rec.wav#t=0,1"
    path.write_bytes(b"")
    assert split_segment(path) == Segment(str(path))


def test_a_segment_is_read_between_its_times(recordings):
    file = recordings / "audio" / "rec0.wav"
    wave, segment = load_audio(file, None), f"{file}#t=1,3"
    assert torch.equal(load_audio(segment, None), wave[SR:3 * SR])
    assert torch.equal(load_audio(segment, None, offset_s=1.5), wave[5 * SR // 2:3 * SR])
    assert torch.equal(load_audio(segment, None, offset_s=0.5, duration_s=0.25), wave[3 * SR // 2:7 * SR // 4])
    info = audio_info(segment)
    assert info.seconds == 2 and info.sr == SR


def test_a_segment_may_end_a_little_after_its_file_and_no_more(recordings):
    file = recordings / "audio" / "rec0.wav"
    assert len(load_audio(f"{file}#t=3,4.04", None)) == SR
    for times in ("3,4.2", "4,4.01"):
        with pytest.raises(AudioError, match="leads beyond the end of the file at 4.000 s; correct the times"):
            load_audio(f"{file}#t={times}", None)


# ---- tables -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "times"),
    [
        ("start_time,end_time", "1,2"), ("start,end", "1,2"), ("start_s,end_s", "1,2"), ("begin,end", "1,2"),
        ("onset,offset", "1,2"), ("offset,duration", "1,1"), ("Begin Time (s),End Time (s)", "1.0,2.0"),
    ],
)
def test_pairs_of_times_are_recognized(recordings, header, times):
    table = read(write(recordings / "t.csv", f"file,{header},label\naudio/rec0.wav,{times},cat\n"))
    assert table["path"].tolist() == [f"{recordings}/audio/rec0.wav#t=1,2"]
    assert table["fname"].tolist() == ["audio/rec0.wav#t=1,2"] and table["exists"].all()
    assert abs(loudest_hz(load_audio(table["path"][0], None)) - 1000) < 2


def test_each_row_is_a_clip_and_rows_of_one_segment_are_joined(recordings):
    rows = "rec0.wav,0,1,cat\nrec0.wav,1,2,dog\nrec0.wav,0,1,loud\nrec1.wav,0,1,cat\n"
    source = write(recordings / "t.csv", "file,start,end,tags\n" + rows)
    with pytest.warns(UserWarning, match="4 rows are 3 segments; the tags of a segment's rows were joined"):
        table = read_sound_table(source)
    assert table["labels"].tolist() == [["cat", "loud"], ["dog"], ["cat"]]
    assert read_sound_files(source)["fname"].tolist() == table["fname"].tolist()
    assert [path for _, path in sounds_by_name([source], None)] == table["path"].tolist()


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ("2,1", r"row 2 \(line 3\), rec1.wav: start is '2', end is '1'; expected seconds"),
        ("1,1", "start is '1', end is '1'"),
        (",1", "start is '', end is '1'"),
        ("-1,1", "start is '-1'"),
        ("nan,1", "start is 'nan'"),
        ("0,inf", "end is 'inf'"),
        ("0:01,0:02", "start is '0:01'"),
    ],
)
def test_times_that_are_no_segment_name_the_row(recordings, cells, message):
    source = write(recordings / "t.csv", f"file,start,end,tags\nrec0.wav,0,1,cat\nrec1.wav,{cells},dog\n")
    with pytest.raises(DataError, match=message):
        read_sound_table(source)


def test_files_that_are_slices_already_keep_their_length(recordings):
    assert segment_columns(["slice_file_name", "start", "end", "class"]) == []
    source = write(recordings / "t.csv", "slice_file_name,start,end,class\nrec0.wav,17.5,21.5,dog\n")
    assert read(source)["fname"].tolist() == ["rec0.wav"]


def test_times_with_a_comma_and_segments_that_are_segments_already():
    table = pd.DataFrame({"start": ["0,5", "0"], "end": ["1,5", "9"]})
    assert add_segments(["a.wav", "b.wav#t=1,2"], table, "t") == ["a.wav#t=0.5,1.5", "b.wav#t=1,2"]


HEAD = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)"


def test_a_selection_table_of_raven_names_its_files(recordings):
    rows = "1\tSpectrogram 1\t1\t0.5\t1.5\t0\t8000\trec0.wav\tcat\n2\tWaveform 1\t1\t0.5\t1.5\t0\t8000\trec0.wav\tcat\n"
    table = read(write(recordings / "s.txt", f"{HEAD}\tBegin File\tAnnotation\n{rows}"))
    assert table["fname"].tolist() == ["rec0.wav#t=0.5,1.5"] and table["labels"].tolist() == [["cat"]]


def test_a_selection_table_of_several_files_counts_from_the_start_of_each(recordings):
    rows = "1\tSpectrogram 1\t1\t5.0\t6.0\t0\t8000\trec1.wav\t1.0\tdog\n"
    table = read(write(recordings / "s.txt", f"{HEAD}\tBegin File\tFile Offset (s)\tAnnotation\n{rows}"))
    assert table["fname"].tolist() == ["rec1.wav#t=1,2"]


def test_a_selection_table_without_files_belongs_to_the_recording_beside_it(recordings):
    text = f"{HEAD}\tAnnotation\n1\tSpectrogram 1\t1\t2.0\t3.0\t0\t8000\tcat\n"
    table = read(write(recordings / "audio" / "rec1.Table.1.selections.txt", text))
    assert table["path"].tolist() == [f"{recordings}/audio/rec1.wav#t=2,3"]


def test_a_label_track_of_audacity_belongs_to_the_recording_beside_it(recordings):
    text = "0.0\t1.0\tcat\n\\\t100.0\t900.0\n1.000000\t2.500000\tdog\n"
    table = read(write(recordings / "audio" / "rec2.txt", text))
    assert table["fname"].tolist() == ["rec2.wav#t=0,1", "rec2.wav#t=1,2.5"]
    assert table["labels"].tolist() == [["cat"], ["dog"]]


def test_annotations_without_a_recording_say_what_was_expected(recordings):
    with pytest.raises(DataError, match=r"other.txt has no column of files; expected one recording.*other.wav, but"):
        read_sound_table(write(recordings / "audio" / "other.txt", "0\t1\tcat\n"))
    with pytest.raises(DataError, match=r"rec0.txt, line 2 is 'noise'; expected start, end and label"):
        read_sound_table(write(recordings / "audio" / "rec0.txt", "0\t1\tcat\nnoise\n"))
    with pytest.raises(DataError, match=r"rec0.txt, line 3: the label 'dog' starts at 2.0 and ends at 2.0"):
        read_sound_table(write(recordings / "audio" / "rec0.txt", "0\t1\tcat\n\n2.0\t2.0\tdog\n"))


# ---- data sets ----------------------------------------------------------------------------------------------------


@pytest.fixture
def table(recordings):
    rows = [f"rec{k}.wav,{s},{s + 1},{'cat' if s % 2 else 'dog'}" for k in range(3) for s in range(4)]
    return write(recordings / "t.csv", "file,start_time,end_time,tags\n" + "\n".join(rows) + "\n")


def test_folds_keep_the_segments_of_a_file_together_with_a_notice(table):
    data = load_dataset(table)
    with pytest.warns(UserWarning, match="several segments of a file, which stay in one fold"):
        clips, _, folds = folded_table(data, load_recipe("quick").override(n_folds=3))
    assert len(clips) == 12 and set(folds) == {0, 1, 2}
    fold_of = set(zip(map(file_of, clips["path"]), folds, strict=True))
    assert len(fold_of) == 3


def test_loaders_hold_out_whole_files_and_read_segments(table):
    df = pd.read_csv(table)
    dls = FATDataLoaders.from_df(
        df, table.parent / "audio", fn_col="file", label_col="tags", valid_pct=0.3, seed=1, crop_s=0.5, bs=4
    )
    train, valid = ({file_of(path) for path in dls.files(k)["path"]} for k in (0, 1))
    assert len(valid) == 1 and len(train) == 2 and not train & valid and len(dls.files(1)) == 4
    spec, targ = dls.one_batch()
    assert spec.shape[0] == 4 and targ.shape == (4, 2)


@pytest.mark.parametrize("kind", ["wave", "features"])
def test_cached_segments_are_clips_of_their_own(table, tmp_path, kind):
    df = pd.read_csv(table)
    options = {"fn_col": "file", "label_col": "tags", "valid_pct": 0, "crop_s": 0.5, "bs": 12, "front_end": "ninth"}
    dls = FATDataLoaders.from_df(
        df, table.parent / "audio", cache=kind, cache_dir=tmp_path / "cache", shuffle=False, **options
    )
    assert len(list((tmp_path / "cache").rglob("*"))) > 12 and len(dls.files(0)) == 12


def test_a_file_and_its_segments_are_one_sound(recordings):
    file = str(recordings / "audio" / "rec0.wav")
    groups = sound_groups([f"{file}#t=0,1", file, f"{file}#t=1,2", str(recordings / "audio" / "rec1.wav")])
    assert len(set(groups[:3])) == 1 and groups[3] != groups[0]
    assert has_segments([f"{file}#t=0,1", f"{file}#t=1,2"]) and not has_segments([file, file])


def test_the_check_of_a_data_set_reads_each_file_once_and_names_times_beyond_it(recordings):
    rows = "rec0.wav,0,1,cat\nrec0.wav,1,2,dog\nrec1.wav,3,9,cat\nrec1.wav,0,1,dog\n"
    report = check_dataset(write(recordings / "t.csv", "file,start,end,tags\n" + rows))
    assert report.files["fname"].tolist() == ["rec0.wav", "rec1.wav"]
    (finding,) = [f for f in report.findings if f.kind == "segment"]
    assert finding.fname == "rec1.wav#t=3,9" and "beyond the end of the file at 4.000 s" in finding.detail
    assert not [f for f in report.findings if f.kind in ("missing", "duplicate")]
