"""The size of a run within a budget: choices of the ladder from given times, and runs of the command."""

import pytest

from fatai.data.datasets.fat2019 import load_dataset
from fatai.errors import RecipeError
from fatai.experiment.adapt import adapt_recipe
from fatai.experiment.budget import (
    LADDER,
    Rung,
    choose_rung,
    fold_seconds,
    plan_ensemble,
    plan_recipe,
    resize,
    run_seconds,
)
from fatai.experiment.ensemble_recipe import is_ensemble, load_ensemble, with_probe
from fatai.experiment.ensemble_run import member_recipes
from fatai.experiment.estimate import Costs, clips_and_steps, measure_costs
from fatai.experiment.overrides import Overrides
from fatai.experiment.recipe import load_recipe, recipe_names


@pytest.fixture(scope="module")
def data(sample):
    return load_dataset(sample)


def at(step_s):
    """A measurement in which m4 takes twice as long as m3, and predictions nothing."""
    def measure(data, recipe):
        measure.calls.append(recipe.model.arch)
        return Costs((step_s * (2 if recipe.model.arch == "m4" else 1),) * len(recipe.stages), 0.0)

    measure.calls = []
    return measure


def test_the_rungs_rise_in_networks_times_folds_times_steps():
    costs = [rung.members * rung.folds * rung.steps for rung in LADDER]
    assert costs == sorted(costs) and len(set(LADDER)) == len(LADDER)


@pytest.mark.parametrize("budget_s, expected", [
    (1e9, LADDER[-1]), (45 / 0.9 + 1e-6, LADDER[-1]), (44.9 / 0.9, Rung(3, 5, 1.5)), (22.4 / 0.9, Rung(3, 5, 1)),
    (6 / 0.9 + 1e-6, Rung(2, 3, 1)), (1 / 0.9 + 1e-6, Rung(1, 2, 1 / 2)),
])
def test_the_last_rung_within_nine_tenths_of_the_budget_is_taken(budget_s, expected):
    rung, seconds = choose_rung(LADDER, lambda r: r.members * r.folds * r.steps, budget_s)
    assert rung == expected and seconds == expected.members * expected.folds * expected.steps


def test_a_budget_that_nothing_fits_takes_the_smallest_run_with_a_warning():
    with pytest.warns(UserWarning, match="takes about 0:01:40, more than the budget of 0:00:05"):
        rung, _ = choose_rung(LADDER, lambda r: 400 * r.members * r.folds * r.steps, 5)
    assert rung == LADDER[0]


@pytest.mark.parametrize("budget_s", [60, 1500, 600_000])
def test_the_plan_of_best_is_what_its_recipes_then_take(budget_s, data):
    recipe, measure = load_ensemble("best"), at(0.1)
    chosen, plan = plan_ensemble(data, recipe, member_recipes(recipe), budget_s, measure=measure)
    sized = [adapt_recipe(r, data) for r in member_recipes(chosen).values()]
    assert len(sized) == plan.rung.members and {r.folds.n for r in sized} == {plan.folds}
    costs = [Costs((0.2 if r.model.arch == "m4" else 0.1,), 0.0) for r in sized]
    assert plan.seconds == pytest.approx(
        sum(r.folds.n * fold_seconds(r, data, c) for r, c in zip(sized, costs, strict=True))
    )
    assert plan.seconds <= 0.9 * budget_s or plan.rung == LADDER[0]
    n_train = [round(len(data.curated) * (1 - 1 / r.folds.n)) for r in sized]
    steps = [r.stages[0].epochs * clips_and_steps(r.stages[0], n, 0, 2)[1] for r, n in zip(sized, n_train, strict=True)]
    assert list(plan.steps) == steps


def test_networks_that_differ_in_their_seed_are_measured_once(data):
    recipe, measure, without_seed = load_ensemble("best"), at(0.1), at(0.1)
    plan_ensemble(data, recipe, member_recipes(recipe), 1e9, measure=measure)
    others = recipe.model_copy(update={"members": recipe.members[:2]})
    plan_ensemble(data, others, member_recipes(others), 1e9, measure=without_seed)
    assert sorted(measure.calls) == sorted(without_seed.calls) and {*measure.calls} == {"m3", "m4"}


def test_the_plan_is_said_in_one_line(data):
    recipe = load_ensemble("best")
    _, plan = plan_ensemble(data, recipe, member_recipes(recipe), 1e5, measure=at(0.01))
    words = str(plan)
    assert words.startswith("about ") and " of 27:46:40: 3 members x 5 folds x " in words and words.endswith("steps")


def test_each_measurement_is_announced_and_its_result_said(data):
    recipe, measure, lines = load_ensemble("best"), at(0.1), []
    plan_ensemble(data, recipe, member_recipes(recipe), 1e9, measure=measure, log=lines.append)
    assert len(lines) == 2 * len(measure.calls)
    assert [line.split()[-1] for line in lines[::2]] == measure.calls
    assert all(line.split(": ")[1].startswith("measuring a few steps of m") for line in lines[::2])
    assert {line.split(": ")[1] for line in lines[1::2]} == {
        "0.1 s a step, 0 s to predict a clip", "0.2 s a step, 0 s to predict a clip"
    }


def test_a_probe_is_measured_without_a_step_and_kept_at_every_size(data):
    recipe, lines = with_probe(load_ensemble("best"), "mn04_as"), []
    small, plan = plan_ensemble(
        data, recipe, member_recipes(recipe), 1e5, n_sized=3, log=lines.append,
        measure=lambda data, recipe: Costs((0.0 if recipe.model.arch == "mn04" else 1.0,), 0.25),
    )
    assert "probe: 0.25 s to predict a clip" in lines and "default: 1 s a step, 0.25 s to predict a clip" in lines
    n_clips = len(data.curated) + len(data.test)
    alone, _ = plan_ensemble(
        data, load_ensemble("best"), member_recipes(load_ensemble("best")), 1e5, log=lines.append,
        measure=lambda data, recipe: Costs((1.0,), 0.25),
    )
    assert [member.name for member in small.members] == [member.name for member in alone.members] + ["probe"]
    assert small.members[-1].overrides["folds"]["n"] == plan.folds and plan.seconds > 0.25 * n_clips


@pytest.mark.parametrize("budget_s", [60, 1200, 60_000])
def test_a_single_recipe_takes_the_rungs_of_one_network(budget_s, data):
    recipe = load_recipe("default").override(Overrides(values={"noisy_decision": False}))
    sized, plan = plan_recipe(data, recipe, budget_s, measure=at(0.1))
    assert plan.rung.members == 1 and sized.folds.n == plan.folds == plan.rung.folds
    assert sized.decided and "stages.epochs" in " ".join(sized.decided)
    assert str(plan).count("member x") == 1


def test_a_recipe_with_epochs_of_its_own_has_them_multiplied(data):
    sized, plan = plan_recipe(data, load_recipe("quick"), 20, measure=at(0.1))
    assert plan.rung.steps < 1 and sized.stages[0].epochs == round(40 * plan.rung.steps)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_has_every_size(name):
    recipe = load_recipe(name)
    for rung in (LADDER[0], LADDER[-1]):
        stages = resize(recipe, rung).stages
        assert all((s.no_aug_epochs or 0) <= s.epochs >= (s.no_mixup_epochs or 0) for s in stages)


@pytest.mark.parametrize("budget_s, decides", [(200, False), (600_000, True)])
def test_noisy_clips_are_tried_only_where_the_time_suffices_for_twice_the_folds(budget_s, decides, data):
    recipe = load_recipe("default").override(Overrides(values={"noisy_decision": True}))
    sized, plan = plan_recipe(data, recipe, budget_s, measure=at(0.1))
    assert bool(sized.noisy_decision) is plan.noisy_decision is decides
    assert ("noisy clips" in str(plan)) and plan.seconds <= 0.9 * budget_s


def test_predictions_of_noisy_clips_are_part_of_the_plan(data):
    def measure(data, recipe):
        return Costs((0.0,) * len(recipe.stages), 1.0)

    recipe = load_recipe("default").override(Overrides(values={"noisy_decision": True}))
    sized, plan = plan_recipe(data, recipe, 1e6, measure=measure)
    n, n_folds = len(data.curated), sized.folds.n
    assert plan.seconds == n_folds * (2 * (round(n / n_folds) + len(data.test)) + min(len(data.noisy), 5 * n))
    noisy = load_recipe("ninth_full")
    n_predicted = round(n / noisy.folds.n) + len(data.noisy) + len(data.test)
    assert fold_seconds(noisy, data, measure(data, noisy)) == n_predicted


def test_best_is_a_recipe_by_its_short_name_and_its_members_take_rules_for_the_rest(data):
    assert is_ensemble("best") and is_ensemble("ensembles/best") and not is_ensemble("ninth")
    recipes = member_recipes(load_ensemble("best"))
    adapted = {name: adapt_recipe(recipe, data) for name, recipe in recipes.items()}
    assert {r.folds.n for r in adapted.values()} == {5} and {r.model.width for r in adapted.values()} == {0.25}
    assert adapted["m4"].model.arch == "m4" and adapted["m3-2020"].seed == 2020
    once = adapt_recipe(load_recipe("default").override(Overrides(n_folds=5)), data)
    assert adapted["m3"].stages[0].epochs == 1.5 * once.stages[0].epochs and adapted["m3"].noisy_decision is None
    assert not any(r.model.options.get("pretrained") for r in adapted.values()), "no weights unless they are named"


def test_named_weights_are_one_more_member():
    recipe = with_probe(load_ensemble("best"), "mn10_as")
    probe = member_recipes(recipe)["probe"]
    assert len(recipe.members) == 4 and probe.model.arch == "mn10" and probe.folds.n == 5
    assert probe.model.options["pretrained"] == "mn10_as" and probe.auto == ("splitter",)
    with pytest.raises(Exception, match="did you mean mn10_as"):
        with_probe(load_ensemble("best"), "mn10_ass")


def test_a_step_and_a_prediction_are_measured_with_the_real_network(data, tiny_recipe):
    costs = measure_costs(data, tiny_recipe, num_workers=0, steps=1)
    assert len(costs.step_s) == 1 and 0 < costs.step_s[0] < 60 and 0 < costs.clip_s < 60


def test_the_command_refuses_what_the_budget_decides(main_with, sample, tmp_path):
    refused = main_with("run", sample, "--budget", "1h", "--folds", 3, "--out", tmp_path / "run")
    assert refused.returncode == 2 and "leave out --folds, --epochs and --scale" in refused.stderr
    wrong = main_with("run", sample, "--budget", "soon", "--out", tmp_path / "run")
    assert wrong.returncode == 2 and "expected hours, minutes or seconds" in wrong.stderr


def test_steps_factor_is_a_setting_of_a_recipe(data):
    with pytest.raises(RecipeError, match="steps_factor"):
        load_recipe("default").override(Overrides(values={"steps_factor": 0}))
    half = adapt_recipe(load_recipe("default").override(Overrides(values={"steps_factor": 0.5})), data)
    full = adapt_recipe(load_recipe("default"), data)
    assert half.stages[0].epochs == round(full.stages[0].epochs / 2)
    assert "0.5 times" in " ".join(half.decided.values())


def test_the_folds_of_a_frozen_network_share_the_time_of_their_clips(data):
    probe, costs = load_recipe("probe"), Costs((0.0,), 2.0)
    assert run_seconds(probe, data, costs) == 2.0 * (len(data.curated) + len(data.test))
    sized, plan = plan_recipe(data, probe, 1000, measure=lambda data, recipe: costs, log=lambda line: None)
    assert sized.folds.n == 5 and plan.seconds == run_seconds(probe, data, costs)


def test_the_load_of_the_machine_is_logged_beside_the_times(data):
    lines = []

    def measure(data, recipe):
        return Costs((0.1,), 0.0, load=1000.0)

    plan_recipe(data, load_recipe("quick"), 1000, measure=measure, log=lines.append)
    assert any("measured at a load of 1000.0 on" in line for line in lines)


def test_folds_side_by_side_leave_time_for_more(data, monkeypatch):
    monkeypatch.setattr("fatai.experiment.launch.available_cores", lambda: 2)
    recipe = load_recipe("default").override(Overrides(values={"noisy_decision": False}))
    alone = [plan_recipe(data, recipe, s, measure=at(0.1))[1] for s in (400, 1000)]
    beside = [plan_recipe(data, recipe, s, measure=at(0.1), side_by_side=True)[1] for s in (400, 1000)]
    assert [plan.side_by_side for plan in alone + beside] == [1, 1, 2, 2]
    for one, two in zip(alone, beside, strict=True):
        assert two.rung.folds * two.rung.steps > one.rung.folds * one.rung.steps
        assert two.seconds <= 0.9 * two.budget_s and ", 2 folds side by side" in str(two)


def test_folds_side_by_side_take_half_the_time_and_a_tenth_more(data, monkeypatch):
    monkeypatch.setattr("fatai.experiment.launch.available_cores", lambda: 2)
    recipe = load_recipe("quick")  # two folds
    costs = at(0.1)(data, recipe)
    with pytest.warns(UserWarning, match="the smallest run takes about"):
        alone, beside = (
            plan_recipe(data, recipe, 1, measure=at(0.1), side_by_side=is_beside)[1] for is_beside in (False, True)
        )
    assert alone.rung == beside.rung and beside.seconds == pytest.approx(0.55 * alone.seconds)
    assert run_seconds(recipe, data, costs, 2) == pytest.approx(run_seconds(recipe, data, costs) / 2)
