"""Fixtures of all tests: seeds, no display, the bundled sample, and one small finished run."""

import gc
import os

os.environ.setdefault("MPLBACKEND", "Agg")
# For small tensors several threads are slower than one. Set before torch is imported, and inherited by commands.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
import subprocess
import sys
import warnings

import pytest
from helpers.once import made_once
from hypothesis import settings

# The same examples in every run of the tests; `make fuzz` takes new ones by --hypothesis-profile=random.
settings.register_profile("fixed", derandomize=True)
settings.register_profile("random", derandomize=False, print_blob=True)
settings.load_profile("fixed")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Search the modules that the tests import for garbage neither while they are imported nor later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state."""
    # Imported here: with pytest-xdist the process that starts the workers loads this file, and runs no test.
    import numpy as np
    import torch

    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture
def rng():
    """NumPy's random generator, with the same seed in every test."""
    import numpy as np

    return np.random.default_rng(2019)


@pytest.fixture(scope="session")
def sample():
    """The folder of the bundled sample."""
    from fatai.data.datasets.fat2019 import fat_sample

    return fat_sample()


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A folder of this run of the tests, the same for all of its processes."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def clip_cache(shared_folder):
    """A folder of cached clips, the same for all processes of the tests."""
    return shared_folder / "clips"


@pytest.fixture(scope="session", autouse=True)
def default_cache(clip_cache):
    """Clips are cached by default in a folder of this run of the tests, not in that of the user, which would grow."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("cache", "cache_choice"):
            patch.setattr(f"fatai.data.{module}.default_cache_folder", lambda: clip_cache)
        yield


@pytest.fixture(scope="session")
def few_clips(sample, tmp_path_factory):
    """A third of the sample, without its truth: 40 curated, 24 noisy and 20 test clips, each tag at least twice."""
    folder = tmp_path_factory.mktemp("few") / "sample"
    for part in ("train_curated", "train_noisy", "test"):
        table = sample / ("sample_submission.csv" if part == "test" else f"{part}.csv")
        head, *rows = table.read_text().splitlines()
        (folder / part).mkdir(parents=True)
        (folder / table.name).write_text("\n".join([head, *rows[::3]]) + "\n")
        for row in rows[::3]:
            fname = row.split(",")[0]
            shutil.copy2(sample / part / fname, folder / part / fname)
    return folder


def _small_loaders(sample, clip_cache):
    from fatai.data.blocks import FATDataLoaders

    return FATDataLoaders.from_path(
        sample, channels="mono", crop_s=0.5, bs=16, valid_pct=0.25, seed=0, num_workers=0, check_files=False,
        cache="wave", cache_dir=clip_cache,
    )


@pytest.fixture(scope="session")
def small_dls(sample, clip_cache):
    """Loaders of the sample's curated part with a validation part of a quarter."""
    return _small_loaders(sample, clip_cache)


@pytest.fixture
def own_dls(sample, clip_cache):
    """The same loaders for a single test, which may change them, as a stage of a recipe does."""
    return _small_loaders(sample, clip_cache)


@pytest.fixture(scope="session")
def tiny_recipe():
    """Seconds instead of minutes: narrow, short, two epochs."""
    from fatai.experiment.recipe import load_recipe

    return load_recipe("quick").override(arch="m1", width=0.125, epochs=2, crop_s=0.5, n_views=2)


@pytest.fixture(scope="session")
def tiny_run(sample, tiny_recipe, shared_folder):
    """A finished run of `tiny_recipe` on the sample, one for all processes of the tests; nothing changes it."""
    from fatai.experiment.run import run_recipe

    def train():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return run_recipe(sample, tiny_recipe, shared_folder / "runs" / "tiny", num_workers=0)

    return made_once(shared_folder / "tiny_run.pickle", train)


@pytest.fixture
def no_reference(monkeypatch):
    """Runs without reference clips, which take a fifth of the time of a small run, for tests of other files."""
    monkeypatch.setattr("fatai.experiment.run_result.store_reference", lambda *args: None)


@pytest.fixture
def undrawn(monkeypatch):
    """Figures that are made, but not drawn, which is half of the time of a report: for tests of its texts."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", lambda self, file, **options: file.write('<svg viewBox="0 0 1 1"></svg>'))


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


@pytest.fixture
def server(monkeypatch):
    """A web server on loopback."""
    monkeypatch.setattr("time.sleep", lambda s: None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    from helpers.file_server import FileServer

    server = FileServer()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def hub_server(tmp_path, monkeypatch):
    """An empty Hugging Face Hub on loopback, a cache without files, and the token of its owner."""
    constants = pytest.importorskip("huggingface_hub.constants")
    from helpers.hub_server import HubServer

    server = HubServer()
    # huggingface_hub reads the environment when it is imported.
    url = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "ENDPOINT": server.url, "HUGGINGFACE_CO_URL_TEMPLATE": url, "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_XET": True, "HF_HUB_DISABLE_PROGRESS_BARS": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", "hf_owner")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    yield server
    server.close()
