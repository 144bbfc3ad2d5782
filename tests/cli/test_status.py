"""Clips that cannot be read: a column of statuses, what reads it back, and the exit code of --strict."""

import os
import re
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import soundfile

from fatai.ensemble.ensemble import ensemble
from fatai.ensemble.streaming import average_files
from fatai.errors import DataError
from fatai.inference.predictions import Predictions

PREDS = Predictions(["a", "b", "c"], ["Bark", "Meow"], [[0.5, 0.25], [0.125, 0.5], [1, 0]], unreadable=["b"])
CSV = "fname,Bark,Meow,status\na,0.5,0.25,ok\nb,0.125,0.5,unreadable\nc,1.0,0.0,ok\n"


@pytest.fixture
def sounds(tmp_path, rng):
    """A folder with a readable sound before and after one that is not."""
    folder = tmp_path / "sounds"
    folder.mkdir()
    for name in ("a.wav", "c.wav"):
        soundfile.write(folder / name, 0.1 * rng.standard_normal(22050), 44100)
    (folder / "b.wav").write_bytes(b"RIFF" + bytes(100))
    return folder


def test_the_column_is_written_and_read_back(tmp_path):
    PREDS.to_csv(tmp_path / "p.csv")
    assert (tmp_path / "p.csv").read_text() == CSV
    assert Predictions.from_csv(tmp_path / "p.csv") == PREDS


def test_silent_clips_are_marked_and_read_back(tmp_path):
    preds = Predictions(PREDS.fnames, PREDS.tags, PREDS.probs, unreadable=["b"], silent=["c", "b", "a"])
    preds.to_csv(tmp_path / "p.csv")
    assert (tmp_path / "p.csv").read_text() == CSV.replace("ok", "silent")
    assert Predictions.from_csv(tmp_path / "p.csv") == preds and preds.silent == ("a", "c")
    assert preds != PREDS


def test_without_unreadable_clips_there_is_no_column(tmp_path):
    PREDS.select(["a", "c"]).to_csv(tmp_path / "p.csv")
    assert (tmp_path / "p.csv").read_text() == "fname,Bark,Meow\na,0.5,0.25\nc,1.0,0.0\n"


@pytest.mark.parametrize("unreadable", [(), ("b",)])
def test_a_tag_may_be_called_status(tmp_path, unreadable):
    preds = Predictions(["a", "b"], ["Bark", "status"], [[0.5, 0.25], [1, 1]], unreadable)
    preds.to_csv(tmp_path / "p.csv")
    assert Predictions.from_csv(tmp_path / "p.csv") == preds


def test_another_status_is_an_error_with_its_line(tmp_path):
    (tmp_path / "p.csv").write_text(CSV.replace("0.0,ok", "0.0,fine"))
    with pytest.raises(DataError, match=r"line 4 \('c'\): the status is 'fine'; expected ok, unreadable or silent"):
        Predictions.from_csv(tmp_path / "p.csv")


def test_a_submission_has_the_columns_of_the_sample(tmp_path):
    (tmp_path / "sample.csv").write_text("fname,Bark,Meow\nb,0,0\na,0,0\n")
    PREDS.to_submission(tmp_path / "s.csv", sample=tmp_path / "sample.csv")
    assert (tmp_path / "s.csv").read_text() == "fname,Bark,Meow\nb,0.125,0.5\na,0.5,0.25\n"


def test_an_average_marks_the_row_and_names_it(tmp_path):
    PREDS.to_csv(tmp_path / "one.csv")
    Predictions(PREDS.fnames, PREDS.tags, PREDS.probs).to_csv(tmp_path / "two.csv")
    files = [tmp_path / "one.csv", tmp_path / "two.csv"]
    with pytest.warns(UserWarning, match=r"1 clips could not be read in some members \('b'\)"):
        combined = ensemble(files)
    assert combined.unreadable == ("b",) and np.array_equal(combined.probs, PREDS.probs)
    with pytest.warns(UserWarning, match="whose prior enters the average"):
        assert average_files(files, tmp_path / "mean.csv") == 3
    assert (tmp_path / "mean.csv").read_text() == CSV


def test_score_names_rows_that_are_no_predictions(tmp_path, main_with):
    PREDS.to_csv(tmp_path / "p.csv")
    (tmp_path / "truth.csv").write_text("fname,labels\na,Bark\nb,Meow\nc,Bark\n")
    done = main_with("score", tmp_path / "p.csv", "--truth", tmp_path / "truth.csv")
    assert done.returncode == 0 and "1 of 3 clips could not be read and count with the prior: 'b'" in done.stderr


def test_members_that_agree_about_unreadable_clips_average_without_a_warning(tmp_path):
    PREDS.to_csv(tmp_path / "p.csv")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ensemble([PREDS, PREDS]).unreadable == ("b",)
        average_files([tmp_path / "p.csv"] * 2, tmp_path / "mean.csv")
    assert (tmp_path / "mean.csv").read_text() == CSV


def test_an_average_of_files_marks_clips_by_their_worst_status(tmp_path):
    PREDS.to_csv(tmp_path / "one.csv")
    silent = Predictions(PREDS.fnames, PREDS.tags, PREDS.probs, silent=["b", "c"])
    silent.to_csv(tmp_path / "two.csv")
    files = [tmp_path / "two.csv", tmp_path / "one.csv"]
    with pytest.warns(UserWarning, match="1 clips could not be read in some"):
        average_files(files, tmp_path / "mean.csv")
        combined = ensemble(files)
    assert (tmp_path / "mean.csv").read_text() == CSV.replace("c,1.0,0.0,ok", "c,1.0,0.0,silent")
    assert Predictions.from_csv(tmp_path / "mean.csv") == combined


@pytest.mark.parametrize("options", [[], ["--strict"]])
def test_predict_marks_the_row_and_strict_is_exit_code_3(sounds, tiny_run, main_with, tmp_path, options):
    out = tmp_path / "p.csv"
    done = main_with("predict", tiny_run.out, sounds, "--out", out, *options)
    assert done.returncode == (3 if options else 0) and "b.wav" in done.stderr
    assert pd.read_csv(out)["status"].tolist() == ["ok", "unreadable", "ok"]
    printed = main_with("predict", tiny_run.out, sounds, *options)
    assert printed.returncode == done.returncode and "b.wav: cannot be read\n" in printed.stdout
    (sounds / "b.wav").unlink()
    assert main_with("predict", tiny_run.out, sounds, "--out", tmp_path / "q.csv", *options).returncode == 0


@pytest.fixture
def broken(sounds):
    """A folder of two sounds that cannot be read."""
    (sounds / "a.wav").write_bytes(b"")
    (sounds / "c.wav").unlink()
    return sounds


@pytest.mark.parametrize("options", [[], ["--out", "p.csv"], ["--out", "p.csv", "--labels", "l.csv"]])
def test_predict_without_any_readable_sound_is_an_error_and_writes_no_table(
    broken, tiny_run, main_with, tmp_path, monkeypatch, options
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fatai.experiment.run_folder.thresholds_of_run", lambda run: None)
    for strict in ([], ["--strict"]):
        done = main_with("predict", tiny_run.out, broken, *options, *strict)
        assert done.returncode == 2 and not done.stdout
        message = r"^fatai-submit: none of the 2 sounds can be read; the first: .*a\.wav: .*empty"
        assert re.search(message, done.stderr, re.M)
    assert not list(tmp_path.glob("*.csv*"))
    soundfile.write(broken / "a.wav", np.full(22050, 0.1), 44100)
    assert main_with("predict", tiny_run.out, broken, *options).returncode == 0, "sounds are read again"


def test_the_reason_of_a_single_sound_names_the_channel(sounds, tiny_run, main_with, tmp_path):
    done = main_with("predict", tiny_run.out, sounds / "a.wav", "--channel", "2", "--out", tmp_path / "p.csv")
    assert done.returncode == 2 and re.search(r"^fatai-submit: .*a\.wav: .*channel", done.stderr, re.M)


def test_a_shard_without_readable_sounds_is_complete(broken, tiny_run, main_with, tmp_path):
    for shard in ("1/2", "2/2"):
        done = main_with("predict", tiny_run.out, broken, "--out", tmp_path / "p.csv", "--shard", shard)
        assert done.returncode == 0, "others may have readable ones"
    assert main_with("predict", "--merge", tmp_path / "p.csv").returncode == 0


def test_processes_without_any_readable_sound_leave_no_table(broken, tiny_run, main_with, tmp_path, monkeypatch):
    out = tmp_path / "p.csv"

    def run_shards(n, arguments, desc):
        for k in range(n):
            main_with("predict", tiny_run.out, broken, "--out", out, "--shard", f"{k + 1}/{n}")

    monkeypatch.setattr("fatai.experiment.launch.start_shards", run_shards)
    done = main_with("predict", tiny_run.out, broken, "--out", out, "--nproc", "2")
    assert done.returncode == 2 and "none of the 2 sounds can be read" in done.stderr
    assert not list(tmp_path.glob("*.csv*"))


def test_shards_with_and_without_unreadable_clips_are_merged(sounds, tiny_run, main_with, tmp_path):
    whole, out = tmp_path / "whole.csv", tmp_path / "p.csv"
    main_with("predict", tiny_run.out, sounds, "--out", whole)
    for shard in ("1/3", "2/3", "3/3"):
        assert main_with("predict", tiny_run.out, sounds, "--out", out, "--shard", shard).returncode == 0
    assert main_with("predict", "--merge", out).returncode == 0
    merged, expected = pd.read_csv(out), pd.read_csv(whole)
    assert merged["status"].tolist() == ["ok", "unreadable", "ok"] and merged.columns.equals(expected.columns)
    assert np.allclose(merged.iloc[:, 1:-1], expected.iloc[:, 1:-1], atol=1e-4)


@pytest.mark.parametrize("out", [[], ["--out", "events.csv"]])
def test_tag_strict_is_exit_code_3(sounds, tiny_run, main_with, tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    assert main_with("tag", tiny_run.out, sounds, *out).returncode == 0
    assert main_with("tag", tiny_run.out, sounds, *out, "--strict").returncode == 3


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are text")
def test_the_best_tags_of_names_that_are_not_text_are_printed(sounds, tiny_run, main_with):
    (sounds / "b.wav").unlink()
    (sounds / "a.wav").rename(sounds / os.fsdecode(b"caf\xe9.wav"))
    done = main_with("predict", tiny_run.out, sounds, "--top", "2")
    assert done.returncode == 0, done.stderr
    first, second = sorted(done.stdout.splitlines())
    assert first.startswith("c.wav: ") and first.count(",") == 1 and second.startswith("caf\\udce9.wav: ")
