"""The sound files that a command was pointed at."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

__all__ = ["listed_sounds", "sound_files"]


def listed_sounds(file: Path) -> list[tuple[str, Path]]:
    """Names and paths of the sounds in a text file, a path in each line; named as `sound_files` does."""
    from fatai.errors import DataError

    try:
        lines = file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as e:
        raise DataError(f"the list {file} cannot be read: {e.strerror}") from None
    paths = [Path(line.strip()) for line in lines if line.strip()]
    if not paths:
        raise DataError(f"the list {file} is empty; expected the path of a sound in each line")
    return _named([(path.name, path) for path in paths])


def sound_files(sounds: list[Path]) -> list[tuple[str, Path]]:
    """Names and paths of files and of all sounds below folders.

    The name of one below a folder is relative to it; where two have the same name, the path as it was given. Links to nowhere are listed
    too: every sound has an answer.
    """
    from fatai.errors import DataError
    from fatai.audio.io import AUDIO_EXTENSIONS

    found: list[tuple[str, Path]] = []
    for sound in sounds:
        if sound.is_dir():
            below = sorted(f for f in sound.rglob("*") if f.suffix.lower() in AUDIO_EXTENSIONS and not f.is_dir())
            if not below:
                raise DataError(f"there are no sound files below {sound}; expected .wav, .flac, .ogg, .mp3 or the like")
            found += [(str(f.relative_to(sound)), f) for f in below]
        elif sound.is_file():
            found.append((sound.name, sound))
        else:
            raise DataError(f"there is no file or folder {sound}")
    return _named(found)


def _named(found: list[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """Each sound once, by the name that it has alone."""
    found = list(dict.fromkeys(found))
    count = Counter(name for name, _ in found)
    return [(name if count[name] == 1 else str(path), path) for name, path in found]
