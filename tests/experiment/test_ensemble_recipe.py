"""Ensembles: members, overrides, reused and resumed runs, and the combined submission."""

import shutil
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from fatai.data.datasets.fat2019 import load_dataset
from fatai.ensemble.ensemble import ensemble
from fatai.errors import CheckpointError, DataError, OptionError, RecipeError
from fatai.experiment.build import recipe_parameters
from fatai.experiment.ensemble_recipe import (
    EnsembleRecipe,
    ensemble_names,
    ensemble_toml,
    is_ensemble,
    load_ensemble,
)
from fatai.experiment.ensemble_run import _combine, member_recipes, run_ensemble
from fatai.experiment.overrides import Overrides
from fatai.experiment.recipe import load_recipe
from fatai.inference.predictions import Predictions, check_submission

pytestmark = pytest.mark.usefixtures("no_reference")

# Numbers of members and stackers, method and parameters of members, as far as published.
PUBLISHED = {
    "ensembles/ninth": (15, 0, "minmax_tag", {"m1": 6_380_753, "m2": 6_720_593, "m3": 26_129_489, "m4": 25_667_153}),
    "ensembles/kaggle_fat_36th": (2, 0, "mean", {"resnet18_cbam": 11_326_088, "mobilenetv3_large": 4_390_022}),
    "ensembles/third_place": (
        11,
        0,
        "mean",
        {"2d": 9_248_771, "2d-basic": 2_337_426, "2d-5k": 21_545_583, "2d-rnn": 21_237_002},
    ),
    "ensembles/first_place": (
        7,
        3,
        "gmean",
        {
            "auxiliary_016": 17_326_950,
            "corr_noisy_003": 22_054_246,
            "corrections_002": 16_793_587,
            "corrections_003": 16_793_507,
        },
    ),
    "ensembles/gold_plan": (6, 0, "rank_temperature", {"cnn14-focal": 79_839_761, "resnet38": 72_867_344 + 2_049}),
}


def test_all_published_ensembles_are_there():
    assert ensemble_names() == sorted([*PUBLISHED, "ensembles/best", "ensembles/pretrained"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_ensembles_have_the_published_members(name):
    recipe = load_ensemble(name)
    n_members, n_stackers, how, parameters = PUBLISHED[name]
    assert (len(recipe.members), len(recipe.stackers), recipe.how) == (n_members, n_stackers, how)
    recipes = member_recipes(recipe)
    assert {key: recipe_parameters(recipes[key], 80) for key in parameters} == parameters


def test_the_1st_places_experiments_and_stackers_are_as_published():
    recipe = load_ensemble("ensembles/first_place")
    recipes = member_recipes(recipe)
    shares = {name: r.stages[0].noisy_labels["source_weights"]["noisy"] for name, r in recipes.items()}
    # Noisy over noisy and curated, where corrected clips had a share too.
    expected = {"auxiliary_016": 0.2, "auxiliary_019": 0.2, "corr_noisy_003": 0.1 / 0.8, "corr_noisy_004": 0.07 / 0.67,
                "corr_noisy_007": 0.01 / 0.58, "corrections_002": 0.33, "corrections_003": 0.33}
    assert shares == pytest.approx(expected, abs=5e-5)
    assert {r.stages[0].mixup["p"] for name, r in recipes.items() if name.startswith("corrections")} == {0.66}
    assert [s.options for s in recipe.stackers] == [
        {"reduction": reduction, "dropout": dropout, "lr": lr, "patience": patience, "factor": factor}
        for reduction, dropout, lr, patience, factor in [
            (16, 0.051, 4.6e-5, 5, 0.658), (2, 0.484, 3.9e-5, 9, 0.795), (1, 0.166, 2.6e-5, 7, 0.554)]]


def test_overrides_are_applied():
    recipe = EnsembleRecipe.model_validate({"name": "x", "members": [{
        "name": "a", "recipe": "ninth_full", "last_stage": "fit",
        "overrides": {"seed": 7, "front_end": {"n_mels": 32}, "model": {"options": {"dropout_samples": 4}},
                    "stages": {"bs": 8, "noisy_labels": {"method": "ninth_place_low_loss", "n": 9}}},
    }]})
    recipe = member_recipes(recipe, overrides=Overrides(epochs=3))["a"]
    assert [s.name for s in recipe.stages] == ["curated", "fit"] and [s.noisy_labels for s in recipe.stages] == [
        None,
        {"method": "ninth_place_low_loss", "n": 9},
    ]
    assert all((s.bs, s.epochs) == (8, 3) for s in recipe.stages) and recipe.seed == 7
    assert recipe.settings().front_end.n_mels == 32 and recipe.model.options == {"dropout_samples": 4}


@pytest.mark.parametrize(
    "text, words",
    [
        ('name = "x"\nmembers = []', "members: .*at least 1"),
        ('name = "x"\nhow = "mena"\nmembers = [{ name = "a", recipe = "ninth" }]', "did you mean mean"),
        ('name = "x"\nmembers = [{ name = "a", recipe = "nineth" }]', "did you mean ninth"),
        (
            'name = "x"\nmembers = [{ name = "a", recipe = "ninth" }, { name = "a", recipe = "quick" }]',
            "two members are named 'a'",
        ),
        ('name = "x"\nmembers = [{ name = "../a", recipe = "ninth" }]', "members.0.name"),
        (
            'name = "x"\nmembers = [{ name = "a", recipe = "ninth", last_stage = "fti" }]',
            "member a: last_stage is 'fti'; did you mean fit",
        ),
        (
            'name = "x"\nmembers = [{ name = "a", recipe = "ninth", overrides = { model = { arhc = "m1" } } }]',
            "member a: .*did you mean arch",
        ),
        (
            'name = "x"\nmembers = [{ name = "a", recipe = "ninth", overrides = { modle = 1 } }]',
            "member a: unknown key modle",
        ),
    ],
)
def test_errors_of_an_ensemble_are_named(tmp_path, text, words):
    (tmp_path / "my.toml").write_text(text)
    assert is_ensemble(tmp_path / "my.toml") and not is_ensemble("ninth") and not is_ensemble(tmp_path / "none.toml")
    with pytest.raises(RecipeError, match=f"my.toml: .*{words}"):
        load_ensemble(tmp_path / "my.toml")


def test_an_unknown_ensemble_suggests_the_nearest():
    with pytest.raises(RecipeError, match=r"\(a file of yours must end in .toml\); did you mean ensembles/ninth\?$"):
        load_ensemble("ensembles/nineth")


@pytest.fixture
def pair(tmp_path, tiny_recipe):
    """An ensemble of two tiny runs and a stacker."""
    (tmp_path / "tiny.toml").write_text(tiny_recipe.resolved())
    path = str(tmp_path / "tiny.toml")
    return EnsembleRecipe.model_validate({
        "name": "pair", "how": "gmean",
        "members": [{"name": "one", "recipe": path}, {"name": "two", "recipe": path, "overrides": {"seed": 3}}],
        "stackers": [{"name": "logistic", "how": "logreg"}],
    })


def quietly(*args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run_ensemble(*args, num_workers=0, **{"log": lambda line: None, **options})


def test_runs_are_reused_trained_and_combined_into_one_submission(pair, tiny_run, sample, tmp_path):
    lines = []
    result = quietly(sample, pair, tmp_path / "out", reuse=[tmp_path, tiny_run.out], log=lines.append)
    assert result.runs == (tiny_run.out, tmp_path / "out" / "two") and any("reused from" in line for line in lines)
    check_submission(tmp_path / "out" / "submission.csv", sample / "sample_submission.csv")
    truth = load_dataset(sample).curated[["fname", "labels"]]
    stacked = ensemble(result.runs, "logreg", truth=truth)
    expected = ensemble([*(Predictions.from_csv(run / "test.csv") for run in result.runs), stacked], "gmean")
    np.testing.assert_allclose(result.test.select(expected.fnames).probs, expected.probs, rtol=1e-6)
    assert result.ensembled.oof.score(truth) == pytest.approx(result.test.oof_score)
    assert "ensemble, nested" in (tmp_path / "out" / "blend.txt").read_text()

    with pytest.raises(DataError, match="exists and is not empty"):
        quietly(sample, pair, tmp_path / "out")
    before = {p: p.read_bytes() for p in (tmp_path / "out").glob("*.csv")}
    (tmp_path / "out" / "submission.csv").unlink()
    weights = tmp_path / "out" / "two" / "fold_0" / "model.safetensors"
    trained = weights.stat().st_mtime_ns
    quietly(sample, pair, tmp_path / "out", reuse=[tiny_run.out], resume=True)
    assert weights.stat().st_mtime_ns == trained, "finished runs are not trained again"
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_run_of_another_recipe_is_not_reused(pair, tiny_run, sample, tmp_path):
    only_two, lines = pair.model_copy(update={"members": pair.members[1:], "stackers": ()}), []
    result = quietly(sample, only_two, tmp_path / "out", reuse=[tiny_run.out], log=lines.append)
    assert result.runs == (tmp_path / "out" / "two",)
    assert f"  trained, since {tiny_run.out} has other settings: seed is 3 and was 2019" in lines


def test_an_ensemble_is_not_continued_in_the_folder_of_a_run(pair, tiny_run, sample, tmp_path):
    shutil.copytree(tiny_run.out, tmp_path / "run")
    with pytest.raises(CheckpointError, match="holds no ensemble.toml, so no ensemble to continue"):
        quietly(sample, pair, tmp_path / "run", reuse=[tiny_run.out], resume=True)


def test_an_ensemble_with_other_settings_of_a_member_is_not_continued(pair, sample, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "ensemble.toml").write_text(ensemble_toml(pair))
    other = pair.members[1].model_copy(update={"overrides": {"seed": 4}})
    changed = pair.model_copy(update={"members": (pair.members[0], other)})
    with pytest.raises(CheckpointError, match="member two: overrides.seed is 4 and was 3. Give the same recipe"):
        quietly(sample, changed, tmp_path / "out", resume=True)
    assert load_ensemble(tmp_path / "out" / "ensemble.toml") == pair, "the file stays as it is"


def test_the_commands_take_ensembles(main_with, sample, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = main_with("recipes", "show", "ensembles/third_place")
    assert shown.returncode == 0 and "[[members]]" in shown.stdout, shown.stderr
    ended = main_with(
        "run", sample, "--recipe", "ensembles/kaggle_fat_36th", "--scale", "tiny", "--dry-run", "--time-limit", "9h"
    )
    assert ended.returncode == 0 and ended.stdout.count("parameters") == 2 and ended.stdout.count("budget") == 1, (
        ended.stderr
    )
    assert not list(tmp_path.iterdir())


def runs_at_tiny(name, few_clips, out):
    # One fold of each run is enough: the combination is the same, in half the time.
    result = quietly(few_clips, name, out, scale="tiny", overrides=Overrides(run_folds=(0,)))
    check_submission(out / "submission.csv", few_clips / "sample_submission.csv")
    n_members, n_stackers, _, _ = PUBLISHED[name]
    assert (
        len(result.runs) == n_members
        and len(result.ensembled.members) == n_members + n_stackers
        and 0.1 < result.test.oof_score <= 1
    )
    assert load_recipe(result.runs[0] / "recipe.toml").model.width == 1 / 16


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_ensemble_runs_from_csv_to_submission(name, few_clips, tmp_path):
    runs_at_tiny(name, few_clips, tmp_path / "out")


def test_weights_are_those_of_the_members_that_take_them():
    recipes = member_recipes(load_ensemble("pretrained"), overrides=Overrides(weights="mn10_as"))
    options = {name: recipe.model.options.get("pretrained") for name, recipe in recipes.items()}
    assert options == {"finetune": "mn10_as", "probe": "mn10_as", "default": None}


def test_weights_that_no_member_takes_are_refused():
    with pytest.raises(RecipeError, match=r"no published ones for the networks of best \(m3, m4\); give them"):
        member_recipes(load_ensemble("best"), overrides=Overrides(weights="mn04_as"))


def test_a_network_that_cannot_be_built_ends_an_ensemble_before_anything_is_trained(tmp_path, sample):
    recipe = load_ensemble("best")
    wrong = recipe.members[2].model_copy(update={"overrides": {"model": {"options": {"colour": 3}}}})
    ensemble = recipe.model_copy(update={"members": (*recipe.members[:2], wrong)})
    with pytest.raises(OptionError, match="'m3' has no option 'colour'"):
        run_ensemble(sample, ensemble, tmp_path / "out", log=lambda line: None)
    assert not (tmp_path / "out" / "m3").exists()


def test_members_that_hold_out_other_clips_are_combined_on_those_of_all(tmp_path, rng):
    names, runs = [f"{k}.wav" for k in range(6)], []
    for name, clips in (("one", names[:4]), ("two", names[2:])):  # fold 0 of two splitters
        (tmp_path / name).mkdir()
        Predictions(clips, ["a", "b"], rng.random((4, 2))).to_csv(tmp_path / name / "oof.csv")
        (tmp_path / name / "folds.csv").write_text("fname,fold\n" + "".join(f"{clip},0\n" for clip in clips))
        runs.append(tmp_path / name)
    recipe = EnsembleRecipe.model_validate({"name": "x", "members": [{"name": n, "recipe": "quick"} for n in "ab"]})
    table = pd.DataFrame({"fname": names, "labels": [["a"], ["b"]] * 3})
    combined = _combine(recipe, runs, SimpleNamespace(curated=table, test=[]), "full", lambda line: None)
    assert sorted(combined.predictions.fnames) == names[2:4] and len(combined.member_scores) == 2
