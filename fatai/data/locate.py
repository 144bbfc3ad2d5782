"""Locate the sound files that a table names: in its folder, in folders below, or where an absolute path leads.

A name may be a path from the table's folder, with slashes or back slashes; the name of a file in any folder below,
also without its extension or with another one; or an absolute path. An absolute path of another machine is matched by
its longest end that exists below the table's folder.
"""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PureWindowsPath

from fatai.audio.folders import is_hidden, is_sound_name
from fatai.audio.io import AUDIO_EXTENSIONS
from fatai.errors import DataError

__all__ = ["is_outside", "locate_files"]


def locate_files(names: Sequence[str], table: Path) -> list[Path]:
    """Return the path of each file that a table names; where there is none, the path at which it was expected.

    One warning lists the names that differ from their files in case, extension or folders.

    Parameters
    ----------
    names
        The names as the table has them.
    table
        Path of the table.

    Raises
    ------
    DataError
        If a relative name leads out of the table's folder, or fits several files below it.
    """
    locator = _Locator(table, names)
    paths = [locator.locate(name) for name in names]
    locator.warn()
    return paths


def _key(name: str) -> str:
    """Return a name without the differences in case and Unicode form that file systems introduce."""
    return unicodedata.normalize("NFC", name).casefold()


def _parts(name: str) -> tuple[str, ...]:
    """Split a path with slashes or back slashes, without drive and root."""
    path = PureWindowsPath(name)
    return path.parts[1:] if path.anchor else path.parts


def _is_absolute(name: str) -> bool:
    return Path(name).is_absolute() or PureWindowsPath(name).is_absolute()


def is_outside(name: str) -> bool:
    """Return whether a relative path, with slashes or back slashes, leads out of its folder.

    Examples
    --------
    >>> is_outside("a/../b.wav"), is_outside("a/../../b.wav")
    (False, True)
    """
    return os.path.normpath(name.replace("\\", "/")).split("/")[0] == ".."


class _Locator:
    def __init__(self, table: Path, names: Iterable[str]) -> None:
        self.table, self.folder = table, table.parent
        self.found_elsewhere: dict[str, Path] = {}
        # A name that occurs in several folders of the table cannot be matched without its folder.
        self.count = Counter(_key(_parts(name)[-1]) for name in set(names) if _parts(name))
        self.by_name: dict[str, list[Path]] = {}
        self.by_stem: dict[str, list[Path]] = {}
        for file in self._sounds():
            self.by_name.setdefault(_key(file.name), []).append(file)
            is_native = file.suffix.lower() in AUDIO_EXTENSIONS
            if is_native or _key(file.stem) not in self.by_stem:
                self.by_stem.setdefault(_key(file.stem), []).append(file)

    def _sounds(self) -> list[Path]:
        """Return the sounds of all folders, those that only ffmpeg decodes last."""
        files = (f for f in self.folder.rglob("*") if is_sound_name(f) and not is_hidden(f.relative_to(self.folder)))
        return sorted(files, key=lambda file: (file.suffix.lower() not in AUDIO_EXTENSIONS, file))

    def locate(self, name: str) -> Path:
        direct = Path(os.path.normpath(self.folder / name))
        if not _is_absolute(name):
            self._check_inside(name)
        if os.path.isfile(direct):
            return direct
        return self._by_end(name) or self._by_name(name) or direct

    def warn(self) -> None:
        """Warn about names that differ from those of their files."""
        if self.found_elsewhere:
            name, path = next(iter(self.found_elsewhere.items()))
            warnings.warn(
                f"{self.table}: {len(self.found_elsewhere)} names differ from their files in folder, case or "
                f"extension: such as {name}, which was found as {path}",
                stacklevel=5,
            )

    def _check_inside(self, name: str) -> None:
        if is_outside(name):
            raise DataError(
                f"{self.table} names the file {name!r}, which is outside {self.folder}; expected files in it or below, "
                "or absolute paths"
            )

    def _by_end(self, name: str) -> Path | None:
        """Find the longest end of a path, with a folder at least, below the table's folder."""
        parts = _parts(name)
        for k in range(len(parts) - 1):
            path = self.folder.joinpath(*parts[k:])
            if ".." not in parts[k:] and os.path.isfile(path):
                if k or _is_absolute(name):
                    self.found_elsewhere[name] = path
                return path
        return None

    def _by_name(self, name: str) -> Path | None:
        """Find the only file of this name, or of this name with another extension, in any folder."""
        parts = _parts(name)
        if not parts or (len(parts) > 1 and self.count[_key(parts[-1])] > 1):
            return None
        file = parts[-1]
        has_extension = is_sound_name(file)
        stem = Path(file).stem if has_extension else file
        exact = [path for path in self.by_name.get(_key(file), []) if path.name == file]
        matches = exact or self.by_name.get(_key(file)) or self.by_stem.get(_key(stem), [])
        if len(matches) > 1 and len(parts) == 1:
            raise DataError(
                f"{self.table} names the file {name!r}, which exists {len(matches)} times ({matches[0]}, "
                f"{matches[1]}); include the folder in the name"
            )
        if len(matches) != 1:
            return None
        same = matches[0].name == file or (not has_extension and matches[0].stem == file)
        if len(parts) > 1 or not same:
            self.found_elsewhere[name] = matches[0]
        return matches[0]
