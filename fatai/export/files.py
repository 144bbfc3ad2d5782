"""The files of a model folder: their names, and the checks of an untrusted folder before any of them is opened."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath

from fatai.audio.io import audio_info
from fatai.errors import AudioError, CheckpointError
from fatai.export.config import MAX_BYTES

__all__ = ["CONFIG", "FILES", "REFERENCE", "WEIGHTS", "check_files", "check_size", "check_target", "find_code"]

WEIGHTS, CONFIG, REFERENCE = FILES = ("model.safetensors", "config.json", "reference.wav")
_MAX_BYTES = {WEIGHTS: 1 << 32, CONFIG: MAX_BYTES, REFERENCE: 1 << 25}
_CODE_SUFFIXES = frozenset(
    {".bin", ".ckpt", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth", ".py", ".so"}
)


def find_code(names: Iterable[str]) -> str | None:
    """Return the first name of a file that could be code, such as a pickle; None if there is none.

    Examples
    --------
    >>> find_code(["config.json", "old/Model.PKL"]), find_code(["README.md"])
    ('old/Model.PKL', None)
    """
    return next((name for name in names if PurePosixPath(name).suffix.lower() in _CODE_SUFFIXES), None)


def check_size(name: str, n_bytes: int, where: str) -> None:
    """Raise `CheckpointError`, which calls the file `where`, if one of `FILES` is larger than it can be."""
    if n_bytes > _MAX_BYTES[name]:
        raise CheckpointError(f"{where} has {n_bytes:,} bytes; expected at most {_MAX_BYTES[name]:,}")


def check_files(root: Path, *, cache: Path | None = None) -> None:
    """Check names, kinds and sizes of the files of a folder, and the length of its reference clip.

    Parameters
    ----------
    root
        The folder, which may be untrusted.
    cache
        Folder that links of `root` may lead to, as in the cache of the Hub; None refuses links.

    Raises
    ------
    CheckpointError
        If a file is missing, a link, not regular or too large; if another file could be code; or if the reference clip
        is not a WAV of one channel and at most 60 s.
    """
    if not root.is_dir():
        raise CheckpointError(f"{root} is not a folder; expected a model folder with {', '.join(FILES)}")
    for name in FILES:
        if not os.path.lexists(root / name):
            raise CheckpointError(f"{root} is not a model folder: it lacks {name}; expected {', '.join(FILES)}")
        _check_file(root / name, cache)
    code = find_code(entry.name for entry in os.scandir(root))
    if code is not None:
        raise CheckpointError(
            f"{root} holds {code}, which could be code; no file of the folder was opened. A model folder "
            f"needs only {', '.join(FILES)}: if you trust its author, move the other files away"
        )
    _check_reference(root / REFERENCE)


def _check_file(file: Path, cache: Path | None) -> None:
    is_cached = cache is not None and Path(os.path.realpath(file)).is_relative_to(os.path.realpath(cache))
    status = file.stat() if is_cached and file.exists() else file.lstat()
    if not stat.S_ISREG(status.st_mode):
        kind = "a link" if stat.S_ISLNK(status.st_mode) else "not a regular file"
        raise CheckpointError(f"{file} is {kind} and was not opened; expected the file itself")
    check_size(file.name, status.st_size, str(file))


def _check_reference(path: Path) -> None:
    try:
        info = audio_info(path)
    except AudioError as e:
        raise CheckpointError(f"the reference clip cannot be read: {e}") from None
    if info.format != "WAV" or info.channels != 1 or info.seconds > 60:
        raise CheckpointError(
            f"{path} is {info.seconds:.0f} s of {info.format} with {info.channels} channels; "
            "expected a WAV of one channel and at most 60 s"
        )


def check_target(root: Path, names: Collection[str] = FILES, kind: str = "a model folder") -> None:
    """Check that a folder can be written without touching files of others.

    Parameters
    ----------
    root
        The folder, which need not exist.
    names
        Files that will be written into it.
    kind
        What messages call such a folder.

    Raises
    ------
    CheckpointError
        If it is a file, holds other files, or one of them is a link.
    """
    if root.exists() and not root.is_dir():
        raise CheckpointError(f"{root} is a file; expected the name of a folder")
    others = sorted(entry.name for entry in os.scandir(root) if entry.name not in names) if root.is_dir() else []
    if others:
        raise CheckpointError(
            f"{root} holds {others[0]}, which is no part of {kind}; choose a new or empty folder"
        )
    linked = [name for name in names if (root / name).is_symlink()]
    if linked:
        raise CheckpointError(
            f"{root / linked[0]} is a link, which would be followed when writing; choose a new or empty folder"
        )
