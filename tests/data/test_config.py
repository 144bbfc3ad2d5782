"""`ClipConfig`: options that it refuses."""

import pytest

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
