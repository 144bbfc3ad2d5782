"""`ClipConfig`: options that it refuses, and where the sound of a clip is."""

import pytest
import torch

from fatai.audio.front_ends import front_end
from fatai.data.config import ClipConfig
from fatai.errors import OptionError, RecipeError
from fatai.experiment.recipe import load_recipe


@pytest.mark.parametrize("log", ["pcen", "db"])
def test_constants_that_nothing_would_train_are_refused(log):
    with pytest.raises(OptionError, match=r"pcen_trainable is True; expected False.*a layer of your network"):
        ClipConfig(front_end("ninth", log=log, pcen_trainable=True))
    ClipConfig(front_end("ninth", log=log))


def test_a_recipe_with_constants_that_nothing_would_train_is_refused(tmp_path):
    published = load_recipe("kaggle_fat_36th").resolved()
    trainable = published.replace("pcen_trainable = false", "pcen_trainable = true")
    if trainable == published:
        trainable = published.replace('log = "pcen"', 'log = "pcen"\npcen_trainable = true')
    (tmp_path / "recipe.toml").write_text(trainable)
    with pytest.raises(RecipeError, match="pcen_trainable is True"):
        load_recipe(tmp_path / "recipe.toml")


@pytest.mark.parametrize("pad_mode", ["constant_center", "constant_right", "edge_center", "minimum_center"])
@pytest.mark.parametrize("samples", [1, 7777, 22049, 22050, 30000])
def test_the_span_of_the_sound_is_where_fit_puts_it(pad_mode, samples):
    config = ClipConfig(crop_s=0.5, pad_mode=pad_mode)
    start, end = config.sound_span(samples)
    n = max(samples, config.crop_samples)
    wave = torch.linspace(0.5, 1, samples)
    assert torch.equal(config.fit(wave)[round(start * n):round(end * n)], wave)
    assert round(end * n) - round(start * n) == samples


@pytest.mark.parametrize("pad_mode", ["wrap_center", "wrap_right"])
def test_repeated_sound_is_no_padding(pad_mode):
    assert ClipConfig(crop_s=0.5, pad_mode=pad_mode).sound_span(100) == (0, 1)
