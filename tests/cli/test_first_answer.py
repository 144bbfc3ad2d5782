"""Commands that predict with a run import torch and little else."""

import os
import subprocess
import sys

import pytest

from fatai.errors import RecipeError
from fatai.experiment.recipe import load_recipe

SCRIPT = """
import sys

import fatai.web.server
from fatai.cli import main
from fatai.experiment.build import recipe_parameters
from fatai.experiment.recipe import load_recipe

fatai.web.server.serve = lambda app, *args, **options: print("served", type(app).__name__)
run, sound = sys.argv[1:]
recipe_parameters(load_recipe("default", trains=False), 80)
for words in (["predict", run, sound], ["tag", run, sound], ["serve", run]):
    sys.argv = ["fatai-submit", *words]
    try:
        main()
    except SystemExit as e:
        assert not e.code, words
    heavy = {"fastai", "sklearn", "scipy.signal", "scipy.special", "scipy.stats", "matplotlib", "pandas", "librosa",
             "timm", "torchvision", "torch._dynamo"}
    print(words[0], "imports", sorted(heavy & sys.modules.keys()))
"""


def test_predict_tag_and_serve_import_torch_alone(tiny_run, sample):
    sound = sorted((sample / "test").iterdir())[0]
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tiny_run.out), str(sound)], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[0].startswith(f"{sound.name}: ") and "served FastHTML" in lines
    assert [line for line in lines if " imports " in line] == [
        "predict imports []", "tag imports []", "serve imports []"
    ]


def test_a_recipe_that_only_predicts_is_loaded_without_checking_its_fit(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text('name = "x"\n[[stages]]\nschedule = "own_schedule"\naugment = [{ name = "own_augmentation" }]\n')
    assert load_recipe(file, trains=False).stages[0].schedule == "own_schedule"
    with pytest.raises(RecipeError, match=r"schedule is 'own_schedule'.*augment"):
        load_recipe(file)
    file.write_text('name = "x"\n[tta]\nviews = "evn"\n[[stages]]\nepochs = "many"\n')
    with pytest.raises(RecipeError, match=r"stages.0.epochs is 'many'.*views is 'evn': did you mean even"):
        load_recipe(file, trains=False)
