"""What this machine has: versions, device, decoders, workers, and what is wrong with them."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

__all__ = ["EnvironmentReport", "check_environment"]

_OPTIONAL = ("audiomentations", "onnxruntime", "tensorboard")


@dataclass(frozen=True)
class EnvironmentReport:
    """What `check_environment` found: (what, finding) pairs, and sentences about what is wrong."""

    findings: tuple[tuple[str, str], ...]
    faults: tuple[str, ...]

    def to_text(self) -> str:
        width = max((len(what) for what, _ in self.findings), default=0)
        lines = [f"{what:{width}s} {finding}" for what, finding in self.findings]
        verdict = [f"wrong: {fault}" for fault in self.faults] or ["nothing is wrong"]
        return "\n".join([*lines, "", *verdict])


def check_environment() -> EnvironmentReport:
    """Look at packages, arithmetic, decoders and the temporary folder; never raises for what it finds wrong."""
    findings = [("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    faults: list[str] = []
    try:
        requirements = _requirements()
    except metadata.PackageNotFoundError:
        requirements = []
        faults.append("fatai is not installed, so what it needs is unknown: pip install -e . in its folder")
    for requirement in requirements:
        found = _version(requirement.name)
        findings.append((requirement.name, found or "not installed"))
        if not found:
            faults.append(f"{requirement.name} is not installed: pip install '{requirement}'")
        elif not requirement.specifier.contains(found, prereleases=True):
            faults.append(
                f"{requirement.name} is {found}; expected {requirement.specifier}: pip install -U '{requirement}'"
            )
    findings += [(package, _version(package) or "not installed (optional)") for package in _OPTIONAL]
    for look in (_device, _decoders, _reads_back, _workers, _disk):
        try:
            findings += look()
        except Exception as e:  # noqa: BLE001 - a doctor reports what fails, whatever it is
            faults.append(f"{look.__name__.strip('_')}: {type(e).__name__}: {e}")
    return EnvironmentReport(tuple(findings), tuple(faults))


def _requirements() -> list[Requirement]:
    """Packages that fatai stands on, without those of extras and those that this Python does without, as its installation has them."""
    found = [Requirement(text) for text in metadata.requires("fatai") or ()]
    wanted = [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]
    for requirement in wanted:
        requirement.marker = None  # read above, and noise in a command
    return wanted


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _device() -> list[tuple[str, str]]:
    import torch

    from fatai.training.precision import best_dtype

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return [("device", name), ("arithmetic", str(best_dtype(device)).removeprefix("torch."))]


def _decoders() -> list[tuple[str, str]]:
    import soundfile

    formats = set(soundfile.available_formats())
    wanted = ("WAV", "FLAC", "OGG", "MP3")
    lacking = [w for w in wanted if w not in formats]
    if lacking:
        raise RuntimeError(
            f"libsndfile {soundfile.__libsndfile_version__} does not read {', '.join(lacking)}: pip install -U soundfile"
        )
    return [
        (
            "decoders",
            f"libsndfile {soundfile.__libsndfile_version__}: {', '.join(wanted)} and {len(formats) - len(wanted)} more",
        )
    ]


def _reads_back() -> list[tuple[str, str]]:
    """Write a tone and read it at another rate: the whole sound stack in one go."""
    import torch

    from fatai.audio.io import load_audio, save_audio

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tone.wav"
        save_audio(path, 0.5 * torch.sin(torch.arange(32000) * 0.1), 32000)
        samples = load_audio(path, 44100).shape[-1]
    if samples != 44100:
        raise RuntimeError(
            f"a second at 32 kHz came back as {samples} samples at 44.1 kHz: pip install -U soxr soundfile"
        )
    return [("sound", "a written tone is read back and resampled")]


def _workers() -> list[tuple[str, str]]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    forced = "; fastai reads in the main process on this system" if sys.platform in ("darwin", "win32") else ""
    return [("cores", f"{cores}{forced}")]


def _disk() -> list[tuple[str, str]]:
    import shutil

    free = shutil.disk_usage(tempfile.gettempdir()).free / 2**30
    if free < 1:
        raise RuntimeError(f"only {free:.1f} GiB are free in {tempfile.gettempdir()}")
    return [("temporary space", f"{free:.0f} GiB free")]
