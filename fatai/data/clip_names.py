"""Names of clips: two files of one name are two clips, which differ in their paths."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath

from fatai.audio.folders import is_sound_name
from fatai.audio.segments import file_of
from fatai.errors import OptionError

__all__ = ["match_clips", "pair_names", "unique_names"]


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
    found: dict[str, list[int]] = {}
    keys = [str(key) for key in keys]
    for key, rows in zip(keys, _find_rows(keys, names, paths), strict=True):
        if rows:
            _check_one_clip(key, {paths[row]: paths[row] for row in rows})
            found[key] = rows
    return found


def _find_rows(keys: Iterable[str], names: Sequence[str], paths: Sequence[str]) -> Iterator[list[int]]:
    """Yield the rows whose path is a key, or whose name it is, or whose path ends with it."""
    by_path, by_name = _rows_by(paths), _rows_by(names)
    by_end: dict[str, list[int]] | None = None
    for key in keys:
        rows = by_path.get(key) or by_name.get(key)
        if rows is None:
            by_end = _rows_by_end(paths) if by_end is None else by_end
            rows = by_end.get(PurePath(key).as_posix(), [])
        yield rows


def _check_one_clip(key: str, clips: Mapping[str, str]) -> None:
    """Raise if a key fits several clips, path to how the user calls it."""
    if len(clips) > 1:
        first, second, *_ = clips.values()
        raise OptionError(
            f"{key} is the name of {len(clips)} clips, {first} and {second}; expected enough of the path to tell them "
            "apart"
        )


def pair_names(names: Sequence[str], others: Sequence[str]) -> dict[str, str]:
    """Return those of some names that another table has too, and how it calls them.

    Equal names are one clip. Of the others, a name is that of a clip whose path ends with it, in either table; the
    same holds for those that are left without regard to case and to the suffixes of sounds, unless two names of one
    table are alike in this way; a warning counts them.

    Parameters
    ----------
    names, others
        Names or paths of the clips of two tables, each once.

    Raises
    ------
    OptionError
        If a name fits several clips of the other table; the message names two of them.

    Examples
    --------
    >>> pair_names(["a/1.wav", "b/1.wav", "2.wav"], ["b/1.wav", "sounds/2.wav"])
    {'b/1.wav': 'b/1.wav', '2.wav': 'sounds/2.wav'}
    """
    known = set(others)
    pairs = {name: name for name in names if name in known}
    left, right = [n for n in names if n not in pairs], [n for n in others if n not in pairs]
    if left and right:
        pairs |= _pair_by_ends(left, right)
        alike = _pair_alike(names, others, pairs)
        _warn_of_alike(alike)
        pairs |= alike
    return {name: pairs[name] for name in names if name in pairs}


def _with_slashes(name: str) -> str:
    return name.replace("\\", "/")


def _pair_by_ends(
    left: Sequence[str], right: Sequence[str], as_path: Callable[[str], str] = _with_slashes
) -> dict[str, str]:
    """Return the names of one table that are ends of paths in the other one, or the other way round.

    What is compared is `as_path` of the names; errors show the names.
    """
    pairs: dict[str, str] = {}
    found = [(longer, shorter) for shorter, longer in _names_by_ends(right, left, as_path)]
    for name, other in [*found, *_names_by_ends(left, right, as_path)]:
        if pairs.setdefault(name, other) != other:
            raise OptionError(
                f"{name} may be {pairs[name]} or {other}; expected enough of the path to tell them apart"
            )
    return pairs


def _names_by_ends(
    names: Sequence[str], others: Sequence[str], as_path: Callable[[str], str]
) -> Iterator[tuple[str, str]]:
    """Yield names that are ends of the path of another one, with that; raise if they are those of several."""
    paths = [as_path(other) for other in others]
    for name, rows in zip(names, _find_rows(map(as_path, names), paths, paths), strict=True):
        if rows:
            _check_one_clip(name, {paths[row]: others[row] for row in rows})
            yield name, others[rows[0]]


def _pair_alike(names: Sequence[str], others: Sequence[str], pairs: dict[str, str]) -> dict[str, str]:
    """Return the pairs beside `pairs` of names that are equal, or ends, without case and the suffixes of sounds."""
    taken = {*pairs, *pairs.values()}
    ours, theirs = ([side[rows[0]] for rows in _rows_by([_plain(name) for name in side]).values()
                     if len(rows) == 1 and side[rows[0]] not in taken] for side in (names, others))
    return _pair_by_ends(ours, theirs, _plain)


def _plain(name: str) -> str:
    """Return a path in lower case, without the suffix of a sound; the times of a segment stay."""
    file = file_of(name)
    path = PurePath(_with_slashes(file))
    return f"{path.with_suffix('') if is_sound_name(path) else path}{name[len(file):]}".casefold()


def _warn_of_alike(pairs: dict[str, str]) -> None:
    if pairs:
        name, other = next(iter(pairs.items()))
        warnings.warn(
            f"{len(pairs)} names differ in case or suffix, such as {name} and {other}; each pair is taken "
            "for one clip, since no other name is like it",
            stacklevel=4,
        )


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
