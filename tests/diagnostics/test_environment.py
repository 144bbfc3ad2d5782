"""The doctor finds what is planted: packages that are missing or old, decoders, arithmetic of the sound stack, space; and never raises."""

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
    """Pretend that a package is there in a version, or not at all."""
    real = metadata.version

    def pretend(**versions):
        def version(package):
            found = versions.get(package.replace("-", "_"), real)
            if found is None:
                raise metadata.PackageNotFoundError(package)
            return real(package) if found is real else found

        monkeypatch.setattr(metadata, "version", version)

    return pretend


def test_this_machine_is_well():
    found = check_environment()
    names = [what for what, _ in found.findings]
    assert found.faults == ()
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


def test_every_requirement_of_the_installation_is_looked_at():
    declared = {text.split(";")[0].split(">")[0].strip() for text in metadata.requires("fatai") if ";" not in text}
    assert declared and declared <= {what for what, _ in check_environment().findings}


def test_a_missing_package_is_a_fault_with_its_remedy(installed):
    installed(timm=None, scikit_learn=None)
    found = check_environment()
    assert ("timm", "not installed") in found.findings
    timm, sklearn = sorted(found.faults, reverse=True)
    assert timm.startswith("timm is not installed: pip install 'timm>=")
    assert sklearn.startswith("scikit-learn is not installed: pip install 'scikit-learn>=")


def test_an_old_package_is_a_fault_that_names_both_versions(installed):
    installed(torch="1.13.1", fastai="2.7.19")
    needs = {r.name: r for r in environment._requirements()}
    assert sorted(check_environment().faults) == [
        f"fastai is 2.7.19; expected {needs['fastai'].specifier}: pip install -U 'fastai{needs['fastai'].specifier}'",
        f"torch is 1.13.1; expected {needs['torch'].specifier}: pip install -U 'torch{needs['torch'].specifier}'",
    ]


def test_new_local_and_unfinished_versions_are_fine(installed):
    installed(torch="99.0.0+cpu", fastai="99.1.0.dev3")
    assert check_environment().faults == ()


def test_an_optional_package_that_is_missing_is_no_fault(installed):
    installed(onnxruntime=None)
    found = check_environment()
    assert found.faults == () and ("onnxruntime", "not installed (optional)") in found.findings


def test_requirements_leave_out_extras_and_other_pythons(monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda package: [
        "numpy>=1.26", 'tomli>=2; python_version < "3"', 'rich; python_version >= "3"', 'pytest>=8; extra == "dev"'])
    assert [str(r) for r in environment._requirements()] == ["numpy>=1.26", "rich"]


def test_fatai_itself_may_not_be_installed(monkeypatch):
    def requires(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "requires", requires)
    (fault,) = check_environment().faults
    assert fault.startswith("fatai is not installed") and "pip install -e ." in fault


def test_a_decoder_that_is_missing_is_a_fault(monkeypatch):
    formats = soundfile.available_formats()
    monkeypatch.setattr(soundfile, "available_formats", lambda: {k: v for k, v in formats.items() if k != "MP3"})
    (fault,) = check_environment().faults
    assert "does not read MP3" in fault and "pip install -U soundfile" in fault


def test_a_full_disk_is_a_fault(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**29))
    (fault,) = check_environment().faults
    assert f"only 0.5 GiB are free in {tempfile.gettempdir()}" in fault


def test_sound_that_comes_back_wrong_is_a_fault(monkeypatch):
    monkeypatch.setattr("fatai.audio.io.load_audio", lambda path, sr: SimpleNamespace(shape=(1, 32000)))
    (fault,) = check_environment().faults
    assert "a second at 32 kHz came back as 32000 samples at 44.1 kHz" in fault


def test_the_text_aligns_findings_and_ends_with_the_verdict():
    lines = EnvironmentReport((("a", "1"), ("longer", "2")), ()).to_text().split("\n")
    assert lines == ["a      1", "longer 2", "", "nothing is wrong"]
    assert EnvironmentReport((), ("no disk",)).to_text().endswith("wrong: no disk")
