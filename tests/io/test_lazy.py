"""Imports are quick: heavy modules on first use, and without passes of the garbage collector."""

import gc
import json
import subprocess
import sys

import pytest

from fatai.inference.learner import FatLearner
from fatai.io.lazy import collection_paused


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_paused_in_the_block_and_then_as_it_was(enabled):
    was_enabled = gc.isenabled()
    try:
        gc.enable() if enabled else gc.disable()
        with pytest.raises(KeyError), collection_paused():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() is enabled
    finally:
        gc.enable() if was_enabled else gc.disable()


IMPORTS = """
import gc, json, sys

from fatai import fat_learner
from fatai.inference.learner import FatLearner

with_the_learner = {"all": "fatai.all" in sys.modules, "methods": list(vars(FatLearner))}
import fatai.all

heavy = [name for name in ("jinja2", "packaging.requirements") if name in sys.modules]
print(json.dumps([with_the_learner, {"collects": gc.isenabled(), "heavy": heavy}]))
"""


@pytest.fixture(scope="module")
def imported():
    """A new process after the import of the learner, and then after that of everything."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", IMPORTS], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_the_learner_comes_with_its_methods_but_without_the_rest(imported):
    with_the_learner, _ = imported
    assert not with_the_learner["all"] and set(with_the_learner["methods"]) == set(vars(FatLearner))
    assert {"predict", "report", "tta"} <= set(with_the_learner["methods"])


def test_importing_everything_leaves_the_collector_on_and_the_templates_and_requirements_of_others_out(imported):
    _, with_everything = imported
    assert with_everything == {"collects": True, "heavy": []}
