"""Which finished runs an ensemble reuses for a member, and what is logged where none fits."""

import dataclasses

import pytest

from fatai.data.datasets.fat2019 import load_dataset
from fatai.experiment.adapt import adapt_recipe
from fatai.experiment.ensemble_recipe import load_ensemble
from fatai.experiment.ensemble_run import member_recipes
from fatai.experiment.manifest import data_digest, write_manifest
from fatai.experiment.recipe import load_recipe
from fatai.experiment.reuse import find_run


@pytest.fixture(scope="module")
def data(few_clips):
    return load_dataset(few_clips)


@pytest.fixture
def finish(tmp_path, data):
    """Write the folder of a finished run without its weights."""

    def run(name, recipe, digest=None):
        out = tmp_path / name
        out.mkdir()
        (out / "recipe.toml").write_text(recipe.resolved())
        write_manifest(out, data, recipe, digest or data_digest(data), "", {}, {"seconds": 1.0})
        return out

    return run


def test_a_run_whose_settings_were_decided_from_the_data_is_reused(finish, data):
    member = member_recipes(load_ensemble("best"))["m3"]
    assert member.auto
    out = finish("run", adapt_recipe(member, data).model_copy(update={"name": "mine"}))
    assert find_run([out.parent, out], member, data).run == out


def test_the_settings_that_differ_from_the_most_similar_run_are_named(finish, data, tiny_recipe):
    far = finish("far", load_recipe("ninth"))
    near = finish("near", tiny_recipe.override(seed=7, lr=0.5))
    found = find_run([far, near], tiny_recipe, data)
    lr = tiny_recipe.stages[0].lr
    assert found.run is None
    assert found.reason == f"{near} has other settings: seed is 2019 and was 7; stages.0.lr is {lr} and was 0.5"
    assert find_run([far], tiny_recipe, data).reason.endswith(" more")


def test_runs_on_other_data_and_other_folders_are_not_reused(finish, data, tiny_recipe, tmp_path):
    other = finish("other", tiny_recipe, digest="0" * 64)
    assert find_run([other], tiny_recipe, data) == (None, f"{other} was trained on other data")
    assert find_run([tmp_path], tiny_recipe, data) == (None, f"{tmp_path} is not a finished run")


def test_a_run_with_long_background_is_reused(finish, tiny_recipe, data, tmp_path):
    from fatai.data.background import find_background, write_background
    from fatai.experiment.background import readable_background

    write_background(tmp_path / "data" / "background", seconds=50, sr=8000, n=1, kinds=["hiss"])
    with_background = dataclasses.replace(data, background=find_background(tmp_path / "data"))
    cut = readable_background(with_background)
    assert len(cut.background) == 2
    out = finish("run", tiny_recipe, digest=data_digest(cut))
    assert find_run([out], tiny_recipe, with_background).run == out
