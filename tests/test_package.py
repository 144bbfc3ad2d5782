"""The wheel and the sdist hold the package with its recipes and its sample only; requirements have lower bounds."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from helpers.oldest_versions import oldest_versions

ROOT = Path(__file__).parents[1]
NEEDED = {
    "fatai/__init__.py",
    "fatai/py.typed",
    "fatai/recipes/ninth.toml",
    "fatai/recipes/ensembles/third_place.toml",
    "fatai/data/datasets/sample/train_curated.csv",
    "fatai/data/datasets/sample/sample_submission.csv",
    "fatai/data/datasets/sample/attribution.csv",
    "fatai/data/datasets/sample/truth/test.csv",
}


def test_every_requirement_has_a_lower_and_no_upper_bound():
    pinned = oldest_versions((ROOT / "setup.cfg").read_text())
    assert len(pinned) > 15 and all("==" in line and "<" not in line.split(";")[0] for line in pinned)


def test_a_requirement_without_a_lower_bound_is_an_error():
    with pytest.raises(ValueError, match="'torch' has no lower bound"):
        oldest_versions("[options]\ninstall_requires =\n    torch\n")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with a wheel and an sdist of the committed files."""
    out = tmp_path_factory.mktemp("dist")
    source = out / "source"
    source.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "x", "-C", str(source)], input=archive, check=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(out), str(source)],
        check=True,
        capture_output=True,
    )
    # As `python -m build` does, without installing it.
    subprocess.run([sys.executable, "-m", "venv", str(out / "backend")], check=True)
    python = str(out / "backend/bin/python")
    subprocess.run([python, "-m", "pip", "install", "-q", "setuptools>=68", "wheel"], check=True, capture_output=True)
    subprocess.run(
        [python, "-c", f"from setuptools.build_meta import build_sdist; build_sdist({str(out)!r})"],
        cwd=source,
        check=True,
        capture_output=True,
    )
    return out


@pytest.mark.slow
class TestBuilt:
    def test_the_wheel_holds_only_the_package_with_recipes_and_sample(self, built):
        wheel, = built.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())
        assert NEEDED <= names
        clips = [n for n in names if n.startswith("fatai/data/datasets/sample/") and n.endswith(".ogg")]
        assert len(clips) == 120 + 72 + 60
        others = [n for n in names if not n.startswith("fatai/") and ".dist-info/" not in n]
        assert others == [] and any(n.endswith("LICENSE") for n in names)

    def test_the_sdist_holds_the_sources_of_the_wheel(self, built):
        sdist, = built.glob("*.tar.gz")
        with tarfile.open(sdist) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
        assert NEEDED | {"setup.cfg", "pyproject.toml", "README.md", "LICENSE"} <= names

    def test_an_installed_wheel_runs_and_loads_its_sample(self, built, tmp_path):
        wheel, = built.glob("*.whl")
        subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "empty")], check=True)
        python = str(tmp_path / "empty/bin/python")
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", str(wheel)], check=True, capture_output=True)
        # The libraries of this environment, but the package of the wheel.
        libraries = [path for path in sys.path if path.endswith("site-packages")]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(libraries)}
        command = [str(tmp_path / "empty/bin/fatai-submit"), "--help"]
        ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert ended.returncode == 0 and "fatai-submit demo" in ended.stdout, ended.stderr[-2000:]
        installed, = (tmp_path / "empty").glob("lib/python*/site-packages")
        read = (
            f"import sys; sys.path.insert(0, {str(installed)!r}); import fatai; "
            "from fatai.data.datasets.fat2019 import fat_sample, load_dataset; "
            "print(fatai.__file__); print(load_dataset(fat_sample()))"
        )
        ended = subprocess.run([python, "-c", read], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert str(tmp_path / "empty") in ended.stdout and "120 curated, 72 noisy, 60 test clips" in ended.stdout, (
            ended.stderr[-2000:]
        )
