"""The commands index and find, with a run and with published weights."""

import json
import shutil

import pandas as pd
import pytest
import torch
from helpers.tone_index import write_tones


@pytest.fixture(scope="module")
def indexed(tiny_run, sample, tmp_path_factory):
    """An index of 30 bundled clips by the tiny run, and the folder of its sounds."""
    from fatai.experiment.encoder import load_encoder
    from fatai.inference.search.index import index_sounds

    folder = tmp_path_factory.mktemp("indexed")
    encoder, source = load_encoder(tiny_run.out)
    sounds = sorted((sample / "train_curated").iterdir())[:30]
    index_sounds(folder / "index", encoder, sounds, source=source)
    return folder / "index", sounds


def test_a_run_indexes_sounds_and_the_command_continues(main_with, tiny_run, tmp_path):
    write_tones(tmp_path / "sounds", 4)
    command = ("index", tiny_run.out, tmp_path / "sounds", "--out", tmp_path / "index", "--window-s", "0.5")
    ended = main_with(*command)
    assert ended.returncode == 0 and "of 4 sounds added; it has 12 windows of 0.5 s" in ended.stdout, ended.stderr
    assert "0 windows of 0 sounds added, 4 were there already; it has 12" in main_with(*command).stdout
    example = tmp_path / "sounds" / "high1.wav"
    shutil.copy(example, tmp_path / "other.wav")
    for given in (example, tmp_path / "other.wav"):
        ended = main_with("find", tmp_path / "index", given, "-n", "2")
        assert ended.returncode == 0 and ended.stdout.count("\n") == 2 and "high1.wav" not in ended.stdout
        assert "3 windows of the example itself left out; --with-example lists them\n" in ended.stderr
    ended = main_with("find", tmp_path / "index", example, "-n", "2", "--with-example")
    assert "high1.wav" in ended.stdout.splitlines()[0] and "itself" not in ended.stderr


def test_published_weights_index_sounds_by_their_name_and_file(main_with, tmp_path):
    from fatai.models import create_model

    write_tones(tmp_path / "sounds", 2)
    torch.manual_seed(0)
    torch.save(create_model("mn04", 527).state_dict(), tmp_path / "mn04.pt")
    command = ("index", "mn04", tmp_path / "sounds", "--out", tmp_path / "index", "--weights", tmp_path / "mn04.pt")
    ended = main_with(*command)
    assert ended.returncode == 0 and "2 sounds added; it has 2 windows of 5 s" in ended.stdout, ended.stderr
    assert json.loads((tmp_path / "index" / "index.json").read_text())["n_features"] == 512
    # The new head is random in every process; it is no part of the network.
    assert "2 were there already" in main_with(*command).stdout
    example = tmp_path / "sounds" / "low0.wav"
    ended = main_with("find", tmp_path / "index", example, "--with-example", "--out", tmp_path / "found.csv")
    assert ended.returncode == 0 and pd.read_csv(tmp_path / "found.csv")["file"][0].endswith("low0.wav")
    ended = main_with("find", tmp_path / "index", "--tag", "low")
    assert ended.returncode == 2 and "predict no tags" in ended.stderr
    torch.save(create_model("mn04", 527).state_dict(), tmp_path / "mn04.pt")
    ended = main_with("find", tmp_path / "index", tmp_path / "sounds" / "low0.wav")
    assert ended.returncode == 2 and "has changed since" in ended.stderr


def test_windows_by_tag_and_uncertainty_are_written_as_tables_and_as_a_page(main_with, indexed, tmp_path):
    index, sounds = indexed
    ended = main_with("find", index, "--tag", "Rain", "-n", "5", "--out", tmp_path / "rain.json")
    rows = json.loads((tmp_path / "rain.json").read_text())
    assert ended.returncode == 0 and [*rows[0]] == ["file", "start", "end", "score"] and len(rows) == 5
    assert sorted((row["score"] for row in rows), reverse=True) == [row["score"] for row in rows]
    assert set(row["file"] for row in rows) <= {str(sound) for sound in sounds}
    assert main_with("find", index, "--uncertain", "--tag", "Rain", "--out", tmp_path / "a.csv").returncode == 0
    ended = main_with("find", index, "--uncertain", "-n", "3", "--out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert ended.returncode == 0 and "3 windows of" in page
    assert page.count("<audio") == page.count('<svg class="spectrogram"') == 3


@pytest.mark.parametrize(("options", "words"), [
    ((), "expected either a sound"), (("--tag", "Rain", "x.wav"), "expected either a sound"),
    (("--tag", "Rian"), "did you mean Rain"), (("--tag", "Rain", "--out", "x.txt"), "ends in .csv, .json or .html"),
    (("--tag", "Rian", "--uncertain"), "has the tag 'Rian'"), (("missing.wav",), "missing.wav"),
    (("--tag", "Rain", "--labels", "missing.csv"), "missing.csv"),
    (("x.wav", "--labels", "labels.csv"), "--labels is for --tag and --uncertain"),
    (("--uncertain", "--with-example"), "--with-example is for a search by a sound"),
])
def test_wrong_options_of_find_are_errors(main_with, indexed, options, words):
    ended = main_with("find", indexed[0], *options)
    assert ended.returncode == 2 and words in ended.stderr


def test_find_needs_an_index_and_index_a_network(main_with, sample, tmp_path):
    ended = main_with("find", tmp_path, "--uncertain")
    assert ended.returncode == 2 and "is no index of sounds" in ended.stderr
    ended = main_with("index", "mn4", sample / "test")
    assert ended.returncode == 2 and "did you mean mn" in ended.stderr


@pytest.mark.parametrize(("options", "words"), [
    ((), "expected the tag to ask about"), (("--tag", "Rain", "--corrections", "a.csv"), "--corrections is for a run"),
    (("--tag", "Rain", "--out", "labels.csv"), "expected an .html page"),
])
def test_wrong_options_of_review_of_an_index_are_errors(main_with, indexed, options, words):
    ended = main_with("review", indexed[0], *options)
    assert ended.returncode == 2 and words in ended.stderr


def test_review_of_a_run_refuses_options_of_an_index(main_with, tiny_run):
    ended = main_with("review", tiny_run.out, "--tag", "Rain")
    assert ended.returncode == 2 and "--tag is for an index" in ended.stderr


def test_review_of_an_index_writes_a_page_of_questions(main_with, indexed, tmp_path):
    ended = main_with("review", indexed[0], "--tag", "Rain", "-n", "3", "--out", tmp_path / "review.html")
    assert ended.returncode == 0 and "review.html: 3 windows" in ended.stdout, ended.stderr
    assert (tmp_path / "review.html").read_text().count("data:audio/") == 3
