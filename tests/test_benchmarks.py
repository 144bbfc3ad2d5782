"""Benchmarks: those that train write a table of scores after a few steps; the Makefile lists all of them."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from fatai.metrics.ranking import lwlrap

ROOT = Path(__file__).parents[1]

TRAINED = {
    "augmentation": (["--epochs", "1"], 7),
    "noisy": (["--steps", "2", "--few", "40", "--only", "curated only", "ninth", "1st: Lsoft, a fifth noisy"], 6),
    "systems": (["--passes", "1", "--only", "ninth", "first_place, curated", "MFCC, random forest", "--more",
                 "ninth"], 17),
    "ingredients": (["--recipe", "quick", "--epochs", "1", "--only", "with deltas"], 2),
    "label_issues": (["--steps", "2"], 1),
}


def test_the_makefile_lists_every_benchmark():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for file in (ROOT / "benchmarks").glob("*.py"):
        if "def main(" in file.read_text(encoding="utf-8"):
            assert re.search(rf"\b{file.stem}\b", makefile), f"benchmarks/{file.name} is in no list of the Makefile"


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_a_benchmark_trains_and_writes_its_table(name, tmp_path, capsys):
    options, n_rows = TRAINED[name]
    work = [] if name == "label_issues" else ["--work", str(tmp_path / "work")]
    importlib.import_module(f"benchmarks.{name}").main(
        ["--seeds", "3", *options, *work, "--out", str(tmp_path / "table.md")]
    )
    text = (tmp_path / "table.md").read_text()
    assert f"python -m benchmarks.{name} sample --seeds 3" in text and "nan" not in text
    heads = re.compile(r"\|(---| \||.*(OOF|test) lwlrap| seed| test clips)")
    rows = [line for line in text.splitlines() if line.startswith("|") and not heads.match(line)]
    assert len(rows) == n_rows, text
    for row in rows:
        scores = [float(value) for value in re.findall(r"\| (\d\.\d{3}) ", row)]
        assert all(0.1 < score <= 1 for score in scores) and (scores or name == "label_issues"), row


@pytest.mark.slow
def test_the_summary_sets_every_work_beside_a_baseline(tmp_path):
    # In a process of its own, which keeps to one core.
    command = [sys.executable, "-m", "benchmarks.summary", "--rounds", "1", "--clips", "2", "--out", tmp_path / "s.md"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    text = (tmp_path / "s.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")][2:]
    assert len({row[0] for row in rows}) == 7 and "Load of the machine" in text
    for _, fatai_ms, _, baseline_ms, ratio, _ in rows:
        assert float(ratio) == pytest.approx(float(baseline_ms) / float(fatai_ms), rel=0.02)


def test_the_baselines_without_a_network_tag_tones_of_two_heights(tmp_path):
    from benchmarks.mfcc import BASELINES, fit_baseline, mfcc_statistics

    rng, rows = np.random.default_rng(0), []
    for k in range(24):
        t = np.arange(2000 + 300 * k) / 22050
        wave = 0.5 * np.sin(2 * np.pi * (300 if k % 2 else 3000) * t) + 0.05 * rng.standard_normal(len(t))
        sf.write(tmp_path / f"{k}.wav", wave, 22050)
        rows.append({"fname": f"{k}.wav", "path": str(tmp_path / f"{k}.wav"), "labels": ["low" if k % 2 else "high"]})
    table, targ = pd.DataFrame(rows), np.eye(2)[np.arange(24) % 2]
    for name in BASELINES:
        oof, test, *_ = fit_baseline(name, table, np.arange(24) // 12, table, ("high", "low"), seed=0)
        assert lwlrap(oof.probs, targ) == lwlrap(test.probs, targ) == 1
    sf.write(tmp_path / "short.wav", np.zeros(100), 22050)
    short = mfcc_statistics(str(tmp_path / "short.wav"))
    assert short.shape == (120,) and np.isfinite(short).all()


@pytest.fixture
def two_classes(tmp_path):
    """Return a folder as that of ESC-10, of four clips of a tone and four of noise."""
    rng, rows = np.random.default_rng(0), []
    (tmp_path / "esc" / "audio").mkdir(parents=True)
    for k in range(8):
        tone = 0.5 * np.sin(2 * np.pi * (400 + 50 * k) * np.arange(22_050) / 44_100)
        wave = tone if k % 2 else rng.uniform(-0.5, 0.5, 22_050)
        sf.write(tmp_path / "esc" / "audio" / f"{k}.wav", wave, 44_100)
        rows.append({"filename": f"{k}.wav", "fold": 1 + k // 2, "label": ["noise", "tone"][k % 2]})
    pd.DataFrame(rows).to_csv(tmp_path / "esc" / "esc10.csv", index=False)
    return tmp_path / "esc"


@pytest.mark.parametrize("name, n_clips, seconds, rate", [
    ("one tag", 8, 0.5, 44_100), ("3 clips a tag", 6, 0.5, 44_100), ("clips of 0.2 s", 8, 0.2, 44_100),
    ("clips of 60 s", 8, 60, 44_100), ("16 kHz", 8, 0.5, 16_000), ("250 kHz", 8, 22_050 / 250_000, 250_000),
])
def test_odd_shapes_are_made_of_clips(name, n_clips, seconds, rate, two_classes, tmp_path):
    from benchmarks.shapes import lay_out

    files = {
        tag: [two_classes / "audio" / f"{k}.wav" for k in range(8) if k % 2 == odd]
        for odd, tag in enumerate(["noise", "tone"])
    }
    table = pd.read_csv(lay_out(files, name, tmp_path / "shape"))
    assert len(table) == n_clips and set(table["labels"].dropna()) == ({"noise"} if name == "one tag" else set(files))
    info = sf.info(tmp_path / "shape" / table["fname"][0])
    assert info.samplerate == rate and info.duration == pytest.approx(seconds, abs=1e-3)


@pytest.mark.slow
def test_odd_shapes_are_trained_and_set_beside_chance(two_classes, tmp_path):
    from benchmarks import shapes

    options = ["--only", "two tags", "--steps", "15", "--folds", "1", "--work", str(tmp_path / "work")]
    shapes.main([str(two_classes), *options, "--out", str(tmp_path / "table.md")])
    row = (tmp_path / "table.md").read_text().splitlines()[-1]
    assert re.search(r"two tags: 40 clips each \| 4 \| .*folds.n = 2.* \| lwlrap \| \d\.\d{3} \| 0\.7\d\d \|", row), row


def test_the_scripted_user_of_the_label_loop_answers_from_the_truth(tmp_path):
    from helpers.tone_index import tone_encoder, write_tones

    from benchmarks.label_loop import measure
    from fatai.inference.search.index import SoundIndex, index_sounds

    sounds = write_tones(tmp_path / "sounds", 100)
    index_sounds(tmp_path / "index", tone_encoder(()), sounds)
    truth = {str(sound): "low" if "low" in sound.name else "high" for sound in sounds}
    low, mean = measure([(SoundIndex(tmp_path / "index"), ["low"])], truth, n_examples=2, holdout=0.0)
    after_40, lowest = (float(cell) for cell in low.split("|")[5:7])
    assert lowest > 0.95 and after_40 >= lowest and mean.startswith("| mean |")
    wrong = {path: "low" if k % 4 < 2 else "high" for k, path in enumerate(truth)}
    guessed, _ = measure([(SoundIndex(tmp_path / "index"), ["low"])], wrong, n_examples=2, holdout=0.0)
    assert float(guessed.split("|")[5]) < 0.85, "answers that have nothing to do with the sounds"


def test_the_clips_of_the_competition_have_its_parts_and_an_interrupted_writing_is_continued(sample, tmp_path):
    from benchmarks.competition import PARTS, make_clips
    from fatai.data.datasets.fat2019 import CORRUPTED_FILES, load_dataset

    assert [sum(part.n_with) for part in PARTS] == [4970, 19815, 3361]
    make_clips(sample, tmp_path, divide=500)
    data = load_dataset(tmp_path)
    assert len(data.tags) == 80 and set(CORRUPTED_FILES) <= set(data.curated["fname"])
    assert {len(tags) for tags in data.noisy["labels"]} == {1, 2, 3} and len(data.test) == 5
    seconds = [sf.info(path).duration for part in (data.curated, data.noisy, data.test) for path in part["path"]]
    assert 0.3 <= min(seconds) and max(seconds) <= 30
    linked = [Path(path) for path in data.noisy["path"] if Path(path).stat().st_nlink > 1]
    assert len(linked) > len(data.noisy) / 2
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    for path in sorted(before)[::3]:
        path.unlink()
    make_clips(sample, tmp_path, divide=500)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before


def test_the_members_of_the_competition_predict_clips_that_their_networks_have_not_seen(sample, tmp_path, monkeypatch):
    from benchmarks import competition
    from fatai.data.datasets.fat2019 import load_dataset
    from fatai.inference.predictions import Predictions

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(competition, "_N_MEMBERS", 2)
    competition.make_clips(sample, tmp_path / "data", divide=250)
    competition.write_members(tmp_path / "data", tmp_path / "members")
    data = load_dataset(tmp_path / "data")
    one, two = (Predictions.from_csv(tmp_path / "members" / f"member_{k:02d}" / "oof.csv") for k in (0, 1))
    assert set(one.fnames) == set(two.fnames) == set(data.curated["fname"])
    assert abs(one.probs - two.probs).max() > 1e-3
    assert len(Predictions.from_csv(tmp_path / "members" / "member_01" / "test.csv")) == len(data.test)
