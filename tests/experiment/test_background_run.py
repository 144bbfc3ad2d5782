"""Background of data: found, trained on as clips without tags, and false alarms counted on what is held out."""

import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from fatai.audio.background import synthesize_background
from fatai.data.background import background_folds, cut_background, find_background, write_background
from fatai.data.datasets.fat2019 import load_dataset
from fatai.errors import CheckpointError
from fatai.experiment.background import readable_background, with_background
from fatai.experiment.false_alarms import BackgroundProbs, load_background
from fatai.experiment.run import recipe_learner, run_recipe


@pytest.fixture(scope="module")
def data(few_clips, tmp_path_factory):
    """A part of the bundled sample with background."""
    folder = tmp_path_factory.mktemp("data") / "sample"
    shutil.copytree(few_clips, folder)
    write_background(folder / "background", seconds=4, n=1)
    return folder


@pytest.fixture(scope="module")
def run(data, tiny_recipe, tmp_path_factory):
    """A run on it, its lines, and its warnings."""
    out, lines = tmp_path_factory.mktemp("runs") / "with_background", []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_recipe(data, tiny_recipe, out, num_workers=0, log=lines.append)
    return out, lines, [str(warning.message) for warning in caught]


def test_a_run_reports_false_alarms_of_each_tag_on_held_out_background(run, data):
    out, lines, messages = run
    table = pd.read_csv(out / "background.csv")
    dataset = load_dataset(data)
    assert sorted(table["tag"]) == sorted(dataset.tags) and (np.diff(table["per_hour"]) <= 0).all()
    assert table["hours"].iloc[0] == pytest.approx(5 * 4 / 3600, abs=1e-4)
    assert np.allclose(table["per_hour"], table["events"] / (20 / 3600), rtol=0.01)
    found = BackgroundProbs.load(out / "background.safetensors")
    assert found.starts.sum() == 5 and found.is_calibrated
    (line,) = [line for line in lines if line.startswith("background: 0.3 minutes")]
    firing = table[table["events"] > 0]
    warned = [message for message in messages if "detect tags in background" in message]
    assert len(warned) == bool(len(firing)) and ("none" in line) == (not len(firing))
    assert len(pd.read_csv(out / "oof.csv")) == len(dataset.curated)


def test_a_fold_trains_on_background_that_it_does_not_hold_out(data, tiny_recipe):
    learn = recipe_learner(data, tiny_recipe, 1)
    files = learn.dls.files(0)
    background = files[files["fname"].str.startswith("background/")]
    folds = background_folds(load_dataset(data).background, tiny_recipe.folds.n)
    assert len(background) == (folds != 1).sum() and all(labels == [] for labels in background["labels"])
    assert not learn.dls.files(1)["fname"].str.startswith("background/").any()
    assert (learn.dls.train_ds[len(files) - 1][1] == 0).all()


def test_background_is_a_quarter_of_the_training_clips_at_most(data):
    dataset = readable_background(load_dataset(data))
    table = dataset.curated.head(8)[["fname", "path", "labels"]].assign(is_valid=[True] * 4 + [False] * 4)
    assert len(with_background(table, dataset, 0, 2)) == 8 + 1


@pytest.mark.parametrize("name", ["background", "Background"])
def test_a_folder_of_classes_or_a_tag_may_be_background(tmp_path, name):
    for tag in ("dog", "rain", name):
        (tmp_path / tag).mkdir()
        for k in range(2):
            sf.write(tmp_path / tag / f"{k}.wav", synthesize_background("hiss", 1, 8000, seed=k).numpy(), 8000)
    found = load_dataset(tmp_path)
    assert found.tags == ("dog", "rain") and len(found.curated) == 4
    assert found.background["fname"].tolist() == [f"{name}/0.wav", f"{name}/1.wav"]
    table = tmp_path / "labels.csv"
    table.write_text(f'file,tags\ndog/0.wav,dog\nrain/0.wav,"rain,{name}"\nrain/1.wav,{name}\n')
    found = load_dataset(table)
    assert found.background["path"][0] == str(tmp_path / "rain" / "1.wav") and len(found.curated) == 2
    assert len(found.background) == (3 if name == "background" else 1), "the folder beside the table counts as well"


def test_clips_of_the_data_in_the_folder_are_no_background(tmp_path):
    write_background(tmp_path / "background", seconds=1, n=1)
    used = str(tmp_path / "background" / "hum_0.flac")
    names = find_background(tmp_path, [used])["fname"].tolist()
    assert names == [f"background/{kind}_0.flac" for kind in ("hiss", "rain", "silence", "speech_shaped")]
    assert find_background(tmp_path / "background").empty


def test_long_background_is_cut_and_one_file_is_held_out_by_stretches(tmp_path):
    sf.write(tmp_path / "long.wav", np.zeros(100 * 8000), 8000)
    table = cut_background(pd.DataFrame({"fname": ["long.wav"], "path": [str(tmp_path / "long.wav")]}))
    assert table["fname"].tolist() == ["long.wav#t=0,30", "long.wav#t=30,60", "long.wav#t=60,90"]
    assert background_folds(table, 2).tolist() == [0, 0, 1]
    assert cut_background(table)["path"].tolist() == table["path"].tolist()


def test_unreadable_background_is_left_out_with_a_warning(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "background" / "broken.wav").write_bytes(b"RIFF")
    with pytest.warns(UserWarning, match=r"1 sounds of background cannot be read(.|\n)*broken\.wav"):
        found = readable_background(load_dataset(tmp_path / "data"))
    assert len(found.background) == 5


def test_tag_raises_thresholds_until_so_few_false_alarms_are_left(run, data, tmp_path, main_with):
    out, *_ = run
    found = BackgroundProbs.load(out / "background.safetensors")
    limits = found.thresholds(0)
    assert found.table([min(limits[tag], 1.0) for tag in found.tags])["events"].max() == 0 or max(limits.values()) == 1
    sound = next((data / "test").iterdir())
    ended = main_with("tag", out, sound, "--max-false-alarms-per-hour", "0.5", "--threshold", "0.01")
    assert ended.returncode == 0 and "0.3 minutes of background" in ended.stderr
    assert "too few to measure 0.5 false alarms per hour" in ended.stderr
    # Of other background, and of the network in use.
    command = ("tag", out, data / "background" / "hum_0.flac", "--max-false-alarms-per-hour", "0", "--threshold", "0",
               "--background", data / "background")
    ended = main_with(*command)
    assert ended.returncode == 0 and ended.stdout == "", "there is no event left in the background itself"
    ended = main_with("tag", out, sound, "--background", data / "background")
    assert ended.returncode == 2 and "without --max-false-alarms-per-hour" in ended.stderr


def test_a_run_without_background_asks_for_some(tiny_run, tmp_path, run):
    with pytest.raises(CheckpointError, match="was trained without background; give --background"):
        load_background(tiny_run.out, ("Rain",), is_calibrated=True)
    assert not (tiny_run.out / "background.csv").exists()
    with pytest.raises(CheckpointError, match="holds probabilities after calibration"):
        load_background(run[0], ("Rain",), is_calibrated=False)
    with pytest.raises(CheckpointError, match="lacks the tag 'Rian'; did you mean Rain"):
        load_background(run[0], ("Rian",), is_calibrated=True)


def test_the_command_writes_background_that_is_the_same_everywhere(main_with, tmp_path):
    for name in "ab":
        ended = main_with("background", tmp_path / name, "--seconds", "1", "-n", "2")
        assert ended.returncode == 0 and "9 sounds of 1 s" in ended.stdout
    assert sf.read(tmp_path / "a" / "rain_1.flac")[0].tolist() == sf.read(tmp_path / "b" / "rain_1.flac")[0].tolist()
    ended = main_with("background", tmp_path / "c", "--seconds", "1", "--kind", "hum", "-n", "1")
    assert [file.name for file in (tmp_path / "c").iterdir()] == ["hum_0.flac"]
    ended = main_with("background", tmp_path / "d", "--kind", "hun")
    assert ended.returncode == 2 and "did you mean hum" in ended.stderr
    ended = main_with("background", tmp_path / "a")
    assert ended.returncode == 2 and "is not empty" in ended.stderr


@pytest.mark.usefixtures("undrawn")
def test_the_report_of_a_run_lists_its_false_alarms(run, tmp_path):
    from fatai.report.html import run_report

    out = tmp_path / "run"
    shutil.copytree(run[0], out)
    pd.DataFrame({
        "tag": ["Rain", "Dog"], "threshold": [0.5, 0.25], "events": [3, 0], "hours": [0.5, 0.5], "per_hour": [6.0, 0.0],
    }).to_csv(out / "background.csv", index=False)
    page = run_report(out).read_text()
    section = page[page.index('<section id="background">'):page.index('<section id="curves">')]
    assert "30.0 minutes" in section and "<td>0.50</td><td>3</td><td>6.0</td>" in section and "Dog" not in section
    (out / "background.csv").write_text("tag,threshold\n")
    assert "so false alarms are not counted" in run_report(out).read_text()
