"""What every test shares: a quiet, headless, seeded machine, the bundled sample, and one small finished run."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")
# Small work on a shared machine: threads that wait for each other cost more than they bring. Before torch is imported; commands inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch


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
    """Loaders of the sample's curated part, a quarter held out."""
    from fatai.data.blocks import FATDataLoaders

    return FATDataLoaders.from_path(sample, crop_s=1, bs=16, valid_pct=0.25, seed=0, num_workers=0)


@pytest.fixture
def own_dls(sample):
    """The same loaders for one test alone: a recipe's stage changes how they make batches."""
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
    from helpers.browser import started

    with started() as browser:
        yield browser


@pytest.fixture
def doubtful(sample, tmp_path):
    """A run that doubts three of its clips, and these clips."""
    from helpers.review_run import doubtful_run

    return doubtful_run(sample, tmp_path / "run")


@pytest.fixture
def main_with(monkeypatch, capsys):
    """The command's entry point in this process, for tests that would otherwise import torch once each."""

    from fatai.cli import main

    def ended(*args):
        monkeypatch.setattr(sys, "argv", ["fatai-submit", *map(str, args)])
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
        with pytest.raises(SystemExit) as caught, warnings.catch_warnings():
            main()
        told = capsys.readouterr()
        return subprocess.CompletedProcess(args, caught.value.code, told.out, told.err)

    return ended
