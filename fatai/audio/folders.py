"""List the sound files of a folder; a warning names those of formats that cannot be read."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path, PurePath

from fatai.audio.ffmpeg import FFMPEG_EXTENSIONS, conversion_command, ffmpeg_path
from fatai.audio.io import AUDIO_EXTENSIONS

__all__ = ["find_sounds", "is_hidden", "is_sound_name"]

# Made by operating systems, archive programs and network drives.
_HIDDEN = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information"})
_warned: set[str] = set()


def is_hidden(path: str | PurePath) -> bool:
    """Return whether a part of a relative path is hidden or made by a system: `._a.wav`, `.DS_Store`, `__MACOSX`.

    Examples
    --------
    >>> is_hidden("__MACOSX/a.wav"), is_hidden("a.b/c.wav")
    (True, False)
    """
    return any(part.startswith(".") and part != ".." or part.lower() in _HIDDEN for part in PurePath(path).parts)


def is_sound_name(name: str | PurePath) -> bool:
    """Return whether a file has the suffix of a sound, also of one that only ffmpeg decodes."""
    suffix = PurePath(name).suffix.lower()
    return suffix in AUDIO_EXTENSIONS or suffix in FFMPEG_EXTENSIONS


def find_sounds(folder: str | os.PathLike[str], *, below: bool = True) -> list[Path]:
    """List the sound files of a folder, in order of their paths, without hidden files and folders.

    Files that only ffmpeg decodes are listed if it is on the PATH; otherwise one warning counts them and says how to
    convert them.

    Parameters
    ----------
    folder
        The folder.
    below
        Whether the files of all folders below it are listed too. Broken links are listed, links to folders are not
        followed.
    """
    found, unread, has_ffmpeg = list[Path](), list[Path](), ffmpeg_path() is not None
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if below and not is_hidden(name)]
        for name in names:
            if is_sound_name(name) and not is_hidden(name):
                readable = has_ffmpeg or PurePath(name).suffix.lower() in AUDIO_EXTENSIONS
                (found if readable else unread).append(Path(parent, name))
    _warn_of_unread(Path(folder), unread)
    return sorted(found)


def _warn_of_unread(folder: Path, unread: Sequence[Path]) -> None:
    """Warn, once for each folder, of files that cannot be read without ffmpeg."""
    if not unread:
        return
    suffixes = ", ".join(sorted({path.suffix.lower() for path in unread}))
    first = min(unread, key=lambda path: path.name)
    several = len(unread) > 1
    message = (
        f"{folder}: {len(unread)} file{'s' * several} ({suffixes}) {'were' if several else 'was'} not read: convert "
        f"{'them' if several else 'it'}, e.g. `{conversion_command(first)}`, or install ffmpeg"
    )
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=4)
