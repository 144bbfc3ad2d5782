"""Sound files named by the arguments of a command."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["part_path", "read_sound_list", "sound_files", "sounds_by_name"]


def part_path(path: Path, name: str) -> Path:
    """Return `path` itself, or if it is a run folder its predictions, as `run_table` does."""
    from fatai.ensemble.members import run_table

    return run_table(path, name) if path.is_dir() else path


def read_sound_list(file: Path) -> list[tuple[str, Path | str]]:
    """Read a text file with one path or URL per line; return names and paths, named as in `sound_files`.

    Raises
    ------
    DataError
        If the file cannot be read or has no path.
    """
    from fatai.errors import DataError

    try:
        data = file.read_bytes()
    except OSError as e:
        raise DataError(f"the list {file} cannot be read: {e.strerror}") from None
    # PowerShell writes UTF-16. utf-8-sig leaves out the byte-order mark of an editor; names of files need not be text.
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    lines = data.decode(encoding, errors="replace" if encoding == "utf-16" else "surrogateescape").splitlines()
    paths = [line.strip() if "://" in line else Path(line.strip()) for line in lines if line.strip()]
    if not paths:
        raise DataError(f"the list {file} is empty; expected one path of a sound per line")
    return _unique_names([(Path(path).name, path) for path in paths])


def sound_files(sounds: Sequence[Path | str]) -> list[tuple[str, Path | str]]:
    """Find files and all sounds below folders; return names and paths. URLs of fsspec stay as they are.

    A sound below a folder is named by its path relative to that folder; where two names are equal, by the shortest
    unique path. Broken links are listed too, so that every sound gets a row in the output.

    Raises
    ------
    DataError
        If a path does not exist or a folder has no sound files.
    """
    from fatai.errors import DataError
    from fatai.io.fetch import is_url

    found: list[tuple[str, Path | str]] = []
    for sound in sounds:
        path = Path(sound)
        if is_url(sound):
            found.append((path.name, sound))
        elif path.is_dir():
            found += _sounds_below(path)
        elif path.is_file():
            found.append((path.name, path))
        else:
            raise DataError(f"there is no file or folder {sound}")
    return _unique_names(found)


def _sounds_below(folder: Path) -> list[tuple[str, Path | str]]:
    from fatai.audio.folders import find_sounds
    from fatai.errors import DataError

    files = find_sounds(folder)
    if not files:
        raise DataError(f"there are no sound files below {folder}; expected .wav, .flac, .ogg, .mp3 or similar")
    return [(str(f.relative_to(folder)), f) for f in files]


def sounds_by_name(
    sounds: Sequence[Path | str], input_list: Path | None, file_col: str | None = None
) -> Sequence[tuple[str, str | Path]]:
    """Return names and paths of sounds, from the arguments SOUND or from --input-list.

    A data folder gives its test part, a table the sounds that exist of its column `file_col`, folders and files what
    `sound_files` finds.

    Raises
    ------
    OptionError
        Unless exactly one of the two is given.
    """
    from fatai.data.datasets.fat2019 import load_dataset
    from fatai.data.table_columns import TableColumns
    from fatai.data.tables import is_sound_table, read_sound_files
    from fatai.errors import OptionError

    check_one_input(sounds, input_list)
    if input_list is not None:
        return read_sound_list(input_list)
    if len(sounds) == 1:
        source = Path(sounds[0])
        if (source / "train_curated.csv").is_file():
            return _rows(load_dataset(source).test)
        if is_sound_table(source):
            return _rows(_existing_sounds(read_sound_files(source, TableColumns(file_col)), source))
    if file_col is not None:
        raise OptionError(f"--file-col is {file_col!r}, but no table of sounds is given; expected one, as sounds.csv")
    return sound_files(sounds)


def _rows(table: pd.DataFrame) -> list[tuple[str, str | Path]]:
    """Return names and paths of a table with the columns fname and path."""
    return list(zip(table["fname"], table["path"], strict=True))


def _existing_sounds(table: pd.DataFrame, source: Path) -> pd.DataFrame:
    """Return the rows whose file exists; a warning names the others."""
    import warnings

    from fatai.audio.segments import file_of
    from fatai.errors import DataError

    exists = [Path(file_of(path)).is_file() for path in table["path"]]
    missing = [name for name, is_there in zip(table["fname"], exists, strict=True) if not is_there]
    if len(missing) == len(table):
        raise DataError(
            f"none of the {len(table)} sounds in {source}, such as {missing[0]}, is in {source.parent} or below"
        )
    if missing:
        names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        warnings.warn(f"{source}: {len(missing)} rows without a sound file are left out: {names}", stacklevel=2)
    return table[exists].reset_index(drop=True)


def check_one_input(sounds: Sequence[Path | str], input_list: Path | None) -> None:
    """Raise `OptionError` unless either sounds or a list of them are given."""
    from fatai.errors import OptionError

    if (input_list is None) == (not sounds):
        raise OptionError("expected either sounds or an --input-list of them")


def _unique_names(found: list[tuple[str, Path | str]]) -> list[tuple[str, Path | str]]:
    """Return each sound once; replace names that occur twice by the shortest unique path."""
    from fatai.data.clip_names import unique_names

    found = list(dict.fromkeys(found))
    names = unique_names([name for name, _ in found], [str(path) for _, path in found])
    return [(name, path) for name, (_, path) in zip(names, found, strict=True)]
