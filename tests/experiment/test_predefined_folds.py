"""Folds and groups from a column of the table, as in the recipe esc10."""

import pandas as pd
import pytest

from fatai.data.datasets.fat2019 import load_dataset
from fatai.errors import DataError
from fatai.experiment.clip_tables import folded_table
from fatai.experiment.recipe import Recipe, load_recipe
from fatai.experiment.run import run_recipe
from fatai.experiment.scaling import scale_recipe

pytestmark = pytest.mark.usefixtures("no_reference")


@pytest.fixture
def with_columns(sample, tmp_path):
    """The sample with a column of folds, 11 to 15 in turn, and one of sites, three clips each; sounds are linked."""
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train_curated", "test", "sample_submission.csv"):
        (data / name).symlink_to(sample / name)
    table = pd.read_csv(sample / "train_curated.csv", dtype=str)
    table["fold"] = [11 + i % 5 for i in range(len(table))]
    table["site"] = [f"site {i // 3}" for i in range(len(table))]
    table.to_csv(data / "train_curated.csv", index=False)
    return data


def recipe_with(**folds) -> Recipe:
    return Recipe.model_validate({"name": "mine", "folds": folds})


def test_a_column_defines_the_folds(with_columns):
    table, _, folds = folded_table(load_dataset(with_columns), recipe_with(splitter="predefined", group_col="fold"))
    assert list(folds) == [i % 5 for i in range(len(table))]


def test_clips_of_a_group_stay_together(with_columns):
    table, _, folds = folded_table(load_dataset(with_columns), recipe_with(splitter="group", group_col="site", n=3))
    assert (pd.Series(folds).groupby(table["site"]).nunique() == 1).all() and set(folds) == {0, 1, 2}


def test_incomplete_columns_are_refused(with_columns):
    data = load_dataset(with_columns)
    with pytest.raises(DataError, match=r"train_curated.csv has no column 'place'.*it has fname, labels"):
        folded_table(data, recipe_with(splitter="group", group_col="place"))
    with pytest.raises(DataError, match="has 5 folds, but the recipe mine has folds.n = 4; give --folds 5"):
        folded_table(data, recipe_with(splitter="predefined", group_col="fold", n=4))
    data.curated.loc[data.curated.index[7], "fold"] = None
    with pytest.raises(
        DataError, match=rf"the column fold is empty for {data.curated['fname'].iloc[7]} \(1 such clips\)"
    ):
        folded_table(data, recipe_with(splitter="predefined", group_col="fold"))


def test_esc10_runs_small_on_the_first_of_its_folds(with_columns, tmp_path):
    recipe = scale_recipe(load_recipe("esc10"), "tiny")
    assert recipe.folds.n == 5 and recipe.folds.run_folds == (0, 1)
    result = run_recipe(
        with_columns, recipe, tmp_path / "run", run_folds=[0], num_workers=0, cache_dir=tmp_path, log=lambda line: None
    )
    table = pd.read_csv(with_columns / "train_curated.csv")
    assert list(result.oof.fnames) == list(table["fname"][table["fold"] == 11]) and 0.2 < result.oof_score <= 1
