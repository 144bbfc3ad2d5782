"""Report versions, device, decoders and cores of this machine, and the problems of its installation."""

from __future__ import annotations

import platform
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from fatai.threads import available_cores, describe_waiting, torch_came_first

if TYPE_CHECKING:  # imported where it is used: `fatai.all` imports this module
    from packaging.requirements import Requirement

__all__ = ["EnvironmentReport", "check_environment"]

_OPTIONAL = ("audiomentations", "onnxruntime", "tensorboard", "optuna")


@dataclass(frozen=True)
class EnvironmentReport:
    """The result of `check_environment`.

    Attributes
    ----------
    findings
        Pairs of a subject, such as a package, and its value.
    problems
        Sentences that name a problem and its remedy.
    """

    findings: tuple[tuple[str, str], ...]
    problems: tuple[str, ...]

    def to_text(self) -> str:
        """Return the findings as an aligned table, followed by the problems."""
        width = max((len(subject) for subject, _ in self.findings), default=0)
        lines = [f"{subject:{width}s} {finding}" for subject, finding in self.findings]
        problems = [f"problem: {problem}" for problem in self.problems] or ["no problems found"]
        return "\n".join([*lines, "", *problems])


def check_environment() -> EnvironmentReport:
    """Check the installed packages, the device, audio decoding and the temporary folder.

    Problems are reported, not raised.
    """
    findings = [("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    problems: list[str] = []
    try:
        requirements = _requirements()
    except metadata.PackageNotFoundError:
        requirements = []
        problems.append("fatai is not installed, so its requirements are unknown: pip install -e . in its folder")
    for requirement in requirements:
        version = _version(requirement.name)
        findings.append((requirement.name, version or "not installed"))
        if problem := _requirement_problem(requirement, version):
            problems.append(problem)
    findings += [(package, _version(package) or "not installed (optional)") for package in _OPTIONAL]
    for check in (_device, _decoders, _round_trip, _cores, _threads, _disk):
        try:
            findings += check()
        except Exception as e:  # noqa: BLE001 - any failure is reported
            problems.append(f"{check.__name__.strip('_')}: {type(e).__name__}: {e}")
    return EnvironmentReport(tuple(findings), tuple(problems))


def _requirements() -> list[Requirement]:
    """Return the required packages (no extras) that apply to this Python version."""
    from packaging.requirements import Requirement

    found = [Requirement(text) for text in metadata.requires("fatai") or ()]
    required = [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]
    for requirement in required:
        requirement.marker = None  # evaluated above; must not appear in the command of a remedy
    return required


def _requirement_problem(requirement: Requirement, version: str) -> str:
    """Return a sentence if a package is missing or too old or new, else ""."""
    if not version:
        return f"{requirement.name} is not installed: pip install '{requirement}'"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} is {version}; expected {requirement.specifier}: pip install -U '{requirement}'"
    return ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _device() -> list[tuple[str, str]]:
    import torch

    from fatai.training.autocast import best_dtype

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return [("device", name), ("precision", str(best_dtype(device)).removeprefix("torch."))]


def _decoders() -> list[tuple[str, str]]:
    import soundfile

    formats = set(soundfile.available_formats())
    needed = ("WAV", "FLAC", "OGG", "MP3")
    missing = [name for name in needed if name not in formats]
    version = soundfile.__libsndfile_version__
    if missing:
        raise RuntimeError(f"libsndfile {version} does not read {', '.join(missing)}: pip install -U soundfile")
    return [("decoders", f"libsndfile {version}: {', '.join(needed)} and {len(formats) - len(needed)} more")]


def _round_trip() -> list[tuple[str, str]]:
    """Write a tone and load it at another sample rate."""
    import torch

    from fatai.audio.io import load_audio, save_audio

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tone.wav"
        save_audio(path, 0.5 * torch.sin(torch.arange(32000) * 0.1), 32000)
        samples = load_audio(path, 44100).shape[-1]
    if samples != 44100:
        raise RuntimeError(
            f"a second at 32 kHz was loaded as {samples} samples at 44.1 kHz: pip install -U soxr soundfile"
        )
    return [("sound", "writing, loading and resampling of a tone work")]


def _cores() -> list[tuple[str, str]]:
    cores = available_cores()
    note = "; fastai loads data in the main process on this system" if sys.platform in ("darwin", "win32") else ""
    return [("cores", f"{cores}{note}")]


def _threads() -> list[tuple[str, str]]:
    late = ", but torch was imported before fatai, which is too late: import fatai first" if torch_came_first() else ""
    return [("waiting threads", f"{describe_waiting()}{late}")]


def _disk() -> list[tuple[str, str]]:
    import shutil

    free = shutil.disk_usage(tempfile.gettempdir()).free / 2**30
    if free < 1:
        raise RuntimeError(f"only {free:.1f} GiB are free in {tempfile.gettempdir()}; expected at least 1 GiB")
    return [("temporary space", f"{free:.0f} GiB free")]
