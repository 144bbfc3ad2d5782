"""The option --channel of predict, tag, serve and run, as a user types it."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from fatai.experiment.overrides import Overrides
from fatai.experiment.recipe import load_recipe
from fatai.experiment.run_folder import trained_model
from fatai.export.pretrained import load_pretrained

SR = 44100
NOISE = (0.25 * np.random.default_rng(3).uniform(-1, 1, SR)).astype(np.float32)
QUIET = 0.1 * NOISE[::-1]


@pytest.fixture
def command(main_with, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    sf.write("two.wav", np.stack([QUIET, NOISE], 1), SR, subtype="FLOAT")
    sf.write("quiet.wav", QUIET, SR, subtype="FLOAT")
    sf.write("loud.wav", NOISE, SR, subtype="FLOAT")
    sf.write("opposite.wav", np.stack([NOISE, -NOISE], 1), SR, subtype="FLOAT")
    sf.write("silent.wav", 0 * NOISE, SR)

    def run(*args):
        ended = main_with(*args)
        return ended.returncode or 0, ended

    return run


@pytest.fixture
def run_folder(tiny_run):
    return tiny_run.out


def probs_of(command, run, *args):
    assert command("predict", run, *args, "--no-calibrate", "--out", "out.csv")[0] == 0
    return pd.read_csv("out.csv", index_col="fname")


def test_predict_takes_the_channel(command, run_folder):
    alone = probs_of(command, run_folder, "quiet.wav", "loud.wav").to_numpy(float)
    for channel, expected in ((1, alone[0]), (2, alone[1]), ("loudest", alone[1]), ("each", alone.mean(0))):
        got = probs_of(command, run_folder, "two.wav", "--channel", channel).to_numpy(float)[0]
        np.testing.assert_allclose(got, expected, atol=1e-6)
    opposite = probs_of(command, run_folder, "opposite.wav").to_numpy(float)[0]
    np.testing.assert_allclose(opposite, alone[1], atol=1e-6)


def test_tag_lists_the_events_of_each_channel(command, run_folder):
    options = "--threshold", 0, "--top", 1, "--out", "events.csv"
    assert command("tag", run_folder, "two.wav", "--channel", "each", *options)[0] == 0
    each = pd.read_csv("events.csv")
    assert set(each["channel"]) == {1, 2}
    for channel in (1, 2):
        assert command("tag", run_folder, "two.wav", "--channel", channel, *options)[0] == 0
        alone = pd.read_csv("events.csv")
        part = each[each["channel"] == channel].drop(columns="channel").reset_index(drop=True)
        pd.testing.assert_frame_equal(part, alone)


def test_a_silent_clip_is_marked_when_it_is_printed(command, run_folder):
    code, printed = command("predict", run_folder, "silent.wav", "loud.wav")
    assert code == 0
    assert printed.stdout.splitlines()[0].startswith("silent.wav (silent): ") and "loud.wav: " in printed.stdout


@pytest.mark.parametrize("name", ["predict", "tag"])
def test_a_channel_that_the_file_lacks_is_named(command, run_folder, name):
    code, printed = command(name, run_folder, "two.wav", "--channel", 3)
    assert code == 2 or name == "predict"
    assert "two.wav: channel 3 was asked for, and the file has 2 channels" in printed.stderr


@pytest.mark.parametrize("name", ["predict", "tag", "serve", "run"])
def test_a_word_that_is_no_channel_is_an_error(command, run_folder, name):
    code, printed = command(name, run_folder, "--channel", "loudes")
    assert code == 2 and "did you mean loudest" in printed.stderr


def test_a_recipe_holds_the_channel_but_not_each():
    recipe = load_recipe("quick").override(Overrides(channel=2))
    assert recipe.clips.channel == 2 and recipe.settings().channel == 2
    assert load_recipe("quick").settings().channel == "auto"
    for channel in ("each", 0, "left", True):
        with pytest.raises(ValueError, match=r"clips\.channel"):
            load_recipe("quick").override(Overrides(channel=channel))


def test_a_model_folder_keeps_the_channel_and_one_without_it_takes_auto(run_folder, tmp_path):
    model = trained_model(run_folder)
    folder = replace(model, settings=replace(model.settings, channel=2)).save(tmp_path / "model")
    assert load_pretrained(folder).settings.channel == 2
    config = folder / "config.json"
    text = config.read_text()
    assert '"channel": 2' in text
    values = json.loads(text)
    del values["clips"]["channel"]
    config.write_text(json.dumps(values))
    assert load_pretrained(folder).settings.channel == "auto"
