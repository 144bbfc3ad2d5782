"""Names of clips: two files of one name are two clips, told apart by their paths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import PurePath

from fatai.errors import OptionError

__all__ = ["match_clips", "unique_names"]


def unique_names(names: Sequence[str], paths: Sequence[str]) -> list[str]:
    """Replace each name that several files have by the shortest end of its path that no other file has.

    Parameters
    ----------
    names, paths
        Name and path of each clip. Rows of one path are one file, and keep their name.

    Examples
    --------
    >>> unique_names(["1.wav", "1.wav", "2.wav"], ["/sounds/a/1.wav", "/sounds/b/1.wav", "/sounds/a/2.wav"])
    ['a/1.wav', 'b/1.wav', '2.wav']
    """
    files_of: dict[str, set[str]] = {}
    for name, path in zip(names, paths, strict=True):
        files_of.setdefault(name, set()).add(path)
    if all(len(files) == 1 for files in files_of.values()):
        return list(names)
    count = Counter(end for path in set(paths) for end in _ends(path))
    # An end that is the name of another clip would not tell the two apart.
    shown = {
        path: next((end for end in _ends(path) if count[end] == 1 and end not in files_of), path)
        for files in files_of.values() if len(files) > 1 for path in files
    }
    return [name if len(files_of[name]) == 1 else shown[path] for name, path in zip(names, paths, strict=True)]


def match_clips(keys: Iterable[str], names: Sequence[str], paths: Sequence[str]) -> dict[str, list[int]]:
    """Return the rows of the clip that each key means.

    Parameters
    ----------
    keys
        Whole paths, names, or ends of paths, such as "a/1.wav".
    names, paths
        Name and path of each row; a clip may have several rows.

    Returns
    -------
    Key to rows; keys that no clip has are left out.

    Raises
    ------
    OptionError
        If a key fits several files.

    Examples
    --------
    >>> match_clips(["b/1.wav", "3.wav"], ["1.wav", "1.wav"], ["/sounds/a/1.wav", "/sounds/b/1.wav"])
    {'b/1.wav': [1]}
    """
    by_path, by_name = _rows_by(paths), _rows_by(names)
    by_end: dict[str, list[int]] | None = None
    found: dict[str, list[int]] = {}
    for key in map(str, keys):
        rows = by_path.get(key) or by_name.get(key)
        if rows is None:
            by_end = _rows_by_end(paths) if by_end is None else by_end
            rows = by_end.get(PurePath(key).as_posix())
        if rows is None:
            continue
        files = list(dict.fromkeys(paths[row] for row in rows))
        if len(files) > 1:
            raise OptionError(
                f"{key} is the name of {len(files)} clips, {files[0]} and {files[1]}; expected enough of the path to "
                "tell them apart"
            )
        found[key] = rows
    return found


def _ends(path: str) -> Iterable[str]:
    """Yield the ends of a path, the shortest first, with slashes: c.wav, b/c.wav, a/b/c.wav."""
    parts = PurePath(path).parts
    return (PurePath(*parts[k:]).as_posix() for k in range(len(parts) - 1, -1, -1))


def _rows_by(values: Sequence[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        rows.setdefault(value, []).append(row)
    return rows


def _rows_by_end(paths: Sequence[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, path in enumerate(paths):
        for end in _ends(path):
            rows.setdefault(end, []).append(row)
    return rows
