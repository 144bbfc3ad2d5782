"""Files of predictions and of truth as people have them: times of segments, encodings, separators, paths of clips."""

import csv
import io

import numpy as np
import pandas as pd
import pytest

from fatai.data.clip_names import pair_names
from fatai.ensemble.ensemble import ensemble
from fatai.ensemble.streaming import average_files
from fatai.errors import DataError, OptionError, SubmissionError
from fatai.inference.ground_truth import read_truth
from fatai.inference.prediction_files import PredictionWriter
from fatai.inference.predictions import Predictions, check_submission

TAGS = ("Bark", "Meow")
SEGMENTS = Predictions(["a.wav#t=0,1.5", "a.wav#t=1.5,3", "b.wav"], TAGS, [[0.5, 0.25], [0.125, 0.5], [1, 0]])
QUOTED = (
    'fname,start_s,end_s,Bark,Meow\n"a.wav#t=0,1.5",0.0,1.5,0.5,0.25\n"a.wav#t=1.5,3",1.5,3.0,0.125,0.5\n'
    "b.wav,,,1.0,0.0\n"
)
# The largest value of each clip is that of its tag.
PREDS = Predictions(["x/1.wav", "y/1.wav", "2.wav"], TAGS, [[0.75, 0.25], [0.25, 0.5], [0.875, 0]])
TRUTH = "fname,labels\nx/1.wav,Bark\ny/1.wav,Meow\n2.wav,Bark\n"


# ---- times of segments --------------------------------------------------------------------------------------------


def test_segments_have_columns_of_times_and_read_back(tmp_path):
    SEGMENTS.to_csv(tmp_path / "p.csv")
    assert (tmp_path / "p.csv").read_text() == QUOTED
    assert Predictions.from_csv(tmp_path / "p.csv") == SEGMENTS
    frame = pd.read_csv(tmp_path / "p.csv")
    assert frame["start_s"].tolist()[:2] == [0, 1.5] and frame["end_s"].isna().tolist() == [False, False, True]


def test_times_of_another_program_beside_the_name_of_the_recording_are_read(tmp_path):
    (tmp_path / "p.csv").write_text(QUOTED.replace('"a.wav#t=0,1.5"', "a.wav").replace('"a.wav#t=1.5,3"', "a.wav"))
    assert Predictions.from_csv(tmp_path / "p.csv") == SEGMENTS


@pytest.mark.parametrize("times", ["1,0.5", "x,2", "-1,2", ",2", "0,inf"])
def test_wrong_times_are_an_error_of_their_line(tmp_path, times):
    (tmp_path / "p.csv").write_text(f"fname,start_s,end_s,Bark\nb.wav,,,1\na.wav,{times},0.5\n")
    with pytest.raises(DataError, match=r"p\.csv: line 3 \('a.wav'\): start_s is .* the end after the start"):
        Predictions.from_csv(tmp_path / "p.csv")


def test_statuses_times_and_tags_of_their_names_go_together(tmp_path):
    preds = Predictions(SEGMENTS.fnames, ("Bark", "start_s", "status"), np.full((3, 3), 0.5), silent=["a.wav#t=0,1.5"])
    preds.to_csv(tmp_path / "p.csv")
    assert Predictions.from_csv(tmp_path / "p.csv") == preds
    with pytest.raises(DataError, match="the tags begin with start_s and end_s"):
        PredictionWriter(io.StringIO(), ("start_s", "end_s", "Bark"))


def test_averages_of_segments_keep_the_times(tmp_path):
    SEGMENTS.to_csv(tmp_path / "p.csv")
    average_files([tmp_path / "p.csv"] * 2, tmp_path / "mean.csv")
    assert (tmp_path / "mean.csv").read_text() == QUOTED
    assert ensemble([tmp_path / "p.csv"] * 2) == SEGMENTS


def test_a_submission_of_segments_has_the_columns_of_the_sample(tmp_path):
    with (tmp_path / "sample.csv").open("w", newline="") as f:
        csv.writer(f).writerows([("fname", *TAGS), *((name, 0, 0) for name in SEGMENTS.fnames)])
    SEGMENTS.to_submission(tmp_path / "s.csv", sample=tmp_path / "sample.csv")
    assert (tmp_path / "s.csv").read_text().splitlines()[:2] == ["fname,Bark,Meow", '"a.wav#t=0,1.5",0.5,0.25']


@pytest.mark.parametrize("text", [
    "file,start_time,end_time,label\na.wav,0,1.5,Bark\na.wav,1.5,3,Meow\nb.wav,,,\n",
    "fname,start_s,end_s,labels\na.wav,0,1.5,Bark\na.wav,1.5,3,Meow\n",
    "fname,start,end,Bark,Meow\na.wav,0,1.5,1,0\na.wav,1.5,3,0,1\n",
    "fname;offset;duration;labels\na.wav;0;1,5;Bark\na.wav;1,5;1,5;Meow\n",
])
def test_the_truth_of_segments_may_have_columns_of_times(tmp_path, text):
    (tmp_path / "truth.csv").write_text(text.replace("b.wav,,,\n", ""))
    preds = SEGMENTS.select(SEGMENTS.fnames[:2])
    assert preds.align_with(tmp_path / "truth.csv").targ.tolist() == [[True, False], [False, True]]
    assert preds.score(tmp_path / "truth.csv") == 1


def test_a_frame_of_segments_is_a_truth():
    times = {"fname": ["a.wav", "a.wav"], "start_s": [1.5, 0], "end_s": [3, 1.5]}
    for labels in ({"labels": ["Meow", "Bark"]}, {"Bark": [0, 1], "Meow": [1, 0]}):
        assert SEGMENTS.select(SEGMENTS.fnames[:2]).score(pd.DataFrame({**times, **labels})) == 1


def test_predictions_of_a_table_of_segments_are_scored_by_it(tiny_run, sample, main_with, tmp_path):
    sound = next((sample / "train_curated").glob("*.ogg"))
    (tmp_path / sound.name).write_bytes(sound.read_bytes())
    tags = Predictions.from_csv(tiny_run.out / "oof.csv").tags
    rows = [f"{sound.name},{start},{start + 0.25},{tags[k]}" for k, start in enumerate((0, 0.25))]
    (tmp_path / "t.csv").write_text("\n".join(["file,start_s,end_s,label", *rows]) + "\n")
    out = tmp_path / "p.csv"
    assert main_with("predict", tiny_run.out, tmp_path / "t.csv", "--out", out).returncode == 0
    table = pd.read_csv(out)
    assert list(table.columns) == ["fname", "start_s", "end_s", *tags]
    assert table["start_s"].tolist() == [0, 0.25] and table["end_s"].tolist() == [0.25, 0.5]
    done = main_with("score", out, "--truth", tmp_path / "t.csv")
    assert done.returncode == 0 and done.stdout.startswith("lwlrap 0."), done.stderr
    assert main_with("ensemble", out, out, "--out", tmp_path / "e.csv").returncode == 0
    assert Predictions.from_csv(tmp_path / "e.csv") == Predictions.from_csv(out)


# ---- encodings and separators ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_predictions_and_truth_are_read_in_every_encoding(tmp_path, encoding, separator):
    text = "fname,Häher,Meow\nblüte.wav,0.75,0.25\n2.wav,0.25,0.5\n".replace(",", separator)
    (tmp_path / "p.csv").write_bytes(text.encode(encoding))
    flags = text.replace("0.75", "1").replace("0.25", "0").replace("0.5", "1")
    (tmp_path / "flags.csv").write_bytes(flags.encode(encoding))
    labels = "fname,labels\nblüte.wav,Häher\n2.wav,Meow\n".replace(",", separator)
    (tmp_path / "labels.csv").write_bytes(labels.encode(encoding))
    expected = Predictions(["blüte.wav", "2.wav"], ["Häher", "Meow"], [[0.75, 0.25], [0.25, 0.5]])
    if encoding == "cp1252":
        with pytest.warns(UserWarning, match=r"p\.csv is not in UTF-8 and was read as Windows-1252"):
            preds = Predictions.from_csv(tmp_path / "p.csv")
        with pytest.warns(UserWarning, match=r"flags\.csv is not in UTF-8"):
            assert preds.score(tmp_path / "flags.csv") == 1
        with pytest.warns(UserWarning, match=r"labels\.csv is not in UTF-8"):
            assert preds.score(tmp_path / "labels.csv") == 1
    else:
        preds = Predictions.from_csv(tmp_path / "p.csv")
        assert preds.score(tmp_path / "flags.csv") == preds.score(tmp_path / "labels.csv") == 1
    assert preds == expected


def test_a_spreadsheet_with_decimal_commas_is_read(tmp_path):
    (tmp_path / "p.csv").write_text("sep=;\nfname;Bark;Meow\n1.wav;0,5;0,25\n2.wav;1;1,5E-3\n")
    assert Predictions.from_csv(tmp_path / "p.csv").probs.tolist() == [[0.5, 0.25], [1, 0.0015]]
    (tmp_path / "p.csv").write_text("sep=;\nfname;Bark\n1.wav;0,5\n2.wav;x\n")
    with pytest.raises(DataError, match=r"line 4 \('2.wav'\), column 'Bark': 'x' is not a number"):
        Predictions.from_csv(tmp_path / "p.csv")


@pytest.mark.parametrize("data", [b"fname;Bark\na.wav;0.5\n", "fname,Bark\na.wav,0.5\n".encode("utf-16")])
def test_a_submission_must_be_as_servers_read_it(tmp_path, data):
    (tmp_path / "sample.csv").write_text("fname,Bark\na.wav,0\n")
    (tmp_path / "s.csv").write_bytes(data)
    with pytest.raises(SubmissionError):
        check_submission(tmp_path / "s.csv", tmp_path / "sample.csv")


# ---- paths of clips -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [
    ("x/1.wav", "y/1.wav", "2.wav"), ("/data/x/1.wav", "/data/y/1.wav", "/data/2.wav"),
    ("audio\\x\\1.wav", "audio\\y\\1.wav", "audio\\2.wav"), ("./x/1.wav", "./y/1.wav", "./2.wav"),
])
def test_a_truth_with_longer_paths_is_matched(tmp_path, names):
    rows = [f"{name},{label}" for name, label in zip(names, ("Bark", "Meow", "Bark"), strict=True)]
    (tmp_path / "t.csv").write_text("\n".join(["fname,labels", *reversed(rows)]) + "\n")
    assert PREDS.align_with(tmp_path / "t.csv").targ.tolist() == [[True, False], [False, True], [True, False]]
    assert PREDS.score(tmp_path / "t.csv") == 1
    assert ensemble([PREDS, PREDS], oof=[PREDS, PREDS], truth=tmp_path / "t.csv").oof_score == 1


def test_a_truth_with_shorter_paths_is_matched():
    preds = Predictions(["/d/x/1.wav", "/d/y/1.wav", "/d/2.wav"], TAGS, PREDS.probs)
    assert preds.score(pd.read_csv(io.StringIO(TRUTH))) == 1


@pytest.mark.parametrize(("ours", "theirs"), [(["x/1.wav", "y/1.wav"], ["1.wav"]), (["1.wav"], ["x/1.wav", "y/1.wav"])])
def test_a_name_of_two_clips_is_an_error_that_names_both(ours, theirs):
    with pytest.raises(OptionError, match=r"1\.wav is the name of 2 clips, x/1\.wav and y/1\.wav"):
        pair_names(ours, theirs)
    truth = pd.DataFrame({"fname": theirs, "labels": "Bark"})
    with pytest.raises(OptionError, match=r"x/1\.wav and y/1\.wav"):
        Predictions(ours, ["Bark"], np.ones((len(ours), 1))).score(truth)


def test_two_names_for_one_clip_are_an_error_that_names_both():
    with pytest.raises(OptionError, match=r"a/x/1\.wav may be 1\.wav or x/1\.wav"):
        pair_names(["a/x/1.wav"], ["1.wav", "x/1.wav"])


def test_ambiguous_names_that_differ_in_case_are_shown_as_they_were_given():
    with pytest.raises(OptionError, match=r"1\.WAV is the name of 2 clips, X/1\.Wav and Y/1\.flac"):
        pair_names(["1.WAV"], ["X/1.Wav", "Y/1.flac"])
    with pytest.raises(OptionError, match=r"A/X/1\.WAV may be 1\.flac or x/1\.Mp3"):
        pair_names(["A/X/1.WAV"], ["1.flac", "x/1.Mp3"])


def test_equal_names_come_first():
    assert pair_names(["1.wav", "x/1.wav"], ["x/1.wav", "1.wav"]) == {"1.wav": "1.wav", "x/1.wav": "x/1.wav"}
    assert pair_names(["1.wav", "3.wav"], ["2.wav", "1.wav"]) == {"1.wav": "1.wav"}


@pytest.mark.parametrize("names", [
    ("x/1.flac", "y/1.flac", "2.flac"), ("X/1.WAV", "Y/1.Wav", "2.wav"), ("x/1", "y/1", "2"),
    ("D/X/1.mp3", "D/y/1", "D/2"),
])
def test_names_that_differ_in_case_or_suffix_are_one_clip_with_a_warning(names):
    truth = pd.read_csv(io.StringIO(TRUTH)).assign(fname=names)
    with pytest.warns(UserWarning, match="differ in case or suffix, such as x/1.wav and"):
        assert PREDS.score(truth) == 1


def test_names_that_are_alike_in_one_table_are_told_apart():
    assert pair_names(["a.wav", "A.wav"], ["a.flac"]) == {}
    assert pair_names(["a.wav", "A.wav"], ["A.wav"]) == {"A.wav": "A.wav"}
    with pytest.warns(UserWarning, match="1 names"):
        assert pair_names(["a.wav", "b.wav"], ["a.wav", "B.wav"]) == {"a.wav": "a.wav", "b.wav": "B.wav"}


# ---- clips without a prediction ------------------------------------------------------------


def test_a_score_counts_clips_that_could_not_be_read_with_the_prior_and_says_so(tmp_path):
    (tmp_path / "t.csv").write_text(TRUTH)
    probs = PREDS.probs.copy()
    probs[1] = [0.75, 0.25]  # the prior, which ranks the wrong tag first: precision 1/2 at the only tag
    preds = Predictions(PREDS.fnames, TAGS, probs, unreadable=["y/1.wav"])
    with pytest.warns(UserWarning, match=r"1 of 3 clips could not be read and count with the prior: 'y/1\.wav'"):
        score = preds.score(tmp_path / "t.csv")
    assert score == pytest.approx((1 + 1 + 0.5) / 3)
    with pytest.warns(UserWarning, match="1 of 3 clips could not be read and count with the prior"):
        combined = ensemble([preds, PREDS], oof=[preds, PREDS], truth=tmp_path / "t.csv")
    assert combined.unreadable == ("y/1.wav",)


def test_labels_in_a_truth_are_checked_against_the_tags(tmp_path):
    (tmp_path / "t.csv").write_text("fname;labels\n1.wav;Bark,Meow\n2.wav;\n")
    flags = read_truth(tmp_path / "t.csv", TAGS)
    assert {name: row.tolist() for name, row in flags.items()} == {"1.wav": [True, True], "2.wav": [False, False]}
