"""The report of the environment: missing or old packages, decoders, resampling, disk space; nothing is raised."""

import shutil
import tempfile
from importlib import metadata
from types import SimpleNamespace

import pytest
import soundfile

from fatai.diagnostics import environment
from fatai.diagnostics.environment import EnvironmentReport, check_environment


@pytest.fixture
def installed(monkeypatch):
    """A function that pretends that packages are installed in other versions, or not at all."""
    real = metadata.version

    def pretend(**versions):
        def version(package):
            found = versions.get(package.replace("-", "_"), real)
            if found is None:
                raise metadata.PackageNotFoundError(package)
            return real(package) if found is real else found

        monkeypatch.setattr(metadata, "version", version)

    return pretend


def test_this_machine_has_no_problems():
    found = check_environment()
    names = [subject for subject, _ in found.findings]
    assert found.problems == ()
    assert {
        "python",
        "fastai",
        "torch",
        "scikit-learn",
        "iterative-stratification",
        "device",
        "decoders",
        "sound",
        "cores",
    } <= set(names)
    assert len(names) == len(set(names)) and all(finding for _, finding in found.findings)


def test_every_requirement_is_checked():
    declared = {text.split(";")[0].split(">")[0].strip() for text in metadata.requires("fatai") if ";" not in text}
    assert declared and declared <= {subject for subject, _ in check_environment().findings}


def test_a_missing_package_is_a_problem_with_a_remedy(installed):
    installed(timm=None, scikit_learn=None)
    found = check_environment()
    assert ("timm", "not installed") in found.findings
    timm, sklearn = sorted(found.problems, reverse=True)
    assert timm.startswith("timm is not installed: pip install 'timm>=")
    assert sklearn.startswith("scikit-learn is not installed: pip install 'scikit-learn>=")


def test_an_old_package_is_a_problem_that_names_both_versions(installed):
    installed(torch="1.13.1", fastai="2.7.19")
    needs = {r.name: r for r in environment._requirements()}
    assert sorted(check_environment().problems) == [
        f"fastai is 2.7.19; expected {needs['fastai'].specifier}: pip install -U 'fastai{needs['fastai'].specifier}'",
        f"torch is 1.13.1; expected {needs['torch'].specifier}: pip install -U 'torch{needs['torch'].specifier}'",
    ]


def test_newer_local_and_development_versions_are_accepted(installed):
    installed(torch="99.0.0+cpu", fastai="99.1.0.dev3")
    assert check_environment().problems == ()


def test_a_missing_optional_package_is_not_a_problem(installed):
    installed(onnxruntime=None)
    found = check_environment()
    assert found.problems == () and ("onnxruntime", "not installed (optional)") in found.findings


def test_requirements_leave_out_extras_and_other_pythons(monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda package: [
        "numpy>=1.26", 'tomli>=2; python_version < "3"', 'rich; python_version >= "3"', 'pytest>=8; extra == "dev"'])
    assert [str(r) for r in environment._requirements()] == ["numpy>=1.26", "rich"]


def test_fatai_itself_may_be_missing(monkeypatch):
    def requires(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "requires", requires)
    (problem,) = check_environment().problems
    assert problem.startswith("fatai is not installed") and "pip install -e ." in problem


def test_a_missing_decoder_is_a_problem(monkeypatch):
    formats = soundfile.available_formats()
    monkeypatch.setattr(soundfile, "available_formats", lambda: {k: v for k, v in formats.items() if k != "MP3"})
    (problem,) = check_environment().problems
    assert "does not read MP3" in problem and "pip install -U soundfile" in problem


def test_a_full_disk_is_a_problem(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**29))
    (problem,) = check_environment().problems
    assert f"only 0.5 GiB are free in {tempfile.gettempdir()}" in problem


def test_wrong_resampling_is_a_problem(monkeypatch):
    monkeypatch.setattr("fatai.audio.io.load_audio", lambda path, sr: SimpleNamespace(shape=(1, 32000)))
    (problem,) = check_environment().problems
    assert "a second at 32 kHz was loaded as 32000 samples at 44.1 kHz" in problem


def test_the_text_aligns_findings_and_ends_with_the_problems():
    lines = EnvironmentReport((("a", "1"), ("longer", "2")), ()).to_text().split("\n")
    assert lines == ["a      1", "longer 2", "", "no problems found"]
    assert EnvironmentReport((), ("no disk",)).to_text().endswith("problem: no disk")
