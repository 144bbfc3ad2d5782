"""Recipes: typed, checked settings from TOML."""

import re

import pytest

from fatai.audio.front_ends import front_end as find_front_end
from fatai.errors import OptionError, RecipeError, UnknownNameError
from fatai.experiment.ensemble_recipe import load_ensemble
from fatai.experiment.old_keys import OLD_KEYS, OLD_VALUES
from fatai.experiment.overrides import Overrides, parse_settings
from fatai.experiment.recipe import Recipe, load_recipe, recipe_names, recipe_text


def write(tmp_path, text):
    path = tmp_path / "my.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_names_its_source(name):
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.source and recipe.reference_score and recipe.summary


def test_ninth_has_the_published_constants():
    recipe = load_recipe("ninth")
    settings = recipe.settings()
    front_end, fit = settings.front_end, recipe.stages[0]
    assert (front_end.sr, front_end.n_mels, front_end.n_fft, front_end.hop_length) == (44100, 64, 1920, 690)
    assert (front_end.fmin, front_end.max_hz, front_end.top_db, front_end.mean, front_end.std) == (
        20,
        22050,
        80,
        -35.7,
        21.6,
    )
    assert (settings.crop_s, settings.trim_db, settings.pad_mode, settings.crop_samples) == (
        4,
        60,
        "constant_center",
        176_400,
    )
    assert front_end.frames(settings.crop_samples) == 256
    assert (recipe.model.arch, recipe.model.width, recipe.clips.corrupted_files) == ("m3", None, "drop")
    assert (recipe.folds.splitter, recipe.folds.n, recipe.folds.seed, recipe.seed) == ("stratified", 5, 2019, 2019)
    assert (fit.epochs, fit.bs, fit.lr) == (65, 64, 1e-3)
    assert (fit.optimizer, fit.wd, fit.no_weight_decay) == ("adam", 0.01, "bias")
    assert (fit.schedule, fit.loss, fit.loss_options) == ("warmup_cosine", "bce", {"reduction": "sum"})
    assert (fit.clip_grad_value, fit.checkpoint) == (1, "best")
    assert (recipe.tta.views, recipe.tta.n) == ("random", 25)


@pytest.mark.parametrize("name", recipe_names())
def test_a_resolved_recipe_loads_as_itself(name, tmp_path):
    recipe = load_recipe(name)
    again = load_recipe(write(tmp_path, recipe.resolved()))
    assert again.settings() == recipe.settings() and again.resolved() == recipe.resolved()
    assert again.model_dump(exclude={"front_end"}) == recipe.model_dump(exclude={"front_end"})


def test_keeping_silence_survives_the_round_trip(tmp_path):
    recipe = load_recipe(write(tmp_path, 'name = "x"\n[clips]\ntrim_db = false\n'))
    assert recipe.settings().trim_db is None
    assert load_recipe(write(tmp_path, recipe.resolved())).settings().trim_db is None


@pytest.mark.parametrize("text, words", [
    ('name = "x"\n[clips]\ncrop = 2\n', ["my.toml", "unknown key clips.crop", "did you mean crop_s"]),
    ('name = "x"\n[clips]\ncrop_s = "long"\n', ["clips.crop_s", "'long'", "number"]),
    ('name = "x"\n[[stages]]\nepoch = 3\n', ["stages.0.epoch", "did you mean epochs"]),
    ('name = "x"\n[[stages]]\nepochs = 0\n', ["stages.0.epochs is 0", "greater than or equal to 1"]),
    ('name = "x"\n[[stages]]\nloss = "bec"\n', ["stages.0.loss is 'bec'", "did you mean bce"]),
    ('name = "x"\n[model]\narch = "m33"\n', ["model.arch is 'm33'", "did you mean m3"]),
    ('name = "x"\n[front_end]\nname = "nineth"\n', ["'nineth'", "did you mean ninth"]),
    ('name = "x"\n[front_end]\nn_mel = 64\n', ["n_mel", "did you mean n_mels"]),
    ('name = "x"\n[front_end]\nn_mels = "many"\n', ["front_end"]),
    ('name = "x"\n[folds]\nsplitter = "random"\n', ["folds.splitter is 'random'", "known: "]),
    ('name = "x"\n[folds]\nsplitter = "predefined"\n', ["splitter is 'predefined'", "give its name as group_col"]),
    ('name = "x"\n[folds]\ngroup_col = "site"\n', ["group_col is 'site'", "expected group or predefined"]),
    ('name = "x"\nstages = []\n', ["stages", "at least 1"]),
    ('[clips]\n', ["name", "required"]),
    ('name = \n', ["not valid TOML"]),
])
def test_errors_name_the_file_the_key_and_what_is_allowed(tmp_path, text, words):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, text))
    assert all(w in str(caught.value) for w in words), str(caught.value)


@pytest.mark.parametrize(
    "lines, words",
    [
        ('mixup = { name = "mixup_of" }', ["stages.0.mixup", "did you mean mixup_or"]),
        ('mixup = { alpha = 1.0 }', ["stages.0.mixup", "needs a name"]),
        ('augment = [{ name = "spec_augment", widht = 3 }]', ["stages.0.augment", "no option 'widht'"]),
        ('item_tfms = [{ name = "spec_augment" }]', ["stages.0.item_tfms", "put it in augment"]),
        ('loss = "bce"\nloss_options = { gamma = 2 }', ["the loss 'bce'", "gamma"]),
        (
            'epochs = 3\nschedule = "warmup_smooth_cosine"\nschedule_options = { warmup_epochs = 3 }',
            ["warmup_epochs is 3", "less than the 3"],
        ),
        ('extends = "fti"', ["stage 0 extends 'fti'"]),
        ('sampling = "weighted"', ["stages.0.sampling", "'shuffle', 'balanced' or 'mixture'"]),
    ],
)
def test_names_and_options_of_a_stage_are_checked(tmp_path, lines, words):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, f'name = "x"\n[[stages]]\n{lines}\n'))
    assert all(w in str(caught.value) for w in words), str(caught.value)


def test_a_stage_extends_another(tmp_path):
    stages = '[[stages]]\nname = "fit"\nlr = 0.01\nbs = 7\n'
    stages += '[[stages]]\nname = "again"\nextends = "fit"\nlr = 0.001\nreinit = true\n'
    recipe = load_recipe(write(tmp_path, 'name = "x"\n' + stages))
    assert [(s.name, s.lr, s.bs, s.reinit) for s in recipe.stages] == [
        ("fit", 0.01, 7, False),
        ("again", 0.001, 7, True),
    ]
    assert load_recipe(write(tmp_path, recipe.resolved())).stages == recipe.stages
    with pytest.raises(RecipeError, match="run_folds is .9.; expected one or more of the folds 0 to 4"):
        load_recipe(write(tmp_path, 'name = "x"\n[folds]\nn = 5\nrun_folds = [9]\n'))


def test_an_unknown_cache_is_named(tmp_path):
    with pytest.raises(RecipeError, match="clips.cache is 'feature': did you mean features"):
        load_recipe(write(tmp_path, 'name = "x"\n[clips]\ncache = "feature"\n'))


def test_another_front_end_drops_the_old_ones_values_and_statistics_keep_the_rest():
    ninth = load_recipe("ninth")
    assert ninth.with_front_end(name="panns").settings().front_end == find_front_end("panns")
    measured = ninth.with_front_end(mean=-30.0, std=20.0).settings().front_end
    assert measured == find_front_end("ninth", mean=-30.0, std=20.0)


def test_an_unknown_recipe_suggests_the_nearest():
    message = r"no recipe named 'nineth' \(a file of yours must end in .toml\); did you mean ninth\?$"
    with pytest.raises(RecipeError, match=message):
        load_recipe("nineth")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a" * 300_000])
def test_binary_and_oversized_files_are_refused(tmp_path, content):
    (tmp_path / "my.toml").write_bytes(content)
    with pytest.raises(RecipeError, match="cannot be read as text|bytes; a recipe has at most"):
        recipe_text(str(tmp_path / "my.toml"))


def test_overrides_are_applied_and_checked():
    recipe = load_recipe("ninth").override(n_folds=2, epochs=40, bs=16, width=0.5, crop_s=2, n_views=5, seed=1)
    assert (recipe.folds.n, recipe.model.width, recipe.clips.crop_s, recipe.tta.n, recipe.seed) == (2, 0.5, 2, 5, 1)
    assert all((s.epochs, s.bs, s.lr) == (40, 16, 1e-3) for s in recipe.stages)
    assert load_recipe("ninth").override() == load_recipe("ninth")
    with pytest.raises(RecipeError, match="folds.n is 1"):
        recipe.override(n_folds=1)


def test_a_recipe_cannot_be_changed_by_accident():
    with pytest.raises(Exception, match="frozen"):
        Recipe(name="x").seed = 3


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "[" * 20_000,
        ".".join("a" * 20_000) + " = 1",
        "[" + ".".join(["'b'"] * 20_000) + "]",
        "seed = " + "9" * 5000,
        "stages = [" + "1," * 50_000 + "]",
    ],
)
def test_texts_that_would_take_forever_are_refused_at_once(tmp_path, text):
    with pytest.raises(RecipeError, match="not valid TOML|there are 50000; at most 100"):
        load_recipe(write(tmp_path, f'name = "x"\n{text}\n'))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("seed = 99999999999", "seed is 99999999999: .*less than or equal to"),
        ("[folds]\nseed = 99999999999", "folds.seed"),
        ("[clips]\ntrim_db = nan", "clips.trim_db"),
        ("[clips]\ntrim_db = 0", "clips.trim_db"),
        ("[model]\noptions = { n_tags = 3 }", "n_tags cannot be set: it follows from the data and the front end"),
        ("[front_end]\nn_fft = 1099511627776", "n_fft=1099511627776; expected at most 131072"),
        ('[[stages]]\nname = ["a"]\n[[stages]]\nextends = "a"', "stage 1 extends 'a'"),
        ("[[stages]]\nextends = { a = 1 }", "stage 0 extends"),
    ],
)
def test_values_out_of_bounds_are_refused(tmp_path, lines, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(tmp_path, f'name = "x"\n{lines}\n'))


def toml_of(path, value):
    """Return a TOML text with one key, by its path as in `OLD_KEYS`."""
    *sections, key = path.split(".")
    line = f"{key} = {value}"
    if len(sections) == 2:
        line = f"{sections[1]} = [{{ {line} }}]"
    section = sections[0] if sections else ""
    header = {"": "", "stages": "[[stages]]\n", "members": "[[members]]\n"}.get(section, f"[{section}]\n")
    return f"{header}{line}\n"


@pytest.mark.parametrize("path", OLD_KEYS)
def test_a_key_of_an_earlier_version_is_refused_with_the_new_one(tmp_path, path):
    key, new = path.split(".")[-1], OLD_KEYS[path]
    load = load_ensemble if path.startswith("members") else load_recipe
    message = rf"my.toml is written for an earlier version of fatai: the key [\w.]*\b{key} is now {new}$"
    with pytest.raises(RecipeError, match=message):
        load(write(tmp_path, 'name = "x"\n' + toml_of(path, "1")))


@pytest.mark.parametrize(("path", "old"), [(path, old) for path, values in OLD_VALUES.items() for old in values])
def test_a_value_of_an_earlier_version_is_refused_with_the_new_one(tmp_path, path, old):
    new = str(OLD_VALUES[path][old]).lower()
    with pytest.raises(RecipeError, match=rf"my.toml is written for an earlier version.*= '{old}' is now {new}$"):
        load_recipe(write(tmp_path, 'name = "x"\n' + toml_of(path, f'"{old}"')))


def test_all_old_keys_of_a_recipe_are_named_at_once(tmp_path):
    old = 'name = "x"\n[listen]\nhow = "even"\n[[stages]]\nnoisy = { name = "kept" }\n'
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, old))
    assert str(caught.value).endswith(
        "my.toml is written for an earlier version of fatai: the key listen is now tta, "
        "the key listen.how is now views, "
        "the key stages.0.noisy is now noisy_labels, the key stages.0.noisy.name is now method, "
        "stages.0.noisy.name = 'kept' is now previous"
    )


@pytest.mark.parametrize("overrides", [{"arch": "mn04"}, {"values": {"model.arch": "mn04"}}])
@pytest.mark.parametrize("name", ["gold_plan", "panns_logreg"])
def test_the_front_end_of_published_weights_follows_the_network(name, overrides):
    changed = load_recipe(name).override(weights="mn04_as", **overrides)
    assert changed.front_end == {"name": "efficientat"} and changed.settings().sr == 32000
    assert (changed.model.arch, changed.model.options["pretrained"]) == ("mn04", "mn04_as")
    same = load_recipe(name).override(arch="cnn10")
    assert same.front_end == load_recipe(name).front_end
    chosen = load_recipe(name).override(arch="mn04", values={"front_end.name": "ninth"})
    assert chosen.front_end == {"name": "ninth"}


def test_a_front_end_that_was_not_that_of_the_weights_stays():
    assert load_recipe("ninth").override(arch="mn04").front_end == load_recipe("ninth").front_end
    own = load_recipe("gold_plan").with_front_end(name="panns_plan")
    assert own.override(arch="mn04").front_end["name"] == "panns_plan"


def test_any_setting_can_be_overridden_by_its_dotted_key():
    values = parse_settings([
        "clips.channels=deltas",
        "stages.lr=1e-3",
        'stages.0.mixup={ name = "mixup_or", p = 0.25 }',
        "front_end.name=panns",
        "front_end.n_mels=32",
    ])
    recipe = load_recipe("ninth").override(Overrides(values=values))
    assert recipe.clips.channels == "deltas" and {stage.lr for stage in recipe.stages} == {1e-3}
    assert recipe.stages[0].mixup == {"name": "mixup_or", "p": 0.25}
    assert recipe.front_end == {"name": "panns", "n_mels": 32}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("clips.channel_s=deltas", "unknown key clips.channel_s"),
        ("clip.channels=deltas", "unknown key 'clip'; did you mean clips?"),
        ("stages.9.lr=1", "there is no number 9"),
        ("seed.x=1", "seed.x leads into 2019"),
        ("stages.0.lr=-1", "stages.0.lr is -1"),
    ],
)
def test_a_wrong_dotted_key_or_value_is_named(setting, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        load_recipe("ninth").override(Overrides(values=parse_settings([setting])))


def test_a_setting_without_a_value_is_refused():
    with pytest.raises(OptionError, match="'clips.channels' is not a setting; expected KEY=VALUE"):
        parse_settings(["clips.channels"])


def test_old_keys_in_the_overrides_of_a_member_are_refused(tmp_path):
    member = '[[members]]\nname = "a"\nrecipe = "ninth"\noverrides.stages = { keep = "last" }\n'
    with pytest.raises(RecipeError, match="member a is written for .*the key stages.0.keep is now checkpoint"):
        load_ensemble(write(tmp_path, f'name = "x"\n{member}'))


@pytest.mark.parametrize("value", ["0", "0.0", "-1", "true", "inf"])
def test_silence_is_kept_by_false_and_trimmed_by_decibels_above_zero(value, tmp_path):
    with pytest.raises(RecipeError, match="clips.trim_db"):
        load_recipe(write(tmp_path, f'name = "x"\n[clips]\ntrim_db = {value}\n'))


def test_a_network_of_timm_has_no_width_unless_it_is_given_one():
    quick = load_recipe("quick")
    assert quick.model.width is not None and quick.override(arch="m1").model.width == quick.model.width
    assert quick.override(arch="timm:resnet10t").model.width is None
    assert quick.override(values={"model.arch": "timm:resnet10t"}).model.width is None
    default = load_recipe("default")
    assert "width" in default.auto and "width" not in default.override(arch="timm:resnet10t").auto


@pytest.mark.parametrize("overrides, arch", [
    (Overrides(weights="mn04_as"), "m3"), (Overrides(weights="mn04_as", values={"model.arch": "m4"}), "m4"),
])
def test_weights_for_a_network_without_any_are_refused_with_those_that_have_some(overrides, arch):
    message = f"recipe default trains {arch}, for which there are no published ones; give them to recipe finetune"
    with pytest.raises(RecipeError, match=message):
        load_recipe("default").override(overrides)


def test_a_network_of_timm_takes_weights():
    recipe = load_recipe("default").override(Overrides(arch="timm:efficientnet_b0", weights="weights.safetensors"))
    assert recipe.model.options["pretrained"] == "weights.safetensors"


@pytest.mark.parametrize("name", ["default", "quick"])
def test_a_network_that_is_named_with_its_published_weights_has_their_front_end_and_width(name):
    given = Overrides(arch="mn04", weights="mn04_as")
    recipe = load_recipe(name).override(given)
    assert recipe.front_end == {"name": "efficientat"} and recipe.model.width is None
    assert "width" not in (recipe.auto or ())
    assert recipe.override(given) == recipe, "as `run` overrides the recipe that was decided for the data"
    chosen = load_recipe(name).override(arch="mn04", weights="mn04_as", width=0.5, values={"front_end.name": "ninth"})
    assert chosen.front_end == {"name": "ninth"} and chosen.model.width == 0.5
    own = load_recipe(name).override(arch="mn04", weights="my_mn04.pt")
    assert own.front_end == {"name": "ninth"}, "whose front end is not known"


@pytest.mark.parametrize("name", ["finetune", "probe"])
def test_a_recipe_of_published_weights_takes_those_of_another_network(name):
    recipe = load_recipe(name)
    assert recipe.override(arch="mn10").model.options == {"pretrained": "mn10_as"}
    other = recipe.override(values={"model.arch": "cnn10"})
    assert other.model.options == {"pretrained": "cnn10"} and other.front_end == {"name": "panns"}
    assert recipe.override(arch="timm:resnet18").model.options == {"pretrained": True}
    assert recipe.override(arch="mn10", weights="mine.pt").model.options == {"pretrained": "mine.pt"}
    assert not recipe.override(arch="m3", values={"model.options.pretrained": False}).model.options["pretrained"]
    with pytest.raises(RecipeError, match="starts from published weights, and there are none for m3; choose one of mn"):
        recipe.override(arch="m3")
    with pytest.raises(UnknownNameError, match="'mn4'; did you mean mn40"):
        recipe.override(arch="mn4")


@pytest.mark.parametrize("setting, message", [
    ("stages.0.sampling_options.max_repeat=3", "sampling 'balanced' has no option 'max_repeat'; did you mean max_repe"),
    ("clips.channel=each", "clips.channel is 'each': known: auto, mean, loudest"),
])
def test_a_setting_that_would_fail_while_training_is_refused_before(setting, message):
    values = parse_settings(["stages.0.sampling=balanced", setting])
    with pytest.raises(RecipeError, match=re.escape(message)):
        load_recipe("quick").override(Overrides(values=values))
