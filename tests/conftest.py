"""Fixtures of all tests: seeds, no display, the bundled sample, and one small finished run."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")
# For small tensors several threads are slower than one. Set before torch is imported, and inherited by commands.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import settings

# The same examples in every run of the tests; `make fuzz` takes new ones by --hypothesis-profile=random.
settings.register_profile("fixed", derandomize=True)
settings.register_profile("random", derandomize=False, print_blob=True)
settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(2019)


@pytest.fixture(scope="session")
def sample():
    """The folder of the bundled sample."""
    from fatai.data.datasets.fat2019 import fat_sample

    return fat_sample()


@pytest.fixture(scope="session")
def small_dls(sample):
    """Loaders of the sample's curated part with a validation part of a quarter."""
    from fatai.data.blocks import FATDataLoaders

    return FATDataLoaders.from_path(sample, crop_s=1, bs=16, valid_pct=0.25, seed=0, num_workers=0)


@pytest.fixture
def own_dls(sample):
    """The same loaders for a single test, which may change them, as a stage of a recipe does."""
    from fatai.data.blocks import FATDataLoaders

    return FATDataLoaders.from_path(sample, crop_s=1, bs=16, valid_pct=0.25, seed=0, num_workers=0, check_files=False)


@pytest.fixture(scope="session")
def tiny_recipe():
    """Seconds instead of minutes: narrow, short, two epochs."""
    from fatai.experiment.recipe import load_recipe

    return load_recipe("quick").override(arch="m1", width=0.125, epochs=2, crop_s=0.5, n_views=2)


@pytest.fixture(scope="session")
def tiny_run(sample, tiny_recipe, tmp_path_factory):
    """A finished run of `tiny_recipe` on the sample."""
    from fatai.experiment.run import run_recipe

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run_recipe(sample, tiny_recipe, tmp_path_factory.mktemp("runs") / "tiny", num_workers=0)


@pytest.fixture(scope="session")
def chromium():
    """A running Chromium without a screen; installed if the machine has none."""
    from helpers.browser import launch_chromium

    with launch_chromium() as browser:
        yield browser


@pytest.fixture
def issue_run(sample, tmp_path):
    """A run with label issues in three of its clips, and these clips."""
    from helpers.review_run import write_issue_run

    return write_issue_run(sample, tmp_path / "run")


@pytest.fixture
def main_with(monkeypatch, capsys):
    """Run the command in this process, which saves importing torch for each test; return its CompletedProcess."""
    from fatai.cli import main

    def run_main(*args):
        monkeypatch.setattr(sys, "argv", ["fatai-submit", *map(str, args)])
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
        with pytest.raises(SystemExit) as caught, warnings.catch_warnings():
            main()
        output = capsys.readouterr()
        return subprocess.CompletedProcess(args, caught.value.code, output.out, output.err)

    return run_main
