"""Search spaces: values between bounds and choices, the recipe's own value among them, in its schema."""

import pytest

from fatai.errors import RecipeError
from fatai.experiment.overrides import find_values, set_value
from fatai.experiment.recipe import Recipe, load_recipe
from fatai.experiment.search_space import Dimension, default_space, load_space, make_space


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("default")


def only(recipe, **dimension):
    """The single dimension of a space."""
    (found,) = make_space([Dimension(**dimension)], recipe).dimensions
    return found


def test_a_factor_is_around_the_value_of_the_recipe(recipe):
    lr = only(recipe, key="stages.lr", factor=4, log=True)
    assert (lr.base, lr.low, lr.high, lr.log) == (3e-3, 3e-3 / 4, 3e-3 * 4, True)


def test_bounds_and_choices_are_widened_to_the_value_of_the_recipe(recipe):
    assert only(recipe, key="stages.lr", low=0.01, high=0.1).low == 3e-3
    assert only(recipe, key="stages.loss", choices=["focal", "lsep"]).choices == ("bce", "focal", "lsep")


def test_whole_numbers_stay_whole(recipe):
    bs = only(recipe, key="stages.bs", factor=4)
    assert bs.whole and (bs.low, bs.high) == (4, 64)


def test_probabilities_of_augmentations_are_searched_by_name_also_where_the_recipe_leaves_them_out(recipe):
    gain = only(recipe, key="stages.augment.gain.p", low=0, high=1)
    assert gain.base == 0.5, "the default of the augmentation"
    changed = recipe.override(values={"stages.augment.gain.p": 0.25})
    assert [table.get("p") for table in changed.stages[0].augment] == [0.25, None, None, 0.5]


def test_choices_may_be_tables(recipe):
    mixup = only(recipe, key="stages.mixup", choices=[{"name": "mixup", "p": 0.5}, {"name": "mixup_or", "p": 1.0}])
    values = [mixup.value_of(label) for label in mixup.choices]
    assert values == [{"name": "mixup_or", "p": 0.5}, {"name": "mixup", "p": 0.5}, {"name": "mixup_or", "p": 1.0}]
    assert recipe.override(values={"stages.mixup": values[1]}).stages[0].mixup["name"] == "mixup"


@pytest.mark.parametrize(("dimension", "message"), [
    ({"key": "stages.lr"}, "stages.lr needs either low and high, or factor, or choices"),
    ({"key": "stages.lr", "low": 0.1}, "needs either low and high"),
    ({"key": "stages.lr", "low": 0.1, "high": 0.01}, "low is 0.1 and high is 0.01; expected low < high"),
    ({"key": "stages.lr", "low": 0, "high": 0.01, "log": True}, "log needs a low bound above 0"),
    ({"key": "folds.n", "low": 2, "high": 5}, "folds.n cannot be searched"),
    ({"key": "seed", "low": 0, "high": 5}, "seed cannot be searched"),
    ({"key": "stages.lr", "from": 1}, "from: Extra inputs are not permitted"),
    ({"key": "stages.lrr", "factor": 2}, "unknown key 'lrr'; did you mean lr"),
    ({"key": "stages.augment.pitch.p", "low": 0, "high": 1}, "unknown key 'pitch'"),
    ({"key": "stages.loss", "low": 0, "high": 1}, "stages.loss is 'bce' in the recipe, which is no number"),
    ({"key": "stages.loss", "choices": ["bcee"]}, "did you mean bce"),
    ({"key": "stages.augment.gain.p", "low": 0, "high": 7}, "7"),
    ({"key": "stages.clip_grad_norm", "factor": 2}, "is not set in the recipe"),
])
def test_a_wrong_dimension_names_file_key_and_remedy(dimension, message, recipe, tmp_path):
    import tomli_w

    file = tmp_path / "space.toml"
    file.write_text(tomli_w.dumps({"tune": [dimension]}))
    with pytest.raises(RecipeError) as e:
        load_space(file, recipe)
    assert str(file) in str(e.value) and message in str(e.value)


def test_a_key_that_differs_between_stages_needs_a_number():
    plain = load_recipe("quick").model_dump()
    recipe = Recipe.model_validate({**plain, "stages": [{"epochs": 3}, {"epochs": 9}]})
    with pytest.raises(RecipeError, match="stages.epochs differs between stages"):
        only(recipe, key="stages.epochs", factor=2)
    assert only(recipe, key="stages.1.epochs", factor=2).base == 9


@pytest.mark.parametrize("name", ["default", "quick", "ninth", "first_place", "third_place_2d"])
def test_the_default_space_has_what_the_recipe_has_and_reads_back_as_written(name, tmp_path):
    recipe = load_recipe(name)
    space = default_space(recipe)
    file = tmp_path / "space.toml"
    file.write_text(space.to_toml())
    assert load_space(file, recipe) == space
    same = recipe.override(values=space.values(space.base()))
    left_out = {"stages", "auto"}  # probabilities are written out, and what is given is not decided from the data
    assert same.model_dump(exclude=left_out) == recipe.model_dump(exclude=left_out)
    assert "stages.lr" in space.base()


def test_values_are_found_where_they_are_set():
    plain = {"stages": [{"name": "mixup", "mixup": {"p": 0.1}, "augment": [{"name": "gain"}, {"name": "noise"}]}]}
    set_value(plain, "stages.augment.noise.p", 0.3)
    assert plain["stages"][0]["augment"] == [{"name": "gain"}, {"name": "noise", "p": 0.3}]
    assert find_values(plain, "stages.mixup.p") == [0.1], "a key comes before a stage of the same name"
