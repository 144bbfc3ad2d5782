"""The command `tag` as a user types it, on files at known places."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from fatai.cli import main
from fatai.experiment.recipe import load_recipe
from fatai.experiment.run import run_recipe
from fatai.experiment.run_folder import Tagger


@pytest.fixture
def tag(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["fatai-submit", "tag", *map(str, args)])
        try:
            main()
        except SystemExit as e:
            code = e.code or 0
        else:
            code = 0
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(args, code, printed.out, printed.err)

    return run


@pytest.fixture
def sounds(tmp_path, sample):
    clips = sorted((sample / "test").iterdir())[:3]
    (tmp_path / "in" / "sub").mkdir(parents=True)
    places = [
        tmp_path / "in" / clips[0].name,
        tmp_path / "in" / "sub" / clips[1].name,
        tmp_path / "in" / "sub" / clips[2].name,
    ]
    for clip, place in zip(clips, places, strict=True):
        place.write_bytes(clip.read_bytes())
    return places


def test_events_of_a_folder_become_a_table(tag, tiny_run, sounds):
    ended = tag(tiny_run.out, "in", "--out", "events.csv", "--threshold", "0.1", "--top", 1)
    assert ended.returncode == 0 and "events.csv: events of 3 sounds" in ended.stdout
    table = pd.read_csv("events.csv")
    tagger = Tagger(tiny_run.out)
    expected = [
        (f"in/{path.relative_to(sounds[0].parent)}", e.tag, round(e.start_s, 3), round(e.end_s, 3), round(e.prob, 4))
        for path in sounds
        for e in tagger.tag(path, threshold=0.1, top=1)
    ]
    assert expected == list(table[["file", "tag", "start_s", "end_s", "prob"]].itertuples(index=False, name=None))
    assert sorted(os.listdir()) == ["events.csv", "in"], "the journal is gone when all is done"


def test_the_thresholds_of_the_run_are_taken_unless_one_is_given(tag, tiny_run, sounds):
    calibrated, plain = (Tagger(tiny_run.out, calibrate=c) for c in (True, False))

    def printed(*options):
        return json.loads(tag(tiny_run.out, sounds[0], *options, "--format", "json").stdout)["files"][0]["events"]

    def expected(tagger, threshold):
        return [(e.tag, round(e.prob, 4)) for e in tagger.tag(sounds[0], threshold=threshold)]

    for options, tagger, threshold in [
        ([], calibrated, calibrated.thresholds), (["--threshold", "0.05"], calibrated, 0.05),
        (["--no-calibrate"], plain, 0.5), (["--no-calibrate", "--threshold", "0.05"], plain, 0.05),
    ]:
        events = [(e["tag"], e["prob"]) for e in printed(*options)]
        assert events == expected(tagger, threshold)
    assert len(calibrated.thresholds) == len(tiny_run.oof.tags) and plain.thresholds is None
    for tagger, limit in ((Tagger(tiny_run.out), calibrated.thresholds), (plain, 0.5)):
        assert tagger.tag(sounds[0]) == tagger.tag(sounds[0], threshold=limit)


def test_events_of_one_file_are_printed_or_written(tag, tiny_run, sounds):
    options = ("--threshold", "0.1", "--top", 1)
    printed = tag(tiny_run.out, sounds[0], *options).stdout.splitlines()
    assert printed and all(line.startswith(f"{sounds[0]}: 0.00 to ") for line in printed[:1])
    tag(tiny_run.out, sounds[0], *options, "--format", "audacity", "--out", "labels.txt")
    assert len(open("labels.txt").readlines()) == len(printed)
    tag(tiny_run.out, sounds[0], *options, "--format", "raven", "--out", "table.txt")
    table = pd.read_csv("table.txt", sep="\t")
    assert len(table) == len(printed) and (table["High Freq (Hz)"] == 22050).all()
    tag(tiny_run.out, sounds[0], *options, "--format", "json", "--out", "events.json")
    assert len(json.load(open("events.json"))["files"][0]["events"]) == len(printed)


def test_without_out_events_are_printed_in_the_format_that_is_asked_for(tag, tiny_run, sounds):
    options = ("--threshold", "0.1", "--top", 1)
    for format_ in ("json", "csv"):
        ended = tag(tiny_run.out, "in", *options, "--format", format_)
        tag(tiny_run.out, "in", *options, "--format", format_, "--out", "events")
        assert ended.returncode == 0 and ended.stdout == open("events").read()
    printed = json.loads(tag(tiny_run.out, sounds[0], *options, "--format", "json").stdout)
    events = [
        {"start_s": round(e.start_s, 3), "end_s": round(e.end_s, 3), "tag": e.tag, "prob": round(e.prob, 4)}
        for e in Tagger(tiny_run.out).tag(sounds[0], threshold=0.1, top=1)
    ]
    assert events and printed == {"files": [{"file": str(sounds[0]), "events": events}]}
    table = tag(tiny_run.out, sounds[0], *options, "--format", "raven").stdout.splitlines()
    assert table[0].startswith("Selection\tView") and len(table) == 1 + len(events)


def test_a_sound_that_cannot_be_read_leaves_the_printed_json_valid(tag, tiny_run, sounds):
    sounds[1].write_bytes(b"")
    ended = tag(tiny_run.out, "in", "--format", "json")
    assert len(json.loads(ended.stdout)["files"]) == 2 and "1 of 3 sounds cannot be read" in ended.stderr


def test_label_tracks_of_a_folder_are_laid_out_as_it_is(tag, tiny_run, sounds):
    assert tag(tiny_run.out, "in", "--format", "audacity", "--out", "labels").returncode == 0
    assert {f"{p}.txt" for p in (sounds[0].name, *(f"sub/{p.name}" for p in sounds[1:]))} == {
        os.path.relpath(os.path.join(folder, name), "labels")
        for folder, _, names in os.walk("labels")
        for name in names
    }


def test_a_sound_that_cannot_be_read_is_left_out_and_tried_again(tag, tiny_run, sounds, monkeypatch):
    whole = sounds[1].read_bytes()
    sounds[1].write_bytes(whole[:50])
    ended = tag(tiny_run.out, "in", "--out", "events.csv", "--threshold", 0)
    assert ended.returncode == 0 and "1 of 3 sounds cannot be read" in ended.stderr and sounds[1].name in ended.stderr
    assert pd.read_csv("events.csv")["file"].nunique() == 2
    sounds[1].write_bytes(whole)
    tagged = []
    monkeypatch.setattr(Tagger, "tag", lambda self, path, **options: tagged.append(path) or [])
    assert tag(tiny_run.out, "in", "--out", "events.csv", "--threshold", 0).returncode == 0
    assert tagged == [str(sounds[1].relative_to(sounds[0].parents[1]))] and not os.path.exists("events.csv.journal")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["broken.wav", "--out", "e.csv"], "broken.wav: the file is empty"),
        (["broken.wav"], "broken.wav: the file is empty"),
        (["nowhere.wav"], "there is no file or folder nowhere.wav"),
        (["in", "--format", "cvs"], "did you mean csv"),
        (["in", "--out", "in"], "in is a folder; give --out the name of a file"),
        (["in", "--format", "raven", "--out", "broken.wav"], "broken.wav is a file; give --out the name of a folder"),
        (["in", "--format", "raven"], "--format raven holds the events of one sound, and there are 3; give --out"),
        (["in", "--step-s", "9"], "step_s is 9.0; expected 0.01 to 0.5 seconds"),
    ],
)
def test_errors_are_one_sentence(tag, tiny_run, sounds, args, message):
    open("broken.wav", "w").close()
    ended = tag(tiny_run.out, *args)
    assert ended.returncode == 2 and message in ended.stderr and "Traceback" not in ended.stderr
    assert not os.path.exists("e.csv")


def test_a_folder_that_is_no_run_is_an_error(tag, sounds):
    assert "is not a finished run" in tag("in", "in").stderr


@pytest.mark.slow
def test_loud_events_in_minutes_of_quiet_noise_are_found_at_their_times_in_flat_memory(tmp_path, sample):
    """Trains the demo's model; `benchmarks/tagging.py` does the same with hours of sound."""
    from benchmarks.tagging import child, found_within, generate

    run = run_recipe(sample, load_recipe("quick"), tmp_path / "run", predict_test=False)
    long, short = tmp_path / "long.flac", tmp_path / "short.flac"
    placed = [p for p in generate(long, seconds=180, every_s=8) if p.loud]
    events = Tagger(run.out, step_s=0.375, calibrate=False).tag(long, threshold=0.3)
    assert len(placed) >= 10 and np.mean(found_within(placed, events, 1.0)) >= 0.7
    elsewhere = [p._replace(start_s=(p.start_s + 60) % 180) for p in placed]
    assert np.mean(found_within(elsewhere, events, 1.0)) < 0.5, "not because everything is detected everywhere"
    generate(short, seconds=30)
    (short_gb, _), (long_gb, _) = (child(run.out, sound, tmp_path / "events.csv") for sound in (short, long))
    assert long_gb < short_gb + 0.1


def test_a_name_that_ends_in_json_is_written_as_json(tag, tiny_run, sounds):
    ended = tag(tiny_run.out, "in", "--out", "events.json", "--threshold", "0.1", "--top", 1)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(open("events.json").read())
