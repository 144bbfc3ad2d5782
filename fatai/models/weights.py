"""Published weights by name: where they are from, and their files in the user's cache.

Nothing here is part of fatai: the files are their authors', with their licenses. They are downloaded by `fatai-submit
weights get`, and by a network that is built with their name or with `pretrained=True`; nothing else downloads any. With
the environment variable `FATAI_WEIGHTS`, the folder of the files, nothing is downloaded but by the command.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from fatai.errors import CheckpointError, FataiError, OptionError, UnknownNameError
from fatai.io.fetch import cache_folder, fetch, file_digest
from fatai.io.lock import lock_output
from fatai.registry import did_you_mean

__all__ = [
    "WEIGHTS", "PublishedWeights", "archs_with_weights", "find_published", "get_weights", "locate_weights",
    "weights_folder", "weights_path",
]


@dataclass(frozen=True)
class PublishedWeights:
    """A file of weights that its authors published.

    Attributes
    ----------
    name
        Name in `WEIGHTS`.
    arch
        Network in `MODELS` that the file is for, with the options it was published with.
    front_end
        Front end in `FRONT_ENDS` that the weights were trained on.
    trained_on
        Data that the weights were trained on.
    score
        Mean average precision on the evaluation part of that data, as published.
    n_bytes
        Size of the file; rounded to three digits unless the checksum is known.
    license
        License of the weights.
    url
        Address of the authors' release.
    checksum
        Such as "sha256:899a8c...", or the "md5:..." that the release states; "" if unknown.
    """

    name: str
    arch: str
    front_end: str
    trained_on: str
    score: float
    n_bytes: int
    license: str
    url: str
    checksum: str = ""

    @property
    def file_name(self) -> str:
        """Name of the file, as published."""
        return unquote(self.url.rpartition("/")[2])

    @property
    def size(self) -> str:
        """Size in words, such as "4 MB"."""
        return f"{max(1, round(self.n_bytes / 1e6))} MB"


def _efficientat(arch: str, score: int, n_bytes: int, sha256: str = "") -> PublishedWeights:
    return PublishedWeights(
        name=f"{arch}_as",
        arch=arch,
        front_end="efficientat",
        trained_on="AudioSet",
        score=score / 1000,
        n_bytes=n_bytes,
        license="MIT",
        url=f"https://github.com/fschmid56/EfficientAT/releases/download/v0.0.1/{arch}_as_mAP_{score}.pt",
        checksum=f"sha256:{sha256}" if sha256 else "",
    )


def _panns(published: str, score: int, n_bytes: int, md5: str = "") -> PublishedWeights:
    return PublishedWeights(
        name=published.lower(),
        arch=published.lower(),
        front_end="panns",
        trained_on="AudioSet",
        score=score / 1000,
        n_bytes=n_bytes,
        license="CC BY 4.0",
        url=f"https://zenodo.org/record/3987831/files/{published}_mAP%3D0.{score}.pth",
        checksum=f"md5:{md5}" if md5 else "",
    )


WEIGHTS: dict[str, PublishedWeights] = {
    entry.name: entry
    for entry in (
        _efficientat("mn04", 432, 4_066_513, "899a8c6217063f6941793102a2780b3dd788ab11fce468d9cf5f0577c453321c"),
        _efficientat("mn05", 443, 5_860_000),
        _efficientat("mn10", 471, 19_708_753, "0bd7dc2443af498c289a2e739f02ebb515d6aa3fd3ab9db539c86123ae368a4e"),
        _efficientat("mn20", 478, 71_900_000),
        _efficientat("mn30", 482, 157_000_000),
        _efficientat("mn40", 484, 274_000_000),
        _panns("Cnn6", 343, 23_700_000, "e25e26b84585b14c7754c91e48efc9be"),
        _panns("Cnn10", 380, 25_200_000, "bfb1f1f9968938fa8ef4012b8471f5f6"),
        _panns("Cnn14", 431, 327_428_481, "541141fa2ee191a88f24a3219fff024e"),
        _panns("ResNet22", 430, 259_000_000, "cf36d413096793c4e15dc752a3abd599"),
        _panns("ResNet38", 434, 300_000_000, "bf12f36aaabac4e0855e22d3c3239c1b"),
        _panns("ResNet54", 429, 422_000_000, "4f1f1406d37a29e2379916885e18c5f3"),
        _panns("MobileNetV1", 389, 23_639_473, "a419303e1c88aa1b9d2ac3811563d371"),
        _panns("MobileNetV2", 383, 20_800_000),
    )
}
"""Published weights by name."""


def archs_with_weights() -> list[str]:
    """Return the names of the networks that have published weights, in the order of `WEIGHTS`."""
    return list(dict.fromkeys(entry.arch for entry in WEIGHTS.values()))


def find_published(arch: str, pretrained: bool | str | os.PathLike[str] | None = True) -> PublishedWeights | None:
    """Return the entry that the option `pretrained` of a network means; None if it means no published file.

    Parameters
    ----------
    arch
        A name of `MODELS`.
    pretrained
        True for the network's own published weights; a name of `WEIGHTS`; or a path, which means the entry whose
        published file name it ends in.

    Examples
    --------
    >>> find_published("mn04").name, find_published("mn04", "files/mn04_as_mAP_432.pt").name, find_published("m3")
    ('mn04_as', 'mn04_as', None)
    """
    if not pretrained:
        return None
    if pretrained is True:
        return next((entry for entry in WEIGHTS.values() if entry.arch == arch), None)
    text = os.fspath(pretrained)
    return WEIGHTS.get(text) or next((e for e in WEIGHTS.values() if e.file_name == Path(text).name), None)


def weights_folder() -> Path:
    """Return `$FATAI_WEIGHTS`, or else `fatai/weights` in `$XDG_CACHE_HOME` or in `~/.cache`."""
    chosen = os.environ.get("FATAI_WEIGHTS")
    return Path(chosen) if chosen else cache_folder("weights")


def weights_path(name: str) -> Path:
    """Return the path of the file of published weights in `weights_folder`; the file need not exist.

    Raises
    ------
    UnknownNameError
        If `WEIGHTS` has no such name; the nearest one is suggested.
    """
    if name not in WEIGHTS:
        raise UnknownNameError(f"no published weights named {name!r}; {did_you_mean(name, list(WEIGHTS))}")
    return weights_folder() / WEIGHTS[name].file_name


def get_weights(name: str, *, tries: int = 3) -> Path:
    """Download published weights into `weights_folder`, unless they are there; the file is verified in both cases.

    An interrupted download is resumed by the next call.

    Parameters
    ----------
    name
        A name of `WEIGHTS`.
    tries
        Attempts if the connection fails.

    Returns
    -------
    Path of the file.

    Raises
    ------
    UnknownNameError
        If there are no such weights.
    DataError
        If the server cannot be reached or refuses.
    CheckpointError
        If the file that is there has another checksum; it is left alone.
    StorageError
        If the file cannot be written, the disk has no room, or another command is downloading it.
    """
    path, entry = weights_path(name), WEIGHTS[name]
    if path.is_file():
        return _verified(path, entry)
    with lock_output(path):
        return fetch(entry.url, path, checksum=entry.checksum, tries=tries)


def locate_weights(arch: str, pretrained: bool | str | os.PathLike[str]) -> Path:
    """Return the file that the option `pretrained` of a network means; download published weights that are not here.

    Parameters
    ----------
    arch
        A name of `MODELS`.
    pretrained
        True for the network's own published weights, a name of `WEIGHTS`, or the path of a file.

    Raises
    ------
    OptionError
        If the network has no published weights, or `pretrained` is false.
    CheckpointError
        If the named weights are of another network, their file has another checksum, or cannot be downloaded; or if
        there is no such name.
    """
    if isinstance(pretrained, bool):
        entry = find_published(arch, pretrained)
        if entry is None:
            raise OptionError(
                f"pretrained={pretrained} for {arch}; expected a file of weights, or True for one of the networks with "
                f"published weights: {', '.join(archs_with_weights())}"
            )
        return _here_or_downloaded(entry)
    entry = WEIGHTS.get(os.fspath(pretrained))
    if entry is None:
        return _existing(Path(pretrained))
    if entry.arch != arch:
        raise CheckpointError(
            f"the weights {entry.name} are of {entry.arch}, not of {arch}; {_weights_of(arch)}, or build {entry.arch}"
        )
    return _here_or_downloaded(entry)


def _weights_of(arch: str) -> str:
    names = [entry.name for entry in WEIGHTS.values() if entry.arch == arch]
    return f"choose {' or '.join(names)}" if names else f"none of {arch} are published"


def _existing(path: Path) -> Path:
    """Return a path of a user; a missing file that may be meant as a name is an error that suggests one."""
    if path.is_file() or path.suffix or len(path.parts) > 1:
        return path
    hint = did_you_mean(path.name, [*WEIGHTS])
    raise CheckpointError(
        f"there is no file {path}, and no published weights have that name; "
        f"{hint if hint.startswith('did') else 'list them with: fatai-submit weights'}"
    )


def _here_or_downloaded(entry: PublishedWeights) -> Path:
    path = weights_path(entry.name)
    if path.is_file():
        return _verified(path, entry)
    get = f"fatai-submit weights get {entry.name}"
    if os.environ.get("FATAI_WEIGHTS"):
        raise CheckpointError(
            f"the weights {entry.name} are not in FATAI_WEIGHTS, {path.parent}; copy {entry.file_name} into it, or "
            f"download it with: {get}"
        )
    try:
        return get_weights(entry.name, tries=1)
    except CheckpointError:
        raise
    except FataiError as e:
        raise CheckpointError(
            f"the weights {entry.name} ({entry.size}) are not on this machine, and the download failed: {e}; for a "
            f"machine without network, download {entry.url} elsewhere and name its folder in FATAI_WEIGHTS"
        ) from None


def _verified(path: Path, entry: PublishedWeights) -> Path:
    """Return the path if its checksum is the published one."""
    algorithm, _, expected = entry.checksum.partition(":")
    if not expected:
        return path
    found = file_digest(path, algorithm)
    if found != expected:
        raise CheckpointError(
            f"{path} is not the published file of {entry.name}: its {algorithm} is {found}, expected {expected}; "
            f"remove it and start again: fatai-submit weights get {entry.name}"
        )
    return path
